package docker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/docker"
)

// outage stands between the package and the engine and can go away, hang, or
// lose an answer.
type outage struct {
	socket string
	t      *testing.T
	lose   atomic.Value // path suffix of the POST whose answer is lost, once
	hang   atomic.Bool  // accept connections and say nothing

	mu     sync.Mutex
	server *http.Server
	silent []net.Conn
}

func newOutage(t *testing.T) *outage {
	o := &outage{socket: filepath.Join(t.TempDir(), "s"), t: t}
	o.lose.Store("")
	t.Cleanup(o.down)
	o.up()
	return o
}

type hangListener struct {
	net.Listener
	o *outage
}

func (l hangListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.o.hang.Load() {
			return conn, err
		}
		l.o.mu.Lock()
		l.o.silent = append(l.o.silent, conn)
		l.o.mu.Unlock()
	}
}

func (o *outage) up() {
	listener, err := net.Listen("unix", o.socket)
	if err != nil {
		o.t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: client.DummyHost})
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return engine.Dialer()(context.Background()) },
	}
	proxy.ModifyResponse = func(r *http.Response) error {
		if suffix := o.lose.Load().(string); suffix != "" && r.Request.Method == http.MethodPost && strings.HasSuffix(r.Request.URL.Path, suffix) {
			o.lose.Store("")
			return errors.New("lost")
		}
		return nil
	}
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	server := &http.Server{Handler: proxy}
	server.SetKeepAlivesEnabled(false) // a hang concerns every request
	o.mu.Lock()
	o.server = server
	o.mu.Unlock()
	go func() { _ = server.Serve(hangListener{listener, o}) }()
}

func (o *outage) down() {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.server.Close()
	for _, conn := range o.silent {
		_ = conn.Close()
	}
	o.silent = nil
}

func (o *outage) open(instance string) *docker.Engine {
	e, err := docker.Open(o.t.Context(), docker.Options{Host: "unix://" + o.socket, Instance: instance})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = e.Close() })
	return e
}

func TestEngineGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	_, instance := openNamed(t)
	o := newOutage(t)
	e := o.open(instance)
	w := app(1, "tick")
	ensure(t, e, w)
	events, err := e.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := e.Logs(t.Context(), only(t, e, w).ID, platform.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := reader.Next(); err != nil {
		t.Fatal(err)
	}
	o.down()
	for range events {
	}
	for err == nil {
		_, err = reader.Next()
	}
	if platform.CodeOf(err) != platform.CodeEngineUnavailable {
		t.Errorf("the output of a running replica ended with %v", err)
	}
	if _, err := e.Replicas(t.Context(), ""); platform.CodeOf(err) != platform.CodeEngineUnavailable {
		t.Errorf("listing without an engine: %v", err)
	}
	o.up()
	if r := only(t, e, w); r.State != platform.ReplicaRunning {
		t.Errorf("the replica is %+v", r)
	}
	if _, err := e.Watch(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEnsureSurvivesLostAnswers(t *testing.T) {
	t.Parallel()
	_, instance := openNamed(t)
	o := newOutage(t)
	e := o.open(instance)
	w := app(1, "serve")
	for _, lost := range []string{"/networks/create", "/containers/create", "/start"} {
		o.lose.Store(lost)
		if err := e.Ensure(t.Context(), w); platform.CodeOf(err) != platform.CodeEngineUnavailable {
			t.Fatalf("the answer of %s was lost: %v", lost, err)
		}
		ensure(t, e, w)
		if r := only(t, e, w); r.State != platform.ReplicaRunning {
			t.Errorf("after a lost answer of %s: %+v", lost, r)
		}
		w.Replicas = 0
		ensure(t, e, w)
		w.Replicas = 1
	}
	networks, err := e.Projects(t.Context())
	if err != nil || len(networks) != 1 {
		t.Errorf("projects %v, %v", networks, err)
	}
}

// Not beside the others, as it is timed.
func TestHungEngineDoesNotHoldACanceledCall(t *testing.T) {
	_, instance := openNamed(t)
	o := newOutage(t)
	e := o.open(instance)
	if _, err := e.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.hang.Store(true)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	for name, call := range map[string]func(context.Context) error{
		"Ensure": func(ctx context.Context) error { return e.Ensure(ctx, app(1, "serve")) },
		"Build": func(ctx context.Context) error {
			_, err := e.Build(ctx, platform.Build{ContextDir: dir, Tag: "denia/x/y:1"}, io.Discard)
			return err
		},
		"Pull": func(ctx context.Context) error {
			_, err := e.Pull(ctx, platform.Pull{Reference: "127.0.0.1:1/x", Tag: "denia/x/y:1"}, io.Discard)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
		cancel()
	}
}
