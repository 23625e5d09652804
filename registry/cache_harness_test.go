package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	upstreamregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// cacheWorld is a registry with a cache, and the registry it caches.
type cacheWorld struct {
	t        *testing.T
	g        *registry.Registry
	url      string
	storage  registry.Storage
	metadata oci.Metadata
	up       *faultyUpstream
	client   *http.Client
	logged   *lockedBuffer

	mu     sync.Mutex
	now    time.Time
	grants map[string]registry.Grant
	kept   map[digest.Digest]bool
}

func newCacheWorld(t *testing.T, change ...func(*registry.Config)) *cacheWorld {
	t.Helper()
	t.Parallel()
	w := &cacheWorld{
		t: t, now: time.Now().Truncate(time.Millisecond), logged: &lockedBuffer{},
		grants: map[string]registry.Grant{}, kept: map[digest.Digest]bool{},
	}
	w.up = newFaultyUpstream(t)

	plain := func(b []byte) ([]byte, error) { return b, nil }
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "denia.db"),
		store.Options{Log: slog.New(slog.DiscardHandler), Seal: plain, Unseal: plain})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.metadata = s.Registry()
	disk, err := registry.NewDisk(filepath.Join(t.TempDir(), "registry"))
	if err != nil {
		t.Fatal(err)
	}
	w.storage = disk

	cfg := registry.Config{
		Storage:  w.storage,
		Metadata: w.metadata,
		Log:      slog.New(slog.NewTextHandler(w.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Authenticate: func(*http.Request, string, string) (string, error) {
			return "", registry.ErrUnauthorized
		},
		Authorize: func(_ context.Context, _, name string) (registry.Grant, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.grants[name], nil
		},
		OnPush:   func(context.Context, registry.Push) error { return nil },
		OnDelete: func(context.Context, registry.Deletion) error { return nil },
		Reserved: func(string) bool { return false },
		Keep: func(_ context.Context, _ string, d digest.Digest) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.kept[d], nil
		},
		TokenKey: bytes.Repeat([]byte{7}, 32),
		Options: registry.Options{Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		}},
	}
	for _, c := range change {
		c(&cfg)
	}
	w.storage, w.metadata = cfg.Storage, cfg.Metadata
	if w.g, err = registry.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(w.g)
	w.url = front.URL
	w.client = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		// A request that still waits for the upstream is broken off by Close.
		if err := w.g.Close(); err != nil {
			t.Error(err)
		}
		front.Close()
	})
	w.grant("p/up/img", func(*registry.Grant) {})
	return w
}

// key is the key of a repository called "<project>/up/<repository>".
func (w *cacheWorld) key(name string) string {
	return "cache:" + strings.Replace(name, "/up/", "/"+strings.Replace(w.up.host, ":", "_", 1)+"/", 1)
}

// grant lets everybody pull from the upstream's "img" under a name.
func (w *cacheWorld) grant(name string, change func(*registry.Grant)) {
	g := registry.Grant{
		Repo: w.key(name), Pull: true,
		Upstream: &registry.Upstream{Host: w.up.host, Repository: "img", Fetch: true},
	}
	change(&g)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grants[name] = g
}

func (w *cacheWorld) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

type cacheAnswer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading it
}

// code is the OCI error code of the answer.
func (a cacheAnswer) code(t *testing.T) string {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) != 1 {
		t.Fatalf("status %d with body %q is no OCI error", a.status, a.body)
	}
	if body.Errors[0].Message == "" {
		t.Errorf("%s has no message", body.Errors[0].Code)
	}
	return body.Errors[0].Code
}

func (w *cacheWorld) send(ctx context.Context, method, path string, header ...string) (*http.Response, error) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, w.url+"/v2/"+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return w.client.Do(req)
}

