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
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// seen serves one backend that hands out the requests it got.
func seen(t *testing.T, o ingress.Options) (*world, <-chan *http.Request) {
	requests := make(chan *http.Request, 1)
	w := newWorld(t, o)
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		requests <- r
	}).URL))
	return w, requests
}

func TestRequestArrivesAsItWasSent(t *testing.T) {
	w, requests := seen(t, ingress.Options{})
	r := w.request(http.MethodPut, "/a%2Fb//c%20d/?q=1;2&x=%zz", strings.NewReader("body"))
	r.Header.Set("User-Agent", "")
	r.Header["X-Twice"] = []string{"1", "2"}
	w.do(r)
	got := <-requests
	body, _ := io.ReadAll(got.Body)
	if got.Method != http.MethodPut || got.RequestURI != "/a%2Fb//c%20d/?q=1;2&x=%zz" || got.Host != host || string(body) != "body" || got.ContentLength != 4 {
		t.Errorf("got %s %s for %s, %d bytes %q", got.Method, got.RequestURI, got.Host, got.ContentLength, body)
	}
	if len(got.Header["X-Twice"]) != 2 || got.Header["User-Agent"] != nil || got.Header["Accept-Encoding"] != nil {
		t.Errorf("header %v", got.Header)
	}
	if len(got.Header.Get("X-Request-Id")) != 32 {
		t.Errorf("request id %q", got.Header.Get("X-Request-Id"))
	}
}

func TestHopByHopFieldsAreNotForwarded(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	headers := make(chan http.Header, 1)
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		headers <- r.Header
		w.Header().Set("Connection", "X-Private, keep-alive")
		w.Header().Set("X-Private", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.Header().Set("X-Public", "1")
	}).URL))
	r := w.request(http.MethodGet, "/", nil)
	for name, value := range map[string]string{
		"Connection": "X-Listed, X-Forwarded-For", "X-Listed": "1", "Keep-Alive": "300", "Proxy-Connection": "keep-alive",
		"Proxy-Authorization": "Basic x", "Te": "trailers, deflate;q=0.5", "Upgrade": "h2c", "X-End": "1",
	} {
		r.Header.Set(name, value)
	}
	a := w.do(r)
	got := <-headers
	for _, name := range []string{"Connection", "X-Listed", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Upgrade"} {
		if got[name] != nil {
			t.Errorf("the replica got %s: %q", name, got[name])
		}
	}
	if got.Get("Te") != "trailers" || got.Get("X-End") != "1" || got.Get("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("the replica got %v", got)
	}
	for _, name := range []string{"X-Private", "Keep-Alive", "Proxy-Authenticate"} {
		if a.Header[name] != nil {
			t.Errorf("the client got %s: %q", name, a.Header[name])
		}
	}
	if a.Header.Get("X-Public") != "1" {
		t.Errorf("the client got %v", a.Header)
	}
}

func TestForwardedFieldsAreBelievedOfTrustedProxiesOnly(t *testing.T) {
	for _, c := range []struct {
		trusted               bool
		chain, host, proto, x string
	}{
		{false, "203.0.113.9", host, "http", ""},
		{true, "198.51.100.1, 198.51.100.2, 127.0.0.1", "outer.example.com", "https", "443"},
	} {
		w, requests := seen(t, ingress.Options{Client: func(*http.Request) (string, bool) { return "203.0.113.9", c.trusted }})
		r := w.request(http.MethodGet, "/", nil)
		r.Header["X-Forwarded-For"] = []string{"198.51.100.1", "198.51.100.2"}
		r.Header.Set("X-Forwarded-Host", "outer.example.com")
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set("X-Forwarded-Port", "443")
		w.do(r)
		h := (<-requests).Header
		if h.Get("X-Forwarded-For") != c.chain || h.Get("X-Forwarded-Host") != c.host || h.Get("X-Forwarded-Proto") != c.proto || h.Get("X-Forwarded-Port") != c.x {
			t.Errorf("trusted %v: %v", c.trusted, h)
		}
	}
}

