package registry_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// A tag is compared with its upstream once its time is over, by a HEAD, and
// fetched only when it has moved.
func TestCacheComparesTags(t *testing.T) {
	w := newCacheWorld(t)
	_, config := w.up.blob(100)
	first, content := w.up.manifest("v1", config)
	const path = "p/up/img/manifests/v1"

	a := w.get(path)
	if !bytes.Equal(a.body, content) || a.header.Get("Docker-Content-Digest") != first.String() || a.header.Get("Content-Type") != oci.TypeImage {
		t.Fatalf("%s %v", a.body, a.header)
	}
	asked := func(heads, gets int) {
		t.Helper()
		if h, g := w.up.asked(http.MethodHead, "manifests"), w.up.asked(http.MethodGet, "manifests"); h != heads || g != gets {
			t.Errorf("the upstream was asked by %d HEADs and %d GETs, want %d and %d", h, g, heads, gets)
		}
	}
	asked(0, 1)
	w.pass(4 * time.Minute)
	w.get(path)
	asked(0, 1)
	w.pass(2 * time.Minute)
	if a := w.get(path); a.header.Get("Warning") != "" {
		t.Errorf("Warning: %s", a.header.Get("Warning"))
	}
	asked(1, 1)
	w.get(path)
	asked(1, 1)

	_, config = w.up.blob(101)
	second, _ := w.up.manifest("v1", config)
	w.pass(6 * time.Minute)
	if a := w.get(path); a.header.Get("Docker-Content-Digest") != second.String() {
		t.Error("the tag did not move")
	}
	asked(2, 2)

	// Back to what is stored still: no need to fetch it.
	w.up.direct(http.MethodPut, "/v2/img/manifests/v1", oci.TypeImage, content)
	w.pass(6 * time.Minute)
	if a := w.get(path); a.header.Get("Docker-Content-Digest") != first.String() {
		t.Error("the tag did not move back")
	}
	asked(3, 2)

	// Gone upstream is gone here, but what is pinned by digest stays.
	w.up.answering(http.StatusNotFound)
	w.pass(6 * time.Minute)
	if a := w.do(http.MethodGet, path); a.status != http.StatusNotFound || a.code(t) != "MANIFEST_UNKNOWN" {
		t.Errorf("a tag that is gone: %d", a.status)
	}
	w.get("p/up/img/manifests/" + first.String())
}

// What is deployed is what the tag means now, however lately it was compared.
func TestCacheComparesTagsForEachDeployment(t *testing.T) {
	w := newCacheWorld(t)
	const path = "p/up/img/manifests/v1"
	_, config := w.up.blob(100)
	w.up.manifest("v1", config)
	w.get(path)
	_, config = w.up.blob(101)
	moved, _ := w.up.manifest("v1", config)
	user, password := w.g.Credentials("p/up/img", "pull", time.Minute)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	if a := w.get(path, "Authorization", basic); a.header.Get("Docker-Content-Digest") != moved.String() {
		t.Error("Denia's own engine got what the tag meant before")
	}
}

// A tag that was compared by a clock that was ahead is compared again.
func TestCacheDoesNotTrustAClockThatWasAhead(t *testing.T) {
	w := newCacheWorld(t)
	const path = "p/up/img/manifests/v1"
	w.pass(24 * time.Hour)
	_, config := w.up.blob(100)
	w.up.manifest("v1", config)
	w.get(path)
	w.pass(-24 * time.Hour)
	_, config = w.up.blob(101)
	moved, _ := w.up.manifest("v1", config)
	for range 2 {
		if a := w.get(path); a.header.Get("Docker-Content-Digest") != moved.String() {
			t.Error("the tag did not move")
		}
	}
	if heads := w.up.asked(http.MethodHead, "manifests"); heads != 1 {
		t.Errorf("the upstream was asked by %d HEADs, want 1: the clock is right now", heads)
	}
}

