package registry

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

// A registry cannot make Denia ask private addresses by a redirect, wherever it
// is itself.
func TestUpstreamRefersToPublicAddressesOnly(t *testing.T) {
	asked := 0
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	t.Cleanup(inside.Close)
	at, err := url.Parse(inside.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := newUpstreams(time.Now, time.Second)
	t.Cleanup(s.close)
	ask := func(r *route) error {
		resp, err := r.RoundTrip(&http.Request{Method: http.MethodGet, URL: at, Header: http.Header{}})
		if err == nil {
			resp.Body.Close()
		}
		return err
	}

	own := &route{host: at.Host, anywhere: s.anywhere, outside: s.outside}
	if err := ask(own); err != nil || asked != 1 {
		t.Errorf("a private registry: %v", err)
	}
	for _, host := range []string{"registry.example.com", strings.Replace(at.Host, "127.0.0.1", "127.0.0.2", 1), "127.0.0.1", "127.0.0.1:1"} {
		other := &route{host: host, anywhere: s.anywhere, outside: s.outside}
		if err := ask(other); err == nil || asked != 1 {
			t.Errorf("the redirect of %s to %s was followed", host, at.Host)
		}
	}
}

func TestUpstreamIsNeverLinkLocal(t *testing.T) {
	for address, want := range map[string]bool{
		"169.254.169.254:80": true, "[fe80::1%lo]:443": true, "[::ffff:169.254.169.254]:80": true, "[64:ff9b::a9fe:a9fe]:80": true,
		"127.0.0.1:5000": false, "10.0.0.1:443": false, "[fd00::1]:5000": false, "[64:ff9b::a00:1]:5000": false, "8.8.8.8:443": false,
	} {
		if err := refuseLinkLocal("tcp", address, nil); (err != nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
	s := newUpstreams(time.Now, time.Second)
	t.Cleanup(s.close)
	// Not the address of a metadata service: should this fail, nothing is asked.
	u, err := s.of(Upstream{Host: "169.254.7.7:80", Repository: "a/b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.ask(t.Context(), http.MethodGet, "blobs", "x", nil); err == nil || !strings.Contains(err.Error(), "link-local") {
		t.Errorf("asked a link-local upstream: %v", err)
	}
}

// A proxy would dial in Denia's place, unseen.
func TestUpstreamsAreAskedWithoutProxy(t *testing.T) {
	s := newUpstreams(time.Now, time.Second)
	t.Cleanup(s.close)
	if s.anywhere.Proxy != nil || s.outside.Proxy != nil {
		t.Error("a proxy may be asked")
	}
}

func TestPrivateAddresses(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "10.1.2.3": true, "192.168.0.1": true, "172.16.0.1": true,
		"169.254.169.254": true, "fe80::1": true, "fd00:ec2::254": true, "100.64.0.1": true,
		"0.0.0.0": true, "::": true, "::ffff:10.0.0.1": true, "224.0.0.1": true,
		"64:ff9b::7f00:1": true, "64:ff9b::a9fe:a9fe": true, "64:ff9b:1::808:808": true, "64:ff9b::808:808": false,
		"8.8.8.8": false, "2001:4860:4860::8888": false, "100.128.0.1": false,
	} {
		if got := private(netip.MustParseAddr(address)); got != want {
			t.Errorf("private(%s) = %t", address, got)
		}
	}
}

func TestUpstreamsAreForgotten(t *testing.T) {
	now := time.Now()
	s := newUpstreams(func() time.Time { return now }, time.Second)
	t.Cleanup(s.close)
	of := func(repository, password string) *upstream {
		t.Helper()
		u, err := s.of(Upstream{Host: "ghcr.io", Repository: repository, Username: "me", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	first := of("a/b", "one")
	if of("a/b", "one") != first {
		t.Error("the same upstream is another one")
	}
	if of("a/b", "two") == first {
		t.Error("other credentials share a token")
	}
	for i := range 2 * upstreamsKept {
		of("many/"+strings.Repeat("x", 1+i%200), strings.Repeat("y", i))
	}
	if len(s.known) > upstreamsKept {
		t.Errorf("%d are remembered", len(s.known))
	}
	now = now.Add(time.Hour)
	of("c/d", "")
	if len(s.known) != 1 {
		t.Errorf("%d are remembered after an hour", len(s.known))
	}
}

func TestUpstreamNamesAreDockersOwn(t *testing.T) {
	s := newUpstreams(time.Now, time.Second)
	t.Cleanup(s.close)
	u, err := s.of(Upstream{Host: "docker.io", Repository: "nginx"})
	if err != nil {
		t.Fatal(err)
	}
	if got := u.repo.RegistryStr() + "/" + u.repo.RepositoryStr(); got != "index.docker.io/library/nginx" {
		t.Errorf("docker.io/nginx is asked for as %s", got)
	}
}
