package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/denia-paas/denia/platform"
)

// event is one Server-Sent Event.
type event struct {
	id, name string
	data     map[string]any
}

// stream is a stream being read by a test.
type stream struct {
	t     testing.TB
	in    *bufio.Reader
	close func()
}

// open reads a stream through a real server.
func (e *env) open(url, token, path string, headers ...string) *stream {
	e.t.Helper()
	// What never comes fails the test, and does not hang it.
	ctx, cancel := context.WithTimeout(e.ctx, time.Minute)
	r := request(token, "GET", url+path, nil, headers...).WithContext(ctx)
	r.RequestURI, r.Host = "", ""
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	if reply.StatusCode != 200 || reply.Header.Get("Content-Type") != "text/event-stream" {
		e.t.Fatalf("%s: status %d, %s", path, reply.StatusCode, reply.Header.Get("Content-Type"))
	}
	end := func() { cancel(); reply.Body.Close() }
	e.t.Cleanup(end)
	return &stream{e.t, bufio.NewReader(reply.Body), end}
}

// next reads the next event; false at the end of the stream.
func (s *stream) next() (event, bool) {
	s.t.Helper()
	var got event
	for {
		line, err := s.in.ReadString('\n')
		if err == io.EOF && line == "" && got.name == "" {
			return got, false
		}
		if err != nil {
			s.t.Fatalf("reading the stream: %v", err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "id":
			got.id = value
		case "event":
			got.name = value
		case "data":
			if err := json.Unmarshal([]byte(value), &got.data); err != nil {
				s.t.Fatalf("data %q: %v", value, err)
			}
		case "":
			if got.name != "" {
				return got, true
			}
		}
	}
}

func (s *stream) want(name, field, value string) event {
	s.t.Helper()
	got, ok := s.next()
	if !ok || got.name != name || fmt.Sprint(got.data[field]) != value || got.id == "" && name != "" {
		s.t.Fatalf("got %t %+v, want %s with %s %q", ok, got, name, field, value)
	}
	return got
}

func (s *stream) wantEnd() {
	s.t.Helper()
	if got, ok := s.next(); ok {
		s.t.Fatalf("got %+v, want the end", got)
	}
}

func (e *env) say(key string, lines ...string) {
	e.t.Helper()
	for _, line := range lines {
		if err := e.logs.Append(key, platform.LogLine{TS: time.Now(), Stream: platform.StreamStdout, Replica: "1.0", Line: line}); err != nil {
			e.t.Fatal(err)
		}
	}
}

func (e *env) advance(id platform.ID, from, to platform.Status) {
	e.t.Helper()
	if _, err := e.store.Advance(e.ctx, id, from, to, nil); err != nil {
		e.t.Fatal(err)
	}
	e.plane.publish()
}

func TestDeploymentStream(t *testing.T) {
	e := newEnv(t)
	url := e.serve().URL
	token := e.super()
	d := e.deployment(e.service(e.project("shop"), "web"))
	key, path := "deployments/"+string(d.ID), "/v1/deployments/"+string(d.ID)+"/logs/stream"

	s := e.open(url, token, path)
	s.want("status", "status", "pending")
	e.say(key, "step 1")
	line := s.want("log", "line", "step 1")
	for field, want := range map[string]string{"stream": "stdout", "replica": "1.0"} {
		if line.data[field] != want {
			t.Errorf("%s is %v", field, line.data[field])
		}
	}
	e.advance(d.ID, platform.Pending, platform.Building)
	resume := s.want("status", "status", "building")
	e.say(key, "step 2")
	s.want("log", "line", "step 2")

	// A second client goes on where the first one was cut off.
	other := e.open(url, token, path, "Last-Event-ID", resume.id)
	other.want("log", "line", "step 2")
	other.close()

	e.advance(d.ID, platform.Building, platform.Failed)
	s.want("status", "status", "failed")
	if err := e.logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	done := s.want("done", "status", "failed")
	s.wantEnd()

	// Ended: the whole log again, however long, or what was missed of it.
	s = e.open(url, token, path)
	s.want("status", "status", "failed")
	s.want("log", "line", "step 1")
	s.want("log", "line", "step 2")
	s.want("done", "status", "failed")
	s.wantEnd()
	s = e.open(url, token, path, "Last-Event-ID", done.id)
	s.want("done", "status", "failed")
	s.wantEnd()
	s = e.open(url, token, path+"?tail=1", "Last-Event-ID", "no id of ours")
	s.want("status", "status", "failed")
	s.want("log", "line", "step 2")
	s.want("done", "status", "failed")
}

func TestLongLogOfAnEndedDeploymentIsReplayedWhole(t *testing.T) {
	e := newEnv(t)
	url, token := e.serve().URL, e.super()
	d := e.deployment(e.service(e.project("shop"), "web"))
	key := "deployments/" + string(d.ID)
	lines := make([]platform.LogLine, 3000)
	for i := range lines {
		lines[i] = platform.LogLine{TS: time.Now(), Stream: platform.StreamSystem, Line: fmt.Sprint(i)}
	}
	if err := e.logs.Append(key, lines...); err != nil {
		t.Fatal(err)
	}
	e.advance(d.ID, platform.Pending, platform.Failed)
	if err := e.logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	s := e.open(url, token, "/v1/deployments/"+string(d.ID)+"/logs/stream")
	s.want("status", "status", "failed")
	for i := range lines {
		s.want("log", "line", fmt.Sprint(i))
	}
	s.want("done", "status", "failed")
	s.wantEnd()
}

func TestServiceLogStream(t *testing.T) {
	e := newEnv(t)
	url, token := e.serve().URL, e.super()
	s := e.service(e.project("shop"), "web")
	key, path := "services/"+string(s.ID), "/v1/services/shop:web/logs/stream"
	e.say(key, "one", "two", "three")
	all := e.open(url, token, path)
	all.want("log", "line", "one")
	two := all.want("log", "line", "two")
	all.want("log", "line", "three")
	tail := e.open(url, token, path+"?tail=1")
	tail.want("log", "line", "three")
	none := e.open(url, token, path+"?tail=0")
	resumed := e.open(url, token, path, "Last-Event-ID", two.id)
	resumed.want("log", "line", "three")
	e.say(key, "four")
	for _, client := range []*stream{all, tail, none, resumed} {
		client.want("log", "line", "four")
	}
	e.do(token, "GET", path+"?tail=many", nil).want(422)
	e.do(token, "GET", path+"?since=yesterday", nil).want(422)
	e.do(token, "HEAD", path, nil).want(200)
}

func TestServiceLogs(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	s := e.service(e.project("shop"), "web")
	key, path := "services/"+string(s.ID), "/v1/services/shop:web/logs"
	if a := e.do(token, "GET", path, nil).want(200); string(a.body) != "[]\n" {
		t.Errorf("no log is %s", a.body)
	}
	e.say(key, "GET /a", "GET /b", "POST /a")
	lines := func(query string) (got []string) {
		a := e.do(token, "GET", path+query, nil).want(200)
		for i := range a.field().([]any) {
			got = append(got, a.str(i, "line"))
		}
		return got
	}
	for query, want := range map[string]string{
		"": "[GET /a GET /b POST /a]", "?tail=1": "[POST /a]", "?tail=0": "[]", "?grep=GET": "[GET /a GET /b]",
		"?stream=stderr": "[]", "?replica=1.0&tail=all": "[GET /a GET /b POST /a]", "?replica=2.0": "[]",
		"?since=1h": "[GET /a GET /b POST /a]", "?until=1h": "[]", "?since=2199-01-01T00:00:00Z": "[]",
	} {
		if got := fmt.Sprint(lines(query)); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	text := e.do(token, "GET", path+"?tail=1", nil, "Accept", "text/plain").want(200)
	if !strings.HasPrefix(text.header.Get("Content-Type"), "text/plain") || !strings.HasSuffix(string(text.body), " 1.0 stdout POST /a\n") {
		t.Errorf("as text: %s %q", text.header.Get("Content-Type"), text.body)
	}
	for _, bad := range []string{"?tail=-1", "?tail=20000", "?stream=stdin", "?until=then", "?since=2999-01-01T00:00:00Z"} {
		e.do(token, "GET", path+bad, nil).want(422, "validation_failed")
	}
}

// recorder is the writer of a stream whose time is not real.
type recorder struct {
	mu      sync.Mutex
	header  http.Header
	status  int
	text    strings.Builder
	flushes int
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == 0 {
		panic("flushed before the status was written: under an access log nothing is sent")
	}
	r.flushes++
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// watch starts a stream in a bubble and returns its output, how to end the
// client, and what is closed when the stream has ended.
func (e *env) watch(token, path string) (*recorder, context.CancelFunc, <-chan struct{}) {
	ctx, cancel := context.WithCancel(e.ctx)
	out, ended := &recorder{header: http.Header{}}, make(chan struct{})
	go func() {
		defer close(ended)
		e.api.ServeHTTP(out, request(token, "GET", path, nil).WithContext(ctx))
	}()
	return out, cancel, ended
}

func TestStreamsAreKeptAlive(t *testing.T) {
	for _, path := range []string{"/v1/services/shop:web/logs/stream", "/v1/events"} {
		synctest.Test(t, func(t *testing.T) {
			e := newEnv(t)
			token := e.super()
			e.service(e.project("shop"), "web")
			out, cancel, ended := e.watch(token, path)
			time.Sleep(46 * time.Second)
			synctest.Wait()
			if n := strings.Count(out.String(), ": keep-alive\n\n"); n != 3 {
				t.Errorf("%s: %d comments in 46 s, want 3: %q", path, n, out.String())
			}
			cancel()
			<-ended
		})
	}
}

func TestStreamsEndWithTheRightToThem(t *testing.T) {
	for what, end := range map[string]func(e *env, p platform.Project, u platform.User, token string){
		"the token is revoked": func(e *env, p platform.Project, u platform.User, token string) {
			e.do(token, "POST", "/v1/auth/logout", nil).want(204)
		},
		"the member is removed": func(e *env, p platform.Project, u platform.User, token string) {
			e.do(adminSecret, "DELETE", "/v1/projects/shop/members/"+string(u.ID), nil).want(204)
		},
		"the member is demoted": func(e *env, p platform.Project, u platform.User, token string) {
			e.do(adminSecret, "POST", "/v1/projects/shop/members", `{"user_name":"anna","role":"viewer"}`).want(200)
		},
		"the user is deleted": func(e *env, p platform.Project, u platform.User, token string) {
			e.do(adminSecret, "DELETE", "/v1/users/"+string(u.ID), nil).want(204)
		},
		"the service is deleted": func(e *env, p platform.Project, u platform.User, token string) {
			e.do(adminSecret, "DELETE", "/v1/services/shop:web", nil).want(204)
		},
		"the process drains": func(e *env, p platform.Project, u platform.User, token string) { close(e.plane.draining) },
		"the API is closed":  func(e *env, p platform.Project, u platform.User, token string) { e.api.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEnv(t)
				p := e.project("shop")
				e.service(p, "web")
				u := e.member(p, "anna", platform.RoleOperator)
				token := e.token(u)
				_, cancel, ended := e.watch(token, "/v1/services/shop:web/logs/stream")
				defer cancel()
				time.Sleep(time.Minute)
				select {
				case <-ended:
					t.Fatal("the stream ended by itself")
				default:
				}
				before := time.Now()
				end(e, p, u, token)
				<-ended
				if took := time.Since(before); took > 5*time.Second {
					t.Errorf("the stream ended after %s", took)
				}
			})
		})
	}
}

