// Package testsocket opens WebSockets on streams of HTTP/2 and HTTP/3, which no
// WebSocket client for Go does by itself.
package testsocket

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"
)

// HTTP2 is a Transport whose connections all lead to addr. Call closeIdle when
// it is not needed any more.
func HTTP2(addr string, roots *tls.Config) (t *Transport, closeIdle func()) {
	// net/http's own transport takes no field :protocol.
	//nolint:staticcheck // so its replacement is none
	inner := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, c *tls.Config) (net.Conn, error) {
		c.RootCAs = roots.RootCAs
		return (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", addr)
	}}
	return &Transport{RoundTripper: inner}, inner.CloseIdleConnections //nolint:staticcheck // as above
}

// Transport sends a WebSocket's opening GET as an extended CONNECT (RFC 8441,
// RFC 9220), and makes a 101 of the 200 that comes back. All other requests,
// answers and errors are those of the RoundTripper within.
type Transport struct {
	http.RoundTripper      // of golang.org/x/net/http2, or of quic-go/http3
	HTTP3             bool // which of the two
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Upgrade") == "" {
		return t.RoundTripper.RoundTrip(r)
	}
	body, feed := io.Pipe()
	out := r.Clone(r.Context())
	out.Method = http.MethodConnect
	out.Body, out.ContentLength = body, -1
	for _, name := range []string{"Upgrade", "Connection", "Sec-WebSocket-Key"} {
		out.Header.Del(name)
	}
	if t.HTTP3 {
		out.Proto = r.Header.Get("Upgrade")
	} else {
		out.Header[":protocol"] = r.Header["Upgrade"]
	}
	res, err := t.RoundTripper.RoundTrip(out)
	if err != nil {
		return nil, errors.Join(err, feed.Close())
	}
	if res.StatusCode != http.StatusOK {
		return res, feed.Close()
	}
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	res.StatusCode = http.StatusSwitchingProtocols
	res.Header.Set("Upgrade", "websocket")
	res.Header.Set("Connection", "Upgrade")
	res.Header.Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
	res.Body = &stream{ReadCloser: res.Body, feed: feed}
	return res, nil
}

// stream is both ways of a stream.
type stream struct {
	io.ReadCloser
	feed *io.PipeWriter
}

func (s *stream) Write(b []byte) (int, error) { return s.feed.Write(b) }

func (s *stream) Close() error { return errors.Join(s.feed.Close(), s.ReadCloser.Close()) }