func TestCacheServesStaleTagsWhenTheUpstreamFails(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	for name, fault := range map[string]func(w *cacheWorld){
		"429": func(w *cacheWorld) { w.up.answering(http.StatusTooManyRequests) },
		"500": func(w *cacheWorld) { w.up.answering(http.StatusInternalServerError) },
		"503": func(w *cacheWorld) { w.up.answering(http.StatusServiceUnavailable) },
		"hangs up": func(w *cacheWorld) {
			w.up.misbehave(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
		},
		"is silent": func(w *cacheWorld) {
			registry.SetCachePatience(w.g, time.Second, time.Second)
			w.up.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" {
					return false
				}
				<-r.Context().Done()
				return true
			})
		},
		"sends something else": func(w *cacheWorld) {
			w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
				rw.Header().Set("Docker-Content-Digest", digest.FromString("new").String())
				rw.Header().Set("Content-Type", oci.TypeImage)
				fmt.Fprint(rw, "something else")
				return true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCacheWorld(t)
			_, config := w.up.blob(100)
			_, content := w.up.manifest("v1", config)
			const path = "p/up/img/manifests/v1"
			w.get(path)

			fault(w)
			w.pass(6 * time.Minute)
			for range 3 {
				a := w.get(path)
				if !bytes.Equal(a.body, content) {
					t.Error("something else")
				}
				if warning := a.header.Get("Warning"); !strings.HasPrefix(warning, `299 - "`+w.up.host) {
					t.Errorf("Warning: %q", warning)
				}
			}
			n := w.up.asked("", "manifests")
			if n > 2 {
				t.Errorf("the upstream was asked %d times while it was to be left alone: %v", n, w.up.requests())
			}
			w.pass(20 * time.Second)
			w.get(path)
			if w.up.asked("", "manifests") == n {
				t.Error("the upstream was not asked again after a while")
			}
			again := w.up.asked("", "manifests")
			w.pass(20 * time.Second) // less than the second back-off
			w.get(path)
			if w.up.asked("", "manifests") != again {
				t.Error("the second failure did not make the pause longer")
			}

			if name == "is silent" {
				registry.SetCachePatience(w.g, 30*time.Second, time.Second)
			}
			w.up.misbehave(nil)
			w.pass(20 * time.Minute)
			if a := w.get(path); a.header.Get("Warning") != "" {
				t.Error("a Warning though the upstream is back")
			}
		})
	}
}