func TestAnswersWithoutBody(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("Content-Length", "1234")
			w.Write(make([]byte, 1234))
		}
	}).URL))
	if a := w.do(w.request(http.MethodHead, "/", nil)); a.ContentLength != 1234 || a.body != "" {
		t.Errorf("HEAD: length %d", a.ContentLength)
	}
	if a := w.get("/204"); a.StatusCode != http.StatusNoContent || a.body != "" {
		t.Errorf("204: %d %q", a.StatusCode, a.body)
	}
	if a := w.get("/304"); a.StatusCode != http.StatusNotModified || a.Header.Get("Etag") != `"1"` {
		t.Errorf("304: %d %v", a.StatusCode, a.Header)
	}
	if a := w.get("/"); len(a.body) != 1234 {
		t.Errorf("afterwards: %d bytes", len(a.body))
	}
}

func TestAnswerIsStreamed(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	more := make(chan struct{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", strings.TrimPrefix(r.URL.Path, "/"))
		w.WriteHeader(http.StatusOK)
		for i := range 3 {
			http.NewResponseController(w).Flush()
			<-more
			fmt.Fprintf(w, "data: %d\n", i)
		}
	}).URL))
	for _, kind := range []string{"text/event-stream", "application/x-ndjson"} {
		res, err := w.client.Do(w.request(http.MethodGet, "/"+kind, nil)) // the header comes before any data
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(res.Body)
		for i := range 3 {
			more <- struct{}{}
			if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("%s: got %q, %v", kind, line, err)
			}
		}
		res.Body.Close()
	}
}

func TestRequestAndAnswerAreStreamedBothWays(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		rc.Flush()
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(w, "echo "+line)
			rc.Flush()
		}
	}).URL))
	body, write := io.Pipe()
	res, err := w.client.Do(w.request(http.MethodPost, "/", body))
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		fmt.Fprintf(write, "%d\n", i) // the replica has each line before the client sends the next
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("echo %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	write.Close()
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("the end: %q, %v", rest, err)
	}
	res.Body.Close()
}

func TestTrailersGoBothWays(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sent"))
		if r.URL.Path == "/more" {
			w.Header().Set(http.TrailerPrefix+"X-Surprise", "2")
		}
	}).URL))
	for _, path := range []string{"/", "/more"} {
		r := w.request(http.MethodPost, path, io.MultiReader(strings.NewReader("some"), strings.NewReader("thing")))
		r.Trailer = http.Header{"X-Sent": {"1"}}
		a := w.do(r)
		if a.body != "body" || a.Trailer.Get("X-Announced") != "1" {
			t.Errorf("%s: %q, trailer %v", path, a.body, a.Trailer)
		}
		if got := a.Trailer.Get("X-Surprise"); (got == "2") != (path == "/more") {
			t.Errorf("%s: unannounced trailer %q", path, got)
		}
	}
}

func TestH2CReplica(t *testing.T) {
	b := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			return
		}
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		io.Copy(w, r.Body)
		w.Header().Set("Grpc-Status", "0")
	}))
	b.Config.Protocols = new(http.Protocols)
	b.Config.Protocols.SetUnencryptedHTTP2(true)
	b.Start()
	defer b.Close()
	w := newWorld(t, ingress.Options{})
	at := target("a", b.URL)
	at.Protocol = platform.ProtocolH2C
	w.serve(at)
	for range 3 {
		r := w.request(http.MethodPost, "/pkg.Service/Method", io.MultiReader(strings.NewReader("message")))
		r.Header.Set("Te", "trailers")
		a := w.do(r)
		if a.StatusCode != http.StatusOK || a.body != "message" || a.Trailer.Get("Grpc-Status") != "0" {
			t.Fatalf("got %d %q, trailer %v", a.StatusCode, a.body, a.Trailer)
		}
	}
}

// bothVersions is a replica that speaks HTTP/1.1 and HTTP/2 and answers before it
// has read all.
func bothVersions(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	b := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		handler(w, r)
	}))
	b.Config.Protocols = new(http.Protocols)
	b.Config.Protocols.SetHTTP1(true)
	b.Config.Protocols.SetUnencryptedHTTP2(true)
	b.Start()
	t.Cleanup(b.Close)
	return b
}

