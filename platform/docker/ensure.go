package docker

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"github.com/denia-paas/denia/platform"
)

// How many replicas of one workload are started, and stopped, at a time.
// Starting takes the engine's time; stopping mostly waits.
const (
	startsAtOnce = 4
	stopsAtOnce  = 32
)

// Ensure brings the containers of release w.ID to w.Replicas; see
// platform.Runtime. Every step starts from what the engine lists, so a step
// cut short anywhere is taken up by the next call. When several replicas fail
// the others are still seen to, and the first error is returned.
func (e *Engine) Ensure(ctx context.Context, w platform.Workload) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	listCtx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	listed, err := api.ContainerList(listCtx, container.ListOptions{
		All:     true,
		Filters: e.ours(labelService, string(w.ServiceID), labelRelease, string(w.ID)),
	})
	if err != nil {
		return e.fail(listCtx, err, "listing the replicas of release %s", w.ID)
	}
	keep, extra := assign(listed, w.Replicas)

	var starts, stops errgroup.Group
	starts.SetLimit(startsAtOnce)
	stops.SetLimit(stopsAtOnce)
	stopped := make(chan error, 1)
	go func() {
		for _, c := range extra {
			stops.Go(func() error { return e.remove(ctx, api, c, w.Config.StopGraceS) })
		}
		stopped <- stops.Wait()
	}()
	for index := range w.Replicas {
		c, exists := keep[index]
		if exists && (c.State == container.StateRunning || c.State == container.StateRestarting) {
			if e.attached(c, w.ProjectID) {
				continue
			}
			// Somebody has cut it off, and nothing can reach it.
			e.networks.set(e.networkName(w.ProjectID), false)
			c.State = container.StateDead
		}
		starts.Go(func() error { return e.ensureReplica(ctx, api, w, index, c) })
	}
	err = starts.Wait()
	if stopErr := <-stopped; err == nil {
		err = stopErr
	}
	return err
}

// attached tells whether a running container has an address in its project's
// network.
func (e *Engine) attached(c container.Summary, project platform.ID) bool {
	if c.NetworkSettings == nil {
		return false
	}
	endpoint := c.NetworkSettings.Networks[e.networkName(project)]
	return endpoint != nil && (endpoint.IPAddress != "" || endpoint.GlobalIPv6Address != "")
}

// assign picks one container for each index below replicas, a running one
// first, and gives back the rest.
func assign(listed []container.Summary, replicas int) (keep map[int]container.Summary, extra []container.Summary) {
	keep = map[int]container.Summary{}
	for _, c := range listed {
		index, err := strconv.Atoi(c.Labels[labelIndex])
		if err != nil || index < 0 || index >= replicas {
			extra = append(extra, c)
			continue
		}
		other, taken := keep[index]
		switch {
		case !taken:
			keep[index] = c
		case other.State != container.StateRunning && c.State == container.StateRunning:
			keep[index] = c
			extra = append(extra, other)
		default:
			extra = append(extra, c)
		}
	}
	return keep, extra
}

// ensureReplica makes one replica run. c is what there is of it; its ID is
// empty when there is nothing.
func (e *Engine) ensureReplica(ctx context.Context, api *client.Client, w platform.Workload, index int, c container.Summary) error {
	ctx, cancel := bounded(ctx, startTimeout)
	defer cancel()
	id := c.ID
	switch c.State {
	case container.StatePaused:
		if err := api.ContainerUnpause(ctx, id); err != nil {
			return e.fail(ctx, err, "unpausing replica %d", index)
		}
		return nil
	case container.StateRemoving, container.StateDead:
		if err := e.discard(ctx, api, id); err != nil {
			return err
		}
		id = ""
	}
	everyCPU := false
	for {
		if id == "" {
			name, err := e.ensureNetwork(ctx, api, w)
			if err != nil {
				return err
			}
			config, host, net := e.containerSpec(w, index, name)
			if everyCPU {
				host.NanoCPUs = 0
			}
			created, err := api.ContainerCreate(ctx, config, host, net, nil, e.containerName(w, index))
			switch {
			case err == nil:
				id = created.ID
			case cerrdefs.IsConflict(err):
				if id, err = e.adopt(ctx, api, w, index); err != nil {
					return err
				}
			case networkGone(err):
				e.networks.set(name, false)
			case !everyCPU && host.NanoCPUs > 0 && strings.Contains(strings.ToLower(err.Error()), "range of cpus"):
				// A limit above what the machine has limits nothing, and the
				// engine will not have it.
				everyCPU = true
			default:
				return e.refused(ctx, err, w, "creating replica %d", index)
			}
			if id == "" {
				if err := pause(ctx); err != nil {
					return e.fail(ctx, err, "creating replica %d", index)
				}
				continue
			}
		}
		err := api.ContainerStart(ctx, id, container.StartOptions{})
		switch {
		case err == nil:
			return nil
		case networkGone(err):
			e.networks.set(e.networkName(w.ProjectID), false)
			fallthrough
		case strings.Contains(err.Error(), "marked for removal"):
			if err := e.discard(ctx, api, id); err != nil {
				return err
			}
		case noSuchContainer(err):
		default:
			return e.refused(ctx, err, w, "starting replica %d", index)
		}
		// What there was is gone; begin anew.
		id = ""
		if err := pause(ctx); err != nil {
			return e.fail(ctx, err, "starting replica %d", index)
		}
	}
}

