package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"github.com/denia-paas/denia/platform"
)

// buildCPUShares is the weight of a build's processes beside others' 1024.
// Engines whose BuildKit cannot limit a build's steps pass it over.
const buildCPUShares = "128"

// maxDockerfile bounds the Dockerfile.
const maxDockerfile = 1 << 20

// Build builds an image with the BuildKit inside the engine; see
// platform.Images. The Dockerfile is read by the frontend linked into this
// binary, so a "# syntax=docker/dockerfile…" line fetches nothing; a line that
// asks for another frontend is refused. Images below denia/ cannot be a base:
// they belong to somebody's service. Beside the errors of the contract, a base
// image that cannot be had gives the codes of Pull.
func (e *Engine) Build(ctx context.Context, b platform.Build, log io.Writer) (platform.Artifact, error) {
	if err := ownTag(b.Tag); err != nil {
		return platform.Artifact{}, err
	}
	tag, err := reference.ParseNormalizedNamed(b.Tag)
	if err != nil {
		return platform.Artifact{}, fmt.Errorf("building: reading the tag %q: %w", b.Tag, err)
	}
	dockerfile, err := findDockerfile(b.ContextDir, b.Dockerfile)
	if err != nil {
		return platform.Artifact{}, err
	}
	contextFS, err := contentTimed(b.ContextDir)
	if err != nil {
		return platform.Artifact{}, fmt.Errorf("building: opening the context: %w", err)
	}
	api, err := e.api(ctx)
	if err != nil {
		return platform.Artifact{}, err
	}
	// BuildKit's dials do not say why they failed, so the engine is asked
	// first.
	if _, err := e.Ping(ctx); err != nil {
		return platform.Artifact{}, err
	}
	buildkit, err := bk.New(ctx, "",
		bk.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return hijack(ctx, api, "/grpc", "h2c", nil)
		}),
		bk.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return hijack(ctx, api, "/session", proto, meta)
		}))
	if err != nil {
		return platform.Artifact{}, e.fail(ctx, err, "connecting to BuildKit")
	}
	defer buildkit.Close()

	options := bk.SolveOpt{
		FrontendAttrs: e.frontendAttrs(b, dockerfile, tag),
		LocalMounts: map[string]fsutil.FS{
			dockerui.DefaultLocalNameContext:    contextFS,
			dockerui.DefaultLocalNameDockerfile: contextFS,
		},
		// What the engine keeps of a context is brought up to date by the next
		// build of the same service, and of no other.
		SharedKey: "denia-" + short(e.instance, reference.Path(tag)),
		Session:   []session.Attachable{buildSecrets(b.Secrets)},
		Exports:   []bk.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": b.Tag + "," + e.mark(b.Tag)}}},
	}
	var frontendErr error
	frontend := func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		result, err := builder.Build(ctx, bases{c})
		frontendErr = err
		return result, err
	}
	progress := newBuildProgress(log)
	status := make(chan *bk.SolveStatus)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for s := range status {
			progress.add(s)
		}
	}()
	_, err = buildkit.Build(ctx, options, "denia", frontend, status)
	<-drained
	progress.end()
	if err != nil {
		return platform.Artifact{}, e.buildFailed(ctx, err, frontendErr, progress.failed, dockerfile)
	}
	return e.artifact(ctx, api, b.Tag)
}

func (e *Engine) frontendAttrs(b platform.Build, dockerfile string, tag reference.Named) map[string]string {
	attrs := map[string]string{}
	for key, value := range b.Args {
		attrs["build-arg:"+key] = value
	}
	attrs["filename"] = dockerfile
	// Its presence keeps the frontend from handing over to the one that a
	// syntax line, or the argument BUILDKIT_SYNTAX, names.
	attrs["cmdline"] = "docker/dockerfile"
	attrs["cpushares"] = buildCPUShares
	// Cache mounts are shared within a project and with no other. So are the
	// results of steps, and only while the secrets are the same: BuildKit
	// leaves secrets out of a step's key, but its host name is part of it.
	scope := short(e.instance, string(b.Scope), path.Dir(reference.Path(tag)))
	attrs["build-arg:BUILDKIT_CACHE_MOUNT_NS"] = "denia-" + scope
	attrs["build-arg:BUILDKIT_SANDBOX_HOSTNAME"] = "denia-" + short(scope, secretsKey(b.Secrets))
	if b.Target != "" {
		attrs["target"] = b.Target
	}
	return attrs
}

