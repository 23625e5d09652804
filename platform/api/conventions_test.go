package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestErrorsAreProblems(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	big := `{"name":"` + strings.Repeat("x", 1<<20) + `"}`
	for _, c := range []struct {
		what, method, path string
		body               any
		headers            []string
		status             int
		code               string
	}{
		{"unknown path", "GET", "/v1/nowhere", nil, nil, 404, "not_found"},
		{"unclean path", "GET", "/v1//services", nil, nil, 404, "not_found"},
		{"trailing slash", "GET", "/v1/services/", nil, nil, 404, "not_found"},
		{"wrong verb", "PATCH", "/v1/services", nil, nil, 405, "method_not_allowed"},
		{"wrong type", "POST", "/v1/projects", `name=x`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"},
		{"wrong charset", "POST", "/v1/projects", `{}`, []string{"Content-Type", "application/json; charset=latin1"}, 415, "unsupported_media_type"},
		{"compressed", "POST", "/v1/projects", `{}`, []string{"Content-Encoding", "gzip"}, 415, "unsupported_content_encoding"},
		{"malformed", "POST", "/v1/projects", `{"name":`, nil, 400, "malformed"},
		{"trailing garbage", "POST", "/v1/projects", `{"name":"a"} {}`, nil, 400, "malformed"},
		{"empty", "POST", "/v1/projects", nil, nil, 400, "malformed"},
		{"too large", "POST", "/v1/projects", big, nil, 413, "too_large"},
		{"bad limit", "GET", "/v1/projects?limit=201", nil, nil, 422, "validation_failed"},
		{"bad cursor", "GET", "/v1/projects?cursor=nonsense", nil, nil, 400, "bad_cursor"},
		{"unknown id", "GET", "/v1/services/0198c0de-0000-7000-8000-000000000000", nil, nil, 404, "not_found"},
		{"no id", "GET", "/v1/deployments/12", nil, nil, 404, "not_found"},
	} {
		t.Run(c.what, func(t *testing.T) {
			a := e.do(token, c.method, c.path, c.body, c.headers...).want(c.status, c.code)
			if kind := a.header.Get("Content-Type"); kind != "application/problem+json" {
				t.Errorf("Content-Type %q", kind)
			}
			if a.str("type") != "about:blank" || a.str("title") != http.StatusText(c.status) || a.str("detail") == "" {
				t.Errorf("not a problem document: %s", a.body)
			}
			if id := a.str("request_id"); id == "" || id != a.header.Get("X-Request-Id") {
				t.Errorf("request_id %q, X-Request-Id %q", id, a.header.Get("X-Request-Id"))
			}
		})
	}
	if allow := e.do(token, "PATCH", "/v1/services", nil).header.Get("Allow"); allow != "GET, HEAD, POST" {
		t.Errorf("Allow: %s", allow)
	}
}

func TestValidationNamesEveryField(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	for _, c := range []struct {
		body        string
		field, code string
	}{
		{`{"name":"web","colour":"red"}`, "colour", "unknown_field"},
		{`{"name":"web","Port":80}`, "Port", "unknown_field"},
		{`{"name":"web","health_check":{"kind":"http"}}`, "health_check.kind", "unknown_field"},
		{`{"port":80}`, "name", "required"},
		{`{"name":7}`, "name", "wrong_type"},
		{`{"name":"web","port":"80"}`, "port", "wrong_type"},
		{`{"name":"web","port":99999}`, "port", "out_of_range"},
		{`{"name":"web","protocol":"ftp"}`, "protocol", "not_one_of"},
		{`{"name":"Web"}`, "name", "not_a_dns_label"},
		{`{"name":"web","volumes":[{"name":"data","path":"data"}]}`, "volumes[0].path", "bad_path"},
		{`{"name":"web","source":{"type":"upload","upload_id":"x"}}`, "source.upload_id", "unknown_field"},
		{`{"name":"web","source":{"type":"external_image"}}`, "source.image", "bad_reference"},
		{`{"name":"web","scale":{"min":3,"max":2}}`, "scale.max", "out_of_range"},
		{`{"name":"web","env":{"1X":"y"}}`, "env", "bad_key"},
	} {
		a := e.do(token, "POST", "/v1/services", c.body).want(422, "validation_failed")
		if a.str("errors", 0, "field") != c.field || a.str("errors", 0, "code") != c.code || a.str("errors", 0, "message") == "" {
			t.Errorf("%s: got %s", c.body, a.body)
		}
	}
	two := e.do(token, "POST", "/v1/services", `{"name":"-","port":8080,"volumes":[{"name":"-","path":"/"}]}`).want(422)
	if list, _ := two.field("errors").([]any); len(list) != 3 {
		t.Errorf("want three bad fields, got %s", two.body)
	}
}

// A value that is refused may be a secret in the wrong place.
func TestErrorsDoNotEchoValues(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	for _, body := range []string{
		`{"name":"web","port":"hunter2-hunter2"}`, `{"name":"web","hidden":"hunter2-hunter2"}`,
		`{"name":["hunter2-hunter2"]}`, `{"name":"web","env":["hunter2-hunter2"]}`, `{"name": hunter2-hunter2}`,
		`{"name":"web","secret_env":{"A":{"b":"hunter2-hunter2"}}}`, `{"name":"web","port":1e30}`,
	} {
		if a := e.do(token, "POST", "/v1/services", body); a.status/100 != 4 || strings.Contains(string(a.body), "hunter2") {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	if strings.Contains(e.log.String(), "hunter2") {
		t.Error("the log holds the value")
	}
}

func TestHeaders(t *testing.T) {
	e := newEnv(t)
	a := e.do("", "GET", "/healthz", nil, "X-Request-Id", "abc-123").want(200)
	if string(a.body) != "{\"status\":\"ok\"}\n" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("healthz answered %s as %s", a.body, a.header.Get("Content-Type"))
	}
	for name, want := range map[string]string{
		"X-Request-Id": "abc-123", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "Strict-Transport-Security": "", "Access-Control-Allow-Origin": "",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if id := e.do("", "GET", "/healthz", nil, "X-Request-Id", "a b<c>").header.Get("X-Request-Id"); len(id) != 36 {
		t.Errorf("an insane request id became %q", id)
	}
	if hsts := e.do("", "GET", "/healthz", nil, "X-Forwarded-Proto", "https").header.Get("Strict-Transport-Security"); hsts == "" {
		t.Error("no HSTS over TLS")
	}
}

func TestNamesWorkInPlaceOfIDs(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	p := e.project("shop")
	s := e.service(p, "web")
	for _, path := range []string{"/v1/projects/shop", "/v1/projects/" + string(p.ID)} {
		if got := e.do(token, "GET", path, nil).want(200).str("id"); got != string(p.ID) {
			t.Errorf("%s is %s", path, got)
		}
	}
	for _, path := range []string{"shop:web", string(p.ID) + ":web", string(s.ID)} {
		if got := e.do(token, "GET", "/v1/services/"+path, nil).want(200).str("id"); got != string(s.ID) {
			t.Errorf("%s is %s", path, got)
		}
	}
	for _, path := range []string{"web", "shop:", ":web", "shop:nope", "nope:web"} {
		e.do(token, "GET", "/v1/services/"+path, nil).want(404, "not_found")
	}
	e.do(token, "POST", "/v1/deployments", `{"service_id":"shop:web"}`).want(202)
}

func TestTimesAreMillisecondsUTC(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	shape := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)
	s := e.service(e.project("shop"), "web")
	d := e.deployment(s)
	for path, field := range map[string]string{
		"/v1/projects/shop": "updated_at", "/v1/services/shop:web": "created_at", "/v1/deployments/" + string(d.ID): "created_at",
	} {
		if at := e.do(token, "GET", path, nil).str(field); !shape.MatchString(at) {
			t.Errorf("%s %s: %q", path, field, at)
		}
	}
}

func TestListsAreCutIntoPages(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("p%d", i)
		e.project(name)
		want = append(want, name)
	}
	want = append([]string{"default"}, want...)
	var got []string
	link := regexp.MustCompile(`^<([^>]+)>; rel="next"$`)
	next := "/v1/projects?limit=3"
	for next != "" {
		a := e.do(token, "GET", next, nil).want(200)
		var page []struct{ Name string }
		if err := json.Unmarshal(a.body, &page); err != nil || len(page) > 3 {
			t.Fatalf("a page of %d: %v", len(page), err)
		}
		for _, p := range page {
			got = append(got, p.Name)
		}
		next = ""
		if match := link.FindStringSubmatch(a.header.Get("Link")); match != nil {
			next = match[1]
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages give %v, want %v", got, want)
	}
	if a := e.do(e.token(e.user("nobody", false)), "GET", "/v1/services", nil).want(200); string(a.body) != "[]\n" {
		t.Errorf("an empty list is %s", a.body)
	}
}

func TestIfMatchGuardsUpdates(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	p := e.project("shop")
	e.service(p, "web")
	for _, path := range []string{"/v1/services/shop:web", "/v1/projects/shop"} {
		read := e.do(token, "GET", path, nil).want(200)
		tag := read.header.Get("ETag")
		if tag == "" {
			t.Fatalf("%s has no ETag", path)
		}
		first := e.do(token, "PUT", path, read.body, "If-Match", tag).want(200)
		if fresh := first.header.Get("ETag"); fresh == "" || fresh == tag {
			t.Errorf("%s: ETag %s after an update of %s", path, fresh, tag)
		}
		e.do(token, "PUT", path, read.body, "If-Match", tag).want(412, "version_mismatch")
		e.do(token, "DELETE", path, nil, "If-Match", tag).want(412, "version_mismatch")
		e.do(token, "PUT", path, read.body, "If-Match", `"nonsense", W/`+first.header.Get("ETag")).want(200)
		e.do(token, "PUT", path, read.body, "If-Match", "*").want(200)
		e.do(token, "PUT", path, read.body).want(200)
	}
}

func TestDeleteTwiceIs404(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	e.service(e.project("shop"), "web")
	e.do(token, "DELETE", "/v1/projects/shop", nil).want(409, "project_not_empty")
	for _, path := range []string{"/v1/services/shop:web", "/v1/projects/shop", "/v1/users/" + string(e.user("gone", false).ID)} {
		if a := e.do(token, "DELETE", path, nil).want(204); len(a.body) != 0 {
			t.Errorf("a body with 204: %s", a.body)
		}
		e.do(token, "DELETE", path, nil).want(404, "not_found")
	}
}

func TestInternalsStayInTheLog(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	e.service(e.project("shop"), "web")
	if err := e.logs.Close(); err != nil {
		t.Fatal(err)
	}
	a := e.do(token, "GET", "/v1/services/shop:web/logs", nil).want(500, "internal")
	if strings.Contains(string(a.body), "closed") {
		t.Errorf("the reply tells %s", a.body)
	}
	if log := e.log.String(); !strings.Contains(log, "logs are closed") || !strings.Contains(log, a.str("request_id")) {
		t.Errorf("the log does not tell: %s", log)
	}
}

func TestPanicIs500(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	s := e.service(e.project("shop"), "web")
	e.plane.panics = true
	e.do(token, "POST", "/v1/services/"+string(s.ID)+"/restart", nil, "Idempotency-Key", "k").want(500, "internal")
	e.plane.panics = false
	e.do(token, "POST", "/v1/services/"+string(s.ID)+"/restart", nil, "Idempotency-Key", "k").want(202)
	if !strings.Contains(e.log.String(), "handler panicked") {
		t.Error("the log does not tell")
	}
	audit := e.do(token, "GET", "/v1/audit", nil).want(200)
	if audit.field(1, "status") != 500.0 {
		t.Errorf("the audit holds %s", audit.body)
	}
}

func TestNodeTellsAboutTheHost(t *testing.T) {
	e := newEnv(t)
	a := e.do(e.super(), "GET", "/v1/node", nil).want(200)
	if a.str("version") != "v1.2.3" || a.str("control_domain") != "denia.test" || a.str("base_domain") != "apps.test" {
		t.Errorf("node is %s", a.body)
	}
	for _, path := range [][]any{{"cpus"}, {"memory", "total_bytes"}, {"memory", "available_bytes"}, {"disk", "total_bytes"}} {
		if n, _ := a.field(path...).(float64); n <= 0 {
			t.Errorf("%v is %v", path, a.field(path...))
		}
	}
	e.do(e.token(e.user("nobody", false)), "GET", "/v1/node", nil).want(403, "forbidden")
}
