package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// accessEntry is an access entry of the API.
type accessEntry struct {
	Method    string  `json:"method"`
	Path      string  `json:"path"`
	Query     string  `json:"query_redacted"`
	Status    int     `json:"status"`
	BytesIn   int     `json:"bytes_in"`
	BytesOut  int     `json:"bytes_out"`
	Duration  float64 `json:"duration_ms"`
	Upstream  float64 `json:"upstream_ms"`
	Waited    float64 `json:"waited_ms"`
	ColdStart bool    `json:"cold_start"`
	Replica   string  `json:"replica"`
	Release   string  `json:"release_id"`
	RequestID string  `json:"request_id"`
	Error     string  `json:"error"`
}

// ask makes a request of a service and returns its body.
func (s *server) ask(method, url, id, body string) string {
	s.t.Helper()
	client := s.client()
	defer client.CloseIdleConnections()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("X-Request-Id", id)
	reply, err := client.Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, url, err)
	}
	return string(text)
}

// entryOf is the entry of a request, at once after its answer.
func (s *server) entryOf(service, id string) accessEntry {
	s.t.Helper()
	var list []accessEntry
	s.expect(http.StatusOK, "GET", "/v1/services/"+service+"/requests?limit=200", nil, &list)
	for _, r := range list {
		if r.RequestID == id {
			return r
		}
	}
	s.t.Fatalf("no entry of request %s in %+v", id, list)
	return accessEntry{}
}

// Who served a request is told at once, live, and after Denia was killed.
func TestRequestsTellWhoServed(t *testing.T) {
	s := start(t)
	id := s.running("app", "hello", nil)
	var service object
	s.expect(http.StatusOK, "GET", "/v1/services/"+id, nil, &service)
	release := service.str("active_deployment_id")

	answer := s.ask("POST", "http://app.localhost/echo?page=2&access_token=hunter2", "first", "four")
	got := s.entryOf(id, "first")
	if got.Duration <= 0 || got.Upstream <= 0 || got.Upstream > got.Duration {
		t.Errorf("it took %v ms, the replica %v", got.Duration, got.Upstream)
	}
	got.Duration, got.Upstream = 0, 0
	want := accessEntry{
		Method: "POST", Path: "/echo", Query: "page=2&access_token=***", Status: 200, BytesIn: 4, BytesOut: len(answer),
		Replica: "1.0", Release: release, RequestID: "first",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := s.stream(ctx, "/v1/services/"+id+"/requests/stream?limit=0&path=/live")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	s.ask("GET", "http://app.localhost/", "other", "")
	asked := time.Now()
	s.ask("GET", "http://app.localhost/live", "live", "")
	for lines := bufio.NewScanner(stream); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var live accessEntry
		if err := json.Unmarshal([]byte(data), &live); err != nil || live.RequestID != "live" || live.Replica != "1.0" {
			t.Fatalf("the stream sent %s, %v", data, err)
		}
		break
	}
	if took := time.Since(asked); ctx.Err() != nil || took > 2*time.Second {
		t.Errorf("the stream took %v", took)
	}

	// What the stream has shown is on disk.
	s.kill()
	s.run()
	for _, request := range []string{"first", "live"} {
		if got := s.entryOf(id, request); got.Release != release {
			t.Errorf("after a kill: %+v", got)
		}
	}

	// The next release serves, and the metrics tell the two apart, also after a
	// reload.
	s.healthy(s.deployFiles(id, appContext("second")))
	s.ask("GET", "http://app.localhost/", "after", "")
	if got := s.entryOf(id, "after"); got.Replica != "2.0" || got.Release == release {
		t.Errorf("the new release: %+v", got)
	}
	s.writeCaddyfile("control_domain denia.test")
	s.host = "denia.test"
	if out, err := s.reload(); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	metrics := s.metrics()
	for _, line := range []string{
		`denia_ingress_requests_total{class="2xx",project="default",release="2",service="app"} 1`,
		`denia_ingress_request_duration_seconds_count{project="default",release="2",service="app"} 1`,
		`denia_ingress_response_bytes_total{project="default",release="2",service="app"} 6`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

// metrics is what Caddy's own endpoint says.
func (s *server) metrics() string {
	s.t.Helper()
	reply, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", s.admin))
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK {
		s.t.Fatalf("metrics: %s, %v", reply.Status, err)
	}
	return string(text)
}

// A request that nobody was ready for says how long it waited; one that Denia
// answers itself, why.
func TestRequestsTellOfWaiting(t *testing.T) {
	s := start(t)
	id := s.service("app", nil)
	s.ask("GET", "http://app.localhost/", "early", "")
	if got := s.entryOf(id, "early"); got.Status != 503 || got.Error != "not_deployed" || got.Replica != "" || got.Release != "" || got.ColdStart || got.BytesOut == 0 {
		t.Errorf("before the first deployment: %+v", got)
	}
	deployment := s.deployFiles(id, appContext("hello"))
	if answer := s.ask("GET", "http://app.localhost/", "waited", ""); answer != "hello" {
		t.Fatalf("got %q", answer)
	}
	got := s.entryOf(id, "waited")
	if got.Status != 200 || !got.ColdStart || got.Waited <= 0 || got.Waited > got.Duration || got.Upstream > got.Duration-got.Waited+0.01 ||
		got.Replica != "1.0" || got.Release != deployment || got.Error != "" {
		t.Errorf("while it was being deployed: %+v", got)
	}
	s.ask("GET", "http://app.localhost/", "warm", "")
	if got := s.entryOf(id, "warm"); got.ColdStart || got.Waited != 0 {
		t.Errorf("afterwards: %+v", got)
	}
	var list []accessEntry
	s.expect(http.StatusOK, "GET", "/v1/services/"+id+"/requests?status=5xx&method=GET", nil, &list)
	if len(list) != 1 || list[0].RequestID != "early" {
		t.Errorf("the failures are %+v", list)
	}
}
