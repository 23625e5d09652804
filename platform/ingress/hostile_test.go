package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/denia-paas/denia/platform/ingress"
)

// Replicas that do what none should. All tests go the way of plain requests.

// answering is a replica that answers every request with the same bytes and
// keeps the connection. It counts connections and requests.
type answering struct {
	addr            string
	conns, requests atomic.Int32
}

func newAnswering(t testing.TB, answer string) *answering {
	a := new(answering)
	a.addr = raw(t, func(c net.Conn, from *bufio.Reader) {
		a.conns.Add(1)
		for {
			r, err := http.ReadRequest(from)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			a.requests.Add(1)
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
	return a
}

func TestConnectionsAreUsedAgainOnlyWhenTheyCanBe(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		conns  int32 // for five requests
	}{
		"length":                {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1},
		"chunked":               {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1},
		"no content":            {"HTTP/1.1 204 No Content\r\n\r\n", 1},
		"closing":               {"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok", 5},
		"old":                   {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 5},
		"more than the length":  {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 5},
		"more than the chunks":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n", 5},
		"content of no content": {"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", 5},
		"chunks of no content":  {"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 5},
	} {
		t.Run(name, func(t *testing.T) {
			replica := newAnswering(t, c.answer)
			w := newWorld(t, ingress.Options{})
			w.Configure(w.spec(bare(replica.addr)))
			for range 5 {
				if a := w.get("/"); a.StatusCode != http.StatusOK && a.StatusCode != http.StatusNoContent || strings.Contains(a.body, "evil") {
					t.Fatalf("got %d %q", a.StatusCode, a.body)
				}
			}
			if got := replica.conns.Load(); got != c.conns {
				t.Errorf("%d connections for five requests, want %d", got, c.conns)
			}
		})
	}
}

func TestUnaskedAnswerIsNobodys(t *testing.T) {
	said := make(chan struct{})
	var conns atomic.Int32
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		first := conns.Add(1) == 1
		for {
			if _, err := http.ReadRequest(from); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			if first {
				// In a segment of its own, and after the answer was read.
				<-said
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
				said <- struct{}{}
			}
		}
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	if a := w.get("/"); a.body != "ok" {
		t.Fatalf("got %q", a.body)
	}
	said <- struct{}{}
	<-said
	if a := w.do(w.request(http.MethodPost, "/", nil)); a.body != "ok" || conns.Load() != 2 {
		t.Errorf("got %q over %d connections", a.body, conns.Load())
	}
}

// An idle connection that the replica gave up is no reason for a request to
// fail, even for one that must not be repeated.
func TestConnectionGivenUpByTheReplicaFailsNoPOST(t *testing.T) {
	for _, hard := range []bool{false, true} {
		closed := make(chan struct{})
		addr := raw(t, func(c net.Conn, from *bufio.Reader) {
			if _, err := http.ReadRequest(from); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			<-closed
			if hard {
				c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
			closed <- struct{}{}
		})
		w := newWorld(t, ingress.Options{})
		w.Configure(w.spec(bare(addr)))
		for range 5 {
			if a := w.do(w.request(http.MethodPost, "/", strings.NewReader("order"))); a.body != "ok" {
				t.Fatalf("reset %v: got %d %q", hard, a.StatusCode, a.body)
			}
			closed <- struct{}{}
			<-closed
		}
	}
}

// Where the connection is given up just as the request comes, it may fail; it is
// never sent twice.
func TestConnectionGivenUpMeanwhileRepeatsNoPOST(t *testing.T) {
	var orders atomic.Int32
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		orders.Add(1)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	ok := int32(0)
	for range 300 {
		if a := w.do(w.request(http.MethodPost, "/", strings.NewReader("order"))); a.body == "ok" {
			ok++
		} else if a.StatusCode != http.StatusBadGateway {
			t.Fatalf("got %d %q", a.StatusCode, a.body)
		}
	}
	if orders.Load() != ok || ok < 100 {
		t.Errorf("%d orders, of which %d were answered", orders.Load(), ok)
	}
}

func TestMalformedAnswerIs502(t *testing.T) {
	for name, answer := range map[string]string{
		"another protocol":     "SSH-2.0-OpenSSH_9.2\r\n",
		"bare line feeds":      "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"folded":               "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
		"two lengths":          "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 200\r\n\r\nok",
		"length and chunks":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"own coding":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"endless head":         "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 100),
		"endless line":         "HTTP/1.1 200 " + strings.Repeat("K", 100_000),
		"endless interim":      strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 200) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"switches protocols":   "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"many trailers":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x" + strings.Repeat(",x", 20_000) + "\r\n\r\n0\r\n\r\n",
		"status out of bounds": "HTTP/1.1 042 Low\r\nContent-Length: 2\r\n\r\nok",
	} {
		replica := newAnswering(t, answer)
		w := newWorld(t, ingress.Options{})
		w.Configure(w.spec(bare(replica.addr)))
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			a := w.do(w.request(method, "/", nil))
			if a.StatusCode != http.StatusBadGateway || !strings.Contains(a.body, "no proper answer") {
				t.Errorf("%s, %s: %d %.100q", name, method, a.StatusCode, a.body)
			}
		}
	}
}

func TestAnswerMalformedInItsBodyIsBrokenOff(t *testing.T) {
	for name, body := range map[string]string{
		"size":             "2\r\nok\r\nzz\r\n",
		"bare line feed":   "2\r\nok\r\n0\n\r\n",
		"end of a chunk":   "2\r\nokok\r\n0\r\n\r\n",
		"endless line":     "2\r\nok\r\n1;" + strings.Repeat("a", 100_000),
		"endless trailers": "2\r\nok\r\n0\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 100),
		"trailer":          "2\r\nok\r\n0\r\nX-A : 1\r\n\r\n",
	} {
		replica := newAnswering(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		w := newWorld(t, ingress.Options{})
		w.Configure(w.spec(bare(replica.addr)))
		res, err := w.client.Do(w.request(http.MethodGet, "/", nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: what came was taken for the whole", name)
		}
	}
}

// A head that never ends is read to its bound and no further, also the one that
// may switch protocols.
func TestEndlessHeadUsesLittleMemory(t *testing.T) {
	const most = 16 << 20 // what is written, so that a failing test ends
	for kind, answer := range map[string]struct{ head, more string }{
		"many fields":      {"HTTP/1.1 200 OK\r\n", "X-Endless: " + strings.Repeat("x", 1000) + "\r\n"},
		"one field":        {"HTTP/1.1 200 OK\r\nX-Endless: ", strings.Repeat("x", 1000)},
		"the status line":  {"HTTP/1.1 200 ", strings.Repeat("K", 1000)},
		"an interim one's": {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 103 Early Hints\r\n", "Link: " + strings.Repeat("x", 1000) + "\r\n"},
	} {
		for _, upgrade := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/upgrade %v", kind, upgrade), func(t *testing.T) {
				more := []byte(answer.more)
				addr := raw(t, func(c net.Conn, from *bufio.Reader) {
					if _, err := http.ReadRequest(from); err != nil {
						return
					}
					io.WriteString(c, answer.head)
					for written := 0; written < most; {
						n, err := c.Write(more)
						if err != nil {
							return
						}
						written += n
					}
				})
				w := newWorld(t, ingress.Options{})
				w.Configure(w.spec(bare(addr)))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range 10 {
					r := w.request(http.MethodPost, "/", nil)
					if upgrade {
						r.Header.Set("Connection", "Upgrade")
						r.Header.Set("Upgrade", "websocket")
					}
					if a := w.do(r); a.StatusCode != http.StatusBadGateway {
						t.Fatalf("got %d", a.StatusCode)
					}
				}
				runtime.ReadMemStats(&after)
				if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
					t.Errorf("%d KiB were allocated for ten endless heads", used>>10)
				}
			})
		}
	}
}

// A replica that takes requests and never answers keeps its requests for as
// long as their clients have patience, and no others.
func TestSilentReplicaHoldsItsOwnRequestsOnly(t *testing.T) {
	arrived, left := make(chan struct{}, 10), make(chan error, 10)
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		arrived <- struct{}{}
		_, err := from.ReadByte()
		left <- err
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	other := newAnswering(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	spec := w.spec(bare(other.addr))
	spec.ServiceID = "service-2"
	w.Configure(spec)
	w.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}, {Host: "other.example.com", ServiceID: "service-2"}})

	ctx, cancel := context.WithCancel(t.Context())
	var held []<-chan *answer
	for range 10 {
		held = append(held, w.start(w.request(http.MethodPost, "/", nil).WithContext(ctx)))
		<-arrived
	}
	for range 10 {
		r := w.request(http.MethodGet, "/", nil)
		r.Host = "other.example.com"
		if a := w.do(r); a.body != "ok" {
			t.Fatalf("got %d %q", a.StatusCode, a.body)
		}
	}
	cancel()
	for _, one := range held {
		<-one
		if err := <-left; err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the replica saw %v", err)
		}
	}
	w.until("nothing is in flight", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 0 })
}

