package ingress_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// diary is where a test's entries go.
type diary struct {
	t  testing.TB
	mu sync.Mutex

	entries []platform.AccessEntry
	err     error // what Record gives; the entries are not kept then
	calls   int
}

func (d *diary) record(id platform.ID, text []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	if d.err != nil {
		return d.err
	}
	if id != service {
		d.t.Errorf("entries of service %q", id)
	}
	d.entries = append(d.entries, parse(d.t, string(text))...)
	return nil
}

func (d *diary) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// parse reads entries, without their times.
func parse(t testing.TB, text string) (entries []platform.AccessEntry) {
	for line := range strings.Lines(text) {
		_, line, _ = strings.Cut(line, " o ")
		replica, line, _ := strings.Cut(line, " ")
		e, ok := platform.ParseAccess(strings.TrimSuffix(line, "\n"))
		if !ok {
			t.Errorf("no entry: %q", line)
		}
		e.Replica = strings.TrimPrefix(replica, "-")
		entries = append(entries, e)
	}
	return entries
}

// noting is a world whose entries are kept.
func noting(t testing.TB, o ingress.Options) (*world, *diary) {
	d := &diary{t: t}
	o.Record = d.record
	return newWorld(t, o), d
}

// last waits for the n-th entry and gives it.
func (d *diary) last(w *world, n int) platform.AccessEntry {
	d.t.Helper()
	var entry platform.AccessEntry
	eventually(d.t, "the entry is there", func() bool {
		w.Unwritten(service)
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.entries) < n {
			return false
		}
		entry = d.entries[n-1]
		return true
	})
	return entry
}

func labelled(t ingress.Target, label string) ingress.Target {
	t.Label = label
	return t
}

func TestEntryTellsWhoServed(t *testing.T) {
	w, d := noting(t, ingress.Options{Client: func(*http.Request) (string, bool) { return "203.0.113.9", false }})
	b := newBackend(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(rw, "made it")
	})
	w.serve(labelled(target("a", b.URL), "7.0"))
	for n, body := range []io.Reader{strings.NewReader("hello"), io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo"))} {
		r := w.request(http.MethodPost, "/a%2Fb%20c?q=1&access_token=hunter2", body)
		r.Header.Set("User-Agent", "test agent/1")
		r.Header.Set("X-Request-Id", "id-1")
		if got := w.do(r); got.StatusCode != 201 {
			t.Fatalf("status %d", got.StatusCode)
		}
		e := d.last(w, n+1)
		if e.Duration <= 0 || e.Upstream <= 0 || e.Upstream > e.Duration {
			t.Errorf("it took %v, of which %v upstream", e.Duration, e.Upstream)
		}
		e.Duration, e.Upstream = 0, 0
		if want := (platform.AccessEntry{
			Replica: "7.0", Release: "release-1", Method: "POST", Protocol: "HTTP/1.1", Host: host, Path: "/a%2Fb%20c", Query: "q=1&access_token=***",
			Status: 201, BytesIn: 5, BytesOut: 7, RemoteIP: "203.0.113.9", UserAgent: "test agent/1", RequestID: "id-1",
		}); e != want {
			t.Errorf("got  %+v\nwant %+v", e, want)
		}
	}
}

func TestEntriesOfRefusals(t *testing.T) {
	w, d := noting(t, ingress.Options{WaitTimeout: 50 * time.Millisecond})
	spec := w.spec()
	w.Configure(spec)
	w.get("/")
	if e := d.last(w, 1); e.Status != 503 || e.Error != "no_ready_replica" || e.Replica != "" || e.Release != "" || e.Waited < 50*time.Millisecond || e.ColdStart || e.BytesOut == 0 {
		t.Errorf("nobody was ready: %+v", e)
	}
	spec.Stopped = true
	w.Configure(spec)
	w.do(w.request(http.MethodHead, "/", nil))
	if e := d.last(w, 2); e.Status != 503 || e.Error != "stopped" || e.Waited != 0 || e.BytesOut != 0 {
		t.Errorf("stopped: %+v", e)
	}
	w.serve(labelled(target("a", newBackend(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }).URL), "1.0"))
	w.do(w.request(http.MethodPost, "/", strings.NewReader("x")))
	if e := d.last(w, 3); e.Status != 502 || e.Error != "replica_failed" || e.Replica != "" || e.Release != "release-1" || e.BytesIn != 1 {
		t.Errorf("broken replica: %+v", e)
	}
	r := w.request(http.MethodGet, "/", nil)
	r.Host = "nobody.example.com"
	w.do(r)
	if n := w.Strangers(); n != 1 {
		t.Errorf("%d strangers", n)
	}
}

