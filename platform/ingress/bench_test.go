package ingress_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// sink takes an answer as a server does, and allocates nothing but what every
// server has to: the header's own map is kept from one request to the next.
type sink struct {
	header http.Header
	status int
	bytes  int64
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(b []byte) (int, error) { s.bytes += int64(len(b)); return len(b), nil }
func (s *sink) Flush()                      {}

func (s *sink) reset() {
	clear(s.header)
	s.status, s.bytes = 0, 0
}

// canned is a replica that gives the same answer again and again and allocates
// nothing while it does. It takes requests without a body for one segment.
func canned(t testing.TB, body int) ingress.Target {
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nLast-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\nEtag: \"5f1b-c8\"\r\nConnection: keep-alive\r\nAccept-Ranges: bytes\r\n\r\n", body)
	answer = append(answer, bytes.Repeat([]byte("x"), body)...)
	at := target("a", raw(t, func(c net.Conn, from *bufio.Reader) {
		for {
			if _, err := from.Peek(1); err != nil {
				return
			}
			from.Discard(from.Buffered())
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}))
	at.Health.Type = platform.HealthNone
	return at
}

// serving is an Ingress without a server, with one target.
func serving(t testing.TB, o ingress.Options, at ingress.Target) *ingress.Ingress {
	in := ingress.New(o)
	t.Cleanup(in.Close)
	in.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}})
	in.Configure(ingress.PoolSpec{ServiceID: service, Name: "web", Serving: []ingress.Target{at}})
	return in
}

// browser is a request as a browser sends it.
func browser(t testing.TB) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader([]byte("GET /assets/app.js?v=3 HTTP/1.1\r\nHost: " + host + "\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n" +
		"Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://" + host + "/\r\n" +
		"Connection: keep-alive\r\nCookie: session=6f1c0b7d8a9e4f52b3c4d5e6f7a8b9c0\r\nSec-Fetch-Dest: script\r\n\r\n"))))
	if err != nil {
		t.Fatal(err)
	}
	r.RemoteAddr = "198.51.100.7:50000"
	r.URL, _ = url.ParseRequestURI(r.RequestURI)
	return r.WithContext(t.Context())
}

func BenchmarkPlain(b *testing.B) {
	for _, transport := range []bool{false, true} {
		for _, size := range []int{200, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("transport=%v/%d", transport, size), func(b *testing.B) {
				in := serving(b, ingress.Options{TransportOnly: transport}, canned(b, size))
				r := browser(b)
				w := &sink{header: http.Header{}}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					w.reset()
					in.ServeHTTP(w, r)
				}
				if w.status != http.StatusOK || w.bytes != int64(size) {
					b.Fatalf("%d, %d bytes", w.status, w.bytes)
				}
			})
		}
	}
}

// What a server does around a request costs about 63 allocations within Caddy;
// the promise is 80 in all.
func TestAllocationsOfAPlainRequest(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		in := serving(t, ingress.Options{}, canned(t, 200))
		r := browser(t)
		r.Method = method
		body := bytes.NewReader(make([]byte, 100))
		if method == http.MethodPost {
			r.Body, r.ContentLength = io.NopCloser(body), int64(body.Len())
		}
		w := &sink{header: http.Header{}}
		got := testing.AllocsPerRun(200, func() {
			w.reset()
			body.Seek(0, io.SeekStart)
			in.ServeHTTP(w, r)
		})
		if w.status != http.StatusOK || w.bytes != 200 {
			t.Fatalf("%s: %d, %d bytes", method, w.status, w.bytes)
		}
		if got > 8 {
			t.Errorf("%s: %v allocations", method, got)
		}
	}
}
