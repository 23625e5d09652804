package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// service is a registry on a database and a directory of its own, and the
// world it asks. Accounts are "ann" (may do everything in team/), "vera" (may
// pull there) and "bob" (may do nothing); the passwords are the names
// backwards. The public may pull from open/.
type service struct {
	t testing.TB
	*registry.Registry
	Metadata oci.Metadata
	clock    *clock

	mu      sync.Mutex
	asked   int // how often Authorize was
	barred  map[string]bool
	kept    map[digest.Digest]bool
	pushes  []registry.Push
	deleted []registry.Deletion
	failing error // of OnPush
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newService(t testing.TB, change ...func(*registry.Config)) *service {
	t.Helper()
	plain := func(b []byte) ([]byte, error) { return b, nil }
	db, err := store.Open(t.Context(), "sqlite:"+t.TempDir()+"/db", store.Options{Log: slog.New(slog.DiscardHandler), Seal: plain, Unseal: plain})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	disk, err := registry.NewDisk(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &service{
		t: t, clock: &clock{now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)},
		barred: map[string]bool{}, kept: map[digest.Digest]bool{},
	}
	key := make([]byte, 32)
	rand.Read(key)
	cfg := registry.Config{
		Storage: disk, Metadata: db.Registry(), Log: slog.New(slog.DiscardHandler), TokenKey: key,
		Authenticate: s.authenticate, Authorize: s.authorize, OnPush: s.onPush, OnDelete: s.onDelete, Reserved: func(tag string) bool { return tag == "ours" }, Keep: s.keep,
		Options: registry.Options{Now: s.clock.Now},
	}
	for _, change := range change {
		change(&cfg)
	}
	s.Metadata = cfg.Metadata
	if s.Registry, err = registry.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *service) authenticate(_ *http.Request, username, password string) (string, error) {
	accounts := map[string]string{"ann": "nna", "vera": "arev", "bob": "bob", "tired": ""}
	if username == "tired" {
		return "", fmt.Errorf("trying again: %w", &registry.Limited{RetryAfter: 1500 * time.Millisecond})
	}
	if want, ok := accounts[username]; !ok || want != password {
		return "", fmt.Errorf("account %s: %w", username, registry.ErrUnauthorized)
	}
	return "user:" + username, nil
}

func (s *service) authorize(_ context.Context, subject, name string) (registry.Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.barred[subject] {
		return registry.Grant{}, nil
	}
	g := registry.Grant{Repo: "key:" + name}
	switch project, _, _ := strings.Cut(name, "/"); {
	case subject == registry.Internal, subject == "user:ann" && (project == "team" || project == "open"):
		g.Pull, g.Push, g.Delete = true, true, true
	case subject == "user:ann":
		return registry.Grant{Missing: "there is no project " + project}, nil
	case subject == "user:vera" && project == "team", project == "open":
		g.Pull = true
	default:
		return registry.Grant{}, nil
	}
	return g, nil
}

func (s *service) onPush(_ context.Context, p registry.Push) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return s.failing
	}
	s.pushes = append(s.pushes, p)
	return nil
}

func (s *service) onDelete(_ context.Context, d registry.Deletion) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted = append(s.deleted, d)
	return nil
}

func (s *service) keep(_ context.Context, _ string, d digest.Digest) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept[d], nil
}

// answer is a response with its body.
type answer struct {
	*http.Response
	body []byte
}

// do sends a request as "ann", unless an Authorization header is given; one
// that is empty means the public.
func (s *service) do(method, path string, body io.Reader, headers ...string) answer {
	s.t.Helper()
	r := httptest.NewRequest(method, "http://registry.test:5000"+path, body)
	r.SetBasicAuth("ann", "nna")
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	resp := w.Result()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp, b}
}

func (s *service) get(path string, headers ...string) answer {
	s.t.Helper()
	return s.do(http.MethodGet, path, nil, headers...)
}

// want checks status and error code, which is empty where there is no error.
func (a answer) want(t testing.TB, status int, code string) answer {
	t.Helper()
	var got string
	if a.StatusCode >= 400 && len(a.body) > 0 {
		got = a.errors(t)[0].Code
		if ct := a.Header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("an error of type %q", ct)
		}
	}
	if a.StatusCode != status || got != code {
		t.Fatalf("got %d %s %s\nwant %d %s", a.StatusCode, got, a.body, status, code)
	}
	return a
}

type ociError struct {
	Code, Message string
	Detail        json.RawMessage
}

func (a answer) errors(t testing.TB) []ociError {
	t.Helper()
	var body struct{ Errors []ociError }
	if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) == 0 {
		t.Fatalf("%d with %q, which is no list of errors: %v", a.StatusCode, a.body, err)
	}
	return body.Errors
}

func (a answer) header(t testing.TB, name, want string) answer {
	t.Helper()
	if got := strings.Join(a.Header.Values(name), ", "); got != want {
		t.Errorf("%s: %q, want %q", name, got, want)
	}
	return a
}

func (a answer) decode(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
}

// blob makes a blob known in team/app, and returns its digest.
func (s *service) blob(content string) digest.Digest {
	s.t.Helper()
	d := digest.FromString(content)
	if err := s.Metadata.CommitBlob(s.t.Context(), "key:team/app", d, int64(len(content)), s.clock.Now().Add(24*time.Hour)); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// image writes a manifest of team/app whose blobs are known there.
func (s *service) image(more ...string) []byte {
	s.t.Helper()
	return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}]%s}`,
		oci.TypeImage, s.blob("{}"), s.blob("layer"), strings.Join(more, "")))
}

// push puts a manifest into team/app and returns its digest.
func (s *service) push(reference string, content []byte) digest.Digest {
	s.t.Helper()
	a := s.put(reference, content).want(s.t, http.StatusCreated, "")
	return digest.Digest(a.Header.Get("Docker-Content-Digest"))
}

func (s *service) put(reference string, content []byte, headers ...string) answer {
	s.t.Helper()
	return s.do(http.MethodPut, "/v2/team/app/manifests/"+reference, bytes.NewReader(content), headers...)
}
