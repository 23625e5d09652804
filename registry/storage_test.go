package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// storageSuite is what every Storage is held to. open returns an empty one.
func storageSuite(t *testing.T, open func(t *testing.T) registry.Storage) {
	run := func(name string, test func(t *testing.T, s *stored)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, &stored{t: t, Storage: open(t), ctx: t.Context()})
		})
	}
	absent := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want fs.ErrNotExist", err)
		}
	}

	run("an upload becomes content", func(t *testing.T, s *stored) {
		for _, content := range []string{"", "x", "content"} {
			for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
				d := a.FromString(content)
				s.upload("u", content)
				s.ok(s.SaveState(s.ctx, "u", []byte("state")))
				s.ok(s.Commit(s.ctx, "u", d))
				s.has(d, content)
			}
		}
		s.wantUploads()
		_, err := s.LoadState(s.ctx, "u")
		absent(t, err)
		_, err = s.Resume(s.ctx, "u", 0)
		absent(t, err)
	})

	run("what is committed replaces what is there", func(t *testing.T, s *stored) {
		d := digest.FromString("right")
		s.upload("u1", "damaged")
		s.ok(s.Commit(s.ctx, "u1", d))
		reader, err := s.Open(s.ctx, d)
		s.ok(err)
		defer reader.Close()
		s.upload("u2", "right")
		s.ok(s.Commit(s.ctx, "u2", d))
		s.has(d, "right")
		if b, err := io.ReadAll(reader); err != nil || string(b) != "damaged" {
			t.Errorf("who had it open reads %q, %v", b, err)
		}
	})

	run("a failed commit leaves nothing", func(t *testing.T, s *stored) {
		d := digest.FromString("x")
		if s.Commit(s.ctx, "nothing", d) == nil {
			t.Error("an upload that does not exist was committed")
		}
		_, err := s.Open(s.ctx, d)
		absent(t, err)
		s.upload("u", "x")
		if s.Commit(s.ctx, "u", "sha256:../../../etc/passwd") == nil {
			t.Error("a digest that is none was committed")
		}
		s.wantUploads()
	})

	run("an upload goes on where it was", func(t *testing.T, s *stored) {
		s.upload("u", "hello")
		u, err := s.Resume(s.ctx, "u", 5)
		s.ok(err)
		s.write(u, " world")
		s.reads("u", "hello world")

		u, err = s.Resume(s.ctx, "u", 4)
		s.ok(err)
		s.reads("u", "hell")
		s.write(u, "!")
		s.reads("u", "hell!")

		u, err = s.Resume(s.ctx, "u", 0)
		s.ok(err)
		s.write(u, "")
		s.reads("u", "")

		_, err = s.Resume(s.ctx, "u", 1)
		absent(t, err)
		_, err = s.Resume(s.ctx, "other", 0)
		absent(t, err)
		_, err = s.ReadUpload(s.ctx, "other")
		absent(t, err)
	})

	run("a second upload of the same id is refused", func(t *testing.T, s *stored) {
		s.upload("u", "one")
		if _, err := s.Create(s.ctx, "u"); err == nil {
			t.Error("it was created")
		}
		s.reads("u", "one")
	})

	run("an upload is read while it is written", func(t *testing.T, s *stored) {
		u, err := s.Create(s.ctx, "u")
		s.ok(err)
		if _, err := io.WriteString(u, "so far"); err != nil {
			t.Fatal(err)
		}
		s.reads("u", "so far")
		s.ok(u.Close())
	})

	run("states", func(t *testing.T, s *stored) {
		_, err := s.LoadState(s.ctx, "u")
		absent(t, err)
		// A state can be there before the first byte.
		for _, state := range []string{"long state", "short", ""} {
			s.ok(s.SaveState(s.ctx, "u", []byte(state)))
			if b, err := s.LoadState(s.ctx, "u"); err != nil || string(b) != state {
				t.Errorf("got %q, %v", b, err)
			}
		}
		s.wantUploads("u")
		s.ok(s.Abort(s.ctx, "u"))
		_, err = s.LoadState(s.ctx, "u")
		absent(t, err)
		s.wantUploads()
	})

	run("uploads are listed and aborted", func(t *testing.T, s *stored) {
		began := time.Now().Add(-time.Minute)
		s.upload("a", "12345")
		s.ok(s.SaveState(s.ctx, "a", []byte("a longer state")))
		s.upload("b-_B", "")
		list := s.wantUploads("a", "b-_B")
		if list[0].Size != 5 || list[1].Size != 0 {
			t.Errorf("sizes: %+v", list)
		}
		for _, u := range list {
			if u.Since.Before(began) || u.Since.After(time.Now().Add(time.Minute)) {
				t.Errorf("%s was written %s", u.ID, u.Since)
			}
		}
		s.ok(s.Abort(s.ctx, "a"))
		s.ok(s.Abort(s.ctx, "a"))
		s.wantUploads("b-_B")
	})

	run("ids and digests that are none", func(t *testing.T, s *stored) {
		for _, id := range []string{"", ".", "..", "../x", "a/b", "a.b", "a\x00", `a\b`} {
			if _, err := s.Create(s.ctx, id); err == nil {
				t.Errorf("an upload %q was created", id)
			}
			if s.SaveState(s.ctx, id, nil) == nil || s.Abort(s.ctx, id) == nil {
				t.Errorf("id %q is accepted", id)
			}
		}
		for _, d := range []digest.Digest{"", "sha256:", "sha256:..", "x", "sha256:/etc/passwd"} {
			if _, err := s.Open(s.ctx, d); err == nil {
				t.Errorf("%q was opened", d)
			}
			if _, err := s.Size(s.ctx, d); err == nil {
				t.Errorf("%q has a size", d)
			}
			if s.Trash(s.ctx, d, 0) == nil {
				t.Errorf("%q was put aside", d)
			}
		}
	})

	run("the trash", func(t *testing.T, s *stored) {
		d := s.content("content")
		reader, err := s.Open(s.ctx, d)
		s.ok(err)
		defer reader.Close()

		s.ok(s.Trash(s.ctx, d, 1))
		s.ok(s.Trash(s.ctx, d, 1))
		_, err = s.Open(s.ctx, d)
		absent(t, err)
		_, err = s.Size(s.ctx, d)
		absent(t, err)
		s.walks()

		// A push of the same bytes, before what was put aside is removed.
		if again := s.content("content"); again != d {
			t.Fatal(again)
		}
		s.content("other")
		if freed, err := s.EmptyTrash(s.ctx); err != nil || freed != int64(len("content")) {
			t.Errorf("freed %d, %v", freed, err)
		}
		s.has(d, "content")
		if b, err := io.ReadAll(reader); err != nil || string(b) != "content" {
			t.Errorf("who had it open reads %q, %v", b, err)
		}

		s.ok(s.Trash(s.ctx, d, 2))
		s.content("content")
		s.ok(s.Trash(s.ctx, d, 3))
		if freed, err := s.EmptyTrash(s.ctx); err != nil || freed != 2*int64(len("content")) {
			t.Errorf("freed %d, %v", freed, err)
		}
		if freed, err := s.EmptyTrash(s.ctx); err != nil || freed != 0 {
			t.Errorf("freed %d, %v", freed, err)
		}
	})

	run("content is walked", func(t *testing.T, s *stored) {
		s.walks()
		var all []digest.Digest
		for i := range 300 {
			content := string(rune('a'+i%26)) + string(rune('A'+i/26))
			all = append(all, s.content(content))
		}
		long := digest.SHA512.FromString("x")
		s.upload("u", "x")
		s.ok(s.Commit(s.ctx, "u", long))
		s.upload("unfinished", "x")
		s.ok(s.Trash(s.ctx, all[0], 0))
		s.walks(append(all[1:], long)...)

		stop := errors.New("enough")
		calls := 0
		err := s.Walk(s.ctx, func(digest.Digest) error { calls++; return stop })
		if !errors.Is(err, stop) || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
		ended, cancel := context.WithCancel(s.ctx)
		cancel()
		if err := s.Walk(ended, func(digest.Digest) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})

	run("content is read at random", func(t *testing.T, s *stored) {
		d := s.content("0123456789")
		c, err := s.Open(s.ctx, d)
		s.ok(err)
		defer c.Close()
		b := make([]byte, 3)
		if n, err := c.ReadAt(b, 4); n != 3 || err != nil || string(b) != "456" {
			t.Errorf("read %q, %v", b[:n], err)
		}
		if end, err := c.Seek(0, io.SeekEnd); end != 10 || err != nil {
			t.Errorf("the end is %d, %v", end, err)
		}
		if _, err := c.Seek(-2, io.SeekEnd); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(c); err != nil || string(rest) != "89" {
			t.Errorf("read %q, %v", rest, err)
		}
	})

	run("free space", func(t *testing.T, s *stored) {
		if free, err := s.Free(s.ctx); err != nil || free <= 0 {
			t.Errorf("%d, %v", free, err)
		}
	})
}

