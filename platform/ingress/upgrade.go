package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// lingerFor is how long one half of a tunnel may go on alone where nobody is
// likely to want it.
const lingerFor = 10 * time.Second

// stuckFor is how long, at least, a tunnel's replica may take nothing of what
// there is for it.
const stuckFor = time.Minute

// quietBuffers are small: tunnels are many, mostly idle, and each holds two.
// While much comes at a time, copyBuffers serve instead.
var quietBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<10); return &b }}

// What is needed to open a tunnel is not needed to hold it, and when many are
// opened at once it would be most of what they cost.
var (
	aheads         = sync.Pool{New: func() any { return bufio.NewReader(nil) }}
	requestWriters = sync.Pool{New: func() any { return bufio.NewWriter(nil) }}
)

// upgradeTo is the protocol that the client asks to switch to, "" for none.
// HTTP/2 is no such protocol any more (RFC 9113 §3.1).
func (x *exchange) upgradeTo() string {
	r := x.r
	protocol := r.Header["Upgrade"]
	if len(protocol) == 0 || !hasToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	if x.bridge == nil && (r.ProtoMajor != 1 || r.ProtoMinor < 1) {
		return ""
	}
	if strings.EqualFold(protocol[0], "h2c") {
		return ""
	}
	return protocol[0]
}

// upgrade sends a request for another protocol to u, over a connection of its
// own, and tunnels when u agrees.
func (x *exchange) upgrade(u *upstream, protocol string) *failure {
	c, err := u.dial()
	if err != nil {
		return &failure{err: err, unsent: true}
	}
	defer c.Close()
	ctx := x.r.Context()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()

	view := x.body.view()
	defer view.Close()
	out := x.outgoing(u, ctx, view)
	out.Header["Connection"] = []string{"Upgrade"}
	out.Header["Upgrade"] = []string{protocol}
	asSpelt(out.Header)
	if err := writeRequest(c, out); err != nil {
		return &failure{err: err, view: view, unsent: c.untouchedSince(0), unread: c.unreadSince(traffic{})}
	}
	from := aheads.Get().(*bufio.Reader)
	res, err := firstAnswer(from, c, out)
	if err != nil {
		return &failure{
			err: err, view: view, unsent: c.untouchedSince(0), unread: c.unreadSince(traffic{}),
			final: c.received.Load() > 0,
		}
	}
	if x.bridge != nil {
		if err := x.bridge.check(res); err != nil {
			return &failure{err: err, view: view, final: true}
		}
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		// The body is left to the connection: closing it would wait for a read
		// that is under way, and then read on to an end that may never come.
		x.respond(u, res, func() { c.Close() })
		return nil
	}
	if got := res.Header.Get("Upgrade"); !strings.EqualFold(got, protocol) {
		return &failure{err: fmt.Errorf("the replica switched to %q, asked for %q", got, protocol), view: view, final: true}
	}
	// The server watches a stream's client to the end, and a connection's only
	// until it is taken over.
	if x.bridge == nil && !stop() {
		return &failure{err: context.Cause(ctx), view: view, final: true}
	}
	x.tunnel(u, c, from, res)
	return nil
}

// writeRequest sends the whole of a request.
func writeRequest(c *conn, out *http.Request) error {
	to := requestWriters.Get().(*bufio.Writer)
	defer requestWriters.Put(to)
	to.Reset(c)
	defer to.Reset(nil)
	if err := out.Write(to); err != nil {
		return err
	}
	return to.Flush()
}

// firstAnswer has from read what c gives, and reads the first answer that is not
// merely informational. net/http reads a head however long it is.
func firstAnswer(from *bufio.Reader, c *conn, out *http.Request) (*http.Response, error) {
	bound := &io.LimitedReader{R: c}
	from.Reset(bound)
	for range maxInterim {
		bound.N = maxHead
		res, err := http.ReadResponse(from, out)
		switch {
		case err != nil && bound.N == 0:
			return nil, errHeadTooLong
		case err != nil:
			return nil, err
		case res.StatusCode >= http.StatusOK || res.StatusCode == http.StatusSwitchingProtocols:
			bound.N = math.MaxInt64
			return res, nil
		}
	}
	return nil, errManyInterim
}

// asSpelt gives the fields of WebSockets the spelling of RFC 6455, as there are
// servers and clients that know no other.
func asSpelt(h http.Header) {
	for _, name := range [...]string{"Accept", "Extensions", "Key", "Protocol", "Version"} {
		if values, there := h["Sec-Websocket-"+name]; there {
			delete(h, "Sec-Websocket-"+name)
			h["Sec-WebSocket-"+name] = values
		}
	}
}

// client is who a tunnel's other end belongs to.
type client interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error // concurrently with Write
}

// tunnel answers the client that protocols are switched and copies both ways
// until both are done.
func (x *exchange) tunnel(u *upstream, c *conn, from *bufio.Reader, res *http.Response) {
	x.endless = true
	x.header = nil // tunnels are many and live for days, and nothing is sent anew
	t := tunnel{replica: c}
	if strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		t.frames = &frames{}
		x.protocol = "websocket"
	}
	var ahead *bufio.Reader // of what the client has sent already
	if x.bridge != nil {
		opened, err := x.bridge.open(x, res)
		if err != nil {
			x.gone = true
			return
		}
		t.client = opened
	} else {
		taken, buffered, err := x.takeOver(res)
		if err != nil {
			x.gone = true
			return
		}
		defer taken.Close()
		t.client, ahead = taken, buffered
	}
	defer func() {
		x.body.taken.Store(t.up)
		x.sent = t.down
	}()
	defer u.register(&stream{endless: true, end: t.cut})()
	sent := make(chan struct{})
	go t.send(ahead, sent)
	t.receive(from)
	if t.frames != nil && u.goingAway() {
		t.sayGoodbye()
	}
	<-sent
}

