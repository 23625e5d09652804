package secret_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"github.com/denia-paas/denia/platform/secret"
)

func mustKey(t *testing.T, path string) *secret.Key {
	t.Helper()
	key, err := secret.LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKey_MadeOncePrivateAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "node.key")
	first := mustKey(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("the key file has mode %04o, want 0600", got)
	}
	sealed, err := first.Seal([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	second := mustKey(t, path)
	if first.String() != second.String() {
		t.Errorf("a second start got another key")
	}
	plain, err := second.Unseal(sealed)
	if err != nil || string(plain) != "hunter2" {
		t.Errorf("after a restart Unseal gave %q, %v", plain, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v (%v), want the key and nothing else", entries, err)
	}
}

func TestKey_ConcurrentStartsAgree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	names := make([]string, 8)
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() {
			key, err := secret.LoadOrCreate(path)
			if err != nil {
				t.Error(err)
				return
			}
			names[i] = key.String()
		})
	}
	wg.Wait()
	for _, name := range names {
		if name != names[0] {
			t.Fatalf("two starts got different keys: %v", names)
		}
	}
}

func TestKey_RefusesBadFiles(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		says    string
	}{
		"readable by others": {identity.String(), 0o644, "chmod 600"},
		"empty":              {"", 0o600, "no age key file"},
		"not a key":          {"AGE-SECRET-KEY-1BROKEN\n", 0o600, "no age key file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.key")
			if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
				t.Fatal(err)
			}
			_, err := secret.LoadOrCreate(path)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "SECRET-KEY-1") {
				t.Errorf("the error shows the key: %v", err)
			}
			if got, _ := os.ReadFile(path); string(got) != tc.content {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
}

func TestKey_SealsAndUnseals(t *testing.T) {
	dir := t.TempDir()
	key, other := mustKey(t, filepath.Join(dir, "a")), mustKey(t, filepath.Join(dir, "b"))
	for _, plain := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("long "), 50_000)} {
		sealed, err := key.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > 1 && bytes.Contains(sealed, plain[:5]) {
			t.Error("the sealed bytes show the plain ones")
		}
		got, err := key.Unseal(sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d, %v", len(plain), len(got), err)
		}
		if _, err := other.Unseal(sealed); err == nil {
			t.Error("another key opened the seal")
		}
		again, err := key.Seal(plain)
		if err != nil || bytes.Equal(again, sealed) {
			t.Errorf("sealing twice gave the same bytes (%v): equal secrets could be told", err)
		}
	}
}

func TestKey_NoticesTampering(t *testing.T) {
	key := mustKey(t, filepath.Join(t.TempDir(), "key"))
	plain := []byte("the whole truth")
	sealed, err := key.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if got, err := key.Unseal(changed); err == nil {
			t.Fatalf("a flipped bit in byte %d of %d went unnoticed: %q", i, len(sealed), got)
		}
		if got, err := key.Unseal(sealed[:i]); err == nil {
			t.Fatalf("cutting to %d of %d bytes went unnoticed: %q", i, len(sealed), got)
		}
	}
}

func TestKey_CanBeReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	old := mustKey(t, path)
	sealed, err := old.Seal([]byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte(fresh.String()+"\n"), was...), 0o600); err != nil {
		t.Fatal(err)
	}
	key := mustKey(t, path)
	if key.String() != fresh.Recipient().String() {
		t.Error("the first identity does not seal")
	}
	if got, err := key.Unseal(sealed); err != nil || string(got) != "kept" {
		t.Errorf("what the old key sealed reads %q, %v", got, err)
	}
}

func TestKey_UnwritableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secret.LoadOrCreate(filepath.Join(file, "key")); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want an error that the directory cannot be used", err)
	}
}
