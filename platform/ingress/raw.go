package ingress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Plain requests, which are most, go to their replica without net/http's
// transport: the goroutine that serves the client writes the request and reads
// the answer by itself. That is about half the work. Plain are those whose body
// is held in memory, if there is one, to a replica that speaks HTTP/1.1; the
// transport has all others. What is promised of an answer, and of a request
// that fails, is the same for both.

const (
	// soon is how long an answer may take before the client is watched, so
	// that the replica hears it when the client leaves. Most answers come
	// before that, and need no watch.
	soon = 100 * time.Millisecond

	// A write of no more than this goes into the buffers of any connection
	// over which nothing is under way, so it does not wait for the replica.
	unwatchedWrite = 8 << 10

	hopBuffer = 4 << 10
)

// hop is one attempt to have a plain request answered.
type hop struct {
	x      *exchange
	u      *upstream
	now    time.Time // when the try began
	c      *conn     // nil once it is somebody else's
	before traffic
	reused bool

	buf    []byte // own or large
	r, w   int    // buf[r:w] is read, and not used
	filled bool   // the last read gave all there was room for
	own    []byte
	large  *[]byte // of copyBuffers
	vector [2][]byte
	parts  net.Buffers

	head      answerHead
	trailers  []field
	streamed  bool // the client is to get what there is without waiting for more
	unflushed bool
	unwatch   func() bool // nil while the client is not watched
	writeErr  error
	readErr   error // of what was read before, nil once it was told
}

var hops = sync.Pool{New: func() any { return &hop{own: make([]byte, hopBuffer)} }}

// isPlain tells whether the request, whose body has been fetched, can go to u
// without the transport.
func (x *exchange) isPlain(u *upstream) bool {
	return u.target.Protocol != platform.ProtocolH2C && !x.body.streamed() && len(x.r.Trailer) == 0 && !x.in.options.TransportOnly
}

// forwardPlain sends a plain request to u and the answer to the client.
func (x *exchange) forwardPlain(u *upstream) *failure {
	h := hops.Get().(*hop)
	defer h.done()
	h.x, h.u = x, u
	h.now = time.Now()
	failed := h.try(false)
	// A replica may give an idle connection up at any time. A request that it
	// cannot have begun, or that it may get twice, gets a connection of its
	// own at once; that it was repeated is no sign of a broken replica.
	if failed != nil && h.reused && (failed.unsent || x.tries == 1 && idempotent(x.r) && h.unanswered()) &&
		x.r.Context().Err() == nil && !u.ended.Load() {
		first := failed
		h.drop()
		h.now = time.Now()
		x.tries++
		if failed = h.try(true); failed != nil && !first.unsent {
			failed.twice = !failed.unsent
			failed.unsent = false
		}
	}
	return failed
}

// unanswered tells that no byte of an answer came.
func (h *hop) unanswered() bool {
	return h.c != nil && h.c.received.Load() == h.before.received
}

// try does everything once, over a connection of its own if anew.
func (h *hop) try(anew bool) *failure {
	x := h.x
	body := x.body.held()
	request, err := x.appendRequest(h.own[:0], len(body))
	h.own = request[:cap(request)]
	if err != nil {
		return &failure{err: err, refused: refuseRequest}
	}
	for {
		if h.reused = false; !anew {
			h.c = h.u.idle.take(h.now)
			h.reused = h.c != nil
		}
		if h.c == nil {
			if h.c, err = h.u.dial(); err != nil {
				return &failure{err: err, unsent: true}
			}
		}
		h.before = h.c.traffic()
		if err = h.ask(request, body); !errors.Is(err, errDisturbed) {
			break
		}
		h.drop()
	}
	if err != nil {
		return &failure{
			err: err, unsent: h.c.untouchedSince(h.before.sent), unread: h.c.unreadSince(h.before),
			final: !h.unanswered(), // what came may have been acted upon
		}
	}
	if h.head.status == http.StatusSwitchingProtocols {
		return &failure{err: errSwitchUnasked, final: true}
	}
	h.respond()
	return nil
}

// ask sends the request and reads the head of the answer. It sends nothing and
// returns errDisturbed where there was something to read before.
func (h *hop) ask(request, body []byte) error {
	h.buf, h.r, h.w = h.own, 0, 0
	h.writeErr, h.readErr = nil, nil
	if size := len(request) + len(body); size <= unwatchedWrite && size <= cap(request) {
		if err := h.askAtOnce(append(request, body...)); err != nil {
			return err
		}
	} else {
		if h.reused && !h.c.quiet() {
			return h.c.disturbed()
		}
		h.c.watchAfter(h.now)
		if size > unwatchedWrite {
			h.watch()
		}
		h.vector = [2][]byte{request, body}
		h.parts = h.vector[:]
		h.writeErr = h.c.writeAll(&h.parts, int64(size))
	}
	if errors.Is(h.writeErr, net.ErrClosed) {
		return h.writeErr
	}
	// A replica that does not want to read it all may have answered.
	for range maxInterim {
		err := h.readHead()
		switch {
		case err != nil && h.writeErr != nil && h.unanswered():
			return h.writeErr
		case err != nil:
			return err
		case h.head.status >= http.StatusOK || h.head.status == http.StatusSwitchingProtocols:
			return nil
		}
		h.x.inform(h.head.status, func(header http.Header) { setFields(header, h.head.fields) })
	}
	return errManyInterim
}

