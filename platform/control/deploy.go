package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// Deploy records a deployment and wakes whoever carries it out. It freezes the
// configuration in force now. A stopped service is started by it.
func (p *Plane) Deploy(ctx context.Context, req platform.DeployRequest) (platform.Deployment, error) {
	p.orders.Lock()
	defer p.orders.Unlock()
	service, err := p.Store.Service(ctx, req.ServiceID)
	if err != nil {
		return platform.Deployment{}, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return platform.Deployment{}, err
	}
	source, err := resolveSource(service, req.Source)
	if err != nil {
		return platform.Deployment{}, err
	}
	config := platform.Freeze(project, service)
	d := platform.Deployment{ServiceID: service.ID, Status: platform.Pending, Trigger: req.Trigger, Actor: req.Actor, Source: source, Config: &config}
	if source.Type == platform.SourceRedeploy {
		past, err := p.Store.Deployment(ctx, source.DeploymentID)
		switch {
		case platform.KindOf(err) == platform.NotFound || err == nil && past.ServiceID != service.ID:
			return platform.Deployment{}, platform.InvalidField("source.deployment_id", "not_found", "is no deployment of this service")
		case err != nil:
			return platform.Deployment{}, err
		case past.Artifact == nil || past.Config == nil:
			return platform.Deployment{}, platform.InvalidField("source.deployment_id", "no_artifact", "deployment %d is %s and never had an image; pick one that was healthy", past.Number, past.Status)
		}
		if err := p.protect(ctx, past); err != nil {
			return platform.Deployment{}, err
		}
		d.Trigger, d.Config = platform.TriggerRollback, past.Config
	}
	d, err = p.create(ctx, d)
	if err != nil {
		return platform.Deployment{}, err
	}
	if service.Source == nil && source.Type != platform.SourceRedeploy {
		kept := source
		kept.UploadID = ""
		if err := p.Store.SetSource(ctx, service.ID, kept); err != nil {
			return platform.Deployment{}, fmt.Errorf("keeping the source: %w", err)
		}
	}
	return d, p.begun(ctx, service)
}

// begun has a deployment of the service that was just recorded carried out.
func (p *Plane) begun(ctx context.Context, service platform.Service) error {
	if service.Stopped {
		if err := p.Store.SetStopped(ctx, service.ID, false); err != nil {
			return fmt.Errorf("starting the service: %w", err)
		}
	}
	p.Ingress.Hold(service.ID)
	p.wake(service.ID)
	return nil
}

// resolveSource fills a request's source from the service's own. An upload
// inherits the options it leaves out.
func resolveSource(service platform.Service, requested *platform.Source) (platform.Source, error) {
	if requested == nil {
		if service.Source == nil {
			return platform.Source{}, platform.InvalidField("source", "required", "is missing and the service has none yet: give an upload or an external_image, or push an image to its repository")
		}
		own := *service.Source
		if err := own.ValidateDeploymentSource(); err != nil {
			return platform.Source{}, err
		}
		return own, nil
	}
	source := *requested
	if own := service.Source; own != nil && own.Type == source.Type && source.Type == platform.SourceUpload {
		if source.Dockerfile == "" {
			source.Dockerfile = own.Dockerfile
		}
		if source.Context == "" {
			source.Context = own.Context
		}
		if source.Build == nil {
			source.Build = own.Build
		}
	}
	return source, source.ValidateDeploymentSource()
}

func redeployed(past platform.Deployment) *platform.Artifact {
	artifact := *past.Artifact
	artifact.Source = &platform.ArtifactSource{Type: platform.SourceRedeploy, DeploymentID: past.ID}
	return &artifact
}

// create inserts the row and tells everyone concerned, the superseded too.
func (p *Plane) create(ctx context.Context, d platform.Deployment) (platform.Deployment, error) {
	d, superseded, err := p.Store.CreateDeployment(ctx, d)
	if err != nil {
		return platform.Deployment{}, err
	}
	for _, id := range superseded {
		p.say(id, "superseded by deployment %d", d.Number)
		p.finishLog(id)
	}
	p.say(d.ID, "deployment %d created (%s by %s)", d.Number, d.Trigger, d.Actor)
	p.topics.publish(append(superseded, d.ID, d.ServiceID)...)
	p.kickBuilder()
	return d, nil
}

// Apply rolls the running release over to the service's configuration as it is
// now: the same image, a new deployment. It returns false when nothing had to
// be done: no release is active, what runs would not change, or a deployment
// that has not started its replicas yet took the configuration up.
func (p *Plane) Apply(ctx context.Context, id platform.ID, actor string) (platform.Deployment, bool, error) {
	p.orders.Lock()
	defer p.orders.Unlock()
	return p.apply(ctx, id, actor)
}