// The server of a gRPC call may end it at any time, and the client, which waits
// for that, need not have said all it wanted to.
func TestAnswerMayEndBeforeItsRequest(t *testing.T) {
	for _, protocol := range []string{platform.ProtocolHTTP, platform.ProtocolH2C} {
		t.Run(protocol, func(t *testing.T) {
			overEach(t, func(t *testing.T, w *world, client *http.Client, url string) {
				b := bothVersions(t, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Trailer", "Grpc-Status")
					_, _ = io.ReadFull(r.Body, make([]byte, 5))
					io.WriteString(w, "enough")
					w.Header().Set("Grpc-Status", "8")
				})
				at := bare(b.Listener.Addr().String())
				at.Protocol = protocol
				w.Configure(w.spec(at))
				body, write := io.Pipe()
				t.Cleanup(func() { write.Close() })
				go io.WriteString(write, "first")
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
				if err != nil {
					t.Fatal(err)
				}
				r.Host = host
				ends(t, func() {
					res, err := client.Do(r)
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					if got, err := io.ReadAll(res.Body); err != nil || string(got) != "enough" || res.Trailer.Get("Grpc-Status") != "8" {
						t.Errorf("got %q, %v, trailer %v", got, err, res.Trailer)
					}
				})
			})
		})
	}
}

func TestEarlyHintsAndContinue(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Refuse") != "" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.Copy(w, r.Body)
	}).URL))
	var hints, asked atomic.Int32
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") != "" {
				hints.Add(1)
			}
			return nil
		},
		Got100Continue: func() { asked.Add(1) },
	})
	w.client.Transport.(*http.Transport).ExpectContinueTimeout = 1 << 40
	r := w.request(http.MethodPost, "/", strings.NewReader("body")).WithContext(trace)
	r.Header.Set("Expect", "100-continue")
	if a := w.do(r); a.body != "body" || a.Header["Link"] != nil || hints.Load() != 1 || asked.Load() != 1 {
		t.Errorf("got %q, header %v, %d hints, %d continues", a.body, a.Header, hints.Load(), asked.Load())
	}
	r = w.request(http.MethodPost, "/", strings.NewReader("body")).WithContext(trace)
	r.Header.Set("Expect", "100-continue")
	r.Header.Set("X-Refuse", "1")
	if a := w.do(r); a.StatusCode != http.StatusExpectationFailed || asked.Load() != 1 {
		t.Errorf("refused: %d, %d continues", a.StatusCode, asked.Load())
	}
}

// The leave to go on and what else there is to say before an answer come one
// after the other, in the order the replica said it.
func TestHintsAroundContinue(t *testing.T) {
	const (
		proceed = "HTTP/1.1 100 Continue\r\n\r\n"
		hints   = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
	)
	for name, order := range map[string]struct {
		said string
		want []int
	}{
		"after":            {proceed + hints, []int{100, 103, 200}},
		"before":           {hints + proceed, []int{103, 100, 200}},
		"before and after": {hints + proceed + hints + hints, []int{103, 100, 103, 103, 200}},
	} {
		t.Run(name, func(t *testing.T) {
			addr := raw(t, func(c net.Conn, from *bufio.Reader) {
				for {
					r, err := http.ReadRequest(from)
					if err != nil {
						return
					}
					io.WriteString(c, order.said)
					io.Copy(io.Discard, r.Body)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			w := newWorld(t, ingress.Options{})
			w.Configure(w.spec(bare(addr)))
			c, err := net.Dial("tcp", w.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			from := bufio.NewReader(c)
			for range 100 {
				io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+host+"\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
				var got []int
				for len(got) == 0 || got[len(got)-1] < 200 {
					res, err := http.ReadResponse(from, nil)
					if err != nil {
						t.Fatalf("after %v: %v", got, err)
					}
					got = append(got, res.StatusCode)
					switch {
					case res.StatusCode == 100:
						if len(res.Header) > 0 {
							t.Errorf("100 came with %v", res.Header)
						}
						io.WriteString(c, "hello")
					case res.StatusCode == 103 && res.Header.Get("Link") == "", res.StatusCode == 200 && res.Header.Get("Link") != "":
						t.Errorf("%d came with %v", res.StatusCode, res.Header)
					}
					_, _ = io.Copy(io.Discard, res.Body)
				}
				if !slices.Equal(got, order.want) {
					t.Fatalf("got %v, want %v", got, order.want)
				}
			}
		})
	}
}

func TestClientThatLeavesIsNoticedByTheReplica(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
		close(left)
	}).URL))
	ctx, cancel := context.WithCancel(t.Context())
	done := w.start(w.request(http.MethodPost, "/", strings.NewReader("x")).WithContext(ctx))
	<-arrived
	cancel()
	<-left
	<-done
	w.until("nothing is in flight", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 0 })
}

