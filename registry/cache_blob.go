package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// fetchAttempts bounds how often a blob is looked for again because what was
// found had gone when it was to be used.
const fetchAttempts = 4

// fetchBlob answers for a blob in a repository of the cache: from what is
// stored, or with what is being downloaded while it arrives.
func (c *call) fetchBlob(d digest.Digest) {
	h, ctx := c.cache, c.r.Context()
	fetched := false // by this call
	for range fetchAttempts {
		size, found, err := c.blob(ctx, c.grant, d)
		if err != nil {
			c.failed(err)
			return
		}
		if found {
			if fetched {
				h.miss()
			} else {
				h.hit()
				h.save(c, size)
			}
			c.serveBlob(d, size)
			return
		}
		if c.r.Method == http.MethodHead {
			c.headUpstream(d)
			return
		}
		f, begun, err := c.source(ctx, d)
		if err != nil {
			c.refuseBlob(err, d)
			return
		}
		if f != nil && c.stream(f, !begun) {
			return
		}
		fetched = fetched || begun
	}
	c.failed(fmt.Errorf("blob %s was collected again and again while it was being fetched", d))
}

// errNoFetch says that something is not stored, and the caller may not have it
// fetched.
var errNoFetch = errors.New("not in the cache")

func (c *call) refuseBlob(err error, d digest.Digest) {
	what := "blob " + d.String()
	switch {
	case errors.Is(err, errNoFetch):
		c.refuseFetch(codeBlobUnknown, what)
	case errors.Is(err, errBusy):
		c.w.Header().Set("Retry-After", seconds(c.cache.patience.turn))
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "too much is being fetched from "+c.grant.Upstream.Host+" already; try again", nil)
	case errors.Is(err, errTooLarge):
		c.fail(http.StatusForbidden, codeDenied, fmt.Sprintf("%s of %s is too large for the cache, which may have %d bytes", what, c.grant.Upstream.Repository, c.cfg.CacheBytes), nil)
	default:
		c.refuse(err, codeBlobUnknown, what)
	}
}

// headUpstream answers a HEAD for a blob that is not stored. Clients that mean
// to have the blob do not ask so, and it is not fetched for it.
func (c *call) headUpstream(d digest.Digest) {
	if !c.grant.Upstream.Fetch {
		c.refuseBlob(errNoFetch, d)
		return
	}
	size, err := c.askBlob(c.r.Context(), d)
	if err != nil {
		c.refuseBlob(err, d)
		return
	}
	c.cache.miss()
	c.blobHeader(d)
	if size >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	c.w.WriteHeader(http.StatusOK)
}

// askBlob asks the upstream whether it has a blob in the repository, and how
// long it is: negative if it does not say.
func (c *call) askBlob(ctx context.Context, d digest.Digest) (size int64, err error) {
	h, up := c.cache, *c.grant.Upstream
	answer, err := h.once(ctx, questionKey{"blob", c.grant.Repo, d.String()}, func(ctx context.Context) (any, error) {
		u, err := h.upstreams.of(up)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, h.patience.compare)
		defer cancel()
		resp, err := u.ask(ctx, http.MethodHead, "blobs", d.String(), nil)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		u.answered("blobs")
		return resp.ContentLength, nil
	})
	if err != nil {
		return 0, err
	}
	return answer.(int64), nil
}

// source returns the download from which a blob can be read that the repository
// does not have, and which the caller has to leave; begun tells that this call
// began it. Nil: look again, the blob may be there now.
func (c *call) source(ctx context.Context, d digest.Digest) (f *download, begun bool, err error) {
	h := c.cache
	f, joined := h.join(d, c.grant, false)
	if joined {
		return f, false, nil
	}
	if !c.grant.Upstream.Fetch {
		return nil, false, errNoFetch
	}
	known := f != nil
	if !known {
		if known, err = h.known(ctx, d, c.grant.Upstream.Host); err != nil {
			return nil, false, err
		}
	}
	if known {
		// It was fetched from this upstream by somebody else: that the caller
		// knows its digest does not prove that he may have it, but the
		// upstream's word does.
		if _, err := c.askBlob(ctx, d); err != nil {
			return nil, false, err
		}
		if f, joined := h.join(d, c.grant, true); joined {
			return f, false, nil
		}
		linked, err := h.link(ctx, c.grant.Repo, d, c.lease(c.grant))
		if err != nil || linked {
			return nil, false, err
		}
	}
	u, err := h.upstreams.of(*c.grant.Upstream)
	if err != nil {
		return nil, false, err
	}
	f, err = h.begin(d, c.grant, u)
	return f, true, err
}

