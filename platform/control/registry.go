package control

import (
	"context"
	"fmt"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Registry is what the control plane asks of Denia's own registry. Methods are
// called concurrently. None may wait for the engine, nor for the Plane.
type Registry interface {
	// Address is where the engine reaches the registry: host:port on its
	// loopback interface. Empty: not at all, or not yet.
	Address() string

	// Credentials are good for the actions ("pull" or "pull,push") in the
	// repository of that name, for ttl and no longer.
	Credentials(name, actions string, ttl time.Duration) (username, password string)

	// Touch keeps a manifest of the service's repository from collection for a
	// while, hours rather than minutes. False: it is not there.
	Touch(ctx context.Context, service platform.ID, digest string) (bool, error)

	// Holds tells whether the service's repository has a manifest and all that
	// is needed to pull it.
	Holds(ctx context.Context, service platform.ID, digest string) (bool, error)

	// Tagged is the digest of what a tag of the service's repository means now;
	// empty when there is no such tag.
	Tagged(ctx context.Context, service platform.ID, tag string) (digest string, err error)

	// Tags lists the tags of the service's repository, Untag removes one. A
	// tag or repository that does not exist is no error.
	Tags(ctx context.Context, service platform.ID) ([]string, error)
	Untag(ctx context.Context, service platform.ID, tag string) error

	// MakeRoom has the registry give up about so many bytes that it can fetch
	// again, in the background.
	MakeRoom(bytes int64)

	// Drop removes the service's repository and those below it.
	Drop(ctx context.Context, service platform.ID) error
}

// PushEvent is a manifest that was stored under a tag in a service's own
// repository; not in one below that.
type PushEvent struct {
	Service platform.ID
	Tag     string
	Digest  string // of the manifest
	Actor   string // who pushed, for the record
}

// Push deploys what was pushed, by digest, when the tag is the one the service
// follows. The configuration in force now is frozen, and a stopped service is
// started, as by Deploy. It returns false when nothing has to be done: the tag
// means nothing here, or what is coming up, or is active, has that digest
// already, or the tag has moved on: then another push is told of, or was. It
// waits for the store only.
func (p *Plane) Push(ctx context.Context, e PushEvent) (platform.Deployment, bool, error) {
	if _, copied := platform.ParseReleaseTag(e.Tag); copied {
		return platform.Deployment{}, false, nil // Denia's own
	}
	p.orders.Lock()
	defer p.orders.Unlock()
	service, err := p.Store.Service(ctx, e.Service)
	if err != nil {
		return platform.Deployment{}, false, err
	}
	if service.WithDefaults().FollowTag != e.Tag {
		return platform.Deployment{}, false, nil
	}
	// Two pushes at once may be told of in another order than they set the tag.
	now, err := p.Registry.Tagged(ctx, service.ID, e.Tag)
	if err != nil || now != e.Digest {
		return platform.Deployment{}, false, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return platform.Deployment{}, false, err
	}
	coming, ok, err := p.coming(ctx, service)
	if err != nil {
		return platform.Deployment{}, false, err
	}
	if ok {
		digest, err := p.manifestOf(ctx, service.ActiveDeploymentID, coming)
		if err != nil || digest == e.Digest {
			return platform.Deployment{}, false, err
		}
	}
	config := platform.Freeze(project, service)
	d, err := p.create(ctx, platform.Deployment{
		ServiceID: service.ID, Status: platform.Pending, Trigger: platform.TriggerPush, Actor: e.Actor, Config: &config,
		Source: platform.Source{
			Type: platform.SourcePush, Digest: e.Digest,
			Image: project.Name + "/" + service.Name + "@" + e.Digest,
		},
	})
	if err != nil {
		return platform.Deployment{}, false, err
	}
	return d, true, p.begun(ctx, service)
}

// Keep tells whether the manifest holds the image of a release that may run,
// now or again: one that is under way, the active one, or one of the last
// KeepReleases healthy ones.
func (p *Plane) Keep(ctx context.Context, service platform.ID, digest string) (bool, error) {
	s, err := p.Store.Service(ctx, service)
	if platform.KindOf(err) == platform.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	kept, err := p.kept(ctx, s.ID, s.ActiveDeploymentID)
	if err != nil {
		return false, err
	}
	for _, d := range kept {
		if d.Artifact != nil && d.Artifact.ManifestDigest == digest || d.Source.Digest == digest {
			return true, nil
		}
	}
	return false, nil
}

// kept are the deployments of a service whose images must stay at hand: those
// that are under way, and those whose images they will run, the active one,
// and the last healthy ones.
func (p *Plane) kept(ctx context.Context, service, active platform.ID) ([]platform.Deployment, error) {
	// What is under way is read first: a deployment that becomes healthy in
	// between is in both lists, the other way round it would be in neither.
	kept, err := p.Store.UnfinishedOf(ctx, service)
	if err != nil {
		return nil, fmt.Errorf("reading unfinished deployments: %w", err)
	}
	ids := []platform.ID{active}
	for _, d := range kept {
		ids = append(ids, d.Source.DeploymentID)
	}
	past, err := p.Store.HealthyHistory(ctx, service, p.KeepReleases)
	if err != nil {
		return nil, fmt.Errorf("reading past releases: %w", err)
	}
	kept = append(kept, past...)
	for _, id := range ids {
		if id == "" {
			continue
		}
		d, err := p.Store.Deployment(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("reading the deployment whose image is used: %w", err)
		}
		kept = append(kept, d)
	}
	return kept, nil
}

// manifestOf is the digest of the manifest that holds what a deployment runs or
// is going to run; empty when there is none or it is not known yet.
func (p *Plane) manifestOf(ctx context.Context, active platform.ID, d platform.Deployment) (string, error) {
	if d.Artifact == nil && d.Source.Type == platform.SourceRedeploy {
		from := d.Source.DeploymentID
		if from == "" {
			from = active
		}
		if from == "" {
			return "", nil
		}
		past, err := p.Store.Deployment(ctx, from)
		if err != nil {
			return "", fmt.Errorf("reading the deployment whose image is used: %w", err)
		}
		d = past
	}
	if d.Artifact != nil {
		return d.Artifact.ManifestDigest, nil
	}
	return d.Source.Digest, nil
}

// protect keeps the image of a past release from being collected before the
// row that refers to it is there.
func (p *Plane) protect(ctx context.Context, past platform.Deployment) error {
	if past.Artifact == nil || past.Artifact.ManifestDigest == "" {
		return nil
	}
	// Not being there is no reason to refuse: the engine may have the image.
	if _, err := p.Registry.Touch(ctx, past.ServiceID, past.Artifact.ManifestDigest); err != nil {
		return fmt.Errorf("protecting the image of deployment %d: %w", past.Number, err)
	}
	return nil
}
