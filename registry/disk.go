package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	ownerDir  = 0o700
	ownerFile = 0o600

	// namesAtOnce bounds how much of a directory is held in memory.
	namesAtOnce = 256

	stateSuffix    = ".state"
	newStateSuffix = ".state.new"
)

// Disk is the Storage on a local disk:
//
//	blobs/<algorithm>/<first 2 digits>/<all digits>
//	uploads/<id>, uploads/<id>.state
//	trash/<algorithm>.<digits>.<generation>
//	boot
//
// Uploads are not synced before they become content. They outlive the process,
// but not the machine: boot holds the id of the boot in which they were
// written, and in another one they are not trusted and dropped.
type Disk struct {
	blobs, uploads, trash string

	// durable has the directories below blobs that were seen to survive a
	// power loss.
	durable sync.Map
}

// NewDisk opens the storage in a directory, and makes it if it is not there.
// One process at a time may have it open.
func NewDisk(dir string) (*Disk, error) {
	s := &Disk{
		blobs:   filepath.Join(dir, "blobs"),
		uploads: filepath.Join(dir, "uploads"),
		trash:   filepath.Join(dir, "trash"),
	}
	if err := s.make(dir); err != nil {
		return nil, fmt.Errorf("making the registry's storage: %w", err)
	}
	if err := s.checkBoot(filepath.Join(dir, "boot")); err != nil {
		return nil, fmt.Errorf("looking at the registry's uploads: %w", err)
	}
	return s, nil
}

// make creates the directories, durably.
func (s *Disk) make(dir string) error {
	dirs := []string{s.uploads, s.trash, filepath.Join(s.blobs, digest.SHA256.String()), filepath.Join(s.blobs, digest.SHA512.String())}
	for _, d := range dirs {
		if err := os.MkdirAll(d, ownerDir); err != nil {
			return err
		}
	}
	// Most blobs go below SHA-256. With these directories there, none of them
	// pays for making its own durable.
	sha256 := filepath.Join(s.blobs, digest.SHA256.String())
	prefixes := make([]string, 0, 256)
	for i := range 256 {
		prefix := filepath.Join(sha256, fmt.Sprintf("%02x", i))
		if err := os.Mkdir(prefix, ownerDir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		prefixes = append(prefixes, prefix)
	}
	for _, d := range []string{sha256, s.blobs, dir, filepath.Dir(dir)} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	for _, prefix := range prefixes {
		s.durable.Store(prefix, nil)
	}
	return nil
}

// checkBoot drops the uploads of another boot. Where the system does not tell
// which boot this is, it may always be another one.
func (s *Disk) checkBoot(file string) error {
	current, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(current) > 0 && bytes.Equal(current, known) {
		return nil
	}
	if err := os.RemoveAll(s.uploads); err != nil {
		return err
	}
	if err := os.Mkdir(s.uploads, ownerDir); err != nil {
		return err
	}
	// Without it the uploads of this boot are dropped at the next start: no
	// reason not to start now.
	_ = os.WriteFile(file, current, ownerFile)
	return nil
}

// Create makes an empty upload.
func (s *Disk) Create(_ context.Context, id string) (Upload, error) {
	path, err := s.upload(id)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, ownerFile)
	if err != nil {
		return nil, err
	}
	return &diskUpload{file: f}, nil
}

// Resume opens an upload for appending at offset.
func (s *Disk) Resume(_ context.Context, id string, offset int64) (Upload, error) {
	path, err := s.upload(id)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	if err := cutAt(f, offset); err != nil {
		f.Close()
		return nil, err
	}
	return &diskUpload{file: f, size: offset}, nil
}

func cutAt(f *os.File, offset int64) error {
	size, err := f.Seek(0, io.SeekEnd)
	switch {
	case err != nil || size == offset:
		return err
	case size < offset:
		return fmt.Errorf("upload %s has %d bytes and not %d: %w", filepath.Base(f.Name()), size, offset, fs.ErrNotExist)
	}
	if err := f.Truncate(offset); err != nil {
		return err
	}
	_, err = f.Seek(offset, io.SeekStart)
	return err
}

// ReadUpload opens an upload for reading.
func (s *Disk) ReadUpload(_ context.Context, id string) (io.ReadCloser, error) {
	path, err := s.upload(id)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// SaveState replaces the document beside an upload.
func (s *Disk) SaveState(_ context.Context, id string, state []byte) error {
	path, err := s.upload(id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+newStateSuffix, state, ownerFile); err != nil {
		return err
	}
	return os.Rename(path+newStateSuffix, path+stateSuffix)
}

// LoadState returns the document beside an upload.
func (s *Disk) LoadState(_ context.Context, id string) ([]byte, error) {
	path, err := s.upload(id)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path + stateSuffix)
}

// Abort removes an upload.
func (s *Disk) Abort(_ context.Context, id string) error {
	path, err := s.upload(id)
	if err != nil {
		return err
	}
	return remove(path, path+stateSuffix, path+newStateSuffix)
}

