package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// lingerFor is how long one half of a tunnel may go on alone where nobody is
// likely to want it.
const lingerFor = 10 * time.Second

// tunnelBuffers are small: tunnels are many, mostly idle, and each holds two.
var tunnelBuffers = sync.Pool{New: func() any { b := make([]byte, 4<<10); return &b }}

// upgradeTo is the protocol that the client asks to switch to, "" for none.
// HTTP/2 is no such protocol any more (RFC 9113 §3.1).
func upgradeTo(r *http.Request) string {
	protocol := r.Header["Upgrade"]
	if len(protocol) == 0 || !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1 || !hasToken(r.Header["Connection"], "upgrade") {
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
	out.Header = maps.Clone(x.header)
	out.Header["Connection"] = []string{"Upgrade"}
	out.Header["Upgrade"] = []string{protocol}
	if err := out.Write(c); err != nil {
		return &failure{err: err, view: view, unsent: c.untouchedSince(0), unread: c.unreadSince(traffic{})}
	}
	from := bufio.NewReader(c)
	res, err := x.readAnswer(from, out)
	if err != nil {
		return &failure{err: err, view: view, unsent: c.untouchedSince(0), unread: c.unreadSince(traffic{})}
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		x.respond(u, res)
		return nil
	}
	if got := res.Header.Get("Upgrade"); !strings.EqualFold(got, protocol) {
		return &failure{err: fmt.Errorf("the replica switched to %q, asked for %q", got, protocol), view: view, final: true}
	}
	if !stop() {
		return &failure{err: context.Cause(ctx), view: view, final: true}
	}
	x.tunnel(u, c, from, res)
	return nil
}

// readAnswer reads the first answer that is not merely informational.
func (x *exchange) readAnswer(from *bufio.Reader, out *http.Request) (*http.Response, error) {
	for range 10 {
		res, err := http.ReadResponse(from, out)
		if err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, nil
		}
	}
	return nil, errors.New("the replica sent too many informational answers")
}

// tunnel answers the client that protocols are switched and copies both ways
// until both are done.
func (x *exchange) tunnel(u *upstream, c *conn, from *bufio.Reader, res *http.Response) {
	h := x.w.Header()
	maps.Copy(h, res.Header)
	x.w.WriteHeader(http.StatusSwitchingProtocols)
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		x.in.options.Log.Error("the HTTP server cannot switch protocols", "service", x.pool.name(), "error", err)
		panic(http.ErrAbortHandler)
	}
	defer client.Close()
	// The server's timeouts are for requests.
	if client.SetDeadline(time.Time{}) != nil || buffered.Flush() != nil {
		return
	}
	t := tunnel{client: client, replica: c}
	if strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		t.frames = &frames{}
	}
	defer u.register(&stream{endless: true, end: t.cut})()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		t.send(buffered.Reader)
	}()
	t.receive(from)
	if t.frames != nil && u.goingAway() {
		t.sayGoodbye()
	}
	<-sent
}

// tunnel is a connection whose protocol is not HTTP any more.
type tunnel struct {
	client  net.Conn
	replica *conn
	frames  *frames // of what the client receives, nil unless WebSocket
}

// send copies from the client to the replica. ahead holds what the server has
// already read.
func (t *tunnel) send(ahead *bufio.Reader) {
	err := flushAhead(t.replica, ahead, nil)
	if err == nil {
		err = pump(t.replica, t.client, nil)
	}
	if err == nil {
		err = t.replica.CloseWrite()
	}
	if err != nil {
		// The replica's last words may still be on their way to the client.
		_ = t.replica.SetReadDeadline(time.Now().Add(lingerFor))
	}
}

// receive copies from the replica to the client.
func (t *tunnel) receive(ahead *bufio.Reader) {
	err := flushAhead(t.client, ahead, t.frames)
	if err == nil {
		err = pump(t.client, t.replica, t.frames)
	}
	half, ok := t.client.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		_ = t.client.SetReadDeadline(time.Now().Add(lingerFor))
		return
	}
	_ = t.client.SetReadDeadline(longAgo) // ends send
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

// flushAhead writes what a bufio.Reader has read ahead.
func flushAhead(to io.Writer, ahead *bufio.Reader, f *frames) error {
	n := ahead.Buffered()
	if n == 0 {
		return nil
	}
	b, _ := ahead.Peek(n)
	f.advance(b)
	_, err := to.Write(b)
	return err
}

// pump copies until from ends, which gives nil, or either fails.
func pump(to io.Writer, from io.Reader, f *frames) error {
	buffer := tunnelBuffers.Get().(*[]byte)
	defer tunnelBuffers.Put(buffer)
	for {
		n, err := from.Read(*buffer)
		if n > 0 {
			f.advance((*buffer)[:n])
			if _, err := to.Write((*buffer)[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
