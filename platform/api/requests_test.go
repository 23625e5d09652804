package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
	"github.com/denia-paas/denia/platform/telemetry"
)

// served adds entries to a service, the i-th i minutes ago, the last newest.
func (e *env) served(r *telemetry.Requests, s platform.Service, entries ...platform.AccessEntry) {
	e.t.Helper()
	var text []byte
	for i := range entries {
		entry := &entries[i]
		entry.TS = time.Now().Add(time.Duration(i-len(entries)) * time.Minute)
		if entry.RequestID == "" {
			entry.RequestID = fmt.Sprint("r", i)
		}
		text = platform.AppendAccess(text, entry)
	}
	if err := r.Append(s.ID, text); err != nil {
		e.t.Fatal(err)
	}
}

// ids of the requests in a list.
func (a answer) ids() (ids []string) {
	a.t.Helper()
	list, ok := a.field().([]any)
	if !ok {
		a.t.Fatalf("no list: %s", a.body)
	}
	for _, item := range list {
		ids = append(ids, fmt.Sprint(item.(map[string]any)["request_id"]))
	}
	return ids
}

func TestRequestsAreListed(t *testing.T) {
	e := newEnv(t)
	requests := telemetry.NewRequests(e.logs, nil)
	s := e.service(e.project("shop"), "web")
	token, path := e.super(), "/v1/services/shop:web/requests"
	if got := e.do(token, "GET", path, nil).want(200); string(got.body) != "[]\n" {
		t.Errorf("without any: %s", got.body)
	}
	e.served(requests, s,
		platform.AccessEntry{Method: "GET", Path: "/a", Status: 200},
		platform.AccessEntry{Method: "POST", Path: "/a/b", Status: 404},
		platform.AccessEntry{Method: "GET", Path: "/c", Status: 503, Error: "stopped"},
		platform.AccessEntry{
			Method: "GET", Path: "/d", Query: "token=x&q=1", Status: 502, Host: "web.test:8080", Protocol: "HTTP/2.0", BytesIn: 1, BytesOut: 2,
			Duration: 1234567 * time.Nanosecond, Upstream: time.Millisecond, Waited: 2 * time.Second, ColdStart: true,
			Replica: "3.0", Release: "d1", RemoteIP: "203.0.113.9", UserAgent: "agent", Error: "broken_off",
		})
	for query, want := range map[string][]string{
		"":                              {"r3", "r2", "r1", "r0"},
		"?limit=2":                      {"r3", "r2"},
		"?status=5xx":                   {"r3", "r2"},
		"?status=404":                   {"r1"},
		"?method=post":                  {"r1"},
		"?path=/a":                      {"r1", "r0"},
		"?path=/a&method=GET":           {"r0"},
		"?since=150s":                   {"r3", "r2"},
		"?since=2100-01-01T00:00:00Z":   nil,
		"?status=2xx&path=/nowhere":     nil,
		"?status=5xx&limit=1&since=10h": {"r3"},
	} {
		if got := e.do(token, "GET", path+query, nil).want(200).ids(); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
	all := e.do(token, "GET", path, nil)
	for field, want := range map[string]any{
		"service_id": string(s.ID), "method": "GET", "host": "web.test:8080", "path": "/d", "query_redacted": "token=***&q=1", "status": 502.0,
		"bytes_in": 1.0, "bytes_out": 2.0, "duration_ms": 1.234, "upstream_ms": 1.0, "waited_ms": 2000.0, "cold_start": true,
		"replica": "3.0", "release_id": "d1", "remote_ip": "203.0.113.9", "user_agent": "agent", "protocol": "HTTP/2.0", "error": "broken_off",
	} {
		if got := all.field(0, field); got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	if ts := all.str(0, "ts"); !strings.HasSuffix(ts, "Z") || len(ts) != len("2026-01-02T15:04:05.000Z") {
		t.Errorf("ts is %q", ts)
	}

	// Page by page.
	var seen []string
	for next := path + "?limit=3"; next != ""; {
		page := e.do(token, "GET", next, nil).want(200)
		seen = append(seen, page.ids()...)
		next = strings.TrimSuffix(strings.TrimPrefix(page.header.Get("Link"), "<"), `>; rel="next"`)
	}
	if !slices.Equal(seen, []string{"r3", "r2", "r1", "r0"}) {
		t.Errorf("pages give %v", seen)
	}
	e.do(token, "GET", path+"?cursor=nonsense", nil).want(400, "bad_cursor")

	for _, route := range []string{path, path + "/stream"} {
		for query, field := range map[string]string{
			"?status=6xx": "status", "?status=20": "status", "?status=abc": "status", "?limit=-1": "limit", "?limit=201": "limit", "?limit=x": "limit",
			"?method=G%20T": "method", "?path=a": "path", "?since=yesterday": "since",
		} {
			got := e.do(token, "GET", route+query, nil).want(422, "validation_failed")
			if got.str("errors", 0, "field") != field {
				t.Errorf("%s%s: %s", route, query, got.body)
			}
		}
	}
}

func TestRequestsInMemoryAreListed(t *testing.T) {
	var left []byte
	e := newEnv(t, func(o *api.Options) {
		o.Requests = telemetry.NewRequests(o.Logs, func(platform.ID) []byte { return left })
	})
	e.service(e.project("shop"), "web")
	left = platform.AppendAccess(nil, &platform.AccessEntry{TS: time.Now(), Status: 200, RequestID: "unwritten"})
	if got := e.do(e.super(), "GET", "/v1/services/shop:web/requests", nil).want(200).ids(); !slices.Equal(got, []string{"unwritten"}) {
		t.Errorf("got %v", got)
	}
}

func TestRequestStream(t *testing.T) {
	e := newEnv(t)
	requests := telemetry.NewRequests(e.logs, nil)
	url, token := e.serve().URL, e.super()
	s := e.service(e.project("shop"), "web")
	path := "/v1/services/shop:web/requests/stream"
	e.served(requests, s, platform.AccessEntry{Status: 200, RequestID: "one"}, platform.AccessEntry{Status: 500, RequestID: "two"})
	all := e.open(url, token, path)
	one := all.want("request", "request_id", "one")
	all.want("request", "request_id", "two")
	failures, fresh := e.open(url, token, path+"?status=5xx&limit=1"), e.open(url, token, path+"?limit=0")
	failures.want("request", "request_id", "two")
	e.served(requests, s, platform.AccessEntry{Status: 201, RequestID: "three"}, platform.AccessEntry{Status: 502, RequestID: "four"})
	all.want("request", "request_id", "three")
	all.want("request", "request_id", "four")
	failures.want("request", "request_id", "four")
	fresh.want("request", "request_id", "three")
	again := e.open(url, token, path, "Last-Event-ID", one.id)
	again.want("request", "request_id", "two")
	again.want("request", "request_id", "three")
	again.close()
	if err := e.logs.Remove(telemetry.RequestsKey(s.ID)); err != nil {
		t.Fatal(err)
	}
	all.wantEnd() // with the service
}