// stored is a Storage under test.
type stored struct {
	registry.Storage
	t   *testing.T
	ctx context.Context
}

func (s *stored) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stored) write(u registry.Upload, content string) {
	s.t.Helper()
	_, err := io.WriteString(u, content)
	s.ok(errors.Join(err, u.Close()))
}

func (s *stored) upload(id, content string) {
	s.t.Helper()
	u, err := s.Create(s.ctx, id)
	s.ok(err)
	s.write(u, content)
}

func (s *stored) content(content string) digest.Digest {
	s.t.Helper()
	s.upload("committed", content)
	d := digest.FromString(content)
	s.ok(s.Commit(s.ctx, "committed", d))
	return d
}

func (s *stored) has(d digest.Digest, content string) {
	s.t.Helper()
	c, err := s.Open(s.ctx, d)
	s.ok(err)
	defer c.Close()
	b, err := io.ReadAll(c)
	s.ok(err)
	size, err := s.Size(s.ctx, d)
	if string(b) != content || size != int64(len(content)) || err != nil {
		s.t.Errorf("%s is %q of size %d, %v; want %q", d, b, size, err, content)
	}
}

func (s *stored) reads(id, content string) {
	s.t.Helper()
	r, err := s.ReadUpload(s.ctx, id)
	s.ok(err)
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != content {
		s.t.Errorf("upload %s is %q, %v; want %q", id, b, err, content)
	}
}

