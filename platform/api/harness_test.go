package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/leak"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
)

// TestMain fails the run when a goroutine is left behind.
func TestMain(m *testing.M) { leak.Main(m) }

const adminSecret = "the admin token of the test"

// env is an API on a real store, with a plane that keeps rows but runs nothing.
type env struct {
	t     testing.TB
	ctx   context.Context
	store *store.Store
	logs  *telemetry.Logs
	plane *fakePlane
	hub   *fakeRegistry
	api   *api.API
	dir   string
	log   *lockedBuffer
	ip    string // of the clients
}

func newEnv(t testing.TB, change ...func(*api.Options)) *env {
	t.Helper()
	e := &env{t: t, ctx: context.Background(), dir: t.TempDir(), log: &lockedBuffer{}, ip: "192.0.2.1"}
	logger := slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	plain := func(b []byte) ([]byte, error) { return b, nil }
	var err error
	if e.store, err = store.Open(e.ctx, "sqlite:"+filepath.Join(e.dir, "denia.db"), store.Options{Log: logger, Seal: plain, Unseal: plain}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.store.Close() })
	if e.logs, err = telemetry.OpenLogs(filepath.Join(e.dir, "logs"), telemetry.LogOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.logs.Close() })
	uploads := filepath.Join(e.dir, "uploads")
	if err := os.Mkdir(uploads, 0o700); err != nil {
		t.Fatal(err)
	}
	e.plane = newFakePlane(e.store)
	e.hub = &fakeRegistry{}
	o := api.Options{
		Store: e.store, Plane: e.plane, Registry: e.hub, Logs: e.logs, Log: logger, UploadsDir: uploads, DataDir: e.dir,
		AdminToken: adminSecret, BaseDomain: "apps.test", ControlDomain: func() string { return "denia.test" }, Version: "v1.2.3",
		Client: func(r *http.Request) (string, bool) {
			if ip := r.Header.Get("Test-Ip"); ip != "" {
				return ip, true
			}
			return e.ip, true
		},
	}
	for _, f := range change {
		f(&o)
	}
	if e.api, err = api.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.api.Close)
	return e
}

// serve puts the API behind a real listener.
func (e *env) serve() *httptest.Server {
	server := httptest.NewServer(e.api)
	e.t.Cleanup(server.Close)
	return server
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// must fails the test on an error, and gives the value on.
func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// cheapHash is the argon2id hash of goodPassword with parameters that cost
// nothing.
const (
	goodPassword = "correct horse battery"
	cheapHash    = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$uxWTSOnvlCJwDdrvGjf7x3xvw771mTCJHUN5gdfCrTw"
)

func (e *env) user(name string, super bool) platform.User {
	e.t.Helper()
	u, err := e.store.CreateUser(e.ctx, platform.User{Name: name, PasswordHash: cheapHash, SuperAdmin: super})
	return must(e.t, u, err)
}

func (e *env) member(p platform.Project, name string, role platform.Role) platform.User {
	e.t.Helper()
	u := e.user(name, false)
	if _, _, err := e.store.PutMember(e.ctx, p.ID, u.ID, role); err != nil {
		e.t.Fatal(err)
	}
	return u
}

// token gives the user a fresh session, or with change whatever token.
func (e *env) token(u platform.User, change ...func(*platform.Token)) string {
	e.t.Helper()
	expires := time.Now().Add(24 * time.Hour)
	token := platform.Token{UserID: u.ID, Kind: platform.TokenSession, CreatedAt: time.Now(), ExpiresAt: &expires}
	for _, f := range change {
		f(&token)
	}
	prefix := platform.SessionPrefix
	if token.Kind == platform.TokenAPI {
		prefix = platform.APIPrefix
	}
	secret := prefix + string(store.NewID())
	sum := sha256.Sum256([]byte(secret))
	token.Hash = sum[:]
	if _, err := e.store.CreateToken(e.ctx, token); err != nil {
		e.t.Fatal(err)
	}
	return secret
}

func (e *env) project(name string) platform.Project {
	e.t.Helper()
	p, err := e.store.CreateProject(e.ctx, platform.ProjectSpec{Name: name})
	return must(e.t, p, err)
}

func (e *env) service(p platform.Project, name string) platform.Service {
	e.t.Helper()
	spec := platform.ServiceSpec{
		Name: name, Source: &platform.Source{Type: platform.SourceExternalImage, Image: "registry.test/app:1"},
		RunSpec: platform.RunSpec{Env: platform.Env{"COLOR": "green"}, SecretEnv: platform.Env{"KEY": "sesame-opens"}},
	}
	s, err := e.store.CreateService(e.ctx, p.ID, spec.WithDefaults())
	return must(e.t, s, err)
}

func (e *env) deployment(s platform.Service) platform.Deployment {
	e.t.Helper()
	d, err := e.plane.Deploy(e.ctx, platform.DeployRequest{ServiceID: s.ID, Trigger: platform.TriggerAPI, Actor: "tester"})
	return must(e.t, d, err)
}

// super is the token of a super-admin.
func (e *env) super() string {
	e.t.Helper()
	return e.token(e.user("root-"+strings.ToLower(string(store.NewID()))[24:], true))
}

// answer is a reply, read whole.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

// field reads one value out of a JSON reply: field("errors", 0, "code").
func (a answer) field(path ...any) any {
	a.t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		a.t.Fatalf("status %d, not JSON: %s", a.status, a.body)
	}
	for _, step := range path {
		switch key := step.(type) {
		case string:
			m, ok := v.(map[string]any)
			if !ok {
				a.t.Fatalf("no %q in %s", key, a.body)
			}
			v = m[key]
		case int:
			l, ok := v.([]any)
			if !ok || key >= len(l) {
				a.t.Fatalf("no [%d] in %s", key, a.body)
			}
			v = l[key]
		}
	}
	return v
}

func (a answer) str(path ...any) string {
	a.t.Helper()
	s, _ := a.field(path...).(string)
	return s
}

// want fails the test on another status, or another problem code if one is
// given.
func (a answer) want(status int, code ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if len(code) > 0 && a.str("code") != code[0] {
		a.t.Fatalf("code %q, want %q: %s", a.str("code"), code[0], a.body)
	}
	return a
}

// do sends a request. body is a JSON text, an io.Reader or nil; headers come in
// pairs.
func (e *env) do(token, method, path string, body any, headers ...string) answer {
	e.t.Helper()
	rec := httptest.NewRecorder()
	e.api.ServeHTTP(rec, request(token, method, path, body, headers...))
	return answer{e.t, rec.Code, rec.Header(), rec.Body.Bytes()}
}

func request(token, method, path string, body any, headers ...string) *http.Request {
	var reader io.Reader
	switch b := body.(type) {
	case string:
		reader = strings.NewReader(b)
	case []byte:
		reader = bytes.NewReader(b)
	case io.Reader:
		reader = b
	}
	r := httptest.NewRequest(method, path, reader)
	r.Host = "denia.test:8080"
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if reader != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}