func TestEntryOfARequestThatWaited(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	w.Configure(w.spec())
	waiting := w.start(w.request(http.MethodGet, "/", nil))
	w.until("it waits", func(s ingress.PoolStatus) bool { return s.Waiting == 1 })
	w.serve(labelled(target("a", newBackend(t, says("hi")).URL), "1.0"))
	if got := <-waiting; got == nil || got.body != "hi" {
		t.Fatalf("got %v", got)
	}
	if e := d.last(w, 1); !e.ColdStart || e.Waited <= 0 || e.Waited > e.Duration || e.Upstream > e.Duration-e.Waited || e.Replica != "1.0" || e.Error != "" {
		t.Errorf("%+v", e)
	}
	w.get("/")
	if e := d.last(w, 2); e.ColdStart || e.Waited != 0 {
		t.Errorf("it did not wait: %+v", e)
	}
}

func TestEntriesOfAnswersCutShort(t *testing.T) {
	gate := make(chan struct{})
	w, d := noting(t, ingress.Options{})
	w.serve(target("a", newBackend(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "half")
		_ = http.NewResponseController(rw).Flush()
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		select {
		case <-gate:
		case <-r.Context().Done():
		}
	}).URL))
	defer close(gate)
	res, err := w.client.Do(w.request(http.MethodGet, "/broken", nil))
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil {
		t.Error("the client did not notice")
	}
	if e := d.last(w, 1); e.Status != 200 || e.Error != platform.AccessBrokenOff || e.BytesOut != 4 || e.Replica != "a" {
		t.Errorf("broken off: %+v", e)
	}
	if res, err = w.client.Do(w.request(http.MethodGet, "/left", nil)); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if e := d.last(w, 2); e.Status != 200 || e.Error != platform.AccessClientGone {
		t.Errorf("the client left: %+v", e)
	}
}

// unflushed is a client that has left before it was given anything.
type unflushed struct{ sink }

func (*unflushed) FlushError() error { return errors.New("gone") }

func TestEntryTellsThatTheClientLeftAtOnce(t *testing.T) {
	addr := raw(t, func(c net.Conn, from *bufio.Reader) {
		if _, err := http.ReadRequest(from); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
			_, _ = from.ReadByte()
		}
	})
	for _, only := range []bool{false, true} {
		w, d := noting(t, ingress.Options{TransportOnly: only})
		w.Configure(w.spec(bare(addr)))
		w.ServeHTTP(&unflushed{sink{header: http.Header{}}}, browser(t))
		if e := d.last(w, 1); e.Status != 200 || e.Error != platform.AccessClientGone {
			t.Errorf("transport only %v: %+v", only, e)
		}
	}
}

func TestEntryOfAWebSocket(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	w.serve(target("a", newBackend(t, echoSocket).URL))
	c := w.socket()
	if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
	e := d.last(w, 1)
	if e.Status != 101 || e.Protocol != "websocket" || e.BytesIn < 5 || e.BytesOut < 5 || e.Replica != "a" || e.Error != "" {
		t.Errorf("%+v", e)
	}
	for _, traffic := range w.Traffic() {
		if r := traffic.Releases[0]; r.Requests[1] != 1 || r.Seconds != 0 {
			t.Errorf("counted as %+v", r)
		}
	}
}

func TestEntriesThatAreNotTakenWaitInARing(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	full := errors.New("the disk is full")
	d.fail(full)
	spec := w.spec()
	spec.Stopped = true
	w.Configure(spec)
	const requests = 3000
	for range requests {
		r := w.request(http.MethodGet, "/"+strings.Repeat("x", 200), nil)
		w.ServeHTTP(&sink{header: http.Header{}}, r)
	}
	kept := len(parse(t, string(w.Unwritten(service))))
	if kept < 500 || kept >= requests {
		t.Errorf("%d entries are kept", kept)
	}
	if lost := w.Lost(); kept+int(lost) != requests {
		t.Errorf("%d kept and %d lost, of %d", kept, lost, requests)
	}
	d.fail(nil)
	if left := w.Unwritten(service); left != nil {
		t.Errorf("%d bytes are left", len(left))
	}
	d.last(w, kept)
	w.get("/")
	d.last(w, kept+1)
}

