package registry

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// bufferBytes is what a file is written in. Larger writes get larger
	// folios of the page cache, which cost more than the calls they save.
	bufferBytes = 64 << 10

	// spaceCheckBytes is after how many bytes the free space is looked at
	// again.
	spaceCheckBytes = 16 << 20

	// chunkMinLength is what clients are asked to put into a chunk at least,
	// because each costs a request and a state document. Smaller ones are
	// accepted: the specification says SHOULD.
	chunkMinLength = "65536"
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, bufferBytes)
	return &b
}}

func takeBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func giveBuffer(b *[]byte) { buffers.Put(b) }

// onlyReader hides everything else a reader can do, so that a copy uses the
// buffer it was given.
type onlyReader struct{ io.Reader }

// bodyError is a body that ended before it should: the client's side.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "reading the request's body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// startUpload begins an upload session, or stores a blob that comes with the
// request, or mounts one that is there (distribution-spec, end-4a, 4b, 4c and
// 11).
func (c *call) startUpload(string) {
	var q url.Values
	if c.r.URL.RawQuery != "" {
		q = c.r.URL.Query()
	}
	algorithm, err := oci.ParseAlgorithm(q.Get("digest-algorithm"))
	if err != nil {
		c.fail(http.StatusBadRequest, codeDigestInvalid, "digest-algorithm is sha256 or sha512", nil)
		return
	}
	if mount := q.Get("mount"); mount != "" {
		d, err := oci.ParseDigest(mount)
		if err != nil {
			c.invalidDigest(mount)
			return
		}
		mounted, err := c.mount(d, q.Get("from"))
		if errors.Is(err, errScope) {
			c.unauthorized(err, "push", q.Get("from"))
			return
		}
		if err != nil {
			c.failed(err)
			return
		}
		if mounted {
			c.created(d)
			return
		}
		// Whatever the reason: the client may send the blob itself.
		algorithm = d.Algorithm()
	} else if q.Has("digest") {
		c.storeAtOnce(q.Get("digest"))
		return
	}
	s, ok := c.beginUpload(algorithm)
	if !ok {
		return
	}
	c.w.Header().Set("Oci-Chunk-Min-Length", chunkMinLength)
	c.goOn(s, http.StatusAccepted)
}

// beginUpload creates a session and holds it; false: the call is answered.
func (c *call) beginUpload(a digest.Algorithm) (*session, bool) {
	// Who begins an upload is about to send something.
	if err := c.checkSpace(c.r.Context(), 0); err != nil {
		c.failed(err)
		return nil, false
	}
	s, err := c.sessions.create(c.grant.Repo, c.subject, a)
	if err != nil {
		c.w.Header().Set("Retry-After", seconds(retryUploads))
		c.fail(http.StatusTooManyRequests, codeTooManyRequests, err.Error(), nil)
		return nil, false
	}
	return s, true
}

// storeAtOnce stores the blob in the body of a POST.
func (c *call) storeAtOnce(wanted string) {
	d, err := oci.ParseDigest(wanted)
	if err != nil {
		c.invalidDigest(wanted)
		return
	}
	s, ok := c.beginUpload(d.Algorithm())
	if !ok {
		return
	}
	if err := c.receive(s, c.r.Body, c.r.ContentLength); err != nil {
		// There is no session the client knows of.
		c.drop(s)
		c.brokenUpload(err)
		return
	}
	c.complete(s, d)
}

// uploadStatus tells how far an upload is (end-13).
func (c *call) uploadStatus(id string) {
	n, err := c.sessions.received(c.r.Context(), id, c.grant.Repo)
	if err != nil {
		c.noUpload(err)
		return
	}
	c.describe(id, n)
	c.w.WriteHeader(http.StatusNoContent)
}

// appendUpload takes a chunk, or a stream of unknown length (end-5).
func (c *call) appendUpload(id string) {
	s, ok := c.takeUpload(id)
	if !ok {
		return
	}
	if c.receiveChunk(s) {
		c.goOn(s, http.StatusAccepted)
	}
}

// finishUpload takes the rest of an upload, if there is any, and stores the
// blob (end-6).
func (c *call) finishUpload(id string) {
	wanted := c.r.URL.Query().Get("digest")
	d, err := oci.ParseDigest(wanted)
	if err != nil {
		c.invalidDigest(wanted)
		return
	}
	s, ok := c.takeUpload(id)
	if !ok {
		return
	}
	if s.size.Load() == 0 {
		s.restart(d.Algorithm())
	}
	if c.receiveChunk(s) {
		c.complete(s, d)
	}
}

