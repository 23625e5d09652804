package ingress

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// pseudoProtocol is where HTTP/2 servers leave the protocol of an extended
// CONNECT. HTTP/3's has it in Request.Proto.
const pseudoProtocol = ":protocol"

var refuseProtocol = &refusal{
	status: http.StatusNotImplemented, code: "protocol_not_supported", title: "Not supported",
	detail: "Of the protocols that run on a stream of HTTP/2 or HTTP/3, Denia forwards WebSockets.",
}

// bridge is an extended CONNECT (RFC 8441, RFC 9220): a WebSocket on a stream
// of HTTP/2 or HTTP/3. Replicas are asked with the GET of HTTP/1.1 that every
// WebSocket server knows.
type bridge struct {
	stream io.Reader // of the client
	accept string    // what the replica has to answer to the key it was sent
}

// connect makes the exchange one of the GET that a CONNECT stands for. It gives
// the refusal of one that stands for none.
func (x *exchange) connect() *refusal {
	r := x.r
	var protocol string
	switch {
	case r.ProtoMajor == 2 && len(r.Header[pseudoProtocol]) == 1:
		protocol = r.Header[pseudoProtocol][0]
	case r.ProtoMajor == 3 && !strings.HasPrefix(r.Proto, "HTTP/"):
		protocol = r.Proto
	default:
		return refuseConnect
	}
	if !strings.EqualFold(protocol, "websocket") {
		return refuseProtocol
	}
	key, accept := socketKey()
	x.bridge = &bridge{stream: r.Body, accept: accept}
	x.protocol = "websocket"
	x.r = r.WithContext(r.Context())
	x.r.Method = http.MethodGet
	x.r.Body, x.r.ContentLength = http.NoBody, 0
	header := maps.Clone(r.Header)
	delete(header, pseudoProtocol)
	delete(header, "Content-Length")
	header["Upgrade"] = []string{"websocket"}
	header["Connection"] = []string{"Upgrade"}
	header["Sec-Websocket-Key"] = []string{key}
	x.r.Header = header
	return nil
}

// socketKey makes a key for a WebSocket's handshake, and the only answer to it
// that may be accepted (RFC 6455 §4.1).
func socketKey() (key, accept string) {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	key = base64.StdEncoding.EncodeToString(random[:])
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return key, base64.StdEncoding.EncodeToString(sum[:])
}

// check finds fault with the replica's answer, before the client hears of it. A
// client takes any 2xx for an open WebSocket, so none may be passed on that a
// replica gave without one.
func (b *bridge) check(res *http.Response) error {
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols && res.Header.Get("Sec-Websocket-Accept") != b.accept:
		return fmt.Errorf("the replica answered a WebSocket's handshake with another key's %q", res.Header.Get("Sec-Websocket-Accept"))
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return fmt.Errorf("the replica answered a WebSocket's handshake with status %d, want 101", res.StatusCode)
	}
	return nil
}

// open answers the client that its WebSocket is there.
func (b *bridge) open(x *exchange, res *http.Response) (client, error) {
	h := x.w.Header()
	for name, values := range res.Header {
		if !hopByHop(name) && name != "Sec-Websocket-Accept" {
			h[name] = values
		}
	}
	asItCame(h)
	if loosen := x.in.options.Endless; loosen != nil {
		loosen(x.r)
	}
	x.begin(http.StatusOK)
	if err := x.rc.Flush(); err != nil {
		return nil, err
	}
	// The server's timeouts are for requests. Where they cannot be set, there
	// are none.
	_ = x.rc.SetReadDeadline(time.Time{})
	_ = x.rc.SetWriteDeadline(time.Time{})
	return &streamClient{Reader: b.stream, w: x.w, rc: x.rc, conn: http.NewResponseController(innermost(x.w))}, nil
}

// streamClient is a stream of HTTP/2 or HTTP/3 as what it carries sees it. It
// ends when the handler returns.
type streamClient struct {
	io.Reader
	w    http.ResponseWriter
	rc   *http.ResponseController
	conn *http.ResponseController // of the server's own writer
}

func (c *streamClient) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	if err == nil {
		err = c.rc.Flush()
	}
	return n, err
}

func (c *streamClient) SetReadDeadline(t time.Time) error { return c.rc.SetReadDeadline(t) }

// SetWriteDeadline may be called while another goroutine writes, which what
// middleware wraps around the writer is not made for.
func (c *streamClient) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}
