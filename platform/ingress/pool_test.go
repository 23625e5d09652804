package ingress_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

func TestRequestsGoWhereFewestAreInFlight(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	busy := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
	})
	idle := newBackend(t, says("idle"))
	w := newWorld(t, ingress.Options{})
	w.serve(target("busy", busy.URL))
	ctx, cancel := context.WithCancel(t.Context())
	held := w.start(w.request(http.MethodGet, "/", nil).WithContext(ctx))
	w.until("one request is in flight", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 1 })

	w.serve(target("busy", busy.URL), target("idle", idle.URL))
	for range 50 {
		if a := w.get("/"); a.body != "idle" {
			t.Fatalf("a request went to the busy replica: %d %s", a.StatusCode, a.body)
		}
	}
	cancel()
	<-held
}

func TestRequestsWaitForTheFirstReadyReplica(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	waiting := []<-chan *answer{}
	for range 10 {
		waiting = append(waiting, w.start(w.request(http.MethodPost, "/", strings.NewReader("body"))))
	}
	w.until("all wait", func(s ingress.PoolStatus) bool { return s.Waiting == 10 })
	b := newBackend(t, echo)
	w.serve(target("a", b.URL))
	for _, done := range waiting {
		if a := <-done; a == nil || a.StatusCode != http.StatusOK || a.body != "body" {
			t.Errorf("a waiting request got %+v", a)
		}
	}
	if n := w.Status(service).Waiting; n != 0 {
		t.Errorf("%d still wait", n)
	}
}

func TestWaitingIsBoundedInTime(t *testing.T) {
	w := newWorld(t, ingress.Options{WaitTimeout: 20 * time.Millisecond})
	w.Configure(w.spec())
	a := w.get("/")
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		t.Errorf("got %d, Retry-After %q", a.StatusCode, a.Header.Get("Retry-After"))
	}
	if !strings.Contains(a.body, "web became ready within 20ms") || a.Header.Get("X-Request-Id") == "" {
		t.Errorf("the page does not say what happened: %s", a.body)
	}
}

func TestWaitingIsBoundedInNumber(t *testing.T) {
	w := newWorld(t, ingress.Options{MaxWaiting: 2})
	w.Configure(w.spec())
	ctx, cancel := context.WithCancel(t.Context())
	first := w.start(w.request(http.MethodGet, "/", nil).WithContext(ctx))
	second := w.start(w.request(http.MethodGet, "/", nil))
	w.until("two wait", func(s ingress.PoolStatus) bool { return s.Waiting == 2 })
	if a := w.get("/"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, "2 requests are waiting") {
		t.Errorf("the third got %d %s", a.StatusCode, a.body)
	}
	// A client that leaves makes room.
	cancel()
	<-first
	w.until("one waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	w.serve(target("a", newBackend(t, says("hello")).URL))
	if a := <-second; a == nil || a.body != "hello" {
		t.Errorf("the second got %+v", a)
	}
}

func TestStoppedAndUndeployedAnswerAtOnce(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	waiting := w.start(w.request(http.MethodGet, "/", nil))
	w.until("it waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	spec := w.spec()
	spec.Stopped = true
	w.Configure(spec)
	for _, a := range []answer{*<-waiting, w.get("/")} {
		if a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, "web has been stopped") {
			t.Errorf("stopped: %d %s", a.StatusCode, a.body)
		}
	}
	spec.Stopped, spec.Undeployed = false, true
	w.Configure(spec)
	if a := w.get("/"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, "not been deployed") {
		t.Errorf("undeployed: %d %s", a.StatusCode, a.body)
	}
}

// A start is not undone by what was decided before it.
func TestHoldOutlivesWhatWasDecidedBefore(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	spec := w.spec()
	spec.Stopped, spec.Holds = true, w.Holds(spec.ServiceID)
	w.Configure(spec)
	if a := w.get("/"); a.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("stopped, and %d", a.StatusCode)
	}
	spec.Holds = w.Holds(spec.ServiceID)
	w.Hold(spec.ServiceID)
	w.Configure(spec)
	waiting := w.start(w.request("GET", "/", nil))
	w.until("the request waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	spec.Holds = w.Holds(spec.ServiceID)
	w.Configure(spec)
	if a := <-waiting; a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("stopped again, and %d", a.StatusCode)
	}
}

func TestShutdownAnswersThoseThatWait(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	waiting := w.start(w.request(http.MethodGet, "/", nil))
	w.until("it waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	w.Drain()
	if a := <-waiting; a == nil || a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %+v", a)
	}
}

