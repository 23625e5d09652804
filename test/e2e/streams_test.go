package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/denia-paas/denia/internal/testdns"
)

// churn is what goes on around a service whose streams and requests must not
// notice, and how much of them there is.
type churn struct {
	sockets, events              int           // streams of the service
	every                        time.Duration // each stream says something
	rate                         int           // requests to the service a second
	deployments, domains, reload int           // of others, within window
	window                       time.Duration
	timed                        bool // whether latencies are compared
}

// With DENIA_STREAMS=full the test is as large as what is promised, and takes
// three windows of five minutes: quiet, with everything going on, and with the
// same containers started and removed by docker run, without Denia. The third
// tells whose doing a difference between the first two is, where containers have
// no processors of their own to start on.
func churnAsked() churn {
	if os.Getenv("DENIA_STREAMS") == "full" {
		return churn{1000, 200, 10 * time.Second, 200, 100, 50, 10, 5 * time.Minute, true}
	}
	return churn{100, 20, time.Second, 50, 5, 5, 2, 10 * time.Second, false}
}

// Streams and requests of one service while another is deployed, domains come
// and go, and Caddy is reloaded: none is cut, none is corrupted.
func TestStreamsSurvive(t *testing.T) {
	c := churnAsked()
	dns := testdns.Start(t)
	s := start(t, domainOptions(dns, "allow_private"))
	unrelated := func(n int) {
		s.use(domainOptions(dns, "allow_private"), "", fmt.Sprintf("http://unrelated.test:%d {\n\tbind 127.0.0.1\n\trespond %d\n}\n", s.port, 600+n))
		if status, _ := s.get("unrelated.test", "/"); status != 600+n {
			t.Errorf("after a reload the other site answers %d, want %d", status, 600+n)
		}
	}
	unrelated(0)
	s.running("steady", "steady", nil)
	other := s.running("other", "one", nil)
	releases := []string{s.latest(other), s.deployFiles(other, appContext("two"))}
	s.healthy(releases[1])

	streams := s.openStreams("steady.localhost", c)
	quiet := s.observe("quiet", "steady.localhost", c, func() { <-time.After(c.window) })
	// Every so often besides the deployments, as they are what takes long.
	var claimed []object
	changing := s.observe("deployments, domains and reloads", "steady.localhost", c, func() {
		paced(c, func(i int) {
			deployment := s.deploy(other, object{"type": "redeploy", "deployment_id": releases[i%2]})
			for range share(i, c.deployments, c.domains) {
				host := fmt.Sprintf("shop%d.example.test", len(claimed))
				d := s.attach(other, host)
				dns.Host(host, "127.0.0.1")
				if after := s.verify(d); after.str("status") != "verified" {
					t.Errorf("%s is %s: %v", host, after.str("status"), after["last_error"])
				}
				if status, _ := s.get(host, "/"); status != http.StatusOK {
					t.Errorf("%s answers %d", host, status)
				}
				if claimed = append(claimed, d); len(claimed) > 1 {
					gone := claimed[len(claimed)-2]
					s.expect(http.StatusNoContent, "DELETE", gone.at(), nil, nil)
					s.unknown(gone.str("hostname"))
				}
			}
			for n := range share(i, c.deployments, c.reload) {
				unrelated(1 + i + n)
			}
			s.healthy(deployment)
		})
	})
	if !c.timed {
		streams.end()
		return
	}
	var release object
	s.expect(http.StatusOK, "GET", "/v1/deployments/"+releases[0], nil, &release)
	control := s.observe("docker run without Denia", "steady.localhost", c, func() { s.runByHand(c, release.str("artifact.digest")) })
	streams.end()
	if limit := quiet.p99 * 11 / 10; changing.p99 > limit {
		t.Logf("p99 is %s, above %s, which is its quiet run's and a tenth", changing.p99, limit)
		if changing.p99 > control.p99*11/10 {
			t.Errorf("and above what starting as many containers does by itself, %s and a tenth: it is Denia's doing", control.p99)
		}
	}
}