// apply needs orders to be held.
func (p *Plane) apply(ctx context.Context, id platform.ID, actor string) (platform.Deployment, bool, error) {
	service, err := p.Store.Service(ctx, id)
	if err != nil {
		return platform.Deployment{}, false, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return platform.Deployment{}, false, err
	}
	config := platform.Freeze(project, service)
	if d, ok, err := p.Store.Refreeze(ctx, id, config); err != nil || ok {
		if ok {
			p.say(d.ID, "configuration changed by %s, taken up", actor)
		}
		return platform.Deployment{}, false, err
	}
	defer p.wake(id)
	coming, ok, err := p.coming(ctx, service)
	if err != nil || !ok || service.Stopped || sameConfig(coming.Config, &config) {
		return platform.Deployment{}, false, err
	}
	source := platform.Source{Type: platform.SourceRedeploy}
	if coming.Status == platform.Pending {
		// A rollback that has not begun. This deployment takes its place, so
		// it has to bring what was asked for: that image.
		source.DeploymentID = coming.Source.DeploymentID
	}
	d, err := p.create(ctx, platform.Deployment{
		ServiceID: id, Status: platform.Pending, Trigger: platform.TriggerConfig, Actor: actor,
		Source: source, Config: &config,
	})
	return d, err == nil, err
}

// coming returns the deployment that will be the active one if all goes well:
// the newest that is under way, else the one that is.
func (p *Plane) coming(ctx context.Context, service platform.Service) (d platform.Deployment, ok bool, err error) {
	unfinished, err := p.Store.UnfinishedOf(ctx, service.ID)
	if err != nil {
		return d, false, err
	}
	for _, d := range slices.Backward(unfinished) {
		if !d.CancelRequested {
			return d, true, nil
		}
	}
	if service.ActiveDeploymentID == "" {
		return d, false, nil
	}
	d, err = p.Store.Deployment(ctx, service.ActiveDeploymentID)
	return d, err == nil, err
}

