package source_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
)

// FuzzArchive holds that Receive and Unpack agree about any bytes, that
// neither touches anything outside, and that every link in what was unpacked
// stays inside.
func FuzzArchive(f *testing.F) {
	seeds := [][]byte{
		nil,
		pack(f, reg("Dockerfile", "FROM scratch\n")),
		pack(f, folder("a"), reg("a/f", "x"), link("a/l", "../a"), hard("h", "a/f"), reg("a/l/g", "y")),
		pack(f, link("a", "."), link("a/b", "..")),
		pack(f, link("l", "p/q/.."), link("p", "."), link("q", "p"), reg("f", "")),
		pack(f, reg("a", "1"), link("a", "b"), reg("b", "2"), reg("a", "3")),
		pack(f, reg("../x", "")),
		pax(f, reg("innocent", "x"), "path=a/b/c", "size=1"),
		pax(f, reg("p", "AABB"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=2", "GNU.sparse.map=10,2,100,2", "GNU.sparse.size=200", "GNU.sparse.name=s"),
	}
	for _, seed := range seeds {
		f.Add(seed)
		f.Add(toZstd(f, seed))
		f.Add(toGzip(f, seed))
	}
	limits := source.Limits{PackedBytes: 1 << 20, UnpackedBytes: 4 << 20, Entries: 200}
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		uploads, outside, dir := filepath.Join(outer, "uploads"), filepath.Join(outer, "outside"), filepath.Join(outer, "dir")
		for _, d := range []string{uploads, outside} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		upload := filepath.Join(uploads, "upload")
		var received error
		for _, media := range []string{mediaTar, mediaZstd, mediaGzip} {
			_, err := source.Receive(t.Context(), bytes.NewReader(archive), media, upload, limits)
			if received = err; err == nil || !strings.Contains(err.Error(), "looks like") {
				break
			}
		}
		if kind := platform.KindOf(received); received != nil && kind != platform.Invalid && kind != platform.TooLarge {
			t.Fatalf("Receive: %v", received)
		}
		entries, err := os.ReadDir(uploads)
		if err != nil || (received == nil) != (len(entries) == 1) {
			t.Fatalf("Receive answered %v and left %v, %v", received, entries, err)
		}
		raw := filepath.Join(outer, "raw")
		if err := os.WriteFile(raw, archive, 0o600); err != nil {
			t.Fatal(err)
		}
		unpacked := source.Unpack(t.Context(), raw, dir, limits)
		if platform.CodeOf(received) != platform.CodeOf(unpacked) || (received == nil) != (unpacked == nil) {
			t.Fatalf("Receive: %v; Unpack: %v", received, unpacked)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
			t.Fatalf("outside: %v, %v", entries, err)
		}
		beside, err := os.ReadDir(outer)
		if want := 3; err != nil || unpacked != nil && len(beside) != want || unpacked == nil && len(beside) != want+1 {
			t.Fatalf("beside: %v, %v", beside, err)
		}
		if unpacked != nil {
			return
		}
		root, err := filepath.EvalSymlinks(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if !d.IsDir() && !d.Type().IsRegular() && d.Type() != fs.ModeSymlink {
				t.Errorf("%s is a %v", name, d.Type())
			}
			if real, err := filepath.EvalSymlinks(name); err == nil && real != root && !strings.HasPrefix(real, root+"/") {
				t.Errorf("%s leads to %s", name, real)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