// open sends a request whose body the test reads by and by.
func (w *cacheWorld) open(ctx context.Context, method, path string, header ...string) *http.Response {
	w.t.Helper()
	resp, err := w.send(ctx, method, path, header...)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// do reads the whole answer. A connection that was cut, sooner or later, is its
// err.
func (w *cacheWorld) do(method, path string, header ...string) cacheAnswer {
	w.t.Helper()
	resp, err := w.send(w.t.Context(), method, path, header...)
	if err != nil {
		return cacheAnswer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return cacheAnswer{resp.StatusCode, resp.Header, body, err}
}

// get asks for something that is expected to come.
func (w *cacheWorld) get(path string, header ...string) cacheAnswer {
	w.t.Helper()
	a := w.do(http.MethodGet, path, header...)
	if a.err != nil || a.status/100 != 2 {
		w.t.Fatalf("GET %s: status %d, body error %v: %.300s", path, a.status, a.err, a.body)
	}
	return a
}

// left lists what is stored: content and uploads.
func (w *cacheWorld) left() (left []string) {
	w.t.Helper()
	if err := w.storage.Walk(context.Background(), func(d digest.Digest) error {
		left = append(left, d.String())
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	uploads, err := w.storage.Uploads(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, u := range uploads {
		left = append(left, u.ID)
	}
	return left
}

func (w *cacheWorld) status() registry.CacheStatus {
	w.t.Helper()
	s, err := w.g.CacheStatus(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// eventually waits for what happens in the background of the registry.
func (w *cacheWorld) eventually(what string, is func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			w.t.Fatalf("it never came to this: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// faultyUpstream is another registry, which can be made to misbehave.
type faultyUpstream struct {
	t    *testing.T
	host string
	real http.Handler

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request) bool
	log   []string
	auth  []string
}

func newFaultyUpstream(t *testing.T) *faultyUpstream {
	u := &faultyUpstream{t: t, real: upstreamregistry.New(upstreamregistry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	u.host = strings.TrimPrefix(server.URL, "http://")
	return u
}

func (u *faultyUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	fault := u.fault
	u.log = append(u.log, r.Method+" "+r.URL.Path)
	u.auth = append(u.auth, r.Header.Get("Authorization"))
	u.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	u.real.ServeHTTP(w, r)
}

// misbehave has f answer requests; false leaves one to the real registry. It
// also forgets what was asked so far.
func (u *faultyUpstream) misbehave(f func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault, u.log, u.auth = f, nil, nil
}

// answering misbehaves with one status for everything but the handshake.
func (u *faultyUpstream) answering(status int, header ...string) {
	u.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"upstream-says-this"}]}`)
		return true
	})
}

// asked counts the requests for manifests or blobs, by one method or, if that
// is empty, by all.
func (u *faultyUpstream) asked(method, kind string) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, line := range u.log {
		if used, _, _ := strings.Cut(line, " "); (method == "" || method == used) && strings.Contains(line, "/"+kind+"/") {
			n++
		}
	}
	return n
}

func (u *faultyUpstream) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.log)
}

// blob makes the upstream have a blob of n random bytes.
func (u *faultyUpstream) blob(n int) (digest.Digest, []byte) {
	u.t.Helper()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	content := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(content)
	d := digest.FromBytes(content)
	u.direct(http.MethodPost, "/v2/img/blobs/uploads/?digest="+d.String(), "application/octet-stream", content)
	return d, content
}

// manifest makes the upstream have an image of some blobs under a tag.
func (u *faultyUpstream) manifest(tag string, blobs ...[]byte) (digest.Digest, []byte) {
	u.t.Helper()
	type descriptor struct {
		MediaType string        `json:"mediaType"`
		Digest    digest.Digest `json:"digest"`
		Size      int           `json:"size"`
	}
	of := func(mediaType string, content []byte) descriptor {
		return descriptor{mediaType, digest.FromBytes(content), len(content)}
	}
	layers := []descriptor{}
	for _, b := range blobs[1:] {
		layers = append(layers, of("application/vnd.oci.image.layer.v1.tar", b))
	}
	content, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.TypeImage,
		"config": of("application/vnd.oci.image.config.v1+json", blobs[0]), "layers": layers,
	})
	if err != nil {
		u.t.Fatal(err)
	}
	u.direct(http.MethodPut, "/v2/img/manifests/"+tag, oci.TypeImage, content)
	return digest.FromBytes(content), content
}

func (u *faultyUpstream) direct(method, path, contentType string, content []byte) {
	u.t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(content))
	r.Header.Set("Content-Type", contentType)
	answer := httptest.NewRecorder()
	u.real.ServeHTTP(answer, r)
	if answer.Code != http.StatusCreated {
		u.t.Fatalf("%s %s: %d %s", method, path, answer.Code, answer.Body)
	}
}

// ref names something at the upstream for a real client.
func (u *faultyUpstream) ref(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(u.host + "/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