// What is fetched once, by whatever name, is never fetched again by digest.
func TestCacheNeverAsksForAStoredDigest(t *testing.T) {
	w := newCacheWorld(t)
	_, config := w.up.blob(100)
	d, content := w.up.manifest("v1", config)
	for range 2 {
		if a := w.get("p/up/img/manifests/" + d.String()); !bytes.Equal(a.body, content) {
			t.Error("something else")
		}
		w.up.answering(http.StatusInternalServerError)
		w.pass(30 * time.Minute)
	}
	if asked := w.up.requests(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
	if a := w.do(http.MethodHead, "p/up/img/manifests/"+d.String()); a.status != http.StatusOK || len(a.body) != 0 {
		t.Errorf("HEAD: %d", a.status)
	}
}

func TestCacheAsksOnceForAManifest(t *testing.T) {
	w := newCacheWorld(t)
	_, config := w.up.blob(100)
	_, content := w.up.manifest("v1", config)
	gate := make(chan struct{})
	w.up.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			<-gate
		}
		return false
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if a := w.do(http.MethodGet, "p/up/img/manifests/v1"); !bytes.Equal(a.body, content) {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	w.eventually("the upstream is asked", func() bool { return w.up.asked(http.MethodGet, "manifests") > 0 })
	close(gate)
	all.Wait()
	if n := w.up.asked(http.MethodGet, "manifests"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestCacheAnswersForWhatTheUpstreamDoesNotGive(t *testing.T) {
	absent := digest.FromString("absent").String()
	for _, test := range []struct {
		name       string
		upstream   int
		header     []string
		status     int
		manifest   string
		blob       string
		retryAfter string
	}{
		{"404", 404, nil, 404, "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", ""},
		{"401", 401, nil, 403, "DENIED", "DENIED", ""},
		{"403", 403, nil, 403, "DENIED", "DENIED", ""},
		{"429", 429, nil, 429, "TOOMANYREQUESTS", "TOOMANYREQUESTS", "15"},
		{"429 with a time", 429, []string{"Retry-After", "120"}, 429, "TOOMANYREQUESTS", "TOOMANYREQUESTS", "120"},
		{"500", 500, nil, 502, "UNAVAILABLE", "UNAVAILABLE", ""},
		{"418", 418, nil, 502, "UNAVAILABLE", "UNAVAILABLE", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newCacheWorld(t)
			w.up.answering(test.upstream, test.header...)
			for path, code := range map[string]string{
				"manifests/v1": test.manifest, "manifests/" + absent: test.manifest, "blobs/" + absent: test.blob,
			} {
				a := w.do(http.MethodGet, "p/up/img/"+path)
				if a.status != test.status || a.code(t) != code || a.header.Get("Retry-After") != test.retryAfter {
					t.Errorf("%s: %d %s, Retry-After %q", path, a.status, a.body, a.header.Get("Retry-After"))
				}
				if bytes.Contains(a.body, []byte("upstream-says-this")) {
					t.Errorf("%s quotes the upstream: %s", path, a.body)
				}
				if code != "UNAVAILABLE" && code != "TOOMANYREQUESTS" && !strings.Contains(string(a.body), w.up.host) {
					t.Errorf("%s does not name the upstream: %s", path, a.body)
				}
				if a := w.do(http.MethodHead, "p/up/img/"+path); a.status != test.status {
					t.Errorf("HEAD %s: %d", path, a.status)
				}
			}
		})
	}
}

// An upstream that says for how long it does not want to be asked is not asked,
// not even for what is not stored.
func TestCacheRespectsRetryAfter(t *testing.T) {
	w := newCacheWorld(t)
	_, config := w.up.blob(100)
	w.up.manifest("v1", config)
	w.up.answering(http.StatusTooManyRequests, "Retry-After", "60")
	w.do(http.MethodGet, "p/up/img/manifests/v1")
	n := len(w.up.requests())
	w.pass(30 * time.Second)
	if a := w.do(http.MethodGet, "p/up/img/manifests/v1"); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "30" {
		t.Errorf("%d, Retry-After %q", a.status, a.header.Get("Retry-After"))
	}
	if len(w.up.requests()) != n {
		t.Error("it was asked")
	}
	w.up.misbehave(nil)
	w.pass(31 * time.Second)
	w.get("p/up/img/manifests/v1")
}

func TestCacheAnswersWhenTheUpstreamIsNotThere(t *testing.T) {
	w := newCacheWorld(t)
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	website := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(website.Close)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(silent.Close)
	for url, status := range map[string]int{dead.URL: 502, website.URL: 502, silent.URL: 504, "http://no good": 502} {
		patience := 30 * time.Second
		if url == silent.URL {
			patience = 50 * time.Millisecond
		}
		registry.SetCachePatience(w.g, patience, time.Second)
		host := strings.TrimPrefix(url, "http://")
		w.grant("p/x/img", func(g *registry.Grant) { g.Upstream.Host = host })
		w.pass(3 * time.Second) // grants are remembered
		a := w.do(http.MethodGet, "p/x/img/manifests/v1")
		if a.status != status || a.code(t) != "UNAVAILABLE" {
			t.Errorf("%s: %d %s", host, a.status, a.body)
		}
	}
}

func TestCacheRefusesManifestsThatAreNone(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.ManifestBytes = 10_000 })
	_, config := w.up.blob(100)
	d, content := w.up.manifest("v1", config)
	for name, body := range map[string]string{
		"another's":     strings.Replace(string(content), "100", "101", 1),
		"no JSON":       "hello",
		"of schema 1":   `{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[]}`,
		"bad digests":   `{"schemaVersion":2,"config":{"digest":"sha256:no"},"layers":[]}`,
		"too large":     string(content) + strings.Repeat(" ", 10_000),
		"nothing":       "",
		"only a prefix": string(content[:len(content)/2]),
	} {
		t.Run(name, func(t *testing.T) {
			w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				rw.Header().Set("Content-Type", oci.TypeImage)
				if name == "another's" {
					rw.Header().Set("Docker-Content-Digest", d.String())
				}
				fmt.Fprint(rw, body)
				return true
			})
			for _, reference := range []string{"v1", d.String()} {
				if a := w.do(http.MethodGet, "p/up/img/manifests/"+reference); a.status != http.StatusBadGateway || a.code(t) != "UNAVAILABLE" {
					t.Errorf("%s: %d %s", reference, a.status, a.body)
				}
			}
			if s := w.status(); s.Entries != 0 {
				t.Errorf("%d manifests are stored", s.Entries)
			}
		})
	}
}