// adopt finds the container that has this replica's name: a create that
// succeeded though its call failed, or a removal that is still going on, for
// which it returns no id and the caller tries again.
func (e *Engine) adopt(ctx context.Context, api *client.Client, w platform.Workload, index int) (string, error) {
	name := e.containerName(w, index)
	c, err := api.ContainerInspect(ctx, name)
	switch {
	case cerrdefs.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", e.fail(ctx, err, "looking at container %s", name)
	case c.Config.Labels[labelInstance] != e.instance || c.Config.Labels[labelRelease] != string(w.ID):
		return "", platform.Errorf(platform.Conflict, platform.CodeStartFailed,
			"the container could not be created: another container, not made by this Denia, has its name %s; remove or rename that", name)
	case c.State.Dead || c.State.Status == container.StateRemoving:
		return "", e.discard(ctx, api, c.ID)
	}
	return c.ID, nil
}

// refused turns the engine's refusal to create or start a container into an
// error that says why.
func (e *Engine) refused(ctx context.Context, err error, w platform.Workload, doing string, args ...any) error {
	failure := e.fail(ctx, err, doing, args...)
	if _, known := errors.AsType[*platform.Error](failure); known || ctx.Err() != nil {
		return failure
	}
	if cerrdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "no such image") {
		return imageGone(err, w.Image)
	}
	return startFailed(err)
}

func imageGone(err error, image string) error {
	return platform.Wrap(err, platform.NotFound, platform.CodeImageNotFound,
		"the engine no longer has the image %s: deploy again", image)
}

func noSuchContainer(err error) bool {
	return cerrdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "no such container")
}

// remove stops a container, as gracefully as it asked for when it was created
// unless override says otherwise, then removes it.
func (e *Engine) remove(ctx context.Context, api *client.Client, c container.Summary, override *int) error {
	seconds, err := strconv.Atoi(c.Labels[labelGrace])
	if err != nil {
		seconds = platform.DefaultStopGraceS
	}
	if override != nil {
		seconds = *override
	}
	ctx, cancel := bounded(ctx, time.Duration(seconds)*time.Second+startTimeout)
	defer cancel()
	if c.State == container.StatePaused {
		// It could not handle its signal.
		if err := api.ContainerUnpause(ctx, c.ID); err != nil && ctx.Err() != nil {
			return e.fail(ctx, err, "unpausing container %s", c.ID)
		}
	}
	if c.State == container.StateRunning || c.State == container.StatePaused || c.State == container.StateRestarting {
		err := api.ContainerStop(ctx, c.ID, container.StopOptions{Timeout: &seconds})
		if err != nil && !cerrdefs.IsNotFound(err) {
			if ctx.Err() != nil || unreachable(err) {
				return e.fail(ctx, err, "stopping container %s", c.ID)
			}
			e.log.Warn("container did not stop, removing it by force", "container", c.ID, "error", err)
		}
	}
	return e.discard(ctx, api, c.ID)
}

// discard removes a container by force, with the anonymous volumes its image
// asked for; named ones stay. It waits for a removal that is already going on.
func (e *Engine) discard(ctx context.Context, api *client.Client, id string) error {
	for {
		err := api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil, cerrdefs.IsNotFound(err):
			return nil
		case !cerrdefs.IsConflict(err) && !strings.Contains(err.Error(), "device or resource busy"):
			return e.fail(ctx, err, "removing container %s", id)
		}
		if waited := pause(ctx); waited != nil {
			return e.fail(ctx, err, "removing container %s", id)
		}
	}
}

// pause waits a moment before the engine is asked the same again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(100 * time.Millisecond):
		return nil
	}
}
