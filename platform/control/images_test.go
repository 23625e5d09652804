package control_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/denia-paas/denia/platform"
)

// images is a platform.Images in memory. The digest of a pulled image is
// "sha256:" and its reference, of a built one "sha256:" and its Dockerfile.
type images struct {
	mu     sync.Mutex
	script map[string]making // by reference, or by Dockerfile
	tags   map[string]string // to digest
	builds []platform.Build
	stuck  error // of Tag
	hub    *hub
	pulls  []platform.Pull
	pushes []platform.Push
	pulled func(digest string) // is told of each image that came
}

// making is how an image comes to be.
type making struct {
	Hold   <-chan struct{} // until it is closed
	Output string
	Err    error
}

func newImages() *images { return &images{script: map[string]making{}, tags: map[string]string{}} }

func (i *images) on(name string, m making) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.script[name] = m
}

func (i *images) make(ctx context.Context, name, tag string, log io.Writer) (platform.Artifact, error) {
	i.mu.Lock()
	m := i.script[name]
	i.mu.Unlock()
	if _, err := io.WriteString(log, m.Output); err != nil {
		return platform.Artifact{}, err
	}
	if m.Hold != nil {
		select {
		case <-m.Hold:
		case <-ctx.Done():
			return platform.Artifact{}, ctx.Err()
		}
	}
	if m.Err != nil {
		return platform.Artifact{}, m.Err
	}
	if err := ctx.Err(); err != nil {
		return platform.Artifact{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tags[tag] = digest(name)
	return platform.Artifact{Image: tag, Digest: digest(name), SizeBytes: 4096}, nil
}

func (i *images) Build(ctx context.Context, b platform.Build, log io.Writer) (platform.Artifact, error) {
	i.mu.Lock()
	i.builds = append(i.builds, b)
	i.mu.Unlock()
	file, err := os.ReadFile(filepath.Join(b.ContextDir, b.Dockerfile))
	if errors.Is(err, os.ErrNotExist) {
		return platform.Artifact{}, platform.Errorf(platform.Invalid, platform.CodeDockerfileMissing, "there is no %s", b.Dockerfile)
	}
	if err != nil {
		return platform.Artifact{}, err
	}
	return i.make(ctx, string(file), b.Tag, log)
}

// Pull takes the script of the reference, else of the name.
func (i *images) Pull(ctx context.Context, p platform.Pull, log io.Writer) (platform.Artifact, error) {
	i.mu.Lock()
	i.pulls = append(i.pulls, p)
	name := p.Name
	if _, scripted := i.script[p.Reference]; scripted || name == "" {
		name = p.Reference
	}
	pulled := i.pulled
	i.mu.Unlock()
	if _, manifest, own := strings.Cut(p.Reference, "@"); own && strings.HasPrefix(p.Reference, hubAddress) && name != p.Reference {
		image, there := i.hub.image(p.Auth, manifest)
		if !there {
			return platform.Artifact{}, platform.Errorf(platform.NotFound, platform.CodeImageNotFound, "the image %s does not exist", name)
		}
		name = image
	}
	artifact, err := i.make(ctx, name, p.Tag, log)
	if err == nil && pulled != nil {
		pulled(artifact.Digest)
	}
	return artifact, err
}

// Push takes the script of the reference.
func (i *images) Push(ctx context.Context, p platform.Push, log io.Writer) (string, error) {
	i.mu.Lock()
	i.pushes = append(i.pushes, p)
	i.mu.Unlock()
	if _, err := i.Tag(ctx, p.Image, "push"); err != nil {
		return "", err
	}
	_, err := i.make(ctx, p.Reference, "push", log)
	i.mu.Lock()
	delete(i.tags, "push")
	i.mu.Unlock()
	if err != nil {
		return "", err
	}
	return i.hub.store(p.Auth, p.Reference, strings.TrimPrefix(p.Image, "sha256:")), nil
}

// lose takes an image from the engine, as a prune does.
func (i *images) lose(lost string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for tag, digest := range i.tags {
		if digest == lost {
			delete(i.tags, tag)
		}
	}
}

func (i *images) pulledAs() (references []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, p := range i.pulls {
		references = append(references, p.Reference)
	}
	return references
}

func (i *images) Tag(_ context.Context, digest, tag string) (platform.Artifact, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stuck != nil {
		return platform.Artifact{}, i.stuck
	}
	for _, known := range i.tags {
		if known == digest {
			i.tags[tag] = digest
			return platform.Artifact{Image: tag, Digest: digest, SizeBytes: 4096}, nil
		}
	}
	return platform.Artifact{}, platform.Errorf(platform.Unavailable, platform.CodeImageNotFound, "there is no image %s", digest)
}

func (i *images) Tags(context.Context) ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var tags []string
	for tag := range i.tags {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	return tags, nil
}

func (i *images) Remove(_ context.Context, tag string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.tags, tag)
	return nil
}

func (i *images) built() []platform.Build {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.builds)
}

func (i *images) breakTags(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stuck = err
}
