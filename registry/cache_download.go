package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// downloadPrefix begins the names of uploads that are downloads of the cache.
	// What a crash left of one is of no use.
	downloadPrefix = "cache-"

	// downloadReserve is after how many bytes the free space is looked at again.
	downloadReserve = 16 << 20
)

// download is a blob on its way from its upstream. Its bytes go to an upload on disk, from
// which every client that waits reads at its own pace, so that none keeps the
// download or another client waiting. It goes on to its end when all clients
// have gone.
type download struct {
	digest digest.Digest
	upload string
	first  Grant         // the repository that began it
	begun  chan struct{} // closed when size is known, or the download has failed
	over   chan struct{} // closed when the blob is stored, or the download has failed

	// size is what the upstream says it will be, negative if it does not. Read
	// it when begun is closed.
	size int64

	// repos holds the leases of the links to be made besides that of first:
	// by repositories that were shown to have the blob upstream as well.
	// Guarded by cache.mu.
	repos map[string]time.Time

	mu       sync.Mutex
	written  int64
	verified bool          // the bytes are what the digest says
	err      error         // why it failed
	news     chan struct{} // closed and replaced when one of the above changes
}

// state is how far a download has come. grown is closed when that has changed.
func (f *download) state() (written int64, verified bool, grown <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written, f.verified, f.news, f.err
}

func (f *download) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
	close(f.news)
	f.news = make(chan struct{})
}

// join returns the download of a blob that is under way, if there is one. ok
// tells that the repository takes part in it; proven, that it may.
func (h *cache) join(d digest.Digest, grant Grant, proven bool) (f *download, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f = h.downloads[d]
	switch {
	case f == nil:
		return nil, false
	case f.first.Repo == grant.Repo:
		return f, true
	case proven:
		f.repos[grant.Repo] = h.g.lease(grant)
	}
	_, ok = f.repos[grant.Repo]
	return f, ok
}

// begin starts the download of a blob, unless one is under way by now: then it
// returns nil.
func (h *cache) begin(d digest.Digest, grant Grant, u *upstream) (*download, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	f := &download{
		digest: d,
		upload: downloadPrefix + hex.EncodeToString(id[:]),
		first:  grant,
		begun:  make(chan struct{}),
		over:   make(chan struct{}),
		size:   -1,
		repos:  map[string]time.Time{},
		news:   make(chan struct{}),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.downloads[d] != nil {
		return nil, nil
	}
	if err := h.spawn(func(ctx context.Context) { h.run(ctx, f, u) }); err != nil {
		return nil, err
	}
	h.downloads[d] = f
	return f, nil
}

// run downloads and stores, unless an earlier download has just ended: whoever
// waits for this one then finds what that has stored.
func (h *cache) run(ctx context.Context, f *download, u *upstream) {
	_, there, err := h.present(ctx, f.digest)
	if err == nil && !there {
		if err = h.receive(ctx, f, u); err == nil {
			err = h.store(ctx, f)
		}
	}
	if err != nil {
		// Also when the registry is closing: nothing may stay behind.
		if err := h.g.cfg.Storage.Abort(context.WithoutCancel(ctx), f.upload); err != nil {
			h.g.cfg.Log.WarnContext(ctx, "registry could not remove a broken download", "digest", f.digest, "err", err)
		}
	}
	h.mu.Lock()
	if h.downloads[f.digest] == f {
		delete(h.downloads, f.digest)
	}
	h.mu.Unlock()
	if err != nil {
		f.change(func() { f.err = err })
	}
	f.open()
	close(f.over)
}

// open lets the clients begin.
func (f *download) open() {
	select {
	case <-f.begun:
	default:
		close(f.begun)
	}
}

// receive brings the bytes to disk, whole and verified.
func (h *cache) receive(ctx context.Context, f *download, u *upstream) (err error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// Ended by stall, so that an upstream that falls silent does not hold the
	// clients for ever.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := u.ask(ctx, http.MethodGet, "blobs", f.digest.String(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := h.room(ctx, max(resp.ContentLength, 0)); err != nil {
		return err
	}
	to, err := h.g.cfg.Storage.Create(ctx, f.upload)
	if err != nil {
		return fmt.Errorf("creating a file for blob %s: %w", f.digest, err)
	}
	defer func() {
		if closing := to.Close(); err == nil && closing != nil {
			err = fmt.Errorf("writing blob %s: %w", f.digest, closing)
		}
	}()
	f.size = resp.ContentLength
	f.open()
	if err := h.copy(ctx, cancel, f, u, to, resp.Body); err != nil {
		return err
	}
	u.answered("blobs")
	f.change(func() { f.verified = true })
	return nil
}

