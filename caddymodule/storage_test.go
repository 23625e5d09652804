package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"

	"github.com/denia-paas/denia/internal/testpg"
	"github.com/denia-paas/denia/platform"
)

// node is the certificate storage of one node.
func node(t *testing.T, database, key string) (*certificateStorage, *App) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	app := &App{DataDir: t.TempDir(), Database: database, ctx: ctx}
	if key != "" {
		if err := os.MkdirAll(filepath.Join(app.DataDir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(app.DataDir, "keys", "age.key"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := app.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return &certificateStorage{app: app}, app
}

func sealingKey(t *testing.T, app *App) string {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(app.DataDir, "keys", "age.key"))
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

func onEachDatabase(t *testing.T, test func(t *testing.T, s certmagic.Storage)) {
	t.Run("files", func(t *testing.T) { test(t, &certmagic.FileStorage{Path: t.TempDir()}) }) // what the others are measured by
	t.Run("sqlite", func(t *testing.T) {
		s, _ := node(t, "sqlite", "")
		test(t, s)
	})
	t.Run("postgres", func(t *testing.T) {
		s, _ := node(t, testpg.Start(t), "")
		test(t, s)
	})
}

// The storage does what Caddy's own, of files, does.
func TestCertificateStorage(t *testing.T) {
	onEachDatabase(t, func(t *testing.T, s certmagic.Storage) {
		ctx := t.Context()
		site := "certificates/ca/example.com"
		content := map[string][]byte{
			site + "/example.com.crt":                      []byte("certificate"),
			site + "/example.com.key":                      []byte("key"),
			"certificates/ca/wildcard_.x.com/cert.json":    []byte("{}"),
			"certificates/ca/example.com.org/cert.crt":     bytes.Repeat([]byte{0, 1, 2, 255}, 5000),
			"acme/ca/challenge_tokens/example.com.json":    []byte("token"),
			"last_clean.json":                              []byte("{}"),
			"certificates/ca/example.com-x/example.com.js": {},
		}
		for key, value := range content {
			if err := s.Store(ctx, key, []byte("written over")); err != nil {
				t.Fatal(err)
			}
			if err := s.Store(ctx, key, value); err != nil {
				t.Fatal(err)
			}
		}
		for key, want := range content {
			got, err := s.Load(ctx, key)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v, want %d", key, len(got), err, len(want))
			}
			info, err := s.Stat(ctx, key)
			if err != nil || info.Key != key || !info.IsTerminal || info.Size != int64(len(want)) || time.Since(info.Modified) > time.Minute {
				t.Errorf("%s is %+v, %v", key, info, err)
			}
			if !s.Exists(ctx, key) {
				t.Errorf("%s does not exist", key)
			}
		}
		if info, err := s.Stat(ctx, site); err != nil || info.IsTerminal || !s.Exists(ctx, site) {
			t.Errorf("a directory is %+v, %v", info, err)
		}
		list := func(path string, recursive bool) []string {
			t.Helper()
			keys, err := s.List(ctx, path, recursive)
			if err != nil {
				t.Errorf("listing %s: %v", path, err)
			}
			return slices.Sorted(slices.Values(keys))
		}
		if got, want := list("certificates/ca", false), []string{site, site + "-x", site + ".org", "certificates/ca/wildcard_.x.com"}; !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
		if got, want := list(site, false), []string{site + "/example.com.crt", site + "/example.com.key"}; !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
		if got, want := list("acme", true), []string{"acme/ca", "acme/ca/challenge_tokens", "acme/ca/challenge_tokens/example.com.json"}; !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
		for range 2 {
			if err := s.Delete(ctx, site); err != nil {
				t.Errorf("deleting: %v", err)
			}
		}
		if s.Exists(ctx, site) || !s.Exists(ctx, site+".org/cert.crt") || !s.Exists(ctx, site+"-x") {
			t.Error("a directory's deletion took too little or too much")
		}
		if _, err := s.Load(ctx, site+"/example.com.crt"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("loading what is not there: %v", err)
		}
		if _, err := s.Stat(ctx, site); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("looking at what is not there: %v", err)
		}
		if _, err := s.List(ctx, site, true); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("listing what is not there: %v", err)
		}
	})
}

