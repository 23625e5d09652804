package e2e

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// upstream is another registry, which can be made to refuse.
type upstream struct {
	t        testing.TB
	server   *httptest.Server
	limited  atomic.Bool // answers 429
	asked    atomic.Int64
	contents atomic.Int64 // bodies of blobs it sent
}

func startUpstream(t testing.TB) *upstream {
	u := &upstream{t: t}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	u.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.asked.Add(1)
		if u.limited.Load() {
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, http.StatusTooManyRequests)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			u.contents.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(u.server.Close)
	return u
}

func (u *upstream) host() string { return u.server.Listener.Addr().(*net.TCPAddr).String() }

func (u *upstream) push(image string, content v1.Image) {
	u.t.Helper()
	ref, err := name.ParseReference(u.host() + "/" + image)
	if err == nil {
		err = remote.Write(ref, content)
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// An image of another registry is fetched once. After that the service deploys
// whatever that registry does, even when the engine has lost the image.
func TestExternalImagesOutliveTheirRegistry(t *testing.T) {
	t.Parallel()
	s := start(t, "registry {\n\t\t\tcache_ttl 1ms\n\t\t}") // so that it always asks the registry
	up := startUpstream(t)
	up.push("team/app:1", appImage(t, "external one"))
	id := s.service("app", nil)
	other := s.service("other", nil)
	source := object{"type": "external_image", "image": up.host() + "/team/app:1"}
	status := func() (hits, misses, entries, saved int) {
		t.Helper()
		var cache object
		s.expect(http.StatusOK, "GET", "/v1/oci/cache/status", nil, &cache)
		number := func(field string) int {
			n, err := strconv.ParseFloat(cache.str(field), 64)
			if err != nil {
				t.Fatalf("%s of %v: %v", field, cache, err)
			}
			return int(n)
		}
		return number("hits"), number("misses"), number("entries"), number("bytes_saved")
	}

	s.healthy(s.deploy(id, source))
	s.answers("app.localhost", "external one")
	before, misses, entries, _ := status()
	if misses == 0 || entries == 0 {
		t.Errorf("after the first deployment: %d misses, %d entries", misses, entries)
	}
	fetched := up.contents.Load()

	// Neither the same service nor another one fetches any of it again.
	forget := func() {
		t.Helper()
		for _, service := range []string{id, other} {
			s.expect(http.StatusAccepted, "POST", "/v1/services/"+service+"/stop", nil, nil)
		}
		s.eventually(waitForRemoval, "every container is removed", func() bool { return len(s.containers()) == 0 })
		if removed := s.prune(); removed == 0 {
			t.Fatal("the engine had no image")
		}
	}
	forget()
	s.healthy(s.deploy(other, source))
	s.answers("other.localhost", "external one")
	if now := up.contents.Load(); now != fetched {
		t.Errorf("%d blobs were fetched again", now-fetched)
	}
	hits, _, _, saved := status()
	if hits <= before || saved == 0 {
		t.Errorf("after the second deployment: %d hits instead of %d, %d bytes saved", hits, before, saved)
	}

	// A new version is noticed.
	up.push("team/app:1", appImage(t, "external two"))
	s.healthy(s.deploy(id, source))
	s.answers("app.localhost", "external two")

	for _, trouble := range []struct {
		name string
		make func()
	}{
		{"answers 429", func() { up.limited.Store(true) }},
		{"is gone", up.server.Close},
	} {
		trouble.make()
		forget()
		asked, began := up.asked.Load(), time.Now()
		s.healthy(s.deploy(id, source))
		s.answers("app.localhost", "external two")
		t.Logf("deployed in %s while the registry %s, which was asked %d times", time.Since(began).Round(time.Millisecond), trouble.name, up.asked.Load()-asked)
	}
	hits, misses, entries, saved = status()
	t.Logf("cache: %d hits, %d misses, %d entries, %d bytes saved", hits, misses, entries, saved)

	// What was never here cannot be had, and the error says why.
	d := s.finished(s.deploy(id, object{"type": "external_image", "image": up.host() + "/team/app:never"}))
	if d.str("status") != "failed" || !strings.Contains(d.str("error.message"), up.host()) {
		t.Errorf("an image that was never fetched: %s %v", d.str("status"), d["error"])
	}
	s.answers("app.localhost", "external two")
}

// Clients pull other registries' images below a project, as far as their role
// goes.
func TestPullThrough(t *testing.T) {
	t.Parallel()
	s := start(t)
	up := startUpstream(t)
	image := layered(t, "amd64", 3, 256<<10)
	up.push("team/lib:1", image)
	viewer, stranger := s.account("viewer", "default", "viewer"), s.account("stranger", "default", "")
	cached := "default/" + strings.ReplaceAll(up.host(), ":", "_") + "/team/lib"

	// What is not here yet an operator has to ask for.
	if got := viewer.do("GET", cached+"/manifests/1", nil); got.status != http.StatusNotFound && got.status != http.StatusForbidden || got.code() == "" {
		t.Errorf("a viewer has something fetched: %s", got)
	}
	if n := up.contents.Load(); n != 0 {
		t.Errorf("%d blobs were fetched for a viewer", n)
	}
	if got := s.owner().whole(cached + ":1"); got != hashOf(t, image) {
		t.Errorf("pulled %s, want %s", got, hashOf(t, image))
	}
	if got := viewer.whole(cached + ":1"); got != hashOf(t, image) {
		t.Errorf("a viewer pulled %s, want %s", got, hashOf(t, image))
	}
	if n := up.contents.Load(); n != 4 {
		t.Errorf("%d blobs were fetched, want each of four once", n)
	}
	for _, c := range []struct {
		who          account
		method, path string
	}{
		{stranger, "GET", cached + "/manifests/1"},
		{account{s: s}, "GET", cached + "/manifests/1"},
		{s.owner(), "GET", cached + "/manifests/missing"},
		{s.owner(), "PUT", cached + "/manifests/1"},
		{s.owner(), "POST", cached + "/blobs/uploads/"},
	} {
		if got := c.who.do(c.method, c.path, nil); got.status < 400 || got.status > 499 || got.code() == "" {
			t.Errorf("%s %s by %q: %s", c.method, c.path, c.who.name, got)
		}
	}
	var freed object
	s.expect(http.StatusAccepted, "POST", "/v1/oci/cache/gc", nil, &freed)
	if got := fmt.Sprint(freed["error"]); got != "<nil>" {
		t.Errorf("collecting the cache: %v", freed)
	}
}
