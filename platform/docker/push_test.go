package docker_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/denia-paas/denia/platform"
)

const registryPassword = "a password for one repository"

// guarded wants a user name and password, and keeps the requests it let in.
type guarded struct {
	mu  sync.Mutex
	log []string
}

func (g *guarded) wrap(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "denia" || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="guarded"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		g.mu.Lock()
		g.log = append(g.log, r.Method+" "+r.URL.Path)
		g.mu.Unlock()
		inner.ServeHTTP(w, r)
	})
}

func TestPushAndPullBack(t *testing.T) {
	t.Parallel()
	e := open(t)
	var g guarded
	host := startRegistry(t, g.wrap)
	auth := &platform.RegistryAuth{Username: "denia", Password: registryPassword}
	made, log, err := build(t, e, map[string]string{"Dockerfile": "FROM BASE\nRUN echo UNIQUE > /pushed\n"}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	reference := host + "/shop/web:release-3"
	var progress buildLog
	manifest, err := e.Push(t.Context(), platform.Push{Image: made.Digest, Reference: reference, Auth: auth}, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if again, err := e.Push(t.Context(), platform.Push{Image: made.Image, Reference: reference, Auth: auth}, io.Discard); err != nil || again != manifest {
		t.Errorf("a second push gave %s, %v, want %s", again, err, manifest)
	}
	names := func(digest string) []string {
		t.Helper()
		found, err := engine.ImageInspect(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(found.RepoTags, found.RepoDigests)
	}
	foreign := func(name string) bool { return strings.HasPrefix(name, host) }
	if left := names(made.Digest); slices.ContainsFunc(left, foreign) {
		t.Errorf("the push left names behind: %v", left)
	}

	// What the engine has lost comes back by digest, and is the same image.
	if err := e.Remove(t.Context(), made.Image); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.ImageInspect(t.Context(), made.Digest); err == nil {
		t.Fatal("the image is still there")
	}
	back, err := e.Pull(t.Context(), platform.Pull{
		Reference: host + "/shop/web@" + manifest, Tag: made.Image, Auth: auth, Name: "shop/web@" + manifest,
	}, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if back.Digest != made.Digest || back.Image != made.Image {
		t.Errorf("%+v came back, want %+v", back, made)
	}
	if left := names(back.Digest); slices.ContainsFunc(left, foreign) {
		t.Errorf("the pull left names behind: %v", left)
	}
	wantLog(t, progress.String(), "Pushing "+reference+"\n", "Pushed "+manifest, "Pulling shop/web@"+manifest)
	if strings.Contains(progress.String(), "release-3@") || strings.Contains(progress.String(), registryPassword) {
		t.Errorf("the log says\n%s", progress.String())
	}
}

// A tag is pulled, too, and leaves nothing but Denia's own.
func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	e := open(t)
	var g guarded
	var host string
	public := startRegistry(t, func(inner http.Handler) http.Handler {
		host = startRegistry(t, func(http.Handler) http.Handler { return g.wrap(inner) }) // the same content
		return inner
	})
	push(t, public+"/tools/app:7")
	auth := &platform.RegistryAuth{Username: "denia", Password: registryPassword}
	tag := "denia/" + run + "/private:1"
	a, err := e.Pull(t.Context(), platform.Pull{Reference: host + "/tools/app:7", Tag: tag, Auth: auth, Name: "tools/app:7"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	found, err := engine.ImageInspect(t.Context(), a.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(found.RepoTags, found.RepoDigests) {
		if strings.HasPrefix(name, host) {
			t.Errorf("%s stays behind", name)
		}
	}
	// A name that a killed process left there goes with the next pull.
	if err := engine.ImageTag(t.Context(), a.Digest, host+"/tools/app:7"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Pull(t.Context(), platform.Pull{Reference: host + "/tools/app:7", Tag: tag, Auth: auth, Name: "tools/app:7"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.ImageInspect(t.Context(), host+"/tools/app:7"); err == nil {
		t.Error("a name that was left behind stays")
	}
	for name, wrong := range map[string]*platform.RegistryAuth{"no": nil, "wrong": {Username: "denia", Password: "sesame-opens"}} {
		_, err := e.Pull(t.Context(), platform.Pull{Reference: host + "/tools/app:7", Tag: "denia/" + run + "/private:2", Auth: wrong, Name: "tools/app:7"}, io.Discard)
		m := wantCode(t, err, platform.CodePullDenied)
		if !strings.Contains(m, "tools/app:7") || strings.Contains(m, host) || strings.Contains(err.Error(), "sesame-opens") {
			t.Errorf("with %s credentials: %v", name, err)
		}
	}
}

func TestPushFailures(t *testing.T) {
	t.Parallel()
	e := open(t)
	var g guarded
	private := startRegistry(t, g.wrap)
	broken := startRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				http.Error(w, "the cat's name is Tibbles", http.StatusInternalServerError)
				return
			}
			inner.ServeHTTP(w, r)
		})
	})
	absent := "sha256:" + strings.Repeat("0", 64)
	for reference, c := range map[string]struct{ image, code string }{
		private + "/shop/web:1":   {appImage.Digest, platform.CodePullDenied},
		broken + "/shop/web:1":    {appImage.Digest, platform.CodePushFailed},
		"127.0.0.1:1/shop/web:1":  {appImage.Digest, platform.CodePushFailed},
		broken + "/shop/absent:1": {absent, platform.CodeImageNotFound},
	} {
		_, err := e.Push(t.Context(), platform.Push{Image: c.image, Reference: reference}, io.Discard)
		if m := wantCode(t, err, c.code); strings.Contains(m, "Tibbles") {
			t.Errorf("%s: a stranger is quoted: %s", reference, m)
		}
		if _, err := engine.ImageInspect(t.Context(), reference); err == nil {
			t.Errorf("%s stays behind", reference)
		}
	}
	for _, bad := range []string{"UPPER/case:1", broken + "/shop/web", broken + "/shop/web@" + absent} {
		if _, err := e.Push(t.Context(), platform.Push{Image: appImage.Digest, Reference: bad}, io.Discard); err == nil {
			t.Errorf("%s was pushed", bad)
		}
	}
	named, err := name.ParseReference(broken + "/shop/web:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(named); err == nil {
		t.Error("a failed push is there")
	}
}
