package ingress_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// health answers probes with a status that can be changed.
type health struct {
	*httptest.Server
	status atomic.Int32
	seen   chan *http.Request
}

func newHealth(t *testing.T, status int) *health {
	h := &health{seen: make(chan *http.Request, 1000)}
	h.status.Store(int32(status))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			select {
			case h.seen <- r:
			default:
			}
			w.WriteHeader(int(h.status.Load()))
		}
	}))
	t.Cleanup(h.Close)
	return h
}

func everySecond(h *health) ingress.Target {
	at := target("a", h.URL)
	at.Health.IntervalS = 1
	return at
}

func TestReplicaIsReadyAfterTheFirstGoodProbe(t *testing.T) {
	h := newHealth(t, http.StatusServiceUnavailable)
	w := newWorld(t, ingress.Options{})
	w.Configure(w.spec(target("a", h.URL)))
	w.until("a probe failed", func(s ingress.PoolStatus) bool { return s.Targets[0].LastProbe.Status == http.StatusServiceUnavailable })
	s := w.Status(service).Targets[0]
	if s.Ready || s.LastProbe.OK || !strings.Contains(s.LastProbe.Err, "answered 503") || s.LastProbe.Latency <= 0 {
		t.Errorf("a replica that answers 503 is %+v", s)
	}
	h.status.Store(http.StatusNoContent)
	at := time.Now()
	w.until("it is ready", func(s ingress.PoolStatus) bool { return s.Targets[0].Ready })
	if took := time.Since(at); took > time.Second {
		t.Errorf("it took %v to see that a new replica is ready", took)
	}
	r := <-h.seen
	if r.Host != host || r.UserAgent() != "Denia-Health/1" {
		t.Errorf("the probe came for host %q from %q", r.Host, r.UserAgent())
	}
}

func TestStatusRangesDecide(t *testing.T) {
	h := newHealth(t, http.StatusTeapot)
	w := newWorld(t, ingress.Options{})
	at := target("a", h.URL)
	at.Health.Status = "204,418"
	w.serve(at)
}

func TestNobodyListensYet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for _, kind := range []string{platform.HealthHTTP, platform.HealthTCP} {
		w := newWorld(t, ingress.Options{})
		at := target("a", addr)
		at.Health.Type = kind
		w.Configure(w.spec(at))
		w.until("a probe failed", func(s ingress.PoolStatus) bool { return s.Targets[0].LastProbe.Err != "" })
		if s := w.Status(service).Targets[0]; s.Ready || !strings.Contains(s.LastProbe.Err, "refused") {
			t.Errorf("%s: %+v", kind, s)
		}
		b := startBackend(t, addr, says("hello"))
		w.until("it is ready", func(s ingress.PoolStatus) bool { return s.Targets[0].Ready })
		b.kill()
	}
}

func TestWithoutHealthCheckRunningIsEnough(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	at := target("a", newBackend(t, says("hello")).URL)
	at.Health = platform.HealthCheck{Type: platform.HealthNone}
	w.Configure(w.spec(at))
	if s := w.Status(service).Targets[0]; !s.Ready {
		t.Errorf("it is %+v", s)
	}
	if a := w.get("/"); a.body != "hello" {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
}

func TestPresumedReplicaServesUntilAProbeSaysOtherwise(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	at := target("a", newBackend(t, says("hello")).URL)
	at.Presumed = true
	w.Configure(w.spec(at))
	if s := w.Status(service).Targets[0]; !s.Ready {
		t.Errorf("it is %+v", s)
	}
	dead := newBackend(t, says("x"))
	dead.kill()
	at = target("b", dead.URL)
	at.Presumed = true
	w.Configure(w.spec(at))
	w.until("it is not ready", func(s ingress.PoolStatus) bool {
		return slices.ContainsFunc(s.Targets, func(x ingress.TargetStatus) bool { return x.ID == "b" && !x.Ready })
	})
}

func TestFailingReplicaIsLeftAloneWhileAnotherIsWell(t *testing.T) {
	sick, well := newHealth(t, http.StatusOK), newBackend(t, says("well"))
	w := newWorld(t, ingress.Options{})
	w.serve(everySecond(sick), target("b", well.URL))
	sick.status.Store(http.StatusInternalServerError)
	w.until("it is ejected", func(s ingress.PoolStatus) bool { return !s.Targets[0].Ready })
	for range 20 {
		if a := w.get("/"); a.body != "well" {
			t.Fatalf("the failing replica got a request: %q", a.body)
		}
	}
	// With nothing better left, a replica that accepts connections is used.
	well.kill()
	for range 3 {
		if a := w.get("/"); a.StatusCode != http.StatusOK || a.body != "" {
			t.Errorf("with only the failing one left: %d %s", a.StatusCode, a.body)
		}
	}
	sick.status.Store(http.StatusOK)
	w.until("it is back", func(s ingress.PoolStatus) bool { return s.Targets[0].Ready })
}

func TestCrashIsNoticedWithoutARequest(t *testing.T) {
	b := newBackend(t, says("hello"))
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", b.URL)) // the next probe would be due in an hour
	b.kill()
	w.until("it is not ready", func(s ingress.PoolStatus) bool { return !s.Targets[0].Ready })
}

// A replica that passes its probes and breaks what it is asked is quick about
// it, and so has the fewest requests in flight. It must not be given them all.
func TestReplicaThatBreaksRequestsIsEjected(t *testing.T) {
	var broken atomic.Int32
	bad := newBackend(t, func(http.ResponseWriter, *http.Request) {
		broken.Add(1)
		panic(http.ErrAbortHandler)
	})
	good := newBackend(t, says("good"))
	w := newWorld(t, ingress.Options{})
	w.serve(target("bad", bad.URL), target("good", good.URL))
	failed := 0
	for range 200 {
		if a := w.do(w.request(http.MethodPost, "/", strings.NewReader("x"))); a.StatusCode != http.StatusOK {
			failed++
		}
	}
	if failed != 3 || broken.Load() != 3 {
		t.Errorf("%d of 200 requests failed, the broken replica got %d: want 3", failed, broken.Load())
	}
	// Where there is no other, it is tried all the same.
	w.Configure(w.spec(target("bad", bad.URL)))
	if a := w.get("/"); a.StatusCode != http.StatusBadGateway || broken.Load() == 3 {
		t.Errorf("alone it answers %d after %d requests", a.StatusCode, broken.Load())
	}
}