// A client that takes nothing keeps no handler: the write that blocks ends
// when the stream has to.
func TestStalledClientIsCut(t *testing.T) {
	e := newEnv(t)
	server, token := e.serve(), e.super()
	s := e.service(e.project("shop"), "web")
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/services/shop:web/logs/stream HTTP/1.1\r\nHost: denia.test\r\nAuthorization: Bearer %s\r\n\r\n", token)
	if _, err := bufio.NewReaderSize(conn, 16).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 60<<10)
	for range 256 { // more than the sockets hold
		e.say("services/"+string(s.ID), long)
	}
	e.api.Close() // returns once the handler has
}

func TestDeploymentStreamEndsWithoutAMarkedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		d := e.deployment(e.service(e.project("shop"), "web"))
		e.say("deployments/"+string(d.ID), "cut off")
		e.advance(d.ID, platform.Pending, platform.Failed)
		out, cancel, ended := e.watch(e.super(), "/v1/deployments/"+string(d.ID)+"/logs/stream")
		defer cancel()
		<-ended
		if text := out.String(); !strings.Contains(text, "cut off") || !strings.Contains(text, "event: done") {
			t.Errorf("the stream was %q", text)
		}
	})
}

func TestEvents(t *testing.T) {
	e := newEnv(t)
	url := e.serve().URL
	shop, blog := e.project("shop"), e.project("blog")
	anna := e.token(e.member(shop, "anna", platform.RoleViewer))
	s := e.open(url, anna, "/v1/events")
	all := e.open(url, e.super(), "/v1/events")
	web := e.service(shop, "web")
	e.plane.publish()
	created := s.want("service", "name", "web")
	all.want("service", "name", "web")
	e.service(blog, "secret")
	e.plane.publish()
	all.want("service", "name", "secret")

	d := e.deployment(web)
	s.want("deployment", "status", "pending")
	e.advance(d.ID, platform.Pending, platform.Failed)
	s.want("deployment", "status", "failed")
	if err := e.plane.SetStopped(e.ctx, web.ID, true, ""); err != nil {
		t.Fatal(err)
	}
	s.want("service", "state", "stopped")
	if err := e.plane.DeleteService(e.ctx, web.ID, false); err != nil {
		t.Fatal(err)
	}
	s.want("service", "state", "deleted")
	s.close()

	back := e.open(url, anna, "/v1/events", "Last-Event-ID", created.id)
	back.want("deployment", "status", "pending")
	back.want("deployment", "status", "failed")
	lost := e.open(url, anna, "/v1/events", "Last-Event-ID", "other-7")
	if got, _ := lost.next(); got.name != "reset" {
		t.Errorf("a client that cannot resume gets %+v", got)
	}
}

// One token can have so many streams open and no more; others are not held up
// by it, and a closed one makes room.
func TestStreamsPerTokenAreBounded(t *testing.T) {
	e := newEnv(t)
	url, token := e.serve().URL, e.super()
	var first *stream
	for i := range 50 {
		s := e.open(url, token, "/v1/events")
		if i == 0 {
			first = s
		}
	}
	refused := func() bool {
		r := request(token, "GET", url+"/v1/events", nil)
		r.RequestURI, r.Host = "", ""
		ctx, cancel := context.WithCancel(e.ctx)
		defer cancel()
		reply, err := http.DefaultClient.Do(r.WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		defer reply.Body.Close()
		return reply.StatusCode == http.StatusTooManyRequests
	}
	if !refused() {
		t.Error("a 51st stream of one token is not refused")
	}
	e.open(url, e.super(), "/v1/events").close()
	first.close()
	for deadline := time.Now().Add(10 * time.Second); refused(); {
		if time.Now().After(deadline) {
			t.Fatal("a closed stream makes no room")
		}
	}
}