// takeOver has the server answer with the replica's 101 and give up the
// client's connection.
func (x *exchange) takeOver(res *http.Response) (net.Conn, *bufio.Reader, error) {
	h := x.w.Header()
	asSpelt(res.Header)
	maps.Copy(h, res.Header)
	x.begin(http.StatusSwitchingProtocols)
	taken, buffered, err := x.rc.Hijack()
	if err != nil {
		x.in.options.Log.Error("the HTTP server cannot switch protocols", "service", x.pool.name(), "error", err)
		panic(http.ErrAbortHandler)
	}
	// The server's timeouts are for requests.
	if err := errors.Join(taken.SetDeadline(time.Time{}), buffered.Flush()); err != nil {
		return nil, nil, errors.Join(err, taken.Close())
	}
	return taken, buffered.Reader, nil
}

// tunnel is a connection whose protocol is not HTTP any more.
type tunnel struct {
	client  client
	replica *conn
	frames  *frames // of what the client receives, nil unless WebSocket

	up, down int64 // bytes for the replica, and for the client
}

// send copies from the client to the replica, and closes done. ahead holds what
// the server has already read.
func (t *tunnel) send(ahead *bufio.Reader, done chan<- struct{}) {
	defer close(done)
	to := &stuckWriter{conn: t.replica}
	err := flushAhead(to, ahead, nil, &t.up)
	if err == nil {
		err = pump(to, t.client, nil, &t.up)
	}
	if err == nil {
		err = t.replica.CloseWrite()
	}
	if err != nil {
		// The replica's last words may still be on their way to the client.
		_ = t.replica.SetReadDeadline(time.Now().Add(lingerFor))
	}
}

// receive copies from the replica to the client. ahead, which it takes over,
// holds what came with the replica's answer.
func (t *tunnel) receive(ahead *bufio.Reader) {
	err := flushAhead(t.client, ahead, t.frames, &t.down)
	ahead.Reset(nil)
	aheads.Put(ahead)
	if err == nil {
		err = pump(t.client, t.replica, t.frames, &t.down)
	}
	_ = t.replica.SetWriteDeadline(time.Now().Add(lingerFor))
	half, ok := t.client.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		_ = t.client.SetReadDeadline(time.Now().Add(lingerFor))
		return
	}
	_ = t.client.SetReadDeadline(longAgo) // ends send
}

// stuckWriter writes to a replica until that is stuck. Who waits there does not
// see whether the client is there any more.
type stuckWriter struct {
	*conn
	until time.Time // the deadline that is set
}

func (w *stuckWriter) Write(b []byte) (int, error) {
	for written := 0; ; {
		// Not for each write: a deadline has its price.
		if now := time.Now(); w.until.Sub(now) < stuckFor {
			w.until = now.Add(stuckFor + stuckFor/4)
			_ = w.SetWriteDeadline(w.until)
		}
		n, err := w.conn.Write(b[written:])
		written += n
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
	}
}

// cut ends both halves.
func (t *tunnel) cut() {
	t.replica.Close()
	_ = t.client.SetReadDeadline(longAgo)
	_ = t.client.SetWriteDeadline(time.Now().Add(time.Second)) // for the goodbye
}

// sayGoodbye tells a WebSocket client that the endpoint goes away (RFC 6455
// §7.4.1), so that it knows to connect anew; only where a frame may stand.
func (t *tunnel) sayGoodbye() {
	if t.frames.between() {
		_, _ = t.client.Write([]byte{0x88, 2, 1001 >> 8, 1001 & 0xff})
	}
}

// flushAhead writes what a bufio.Reader, which may be nil, has read ahead, and
// counts it.
func flushAhead(to io.Writer, ahead *bufio.Reader, f *frames, count *int64) error {
	if ahead == nil {
		return nil
	}
	n := ahead.Buffered()
	if n == 0 {
		return nil
	}
	b, _ := ahead.Peek(n)
	f.advance(b)
	written, err := to.Write(b)
	*count += int64(written)
	return err
}

// pump copies until from ends, which gives nil, or either fails. It counts what
// it copied.
func pump(to io.Writer, from io.Reader, f *frames, count *int64) error {
	buffers := &quietBuffers
	buffer := buffers.Get().(*[]byte)
	defer func() { buffers.Put(buffer) }()
	for {
		n, err := from.Read(*buffer)
		if n > 0 {
			f.advance((*buffer)[:n])
			written, err := to.Write((*buffer)[:n])
			*count += int64(written)
			if err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		wanted := buffers
		switch {
		case n == len(*buffer):
			wanted = &copyBuffers
		case n <= 1<<10:
			wanted = &quietBuffers
		}
		if wanted != buffers {
			buffers.Put(buffer)
			buffers, buffer = wanted, wanted.Get().(*[]byte)
		}
	}
}
