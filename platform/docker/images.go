package docker

import (
	"context"
	"errors"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
)

// tagPrefix is what every tag Denia gives begins with.
const tagPrefix = "denia/"

// Tag gives the image a further tag; see platform.Images.
func (e *Engine) Tag(ctx context.Context, digest, tag string) (platform.Artifact, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return platform.Artifact{}, err
	}
	if err := e.tag(ctx, api, digest, tag); err != nil {
		return platform.Artifact{}, err
	}
	return e.artifact(ctx, api, tag)
}

func (e *Engine) tag(ctx context.Context, api *client.Client, digest, tag string) error {
	if err := ownTag(tag); err != nil {
		return err
	}
	err := api.ImageTag(ctx, digest, tag)
	if cerrdefs.IsNotFound(err) {
		return imageGone(err, digest)
	}
	if err != nil {
		return e.fail(ctx, err, "tagging %s as %s", digest, tag)
	}
	return nil
}

// artifact describes the image behind a tag.
func (e *Engine) artifact(ctx context.Context, api *client.Client, tag string) (platform.Artifact, error) {
	found, err := api.ImageInspect(ctx, tag)
	if cerrdefs.IsNotFound(err) {
		return platform.Artifact{}, imageGone(err, tag)
	}
	if err != nil {
		return platform.Artifact{}, e.fail(ctx, err, "looking at image %s", tag)
	}
	return platform.Artifact{Image: tag, Digest: found.ID, SizeBytes: found.Size}, nil
}

// Tags lists the tags below denia/, sorted.
func (e *Engine) Tags(ctx context.Context) ([]string, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	images, err := api.ImageList(ctx, image.ListOptions{
		Filters: filters.NewArgs(filters.Arg("reference", tagPrefix+"*/*"), filters.Arg("reference", tagPrefix+"*")),
	})
	if err != nil {
		return nil, e.fail(ctx, err, "listing images")
	}
	tags := []string{}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if strings.HasPrefix(tag, tagPrefix) {
				tags = append(tags, tag)
			}
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Remove takes a tag away, and the image with its last. It fails with
// Conflict, code image_in_use, while a container was made from the image and
// this is its last tag.
func (e *Engine) Remove(ctx context.Context, tag string) error {
	ctx, cancel := bounded(ctx, startTimeout)
	defer cancel()
	if err := ownTag(tag); err != nil {
		return err
	}
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	_, err = api.ImageRemove(ctx, tag, image.RemoveOptions{PruneChildren: true})
	switch {
	case err == nil, cerrdefs.IsNotFound(err):
		return nil
	case cerrdefs.IsConflict(err):
		return platform.Wrap(err, platform.Conflict, "image_in_use", "a container still uses the image %s", tag)
	}
	return e.fail(ctx, err, "removing image %s", tag)
}

// ownTag refuses to touch a tag that is not Denia's.
func ownTag(tag string) error {
	if !strings.HasPrefix(tag, tagPrefix) {
		return errors.New("docker: " + tag + " is no tag of Denia's")
	}
	return nil
}