// cancelUpload ends a session and removes what it received (end-14).
func (c *call) cancelUpload(id string) {
	s, ok := c.takeUpload(id)
	if !ok {
		return
	}
	if err := c.sessions.drop(c.r.Context(), s); err != nil {
		c.failed(err)
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}

// takeUpload holds the session for this request; false: the call is answered.
func (c *call) takeUpload(id string) (*session, bool) {
	s, err := c.sessions.take(c.r.Context(), id, c.grant.Repo)
	if err != nil {
		c.noUpload(err)
		return nil, false
	}
	return s, true
}

// receiveChunk appends the request's body to a held session, after comparing
// the place it is meant for with the one that comes next. False: the call is
// answered and the session no longer held.
func (c *call) receiveChunk(s *session) bool {
	body, length := io.Reader(c.r.Body), c.r.ContentLength
	promised := int64(-1)
	if header := c.r.Header.Get("Content-Range"); header != "" {
		chunk, err := oci.ParseContentRange(header)
		switch {
		case err != nil:
			c.letGo(s)
			c.fail(http.StatusBadRequest, codeBlobUploadInvalid, err.Error(), map[string]string{"content-range": header})
			return false
		case chunk.Start != s.size.Load():
			size := s.size.Load()
			c.letGo(s)
			c.describe(s.id, size)
			c.fail(http.StatusRequestedRangeNotSatisfiable, codeBlobUploadInvalid,
				fmt.Sprintf("the next byte of this upload is number %d", size), map[string]string{"content-range": header})
			return false
		case length >= 0 && length != chunk.Length:
			c.letGo(s)
			c.fail(http.StatusBadRequest, codeSizeInvalid,
				fmt.Sprintf("the chunk has %d bytes by its Content-Range and %d by its Content-Length", chunk.Length, length), nil)
			return false
		case length < 0:
			promised = chunk.Length
			body = io.LimitReader(body, promised+1)
		}
	}
	before, err := s.mark()
	if err != nil {
		c.drop(s)
		c.failed(err)
		return false
	}
	err = c.receive(s, body, length)
	var broken *bodyError
	switch {
	case errors.As(err, &broken):
		// What came is kept: the client may ask for the state and go on.
		c.letGo(s)
		c.brokenUpload(err)
		return false
	case err != nil:
		c.drop(s)
		c.brokenUpload(err)
		return false
	case promised >= 0 && s.size.Load()-before.size != promised:
		got := s.size.Load() - before.size
		if err := s.rewind(before); err != nil {
			c.drop(s)
			c.failed(err)
			return false
		}
		c.letGo(s)
		c.fail(http.StatusBadRequest, codeSizeInvalid,
			fmt.Sprintf("the chunk has %d bytes by its Content-Range and %d in its body, or more", promised, got), nil)
		return false
	}
	return true
}

// receive appends a body of that length (-1: unknown) to a session, hashing it
// on the way. It fails with *bodyError when the body ends early: what came
// until then is part of the upload. After any other failure the session has to
// be dropped.
func (c *call) receive(s *session, body io.Reader, length int64) (err error) {
	if body == http.NoBody {
		return nil
	}
	defer c.atClose((*http.ResponseController).SetReadDeadline)()
	ctx := c.r.Context()
	if err := c.checkSpace(ctx, max(length, 0)); err != nil {
		return err
	}
	out, err := c.openUpload(ctx, s)
	if err != nil {
		return err
	}
	defer func() {
		if closing := out.Close(); err == nil && closing != nil {
			err = fmt.Errorf("closing upload %s: %w", s.id, closing)
		}
	}()

	buf, done := takeBlock(length)
	defer func() { done() }()
	unknown := length < 0
	for unchecked := 0; ; {
		n, reading := readUntilFull(body, buf)
		if unknown && reading == nil {
			// It fills a buffer, and may go on for long.
			unknown = false
			if block, free := takeBlock(blockBytes); len(block) > n {
				copy(block, buf[:n])
				done()
				buf, done = block, free
				more, err := readUntilFull(body, buf[n:])
				n, reading = n+more, err
			} else {
				free()
			}
		}
		if n > 0 {
			s.saved = false
			s.hash.Write(buf[:n])
			if _, err := out.Write(buf[:n]); err != nil {
				return fmt.Errorf("writing upload %s: %w", s.id, err)
			}
			s.size.Add(int64(n))
			c.metrics.received.Add(float64(n))
		}
		switch {
		case errors.Is(reading, io.EOF):
			return nil
		case reading != nil:
			return &bodyError{reading}
		}
		if unchecked += n; unchecked >= spaceCheckBytes {
			unchecked = 0
			if err := c.checkSpace(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// openUpload opens the session's upload behind its last byte.
func (g *Registry) openUpload(ctx context.Context, s *session) (Upload, error) {
	if s.stored {
		out, err := g.cfg.Storage.Resume(ctx, s.id, s.size.Load())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errUploadUnknown
		}
		if err != nil {
			return nil, fmt.Errorf("opening upload %s: %w", s.id, err)
		}
		return out, nil
	}
	out, err := g.cfg.Storage.Create(ctx, s.id)
	if err != nil {
		return nil, fmt.Errorf("creating upload %s: %w", s.id, err)
	}
	s.stored = true
	return out, nil
}

// readUntilFull reads until the buffer is full or the reader fails. Unlike
// io.ReadFull it hands the error on as it is, for the end of a body and a body
// cut short have to be told apart.
func readUntilFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// checkSpace fails with errDiskFull when n more bytes would eat into the
// reserve. The cache then gives up what is missing, for the next to ask.
func (g *Registry) checkSpace(ctx context.Context, n int64) error {
	free, err := g.cfg.Storage.Free(ctx)
	if err != nil {
		return fmt.Errorf("asking for the free space: %w", err)
	}
	if missing := n + g.cfg.ReserveBytes - free; missing > 0 {
		g.MakeRoom(missing)
		return errDiskFull
	}
	return nil
}

// complete checks a held session's bytes against the digest and makes them a
// blob of the repository, or says what is wrong with them.
func (c *call) complete(s *session, d digest.Digest) {
	ctx := c.r.Context()
	if !s.stored {
		// The empty blob.
		out, err := c.openUpload(ctx, s)
		if err == nil {
			err = out.Close()
		}
		if err != nil {
			c.drop(s)
			c.failed(err)
			return
		}
	}
	matches, err := c.sessions.matches(ctx, s, d)
	if err != nil {
		c.drop(s)
		c.failed(err)
		return
	}
	if !matches {
		c.drop(s)
		c.fail(http.StatusBadRequest, codeDigestInvalid, "the bytes that were received have another digest", map[string]string{"digest": d.String()})
		return
	}
	if !c.authorizeAgain("push", true) {
		c.drop(s)
		return
	}
	if c.grant.Repo != s.repo {
		// Another repository got the name meanwhile.
		c.drop(s)
		c.noUpload(errUploadUnknown)
		return
	}
	c.step("upload.synced")
	lease := c.lease(c.grant)
	if err := c.commit(ctx, c.grant.Repo, s.id, d, s.size.Load(), lease); err != nil {
		c.drop(s)
		c.failed(err)
		return
	}
	c.sessions.forget(s)
	c.seen.add(c.subject, d, c.name)
	c.metrics.blobPushes.Inc()
	c.created(d)
}

// goOn releases a session and tells the client where to go on with it.
func (c *call) goOn(s *session, status int) {
	c.describe(s.id, s.size.Load())
	if err := c.keep(s); err != nil {
		c.failed(err)
		return
	}
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(status)
}

// letGo releases a session after a failed request, from which the client may
// go on nevertheless.
func (c *call) letGo(s *session) {
	if err := c.keep(s); err != nil {
		c.log(slog.LevelError, "registry could not keep an upload", "err", err)
	}
}

// keep releases a session so that what it received survives the process. When
// that fails the session is dropped.
func (c *call) keep(s *session) error {
	// A client that has gone is the one who will come back for it.
	ctx := context.WithoutCancel(c.r.Context())
	if s.stored {
		if err := c.sessions.save(ctx, s, c.now()); err != nil {
			c.drop(s)
			return err
		}
	}
	if err := c.sessions.release(ctx, s); err != nil {
		// Of another session, which just takes more memory then.
		c.log(slog.LevelError, "registry could not move an idle upload to disk", "err", err)
	}
	return nil
}

// drop ends a session that failed.
func (c *call) drop(s *session) {
	if err := c.sessions.drop(c.r.Context(), s); err != nil {
		c.log(slog.LevelError, "registry could not remove an upload", "err", err)
	}
}

// describe sets the headers that tell where an upload is and how far. The range
// of an upload without a byte is written like that of one byte: the
// specification has no other way.
func (c *call) describe(id string, size int64) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.name+"/blobs/uploads/"+id)
	h.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
	h.Set("Docker-Upload-Uuid", id)
}

// created answers that the blob is in the repository.
func (c *call) created(d digest.Digest) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.name+"/blobs/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusCreated)
	c.step("upload.replied")
}

func (c *call) noUpload(err error) {
	switch {
	case errors.Is(err, errUploadUnknown):
		c.fail(http.StatusNotFound, codeBlobUploadUnknown, err.Error(), nil)
	case errors.Is(err, errUploadBusy):
		c.w.Header().Set("Retry-After", "1")
		c.fail(http.StatusConflict, codeBlobUploadInvalid, err.Error(), nil)
	default:
		c.failed(err)
	}
}

func (c *call) brokenUpload(err error) {
	var broken *bodyError
	switch {
	case errors.Is(err, errUploadUnknown):
		c.noUpload(err)
	case errors.As(err, &broken) && c.ctx.Err() == nil:
		c.fail(http.StatusBadRequest, codeBlobUploadInvalid, "the body ended before its end: "+broken.err.Error(), nil)
	default:
		c.failed(err)
	}
}

func (c *call) invalidDigest(given string) {
	c.fail(http.StatusBadRequest, codeDigestInvalid, oci.ErrDigest.Error(), map[string]string{"digest": given})
}

// mark is a place in an upload to which it can be rewound.
type mark struct {
	size int64
	hash []byte
}

func (s *session) mark() (mark, error) {
	sum, err := s.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return mark{}, fmt.Errorf("saving the hash of upload %s: %w", s.id, err)
	}
	return mark{s.size.Load(), sum}, nil
}

// rewind forgets what was received since; the next append cuts it off.
func (s *session) rewind(to mark) error {
	if err := s.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(to.hash); err != nil {
		return fmt.Errorf("restoring the hash of upload %s: %w", s.id, err)
	}
	s.size.Store(to.size)
	s.saved = false
	return nil
}
