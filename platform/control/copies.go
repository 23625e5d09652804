package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	copyPause    = time.Second // before a copy that failed is tried again; doubles
	maxCopyPause = 10 * time.Minute
)

// copies says of which services releases may have to be copied into Denia's
// own registry, and since when or from when on. Safe for concurrent use.
type copies struct {
	kick chan struct{}

	mu       sync.Mutex
	due      map[platform.ID]time.Time
	failures map[platform.ID]int // in a row
	working  platform.ID         // the service whose release is being copied
	stop     context.CancelFunc
}

func newCopies() *copies {
	return &copies{kick: make(chan struct{}, 1), due: map[platform.ID]time.Time{}, failures: map[platform.ID]int{}}
}

// want has the service looked at now, or next if it is being looked at.
func (c *copies) want(service platform.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due[service] = time.Now()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// take returns a service that is due, and its context; else for how long there
// is none.
func (c *copies) take(ctx context.Context) (service platform.ID, work context.Context, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, wait := time.Now(), time.Hour
	for id, at := range c.due {
		if left := at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		delete(c.due, id)
		c.working = id
		work, c.stop = context.WithCancel(ctx)
		return id, work, 0
	}
	return "", nil, wait
}

// done gives the service back; after a failure it is due again later.
func (c *copies) done(service platform.ID, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop()
	c.working, c.stop = "", nil
	if !failed {
		delete(c.failures, service)
		return
	}
	c.failures[service]++
	c.due[service] = time.Now().Add(min(maxCopyPause, copyPause<<min(c.failures[service]-1, 20)))
}

// end has nothing more of the service copied; false while something still is.
func (c *copies) end(service platform.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.due, service)
	delete(c.failures, service)
	if c.working == service {
		c.stop()
		return false
	}
	return true
}

// copyLoop copies the images of releases that became healthy into Denia's own
// registry, one at a time: what is pruned from the engine can then be brought
// back.
func (p *Plane) copyLoop(ctx context.Context) {
	for ctx.Err() == nil {
		service, work, wait := p.copies.take(ctx)
		if service != "" {
			err := p.copyReleases(work, service)
			if err != nil && work.Err() == nil {
				p.Log.Warn("copying a release into the registry failed; it is tried again", "service", service, "error", err)
			}
			p.copies.done(service, err != nil && work.Err() == nil)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-p.copies.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// wantCopies has every service looked at.
func (p *Plane) wantCopies(ctx context.Context) error {
	refs, err := p.Store.AllServices(ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	for _, ref := range refs {
		p.copies.want(ref.ID)
	}
	return nil
}

// copyReleases copies what of a service's kept releases is not in the registry,
// or is no longer: a copy may be damaged, or its directory lost.
func (p *Plane) copyReleases(ctx context.Context, service platform.ID) error {
	if p.Registry.Address() == "" {
		return nil // the engine has no way to it
	}
	releases, err := p.Store.HealthyHistory(ctx, service, p.KeepReleases)
	if err != nil {
		return fmt.Errorf("reading past releases: %w", err)
	}
	manifests := map[string]string{} // by digest in the engine
	held := map[string]bool{}        // by manifest
	for _, d := range releases {
		manifest := d.Artifact.ManifestDigest
		if manifest == "" {
			continue
		}
		there, err := p.Registry.Holds(ctx, service, manifest)
		if err != nil {
			return err
		}
		if there {
			held[manifest] = true
			manifests[d.Artifact.Digest] = manifest
		}
	}
	for _, d := range releases {
		if held[d.Artifact.ManifestDigest] {
			continue
		}
		manifest, err := p.copyRelease(ctx, d, manifests[d.Artifact.Digest])
		if err == nil {
			manifests[d.Artifact.Digest] = manifest
			_, err = p.Store.ChangeArtifact(ctx, d.ID, func(a *platform.Artifact) { a.ManifestDigest = manifest })
		}
		switch {
		case platform.CodeOf(err) == platform.CodeImageNotFound:
			p.Log.Info("the engine has lost the image of a release before it was copied into the registry", "service", service, "release", d.ID)
			continue
		case platform.KindOf(err) == platform.NotFound:
			return nil // the service was deleted
		case err != nil:
			return err
		}
		p.topics.publish(d.ID)
	}
	return nil
}

// copyRelease brings one image into the registry, unless it is there under the
// known digest.
func (p *Plane) copyRelease(ctx context.Context, d platform.Deployment, known string) (manifest string, err error) {
	if known != "" {
		if there, err := p.Registry.Touch(ctx, d.ServiceID, known); err != nil || there {
			return known, err
		}
	}
	for p.building() { // whoever deploys needs the engine more
		sleep(ctx, time.Second)
		if err := ctx.Err(); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.PullTimeout)
	defer cancel()
	name, err := p.repository(ctx, d.ServiceID)
	if err != nil {
		return "", err
	}
	reference, auth, err := p.own(name, ":"+platform.ReleaseTag(d.Number), "pull,push")
	if err != nil {
		return "", err
	}
	manifest, err = p.Images.Push(ctx, platform.Push{Image: d.Artifact.Digest, Reference: reference, Auth: auth}, io.Discard)
	if err == nil && manifest == "" {
		err = errors.New("the engine pushed an image and named no manifest")
	}
	return manifest, err
}

// building tells whether an image is being made or fetched.
func (p *Plane) building() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.builds) > 0
}