func TestCertificateLock(t *testing.T) {
	onEachDatabase(t, func(t *testing.T, s certmagic.Storage) {
		ctx := t.Context()
		var inside, entered atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := s.Lock(ctx, "issue_cert_example.com"); err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n > 1 {
					t.Errorf("%d hold the lock", n)
				}
				entered.Add(1)
				inside.Add(-1)
				if err := s.Unlock(ctx, "issue_cert_example.com"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := entered.Load(); n != 4 {
			t.Errorf("%d of 4 have had the lock", n)
		}
		try := s.(certmagic.TryLocker)
		if ok, err := try.TryLock(ctx, "ari"); !ok || err != nil {
			t.Errorf("a free lock: %v, %v", ok, err)
		}
		if ok, err := try.TryLock(ctx, "ari"); ok || err != nil {
			t.Errorf("a held lock: %v, %v", ok, err)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := s.Lock(short, "ari"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting ended with %v", err)
		}
		if err := s.Unlock(ctx, "ari"); err != nil {
			t.Error(err)
		}
	})
}

// Two nodes share certificates if they share database and key; without the key
// nothing can be read.
func TestNodesShareCertificates(t *testing.T) {
	ctx, database := t.Context(), testpg.Start(t)
	first, app := node(t, database, "")
	if err := first.Store(ctx, "certificates/x/x.key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	second, _ := node(t, database, sealingKey(t, app))
	if got, err := second.Load(ctx, "certificates/x/x.key"); err != nil || string(got) != "secret" {
		t.Errorf("the second node reads %q, %v", got, err)
	}
	stranger, _ := node(t, database, "")
	if got, err := stranger.Load(ctx, "certificates/x/x.key"); err == nil {
		t.Errorf("a node with another key reads %q", got)
	}
}

// The lock of a holder that was killed goes to who waits for it, while that of
// one that lives does not, however long it takes.
func TestLockOfTheDead(t *testing.T) {
	ctx, database := t.Context(), testpg.Start(t)
	s, app := node(t, database, "")
	if err := s.Store(ctx, "x", nil); err != nil {
		t.Fatal(err)
	}
	v, err := app.vault(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hurried := func(node, process string) *certificateLocks {
		l := newCertificateLocks(v.store, node, process, slog.New(slog.DiscardHandler))
		l.poll, l.beating, l.stale = 5*time.Millisecond, 20*time.Millisecond, 300*time.Millisecond
		t.Cleanup(l.close)
		return l
	}
	take := func(l *certificateLocks, d time.Duration) bool {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		ok, err := l.take(ctx, "issue", true)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		return ok
	}
	dead, alive, other := hurried("a", "1"), hurried("b", "1"), hurried("c", "1")
	if !take(dead, time.Minute) {
		t.Fatal("a free lock was not to be had")
	}
	dead.close() // it beats no more, and releases nothing
	started := time.Now()
	if !take(alive, time.Minute) {
		t.Fatal("the lock of the dead was not to be had")
	}
	if d := time.Since(started); d < 300*time.Millisecond {
		t.Errorf("it was taken away after %s", d)
	}
	if take(other, time.Second) {
		t.Error("the lock of the living was taken away")
	}
	if err := dead.renew(ctx, "issue"); err == nil {
		t.Error("who lost the lock goes on")
	}
	alive.close()
	// The same node after a restart need not wait: nobody else has its name.
	again := hurried("b", "2")
	again.stale = time.Hour
	if !take(again, time.Minute) {
		t.Error("a node does not get back its own lock")
	}
	if err := again.release(ctx, "issue"); err != nil {
		t.Error(err)
	}
}

// A database that takes no writes can be read: handshakes go on.
func TestStorageIsReadWhileItCannotBeWritten(t *testing.T) {
	for name, err := range map[string]error{
		"full": platform.Errorf(platform.Unavailable, "disk_full", "the disk is full"),
		"busy": platform.Errorf(platform.Unavailable, "database_busy", "the database is busy"),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := node(t, "sqlite", "")
			if err := s.Store(t.Context(), "x", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if got := s.do(t.Context(), writing, func(context.Context, *vault) error { return err }); !errors.Is(got, err) {
				t.Errorf("writing: %v", got)
			}
			if _, err := s.Load(t.Context(), "x"); err != nil {
				t.Errorf("reading: %v", err)
			}
		})
	}
}

// While the database is away the storage fails fast, and comes back by itself.
func TestStorageWithoutItsDatabase(t *testing.T) {
	ctx := t.Context()
	line := testpg.NewLine(t, testpg.Start(t))
	s, _ := node(t, line.DSN, "")
	if err := s.Store(ctx, "x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	line.Cut(true)
	started := time.Now()
	for range 50 {
		if s.Exists(ctx, "x") {
			t.Error("something exists in a database that is away")
		}
		if _, err := s.Load(ctx, "x"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("loading from a database that is away: %v", err)
		}
	}
	if d := time.Since(started); d > 2*storageTimeout {
		t.Errorf("100 questions took %s", d)
	}
	line.Cut(false)
	back, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for !s.Exists(ctx, "x") {
		select {
		case <-ticker.C:
		case <-back.Done():
			t.Fatal("the storage does not come back")
		}
	}
}