// errStalled is why a download was broken off.
var errStalled = errors.New("the upstream sent nothing for too long")

// copy writes what arrives to the upload, and hashes it on the way.
func (h *cache) copy(ctx context.Context, cancel context.CancelCauseFunc, f *download, u *upstream, to io.Writer, body io.Reader) error {
	verifier := f.digest.Verifier()
	buf := takeBuffer()
	defer giveBuffer(buf)
	buffer := *buf
	stall := time.AfterFunc(h.patience.stall, func() { cancel(errStalled) })
	defer stall.Stop()
	var written, looked int64
	for {
		stall.Reset(h.patience.stall)
		n, err := body.Read(buffer)
		stall.Stop()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return fmt.Errorf("writing blob %s: %w", f.digest, err)
			}
			_, _ = verifier.Write(buffer[:n]) // a hash takes everything
			written += int64(n)
			f.change(func() { f.written = written })
			h.g.metrics.cacheFetched.Add(float64(n))
			if written-looked >= downloadReserve {
				looked = written
				if err := h.room(ctx, 0); err != nil {
					return err
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if !verifier.Verified() {
				return u.lied("blobs", fmt.Errorf("reading blob %s: its content does not have its digest", f.digest))
			}
			return nil
		case errors.Is(context.Cause(ctx), errStalled):
			failed := u.broke("blobs", fmt.Errorf("reading blob %s: %w", f.digest, errStalled))
			failed.timeout = true
			return failed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return u.broke("blobs", fmt.Errorf("reading blob %s: %w", f.digest, err))
		}
	}
}

// store makes content of the bytes and links it wherever it was asked for.
func (h *cache) store(ctx context.Context, f *download) error {
	f.mu.Lock()
	size := f.written
	f.mu.Unlock()
	if err := h.g.commit(ctx, f.first.Repo, f.upload, f.digest, size, h.g.lease(f.first)); err != nil {
		return fmt.Errorf("storing blob %s: %w", f.digest, err)
	}
	h.grown(size)
	for {
		h.mu.Lock()
		var repo string
		var lease time.Time
		for repo, lease = range f.repos {
			delete(f.repos, repo)
			break
		}
		if repo == "" {
			// Whoever comes from now on finds the content instead.
			delete(h.downloads, f.digest)
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		if _, err := h.link(ctx, repo, f.digest, lease); err != nil {
			return err
		}
	}
}

// link links content that is stored already in a repository that was shown to
// have it upstream. False: it is not there (any more), or is damaged.
func (h *cache) link(ctx context.Context, repo string, d digest.Digest, lease time.Time) (bool, error) {
	// The collector trashes content under this lock, after it has read the
	// blob's state anew.
	unlock, err := h.g.locks.lock(ctx, d)
	if err != nil {
		return false, err
	}
	defer unlock()
	size, ok, err := h.present(ctx, d)
	if !ok || err != nil {
		return false, err
	}
	if err := h.g.cfg.Metadata.CommitBlob(ctx, repo, d, size, lease); err != nil {
		return false, fmt.Errorf("linking blob %s: %w", d, err)
	}
	h.g.memo.dropLink(repo, d)
	return true, nil
}

// present tells whether content is stored and, as far as is known, intact. It
// is certain only under the lock of the digest.
func (h *cache) present(ctx context.Context, d digest.Digest) (size int64, ok bool, err error) {
	blob, found, err := h.g.cfg.Metadata.BlobState(ctx, d)
	if err != nil {
		return 0, false, fmt.Errorf("looking for blob %s: %w", d, err)
	}
	if !found || blob.State == oci.Quarantined {
		return 0, false, nil
	}
	size, err = h.g.cfg.Storage.Size(ctx, d)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("looking for blob %s: %w", d, err)
	}
	return size, size == blob.Size, nil
}

// room fails when there is not enough space for n more bytes, and has the cache
// give some up then.
func (h *cache) room(ctx context.Context, n int64) error {
	free, err := h.g.cfg.Storage.Free(ctx)
	if err != nil {
		return fmt.Errorf("asking for the free space: %w", err)
	}
	lacking := h.g.cfg.ReserveBytes - free + n
	if lacking <= 0 {
		return nil
	}
	// An upstream that announces more than the cache may ever hold does not
	// get it emptied.
	if n <= h.g.cfg.CacheBytes {
		h.shrink(lacking)
	}
	return errDiskFull
}