// use has Denia reload a Caddyfile with these options of its own, global options
// and further sites. The grace period is short, for whatever ends with the
// configuration before to end within a test.
func (s *server) use(options, global, sites string) {
	s.t.Helper()
	s.configure(fmt.Sprintf(`{
	admin 127.0.0.1:%d
	persist_config off
	grace_period 2s
	%s
	denia {
		data_dir %s
		%s
	}
}
http://:%d {
	bind 127.0.0.1
	denia
}
%s`, s.admin, global, s.data, strings.ReplaceAll(options, "$PORT", fmt.Sprint(s.port)), s.port, sites))
	if out, err := s.reload(); err != nil {
		s.t.Fatalf("reload: %v\n%s", err, out)
	}
}

// share is how many of all fall to the i-th of n.
func share(i, n, all int) int { return (i+1)*all/n - i*all/n }

// paced calls step for each deployment, evenly over the window.
func paced(c churn, step func(i int)) {
	began := time.Now()
	for i := range c.deployments {
		<-time.After(time.Until(began.Add(time.Duration(i) * c.window / time.Duration(c.deployments))))
		step(i)
	}
	<-time.After(time.Until(began.Add(c.window)))
}

// runByHand starts and removes the containers that deployments would.
func (s *server) runByHand(c churn, image string) {
	old := ""
	run := func(int) {
		id := s.docker("run", "-d", "--memory", "512m", "--pids-limit", "512", "-e", "PORT=8080", image)[0]
		if old != "" {
			s.docker("stop", "-t", "10", old)
			s.docker("rm", old)
		}
		old = id
	}
	paced(c, run)
	s.docker("rm", "-f", old)
}

// observed is how a window went.
type observed struct{ p99 time.Duration }

// observe sends requests at a steady rate, whatever the answers take, while fn
// runs, and reports how long they took and what it cost.
func (s *server) observe(name, host string, c churn, fn func()) observed {
	s.t.Helper()
	client := s.client()
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var took []time.Duration
	var failed []string
	once := func() {
		began := time.Now()
		reply, err := client.Get("http://" + host + "/")
		if err == nil {
			var text []byte
			text, err = io.ReadAll(reply.Body)
			_ = reply.Body.Close()
			if err == nil && (reply.StatusCode != http.StatusOK || string(text) != "steady") {
				err = fmt.Errorf("status %d: %s", reply.StatusCode, tail(string(text), 200))
			}
		}
		d := time.Since(began)
		mu.Lock()
		defer mu.Unlock()
		if took = append(took, d); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", began.Format("15:04:05.000"), err))
		}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var requests sync.WaitGroup
		defer requests.Wait()
		began := time.Now()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(c.rate)))):
			}
			requests.Go(once)
		}
	}()
	finish := sync.OnceFunc(func() { close(stop); <-done })
	defer finish() // also when fn fails the test
	began := time.Now()
	before := s.usage()
	fn()
	after := s.usage()
	window := time.Since(began)
	finish()
	slices.Sort(took)
	at := func(per1000 int) time.Duration {
		return took[min(len(took)-1, len(took)*per1000/1000)].Round(10 * time.Microsecond)
	}
	s.t.Logf("%s, %s: %d requests, %d failed; p50 %s, p90 %s, p99 %s, p99.9 %s, slowest %s; Denia took %.1f %% of a processor and holds %d MiB",
		name, window.Round(time.Second), len(took), len(failed), at(500), at(900), at(990), at(999), at(1000), 100*(after.CPU-before.CPU).Seconds()/window.Seconds(), after.RSS>>20)
	if len(failed) > 0 {
		s.t.Errorf("%d of %d requests failed: %s", len(failed), len(took), strings.Join(failed[:min(10, len(failed))], "; "))
	}
	return observed{p99: at(990)}
}

// streams are open WebSockets and event streams that are talked over.
type streams struct {
	t      testing.TB
	cancel context.CancelFunc
	ending atomic.Bool
	wg     sync.WaitGroup
	stop   chan struct{}

	echoed, events atomic.Int64
	mu             sync.Mutex
	broken         []string
}