func TestCandidateServesFromTheInstantItIsSwitchedTo(t *testing.T) {
	old, next := newBackend(t, says("old")), newBackend(t, says("new"))
	w := newWorld(t, ingress.Options{})
	w.serve(target("old", old.URL))
	spec := w.spec(target("old", old.URL))
	spec.Candidates = []ingress.Target{target("new", next.URL)}
	w.Configure(spec)
	w.until("the candidate is ready", func(s ingress.PoolStatus) bool { return len(s.Targets) == 2 && s.Targets[1].Ready })
	if s := w.Status(service).Targets[1]; s.Serving || s.LastProbe.Status != http.StatusOK || !s.LastProbe.OK {
		t.Errorf("the candidate is %+v", s)
	}
	for range 20 {
		if a := w.get("/"); a.body != "old" {
			t.Fatalf("a candidate got a request: %s", a.body)
		}
	}
	w.Configure(w.spec(target("new", next.URL)))
	for range 20 {
		if a := w.get("/"); a.body != "new" {
			t.Fatalf("after the switch: %s", a.body)
		}
	}
	w.until("the old one is gone", func(s ingress.PoolStatus) bool { return len(s.Targets) == 1 })
}

func TestDrainLetsRequestsFinish(t *testing.T) {
	finish := make(chan struct{})
	old := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		<-finish
		io.WriteString(w, "old")
	})
	w := newWorld(t, ingress.Options{})
	w.serve(target("old", old.URL))
	held := w.start(w.request(http.MethodPost, "/", strings.NewReader("x")))
	w.until("it is in flight", func(s ingress.PoolStatus) bool { return s.Targets[0].InFlight == 1 })

	w.Configure(w.spec(target("new", newBackend(t, says("new")).URL)))
	if a := w.get("/"); a.body != "new" {
		t.Errorf("a draining replica got a request: %s", a.body)
	}
	if s := w.Status(service).Targets[0]; !s.Draining || s.InFlight != 1 || s.Ready || s.Serving {
		t.Errorf("the old replica is %+v", s)
	}
	for len(w.news) > 0 {
		<-w.news
	}
	close(finish)
	if a := <-held; a == nil || a.body != "old" {
		t.Errorf("the request in flight got %+v", a)
	}
	<-w.news
	if s := w.Status(service); len(s.Targets) != 1 || s.Targets[0].ID != "new" {
		t.Errorf("after the last request: %+v", s)
	}
}

func TestDrainDeadlineCuts(t *testing.T) {
	arrived := make(chan struct{}, 2)
	old := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
		}
		io.Copy(io.Discard, r.Body) // only then does net/http notice a lost connection
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	w := newWorld(t, ingress.Options{})
	w.serve(target("old", old.URL))
	events := w.start(w.request(http.MethodGet, "/events", nil))
	post := w.start(w.request(http.MethodPost, "/", strings.NewReader("x")))
	<-arrived
	<-arrived
	spec := w.spec(target("new", newBackend(t, says("new")).URL))
	spec.DrainTimeout = 10 * time.Millisecond
	w.Configure(spec)
	if a := <-events; a != nil {
		t.Errorf("the event stream ended as if it were complete: %+v", a)
	}
	if a := <-post; a == nil || a.StatusCode != http.StatusBadGateway {
		t.Errorf("a request that may have taken effect got %+v, want 502", a)
	}
	w.until("the old one is gone", func(s ingress.PoolStatus) bool { return len(s.Targets) == 1 })
}

func TestGoneReplicaIsCutAtOnce(t *testing.T) {
	arrived := make(chan struct{}, 1)
	dead := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	w := newWorld(t, ingress.Options{})
	w.serve(target("dead", dead.URL))
	held := w.start(w.request(http.MethodGet, "/", nil))
	<-arrived
	spec := w.spec(target("new", newBackend(t, says("new")).URL))
	spec.Gone = []string{"dead"}
	w.Configure(spec)
	if s := w.Status(service); len(s.Targets) != 1 {
		t.Errorf("the dead replica is still there: %+v", s)
	}
	if a := <-held; a == nil || a.body != "new" {
		t.Errorf("a GET that waited for the dead replica got %+v", a)
	}
}