// wantUploads checks which uploads there are, and returns them ordered by id.
func (s *stored) wantUploads(ids ...string) []registry.UploadInfo {
	s.t.Helper()
	list, err := s.Uploads(s.ctx)
	s.ok(err)
	slices.SortFunc(list, func(a, b registry.UploadInfo) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	var got []string
	for _, u := range list {
		got = append(got, u.ID)
	}
	if !slices.Equal(got, ids) {
		s.t.Fatalf("uploads %q, want %q", got, ids)
	}
	return list
}

func (s *stored) walks(want ...digest.Digest) {
	s.t.Helper()
	var got []digest.Digest
	s.ok(s.Walk(s.ctx, func(d digest.Digest) error { got = append(got, d); return nil }))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.t.Errorf("walked over %d digests, want %d", len(got), len(want))
	}
}

func TestDisk(t *testing.T) {
	storageSuite(t, func(t *testing.T) registry.Storage {
		disk, err := registry.NewDisk(t.TempDir() + "/registry")
		if err != nil {
			t.Fatal(err)
		}
		return disk
	})
}

// Uploads outlive the process, but not the machine: they were never synced.
func TestDiskDropsUploadsOfAnotherBoot(t *testing.T) {
	dir := t.TempDir()
	open := func() *stored {
		disk, err := registry.NewDisk(dir)
		if err != nil {
			t.Fatal(err)
		}
		return &stored{t: t, Storage: disk, ctx: t.Context()}
	}
	s := open()
	d := s.content("content")
	s.upload("u", "bytes")
	s.ok(s.SaveState(s.ctx, "u", []byte("state")))

	s = open()
	s.wantUploads("u")
	s.reads("u", "bytes")

	s.ok(os.WriteFile(dir+"/boot", []byte("another boot\n"), 0o600))
	s = open()
	s.wantUploads()
	s.has(d, "content")

	s.upload("u", "bytes")
	s = open()
	s.wantUploads("u")
}

// Nobody but the owner may look into a registry's directory.
func TestDiskIsPrivate(t *testing.T) {
	dir := t.TempDir() + "/registry"
	disk, err := registry.NewDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &stored{t: t, Storage: disk, ctx: t.Context()}
	s.content("content")
	s.upload("u", "bytes")
	s.ok(s.SaveState(s.ctx, "u", []byte("state")))
	s.content("trashed")
	s.ok(s.Trash(s.ctx, digest.FromString("trashed"), 1))
	s.ok(fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return nil
	}))
}