// openStreams opens them all before it returns.
func (s *server) openStreams(host string, c churn) *streams {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	all := &streams{t: s.t, cancel: cancel, stop: make(chan struct{})}
	s.t.Cleanup(func() { cancel(); all.wg.Wait() })
	client := s.client()
	client.Timeout = 0
	for i := range c.sockets {
		socket, _, err := websocket.Dial(ctx, "http://"+host+"/ws", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			s.t.Fatalf("WebSocket %d: %v", i, err)
		}
		all.wg.Go(func() {
			defer func() { _ = socket.CloseNow() }()
			all.lost("WebSocket", i, all.echo(ctx, socket, i, c.every))
		})
	}
	for i := range c.events {
		r, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/sse?ms=%d", host, c.every.Milliseconds()/2), nil)
		if err != nil {
			s.t.Fatal(err)
		}
		reply, err := client.Do(r)
		if err != nil || reply.StatusCode != http.StatusOK {
			s.t.Fatalf("event stream %d: %v, %v", i, reply, err)
		}
		all.wg.Go(func() {
			defer reply.Body.Close()
			all.lost("event stream", i, all.read(reply.Body))
		})
	}
	return all
}

// lost notes why a stream ended.
func (a *streams) lost(kind string, i int, err error) {
	if err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = append(a.broken, fmt.Sprintf("%s %s %d: %v", time.Now().Format("15:04:05.000"), kind, i, err))
}

// echo says something every so often and has it said back, once more when all
// is to end.
func (a *streams) echo(ctx context.Context, c *websocket.Conn, i int, every time.Duration) error {
	pause := time.NewTimer(rand.N(every))
	defer pause.Stop()
	for n, last := 0, false; !last; n++ {
		select {
		case <-pause.C:
			pause.Reset(every)
		case <-a.stop:
			last = true
		}
		sum := sha256.Sum256(fmt.Append(nil, i, n))
		message := fmt.Sprintf("%d %d %s", i, n, strings.Repeat(string(sum[:]), n%40))
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := c.Write(ctx, websocket.MessageBinary, []byte(message))
		var got []byte
		if err == nil {
			_, got, err = c.Read(ctx)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		if string(got) != message {
			return fmt.Errorf("message %d came back as %q", n, got)
		}
		a.echoed.Add(1)
	}
	return nil
}

// read reads events until all is to end.
func (a *streams) read(body io.Reader) error {
	lines := bufio.NewScanner(body)
	for n := 0; ; n++ {
		for _, want := range []string{fmt.Sprint("data: ", n), ""} {
			if !lines.Scan() {
				return fmt.Errorf("it ended at event %d: %w", n, errors.Join(io.ErrUnexpectedEOF, lines.Err()))
			}
			if lines.Text() != want {
				return fmt.Errorf("%q came, want %q", lines.Text(), want)
			}
		}
		a.events.Add(1)
		if a.ending.Load() {
			return nil
		}
	}
}

// end has every stream carry one thing more, ends them, and fails the test for
// each that had ended before, or carried what it should not have.
func (a *streams) end() {
	a.t.Helper()
	a.ending.Store(true)
	close(a.stop)
	over := make(chan struct{})
	go func() { defer close(over); a.wg.Wait() }()
	select {
	case <-over:
	case <-time.After(time.Minute):
		a.t.Errorf("streams are silent a minute after the end")
		a.cancel()
		<-over
	}
	a.t.Logf("%d messages were echoed and %d events came; %d streams were dropped or corrupted", a.echoed.Load(), a.events.Load(), len(a.broken))
	if len(a.broken) > 0 {
		a.t.Errorf("%s", strings.Join(a.broken[:min(20, len(a.broken))], "\n"))
	}
}

// An idle WebSocket costs little memory, for there may be many.
func TestIdleWebSocketsAreCheap(t *testing.T) {
	const n, most = 1000, 45 << 10
	s := start(t)
	s.running("app", "hello", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	open := func(n int) (closeAll func()) {
		client := s.client()
		client.Timeout = 0
		var all []*websocket.Conn
		for range n {
			c, _, err := websocket.Dial(ctx, "http://app.localhost/ws", &websocket.DialOptions{HTTPClient: client})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
			if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); err != nil {
				t.Fatal(err)
			}
		}
		return func() {
			for _, c := range all {
				_ = c.CloseNow()
			}
		}
	}
	open(10)() // what the first ones alone need
	before := s.usage().RSS
	closeAll := open(n)
	defer closeAll()
	after, peak := s.usage().RSS, s.usage().Peak
	each := (after - before) / n
	t.Logf("%d WebSockets: %.1f KiB each, from %d to %d MiB, at most %d", n, float64(each)/1024, before>>20, after>>20, peak>>20)
	if each > most {
		t.Errorf("each takes %d KiB, want at most %d", each>>10, most>>10)
	}
}
