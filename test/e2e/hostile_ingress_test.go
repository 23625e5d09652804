package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long the ingress under test lets clients stall.
const patience = 2 * time.Second

// harsh is a Denia with two services, of which "steady" must not notice what
// "victim" and its clients do.
type harsh struct {
	*server
	victim string // the id of the service
}

// impatient are the global options for that.
var impatient = fmt.Sprintf(`servers {
		timeouts {
			read_header %[1]s
			read_body_idle %[1]s
			write_idle %[1]s
		}
	}`, patience)

// startHarsh starts a Denia whose timeouts for clients are short, so that a test
// can wait for them. Its other settings are the defaults.
func startHarsh(t *testing.T) *harsh {
	t.Helper()
	h := &harsh{server: start(t)}
	h.use("", impatient, "")
	h.running("steady", "steady", nil)
	h.victim = h.running("victim", "victim", nil)
	return h
}

// manyFiles sees that this process and those it starts may have that many files
// open. Go's programs take by themselves all that they may.
func manyFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Max < n {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n})
	}
	if err != nil {
		t.Fatalf("the test needs %d open files, allowed are %d: %v", n, limit.Max, err)
	}
}

// suffer runs fn while the other service is asked all the time, and fails the
// test when that notices, or when Denia takes much more memory for it than most.
func (h *harsh) suffer(name string, most int64, fn func()) {
	h.t.Helper()
	h.resetPeak()
	before := h.usage().RSS
	h.observe(name, "steady.localhost", churn{rate: 50}, fn)
	grown := h.usage().Peak - before
	h.t.Logf("%s: memory grew by at most %.1f MiB, from %d MiB", name, float64(grown)/(1<<20), before>>20)
	if grown > most {
		h.t.Errorf("%s: memory grew by %d MiB, want at most %d", name, grown>>20, most>>20)
	}
}

// quiet waits until the victim has nothing in flight.
func (h *harsh) quiet(limit time.Duration) {
	h.t.Helper()
	h.eventually(limit, "nothing is in flight", func() bool { return h.inFlight() == 0 })
}

func (h *harsh) inFlight() (n int) {
	h.t.Helper()
	var routes []struct {
		Host    string
		Targets []struct {
			InFlight int `json:"in_flight"`
		}
	}
	h.expect(http.StatusOK, "GET", "/v1/ingress/routes", nil, &routes)
	for _, r := range routes {
		if strings.HasPrefix(r.Host, "victim.") {
			for _, target := range r.Targets {
				n += target.InFlight
			}
		}
	}
	return n
}

// dial opens a connection and writes to it.
func (h *harsh) dial(text string) net.Conn {
	h.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
	if err == nil {
		_, err = io.WriteString(c, text)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// ends waits until the server has ended a connection, and returns what came.
func (h *harsh) ends(c net.Conn, limit time.Duration) string {
	h.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(limit))
	text, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		h.t.Fatalf("a connection was not ended within %s: %v, %.200q", limit, err, text)
	}
	return string(text)
}

// Replicas that answer nothing, or what is no answer.
func TestHostileReplicas(t *testing.T) {
	h := startHarsh(t)
	client := h.client()
	defer client.CloseIdleConnections()
	ask := func(method, path string) (status int, body string, took time.Duration, err error) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://victim.localhost"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		reply, err := client.Do(r)
		if err != nil {
			return 0, "", time.Since(began), err
		}
		defer reply.Body.Close()
		text, err := io.ReadAll(reply.Body)
		return reply.StatusCode, string(text), time.Since(began), err
	}

	h.suffer("answers that are none", 24<<20, func() {
		for _, deed := range []string{"close", "garbage", "head"} {
			for _, method := range []string{"GET", "POST"} {
				status, body, took, err := ask(method, "/hostile/"+deed)
				t.Logf("%s of %s: %d after %s", method, deed, status, took.Round(time.Millisecond))
				if err != nil || status != http.StatusBadGateway || !strings.Contains(body, "from Denia") || took > 2*time.Second {
					t.Errorf("%s of %s: %d %.200q, %v after %s, want 502 within 2s", method, deed, status, body, err, took)
				}
			}
		}
	})
	h.suffer("answers that break off", 8<<20, func() {
		for _, deed := range []string{"length", "chunks"} {
			status, body, took, err := ask("GET", "/hostile/"+deed)
			if status != http.StatusOK || !strings.HasPrefix(body, "begun") || !errors.Is(err, io.ErrUnexpectedEOF) || took > 2*time.Second {
				t.Errorf("%s: %d %.200q, %v after %s, want what came and a broken connection", deed, status, body, err, took)
			}
		}
	})
	// No time is set for an application's answer: its clients know how long they
	// want to wait. When they leave, so does what was asked for.
	h.suffer("no answer at all", 24<<20, func() {
		var silent []net.Conn
		for range 200 {
			silent = append(silent, h.dial("POST /hostile/silent HTTP/1.1\r\nHost: victim.localhost\r\nContent-Length: 5\r\n\r\norder"))
		}
		h.eventually(10*time.Second, "every request is with the replica", func() bool { return h.inFlight() == len(silent) })
		<-time.After(2 * patience)
		if n := h.inFlight(); n != len(silent) {
			t.Errorf("of %d requests that are not answered %d wait", len(silent), n)
		}
		h.answers("victim.localhost", "victim")
		for _, c := range silent {
			_ = c.Close()
		}
		h.quiet(10 * time.Second)
	})
}

