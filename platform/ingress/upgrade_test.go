package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// echoSocket echoes WebSocket messages until either side leaves.
func echoSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 22)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if c.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

// socket opens a WebSocket through the ingress.
func (w *world) socket() *websocket.Conn {
	w.t.Helper()
	c, _, err := websocket.Dial(w.t.Context(), w.server.URL, &websocket.DialOptions{Host: host, HTTPClient: w.client})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(1 << 22)
	return c
}

func TestWebSocketMessagesPass(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, echoSocket).URL))
	c := w.socket()
	for _, size := range []int{0, 1, 125, 126, 5000, 70_000, 1 << 20} {
		message := bytes.Repeat([]byte("x"), size)
		if err := c.Write(t.Context(), websocket.MessageBinary, message); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
	if n := w.Status(service).Targets[0].InFlight; n != 1 {
		t.Errorf("%d in flight, want the WebSocket", n)
	}
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Error(err)
	}
	w.until("it is over", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 0 })
}

func TestWebSocketsEndWithAGoodbye(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"drain deadline": func(w *world) {
			spec := w.spec()
			spec.DrainTimeout = 10 * time.Millisecond
			w.Configure(spec)
		},
		"replica gone": func(w *world) {
			spec := w.spec()
			spec.Gone = []string{"a"}
			w.Configure(spec)
		},
		"process going down": func(w *world) { w.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ingress.Options{})
			w.serve(target("a", newBackend(t, echoSocket).URL))
			c := w.socket()
			if err := c.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(t.Context()); err != nil {
				t.Fatal(err)
			}
			end(w)
			if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
				t.Errorf("it ended with %v, want 1001", err)
			}
		})
	}
}

func TestDrainOfTheProcessEndsEventStreamsOnly(t *testing.T) {
	finish := make(chan struct{})
	arrived := make(chan struct{}, 2)
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			http.NewResponseController(w).Flush()
			arrived <- struct{}{}
			<-r.Context().Done()
			return
		}
		arrived <- struct{}{}
		<-finish
		io.WriteString(w, "done")
	}).URL))
	res, err := w.client.Do(w.request(http.MethodGet, "/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	plain := w.start(w.request(http.MethodGet, "/", nil))
	<-arrived
	<-arrived
	w.Drain()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the event stream ended as if it were complete")
	}
	res.Body.Close()
	close(finish)
	if a := <-plain; a == nil || a.body != "done" {
		t.Errorf("a plain request got %+v", a)
	}
}

func TestOtherProtocolsAndHalfClose(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	at := target("a", raw(t, func(c net.Conn, from *bufio.Reader) {
		if r, err := http.ReadRequest(from); err != nil || r.Header.Get("Upgrade") != "tcp" {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nahead ")
		all, _ := io.ReadAll(from) // to the client's end, and only then
		fmt.Fprintf(c, "got %s", all)
	}))
	at.Health = platform.HealthCheck{Type: platform.HealthNone}
	w.Configure(w.spec(at))
	c, err := net.Dial("tcp", strings.TrimPrefix(w.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\nearly ", host)
	from := bufio.NewReader(c)
	res, err := http.ReadResponse(from, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "tcp" {
		t.Fatalf("got %+v, %v", res, err)
	}
	io.WriteString(c, "late")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(from); err != nil || string(rest) != "ahead got early late" {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestRefusedUpgradeIsAnOrdinaryAnswer(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "not you")
	}).URL))
	r := w.request(http.MethodGet, "/", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	for range 2 {
		if a := w.do(r); a.StatusCode != http.StatusForbidden || a.body != "not you" {
			t.Errorf("got %d %q", a.StatusCode, a.body)
		}
	}
}

func TestUpgradeWaitsForAReplica(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	dead := newBackend(t, echoSocket)
	at := target("dead", dead.URL)
	at.Health.Type = platform.HealthNone
	w.Configure(w.spec(at))
	dead.kill()
	opened := make(chan error, 1)
	go func() {
		c, _, err := websocket.Dial(context.Background(), w.server.URL, &websocket.DialOptions{Host: host, HTTPClient: w.client})
		if err == nil {
			c.CloseNow()
		}
		opened <- err
	}()
	w.until("it waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	w.serve(target("b", newBackend(t, echoSocket).URL))
	if err := <-opened; err != nil {
		t.Error(err)
	}
}
