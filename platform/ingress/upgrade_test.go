package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go/http3"

	"github.com/denia-paas/denia/internal/testsocket"
	_ "github.com/denia-paas/denia/internal/xconnect"
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
	return w.socketWith(w.client, w.server.URL)
}

func (w *world) socketWith(client *http.Client, url string) *websocket.Conn {
	w.t.Helper()
	c, _, err := websocket.Dial(w.t.Context(), url, &websocket.DialOptions{Host: host, HTTPClient: client})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(1 << 22)
	return c
}

// overEach runs a test over each version of HTTP. The client opens WebSockets in
// the version's own way.
func overEach(t *testing.T, test func(t *testing.T, w *world, client *http.Client, url string)) {
	t.Run("HTTP/1.1", func(t *testing.T) {
		w := newWorld(t, ingress.Options{})
		test(t, w, w.client, w.server.URL)
	})
	overStreams(t, test)
}

// overStreams is overEach of the versions where a WebSocket is a stream.
func overStreams(t *testing.T, test func(t *testing.T, w *world, client *http.Client, url string)) {
	t.Run("HTTP/2", func(t *testing.T) {
		w := newWorld(t, ingress.Options{})
		front := httptest.NewUnstartedServer(w.Ingress)
		front.EnableHTTP2 = true
		front.StartTLS()
		t.Cleanup(front.Close)
		transport, closeIdle := testsocket.HTTP2(front.Listener.Addr().String(), front.Client().Transport.(*http.Transport).TLSClientConfig)
		t.Cleanup(closeIdle)
		test(t, w, &http.Client{Transport: transport}, front.URL)
	})
	t.Run("HTTP/3", func(t *testing.T) {
		w := newWorld(t, ingress.Options{})
		// Its certificate is as good for QUIC.
		certificates := httptest.NewUnstartedServer(nil)
		certificates.StartTLS()
		defer certificates.Close()
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		front := &http3.Server{Handler: w.Ingress, TLSConfig: http3.ConfigureTLSConfig(certificates.TLS)}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = front.Serve(packets)
		}()
		transport := &http3.Transport{TLSClientConfig: certificates.Client().Transport.(*http.Transport).TLSClientConfig}
		t.Cleanup(func() {
			transport.Close()
			front.Close()
			packets.Close()
			<-served
		})
		test(t, w, &http.Client{Transport: &testsocket.Transport{RoundTripper: transport, HTTP3: true}}, "https://"+packets.LocalAddr().String())
	})
}

func TestWebSocketMessagesPass(t *testing.T) {
	overEach(t, func(t *testing.T, w *world, client *http.Client, url string) {
		w.serve(target("a", newBackend(t, echoSocket).URL))
		c := w.socketWith(client, url)
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
	})
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
			overEach(t, func(t *testing.T, w *world, client *http.Client, url string) {
				w.serve(target("a", newBackend(t, echoSocket).URL))
				c := w.socketWith(client, url)
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
		})
	}
}

// A client that vanishes with its stream leaves nothing behind.
func TestWebSocketsEndWithTheirClient(t *testing.T) {
	overEach(t, func(t *testing.T, w *world, client *http.Client, url string) {
		w.serve(target("a", newBackend(t, echoSocket).URL))
		c := w.socketWith(client, url)
		if n := w.Status(service).Targets[0].InFlight; n != 1 {
			t.Errorf("%d in flight, want the WebSocket", n)
		}
		c.CloseNow()
		w.until("it is over", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 0 })
	})
}

// What the client asks of the replica gets there, what the replica answers gets
// back, and of the two handshakes each has its own.
func TestHandshakesOfStreams(t *testing.T) {
	overStreams(t, func(t *testing.T, w *world, client *http.Client, url string) {
		seen := make(chan *http.Request, 1)
		w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			seen <- r
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
			if err == nil {
				c.CloseNow()
			}
		}).URL))
		c, res, err := websocket.Dial(t.Context(), url+"/room?name=x%20y", &websocket.DialOptions{
			Host: host, HTTPClient: client, Subprotocols: []string{"chat"}, HTTPHeader: http.Header{"Cookie": {"a=1"}, "Origin": {"https://" + host}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		if c.Subprotocol() != "chat" {
			t.Errorf("the subprotocol is %q", c.Subprotocol())
		}
		r := <-seen
		if r.Method != http.MethodGet || r.RequestURI != "/room?name=x%20y" || r.Host != host || r.Header.Get("Cookie") != "a=1" ||
			r.Header.Get("X-Forwarded-Proto") != "https" || r.Header.Get("X-Forwarded-For") != "127.0.0.1" || r.ContentLength != 0 {
			t.Errorf("the replica got %s %s of %s, %v", r.Method, r.RequestURI, r.Host, r.Header)
		}
		for name := range r.Header {
			if strings.HasPrefix(name, ":") {
				t.Errorf("the replica got a field %q", name)
			}
		}
		if res.Header.Get("Upgrade") != "websocket" { // the test client's own
			t.Errorf("got %v", res.Header)
		}
	})
}

