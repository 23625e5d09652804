package ingress_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform/ingress"
)

func TestHostFindsService(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("hello")).URL))
	w.SetRoutes([]ingress.Route{{Host: "Web.Example.com.", ServiceID: service}, {Host: "[::1]", ServiceID: service}})
	for host, found := range map[string]bool{
		"web.example.com":          true,
		"WEB.example.COM":          true,
		"web.example.com:8080":     true,
		"Web.Example.com.:443":     true,
		"web.example.com.":         true,
		"[::1]:8080":               true,
		"[::1]":                    true,
		"example.com":              false,
		"x.web.example.com":        false,
		"web.example.com..":        false,
		"":                         false,
		":80":                      false,
		".":                        false,
		strings.Repeat("A.", 5000): false,
	} {
		if got := w.Has(host); got != found {
			t.Errorf("Has(%.40q) = %v, want %v", host, got, found)
		}
		if host == "" || len(host) > 255 {
			continue
		}
		r := w.request(http.MethodGet, "/", nil)
		r.Host = host
		want := http.StatusNotFound
		if found {
			want = http.StatusOK
		}
		if got := w.do(r); got.StatusCode != want {
			t.Errorf("GET for host %q: %d, want %d", host, got.StatusCode, want)
		}
	}
}

func TestUnknownHostGetsPageFromDenia(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("somebody's app")).URL))
	for accept, kind := range map[string]string{
		"text/html,application/xhtml+xml": "text/html; charset=utf-8",
		"application/json":                "application/problem+json",
		"*/*":                             "text/plain; charset=utf-8",
	} {
		r := w.request(http.MethodGet, "/", nil)
		r.Host = "nobody.example.com"
		r.Header.Set("Accept", accept)
		r.Header.Set("X-Request-Id", "from-the-client-1")
		a := w.do(r)
		if a.StatusCode != http.StatusNotFound || a.Header.Get("Content-Type") != kind {
			t.Errorf("Accept %q: %d %q, want 404 %q", accept, a.StatusCode, a.Header.Get("Content-Type"), kind)
		}
		if a.Header.Get("X-Request-Id") != "from-the-client-1" || !strings.Contains(a.body, "from-the-client-1") {
			t.Errorf("Accept %q: the page does not hold the request id: %s", accept, a.body)
		}
	}
}

func TestRoutesAreReplacedAsAWhole(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("hello")).URL))
	w.SetRoutes([]ingress.Route{{Host: "other.example.com", ServiceID: service}})
	if w.Has(host) || !w.Has("other.example.com") {
		t.Error("the old route is still there, or the new one is not")
	}
	w.SetRoutes([]ingress.Route{{Host: host, ServiceID: "service-2"}, {Host: host, ServiceID: service}})
	w.SetRoutes([]ingress.Route{{Host: host, ServiceID: service}})
	if a := w.get("/"); a.body != "hello" {
		t.Errorf("after routing back: %d %s", a.StatusCode, a.body)
	}
}

func TestRemovedServiceIsUnknown(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	at := target("a", newBackend(t, says("hello")).URL)
	w.serve(at)
	w.Remove(service)
	if a := w.get("/"); a.StatusCode != http.StatusNotFound {
		t.Errorf("after Remove: %d, want 404", a.StatusCode)
	}
	w.serve(at)
	if a := w.get("/"); a.StatusCode != http.StatusOK {
		t.Errorf("configured again: %d, want 200", a.StatusCode)
	}
}

func TestConnectIsRefused(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("hello")).URL))
	r := w.request(http.MethodConnect, "/", nil)
	if a := w.do(r); a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT: %d, want 405", a.StatusCode)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	in := ingress.New(ingress.Options{})
	defer in.Close()
	in.SetRoutes(routes(1000))
	in.Change([]ingress.Route{{Host: "*.wild.example.com", ServiceID: service}}, nil)
	for _, host := range []string{"app-7.example.com", "APP-7.Example.com:8443", "nobody.example.com", "app-7.example.com.", "any.wild.example.com", "Any.Wild.example.com."} {
		if n := testing.AllocsPerRun(100, func() { in.Has(host) }); n != 0 {
			t.Errorf("looking %q up allocates %v times", host, n)
		}
	}
}
