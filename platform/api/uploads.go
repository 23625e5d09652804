package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
	"github.com/denia-paas/denia/platform/store"
)

const (
	uploadLife  = time.Hour
	uploadStall = time.Minute // an upload that sends nothing for so long is given up
)

type upload struct {
	UploadID  platform.ID `json:"upload_id"`
	ExpiresAt timestamp   `json:"expires_at" doc:"It is kept until then, or until a deployment has used it."`
	SizeBytes int64       `json:"size_bytes" doc:"As sent."`
	Digest    string      `json:"digest" doc:"sha256:…, of the bytes as sent."`
}

// createUpload streams a build context to disk. By now the caller is known to
// be allowed to: a client that waits for 100 Continue has sent nothing yet.
func (a *API) createUpload(w http.ResponseWriter, r *http.Request) {
	u, replayed, err := a.receive(w, r)
	switch {
	case err != nil:
		fail(w, r, err)
		return
	case replayed != nil:
		replay(w, replayed)
		return
	}
	out := newReply()
	writeUpload(out, r, u)
	out.send(w, a.Log)
}

func writeUpload(out *reply, r *http.Request, u platform.Upload) {
	c := callFrom(r.Context())
	c.resource = u.ID
	out.header.Set("Content-Type", "application/json")
	out.header.Set("Location", "/v1/services/"+string(c.service.ID)+"/uploads/"+string(u.ID))
	out.WriteHeader(http.StatusCreated)
	_ = writeJSON(out, upload{u.ID, timestamp{u.ExpiresAt}, u.SizeBytes, u.Digest}) // a buffer takes everything
}

// receive stores an upload, or finds the reply an Idempotency-Key was given
// before. On any error no byte stays.
func (a *API) receive(w http.ResponseWriter, r *http.Request) (u platform.Upload, replayed *store.StoredReply, err error) {
	c := callFrom(r.Context())
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return u, nil, platform.Errorf(platform.Unsupported, "unsupported_content_encoding", "send the archive as it is, without Content-Encoding")
	}
	limit := a.UploadLimits.PackedBytes
	if limit == 0 {
		limit = source.DefaultLimits.PackedBytes
	}
	if r.ContentLength > limit {
		return u, nil, platform.Errorf(platform.TooLarge, "packed_too_large", "the upload is %d bytes; the limit is %d", r.ContentLength, limit)
	}
	if err := a.Plane.CheckReserve(); err != nil {
		return u, nil, err
	}
	want, err := source.ParseDigests(slices.Concat(r.Header.Values("Content-Digest"), r.Header.Values("Repr-Digest"))...)
	if err != nil {
		return u, nil, err
	}
	key, err := idempotency(c)
	if err != nil {
		return u, nil, err
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{}) // the server's would count the upload's time too
	body := &stallReader{body: r.Body, control: control}
	defer body.endWith(a.Plane.Draining())()
	id := store.NewID()
	path := filepath.Join(a.UploadsDir, string(id))
	got, err := source.Receive(r.Context(), body, r.Header.Get("Content-Type"), path, a.UploadLimits, want...)
	if err != nil {
		switch {
		case body.cut():
			err = platform.Wrap(err, platform.Unavailable, "draining", "Denia is shutting down: send the upload again in a moment")
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = platform.Wrap(err, platform.Malformed, "stalled", "the upload sent nothing for %s", uploadStall)
		}
		return u, nil, err
	}
	u = platform.Upload{ID: id, ServiceID: c.service.ID, SizeBytes: got.SizeBytes, Digest: got.Digest, ExpiresAt: time.Now().Add(uploadLife)}
	kept := false
	defer func() {
		if kept {
			return
		}
		if rmErr := os.Remove(path); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			a.Log.Error("removing an upload failed", "upload", id, "error", rmErr)
		}
	}()
	if key != nil {
		// The body is too large to be hashed ahead: its digest stands for it.
		if replayed, err = a.reserve(r.Context(), c, key, []byte(got.Digest)); err != nil || replayed != nil {
			return u, replayed, err
		}
		out := newReply()
		defer func() { a.settle(context.WithoutCancel(r.Context()), key, out) }()
		if err = a.Store.CreateUpload(r.Context(), u); err == nil {
			kept = true
			writeUpload(out, r, u)
		}
		return u, nil, err
	}
	err = a.Store.CreateUpload(r.Context(), u)
	kept = err == nil
	return u, nil, err
}

// stallReader gives each read of a body its own deadline: an upload may take
// hours, but not stand still, nor hold up the end of the process.
type stallReader struct {
	body    io.Reader
	control *http.ResponseController

	mu    sync.Mutex // between setting a deadline and cutting the read
	ended bool
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	_ = s.control.SetReadDeadline(time.Now().Add(uploadStall)) // not every server has deadlines
	s.mu.Unlock()
	return s.body.Read(p)
}

// endWith cuts the read short when done closes. The caller calls stop, which
// waits, when it reads no more.
func (s *stallReader) endWith(done <-chan struct{}) (stop func()) {
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-done:
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ended = true
			_ = s.control.SetReadDeadline(time.Unix(1, 0)) // not every server has deadlines
		case <-over:
		}
	})
	return func() {
		close(over)
		watching.Wait()
	}
}

func (s *stallReader) cut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}
