package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	registrytypes "github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
)

// Push sends an image to a registry; see platform.Images. The reference must
// have a tag and no digest. Two pushes to one reference go one after another.
func (e *Engine) Push(ctx context.Context, p platform.Push, log io.Writer) (manifest string, err error) {
	named, err := reference.ParseNormalizedNamed(p.Reference)
	if err != nil {
		return "", badReference(err, p.Reference)
	}
	if _, tagged := named.(reference.NamedTagged); !tagged {
		return "", badReference(errors.New("it has no tag"), p.Reference)
	}
	name := reference.FamiliarString(named)
	auth, err := encodeAuth(p.Auth)
	if err != nil {
		return "", err
	}
	api, err := e.api(ctx)
	if err != nil {
		return "", err
	}
	unlock, err := e.pulls.lock(ctx, name)
	if err != nil {
		return "", fmt.Errorf("waiting for another transfer of %s: %w", name, err)
	}
	defer unlock()
	if err := e.tagForPush(ctx, api, p.Image, name); err != nil {
		return "", err
	}
	defer e.untag(ctx, api, name)
	fmt.Fprintf(log, "Pushing %s\n", name)
	if manifest, err = e.push(ctx, api, name, auth); err != nil {
		return "", err
	}
	fmt.Fprintf(log, "Pushed %s\n", manifest)
	return manifest, nil
}

func (e *Engine) tagForPush(ctx context.Context, api *client.Client, source, name string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	err := api.ImageTag(ctx, source, name)
	if cerrdefs.IsNotFound(err) {
		return imageGone(err, source)
	}
	if err != nil {
		return e.fail(ctx, err, "tagging %s as %s", source, name)
	}
	return nil
}

// untag takes a name away that was only needed for a transfer, also when that
// was given up.
func (e *Engine) untag(ctx context.Context, api *client.Client, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if _, err := api.ImageRemove(ctx, name, image.RemoveOptions{}); err != nil && !cerrdefs.IsNotFound(err) {
		e.log.Warn("the reference of a transfer stays behind as a tag", "image", name, "error", err)
	}
}

func (e *Engine) push(ctx context.Context, api *client.Client, name, auth string) (manifest string, err error) {
	stream, err := api.ImagePush(ctx, name, image.PushOptions{RegistryAuth: auth})
	if err != nil {
		return "", e.pushFailed(ctx, err, name)
	}
	// The engine ends the push when the connection closes.
	defer stream.Close()
	messages := json.NewDecoder(stream)
	for {
		var m struct {
			Error string `json:"error"`
			Aux   struct {
				Digest string
			} `json:"aux"`
		}
		err := messages.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && m.Error != "" {
			err = errors.New(m.Error)
		}
		if err != nil {
			return "", e.pushFailed(ctx, err, name)
		}
		if m.Aux.Digest != "" {
			manifest = m.Aux.Digest
		}
	}
	if manifest == "" {
		return "", e.pushFailed(ctx, errors.New("the engine did not tell the digest"), name)
	}
	return manifest, nil
}

// pushFailed says why an image could not be sent, as pullFailed does of one
// that could not be had.
func (e *Engine) pushFailed(ctx context.Context, err error, name string) error {
	failure := e.fail(ctx, err, "pushing %s", name)
	if _, known := errors.AsType[*platform.Error](failure); known || ctx.Err() != nil {
		return failure
	}
	words := registryWords(err)
	for _, refusal := range refusals {
		if strings.Contains(strings.ToLower(words), refusal) {
			return platform.Wrap(err, platform.Forbidden, platform.CodePullDenied, "the registry does not take %s: %s", name, words)
		}
	}
	return platform.Wrap(err, platform.Unavailable, platform.CodePushFailed, "pushing %s failed: %s", name, words)
}

// encodeAuth writes credentials as the engine's API wants them.
func encodeAuth(auth *platform.RegistryAuth) (string, error) {
	if auth == nil {
		return "", nil
	}
	encoded, err := registrytypes.EncodeAuthConfig(registrytypes.AuthConfig{Username: auth.Username, Password: auth.Password})
	if err != nil {
		return "", errors.New("docker: credentials cannot be encoded")
	}
	return encoded, nil
}
