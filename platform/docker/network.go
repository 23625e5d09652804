package docker

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
)

// networks remembers which project networks exist, so that starting a replica
// need not ask. A network removed behind Denia's back shows when a container
// is started, and is then forgotten here and made anew.
type networks struct {
	making keyedMutex // by name: the engine does not keep names unique under concurrency

	mu    sync.Mutex
	known map[string]bool
}

func (n *networks) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[name]
}

func (n *networks) set(name string, exists bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if exists {
		n.known[name] = true
	} else {
		delete(n.known, name)
	}
}

// ensureNetwork makes the project's network exist and returns its name.
func (e *Engine) ensureNetwork(ctx context.Context, api *client.Client, w platform.Workload) (string, error) {
	name := e.networkName(w.ProjectID)
	if e.networks.has(name) {
		return name, nil
	}
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	unlock, err := e.networks.making.lock(ctx, name)
	if err != nil {
		return "", e.fail(ctx, err, "waiting for network %s", name)
	}
	defer unlock()
	if e.networks.has(name) {
		return name, nil
	}
	exists, err := e.soleNetwork(ctx, api, w.ProjectID, name)
	if err != nil {
		return "", err
	}
	if !exists {
		if err := e.createNetwork(ctx, api, w, name); err != nil {
			return "", err
		}
		// Another process may have done the same at the same time.
		if _, err := e.soleNetwork(ctx, api, w.ProjectID, name); err != nil {
			return "", err
		}
	}
	e.networks.set(name, true)
	return name, nil
}

func (e *Engine) createNetwork(ctx context.Context, api *client.Client, w platform.Workload, name string) error {
	_, err := api.NetworkCreate(ctx, name, network.CreateOptions{
		Driver: "bridge",
		Labels: map[string]string{
			labelInstance:    e.instance,
			labelProject:     string(w.ProjectID),
			labelProjectName: w.ProjectName,
		},
	})
	switch {
	case err == nil, cerrdefs.IsConflict(err) && strings.Contains(err.Error(), "already exists"):
		return nil
	case strings.Contains(err.Error(), "address pool"):
		return platform.Wrap(err, platform.Unavailable, platform.CodeStartFailed,
			"the engine has no free address range for one more network: add to default-address-pools in its daemon.json, or delete projects that are not needed")
	}
	return e.fail(ctx, err, "creating network %s", name)
}

// soleNetwork tells whether the project's network exists. Of several with its
// name it leaves the oldest: the engine lets two be made at the same time, and
// then refuses to choose.
func (e *Engine) soleNetwork(ctx context.Context, api *client.Client, project platform.ID, name string) (exists bool, err error) {
	found, err := api.NetworkList(ctx, network.ListOptions{Filters: e.ours(labelProject, string(project))})
	if err != nil {
		return false, e.fail(ctx, err, "listing networks")
	}
	found = slices.DeleteFunc(found, func(n network.Summary) bool { return n.Name != name })
	slices.SortFunc(found, func(a, b network.Summary) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	for i, n := range found {
		if i == 0 {
			continue
		}
		if err := api.NetworkRemove(ctx, n.ID); err != nil && !cerrdefs.IsNotFound(err) {
			return false, e.fail(ctx, err, "removing a second network %s", name)
		}
	}
	return len(found) > 0, nil
}

// networkGone tells whether a container could not be created or started
// because its network is not there, or there twice.
func networkGone(err error) bool {
	text := err.Error()
	return strings.Contains(text, "network") &&
		(strings.Contains(text, "not found") || strings.Contains(text, "is ambiguous"))
}

// Projects lists the projects that have a network or a container here.
func (e *Engine) Projects(ctx context.Context) ([]platform.ID, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := api.NetworkList(ctx, network.ListOptions{Filters: e.ours()})
	if err != nil {
		return nil, e.fail(ctx, err, "listing networks")
	}
	containers, err := api.ContainerList(ctx, container.ListOptions{All: true, Filters: e.ours()})
	if err != nil {
		return nil, e.fail(ctx, err, "listing containers")
	}
	found := map[platform.ID]bool{}
	for _, n := range nets {
		found[platform.ID(n.Labels[labelProject])] = true
	}
	for _, c := range containers {
		found[platform.ID(c.Labels[labelProject])] = true
	}
	delete(found, "")
	return slices.Sorted(maps.Keys(found)), nil
}

// RemoveProject removes the project's network.
func (e *Engine) RemoveProject(ctx context.Context, project platform.ID) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	// A replica that has exited holds no address, so the engine would let its
	// network go and the replica could not be started again.
	containers, err := api.ContainerList(ctx, container.ListOptions{All: true, Filters: e.ours(labelProject, string(project))})
	if err != nil {
		return e.fail(ctx, err, "listing containers of project %s", project)
	}
	inUse := platform.Errorf(platform.Conflict, "project_in_use", "replicas are still attached to the project's network")
	if len(containers) > 0 {
		return inUse
	}
	nets, err := api.NetworkList(ctx, network.ListOptions{Filters: e.ours(labelProject, string(project))})
	if err != nil {
		return e.fail(ctx, err, "listing networks of project %s", project)
	}
	for _, n := range nets {
		e.networks.set(n.Name, false)
		err := api.NetworkRemove(ctx, n.ID)
		switch {
		case err == nil, cerrdefs.IsNotFound(err):
		case strings.Contains(err.Error(), "active endpoints"):
			inUse.Err = err
			return inUse
		default:
			return e.fail(ctx, err, "removing network %s", n.Name)
		}
	}
	return nil
}

// RemoveVolumes removes the named volumes of a service.
func (e *Engine) RemoveVolumes(ctx context.Context, service platform.ID, names []string) error {
	ctx, cancel := bounded(ctx, startTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		full := volumeName(service, name)
		v, err := api.VolumeInspect(ctx, full)
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return e.fail(ctx, err, "looking at volume %s", full)
		}
		if v.Labels[labelInstance] != e.instance {
			return platform.Errorf(platform.Conflict, "volume_not_ours",
				"the volume %s was not made by this Denia and is left alone", full)
		}
		err = api.VolumeRemove(ctx, full, false)
		switch {
		case err == nil, cerrdefs.IsNotFound(err):
		case cerrdefs.IsConflict(err):
			return platform.Wrap(err, platform.Conflict, "volume_in_use",
				"the volume %q is still mounted by a container", name)
		default:
			return e.fail(ctx, err, "removing volume %s", full)
		}
	}
	return nil
}
