package ingress_test

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/leak"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { leak.Main(m) }

const (
	service = platform.ID("service-1")
	host    = "web.example.com"
)

// probeEvery is a health check that is due at once and then, for a ready
// target, practically never again within a test.
var probeEvery = platform.HealthCheck{Type: platform.HealthHTTP, Path: "/health", Status: "200-399", IntervalS: 3600, TimeoutS: 3}

// world is an ingress behind a real server, with one routed service.
type world struct {
	*ingress.Ingress
	t      testing.TB
	server *httptest.Server
	client *http.Client
	news   chan struct{}
}

func newWorld(t testing.TB, o ingress.Options) *world {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &world{Ingress: ingress.New(o), t: t, news: make(chan struct{}, 1)}
	w.server = httptest.NewServer(w.Ingress)
	transport := &http.Transport{
		DialContext:         (&net.Dialer{}).DialContext,
		MaxIdleConnsPerHost: 64, DisableCompression: true,
	}
	w.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	w.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}})
	t.Cleanup(func() {
		w.Close()
		transport.CloseIdleConnections()
		w.server.Close()
	})
	return w
}

func (w *world) spec(serving ...ingress.Target) ingress.PoolSpec {
	return ingress.PoolSpec{
		ServiceID: service, Name: "web", Serving: serving, DrainTimeout: 30 * time.Second,
		Notify: func() {
			select {
			case w.news <- struct{}{}:
			default:
			}
		},
	}
}

// serve makes targets serve and waits until all are ready.
func (w *world) serve(targets ...ingress.Target) {
	w.t.Helper()
	w.Configure(w.spec(targets...))
	w.until("all targets are ready", func(s ingress.PoolStatus) bool {
		ready := 0
		for _, t := range s.Targets {
			if t.Ready && t.Serving {
				ready++
			}
		}
		return ready == len(targets)
	})
}

// until waits for a condition of the pool.
func (w *world) until(what string, ok func(ingress.PoolStatus) bool) {
	w.t.Helper()
	eventually(w.t, what, func() bool { return ok(w.Status(service)) })
}

// eventually waits for a condition that no channel tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited 10s in vain until %s", what)
		}
	}
}

// ends fails the test when what is done does not come to its end.
func ends(t testing.TB, what func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		what()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func target(id, url string) ingress.Target {
	return ingress.Target{ID: id, ReleaseID: "release-1", Addr: strings.TrimPrefix(url, "http://"), Health: probeEvery}
}

// request makes a request for the routed host.
func (w *world) request(method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Host = host
	return r
}

type answer struct {
	*http.Response
	body string
}

func (w *world) do(r *http.Request) answer {
	w.t.Helper()
	res, err := w.client.Do(r)
	if err != nil {
		w.t.Fatalf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: reading the answer: %v", r.Method, r.URL.Path, err)
	}
	return answer{res, string(b)}
}

func (w *world) get(path string) answer {
	w.t.Helper()
	return w.do(w.request(http.MethodGet, path, nil))
}

// start runs a request elsewhere and gives its answer, nil for a failed one.
func (w *world) start(r *http.Request) <-chan *answer {
	done := make(chan *answer, 1)
	go func() {
		res, err := w.client.Do(r)
		if err != nil {
			done <- nil
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			done <- nil
			return
		}
		done <- &answer{res, string(b)}
	}()
	return done
}

// backend is a replica whose death can be arranged.
type backend struct {
	*httptest.Server
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// newBackend serves handler; /health answers 200 by itself.
func newBackend(t testing.TB, handler http.HandlerFunc) *backend {
	t.Helper()
	b := startBackend(t, "127.0.0.1:0", handler)
	return b
}

func startBackend(t testing.TB, addr string, handler http.HandlerFunc) *backend {
	t.Helper()
	b := &backend{conns: map[net.Conn]bool{}}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			handler(w, r)
		}
	}))
	var l net.Listener
	eventually(t, "the address is free", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	b.Listener.Close()
	b.Listener = l
	b.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	b.Config.ConnState = func(c net.Conn, s http.ConnState) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch s {
		case http.StateNew:
			b.conns[c] = true
		case http.StateClosed:
			delete(b.conns, c)
		}
	}
	b.Start()
	t.Cleanup(b.kill)
	return b
}

// kill ends the listener and every connection at once, as SIGKILL would.
func (b *backend) kill() {
	b.Listener.Close()
	b.mu.Lock()
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.Close()
}

// says is a handler that answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }
}

// raw is a replica below HTTP: it hands each accepted connection to serve.
func raw(t testing.TB, serve func(net.Conn, *bufio.Reader)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}
