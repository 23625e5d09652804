package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// fullDisk has room for a number of bytes.
type fullDisk struct {
	registry.Storage
	mu   sync.Mutex
	room int64
	lies bool // Free tells of space that is not there
}

func (d *fullDisk) Free(context.Context) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lies {
		return 1 << 40, nil
	}
	return d.room, nil
}

func (d *fullDisk) Create(ctx context.Context, id string) (registry.Upload, error) {
	u, err := d.Storage.Create(ctx, id)
	return &fullUpload{u, d}, err
}

type fullUpload struct {
	registry.Upload
	disk *fullDisk
}

func (u *fullUpload) Write(b []byte) (int, error) {
	u.disk.mu.Lock()
	defer u.disk.mu.Unlock()
	if int64(len(b)) > u.disk.room {
		return 0, &os.PathError{Op: "write", Path: "upload", Err: syscall.ENOSPC}
	}
	u.disk.room -= int64(len(b))
	return u.Upload.Write(b)
}

func TestFullDisk(t *testing.T) {
	var disk *fullDisk
	s := newDepot(t, func(c *registry.Config) {
		disk = &fullDisk{Storage: c.Storage, room: 40 << 20}
		c.Storage, c.ReserveBytes = disk, 10<<20
	})
	full := func(a answer) {
		t.Helper()
		a.want(t, http.StatusServiceUnavailable, "UNAVAILABLE").header(t, "Retry-After", "60")
		if m := a.errors(t)[0].Message; !strings.Contains(m, "disk") {
			t.Errorf("message %q", m)
		}
		s.wantNoContent()
	}
	large := strings.Repeat("x", 31<<20)
	d := digest.FromString(large)

	// What is announced is refused before a byte is written.
	full(s.do(http.MethodPost, uploads+"?digest="+d.String(), strings.NewReader(large)))
	if disk.room != 40<<20 {
		t.Errorf("%d bytes were written", 40<<20-disk.room)
	}
	// What is not announced, when the reserve is reached.
	full(s.do(http.MethodPatch, s.start(""), io.MultiReader(strings.NewReader(large), strings.NewReader(large))))
	if disk.room < 0 {
		t.Errorf("%d bytes are left", disk.room)
	}
	disk.room, disk.lies = 1<<20, true
	full(s.finish(s.start(""), d, large))

	disk.room, disk.lies = 100<<20, false
	s.finish(s.start(""), d, large).want(t, http.StatusCreated, "")
}

func TestFailedCommits(t *testing.T) {
	fail := errors.New("no connection")
	for _, done := range []bool{false, true} {
		broken := &brokenMetadata{done: done, err: fail}
		s := newDepot(t, func(c *registry.Config) {
			broken.Metadata = c.Metadata
			c.Metadata = broken
		})
		d := digest.FromString("content")
		s.finish(s.start(""), d, "content").want(t, http.StatusInternalServerError, "UNKNOWN")
		s.wantNoUploads()
		broken.err = nil
		if done {
			// The transaction was carried out after all: its content must stay.
			s.wantBlob("team/app", d, "content")
			continue
		}
		s.wantNoContent()
		s.pushed("team/app", "content")
		s.wantBlob("team/app", d, "content")
	}
}
