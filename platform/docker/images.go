package docker

import (
	"context"
	"errors"
	"regexp"
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

// ownPrefix matches names below tagPrefix and below the prefix of any
// instance's marks.
var ownPrefix = regexp.MustCompile(`^denia(-[0-9a-f]{8})?/`)

// mark is a second tag beside each tag Denia gives. Tags cannot carry labels,
// and two Denias may have services of the same name on one engine: the mark
// says whose the image is, and keeps it when the other moves the tag.
func (e *Engine) mark(tag string) string {
	return e.markPrefix() + strings.TrimPrefix(tag, tagPrefix)
}

func (e *Engine) markPrefix() string { return "denia-" + short(e.instance) + "/" }

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
	for _, name := range []string{e.mark(tag), tag} {
		err := api.ImageTag(ctx, digest, name)
		if cerrdefs.IsNotFound(err) {
			return imageGone(err, digest)
		}
		if err != nil {
			return e.fail(ctx, err, "tagging %s as %s", digest, name)
		}
	}
	return nil
}

// artifact describes the image this instance gave the tag.
func (e *Engine) artifact(ctx context.Context, api *client.Client, tag string) (platform.Artifact, error) {
	found, err := api.ImageInspect(ctx, e.mark(tag))
	if cerrdefs.IsNotFound(err) {
		return platform.Artifact{}, imageGone(err, tag)
	}
	if err != nil {
		return platform.Artifact{}, e.fail(ctx, err, "looking at image %s", tag)
	}
	return platform.Artifact{Image: tag, Digest: found.ID, SizeBytes: found.Size}, nil
}

// Tags lists the tags this instance gave, sorted.
func (e *Engine) Tags(ctx context.Context) ([]string, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	images, err := api.ImageList(ctx, image.ListOptions{
		Filters: filters.NewArgs(
			filters.Arg("reference", e.markPrefix()+"*"), filters.Arg("reference", e.markPrefix()+"*/*")),
	})
	if err != nil {
		return nil, e.fail(ctx, err, "listing images")
	}
	tags := []string{}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if name, ours := strings.CutPrefix(tag, e.markPrefix()); ours {
				tags = append(tags, tagPrefix+name)
			}
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Remove takes a tag of this instance away, and the image with its last. It
// fails with Conflict, code image_in_use, while a container was made from the
// image and this is its last tag.
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
	marked, err := api.ImageInspect(ctx, e.mark(tag))
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return e.fail(ctx, err, "looking at image %s", tag)
	}
	names := []string{e.mark(tag)}
	// The mark goes last: while it is there, a removal that was cut short is
	// taken up again. The tag may by now be another instance's.
	if slices.Contains(marked.RepoTags, tag) {
		names = []string{tag, e.mark(tag)}
	}
	for _, name := range names {
		_, err = api.ImageRemove(ctx, name, image.RemoveOptions{PruneChildren: true})
		switch {
		case err == nil, cerrdefs.IsNotFound(err):
		case cerrdefs.IsConflict(err):
			return platform.Wrap(err, platform.Conflict, "image_in_use", "a container still uses the image %s", tag)
		default:
			return e.fail(ctx, err, "removing image %s", name)
		}
	}
	return nil
}

// ownTag refuses to touch a tag that is not Denia's.
func ownTag(tag string) error {
	if !strings.HasPrefix(tag, tagPrefix) {
		return errors.New("docker: " + tag + " is no tag of Denia's")
	}
	return nil
}
