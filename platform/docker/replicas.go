package docker

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"github.com/denia-paas/denia/platform"
)

// Replicas lists the containers of a service, or of all; see platform.Runtime.
func (e *Engine) Replicas(ctx context.Context, service platform.ID) ([]platform.Replica, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	filter := e.ours()
	if service != "" {
		filter = e.ours(labelService, string(service))
	}
	listed, err := api.ContainerList(ctx, container.ListOptions{All: true, Filters: filter})
	if err != nil {
		return nil, e.fail(ctx, err, "listing replicas")
	}

	// A list tells neither when a container started nor how it ended.
	var (
		mu       sync.Mutex
		replicas = make([]platform.Replica, 0, len(listed))
		group    errgroup.Group
	)
	group.SetLimit(8)
	for _, c := range listed {
		group.Go(func() error {
			r, exists, err := e.inspect(ctx, api, c.ID)
			if err != nil || !exists {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			replicas = append(replicas, r)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(replicas, func(a, b platform.Replica) int {
		return cmp.Or(cmp.Compare(a.ReleaseID, b.ReleaseID), cmp.Compare(a.Index, b.Index), cmp.Compare(a.ID, b.ID))
	})
	return replicas, nil
}

func (e *Engine) inspect(ctx context.Context, api *client.Client, id string) (r platform.Replica, exists bool, err error) {
	c, err := api.ContainerInspect(ctx, id)
	if cerrdefs.IsNotFound(err) {
		return r, false, nil
	}
	if err != nil {
		return r, false, e.fail(ctx, err, "looking at container %s", id)
	}
	labels := c.Config.Labels
	r = platform.Replica{
		ID:        c.ID,
		ServiceID: platform.ID(labels[labelService]),
		ProjectID: platform.ID(labels[labelProject]),
		ReleaseID: platform.ID(labels[labelRelease]),
		Label:     replicaLabel(labels),
		OOMKilled: c.State.OOMKilled,
		StartedAt: engineTime(c.State.StartedAt),
	}
	r.Index, _ = strconv.Atoi(labels[labelIndex])
	if c.State.Error != "" {
		r.Error = engineWords(c.State.Error)
	}
	switch c.State.Status {
	case container.StateCreated:
		r.State = platform.ReplicaCreated
	case container.StatePaused:
		r.State = platform.ReplicaBroken
	case container.StateRunning, container.StateRestarting:
		r.State = platform.ReplicaBroken
		if endpoint := c.NetworkSettings.Networks[e.networkName(r.ProjectID)]; endpoint != nil {
			ip := cmp.Or(endpoint.IPAddress, endpoint.GlobalIPv6Address)
			if ip != "" {
				r.State, r.Addr = platform.ReplicaRunning, net.JoinHostPort(ip, labels[labelPort])
			}
		}
	default:
		r.State = platform.ReplicaExited
		r.ExitCode = c.State.ExitCode
		// The engine notes the start of a process when it gets round to it,
		// which may be after a short one has ended.
		r.FinishedAt = engineTime(c.State.FinishedAt)
		if r.FinishedAt.Before(r.StartedAt) {
			r.FinishedAt = r.StartedAt
		}
	}
	return r, true, nil
}

// engineTime reads a time as the engine writes it; "0001-01-01T00:00:00Z" is
// its word for never.
func engineTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t.UTC()
}