func TestCacheLetsOnlySomeFetch(t *testing.T) {
	w := newCacheWorld(t)
	_, config := w.up.blob(100)
	d, content := w.up.manifest("v1", config)
	w.grant("reader/up/img", func(g *registry.Grant) {
		g.Repo = w.key("p/up/img")
		g.Upstream.Fetch = false
	})
	for _, path := range []string{"manifests/v1", "manifests/" + d.String(), "blobs/" + digest.FromBytes(config).String()} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if a := w.do(method, "reader/up/img/"+path); a.status != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, a.status)
			}
		}
	}
	if asked := w.up.requests(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
	w.get("p/up/img/manifests/v1")
	w.up.misbehave(nil)
	w.pass(20 * time.Minute)
	if a := w.get("reader/up/img/manifests/v1"); !bytes.Equal(a.body, content) {
		t.Error("something else")
	}
	if asked := w.up.requests(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
}

func TestCacheAsksForNothingButTags(t *testing.T) {
	w := newCacheWorld(t)
	for _, reference := range []string{"..", "a%2fb", "v1%3fx=y", "-x", strings.Repeat("a", 129)} {
		if a := w.do(http.MethodGet, "p/up/img/manifests/"+reference); a.status != http.StatusNotFound && a.status != http.StatusBadRequest && a.status != http.StatusMovedPermanently {
			t.Errorf("%s: %d", reference, a.status)
		}
	}
	if asked := w.up.requests(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
}

// A real client pulls images and indexes through the cache, and again when the
// upstream is down.
func TestCacheServesRealClients(t *testing.T) {
	w := newCacheWorld(t)
	index, err := random.Index(200_000, 3, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(w.up.ref(t, "img:multi"), index); err != nil {
		t.Fatal(err)
	}
	front, err := name.ParseReference(strings.TrimPrefix(w.url, "http://") + "/p/up/img:multi")
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"cold", "warm", "with the upstream down"} {
		pulled, err := remote.Index(front, remote.WithTransport(w.client.Transport), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
		if err != nil {
			t.Fatalf("%s: %v", state, err)
		}
		if n, err := readIndex(pulled); err != nil || n != 9 {
			t.Errorf("%s: %d layers, %v", state, n, err)
		}
		if state == "warm" {
			w.up.answering(http.StatusBadGateway)
			w.pass(6 * time.Minute)
		}
	}
	if s := w.status(); s.Entries != 4 || s.Hits <= s.Misses || s.BytesSaved < s.TotalBytes {
		t.Errorf("status %+v", s)
	}
}

// readIndex reads everything an index needs and returns how many layers it saw.
// The client compares all digests.
func readIndex(index v1.ImageIndex) (layers int, err error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return 0, err
	}
	for _, m := range manifest.Manifests {
		image, err := index.Image(m.Digest)
		if err != nil {
			return layers, err
		}
		if _, err := image.RawConfigFile(); err != nil {
			return layers, err
		}
		all, err := image.Layers()
		if err != nil {
			return layers, err
		}
		for _, layer := range all {
			content, err := layer.Compressed()
			if err != nil {
				return layers, err
			}
			_, err = io.Copy(io.Discard, content)
			content.Close()
			if err != nil {
				return layers, err
			}
			layers++
		}
	}
	return layers, nil
}