// Uploads lists the uploads.
func (s *Disk) Uploads(ctx context.Context) ([]UploadInfo, error) {
	found := map[string]*UploadInfo{}
	err := eachName(ctx, s.uploads, func(name string) error {
		st, err := os.Lstat(filepath.Join(s.uploads, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		id, suffix, _ := strings.Cut(name, ".")
		info := found[id]
		if info == nil {
			info = &UploadInfo{ID: id}
			found[id] = info
		}
		if suffix == "" {
			info.Size = st.Size()
		}
		if st.ModTime().After(info.Since) {
			info.Since = st.ModTime()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	list := make([]UploadInfo, 0, len(found))
	for _, info := range found {
		list = append(list, *info)
	}
	return list, nil
}

// Commit turns an upload into content. It renames before it syncs, and syncs the
// file and its name side by side: both wait for the same disk. A crash before that
// leaves a name, perhaps without its bytes. No row says that it is content, or
// that of a quarantined blob does, and then the next start looks at the bytes.
func (s *Disk) Commit(_ context.Context, id string, d digest.Digest) error {
	from, err := s.upload(id)
	if err != nil {
		return err
	}
	to, err := s.content(d)
	if err != nil {
		return errors.Join(err, remove(from, from+stateSuffix, from+newStateSuffix))
	}
	if err := s.place(from, to); err != nil {
		return errors.Join(err, remove(to, from, from+stateSuffix, from+newStateSuffix))
	}
	// The content stands. A state that stays behind is one of an upload with
	// fewer bytes than it says, and is dropped as idle.
	_ = remove(from+stateSuffix, from+newStateSuffix)
	return nil
}

// place moves a file to its place, durably.
func (s *Disk) place(from, to string) error {
	dir := filepath.Dir(to)
	_, durable := s.durable.Load(dir)
	if !durable {
		if err := os.Mkdir(dir, ownerDir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	name := make(chan error, 1)
	go func() { name <- syncDir(dir) }()
	if err := errors.Join(syncFile(to), <-name); err != nil {
		return err
	}
	if durable {
		return nil
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	s.durable.Store(dir, nil)
	return nil
}

// Open opens content: an *os.File.
func (s *Disk) Open(_ context.Context, d digest.Digest) (Content, error) {
	path, err := s.content(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Size tells how long content is.
func (s *Disk) Size(_ context.Context, d digest.Digest) (int64, error) {
	path, err := s.content(d)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Trash puts content aside. It need not be durable: what comes back after a
// power loss has no row, or is that of a quarantined blob, and the next start
// looks at it.
func (s *Disk) Trash(_ context.Context, d digest.Digest, gen int64) error {
	path, err := s.content(d)
	if err != nil {
		return err
	}
	aside := d.Algorithm().String() + "." + d.Encoded() + "." + strconv.FormatInt(gen, 10)
	err = os.Rename(path, filepath.Join(s.trash, aside))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// EmptyTrash removes what was put aside.
func (s *Disk) EmptyTrash(ctx context.Context) (int64, error) {
	var freed int64
	var failed error
	err := eachName(ctx, s.trash, func(name string) error {
		path := filepath.Join(s.trash, name)
		st, err := os.Lstat(path)
		if err == nil {
			err = os.Remove(path)
		}
		switch {
		case err == nil:
			freed += st.Size()
		case !errors.Is(err, fs.ErrNotExist):
			// One that cannot be removed doesn't keep the others.
			failed = err
		}
		return nil
	})
	return freed, errors.Join(err, failed)
}

// Walk calls fn for each digest that has content.
func (s *Disk) Walk(ctx context.Context, fn func(digest.Digest) error) error {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		algorithm := filepath.Join(s.blobs, a.String())
		err := eachName(ctx, algorithm, func(prefix string) error {
			if len(prefix) != len("00") {
				return nil // not ours
			}
			return eachName(ctx, filepath.Join(algorithm, prefix), func(name string) error {
				d, err := oci.ParseDigest(a.String() + ":" + name)
				if err != nil {
					return nil //nolint:nilerr // no content, and not ours
				}
				return fn(d)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Free tells how many bytes the disk has left for this user.
func (s *Disk) Free(context.Context) (int64, error) {
	return freeBytes(s.blobs)
}

func (s *Disk) upload(id string) (string, error) {
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return "", fmt.Errorf("%q is not the id of an upload", id)
		}
	}
	if id == "" {
		return "", errors.New("an upload has no id")
	}
	return filepath.Join(s.uploads, id), nil
}

func (s *Disk) content(d digest.Digest) (string, error) {
	if _, err := oci.ParseDigest(d.String()); err != nil {
		return "", err
	}
	encoded := d.Encoded()
	return filepath.Join(s.blobs, d.Algorithm().String(), encoded[:2], encoded), nil
}

// eachName calls fn for each name in a directory, until it fails.
func eachName(ctx context.Context, dir string, fn func(name string) error) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(namesAtOnce)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// remove removes files that may not be there.
func remove(paths ...string) error {
	var failed error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