// What a killed replica had in hand fails where it may have taken effect, and
// what can wait for the next one does.
func TestKilledReplica(t *testing.T) {
	h := startHarsh(t)
	h.suffer("a kill", 16<<20, func() {
		order := h.dial("POST /hostile/silent HTTP/1.1\r\nHost: victim.localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\norder")
		defer order.Close()
		broken := h.dial("GET /sse HTTP/1.1\r\nHost: victim.localhost\r\nConnection: close\r\n\r\n")
		defer broken.Close()
		stream := bufio.NewReader(broken)
		if _, err := stream.ReadString(':'); err != nil {
			t.Fatal(err)
		}
		h.eventually(10*time.Second, "both are with the replica", func() bool { return h.inFlight() == 2 })
		killed := time.Now()
		h.docker("kill", "--signal", "KILL", h.docker("ps", "-q", "--filter", h.label(), "--filter", "label=denia.service="+h.victim)[0])
		_ = broken.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, stream); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a killed replica's stream: %v", err)
		}
		h.answers("victim.localhost", "victim")
		t.Logf("the next request was answered %s after the kill", time.Since(killed).Round(time.Millisecond))
		if text := h.ends(order, 10*time.Second); !strings.HasPrefix(text, "HTTP/1.1 502 ") {
			t.Errorf("an order that may have taken effect got %.300q", text)
		}
	})
}

// Clients that are slow to take, slow to say, or say nothing.
func TestHostileClients(t *testing.T) {
	n := amount(t, "DENIA_IDLE_CONNECTIONS", 10_000)
	manyFiles(t, uint64(n)+2000)
	h := startHarsh(t)
	const get = "GET / HTTP/1.1\r\nHost: victim.localhost\r\n"
	all := func(text string) (conns []net.Conn, closeAll func()) {
		for range n {
			conns = append(conns, h.dial(text))
		}
		return conns, func() {
			for _, c := range conns {
				_ = c.Close()
			}
		}
	}

	h.suffer("clients that read a byte a second", 48<<20, func() {
		began := time.Now()
		var slow []net.Conn
		for range 100 {
			slow = append(slow, h.dial("GET /big?bytes=1000000000 HTTP/1.1\r\nHost: victim.localhost\r\n\r\n"))
		}
		ctx, stop := context.WithTimeout(t.Context(), 2*patience)
		defer stop()
		for ctx.Err() == nil {
			for _, c := range slow {
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(time.Second)
		}
		h.quiet(2 * patience)
		t.Logf("what they asked for was given up within %s", time.Since(began).Round(time.Millisecond))
		for _, c := range slow {
			_ = c.Close()
		}
	})
	h.suffer(fmt.Sprintf("%d heads that never end", n), int64(n)*24<<10, func() {
		conns, closeAll := all(get + "X-Slow: ")
		defer closeAll()
		// Those that go on, byte by byte, are no better off.
		for range 3 {
			for _, c := range conns[:100] {
				_, _ = io.WriteString(c, "x")
			}
			<-time.After(patience / 4)
		}
		for _, c := range conns {
			h.ends(c, 3*patience)
		}
	})
	h.suffer(fmt.Sprintf("%d bodies that never come", n), int64(n)*32<<10, func() {
		conns, closeAll := all("POST /echo HTTP/1.1\r\nHost: victim.localhost\r\nContent-Length: 60000\r\n\r\nslow")
		defer closeAll()
		for _, c := range conns {
			if text := h.ends(c, 3*patience); !strings.HasPrefix(text, "HTTP/1.1 408 ") {
				t.Fatalf("a body that did not come got %.300q", text)
			}
		}
		h.quiet(2 * patience)
	})
	h.suffer(fmt.Sprintf("%d idle connections", n), int64(n)*32<<10, func() {
		conns, closeAll := all(get + "\r\n")
		defer closeAll()
		for _, c := range conns {
			answered(t, c)
		}
		<-time.After(2 * patience)
		for _, c := range conns[:100] {
			if _, err := io.WriteString(c, get+"\r\n"); err != nil {
				t.Fatal(err)
			}
			answered(t, c)
		}
	})
}

func answered(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	reply, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if text, err := io.ReadAll(reply.Body); err != nil || string(text) != "victim" {
		t.Fatalf("%d %q, %v", reply.StatusCode, text, err)
	}
}