func TestBrokenAnswerIsSeenAsBroken(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	for _, head := range []string{"Content-Length: 100", "Transfer-Encoding: chunked"} {
		at := target("a", raw(t, func(c net.Conn, from *bufio.Reader) {
			if _, err := http.ReadRequest(from); err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n4\r\nabcd\r\n", head)
			}
		}))
		at.Health.Type = platform.HealthNone
		w.Configure(w.spec(at))
		res, err := w.client.Do(w.request(http.MethodGet, "/", nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: a part of the answer was taken for the whole", head)
		}
	}
}

// It is seen at once, also by a client that is silent in the midst of its
// request.
func TestBrokenAnswerIsSeenBeforeTheRequestHasEnded(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	w.Configure(w.spec(bare(raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabcd")
		}
	}))))
	entries := 0
	for name, body := range map[string]string{
		"chunks": "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"length": fmt.Sprintf("Content-Length: %d\r\n\r\nhello", ingress.MaxReplayBody+1000),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", w.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+host+"\r\n"+body)
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			all, err := io.ReadAll(c) // a reset is an end, too
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("it is waited for after %q", all)
			}
			entries++
			if e := d.last(w, entries); e.Error != platform.AccessBrokenOff {
				t.Errorf("the entry says %q", e.Error)
			}
		})
	}
}

func TestRequestThatMayHaveTakenEffectIsNotSentAgain(t *testing.T) {
	var posts atomic.Int32
	at := target("a", raw(t, func(c net.Conn, from *bufio.Reader) {
		if r, err := http.ReadRequest(from); err == nil {
			io.Copy(io.Discard, r.Body)
			posts.Add(1)
		}
	}))
	at.Health.Type = platform.HealthNone
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(at))
	if a := w.do(w.request(http.MethodPost, "/", strings.NewReader("order"))); a.StatusCode != http.StatusBadGateway || posts.Load() != 1 {
		t.Errorf("POST: %d, sent %d times", a.StatusCode, posts.Load())
	}
	posts.Store(0)
	r := w.request(http.MethodPost, "/", strings.NewReader("order"))
	r.Header.Set("Idempotency-Key", "1")
	if a := w.do(r); a.StatusCode != http.StatusBadGateway || posts.Load() != 3 {
		t.Errorf("POST with Idempotency-Key: %d, sent %d times, want three", a.StatusCode, posts.Load())
	}
}