// secretsKey changes with the secrets and tells nothing about them.
func secretsKey(secrets platform.Env) string {
	sum := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(secrets)) {
		fmt.Fprintf(sum, "%d:%s%d:%s", len(key), key, len(secrets[key]), secrets[key])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// findDockerfile checks that the Dockerfile is there and wants no foreign
// frontend, and returns its path inside the context.
func findDockerfile(dir, name string) (string, error) {
	if name == "" {
		name = dockerui.DefaultDockerfileName
	}
	name = path.Clean(name)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("building: opening the context: %w", err)
	}
	defer root.Close()
	found := name
	file, err := root.Open(found)
	if errors.Is(err, fs.ErrNotExist) && path.Base(name) == dockerui.DefaultDockerfileName {
		found = path.Join(path.Dir(name), strings.ToLower(dockerui.DefaultDockerfileName))
		file, err = root.Open(found)
	}
	if err != nil {
		return "", platform.Wrap(err, platform.Invalid, platform.CodeDockerfileMissing,
			"there is no %s in the build context: add one, or set source.dockerfile to its path", name)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxDockerfile+1))
	if err != nil {
		return "", platform.Wrap(err, platform.Invalid, platform.CodeDockerfileMissing,
			"%s in the build context cannot be read: it must be a file", name)
	}
	if len(text) > maxDockerfile {
		return "", platform.Errorf(platform.Invalid, platform.CodeDockerfileInvalid,
			"%s is larger than %d bytes", found, maxDockerfile)
	}
	if syntax, _, location, ok := parser.DetectSyntax(text); ok && !builtinFrontend(syntax) {
		line := 1
		if len(location) > 0 {
			line = location[0].Start.Line
		}
		return "", platform.Errorf(platform.Invalid, platform.CodeDockerfileInvalid,
			"%s:%d: the frontend %s is not supported: remove the syntax line, or use docker/dockerfile", found, line, syntax)
	}
	return found, nil
}

// builtinFrontend tells whether a syntax line asks for the Dockerfile
// frontend, from whichever registry.
func builtinFrontend(syntax string) bool {
	named, err := reference.ParseNormalizedNamed(syntax)
	if err != nil {
		return false
	}
	name := reference.Path(named)
	return strings.HasSuffix("/"+name, "/docker/dockerfile") || strings.HasSuffix("/"+name, "/docker/dockerfile-upstream")
}

// baseError says that the image of a FROM, COPY --from or RUN --mount could not
// be had.
type baseError struct {
	image string
	err   error
}

func (b *baseError) Error() string { return "resolving " + b.image + ": " + b.err.Error() }
func (b *baseError) Unwrap() error { return b.err }

var errOwnBase = errors.New("images that Denia made for a service cannot be a base")

// bases lets the frontend see every base image but Denia's own, and marks
// errors about them.
type bases struct{ gateway.Client }

func (b bases) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	name := ref
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		name = reference.FamiliarString(named)
	}
	if ownPrefix.MatchString(name) {
		return "", "", nil, &baseError{image: name, err: errOwnBase}
	}
	resolved, dgst, config, err := b.Client.ResolveImageConfig(ctx, ref, opt)
	if err != nil && ctx.Err() == nil {
		err = &baseError{image: name, err: err}
	}
	return resolved, dgst, config, err
}

// Solve refuses what the engine would fetch by itself: it does so in the
// host's network, where a Dockerfile could read what listens on loopback only.
func (b bases) Solve(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	if req.Definition != nil {
		for _, raw := range req.Definition.Def {
			var op pb.Op
			if err := op.UnmarshalVT(raw); err != nil {
				return nil, fmt.Errorf("reading the build's steps: %w", err)
			}
			if source := op.GetSource(); source != nil && remote.MatchString(source.Identifier) {
				return nil, platform.Errorf(platform.Invalid, platform.CodeDockerfileInvalid,
					"ADD cannot fetch %s: the engine would, from the host's own network; fetch it in a RUN step, or upload it with the context", source.Identifier)
			}
		}
	}
	return b.Client.Solve(ctx, req)
}

var remote = regexp.MustCompile(`^(https?|git|oci-layout)://`)

func (b bases) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	image, isImage := strings.CutPrefix(op.Identifier, "docker-image://")
	if !isImage {
		return b.Client.ResolveSourceMetadata(ctx, op, opt)
	}
	if named, err := reference.ParseNormalizedNamed(image); err == nil {
		image = reference.FamiliarString(named)
	}
	if ownPrefix.MatchString(image) {
		return nil, &baseError{image: image, err: errOwnBase}
	}
	meta, err := b.Client.ResolveSourceMetadata(ctx, op, opt)
	if err != nil && ctx.Err() == nil {
		err = &baseError{image: image, err: err}
	}
	return meta, err
}
