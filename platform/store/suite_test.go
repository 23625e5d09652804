package store_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"database/sql"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", to look behind the Store

	"github.com/denia-paas/denia/internal/testpg"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(rolloutEnv); dsn != "" {
		rolloutForEver(dsn)
	}
	if dsn := os.Getenv(pushEnv); dsn != "" {
		pushForEver(dsn)
	}
	os.Exit(m.Run())
}

// onEach runs a test on a fresh database of each kind.
func onEach(t *testing.T, test func(t *testing.T, s *store.Store)) {
	onEachDSN(t, func(t *testing.T, dsn string) { test(t, open(t, dsn)) })
}

func onEachDSN(t *testing.T, test func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) {
		checkGoroutines(t)
		test(t, "sqlite:"+filepath.Join(t.TempDir(), "denia.db"))
	})
	t.Run("postgres", func(t *testing.T) {
		checkGoroutines(t)
		test(t, testpg.Start(t))
	})
}

func open(t testing.TB, dsn string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dsn, options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func options() store.Options {
	return store.Options{Log: slog.New(slog.DiscardHandler), Seal: seal, Unseal: unseal}
}

// raw opens the database behind the Store's back.
func raw(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	driver, name := "pgx", dsn
	if path, found := strings.CutPrefix(dsn, "sqlite:"); found {
		driver, name = "sqlite", path
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func execute(t testing.TB, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

var sealer = func() cipher.AEAD {
	block, err := aes.NewCipher([]byte("sixteen byte key"))
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return gcm
}()

func seal(plain []byte) ([]byte, error)    { return sealer.Seal(nil, nil, plain, nil), nil }
func unseal(sealed []byte) ([]byte, error) { return sealer.Open(nil, nil, sealed, nil) }

// checkGoroutines fails the test when its end leaves goroutines of a database
// that were not there before.
func checkGoroutines(t *testing.T) {
	before := databaseGoroutines()
	t.Cleanup(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
			left := databaseGoroutines()
			maps.DeleteFunc(left, func(id, _ string) bool { return before[id] != "" })
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("goroutines left behind:\n%s", strings.Join(slices.Collect(maps.Values(left)), "\n\n"))
				return
			}
		}
	})
}

// databaseGoroutines returns the stacks of other goroutines by their names.
func databaseGoroutines() map[string]string {
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	found := map[string]string{}
	for _, stack := range stacks[1:] { // the first is this goroutine
		name, _, _ := strings.Cut(stack, " [")
		for _, pkg := range []string{"platform/store.", "database/sql.", "jackc/pgx", "modernc.org/sqlite"} {
			if strings.Contains(stack, pkg) {
				found[name] = stack
			}
		}
	}
	return found
}

// got and pair carry a method's results to a check of its error.
type got[T any] struct {
	value T
	err   error
}

func get[T any](value T, err error) got[T] { return got[T]{value, err} }

func (g got[T]) or(t testing.TB) T {
	t.Helper()
	ok(t, g.err)
	return g.value
}

type pair[A, B any] struct {
	a   A
	b   B
	err error
}

func get2[A, B any](a A, b B, err error) pair[A, B] { return pair[A, B]{a, b, err} }

func (p pair[A, B]) or(t testing.TB) (A, B) {
	t.Helper()
	ok(t, p.err)
	return p.a, p.b
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fails(t testing.TB, err error, kind platform.Kind, code string) {
	t.Helper()
	if err == nil || platform.KindOf(err) != kind || platform.CodeOf(err) != code {
		t.Fatalf("got error %v (%s), want code %s", err, platform.CodeOf(err), code)
	}
}

func notFound(t testing.TB, err error) {
	t.Helper()
	fails(t, err, platform.NotFound, "not_found")
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s is\n%+v\nwant\n%+v", what, got, want)
	}
}

// together runs n copies of f at the same time and returns their errors.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start, done := make(chan struct{}), make(chan struct{})
	for i := range n {
		go func() {
			<-start
			errs[i] = f(i)
			done <- struct{}{}
		}()
	}
	close(start)
	for range n {
		<-done
	}
	return errs
}

// oneWins checks that of concurrent calls one succeeded and the others failed
// as they should.
func oneWins(t testing.TB, errs []error, kind platform.Kind, code string) {
	t.Helper()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			fails(t, err, kind, code)
		}
	}
	equal(t, "number of winners", won, 1)
}

func names[T any](list []T, name func(T) string) string {
	all := make([]string, len(list))
	for i, item := range list {
		all[i] = name(item)
	}
	return strings.Join(all, " ")
}

// fixtures

var background = context.Background()

func project(t testing.TB, s *store.Store, name string) platform.Project {
	t.Helper()
	return get(s.CreateProject(background, platform.ProjectSpec{Name: name})).or(t)
}

func defaultProject(t testing.TB, s *store.Store) platform.Project {
	t.Helper()
	return get(s.ProjectByName(background, platform.DefaultProject)).or(t)
}

func user(t testing.TB, s *store.Store, name string) platform.User {
	t.Helper()
	return get(s.CreateUser(background, platform.User{Name: name, PasswordHash: "$argon2id$" + name})).or(t)
}

func service(t testing.TB, s *store.Store, project platform.ID, name string) platform.Service {
	t.Helper()
	return get(s.CreateService(background, project, platform.ServiceSpec{Name: name})).or(t)
}

func anyService(t testing.TB, s *store.Store) platform.Service {
	t.Helper()
	return service(t, s, defaultProject(t, s).ID, "web")
}

func deploy(t testing.TB, s *store.Store, service platform.ID) platform.Deployment {
	t.Helper()
	d, _ := get2(s.CreateDeployment(background, pending(service))).or(t)
	return d
}

func pending(service platform.ID) platform.Deployment {
	return platform.Deployment{
		ServiceID: service, Status: platform.Pending, Trigger: platform.TriggerAPI, Actor: "ann",
		Source: platform.Source{Type: platform.SourceExternalImage, Image: "example/web:1"},
		Config: &platform.ReleaseConfig{RunSpec: platform.RunSpec{Port: 8080}},
	}
}

// build takes a fresh deployment of the service to starting.
func build(t testing.TB, s *store.Store, service platform.ID) platform.Deployment {
	t.Helper()
	d := deploy(t, s, service)
	get(s.Advance(background, d.ID, platform.Pending, platform.Building, nil)).or(t)
	return get(s.Advance(background, d.ID, platform.Building, platform.Starting, func(d *platform.Deployment) {
		d.Artifact = &platform.Artifact{Image: "denia/default/web:1", Digest: "sha256:" + string(d.ID)}
	})).or(t)
}

// release takes a fresh deployment of the service to healthy.
func release(t testing.TB, s *store.Store, service platform.ID) platform.Deployment {
	t.Helper()
	d, _ := get2(s.Promote(background, build(t, s, service).ID)).or(t)
	return d
}

func upload(t testing.TB, s *store.Store, service platform.ID, expires time.Time) platform.Upload {
	t.Helper()
	u := platform.Upload{ID: store.NewID(), ServiceID: service, SizeBytes: 12, Digest: "sha256:aa", ExpiresAt: expires}
	ok(t, s.CreateUpload(background, u))
	return u
}

func hash(text string) []byte { return append(bytes.Repeat([]byte{0xff}, 20), text...) }

var errTest = errors.New("test")
