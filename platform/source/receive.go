package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/denia-paas/denia/platform"
)

const (
	partialPrefix = ".receiving-"
	doingReceive  = "receiving upload"
)

// Received tells what Receive stored.
type Received struct {
	SizeBytes int64  // as sent
	Digest    string // "sha256:<hex>" of the bytes as sent
}

// Receive streams an upload to the file dst, mode 0600, and checks it on the
// way: it is never held in memory, and refused as soon as a rule or a limit is
// broken. contentType says how it is packed: application/zstd,
// application/gzip or application/x-tar. Each digest in want must be that of
// the bytes as sent.
//
// When it returns nil, the complete file is on disk under its name, also after
// a power failure. On any error, a cancelled ctx included, nothing is left,
// and a file that had the name before is untouched. ctx is looked at between
// reads; a Read of body that blocks has to be ended by whoever owns body, as
// net/http does when the client goes away. Receive may leave body unread and
// never closes it.
func Receive(ctx context.Context, body io.Reader, contentType, dst string, l Limits, want ...Digest) (_ Received, err error) {
	declared, err := parseContentType(contentType)
	if err != nil {
		return Received{}, err
	}
	hashes, err := newSums(want)
	if err != nil {
		return Received{}, err
	}
	l = l.orDefault()
	f, err := os.CreateTemp(filepath.Dir(dst), partialPrefix+"*")
	if err != nil {
		return Received{}, diskError(err, dst, 0, "creating upload file")
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	packed := &packedReader{ctx: ctx, from: uploadBody{body}, limit: l.PackedBytes, doing: doingReceive}
	packed.sink = func(p []byte) error {
		hashes.write(p)
		if _, err := f.Write(p); err != nil {
			return diskError(err, dst, packed.count, "writing upload")
		}
		return nil
	}
	if _, err := walk(packed, declared, l, nil); err != nil {
		return Received{}, err
	}
	if err := hashes.check(want); err != nil {
		return Received{}, err
	}
	if err := f.Sync(); err != nil {
		return Received{}, diskError(err, dst, packed.count, "syncing upload")
	}
	if err := f.Close(); err != nil {
		return Received{}, diskError(err, dst, packed.count, "closing upload")
	}
	if err := ended(ctx, doingReceive); err != nil {
		return Received{}, err
	}
	if err := os.Rename(f.Name(), dst); err != nil {
		return Received{}, fmt.Errorf("naming upload: %w", err)
	}
	if err := syncDir(filepath.Dir(dst)); err != nil {
		os.Remove(dst)
		return Received{}, err
	}
	return Received{SizeBytes: packed.count, Digest: hashes.name()}, nil
}

// uploadBody makes any failure of a body the sender's: it did not arrive whole.
type uploadBody struct{ io.Reader }

func (b uploadBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if _, ok := errors.AsType[*platform.Error](err); !ok {
			err = truncated(err)
		}
	}
	return n, err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("opening directory to sync: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	return nil
}
