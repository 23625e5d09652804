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
	"slices"
	"strings"
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

	// leastRate is how many bytes a second an upstream has to send on average,
	// so that it does not hold a slot for ever with a byte now and then.
	leastRate = 16 << 10

	// unverifiedPart is the part of the budget beyond which bytes that may
	// turn out to be wrong are not taken without their number being known, and
	// nothing is given up for them.
	unverifiedPart = 4
)

// downloadKey tells downloads apart. What one registry sends is nothing that
// another one has shown to have.
type downloadKey struct {
	host   string
	digest digest.Digest
}

// download is a blob on its way from its upstream. Its bytes go to an upload on
// disk, from which every client that waits reads at its own pace, so that none
// keeps the download or another client waiting. When all clients have gone it
// goes on for a while, because they may come back.
type download struct {
	digest digest.Digest
	upload string
	first  Grant              // the repository that began it
	cancel context.CancelFunc // breaks it off
	begun  chan struct{}      // closed when size is known, or the download has failed
	over   chan struct{}      // closed when the blob is stored, or the download has failed

	// size is what the upstream says it will be, negative if it does not;
	// redirected tells that the bytes come from another host than the
	// upstream. Read them when begun is closed.
	size       int64
	redirected bool

	// repos holds the leases of the links to be made besides that of first:
	// by repositories that were shown to have the blob upstream as well.
	// readers counts the clients that wait, alone runs while there is none.
	// All are guarded by cache.mu.
	repos   map[string]time.Time
	readers int
	alone   *time.Timer

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

func (f *download) key() downloadKey { return downloadKey{f.first.Upstream.Host, f.digest} }

// join returns the download of a blob from the grant's upstream host that is
// under way, if there is one. ok tells that the repository takes part in it,
// and that the caller is one of its readers, who has to leave it; proven, that
// it may.
func (h *cache) join(d digest.Digest, grant Grant, proven bool) (f *download, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f = h.downloads[downloadKey{grant.Upstream.Host, d}]
	if f == nil {
		return nil, false
	}
	if proven && f.first.Repo != grant.Repo {
		f.repos[grant.Repo] = h.g.lease(grant)
	}
	if _, ok = f.repos[grant.Repo]; ok || f.first.Repo == grant.Repo {
		f.readers++
		f.alone.Stop()
		return f, true
	}
	return f, false
}

// leave ends what join or begin began. A download that nobody comes back to in
// time is broken off.
func (h *cache) leave(f *download) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.readers--; f.readers == 0 && h.downloads[f.key()] == f {
		f.alone.Reset(h.patience.alone)
	}
}

// abandon breaks off a download that nobody reads. Whoever comes from now on
// begins another one.
func (h *cache) abandon(f *download) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.readers > 0 {
		return
	}
	if h.downloads[f.key()] == f {
		delete(h.downloads, f.key())
	}
	f.cancel()
}

// begin starts the download of a blob, of which the caller is the first reader,
// unless one is under way by now: then it returns nil.
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

		readers: 1,
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.downloads[f.key()] != nil {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(h.g.ctx)
	if err := h.spawn(func(context.Context) { h.run(ctx, f, u) }); err != nil {
		cancel()
		return nil, err
	}
	f.cancel = cancel
	f.alone = time.AfterFunc(h.patience.alone, func() { h.abandon(f) })
	f.alone.Stop()
	h.downloads[f.key()] = f
	return f, nil
}

// run downloads and stores, unless an earlier download has just ended: whoever
// waits for this one then finds what that has stored. ctx ends when the download
// is broken off.
func (h *cache) run(ctx context.Context, f *download, u *upstream) {
	there, err := h.known(ctx, f.digest, f.first.Upstream.Host)
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
	if h.downloads[f.key()] == f {
		delete(h.downloads, f.key())
	}
	f.alone.Stop() // not before begin has set it
	f.cancel()
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
	done, err := h.turn(ctx, f.first)
	if err != nil {
		return err
	}
	defer done()
	// Ended by stall, so that an upstream that falls silent does not hold the
	// clients for ever.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := u.ask(ctx, http.MethodGet, "blobs", f.digest.String(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ContentLength > h.g.cfg.CacheBytes {
		return errTooLarge
	}
	if err := h.room(ctx, max(resp.ContentLength, 0), resp.ContentLength); err != nil {
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
	f.size, f.redirected = resp.ContentLength, u.route.away(resp.Request)
	f.open()
	if err := h.copy(ctx, cancel, f, u, to, resp.Body); err != nil {
		return err
	}
	u.answered("blobs")
	f.change(func() { f.verified = true })
	return nil
}

