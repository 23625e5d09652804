package registry_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// redirect has the upstream answer requests for blobs with the address of
// another host.
func (u *faultyUpstream) redirect(to string) {
	u.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(rw, r, to, http.StatusTemporaryRedirect)
		return true
	})
}

// An upstream on a private address cannot have Denia ask its own neighbours.
func TestCacheRedirectsReachNothingPrivate(t *testing.T) {
	w := newCacheWorld(t)
	d, _ := w.up.blob(300)
	asked := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(inside.Close)
	w.up.redirect(inside.URL)
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		if a := w.do(method, "p/up/img/blobs/"+d.String()); a.status != http.StatusBadGateway || asked {
			t.Errorf("%s: %d, asked: %t", method, a.status, asked)
		}
	}
}

// What another host answers is not read through Denia, unless it is the blob.
func TestCacheHoldsBackWhatIsRedirected(t *testing.T) {
	w := newCacheWorld(t)
	registry.AllowCacheRedirects(w.g)
	d, content := w.up.blob(256)
	path := "p/up/img/blobs/" + d.String()
	secret := bytes.Repeat([]byte("secret! "), 32)
	cdn := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wrong" {
			_, _ = rw.Write(secret[:200])
			_ = http.NewResponseController(rw).Flush()
			<-time.After(50 * time.Millisecond) // for it to arrive, if that is wrong
			_, _ = rw.Write(secret[200:])
			return
		}
		_, _ = rw.Write(content)
	}))
	t.Cleanup(cdn.Close)
	w.up.redirect(cdn.URL + "/wrong")
	for _, header := range [][]string{nil, {"Range", "bytes=0-99"}} {
		a := w.do(http.MethodGet, path, header...)
		if a.status != http.StatusBadGateway || bytes.Contains(a.body, secret[:6]) {
			t.Errorf("%v: %d %v %q", header, a.status, a.err, a.body)
		}
	}
	w.up.redirect(cdn.URL + "/right")
	if a := w.get(path); !bytes.Equal(a.body, content) {
		t.Error("the blob differs")
	}
	if s := w.status(); s.Misses != 1 || s.Hits != 0 {
		t.Errorf("status %+v", s)
	}
}

// store has content in a repository as if it had been pushed or fetched there.
func (w *cacheWorld) store(repo string, content []byte) digest.Digest {
	w.t.Helper()
	d := digest.FromBytes(content)
	up, err := w.storage.Create(w.t.Context(), "an-upload")
	if err != nil {
		w.t.Fatal(err)
	}
	_, _ = up.Write(content)
	up.Close()
	if err := w.storage.Commit(w.t.Context(), "an-upload", d); err != nil {
		w.t.Fatal(err)
	}
	if err := w.metadata.CommitBlob(w.t.Context(), repo, d, int64(len(content)), time.Now().Add(24*time.Hour)); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// vouching says to have every blob, and gives none.
func (u *faultyUpstream) vouching() {
	u.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			rw.WriteHeader(http.StatusNotFound)
		}
		return strings.Contains(r.URL.Path, "/blobs/")
	})
}

// A registry of one's own proves nothing about what others have pushed, or
// fetched from elsewhere.
func TestCacheTakesNoUpstreamsWordForTheContentOfOthers(t *testing.T) {
	for _, repo := range []string{"svc:1", "svc:1/up_5000/img", "cache:v/registry.example.com/img", "cache:v", "cache:v/registry.example.com"} {
		t.Run(strings.ReplaceAll(repo, "/", " "), func(t *testing.T) {
			w := newCacheWorld(t)
			_, content := w.up.blob(5000) // which the upstream has, too
			d := w.store(repo, content)
			path := "p/up/img/blobs/" + d.String()
			w.up.vouching()
			if a := w.do(http.MethodGet, path); a.status != http.StatusNotFound {
				t.Errorf("%d, %d bytes", a.status, len(a.body))
			}
			if _, found, _ := w.metadata.Blob(t.Context(), w.key("p/up/img"), d); found {
				t.Error("it is linked")
			}
			// Who has the bytes may have them.
			w.up.misbehave(nil)
			if a := w.get(path); !bytes.Equal(a.body, content) {
				t.Error("something else")
			}
			if w.up.asked(http.MethodGet, "blobs") != 1 {
				t.Errorf("asked %v", w.up.requests())
			}
			w.eventually("it is linked, and stored once", func() bool {
				_, found, _ := w.metadata.Blob(t.Context(), w.key("p/up/img"), d)
				return found && len(w.left()) == 1
			})
		})
	}
}

func TestCacheTakesNoUpstreamsWordForTheDownloadsOfOthers(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(50_000)
	open := w.up.gate(d, content, 40_000)
	first := w.open(t.Context(), http.MethodGet, "p/up/img/blobs/"+d.String())
	defer first.Body.Close()

	own := newFaultyUpstream(t)
	own.vouching()
	w.grant("q/own/img", func(g *registry.Grant) { g.Upstream.Host = own.host })
	if a := w.do(http.MethodGet, "q/own/img/blobs/"+d.String()); a.status != http.StatusNotFound {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
	open()
	body := new(bytes.Buffer)
	if _, err := body.ReadFrom(first.Body); err != nil || !bytes.Equal(body.Bytes(), content) {
		t.Errorf("the first download: %v, %d bytes", err, body.Len())
	}
}

func TestCacheLogsAndAnswersWithoutSecrets(t *testing.T) {
	w := newCacheWorld(t)
	registry.AllowCacheRedirects(w.g)
	w.grant("p/up/img", func(g *registry.Grant) { g.Upstream.Username, g.Upstream.Password = "me", "my-password" })
	d, _ := w.up.blob(2000)
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(rw, r, dead.URL+"/blob?signature=signed-for-me", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String())
	if a.status != http.StatusBadGateway || a.code(t) != "UNAVAILABLE" {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, secret := range []string{"signed-for-me", "my-password"} {
		if bytes.Contains(a.body, []byte(secret)) {
			t.Errorf("the answer holds %q: %s", secret, a.body)
		}
		if strings.Contains(w.logged.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if !strings.Contains(w.logged.String(), "connection refused") {
		t.Errorf("the log does not tell why:\n%s", w.logged)
	}
}
