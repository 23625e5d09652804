package store_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestCertificateFiles(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		s, ctx := open(t, dsn), t.Context()
		put := func(key, content string) {
			t.Helper()
			if err := s.PutCertificateFile(ctx, key, []byte(content)); err != nil {
				t.Fatal(err)
			}
		}
		// "a" < "a.b" < "a/b" in bytes, and in no collation of text.
		for _, key := range []string{"a/one", "a/deep/er/two", "a.b/three", "A/four", "a/Ünïcode/five", "a0/six", "top"} {
			put(key, "content of "+key)
		}
		put("a/one", "written over")

		if content, err := s.CertificateContent(ctx, "a/one"); err != nil || string(content) != "written over" {
			t.Errorf("read %q, %v", content, err)
		}
		if _, err := s.CertificateContent(ctx, "a"); platform.KindOf(err) != platform.NotFound {
			t.Errorf("reading a directory: %v, want NotFound", err)
		}
		var value []byte
		if err := raw(t, dsn).QueryRowContext(ctx, `SELECT value FROM certificate_files WHERE size = $1`, len("written over")).Scan(&value); err != nil || bytes.Contains(value, []byte("written")) {
			t.Errorf("the database holds %q (%v): not sealed", value, err)
		}

		file, err := s.CertificateFile(ctx, "a/one")
		if err != nil || file.Directory || file.Size != int64(len("written over")) || file.Modified.IsZero() {
			t.Errorf("a file is %+v, %v", file, err)
		}
		if file, err := s.CertificateFile(ctx, "a/deep"); err != nil || !file.Directory {
			t.Errorf("a directory is %+v, %v", file, err)
		}
		for _, key := range []string{"a/on", "none", "a/one/below", "a/d"} {
			if _, err := s.CertificateFile(ctx, key); platform.KindOf(err) != platform.NotFound {
				t.Errorf("%s: %v, want NotFound", key, err)
			}
		}

		for _, c := range []struct {
			directory string
			recursive bool
			want      []string
		}{
			{"a", false, []string{"a/deep", "a/one", "a/Ünïcode"}},
			{"a", true, []string{"a/deep", "a/deep/er", "a/deep/er/two", "a/one", "a/Ünïcode", "a/Ünïcode/five"}},
			{"", false, []string{"A", "a", "a.b", "a0", "top"}},
			{"a/deep/er", false, []string{"a/deep/er/two"}},
		} {
			keys, err := s.CertificateKeys(ctx, c.directory, c.recursive)
			slices.Sort(keys)
			if err != nil || !slices.Equal(keys, c.want) {
				t.Errorf("below %q, recursive %v: %q, %v, want %q", c.directory, c.recursive, keys, err, c.want)
			}
		}
		if _, err := s.CertificateKeys(ctx, "none", true); platform.KindOf(err) != platform.NotFound {
			t.Errorf("listing what is not there: %v, want NotFound", err)
		}

		for _, key := range []string{"a", "none", "a"} {
			if err := s.DeleteCertificateFiles(ctx, key); err != nil {
				t.Errorf("deleting %s: %v", key, err)
			}
		}
		keys, err := s.CertificateKeys(ctx, "", true)
		slices.Sort(keys)
		if want := []string{"A", "A/four", "a.b", "a.b/three", "a0", "a0/six", "top"}; err != nil || !slices.Equal(keys, want) {
			t.Errorf("after deleting a: %q, %v, want %q", keys, err, want)
		}
	})
}

func TestCertificateLockHasOneHolder(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		var holders atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				_, taken, err := s.TakeCertificateLock(ctx, "issue", fmt.Sprint(i), store.CertificateLock{})
				if err != nil {
					t.Error(err)
				}
				if taken {
					holders.Add(1)
				}
			})
		}
		wg.Wait()
		if n := holders.Load(); n != 1 {
			t.Errorf("%d of 8 have the lock, want 1", n)
		}
	})
}

// Only a lock that is as it was when it was judged stale is taken away.
func TestCertificateLockIsTakenFromTheDead(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		take := func(holder string, stale store.CertificateLock) (store.CertificateLock, bool) {
			t.Helper()
			held, taken, err := s.TakeCertificateLock(ctx, "issue", holder, stale)
			if err != nil {
				t.Fatal(err)
			}
			return held, taken
		}
		beat := func(holder string) bool {
			t.Helper()
			held, err := s.BeatCertificateLock(ctx, "issue", holder)
			if err != nil {
				t.Fatal(err)
			}
			return held
		}
		if _, taken := take("first", store.CertificateLock{}); !taken {
			t.Fatal("a free lock was not to be had")
		}
		seen, taken := take("second", store.CertificateLock{})
		if taken || seen.Holder != "first" {
			t.Fatalf("second has it: %v, held by %+v", taken, seen)
		}
		if !beat("first") || beat("second") {
			t.Error("a beat of the holder's must count, another's must not")
		}
		later, taken := take("second", seen)
		if taken || later == seen {
			t.Errorf("taken away (%v) from a holder that lives: %+v, then %+v", taken, seen, later)
		}
		if _, taken := take("second", later); !taken {
			t.Error("a stale lock was not taken away")
		}
		if beat("first") {
			t.Error("who lost the lock still has it")
		}
		if err := s.ReleaseCertificateLock(ctx, "issue", "first"); err != nil {
			t.Error(err)
		}
		if held, taken := take("third", store.CertificateLock{}); taken || held.Holder != "second" {
			t.Errorf("who lost the lock released it: %+v", held)
		}
		if err := s.ReleaseCertificateLock(ctx, "issue", "second"); err != nil {
			t.Error(err)
		}
		if _, taken := take("third", store.CertificateLock{}); !taken {
			t.Error("a released lock was not to be had")
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, _, err := s.TakeCertificateLock(ended, "other", "x", store.CertificateLock{}); err == nil {
			t.Error("a context that has ended was ignored")
		}
	})
}
