package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// amount is how often a test does what it does: few times in CI, as often as
// the variable says on demand.
func amount(t testing.TB, variable string, standard int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return standard
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// load sends requests at a steady rate until it is stopped: GET and 64 KiB
// POST, over kept and over new connections.
type load struct {
	t      testing.TB
	host   string
	keyed  bool // POSTs say, by an Idempotency-Key, that they may be sent twice
	stop   chan struct{}
	done   sync.WaitGroup
	sent   atomic.Int64
	failed atomic.Int64
	worst  atomic.Int64 // ns

	mu     sync.Mutex
	errors []string
}

func (s *server) load(host string, perSecond int, keyed bool) *load {
	l := &load{t: s.t, host: host, keyed: keyed, stop: make(chan struct{})}
	kept, fresh := s.client(), s.client()
	fresh.Transport.(*http.Transport).DisableKeepAlives = true
	body := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	want := fmt.Sprintf("%d %x", len(body), sha256.Sum256(body))
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		defer kept.CloseIdleConnections()
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		var requests sync.WaitGroup
		defer requests.Wait()
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			case <-ticker.C:
			}
			client := kept
			if n%4 >= 2 {
				client = fresh
			}
			requests.Go(func() {
				if n%2 == 0 {
					l.once(client, "GET", "/", nil, "")
				} else {
					l.once(client, "POST", "/echo", body, want)
				}
			})
		}
	}()
	return l
}

func (l *load) once(client *http.Client, method, path string, body []byte, want string) {
	l.sent.Add(1)
	began := time.Now()
	err := func() error {
		// A reader of no known type: the client must not replay the body by
		// itself.
		var content io.Reader
		if body != nil {
			content = struct{ io.Reader }{bytes.NewReader(body)}
		}
		request, err := http.NewRequest(method, "http://"+l.host+path, content)
		if err != nil {
			return err
		}
		request.ContentLength = int64(len(body))
		if body != nil && l.keyed {
			request.Header.Set("Idempotency-Key", strconv.Itoa(int(l.sent.Load())))
		}
		reply, err := client.Do(request)
		if err != nil {
			return err
		}
		defer reply.Body.Close()
		text, err := io.ReadAll(reply.Body)
		if err != nil {
			return err
		}
		if reply.StatusCode != http.StatusOK || want != "" && string(text) != want {
			return fmt.Errorf("status %d: %s", reply.StatusCode, tail(strings.TrimSpace(string(text)), 200))
		}
		return nil
	}()
	took := time.Since(began)
	for worst := l.worst.Load(); int64(took) > worst && !l.worst.CompareAndSwap(worst, int64(took)); worst = l.worst.Load() {
	}
	if err != nil {
		l.failed.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.errors) < 10 {
			l.errors = append(l.errors, fmt.Sprintf("%s %s %s after %s: %v", time.Now().Format("15:04:05.000"), method, path, took.Round(time.Millisecond), err))
		}
	}
}

// end stops the load and fails the test if any request failed.
func (l *load) end() {
	l.t.Helper()
	close(l.stop)
	l.done.Wait()
	l.t.Logf("%d requests, %d failed, the slowest took %s", l.sent.Load(), l.failed.Load(), time.Duration(l.worst.Load()).Round(time.Millisecond))
	if l.failed.Load() > 0 {
		l.t.Errorf("%d of %d requests failed: %s", l.failed.Load(), l.sent.Load(), errors.New(strings.Join(l.errors, "; ")))
	}
}

// Deployments in a row of one service under load: no request fails.
func TestLoadThroughDeployments(t *testing.T) {
	s := start(t)
	id := s.running("app", "one", nil)
	first := s.latest(id)
	second := s.deployFiles(id, appContext("two"))
	s.healthy(second)
	l := s.load("app.localhost", 200, false)
	times := amount(t, "DENIA_DEPLOYMENTS", 10)
	for i := range times {
		s.healthy(s.deploy(id, object{"type": "redeploy", "deployment_id": []string{first, second}[i%2]}))
	}
	l.end()
	t.Logf("%d deployments", times)
}

// Crashes of one of two replicas, and of the only one, under load: requests
// go to the other one, or wait. A POST whose replica died with it in hand is
// sent again only if it says, by an Idempotency-Key, that it may be (RFC 9110
// §9.2.2); these do.
func TestLoadThroughCrashes(t *testing.T) {
	for _, replicas := range []int{2, 1} {
		t.Run(fmt.Sprintf("%d replicas", replicas), func(t *testing.T) {
			s := start(t)
			id := s.running("app", "one", object{"scale": object{"min": replicas, "max": replicas}})
			ready := func() bool {
				var service object
				s.expect(http.StatusOK, "GET", "/v1/services/"+id, nil, &service)
				return service.str("replicas.ready") == strconv.Itoa(replicas)
			}
			s.eventually(30*time.Second, "every replica is ready", ready)
			l := s.load("app.localhost", 200, true)
			times := amount(t, "DENIA_CRASHES", 5)
			for range times {
				victim := s.docker("ps", "-q", "--filter", s.label())[0]
				s.docker("kill", "--signal", "KILL", victim)
				s.eventually(30*time.Second, "the crash is seen", func() bool { return len(s.docker("ps", "-q", "--filter", s.label())) < replicas || ready() })
				s.eventually(60*time.Second, "every replica is ready again", func() bool { return len(s.docker("ps", "-q", "--filter", s.label())) == replicas && ready() })
			}
			l.end()
			t.Logf("%d crashes", times)
		})
	}
}

// latest returns the id of a service's newest deployment.
func (s *server) latest(service string) string {
	s.t.Helper()
	var list []object
	s.expect(http.StatusOK, "GET", "/v1/services/"+service+"/deployments?limit=1", nil, &list)
	return list[0].str("id")
}
