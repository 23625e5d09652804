package ingress

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/denia-paas/denia/platform"
)

// copyBuffer is large enough for a large answer to take few system calls, and
// no larger than what Caddy's server writes at once.
const copyBuffer = 64 << 10

// copyBuffers hold what is on its way from a replica to a client.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// longAgo as a deadline ends a read that is under way.
var longAgo = time.Unix(1, 0)

// attempt follows one request through the transport.
type attempt struct {
	x      *exchange
	trace  httptrace.ClientTrace
	conn   *conn   // the connection the request was given, nil before
	before traffic // what had gone over it before
	wrote  atomic.Bool

	mu        sync.Mutex // guards what follows, and the client's header until answered
	answered  bool
	proceeded bool
	interim   int // informational answers that came
}

// forward sends the request to u and the answer to the client.
func (x *exchange) forward(u *upstream) *failure {
	multiplexed := u.target.Protocol == platform.ProtocolH2C
	a := &attempt{x: x}
	a.trace.GotConn = a.gotConn
	a.trace.Got1xxResponse = a.informational
	if multiplexed {
		a.trace.WroteHeaders = func() { a.wrote.Store(true) }
	}
	view := x.body.view()
	ctx, cancel := context.WithCancel(httptrace.WithClientTrace(x.r.Context(), &a.trace))
	defer cancel()
	out := x.outgoing(u, ctx, view)
	if x.body.streamed() {
		if x.r.ProtoMajor == 1 {
			// The replica may answer while it still receives. A writer that
			// cannot do this answers later, which is all there is to it.
			_ = x.rc.EnableFullDuplex()
			if x.r.Header["Expect"] != nil && x.r.ProtoAtLeast(1, 1) {
				a.trace.Got100Continue = a.proceed
				view.before = a.proceed
			}
		}
		if multiplexed && x.in.options.Endless != nil {
			x.in.options.Endless(x.r) // the streams of gRPC stay silent for hours
		}
		// A transport that waits for the client's next bytes does not notice
		// that the replica's connection is closed.
		defer u.register(&stream{end: func() {
			if x.body.cut() {
				_ = x.rc.SetReadDeadline(longAgo)
			}
		}})()
	}

	res, err := u.transport.RoundTrip(out)
	a.mu.Lock()
	a.answered = true
	a.mu.Unlock()
	if err != nil {
		failed := &failure{err: err, view: view}
		switch {
		case a.conn == nil:
			failed.unsent = true
		case multiplexed:
			failed.unsent = !a.wrote.Load()
		default:
			failed.unsent = a.conn.untouchedSince(a.before.sent)
			failed.unread = a.conn.unreadSince(a.before)
			failed.final = a.conn.received.Load() != a.before.received
		}
		return failed
	}
	// A multiplexed answer's body, when it is closed, waits until the client's is
	// read, unless the request was given up.
	end := func() {
		cancel()
		res.Body.Close()
	}
	defer end()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return &failure{err: errSwitchUnasked, view: view, final: true}
	}
	if res.StatusCode < http.StatusOK {
		return &failure{err: errStatusLine, view: view}
	}
	x.respond(u, res, end)
	return nil
}

// outgoing is the request as it is sent to u.
func (x *exchange) outgoing(u *upstream, ctx context.Context, view *bodyView) *http.Request {
	out := x.r.WithContext(ctx)
	url := *x.r.URL
	url.Scheme, url.Host, url.User = "http", u.target.Addr, nil
	out.URL = &url
	out.Header = x.header
	out.Close = false
	out.TransferEncoding = nil
	out.Body = http.NoBody
	if !x.body.empty() {
		out.Body = view
	}
	return out
}

func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	if c, ok := info.Conn.(*conn); ok {
		a.conn, a.before = c, c.traffic()
	}
}

// informational forwards a 1xx answer.
func (a *attempt) informational(code int, header textproto.MIMEHeader) error {
	x := a.x
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answered {
		return nil
	}
	if a.interim++; a.interim >= maxInterim {
		return errManyInterim
	}
	x.inform(code, func(h http.Header) {
		for name, values := range header {
			if !hopByHop(name) {
				h[name] = values
			}
		}
	})
	return nil
}

// proceed has an HTTP/1 client that waits for it (Expect) send its body. The
// server would say so by itself when the body is first read, but possibly in the
// midst of another informational answer.
func (a *attempt) proceed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answered || a.proceeded {
		return
	}
	a.proceeded = true
	h := a.x.w.Header()
	final := maps.Clone(h)
	clear(h)
	a.x.w.WriteHeader(http.StatusContinue)
	maps.Copy(h, final)
}

// inform gives the client a 1xx answer with the fields of set. 100 is not among
// them: the client gets that when its body is first read, which the transport
// does when it gets one.
func (x *exchange) inform(code int, set func(http.Header)) {
	if code == http.StatusContinue || !x.r.ProtoAtLeast(1, 1) {
		return
	}
	h := x.w.Header()
	final := maps.Clone(h)
	set(h)
	x.w.WriteHeader(code)
	clear(h)
	maps.Copy(h, final)
}

// respond hands the answer on. end ends a read of its body, and waits for
// nothing.
func (x *exchange) respond(u *upstream, res *http.Response, end func()) {
	h := x.w.Header()
	if connection := res.Header["Connection"]; connection != nil {
		removeListed(res.Header, connection)
	}
	for name, values := range res.Header {
		if !hopByHop(name) {
			h[name] = values
		}
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	if announced > 0 && x.r.ProtoMajor == 1 {
		// HTTP/2 has both a length and trailers, HTTP/1.1 either.
		delete(h, "Content-Length")
	}
	if res.StatusCode == http.StatusNoContent {
		delete(h, "Content-Length") // which it must not have (RFC 9110 §8.6)
	}
	asItCame(h)
	x.begin(res.StatusCode)
	if res.Body == http.NoBody {
		return
	}
	events := isEventStream(res.Header)
	x.endless = events
	if events {
		defer u.register(&stream{endless: true, end: end})()
	}
	// Where the end is not known, every piece may be the last for long.
	flush := events || res.ContentLength < 0
	if flush && x.rc.Flush() != nil || !x.copyBody(res.Body, flush) {
		x.gone = true
		return
	}
	if len(res.Trailer) == 0 {
		return
	}
	_ = x.rc.Flush() // trailers need chunks, also after a short body
	for name, values := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// copyBody tells whether the client got all of it.
func (x *exchange) copyBody(body io.Reader, flush bool) bool {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := body.Read(*buffer)
		if n > 0 {
			written, err := x.w.Write((*buffer)[:n])
			x.sent += int64(written)
			if err != nil {
				return false
			}
			if flush && x.rc.Flush() != nil {
				return false
			}
		}
		if err == io.EOF {
			return true
		}
		if err != nil {
			x.breakOff()
		}
	}
}

// breakOff panics. The status is out: only a broken connection can still tell
// the client that this is not the whole.
func (x *exchange) breakOff() {
	x.broken = x.r.Context().Err() == nil || x.body.isCut()
	if x.r.ProtoMajor == 1 && x.body.unread() {
		// The server would wait for more of the request first.
		if c, _, err := x.rc.Hijack(); err == nil {
			c.Close()
		}
	}
	panic(http.ErrAbortHandler)
}

func isEventStream(h http.Header) bool {
	if types := h["Content-Type"]; len(types) > 0 {
		kind, _, _ := strings.Cut(types[0], ";")
		return strings.EqualFold(textproto.TrimString(kind), "text/event-stream")
	}
	return false
}