// Why a download was broken off.
var (
	errStalled  = errors.New("the upstream sent nothing for too long")
	errSlow     = fmt.Errorf("the upstream sent less than %d bytes a second", leastRate)
	errTooLarge = errors.New("the blob is larger than the cache may be, or may be for all it says")
)

// copy writes what arrives to the upload, and hashes it on the way.
func (h *cache) copy(ctx context.Context, cancel context.CancelCauseFunc, f *download, u *upstream, to io.Writer, body io.Reader) error {
	verifier := f.digest.Verifier()
	buf := takeBuffer()
	defer giveBuffer(buf)
	buffer := *buf
	stall := time.AfterFunc(h.patience.stall, func() { cancel(errStalled) })
	defer stall.Stop()
	limit := h.g.cfg.CacheBytes
	if f.size < 0 {
		limit /= unverifiedPart
	}
	least := int64(h.patience.pace.Seconds() * leastRate)
	since, upTo := time.Now(), int64(0) // of the average that is being measured
	var written, looked int64
	for {
		stall.Reset(h.patience.stall)
		n, err := body.Read(buffer)
		stall.Stop()
		if n > 0 {
			if written+int64(n) > limit {
				return errTooLarge
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return fmt.Errorf("writing blob %s: %w", f.digest, err)
			}
			_, _ = verifier.Write(buffer[:n]) // a hash takes everything
			written += int64(n)
			f.change(func() { f.written = written })
			h.g.metrics.cacheFetched.Add(float64(n))
			if written-looked >= downloadReserve {
				looked = written
				if err := h.room(ctx, 0, written); err != nil {
					return err
				}
			}
		}
		if err == nil && time.Since(since) >= h.patience.pace {
			if written-upTo < least {
				err = errSlow
			}
			since, upTo = time.Now(), written
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
		case errors.Is(err, errSlow):
			failed := u.broke("blobs", fmt.Errorf("reading blob %s: %w", f.digest, err))
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
			if h.downloads[f.key()] == f {
				delete(h.downloads, f.key())
			}
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

// witnesses bounds how many repositories of the cache are looked at for one that
// has a blob of the same upstream. Beyond that it is downloaded.
const witnesses = 1000

// known tells whether content is stored that the upstream at host has sent
// earlier, for whomever. Only of that does its word prove anything: of what was
// pushed, or came from another registry, an upstream could say that it has it
// without having it.
func (h *cache) known(ctx context.Context, d digest.Digest, host string) (bool, error) {
	if _, ok, err := h.present(ctx, d); err != nil || !ok {
		return false, err
	}
	repos, err := h.g.cfg.Metadata.Linkers(ctx, d, CachePrefix, witnesses)
	if err != nil {
		return false, fmt.Errorf("looking for who has blob %s: %w", d, err)
	}
	return slices.ContainsFunc(repos, func(repo string) bool {
		_, at := splitCacheKey(repo)
		return at == host
	}), nil
}

// splitCacheKey tells whose a repository of the cache is, and which host its
// content comes from, as Upstream.Host has it. A key that is not like
// "cache:<whose>/<host>/<repository>", with "_" before the port of the host, is
// its own, and from nowhere.
func splitCacheKey(key string) (whose, host string) {
	rest, _ := strings.CutPrefix(key, CachePrefix)
	whose, rest, _ = strings.Cut(rest, "/")
	host, _, ok := strings.Cut(rest, "/")
	if !ok || !strings.HasPrefix(key, CachePrefix) {
		return key, ""
	}
	if i := strings.LastIndexByte(host, '_'); i >= 0 {
		host = host[:i] + ":" + host[i+1:]
	}
	return whose, host
}

// room fails when there is not enough space for n more bytes, and has the cache
// give some up then, unless it is for more unverified bytes than an upstream may
// have others' content given up for.
func (h *cache) room(ctx context.Context, n, unverified int64) error {
	free, err := h.g.cfg.Storage.Free(ctx)
	if err != nil {
		return fmt.Errorf("asking for the free space: %w", err)
	}
	lacking := h.g.cfg.ReserveBytes - free + n
	if lacking <= 0 {
		return nil
	}
	if part := h.g.cfg.CacheBytes / unverifiedPart; unverified <= part {
		h.shrink(min(lacking, part))
	}
	return errDiskFull
}