// load sends GETs and POSTs from 16 workers until stop, and returns what failed.
func (w *world) load(stop <-chan struct{}, only ...string) (failures func() []string, served *atomic.Int64) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []string
	served = new(atomic.Int64)
	payload := bytes.Repeat([]byte("x"), ingress.MaxReplayBody)
	for i := range 16 {
		method := http.MethodGet
		if i%2 == 1 {
			method = http.MethodPost
		}
		if len(only) > 0 {
			method = only[0]
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var body io.Reader
				if method == http.MethodPost {
					body = bytes.NewReader(payload)
				}
				r, _ := http.NewRequest(method, w.server.URL+"/", body)
				r.Host = host
				res, err := w.client.Do(r)
				if err == nil {
					var b []byte
					b, err = io.ReadAll(res.Body)
					res.Body.Close()
					if err == nil && (res.StatusCode != http.StatusOK || method == http.MethodPost && len(b) != len(payload)) {
						err = fmt.Errorf("%d, %d bytes: %.200s", res.StatusCode, len(b), b)
					}
				}
				if err != nil {
					mu.Lock()
					failed = append(failed, method+": "+err.Error())
					mu.Unlock()
				}
				served.Add(1)
			}
		})
	}
	return func() []string { wg.Wait(); return failed }, served
}

// echo reads all before it answers: net/http's server does not do both at once
// unless told to.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Write(b)
}

func TestSwitchingUnderLoadFailsNothing(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	current := startBackend(t, "127.0.0.1:0", echo)
	at := target("0", current.URL)
	w.serve(at)
	stop := make(chan struct{})
	failures, served := w.load(stop)
	for i := range 20 {
		next := startBackend(t, "127.0.0.1:0", echo)
		candidate := target(fmt.Sprint(i+1), next.URL)
		spec := w.spec(at)
		spec.Candidates = []ingress.Target{candidate}
		w.Configure(spec)
		w.until("the candidate is ready", func(s ingress.PoolStatus) bool {
			return slices.ContainsFunc(s.Targets, func(x ingress.TargetStatus) bool { return x.ID == candidate.ID && x.Ready })
		})
		w.Configure(w.spec(candidate))
		w.until("the old one has drained", func(s ingress.PoolStatus) bool { return len(s.Targets) == 1 })
		current.kill() // it must not matter how brutal the end is after the drain
		current, at = next, candidate
	}
	close(stop)
	if f := failures(); len(f) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(f), served.Load(), f[0])
	}
}

func TestCrashOfOneOfTwoFailsNoGET(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	a, b := newBackend(t, echo), newBackend(t, echo)
	w.serve(target("a", a.URL), target("b", b.URL))
	stop := make(chan struct{})
	failures, served := w.load(stop, http.MethodGet)
	for i := range 10 {
		before := served.Load()
		addr := a.Listener.Addr().String()
		a.kill()
		eventually(t, "traffic went on", func() bool { return served.Load() > before+100 })
		a = startBackend(t, addr, echo)
		w.until("it is back", func(s ingress.PoolStatus) bool {
			return !slices.ContainsFunc(s.Targets, func(x ingress.TargetStatus) bool { return !x.Ready })
		})
		if i%2 == 0 {
			a, b = b, a
		}
	}
	close(stop)
	if f := failures(); len(f) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(f), served.Load(), f[0])
	}
}

func TestCrashOfTheOnlyReplicaFailsNoGET(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	a := newBackend(t, echo)
	w.serve(target("a", a.URL))
	stop := make(chan struct{})
	failures, served := w.load(stop, http.MethodGet)
	for range 10 {
		before := served.Load()
		a.kill()
		w.until("requests wait", func(s ingress.PoolStatus) bool { return s.Waiting == 16 })
		a = startBackend(t, a.Listener.Addr().String(), echo)
		eventually(t, "traffic went on", func() bool { return served.Load() > before+100 })
	}
	close(stop)
	if f := failures(); len(f) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(f), served.Load(), f[0])
	}
}

func TestConfigureIsIdempotent(t *testing.T) {
	var probes atomic.Int32
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			probes.Add(1)
		}
	}))
	defer b.Close()
	w := newWorld(t, ingress.Options{})
	at := target("a", b.URL)
	w.serve(at)
	at.Presumed = true
	for range 100 {
		w.Configure(w.spec(at))
	}
	if n := len(w.Status(service).Targets); n != 1 {
		t.Errorf("%d targets, want 1", n)
	}
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes, want the first only", n)
	}
}

func BenchmarkForward(b *testing.B) {
	body := strings.Repeat("x", 200)
	backend := httptest.NewServer(says(body))
	defer backend.Close()
	in := ingress.New(ingress.Options{})
	defer in.Close()
	in.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}})
	in.Configure(ingress.PoolSpec{ServiceID: service, Name: "web", Serving: []ingress.Target{{
		ID: "a", Addr: strings.TrimPrefix(backend.URL, "http://"), Health: platform.HealthCheck{Type: platform.HealthNone},
	}}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Host = host
			in.ServeHTTP(httptest.NewRecorder(), r)
		}
	})
}
