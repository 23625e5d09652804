package source

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/denia-paas/denia/platform"
)

const doingUnpack = "unpacking build context"

// Unpack extracts the archive at path, which Receive has stored, into dir. It
// applies the same rules and limits again, so that it is as safe with a file
// Receive never saw. dir is made if need be and must be empty; on any error, a
// cancelled ctx included, it is removed, unless the error is that it was not
// empty.
//
// Permissions and modification times are kept, so that an unchanged context
// finds its build cache; but set-uid, set-gid and sticky go, the owner can read
// everything and write every directory, and symbolic links are as new as their
// extraction. Owners are not kept. Nothing outside dir is read or written,
// whatever the archive says and whatever other processes do to dir meanwhile.
func Unpack(ctx context.Context, path, dir string, l Limits) (err error) {
	l = l.orDefault()
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening upload: %w", err)
	}
	defer f.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError(err, dir, 0, "creating build directory")
	}
	if there, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("listing build directory: %w", err)
	} else if len(there) > 0 {
		return fmt.Errorf("unpacking build context: %s is not empty", dir)
	}
	defer func() {
		if err != nil {
			if left := os.RemoveAll(dir); left != nil {
				err = fmt.Errorf("%w; removing what was unpacked: %w", err, left)
			}
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("opening build directory: %w", err)
	}
	x := &extraction{root: root, dir: dir, buffer: make([]byte, 64<<10)}
	defer x.close()
	t, err := walk(&packedReader{ctx: ctx, from: f, limit: l.PackedBytes, doing: doingUnpack}, "", l, x.make)
	if err != nil {
		return err
	}
	return x.finish(ctx, t.root)
}

// extraction makes entries below root. It is given paths that go through no
// link, so it never follows one; root sees to it that nobody else can make it.
type extraction struct {
	root    *os.Root
	dir     string
	buffer  []byte
	written int64

	// The directory of the last entry stays open: entries come directory by
	// directory, and opening one takes a system call for each component.
	parent     *os.Root
	parentNode *node
}

func (x *extraction) close() {
	x.leave()
	x.root.Close()
}

func (x *extraction) leave() {
	if x.parent != nil && x.parent != x.root {
		x.parent.Close()
	}
	x.parent, x.parentNode = nil, nil
}

func (x *extraction) enter(n *node) (*os.Root, error) {
	if x.parentNode == n {
		return x.parent, nil
	}
	x.leave()
	if n.parent == nil {
		x.parent, x.parentNode = x.root, n
		return x.root, nil
	}
	name := n.path()
	if err := x.root.MkdirAll(name, 0o700); err != nil {
		return nil, x.fail(err, "creating directory")
	}
	parent, err := x.root.OpenRoot(name)
	if err != nil {
		return nil, x.fail(err, "opening directory")
	}
	x.parent, x.parentNode = parent, n
	return parent, nil
}

// makeError is a failure to make an entry, as opposed to one to read it.
type makeError struct{ err error }

func (e *makeError) Error() string { return doingUnpack + ": " + e.err.Error() }
func (e *makeError) Unwrap() error { return e.err }

func (x *extraction) fail(err error, doing string) error {
	return &makeError{diskError(err, x.dir, x.written, doing)}
}

func (x *extraction) make(e entry, data io.Reader) error {
	if e.parent == nil {
		return nil
	}
	parent, err := x.enter(e.parent)
	if err != nil {
		return err
	}
	if e.kind == dir {
		if err := parent.Mkdir(e.name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return x.fail(err, "creating directory")
		}
		return nil
	}
	if e.replaced {
		// Removed, not overwritten: it may have other names, which keep it.
		if err := parent.Remove(e.name); err != nil {
			return x.fail(err, "replacing file")
		}
	}
	switch e.kind {
	case symlink:
		if err := parent.Symlink(e.target, e.name); err != nil {
			return x.fail(err, "creating symbolic link")
		}
		return nil
	case hardlink:
		err := x.root.Link(e.to.path(), e.path())
		if errors.Is(err, syscall.EMLINK) {
			return platform.Wrap(err, platform.Invalid, "entry_not_allowed",
				"entry %s is one hard link more than the file system allows for a file", quote(e.header.Name))
		}
		if err != nil {
			return x.fail(err, "creating hard link")
		}
		return nil
	}
	return x.file(parent, e, data)
}

func (x *extraction) file(parent *os.Root, e entry, data io.Reader) error {
	// O_EXCL: what an entry makes is new, so it cannot be a way elsewhere.
	f, err := parent.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return x.fail(err, "creating file")
	}
	if err := x.copy(f, data); err != nil {
		f.Close()
		return err
	}
	err = f.Chmod(os.FileMode(permissions(e.header, file)))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = parent.Chtimes(e.name, modified(e.header), modified(e.header))
	}
	if err != nil {
		return x.fail(err, "completing file")
	}
	return nil
}

func (x *extraction) copy(f *os.File, data io.Reader) error {
	for {
		n, err := data.Read(x.buffer)
		if n > 0 {
			if _, err := f.Write(x.buffer[:n]); err != nil {
				return x.fail(err, "writing file")
			}
			x.written += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// finish gives directories their modes and times, deepest first: making
// something in one changes its time.
func (x *extraction) finish(ctx context.Context, root *node) error {
	x.leave()
	stack := []*node{root}
	var dirs []*node
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, child := range n.children {
			if child.kind == dir {
				dirs = append(dirs, child)
				stack = append(stack, child)
			}
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := ended(ctx, doingUnpack); err != nil {
			return err
		}
		n := dirs[i]
		perm := os.FileMode(n.perm)
		if perm == 0 {
			perm = 0o755 // it only follows from a path
		}
		name := n.path()
		if err := x.root.Chmod(name, perm); err != nil {
			return x.fail(err, "setting mode of directory")
		}
		if err := x.root.Chtimes(name, clamp(n.mtime), clamp(n.mtime)); err != nil {
			return x.fail(err, "setting time of directory")
		}
	}
	return nil
}

func modified(h *tar.Header) time.Time { return clamp(h.ModTime) }

// clamp brings a time into what every file system can hold, 1970 to 2106.
// Directories without an entry have the zero time; theirs is always the same
// too, for the sake of the build cache.
func clamp(t time.Time) time.Time {
	earliest, latest := time.Unix(0, 0), time.Unix(1<<32-1, 0)
	switch {
	case t.Before(earliest):
		return earliest
	case t.After(latest):
		return latest
	}
	return t
}
