package ingress

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// MaxReplayBody is the longest request body, in bytes, that is held in memory
// so that the request can be sent a second time. Longer ones, and those of
// unknown length, are streamed.
const MaxReplayBody = 64 << 10

var errBodyClosed = errors.New("the request body was closed")

// requestBody is the client's body. Each attempt to send it gets a view.
type requestBody struct {
	src    io.Reader
	length int64        // -1: not known
	taken  atomic.Int64 // bytes of it that were read

	mu      sync.Mutex // guards what follows
	buffer  *[]byte    // the whole of it, of a pool; nil when it is streamed
	touched bool       // some of a streamed body is gone
	ended   bool       // and the rest of it, too
	wasCut  bool       // reading it was ended here
	err     error      // why the client's body could not be read, nil for its end
	users   int        // of buffer: the views that are not closed, and the request
}

var bodyBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// empty tells that there is nothing to send.
func (b *requestBody) empty() bool { return b.length == 0 }

// fetch reads the whole body into memory if it is short enough and not
// promised only on demand (Expect: 100-continue).
func (b *requestBody) fetch(r *http.Request) error {
	if b.buffer != nil || b.length <= 0 || b.length > MaxReplayBody || r.Header["Expect"] != nil || b.touched {
		return nil
	}
	buffer := bodyBuffers.Get().(*[]byte)
	err := readInto(buffer, b.src, int(b.length))
	b.taken.Store(int64(len(*buffer)))
	if err != nil {
		bodyBuffers.Put(buffer)
		b.touched, b.err = true, err
		return err
	}
	b.buffer, b.users = buffer, 1
	return nil
}

// readInto reads n bytes into *buffer. Memory is taken as they come, not as they
// are promised: a promise costs a client nothing, and many can be made.
func readInto(buffer *[]byte, from io.Reader, n int) error {
	b := (*buffer)[:0]
	defer func() { *buffer = b }()
	for len(b) < n {
		if len(b) == cap(b) {
			b = slices.Grow(b, min(n, 4*cap(b))-len(b))
		}
		read, err := from.Read(b[len(b):min(n, cap(b))])
		b = b[:len(b)+read]
		switch {
		case len(b) == n:
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

// held is the body that is held in memory, nil for none. It is good until done.
func (b *requestBody) held() []byte {
	if b.buffer == nil {
		return nil
	}
	return *b.buffer
}

// streamed tells whether there is a body that is not held in memory.
func (b *requestBody) streamed() bool { return b.length != 0 && b.buffer == nil }

// cut tells whether a read of a streamed body may be under way, which the caller
// then has to end.
func (b *requestBody) cut() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.touched || b.ended || b.err != nil {
		return false
	}
	b.wasCut = true
	return true
}

// isCut tells whether cut did.
func (b *requestBody) isCut() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wasCut
}

// unread tells whether some of a streamed body is still to come, or was when it
// was cut: the server may take what ends the read for the client's end, and must
// not read on.
func (b *requestBody) unread() bool {
	if !b.streamed() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ended || b.wasCut
}

// failure is why the client's body could not be read, nil if nothing went
// wrong.
func (b *requestBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// view is the body from its beginning. The views made before read nothing
// more.
func (b *requestBody) view() *bodyView {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buffer != nil {
		b.users++
	}
	return &bodyView{body: b}
}

// replayable tells whether a further view would hold the whole body. v is the
// last view; it reads nothing more if so.
func (b *requestBody) replayable(v *bodyView) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.touched {
		return false
	}
	if v != nil {
		v.close()
	}
	return true
}

// done says that no further view will be made.
func (b *requestBody) done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leave()
}

// leave gives the buffer back after its last user. The transport may still be
// reading it after it has answered, or failed. b.mu must be held.
func (b *requestBody) leave() {
	if b.buffer == nil {
		return
	}
	if b.users--; b.users == 0 {
		bodyBuffers.Put(b.buffer)
		b.buffer = nil
	}
}

// bodyView is what one attempt reads. Closing it does not close the client's
// body: the next attempt may need that.
type bodyView struct {
	body   *requestBody
	at     int
	closed bool
	before func() // called before the client's body is first read, nil for nothing
}

func (v *bodyView) Read(p []byte) (int, error) {
	b := v.body
	b.mu.Lock()
	if v.closed {
		b.mu.Unlock()
		return 0, errBodyClosed
	}
	if b.buffer != nil {
		defer b.mu.Unlock()
		if v.at == len(*b.buffer) {
			return 0, io.EOF
		}
		n := copy(p, (*b.buffer)[v.at:])
		v.at += n
		return n, nil
	}
	first := !b.touched
	b.touched = true
	b.mu.Unlock() // reading may take the client's time
	if first && v.before != nil {
		v.before()
	}
	n, err := b.src.Read(p)
	taken := b.taken.Add(int64(n))
	if err != nil || taken == b.length {
		b.mu.Lock()
		b.ended = b.ended || err == nil || err == io.EOF
		if err != io.EOF {
			b.err = err
		}
		b.mu.Unlock()
	}
	return n, err
}

func (v *bodyView) Close() error {
	v.body.mu.Lock()
	defer v.body.mu.Unlock()
	v.close()
	return nil
}

// close closes v. The body's mu must be held.
func (v *bodyView) close() {
	if !v.closed {
		v.closed = true
		v.body.leave()
	}
}
