package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/docker/go-units"

	"github.com/denia-paas/denia/platform"
)

// cleanupTimeout bounds what is tidied up after a caller's context has ended.
const cleanupTimeout = 10 * time.Second

// Pull fetches an image for the engine's platform and tags it; see
// platform.Images. A reference with a digest that the engine already has is
// not fetched again. The reference itself does not stay behind as a tag unless
// it was there before.
func (e *Engine) Pull(ctx context.Context, p platform.Pull, log io.Writer) (platform.Artifact, error) {
	if err := ownTag(p.Tag); err != nil {
		return platform.Artifact{}, err
	}
	ref := p.Reference
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return platform.Artifact{}, badReference(err, ref)
	}
	if pinned, ok := named.(reference.Digested); ok {
		// Beside a digest a tag means nothing, and engines trip over it.
		if named, err = reference.WithDigest(reference.TrimNamed(named), pinned.Digest()); err != nil {
			return platform.Artifact{}, badReference(err, ref)
		}
	}
	named = reference.TagNameOnly(named)
	name := reference.FamiliarString(named)
	called := name
	if p.Name != "" {
		called = p.Name
	}
	auth, err := encodeAuth(p.Auth)
	if err != nil {
		return platform.Artifact{}, err
	}
	api, err := e.api(ctx)
	if err != nil {
		return platform.Artifact{}, err
	}
	// Between the end of a pull and its tag, another pull of the same
	// reference must not move or remove it.
	unlock, err := e.pulls.lock(ctx, name)
	if err != nil {
		return platform.Artifact{}, fmt.Errorf("waiting for another pull of %s: %w", called, err)
	}
	defer unlock()

	present, err := e.hasImage(ctx, api, name)
	if err != nil {
		return platform.Artifact{}, err
	}
	if _, pinned := named.(reference.Digested); pinned && present {
		fmt.Fprintf(log, "%s is already here\n", called)
	} else {
		fmt.Fprintf(log, "Pulling %s\n", called)
		if err := e.pull(ctx, api, name, called, auth, log); err != nil {
			return platform.Artifact{}, err
		}
	}
	// With credentials it is Denia's own registry, and a name that is there is
	// what a crash has left.
	if !present || p.Auth != nil {
		defer e.untag(ctx, api, name)
	}
	if err := e.tag(ctx, api, name, p.Tag); err != nil {
		return platform.Artifact{}, err
	}
	artifact, err := e.artifact(ctx, api, p.Tag)
	if err != nil {
		return platform.Artifact{}, err
	}
	fmt.Fprintf(log, "Pulled %s, %s\n", artifact.Digest, units.HumanSize(float64(artifact.SizeBytes)))
	return artifact, nil
}

func (e *Engine) hasImage(ctx context.Context, api *client.Client, name string) (bool, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := api.ImageInspect(ctx, name)
	switch {
	case err == nil:
		return true, nil
	case strings.Contains(err.Error(), "invalid reference"):
		return false, badReference(err, name)
	case cerrdefs.IsNotFound(err):
		return false, nil
	}
	return false, e.fail(ctx, err, "looking at image %s", name)
}

func badReference(err error, ref string) error {
	return platform.Wrap(err, platform.Invalid, platform.CodePullFailed,
		"%q is no image reference: write host/name:tag or host/name@sha256:…", ref)
}

// pullMessage is one line of the engine's stream. A failure comes as a line
// too: by then the engine has answered 200.
type pullMessage struct {
	Status   string `json:"status"`
	ID       string `json:"id"`
	Progress *struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error string `json:"error"`
}

// pull fetches name; called is what errors call it.
func (e *Engine) pull(ctx context.Context, api *client.Client, name, called, auth string, log io.Writer) error {
	stream, err := api.ImagePull(ctx, name, image.PullOptions{RegistryAuth: auth})
	if err != nil {
		return e.pullFailed(ctx, err, called)
	}
	// The engine ends the pull when the connection closes.
	defer stream.Close()
	progress := pullProgress{log: log, layers: map[string]layer{}, next: time.Now().Add(progressInterval)}
	messages := json.NewDecoder(stream)
	for {
		var m pullMessage
		err := messages.Decode(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && m.Error != "" {
			err = errors.New(m.Error)
		}
		if err != nil {
			return e.pullFailed(ctx, err, called)
		}
		progress.add(m)
	}
}

// pullFailed says why an image could not be had. Registries and engines agree
// on no code, so their words decide.
func (e *Engine) pullFailed(ctx context.Context, err error, name string) error {
	failure := e.fail(ctx, err, "pulling %s", name)
	if _, known := errors.AsType[*platform.Error](failure); known || ctx.Err() != nil {
		return failure
	}
	return pullError(err, name)
}

func pullError(err error, name string) *platform.Error {
	words := registryWords(err)
	text := strings.ToLower(words)
	has := func(any ...string) bool {
		for _, part := range any {
			if strings.Contains(text, part) {
				return true
			}
		}
		return false
	}
	switch {
	case has(refusals...):
		return platform.Wrap(err, platform.NotFound, platform.CodePullDenied,
			"the registry does not give out %s without a login, or has no such image: check the name, or make it public", name)
	case has("manifest unknown", "name unknown", "not found", "no matching manifest", "does not match the specified platform"):
		advice := "check the name and the tag"
		if has("no matching manifest", "specified platform") {
			advice = "there is none for this machine's processor"
		}
		return platform.Wrap(err, platform.NotFound, platform.CodeImageNotFound,
			"the image %s does not exist: %s", name, advice)
	case has("no such host", "connection refused", "i/o timeout", "tls", "network is unreachable", "eof", "timeout", "misbehaving"):
		return platform.Wrap(err, platform.Unavailable, platform.CodePullFailed,
			"the registry of %s cannot be reached: %s", name, words)
	}
	return platform.Wrap(err, platform.Unavailable, platform.CodePullFailed, "pulling %s failed: %s", name, words)
}

// refusals are the words of a registry that wants other credentials.
var refusals = []string{"does not exist or may require", "unauthorized", "authentication required", "denied", "no basic auth", "403 forbidden"}

// registryWords are the engine's words on what a registry answered. That may be
// no registry, and its words nobody's to read.
func registryWords(err error) string {
	words, _, quoted := strings.Cut(engineWords(err.Error()), "error parsing HTTP")
	if quoted {
		words += "its answer is no registry's"
	}
	return words
}

// progressInterval is how often bytes are reported; layers are reported as
// they come.
const progressInterval = 3 * time.Second

type layer struct{ current, total int64 }

// pullProgress turns a storm of messages into a few lines.
type pullProgress struct {
	log    io.Writer
	layers map[string]layer
	next   time.Time
}

func (p *pullProgress) add(m pullMessage) {
	switch m.Status {
	case "Downloading":
		if m.Progress == nil {
			return
		}
		p.layers[m.ID] = layer{m.Progress.Current, m.Progress.Total}
		if now := time.Now(); now.After(p.next) {
			p.next = now.Add(progressInterval)
			var sum layer
			for _, l := range p.layers {
				sum.current += l.current
				sum.total += l.total
			}
			fmt.Fprintf(p.log, "downloaded %s of %s in %d layers\n",
				units.HumanSize(float64(sum.current)), units.HumanSize(float64(sum.total)), len(p.layers))
		}
	case "Download complete":
		l := p.layers[m.ID]
		p.layers[m.ID] = layer{l.total, l.total}
	case "Pull complete", "Already exists":
		fmt.Fprintf(p.log, "%s: %s\n", m.ID, strings.ToLower(m.Status))
	}
}