func TestSlowRecordHoldsUpNoRequest(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	w := newWorld(t, ingress.Options{Record: func(platform.ID, []byte) error {
		entered <- struct{}{}
		<-gate
		return nil
	}})
	w.serve(target("a", newBackend(t, says("hi")).URL))
	w.get("/")
	<-entered
	for range 100 {
		w.get("/")
	}
	if n := w.Traffic()[0].Releases[0].Requests[2]; n != 101 {
		t.Errorf("%d requests are counted", n)
	}
	close(gate)
}

func TestRemovedServiceIsNotRecordedAnyMore(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	spec := w.spec()
	spec.Stopped = true
	w.Configure(spec)
	w.get("/")
	d.last(w, 1)
	w.get("/")
	w.Remove(service)
	d.mu.Lock()
	before := d.calls
	d.mu.Unlock()
	w.get("/")
	w.Unwritten(service)
	w.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls != before {
		t.Error("Record was called after Remove")
	}
}

func TestCloseRecordsTheRest(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("hi")).URL))
	w.get("/")
	w.Close()
	if len(d.entries) != 1 {
		t.Errorf("%d entries", len(d.entries))
	}
}

func TestTrafficIsCountedByRelease(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	gate := make(chan struct{})
	b := newBackend(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-gate
		case "/500":
			rw.WriteHeader(500)
		}
		_, _ = io.WriteString(rw, "12345")
	})
	spec := w.spec(labelled(target("a", b.URL), "1.0"))
	spec.Project = "shop"
	w.Configure(spec)
	w.until("it is ready", func(s ingress.PoolStatus) bool { return len(s.Targets) == 1 && s.Targets[0].Ready })
	slow := w.start(w.request(http.MethodGet, "/slow", nil))
	eventually(t, "it is in flight", func() bool {
		traffic := w.Traffic()
		return len(traffic) == 1 && len(traffic[0].Releases) == 1 && traffic[0].Releases[0].InFlight == 1
	})
	close(gate)
	<-slow
	w.get("/")
	w.get("/500")
	w.do(w.request(http.MethodPost, "/", strings.NewReader("abc")))
	d.last(w, 4)

	next := labelled(target("b", b.URL), "2.0")
	next.ReleaseID = "release-2"
	spec.Serving = []ingress.Target{next}
	w.Configure(spec)
	w.until("it is ready", func(s ingress.PoolStatus) bool { return len(s.Targets) == 1 && s.Targets[0].Ready })
	w.get("/")
	d.last(w, 5)
	traffic := w.Traffic()
	if len(traffic) != 1 || traffic[0].ServiceID != service || traffic[0].Name != "web" || traffic[0].Project != "shop" || len(traffic[0].Releases) != 2 {
		t.Fatalf("%+v", traffic)
	}
	one, two := traffic[0].Releases[0], traffic[0].Releases[1]
	if one.ReleaseID != "release-1" || one.Number != "1" || one.Requests != [6]uint64{2: 3, 5: 1} || one.BytesIn != 3 || one.BytesOut != 20 || one.Seconds <= 0 || one.InFlight != 0 {
		t.Errorf("%+v", one)
	}
	if two.ReleaseID != "release-2" || two.Number != "2" || two.Requests != [6]uint64{2: 1} {
		t.Errorf("%+v", two)
	}
	sum := uint64(0)
	for _, n := range one.Durations {
		sum += n
	}
	if sum != 4 {
		t.Errorf("%d durations: %v", sum, one.Durations)
	}
}

func TestTrafficOfManyReleasesIsBounded(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	b := newBackend(t, says("hi"))
	for _, release := range "abcdefghijklmnopqrstuvwxyz" {
		at := target(string(release), b.URL)
		at.ReleaseID = platform.ID(release)
		w.serve(at)
		w.get("/")
	}
	if n := len(w.Traffic()[0].Releases); n > 8 {
		t.Errorf("%d releases are counted", n)
	}
}

func TestRedirectsHaveTheirEntry(t *testing.T) {
	w, d := noting(t, ingress.Options{})
	answer := httptest.NewRecorder()
	r := w.request(http.MethodGet, "/a?b", nil)
	w.Redirect(answer, r, "https://"+host+"/a?b")
	if answer.Code != http.StatusPermanentRedirect || answer.Header().Get("Location") != "https://"+host+"/a?b" {
		t.Errorf("got %d, %v", answer.Code, answer.Header())
	}
	if e := d.last(w, 1); e.Status != http.StatusPermanentRedirect || e.Path != "/a" || e.Error != "" {
		t.Errorf("the entry is %+v", e)
	}
}