// A kept connection that breaks is no sign of a broken replica, so the request
// gets another at once; but that counts.
func TestRequestIsSentThreeTimesAtMost(t *testing.T) {
	var sent atomic.Int32
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(bare(raw(t, func(c net.Conn, from *bufio.Reader) {
		for {
			r, err := http.ReadRequest(from)
			if err != nil {
				return
			}
			if sent.Add(1); r.URL.Path != "/keep" {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}))))
	w.get("/keep")
	sent.Store(0)
	if a := w.get("/"); a.StatusCode != http.StatusBadGateway || sent.Load() != 3 {
		t.Errorf("GET: %d, sent %d times, want three", a.StatusCode, sent.Load())
	}
}

// Once something of an answer came the replica has acted, whatever the method.
func TestBegunAnswerIsNotAskedForAgain(t *testing.T) {
	ways := map[string]func(*world) *http.Request{
		"held": func(w *world) *http.Request { return w.request(http.MethodDelete, "/", nil) },
		"streamed": func(w *world) *http.Request {
			return w.request(http.MethodPut, "/", io.MultiReader(strings.NewReader("x")))
		},
		"upgrade": func(w *world) *http.Request {
			r := w.request(http.MethodGet, "/", nil)
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			return r
		},
	}
	for _, begun := range []string{"HTTP/1.1 20", "HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 2 OK\r\nContent-Length: 2\r\n\r\nok"} {
		for way, request := range ways {
			var sent atomic.Int32
			w := newWorld(t, ingress.Options{})
			w.Configure(w.spec(bare(raw(t, func(c net.Conn, from *bufio.Reader) {
				if _, err := http.ReadRequest(from); err == nil {
					sent.Add(1)
					io.WriteString(c, begun)
				}
			}))))
			if a := w.do(request(w)); a.StatusCode != http.StatusBadGateway || sent.Load() != 1 {
				t.Errorf("%s, %q: answers %d, and was sent %d times", way, begun, a.StatusCode, sent.Load())
			}
		}
	}
}

func TestRequestThatDiedUnreadIsSentAgain(t *testing.T) {
	for _, dies := range []bool{true, false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at := target("a", l.Addr().String())
		at.Health.Type = platform.HealthNone
		w := newWorld(t, ingress.Options{})
		w.Configure(w.spec(at))
		done := w.start(w.request(http.MethodPost, "/", bytes.NewReader(make([]byte, 20_000))))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		if dies {
			l.Close()
		}
		c.Close() // with half of the request unread
		if dies {
			w.until("the request waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
			w.Configure(w.spec(at, target("b", newBackend(t, echo).URL)))
			if a := <-done; a == nil || a.StatusCode != http.StatusOK || len(a.body) != 20_000 {
				t.Errorf("the replica died: %+v", a)
			}
		} else if a := <-done; a == nil || a.StatusCode != http.StatusBadGateway {
			// It has decided not to read on, which it may do after acting.
			t.Errorf("the replica lives: %+v", a)
		}
	}
}

func TestUnsentPOSTGoesToAnotherReplica(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	dead := newBackend(t, echo)
	at := target("dead", dead.URL)
	at.Health.Type = platform.HealthNone // so that nobody but the request finds out
	w.Configure(w.spec(at))
	dead.kill()
	for _, body := range []io.Reader{strings.NewReader("short"), io.MultiReader(strings.NewReader("of unknown length"))} {
		w.Configure(w.spec(at))
		done := w.start(w.request(http.MethodPost, "/", body))
		w.until("the request waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
		w.Configure(w.spec(at, target("b", newBackend(t, echo).URL)))
		if a := <-done; a == nil || a.StatusCode != http.StatusOK || a.body == "" {
			t.Errorf("got %+v", a)
		}
	}
}

func TestLargeBodiesUseLittleMemory(t *testing.T) {
	const size = 64 << 20
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Got", fmt.Sprint(n))
		if r.Method == http.MethodGet {
			io.CopyN(w, zeros{}, size)
		}
	}).URL))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if a := w.do(w.request(http.MethodPost, "/", io.LimitReader(zeros{}, size))); a.Header.Get("X-Got") != fmt.Sprint(size) {
		t.Errorf("the replica got %s bytes", a.Header.Get("X-Got"))
	}
	res, err := w.client.Do(w.request(http.MethodGet, "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
		t.Errorf("the client got %d bytes, %v", n, err)
	}
	res.Body.Close()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
		t.Errorf("%d MiB were allocated for bodies of 2 x 64 MiB", used>>20)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestTooLargeBodyIsNamedAsSuch(t *testing.T) {
	in := ingress.New(ingress.Options{})
	defer in.Close()
	in.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}})
	b := newBackend(t, echo)
	at := target("a", b.URL)
	at.Presumed = true
	in.Configure(ingress.PoolSpec{ServiceID: service, Name: "web", Serving: []ingress.Target{at}})
	limited := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 100)
		in.ServeHTTP(w, r)
	}))
	defer limited.Close()
	for name, body := range map[string]io.Reader{
		"known length":   bytes.NewReader(make([]byte, 200)),
		"unknown length": io.LimitReader(zeros{}, 200),
	} {
		r, _ := http.NewRequest(http.MethodPost, limited.URL, body)
		r.Host = host
		res, err := limited.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d, want 413", name, res.StatusCode)
		}
	}
}