// A client that reads slowly holds neither the memory for what it has not read
// nor, once the answer is read, the connection to the replica.
func TestSlowClientHoldsLittle(t *testing.T) {
	const size = 32 << 20
	var sent atomic.Int64
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
		piece := make([]byte, 64<<10)
		for range size / len(piece) {
			n, err := c.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	c, err := net.Dial("tcp", w.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	io.WriteString(c, line("GET", "/", ""))
	if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	// What the kernels have room for is sent; then nothing moves any more.
	last := int64(-1)
	eventually(t, "the replica waits", func() bool {
		now := sent.Load()
		still := now == last && now > 0
		last = now
		runtime.Gosched()
		return still
	})
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("%d KiB were allocated", used>>10)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n < size-2000 {
		t.Errorf("then %d bytes came, %v", n, err)
	}
}

// A replica may answer before it has read all, and read no further.
func TestEarlyAnswerIsForwarded(t *testing.T) {
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, from)
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	for range 20 {
		a := w.do(w.request(http.MethodPost, "/", bytes.NewReader(make([]byte, ingress.MaxReplayBody))))
		if a.StatusCode != http.StatusRequestEntityTooLarge || a.body != "large" {
			t.Fatalf("got %d %q", a.StatusCode, a.body)
		}
	}
}

// Bytes go on as they come, also when they fill the buffers to the brim.
func TestEveryPieceOfAnEndlessAnswerArrives(t *testing.T) {
	more := make(chan int)
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for n := range more {
			if _, err := c.Write(bytes.Repeat([]byte("x"), n)); err != nil {
				return
			}
		}
	})
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(addr)))
	defer close(more)
	res, err := w.client.Do(w.request(http.MethodGet, "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for _, n := range []int{1, 4 << 10, 1, 32 << 10, 32 << 10, 64 << 10, 5, 100_000} {
		more <- n
		if _, err := io.ReadFull(res.Body, make([]byte, n)); err != nil {
			t.Fatalf("of %d bytes: %v", n, err)
		}
	}
}