// stream sends a blob, or the range that was asked for, while it is being
// downloaded; shared tells that somebody else began that. False: nothing was
// sent, the blob is stored by now.
//
// The last byte is held back until the whole is known to be right. Until then
// the connection can be cut, so that nobody takes a damaged blob for whole.
//
// Of what comes from another host than the upstream nothing is sent before it
// is stored: that host's answer may be anything but the blob, and must not be
// read through Denia.
func (c *call) stream(f *download, shared bool) bool {
	defer c.cache.leave(f)
	ctx := c.r.Context()
	select {
	case <-f.begun:
	case <-ctx.Done():
		c.failed(ctx.Err())
		return true
	}
	if _, _, _, err := f.state(); err != nil {
		return c.brokeOff(f, err)
	}
	if f.redirected {
		return c.await(f)
	}
	var part oci.Range
	partial := false
	if header := c.r.Header.Get("Range"); header != "" && c.sameContent(f.digest) {
		if f.size < 0 {
			return c.await(f)
		}
		var err error
		if part, partial, err = oci.ParseRange(header, f.size); err != nil {
			c.refuseRange(f.size)
			return true
		}
	}
	from, err := c.cfg.Storage.ReadUpload(ctx, f.upload)
	if errors.Is(err, fs.ErrNotExist) {
		return c.await(f)
	}
	if err != nil {
		c.failed(fmt.Errorf("reading what is being downloaded of blob %s: %w", f.digest, err))
		return true
	}
	defer from.Close()

	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		c.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.Start, part.Start+part.Length-1, f.size))
	} else {
		part.Length = f.size
	}
	c.blobHeader(f.digest)
	if part.Length >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(part.Length, 10))
	}
	c.w.WriteHeader(status)
	c.metrics.blobPulls.Inc()
	sent, err := c.follow(ctx, f, from, part)
	c.metrics.sent.Add(float64(sent))
	if shared {
		c.cache.hit()
		c.cache.save(c, sent)
	} else {
		c.cache.miss()
	}
	if err != nil {
		level := slog.LevelWarn
		if ctx.Err() != nil {
			level = slog.LevelDebug // the client went away
		}
		c.log(level, "registry broke off a blob it was downloading", "digest", f.digest, "err", err)
		panic(http.ErrAbortHandler)
	}
	return true
}

// brokeOff answers for a download that failed before anything was sent; false:
// look again, because what failed for another repository need not fail for
// this one.
func (c *call) brokeOff(f *download, err error) bool {
	if f.first.Repo != c.grant.Repo && c.ctx.Err() == nil {
		return false
	}
	c.refuseBlob(err, f.digest)
	return true
}

// await waits until a download is over. It returns false when the blob is
// stored, and otherwise answers.
func (c *call) await(f *download) bool {
	ctx := c.r.Context()
	select {
	case <-f.over:
	case <-ctx.Done():
		c.failed(ctx.Err())
		return true
	}
	if _, _, _, err := f.state(); err != nil {
		return c.brokeOff(f, err)
	}
	return false
}

// follow sends the part of the growing upload as it arrives; a negative length
// means all there will be. It fails when not all of it could be sent.
func (c *call) follow(ctx context.Context, f *download, from io.Reader, part oci.Range) (sent int64, err error) {
	at, last := int64(0), part.Start+part.Length
	if seeker, ok := from.(io.Seeker); ok {
		if at, err = seeker.Seek(part.Start, io.SeekStart); err != nil {
			return 0, fmt.Errorf("seeking in what is being downloaded: %w", err)
		}
	}
	client := http.NewResponseController(c.w)
	stop := context.AfterFunc(c.ctx, func() {
		// A connection without deadlines ends with its server.
		_ = client.SetWriteDeadline(time.Unix(1, 0))
	})
	defer stop()
	for {
		written, verified, grown, err := f.state()
		if err != nil && !verified { // what is right is right, stored or not
			return sent, err
		}
		end := written // of what the client may have by now
		if part.Length >= 0 {
			end = min(written, last)
		}
		if !verified && (part.Length < 0 || end == last) {
			end--
		}
		if skip := min(end, part.Start) - at; skip > 0 {
			n, err := io.CopyN(io.Discard, from, skip)
			at += n
			if err != nil {
				return sent, fmt.Errorf("reading what is being downloaded: %w", err)
			}
		}
		if at >= part.Start && end > at {
			n, err := io.CopyN(c.w, from, end-at)
			at += n
			sent += n
			if err != nil {
				return sent, fmt.Errorf("sending what is being downloaded: %w", err)
			}
			// What is not flushed waits for more, which may take long.
			_ = client.Flush()
		}
		if verified && at >= end {
			return sent, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return sent, ctx.Err()
		}
	}
}
