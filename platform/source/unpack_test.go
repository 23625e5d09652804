package source_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
)

// unpack stores an archive as it is and unpacks it.
func unpack(t testing.TB, archive []byte) string {
	t.Helper()
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new", "dir")
	if err := source.Unpack(t.Context(), upload, dir, source.Limits{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestUnpackKeepsContentModeAndTime(t *testing.T) {
	old := mtime.Add(-time.Hour)
	suid := reg("bin/suid", "#!/bin/sh\n")
	suid.Mode = 0o7755
	locked := reg("locked", "secret")
	locked.Mode = 0
	sealed := folder("sealed")
	sealed.Mode, sealed.ModTime = 0o1555, old
	future := reg("future", "")
	future.ModTime = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	future.Format = tar.FormatPAX
	long := strings.Repeat("long/", 60) + "name"
	gnu := reg(long+"-gnu", "gnu")
	gnu.Format = tar.FormatGNU
	precise := reg("precise", "x")
	precise.Format = tar.FormatPAX
	dir := unpack(t, toZstd(t, pack(t, folder("./"), suid, locked, sealed, reg("sealed/inside", "in"), future, gnu, reg(long, "pax"), precise,
		link("sealed/up", "../bin"), link("dangling", "nothing"), hard("bin/other", "bin/suid"), reg("implicit/f", ""))))
	for name, want := range map[string]string{"bin/suid": "#!/bin/sh\n", "bin/other": "#!/bin/sh\n", "locked": "secret", "sealed/inside": "in", long: "pax", long + "-gnu": "gnu", "sealed/up/suid": "#!/bin/sh\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s reads %q, %v", name, b, err)
		}
	}
	for name, want := range map[string]struct {
		mode fs.FileMode
		time time.Time
	}{
		"bin/suid":     {0o755, mtime.Truncate(time.Second)},
		"locked":       {0o400, mtime.Truncate(time.Second)},
		"sealed":       {0o755 | fs.ModeDir, old.Truncate(time.Second)},
		"precise":      {0o644, mtime},
		"future":       {0o644, time.Unix(1<<32-1, 0)},
		"implicit":     {0o755 | fs.ModeDir, time.Unix(0, 0)},
		"sealed/up":    {0o777 | fs.ModeSymlink, time.Time{}},
		"dangling":     {0o777 | fs.ModeSymlink, time.Time{}},
		"implicit/f":   {0o644, mtime.Truncate(time.Second)},
		"sealed/.././": {0o700 | fs.ModeDir, time.Time{}},
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want.mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want.mode)
		}
		if !want.time.IsZero() && !info.ModTime().Equal(want.time) {
			t.Errorf("%s is of %v, want %v", name, info.ModTime().UTC(), want.time.UTC())
		}
	}
	one, err1 := os.Stat(filepath.Join(dir, "bin/suid"))
	other, err2 := os.Stat(filepath.Join(dir, "bin/other"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(one, other) {
		t.Errorf("the hard link is a file of its own, %v", err)
	}
}

func TestUnpackFillsHoles(t *testing.T) {
	archive := pax(t, reg("placeholder", "AABB"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=2", "GNU.sparse.map=10,2,100,2", "GNU.sparse.size=200", "GNU.sparse.name=sparse")
	want := make([]byte, 200)
	copy(want[10:], "AA")
	copy(want[100:], "BB")
	if b, err := os.ReadFile(filepath.Join(unpack(t, archive), "sparse")); err != nil || !bytes.Equal(b, want) {
		t.Errorf("reads %q, %v", b, err)
	}
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	dir := unpack(t, pack(t,
		reg("a", "old"), hard("b", "a"), reg("a", "new"),
		reg("target", "kept"), link("l", "target"), reg("l", "a file now"),
		reg("x", "x"), link("x", "target"),
		folder("d"), reg("d/f", "1"), folder("d/"), reg("d/f", "2")))
	for name, want := range map[string]string{"a": "new", "b": "old", "target": "kept", "l": "a file now", "x": "kept", "d/f": "2"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s reads %q, %v; want %q", name, b, err, want)
		}
	}
}

func TestEntriesThroughLinksInsideAreUnpacked(t *testing.T) {
	dir := unpack(t, pack(t, folder("real/deep"), link("short", "real/deep"), link("real/deep/up", "../.."), reg("short/f", "x"), reg("short/up/g", "y"), hard("short/h", "real/deep/up/g")))
	for name, want := range map[string]string{"real/deep/f": "x", "g": "y", "real/deep/h": "y"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s reads %q, %v", name, b, err)
		}
	}
}

func TestUnpackOnlyIntoAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	upload := filepath.Join(t.TempDir(), "upload")
	kept := filepath.Join(dir, "kept")
	if err := errors.Join(os.WriteFile(upload, pack(t, reg("f", "x")), 0o600), os.WriteFile(kept, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := source.Unpack(t.Context(), upload, dir, source.Limits{}); err == nil {
		t.Error("unpacked into a directory with something in it")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	if err := source.Unpack(t.Context(), upload, dir, source.Limits{}); err != nil {
		t.Error(err)
	}
	if err := source.Unpack(t.Context(), filepath.Join(dir, "missing"), filepath.Join(t.TempDir(), "d"), source.Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing upload: %v", err)
	}
}

func TestCancelledUnpackLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, pack(t, reg("f", "x")), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "d")
	if err := source.Unpack(ctx, upload, dir, source.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestUnpackCannotBeLuredOut has somebody else turn directories into links out
// of the root while it unpacks. It may fail; it may not follow.
func TestUnpackCannotBeLuredOut(t *testing.T) {
	var headers []*tar.Header
	for i := range 300 {
		headers = append(headers, reg(fmt.Sprintf("a/b/f%d", i), "x"), reg(fmt.Sprintf("c%d", i), "x"))
	}
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, pack(t, headers...), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.Mkdir(filepath.Join(outside, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		dir := filepath.Join(t.TempDir(), "d")
		done := make(chan struct{})
		var swapping sync.WaitGroup
		swapping.Go(func() {
			a, aside := filepath.Join(dir, "a"), filepath.Join(dir, "aside")
			for {
				select {
				case <-done:
					return
				default:
				}
				if os.Rename(a, aside) == nil {
					os.Symlink(outside, a)
					os.Remove(a)
					os.Rename(aside, a)
				}
			}
		})
		err := source.Unpack(t.Context(), upload, dir, source.Limits{})
		close(done)
		swapping.Wait()
		if kind := platform.KindOf(err); err != nil && kind != platform.Internal {
			t.Errorf("error %v", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(outside, "b"))
	if err != nil || len(entries) != 0 {
		t.Errorf("written outside: %v, %v", entries, err)
	}
}

func BenchmarkUnpack(b *testing.B) {
	var headers []*tar.Header
	for i := range 5000 {
		headers = append(headers, reg(fmt.Sprintf("node_modules/p%d/lib/deep/f%d.js", i/20, i), strings.Repeat("x", 500)))
	}
	upload := filepath.Join(b.TempDir(), "upload")
	if err := os.WriteFile(upload, toZstd(b, pack(b, headers...)), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "d")
		if err := source.Unpack(b.Context(), upload, dir, source.Limits{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}