// ApplyProject applies a changed project to each of its services.
func (p *Plane) ApplyProject(ctx context.Context, project platform.ID, actor string) error {
	refs, err := p.Store.AllServices(ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	for _, ref := range refs {
		if ref.ProjectID != project {
			continue
		}
		if _, _, err := p.Apply(ctx, ref.ID, actor); err != nil {
			return fmt.Errorf("applying to service %s: %w", ref.Name, err)
		}
	}
	return nil
}

func sameConfig(a, b *platform.ReleaseConfig) bool {
	return a != nil && b != nil && reflect.DeepEqual(normal(*a), normal(*b))
}

// normal makes nil and empty collections alike: JSON does not tell them apart.
func normal(c platform.ReleaseConfig) platform.ReleaseConfig {
	c.Env, c.SecretEnv = platform.MergeEnv(c.Env), platform.MergeEnv(c.SecretEnv)
	c.Command, c.Entrypoint = append([]string{}, c.Command...), append([]string{}, c.Entrypoint...)
	c.Volumes = append([]platform.Volume{}, c.Volumes...)
	return c
}

// Restart rolls the active release over to fresh replicas of itself.
func (p *Plane) Restart(ctx context.Context, id platform.ID, actor string) (platform.Deployment, error) {
	p.orders.Lock()
	defer p.orders.Unlock()
	service, err := p.Store.Service(ctx, id)
	if err != nil {
		return platform.Deployment{}, err
	}
	if service.ActiveDeploymentID == "" {
		return platform.Deployment{}, platform.Errorf(platform.Conflict, "not_deployed", "the service has no release to restart: deploy it first")
	}
	if service.Stopped {
		return platform.Deployment{}, platform.Errorf(platform.Conflict, "service_stopped", "the service is stopped: start it instead")
	}
	if unfinished, err := p.Store.UnfinishedOf(ctx, id); err != nil {
		return platform.Deployment{}, err
	} else if len(unfinished) > 0 {
		return platform.Deployment{}, platform.Errorf(platform.Conflict, "deployment_in_progress", "deployment %d is under way and replaces every replica anyway: wait for it or cancel it", unfinished[0].Number)
	}
	active, err := p.Store.Deployment(ctx, service.ActiveDeploymentID)
	if err != nil {
		return platform.Deployment{}, err
	}
	d, err := p.create(ctx, platform.Deployment{
		ServiceID: id, Status: platform.Pending, Trigger: platform.TriggerAPI, Actor: actor,
		Source: platform.Source{Type: platform.SourceRedeploy}, Config: active.Config,
	})
	p.wake(id)
	return d, err
}

// SetStopped stops or starts the service. Stopping cancels what is unfinished.
// Starting brings the active release back, and rolls it over when the
// configuration has changed meanwhile.
func (p *Plane) SetStopped(ctx context.Context, id platform.ID, stopped bool, actor string) error {
	p.orders.Lock()
	defer p.orders.Unlock()
	if err := p.Store.SetStopped(ctx, id, stopped); err != nil {
		return err
	}
	defer p.wake(id)
	if !stopped {
		p.Ingress.Hold(id)
		_, _, err := p.apply(ctx, id, actor)
		return err
	}
	return p.cancelUnfinished(ctx, id, actor)
}

// cancelOfStopped cancels what is unfinished of a service that is stopped:
// something has died between the two halves of an order.
func (p *Plane) cancelOfStopped(ctx context.Context, id platform.ID) error {
	p.orders.Lock()
	defer p.orders.Unlock()
	service, err := p.Store.Service(ctx, id)
	if err != nil || !service.Stopped {
		return err
	}
	return p.cancelUnfinished(ctx, id, "stop")
}

func (p *Plane) cancelUnfinished(ctx context.Context, id platform.ID, actor string) error {
	unfinished, err := p.Store.UnfinishedOf(ctx, id)
	if err != nil {
		return fmt.Errorf("reading unfinished deployments: %w", err)
	}
	for _, d := range unfinished {
		if _, err := p.Cancel(ctx, d.ID, actor); err != nil && platform.KindOf(err) != platform.Conflict {
			return fmt.Errorf("canceling deployment %d: %w", d.Number, err)
		}
	}
	return nil
}

// Cancel asks for an end of the deployment. A pending one is canceled when
// Cancel returns; one at work becomes canceled once its processes are gone.
func (p *Plane) Cancel(ctx context.Context, id platform.ID, actor string) (platform.Deployment, error) {
	d, err := p.Store.RequestCancel(ctx, id)
	if err != nil {
		return platform.Deployment{}, err
	}
	p.say(id, "cancel requested by %s", actor)
	if d.Status == platform.Canceled {
		p.finishLog(id)
	}
	p.mu.Lock()
	if stop := p.builds[id]; stop != nil {
		stop(errCanceled)
	}
	p.mu.Unlock()
	p.topics.publish(id)
	p.wake(d.ServiceID)
	p.kickBuilder()
	return d, nil
}

// DeleteService removes the row and with it the route; the supervisor then
// removes containers and logs. Named volumes go only when asked for.
func (p *Plane) DeleteService(ctx context.Context, id platform.ID, volumes bool) error {
	p.orders.Lock()
	defer p.orders.Unlock()
	service, err := p.Store.Service(ctx, id)
	if err != nil {
		return err
	}
	unfinished, err := p.Store.UnfinishedOf(ctx, id)
	if err != nil {
		return fmt.Errorf("reading unfinished deployments: %w", err)
	}
	logs, err := p.logsOf(ctx, id)
	if err != nil {
		return err
	}
	s := p.supervise(id)
	if volumes && s != nil {
		s.dropVolumes(service.Volumes)
	}
	// Before the row is gone: after it nobody would know that there is something
	// to drop if the process died in between. What is pushed meanwhile goes
	// with the rest of the service.
	if err := p.Registry.Drop(ctx, id); err != nil {
		return fmt.Errorf("dropping the repositories: %w", err)
	}
	if err := p.Store.DeleteService(ctx, id); err != nil {
		if s != nil {
			s.dropVolumes(nil) // a later deletion may want to keep them
		}
		return err
	}
	p.mu.Lock()
	for _, d := range unfinished {
		if stop := p.builds[d.ID]; stop != nil {
			stop(errCanceled)
		}
	}
	p.mu.Unlock()
	p.Kick(id)
	for _, key := range logs {
		if err := p.Logs.Remove(key); err != nil {
			p.logFailure("removing a deployment log", err)
		}
	}
	for _, d := range unfinished {
		if d.Source.UploadID == "" {
			continue
		}
		if err := os.Remove(p.UploadPath(d.Source.UploadID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.logFailure("removing an upload", err)
		}
	}
	return nil
}

// logsOf lists the log keys of a service's deployments.
func (p *Plane) logsOf(ctx context.Context, id platform.ID) (keys []string, err error) {
	for page := (store.Page{}); ; {
		list, next, err := p.Store.Deployments(ctx, id, page)
		if err != nil {
			return nil, fmt.Errorf("reading deployments: %w", err)
		}
		for _, d := range list {
			keys = append(keys, deploymentLog(d.ID))
		}
		if next == "" {
			return keys, nil
		}
		page.Cursor = next
	}
}

// finishLog ends a deployment's log: readers get their end of file.
func (p *Plane) finishLog(id platform.ID) {
	if err := p.Logs.Finish(deploymentLog(id)); err != nil {
		p.Log.Error("finishing the deployment log failed", "deployment", id, "error", err)
	}
}