// askAtOnce sends a short request and reads what comes first. The errors of
// writing and of reading are left for who reads on.
func (h *hop) askAtOnce(request []byte) error {
	h.c.watchAfter(h.now)
	asked, err := h.c.ask(request, h.buf, h.reused)
	for !asked && errors.Is(err, os.ErrDeadlineExceeded) {
		h.c.watchAfter(time.Now()) // it took this goroutine long to get here
		asked, err = h.c.ask(request, h.buf, h.reused)
	}
	if !asked {
		return err
	}
	a := &h.c.asking
	h.w, h.writeErr, h.readErr = a.n, a.writeErr, a.readErr
	h.filled = h.w == len(h.buf)
	return nil
}

// readHead reads the next head of an answer.
func (h *hop) readHead() error {
	seen := 0 // of it, without finding its end
	for {
		unread := h.buf[h.r:h.w]
		if end := bytes.Index(unread[seen:], []byte("\r\n\r\n")); end >= 0 {
			end += seen + 2
			h.r += end + 2
			return h.head.parse(string(unread[:end]), h.x.r.Method == http.MethodHead)
		}
		if err := beginning(unread, seen); err != nil {
			return err
		}
		seen = max(0, len(unread)-3)
		if len(unread) == len(h.buf) {
			if err := h.grow(); err != nil {
				return err
			}
		} else if h.r > 0 {
			h.w = copy(h.buf, unread)
			h.r = 0
		}
		if err := h.read(len(h.buf)); err != nil {
			if errors.Is(err, io.EOF) && h.w > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// beginning looks at a head whose end has not come, seen bytes of which it has
// looked at before. The end may never come, so what cannot become a head is not
// waited for.
func beginning(unread []byte, seen int) error {
	if n := min(len(unread), len(version)); string(unread[:n]) != version[:n] {
		return errNotHTTP
	}
	for at := seen; ; at++ {
		end := bytes.IndexByte(unread[at:], '\n')
		if end < 0 {
			return nil
		}
		if at += end; unread[at-1] != '\r' {
			return errLineEnd
		}
	}
}

// grow makes room in a buffer that is full and not used.
func (h *hop) grow() error {
	if len(h.buf) >= maxHead {
		return errHeadTooLong
	}
	h.enlarge()
	return nil
}

// read reads into buf[w:end], at least one byte.
func (h *hop) read(end int) error {
	for {
		n, err := 0, h.readErr
		if err == nil {
			n, err = h.c.Read(h.buf[h.w:end])
		}
		h.readErr = nil
		if n > 0 {
			h.w += n
			h.filled = h.w == end
			return nil
		}
		if h.unwatch != nil || h.writeErr != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		h.watch()
	}
}

// watch closes the connection when the client leaves.
func (h *hop) watch() {
	c := h.c
	c.watchAfter(time.Time{})
	h.unwatch = context.AfterFunc(h.x.r.Context(), func() { c.Close() })
}

// respond hands the answer on.
func (h *hop) respond() {
	x, head := h.x, &h.head
	header := x.w.Header()
	setFields(header, head.fields)
	asItCame(header)
	for _, name := range head.trailers {
		header.Add("Trailer", name)
	}
	if head.length == int64(h.w-h.r) {
		// It is all here, so how fast the client takes it is no concern of
		// the connection's.
		body := h.buf[h.r:h.w]
		h.r = h.w
		h.release()
		if whole := x.in.options.Whole; whole != nil {
			if written := whole(x.r); written != nil {
				defer written()
			}
		}
		x.begin(head.status)
		if len(body) > 0 {
			x.gone = h.give(body) != nil
		}
		return
	}
	x.begin(head.status)
	h.streamed = head.events || head.length < 0
	x.endless = head.events
	h.unflushed = true
	if head.events {
		c := h.c
		defer h.u.register(&stream{endless: true, end: func() { c.Close() }})()
	}
	if err := h.copyBody(); err != nil {
		if errors.Is(err, errClient) {
			x.gone = true
			return
		}
		// The status is out: only a broken connection can still tell the
		// client that this is not the whole.
		panic(http.ErrAbortHandler)
	}
	h.release()
	h.addTrailers(header)
}

// addTrailers hands the trailers on.
func (h *hop) addTrailers(header http.Header) {
	if len(h.trailers) == 0 {
		return
	}
	_ = h.flush() // trailers need chunks, also after a short body
	for _, name := range h.head.trailers {
		delete(header, name) // a field of that name is on its way already
	}
	for _, f := range h.trailers {
		name := f.name
		if !slices.Contains(h.head.trailers, name) {
			name = http.TrailerPrefix + name
		}
		header[name] = append(header[name], f.value)
	}
}

// release gives the connection back after a whole answer.
func (h *hop) release() {
	if h.head.close || h.r != h.w || h.writeErr != nil || h.readErr != nil || h.unwatch != nil && !h.unwatch() {
		return // it goes with h
	}
	h.unwatch = nil
	h.u.idle.put(h.c)
	h.c = nil
}

// drop closes the connection.
func (h *hop) drop() {
	if h.unwatch != nil {
		h.unwatch()
		h.unwatch = nil
	}
	if h.c != nil {
		h.c.Close()
		h.c = nil
	}
}

// done makes h ready for the next.
func (h *hop) done() {
	h.drop()
	if h.large != nil {
		copyBuffers.Put(h.large)
	}
	h.head.reset()
	clear(h.trailers)
	if cap(h.own) > 4*hopBuffer || cap(h.head.fields)+cap(h.trailers) > 256 {
		return // what a large header needs must not stay for good
	}
	*h = hop{own: h.own, head: h.head, trailers: h.trailers[:0]}
	hops.Put(h)
}