// leaving is a client that takes nothing.
type leaving struct{ sink }

func (*leaving) Write([]byte) (int, error) { return 0, errors.New("gone") }

// What nobody takes is not read on, however much of it there is.
func TestEndlessAnswerEndsWithItsClient(t *testing.T) {
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := []byte("400\r\n" + strings.Repeat("x", 1<<10) + "\r\n")
		for written := 0; written < 256<<20; {
			n, err := c.Write(chunk)
			if err != nil {
				return
			}
			written += n
		}
		t.Error("the replica could write all it wanted to")
	})
	for _, way := range []string{"plain", "transport", "upgrade"} {
		t.Run(way, func(t *testing.T) {
			in := serving(t, ingress.Options{TransportOnly: way == "transport"}, bare(addr))
			r := browser(t)
			if way == "upgrade" {
				r.Header.Set("Connection", "Upgrade")
				r.Header.Set("Upgrade", "websocket")
			}
			in.ServeHTTP(&leaving{sink{header: http.Header{}}}, r)
		})
	}
}

// Memory for a request's body is taken as it comes, not as it is promised.
func TestPromisedBodiesTakeNoMemory(t *testing.T) {
	const n = 200
	replica := newAnswering(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(replica.addr)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	promise := line("POST", "/", fmt.Sprintf("Content-Length: %d\r\n", ingress.MaxReplayBody))
	for range n {
		c, err := net.Dial("tcp", w.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, promise+"begun")
	}
	w.until("all are in flight", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == n })
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > ingress.MaxReplayBody/2 {
		t.Errorf("%d KiB were allocated for each", each>>10)
	}
}