func TestStalledUploadToADeadReplicaEnds(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	arrived := make(chan struct{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 4))
		close(arrived)
		io.Copy(io.Discard, r.Body)
	}).URL))
	body, write := io.Pipe()
	defer write.Close()
	done := w.start(w.request(http.MethodPut, "/", body))
	io.WriteString(write, "some")
	<-arrived
	spec := w.spec()
	spec.Gone = []string{"a"}
	w.Configure(spec)
	if a := <-done; a == nil || a.StatusCode != http.StatusBadGateway {
		t.Errorf("got %+v, want 502", a)
	}
}

// atEnd calls then when the server has read all of a body, and whoever reads it
// does not know yet.
type atEnd struct {
	io.ReadCloser
	left int
	then func()
}

func (b *atEnd) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left == 0 && n > 0 {
		b.then()
	}
	return n, err
}

// A request is cut with its replica. That is not the client's doing, and the next
// one over its connection has nothing to do with it.
func TestConnectionOutlivesARequestThatWasCut(t *testing.T) {
	const size = ingress.MaxReplayBody + 1000
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprintf("before its end is known %v", early), func(t *testing.T) {
			for range 20 { // it takes a moment to go wrong
				w := newWorld(t, ingress.Options{})
				arrived := make(chan struct{})
				w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.Copy(io.Discard, r.Body); err == nil {
						close(arrived)
					}
					<-r.Context().Done()
				}).URL))
				b := target("b", newBackend(t, echo).URL)
				b.Presumed = true
				spec := w.spec(b)
				spec.Gone = []string{"a"}
				server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if early && r.URL.Path == "/cut" {
						ctx := r.Context()
						r.Body = &atEnd{r.Body, size, func() {
							w.Configure(spec)
							<-ctx.Done() // the server takes it for the client's end
						}}
					}
					w.ServeHTTP(rw, r)
				}))
				t.Cleanup(server.Close)
				c, err := net.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				from := bufio.NewReader(c)
				const post = "POST %s HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: %d\r\n\r\n%s"
				fmt.Fprintf(c, post, "/cut", size, strings.Repeat("x", size))
				if !early {
					<-arrived
					w.Configure(spec)
				}
				res, err := http.ReadResponse(from, nil)
				if err != nil || res.StatusCode != http.StatusBadGateway {
					t.Fatalf("got %v, %v", res, err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				if res.Close != early {
					t.Errorf("the connection is closed: %v", res.Close)
				}
				if res.Close {
					continue
				}
				fmt.Fprintf(c, post, "/", size, strings.Repeat("x", size))
				if res, err = http.ReadResponse(from, nil); err != nil || res.StatusCode != http.StatusOK {
					t.Fatalf("then got %v, %v", res, err)
				}
			}
		})
	}
}

func TestHTTP2Clients(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.Header().Set("Trailer", "X-End")
		w.Header().Set("X-Proto", r.Header.Get("X-Forwarded-Proto"))
		w.WriteHeader(http.StatusOK)
		rc.Flush()
		b := make([]byte, 1)
		for {
			if _, err := r.Body.Read(b); err != nil {
				break
			}
			w.Write(b)
			rc.Flush()
		}
		w.Header().Set("X-End", "1")
	}).URL))
	front := httptest.NewUnstartedServer(w.Ingress)
	front.EnableHTTP2 = true
	front.StartTLS()
	defer front.Close()
	body, write := io.Pipe()
	r, _ := http.NewRequest(http.MethodPost, front.URL, body)
	r.Host = host
	res, err := front.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if res.ProtoMajor != 2 || res.Header.Get("X-Proto") != "https" {
		t.Errorf("answer over %s, forwarded as %q", res.Proto, res.Header.Get("X-Proto"))
	}
	b := make([]byte, 1)
	for _, letter := range "abc" {
		io.WriteString(write, string(letter))
		if _, err := io.ReadFull(res.Body, b); err != nil || b[0] != byte(letter) {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	write.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 || res.Trailer.Get("X-End") != "1" {
		t.Errorf("the end: %q, %v, trailer %v", rest, err, res.Trailer)
	}
	res.Body.Close()
}
