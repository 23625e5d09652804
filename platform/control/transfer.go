package control

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	// ownPatience is how long the engine tries to reach Denia's own registry,
	// which may not listen yet, or not for a moment: Denia is starting.
	ownPatience = 30 * time.Second
	ownPause    = 500 * time.Millisecond

	// credentialMargin is how much longer credentials are good for than the
	// transfer they are made for may take.
	credentialMargin = time.Minute
)

// repository is the name of a service's own repository, as it is now.
func (p *Plane) repository(ctx context.Context, service platform.ID) (string, error) {
	s, err := p.Store.Service(ctx, service)
	if err != nil {
		return "", err
	}
	project, err := p.Store.Project(ctx, s.ProjectID)
	if err != nil {
		return "", err
	}
	return project.Name + "/" + s.Name, nil
}

// own makes the reference of something in Denia's own registry, and the
// credentials for it.
func (p *Plane) own(repository, suffix, actions string) (reference string, auth *platform.RegistryAuth, err error) {
	address := p.Registry.Address()
	if address == "" {
		return "", nil, platform.Errorf(platform.Unavailable, platform.CodePullFailed, "the engine has no way to Denia's own registry")
	}
	user, password := p.Registry.Credentials(repository, actions, p.PullTimeout+credentialMargin)
	return address + "/" + repository + suffix, &platform.RegistryAuth{Username: user, Password: password}, nil
}

// pullOwn has the engine fetch a manifest of a service's repository in Denia's
// own registry. It is patient with a registry that cannot be reached, and
// starts again when the service was renamed meanwhile.
func (p *Plane) pullOwn(ctx context.Context, service platform.ID, manifest, tag string, log io.Writer) (platform.Artifact, error) {
	name, err := p.repository(ctx, service)
	for began, pause := time.Now(), ownPause; err == nil; pause = min(2*pause, 5*time.Second) {
		var artifact platform.Artifact
		if artifact, err = p.pullOnce(ctx, name, manifest, tag, log); err == nil {
			artifact.ManifestDigest = manifest
			return artifact, nil
		}
		now, lookup := p.repository(ctx, service)
		switch {
		case ctx.Err() != nil || lookup != nil:
			return platform.Artifact{}, err
		case now != name:
			name, err = now, nil
		case platform.CodeOf(err) == platform.CodePullFailed && time.Since(began) < ownPatience:
			sleep(ctx, pause)
			err = nil
		}
	}
	return platform.Artifact{}, err
}

func (p *Plane) pullOnce(ctx context.Context, name, manifest, tag string, log io.Writer) (platform.Artifact, error) {
	reference, auth, err := p.own(name, "@"+manifest, "pull")
	if err != nil {
		return platform.Artifact{}, err
	}
	return p.Images.Pull(ctx, platform.Pull{Reference: reference, Tag: tag, Auth: auth, Name: name + "@" + manifest}, log)
}

// pullExternal has the engine fetch an image of another registry through the
// project's cache, and directly where that does not work: the engine may have
// the image, mirrors, or credentials that Denia does not know of, and its word
// is the last.
func (p *Plane) pullExternal(ctx context.Context, project platform.Project, image, tag string, log io.Writer) (platform.Artifact, error) {
	if name, suffix, ok := platform.CacheName(image); ok && p.Registry.Address() != "" {
		reference, auth, err := p.own(project.Name+"/"+name, suffix, "pull")
		if err == nil {
			var artifact platform.Artifact
			artifact, err = p.Images.Pull(ctx, platform.Pull{Reference: reference, Tag: tag, Auth: auth, Name: image}, log)
			if err == nil {
				return artifact, nil
			}
		}
		if ctx.Err() != nil {
			return platform.Artifact{}, err
		}
		p.Log.Warn("an image cannot be had through the cache; pulling it directly", "image", image, "error", err)
		fmt.Fprintln(log, "The cache cannot give it; pulling it directly")
	}
	return p.Images.Pull(ctx, platform.Pull{Reference: image, Tag: tag}, log)
}
