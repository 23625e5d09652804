package docker_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/denia-paas/denia/platform"
)

// startRegistry starts a registry on 127.0.0.1; wrap may stand in front of it.
func startRegistry(t *testing.T, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// push makes an image for linux/amd64 of random layers and pushes it.
func push(t *testing.T, ref string) v1.Hash {
	t.Helper()
	img, err := random.Image(64<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestPull(t *testing.T) {
	t.Parallel()
	e := open(t)
	host := startRegistry(t, nil)
	ref, tag := host+"/tools/app:7", "denia/"+run+"/pulled:1"
	digest := push(t, ref)
	var progress buildLog
	a, err := e.Pull(t.Context(), platform.Pull{Reference: ref, Tag: tag}, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	found, err := engine.ImageInspect(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	if a.Image != tag || a.Digest != found.ID || a.SizeBytes == 0 {
		t.Errorf("artifact %+v, the engine has %s", a, found.ID)
	}
	wantLog(t, progress.String(), "Pulling "+ref+"\n", "pull complete\n", "Pulled sha256:")
	if lines := strings.Count(progress.String(), "\n"); lines > 8 {
		t.Errorf("%d lines about two small layers:\n%s", lines, progress.String())
	}
	if slices.Contains(found.RepoTags, ref) {
		t.Errorf("the pulled reference stays behind: %v", found.RepoTags)
	}

	pinned, err := e.Pull(t.Context(), platform.Pull{Reference: ref + "@" + digest.String(), Tag: "denia/" + run + "/pulled:2"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if pinned.Digest != a.Digest {
		t.Errorf("by digest %s came, by tag %s", pinned.Digest, a.Digest)
	}

	push(t, ref)
	moved, err := e.Pull(t.Context(), platform.Pull{Reference: ref, Tag: "denia/" + run + "/pulled:3"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if moved.Digest == a.Digest {
		t.Error("the tag has moved and the old image came")
	}
}

func TestPullLeavesForeignTagsAlone(t *testing.T) {
	t.Parallel()
	e := open(t)
	host := startRegistry(t, nil)
	ref := host + "/" + run + "/app:latest"
	push(t, ref)
	if _, err := e.Pull(t.Context(), platform.Pull{Reference: ref, Tag: "denia/" + run + "/foreign:1"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := engine.ImageTag(t.Context(), "denia/"+run+"/foreign:1", ref); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Pull(t.Context(), platform.Pull{Reference: ref, Tag: "denia/" + run + "/foreign:2"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.ImageInspect(t.Context(), ref); err != nil {
		t.Errorf("a tag that was there before the pull: %v", err)
	}
}

func TestPullCanceled(t *testing.T) {
	t.Parallel()
	e := open(t)
	asked := make(chan struct{})
	release := make(chan struct{})
	host := startRegistry(t, func(inner http.Handler) http.Handler {
		var once sync.Once
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				once.Do(func() { close(asked) })
				<-release
			}
			inner.ServeHTTP(w, r)
		})
	})
	t.Cleanup(func() { close(release) }) // before the server waits for its handlers
	push(t, host+"/tools/app:1")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := e.Pull(ctx, platform.Pull{Reference: host + "/tools/app:1", Tag: "denia/" + run + "/canceled:1"}, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled pull: %v", err)
	}
}

func TestPullFailures(t *testing.T) {
	t.Parallel()
	e := open(t)
	host := startRegistry(t, nil)
	push(t, host+"/tools/app:7")
	private := startRegistry(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		})
	})
	broken := startRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				http.Error(w, "out of order", http.StatusInternalServerError)
				return
			}
			inner.ServeHTTP(w, r)
		})
	})
	push(t, broken+"/tools/app:1")
	for ref, code := range map[string]string{
		host + "/tools/app:8": platform.CodeImageNotFound,
		host + "/tools/none":  platform.CodeImageNotFound,
		host + "/tools/app@sha256:" + strings.Repeat("0", 64): platform.CodeImageNotFound,
		private + "/tools/app:7":                              platform.CodePullDenied,
		broken + "/tools/app:1":                               platform.CodePullFailed,
		"127.0.0.1:1/tools/app:7":                             platform.CodePullFailed,
		"UPPER/case":                                          platform.CodePullFailed,
	} {
		_, err := e.Pull(t.Context(), platform.Pull{Reference: ref, Tag: "denia/" + run + "/failed:1"}, io.Discard)
		if m := wantCode(t, err, code); !strings.Contains(m, ref) {
			t.Errorf("%s: %q", ref, m)
		}
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	e := open(t)
	prefix := "denia/" + run + "/tags"
	a, err := e.Tag(t.Context(), appImage.Digest, prefix+":1")
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest != appImage.Digest || a.Image != prefix+":1" || a.SizeBytes != appImage.SizeBytes {
		t.Errorf("tagged %+v, want what is behind %+v", a, appImage)
	}
	has := func(tag string) bool {
		t.Helper()
		tags, err := e.Tags(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			if !strings.HasPrefix(tag, "denia/") {
				t.Errorf("Tags lists %s", tag)
			}
		}
		return slices.Contains(tags, tag)
	}
	if !has(prefix + ":1") {
		t.Error("a tag is not listed")
	}
	_, err = e.Tag(t.Context(), "sha256:"+strings.Repeat("0", 64), prefix+":2")
	wantCode(t, err, platform.CodeImageNotFound)
	for range 2 {
		if err := e.Remove(t.Context(), prefix+":1"); err != nil {
			t.Error(err)
		}
	}
	if has(prefix + ":1") {
		t.Error("a removed tag is still listed")
	}
	if _, err := engine.ImageInspect(t.Context(), prefix+":1"); err == nil {
		t.Error("a removed tag is still there")
	}
	if _, err := engine.ImageInspect(t.Context(), appImage.Image); err != nil {
		t.Errorf("removing a tag removed another: %v", err)
	}
	if err := e.Remove(t.Context(), busybox); err == nil {
		t.Error("a tag that is not Denia's was removed")
	}

	last, log, err := build(t, e, map[string]string{"Dockerfile": "FROM BASE\nRUN echo UNIQUE > /last\nCMD true\n"}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	w := app(1)
	w.Image, w.Digest = last.Image, last.Digest
	ensure(t, e, w)
	finished(t, e, w)
	wantCode(t, e.Remove(t.Context(), last.Image), "image_in_use")
	w.Replicas = 0
	ensure(t, e, w)
	if err := e.Remove(t.Context(), last.Image); err != nil {
		t.Error(err)
	}
	if _, err := engine.ImageInspect(t.Context(), last.Digest); err == nil {
		t.Error("the image outlives its last tag")
	}
}

func TestTagsBelongToAnInstance(t *testing.T) {
	t.Parallel()
	a, b := open(t), open(t)
	tag := "denia/" + run + "/shared:1"
	first, log, err := build(t, a, map[string]string{"Dockerfile": "FROM BASE\nRUN echo UNIQUE > /first\n"},
		func(b *platform.Build) { b.Tag = tag })
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if tags, err := b.Tags(t.Context()); err != nil || len(tags) != 0 {
		t.Errorf("another instance lists %v, %v", tags, err)
	}
	if err := b.Remove(t.Context(), tag); err != nil {
		t.Error(err)
	}
	if again, err := a.Tag(t.Context(), first.Digest, tag); err != nil || again != first {
		t.Errorf("after another instance removed its tag of that name: %+v, %v", again, err)
	}
	// The other instance comes to use the same tag.
	if _, err := b.Tag(t.Context(), appImage.Digest, tag); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.ImageInspect(t.Context(), first.Digest); err != nil {
		t.Errorf("the image went with its tag: %v", err)
	}
	if err := a.Remove(t.Context(), tag); err != nil {
		t.Error(err)
	}
	if _, err := engine.ImageInspect(t.Context(), first.Digest); err == nil {
		t.Error("the image outlives its last tag")
	}
	if found, err := engine.ImageInspect(t.Context(), tag); err != nil || found.ID != appImage.Digest {
		t.Errorf("the other instance's tag: %+v, %v", found.ID, err)
	}
	if err := b.Remove(t.Context(), tag); err != nil {
		t.Error(err)
	}
}
