package ingress_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform/ingress"
)

// wrapped hides from the server that a body is its own, as middleware does.
type wrapped struct{ io.ReadCloser }

// What is left of a request's body when its answer has begun is never taken for
// a request, although it looks like one.
func TestWhatIsLeftOfABodyIsNoRequest(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	lot := strings.Repeat(evil, 4000) // more than the server reads to keep a connection
	post := "POST / HTTP/1.1\r\nHost: " + host + "\r\n"
	requests := map[string]struct{ head, rest string }{
		"length":       {post + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(evil)+len(lot)) + evil, lot},
		"little":       {post + fmt.Sprintf("Content-Length: %d\r\n\r\n", ingress.MaxReplayBody+len(evil)) + strings.Repeat("x", ingress.MaxReplayBody), evil},
		"chunks":       {post + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n%x\r\n", len(lot)), lot + "\r\n0\r\n\r\n"},
		"small chunks": {post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(evil), evil)},
		"on demand":    {post + fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(evil)), evil},
		"undecided":    {post + fmt.Sprintf("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", len(evil)), evil + "\r\n0\r\n\r\n"},
	}
	answers := map[string]func(w *world, addr string){
		"of the replica": func(w *world, addr string) { w.Configure(w.spec(bare(addr))) },
		"refusal": func(w *world, addr string) {
			spec := w.spec()
			spec.Stopped = true
			w.Configure(spec)
		},
		"no service": func(w *world, _ string) { w.SetRoutes(nil) },
	}
	for kind, request := range requests {
		for who, answer := range answers {
			for i := range 8 {
				only, wraps, duplex := i&1 != 0, i&2 != 0, i&4 != 0
				t.Run(fmt.Sprintf("%s/%s/transport %v, wrapped %v, duplex %v", kind, who, only, wraps, duplex), func(t *testing.T) {
					addr := raw(t, func(c net.Conn, from *bufio.Reader) {
						r, err := http.ReadRequest(from)
						if err != nil {
							return
						}
						if r.URL.Path != "/" {
							t.Errorf("the replica got %s %s", r.Method, r.URL)
						}
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						io.Copy(io.Discard, from)
					})
					w := newWorld(t, ingress.Options{TransportOnly: only})
					answer(w, addr)
					server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						if duplex {
							if err := http.NewResponseController(rw).EnableFullDuplex(); err != nil {
								t.Error(err)
							}
						}
						if wraps {
							r.Body = wrapped{r.Body}
						}
						w.ServeHTTP(rw, r)
					}))
					defer server.Close()
					c, err := net.Dial("tcp", server.Listener.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if _, err := io.WriteString(c, request.head); err != nil {
						t.Fatal(err)
					}
					from := bufio.NewReader(c)
					status, err := from.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					_, _ = io.WriteString(c, request.rest) // nobody may be there any more
					_ = c.(*net.TCPConn).CloseWrite()
					_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
					rest, err := io.ReadAll(from) // a reset is an end, too
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("the connection is not closed")
					}
					all := status + string(rest)
					if n := strings.Count(all, "HTTP/1.1 ") - strings.Count(all, "HTTP/1.1 100 "); n != 1 {
						t.Errorf("%d answers: %.1000q", n, all)
					}
				})
			}
		}
	}
}