// A client takes any 2xx for an open WebSocket, so none comes without one.
func TestStreamsThatAreNoWebSockets(t *testing.T) {
	overStreams(t, func(t *testing.T, w *world, client *http.Client, url string) {
		at := target("a", raw(t, func(c net.Conn, from *bufio.Reader) {
			r, err := http.ReadRequest(from)
			if err != nil {
				return
			}
			switch r.URL.Path {
			case "/page":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")
			case "/forbidden":
				io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nnot you")
			case "/other":
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
			}
		}))
		at.Health = platform.HealthCheck{Type: platform.HealthNone}
		w.Configure(w.spec(at))
		for _, test := range []struct {
			path, protocol string
			status         int
			body           string
		}{
			{"/page", "websocket", http.StatusBadGateway, "502 No answer"},
			{"/other", "websocket", http.StatusBadGateway, "502 No answer"},
			{"/forbidden", "websocket", http.StatusForbidden, "not you"},
			{"/", "connect-udp", http.StatusNotImplemented, "501 Not supported"},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			r.Header.Set("Upgrade", test.protocol)
			res, err := client.Do(r)
			if err != nil {
				t.Fatalf("%s: %v", test.path, err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != test.status || !strings.HasPrefix(string(body), test.body) {
				t.Errorf("%s as %s: got %d %q, %v; want %d", test.path, test.protocol, res.StatusCode, body, err, test.status)
			}
		}
	})
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

// A client may ask for another protocol wherever it likes, also where there is an
// answer without end. The process must be able to go down then, too.
func TestDrainEndsTheEventStreamOfARefusedUpgrade(t *testing.T) {
	for _, head := range []string{"", "Transfer-Encoding: chunked\r\n"} {
		w := newWorld(t, ingress.Options{})
		w.Configure(w.spec(bare(raw(t, func(c net.Conn, from *bufio.Reader) {
			if _, err := http.ReadRequest(from); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+head+"\r\n9\r\ndata: 1\n\n\r\n")
			_, _ = from.ReadByte()
		}))))
		r := w.request(http.MethodGet, "/", nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		res, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.ReadFull(res.Body, make([]byte, len("data: 1\n\n"))); err != nil {
			t.Fatal(err)
		}
		ends(t, w.Drain)
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("the event stream ended as if it were complete")
		}
	}
}

// Nor does it matter that the request, too, is one without end.
func TestDrainEndsTheEventStreamOfAnEndlessRequest(t *testing.T) {
	for _, protocol := range []string{platform.ProtocolHTTP, platform.ProtocolH2C} {
		t.Run(protocol, func(t *testing.T) {
			b := bothVersions(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_ = http.NewResponseController(w).Flush()
				_, _ = io.Copy(io.Discard, r.Body)
			})
			w := newWorld(t, ingress.Options{})
			at := bare(b.Listener.Addr().String())
			at.Protocol = protocol
			w.Configure(w.spec(at))
			body, write := io.Pipe()
			t.Cleanup(func() { write.Close() })
			res, err := w.client.Do(w.request(http.MethodPost, "/", body))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			ends(t, w.Drain)
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Error("the event stream ended as if it were complete")
			}
		})
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
	page := "not you" + strings.Repeat(".", 1<<20)
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, page)
	}).URL))
	r := w.request(http.MethodGet, "/", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	for range 2 {
		if a := w.do(r); a.StatusCode != http.StatusForbidden || a.body != page {
			t.Errorf("got %d %.100q", a.StatusCode, a.body)
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
