package e2e

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/testdns"
)

// domainOptions have Denia ask that DNS server, and hosts at its own port.
func domainOptions(dns *testdns.Server, more ...string) string {
	return "domains {\n\t\t\tresolver " + dns.Addr + "\n\t\t\tchallenge_port $PORT\n\t\t\t" + strings.Join(more, "\n\t\t\t") + "\n\t\t}"
}

// attach claims a host name for a service.
func (s *server) attach(service, hostname string) object {
	s.t.Helper()
	var d object
	s.expect(http.StatusCreated, "POST", "/v1/services/"+service+"/domains", object{"hostname": hostname}, &d)
	return d
}

func (d object) at() string { return "/v1/services/" + d.str("service_id") + "/domains/" + d.str("id") }

func (s *server) verify(d object) object {
	s.t.Helper()
	var after object
	s.expect(http.StatusOK, "POST", d.at()+"/verify", nil, &after)
	return after
}

// isVerified checks that a claim is verified, and answered for, when the reply
// is there.
func (s *server) isVerified(d object, host, want string) {
	s.t.Helper()
	if after := s.verify(d); after.str("status") != "verified" {
		s.t.Fatalf("%s is %s: %v", d.str("hostname"), after.str("status"), after["last_error"])
	}
	s.answers(host, want)
}

func (s *server) isRefused(d object, code string) {
	s.t.Helper()
	if after := s.verify(d); after.str("status") != "failed" || after.str("last_error.code") != code {
		s.t.Fatalf("%s is %s with %v, want %s", d.str("hostname"), after.str("status"), after["last_error"], code)
	}
}

func (s *server) unknown(host string) {
	s.t.Helper()
	if status, body := s.get(host, "/"); status != http.StatusNotFound || !strings.Contains(body, "from Denia") {
		s.t.Fatalf("http://%s/ answers %d %q, want 404 from Denia", host, status, body)
	}
}

// The life of domains: claimed, proven through Denia itself and by DNS, routed
// before the reply, kept over reloads and crashes, detached, deleted.
func TestDomains(t *testing.T) {
	dns := testdns.Start(t)
	s := start(t, domainOptions(dns, "allow_private"))
	app := s.running("app", "hello", nil)
	other := s.running("other", "other", nil)

	shop := s.attach(app, "Shop.Example.test.")
	if shop.str("hostname") != "shop.example.test" || shop.str("status") != "pending" || shop.str("tls.state") != "none" {
		t.Errorf("attached as %v", shop)
	}
	s.unknown("shop.example.test")
	s.isRefused(shop, "host_not_found")
	s.unknown("shop.example.test")

	// The challenge is answered for its host only; any other is the
	// application's own matter.
	path := "/.well-known/denia-challenge/" + shop.str("challenge.token")
	if got := fmt.Sprintf("http://shop.example.test:%d%s", s.port, path); shop.str("challenge.http_url") != got {
		t.Errorf("http_url is %s, want %s", shop.str("challenge.http_url"), got)
	}
	if status, body := s.get("shop.example.test", path); status != http.StatusOK || body != shop.str("challenge.token") {
		t.Errorf("the challenge answers %d %q", status, body)
	}
	if status, body := s.get("app.localhost", path); status != http.StatusOK || body != "hello" {
		t.Errorf("at another host the challenge answers %d %q", status, body)
	}
	if status, _ := s.get("localhost", path); status != http.StatusNotFound {
		t.Errorf("at the control host the challenge answers %d", status)
	}

	dns.Host("shop.example.test", "127.0.0.1")
	s.isVerified(shop, "shop.example.test", "hello")
	s.answers("SHOP.example.test", "hello")
	if status, body := s.get("shop.example.test", "/.well-known/denia-challenge/another"); status != http.StatusOK || body != "hello" {
		t.Errorf("the application's own challenge answers %d %q", status, body)
	}
	var routes []object
	s.expect(http.StatusOK, "GET", "/v1/ingress/routes", nil, &routes)
	if !slices.ContainsFunc(routes, func(r object) bool { return r.str("host") == "shop.example.test" && r.str("service_id") == app }) {
		t.Errorf("the routes are %v", routes)
	}

	// Somebody else's claim to it stands in nobody's way, and has no chance.
	squat := s.attach(other, "shop.example.test")
	s.isRefused(squat, "hostname_taken")
	s.answers("shop.example.test", "hello")

	wild := s.attach(other, "*.example.test")
	s.isRefused(wild, "txt_record_missing")
	dns.TXT(wild.str("challenge.dns_name"), "something else", wild.str("challenge.dns_value"))
	s.isVerified(wild, "any.example.test", "other")
	s.answers("shop.example.test", "hello")
	s.unknown("a.b.example.test")

	s.writeCaddyfile(domainOptions(dns, "allow_private"), "control_domain denia.test")
	s.host = "denia.test"
	if out, err := s.reload(); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	s.answers("shop.example.test", "hello")
	s.expect(http.StatusConflict, "POST", "/v1/services/"+app+"/domains", object{"hostname": "denia.test"}, nil)
	s.expect(http.StatusConflict, "POST", "/v1/services/"+app+"/domains", object{"hostname": "new.localhost"}, nil)
	s.expect(http.StatusConflict, "POST", "/v1/services/"+app+"/domains", object{"hostname": "shop.example.test"}, nil)
	s.kill()
	s.run()
	s.eventually(20*time.Second, "the service is back", func() bool {
		status, body := s.get("shop.example.test", "/")
		return status == http.StatusOK && body == "hello"
	})

	// Whoever controls its DNS takes a host name over.
	dns.TXT(squat.str("challenge.dns_name"), squat.str("challenge.dns_value"))
	s.isVerified(squat, "shop.example.test", "other")
	var lost object
	s.expect(http.StatusOK, "GET", shop.at(), nil, &lost)
	if lost.str("status") != "failed" || lost.str("last_error.code") != "taken_over" {
		t.Errorf("the loser is %v", lost)
	}

	s.expect(http.StatusNoContent, "DELETE", squat.at(), nil, nil)
	s.answers("shop.example.test", "other") // by the wildcard
	s.expect(http.StatusNoContent, "DELETE", wild.at(), nil, nil)
	s.unknown("shop.example.test")
	s.unknown("any.example.test")
	s.expect(http.StatusNotFound, "DELETE", wild.at(), nil, nil)

	s.isVerified(shop, "shop.example.test", "hello")
	s.expect(http.StatusNoContent, "DELETE", "/v1/services/"+app, nil, nil)
	s.unknown("shop.example.test")
	s.expect(http.StatusNotFound, "GET", shop.at(), nil, nil)
}

// By default no private address is asked, and a redirect to another host is
// never followed.
func TestDomainsThatProveNothing(t *testing.T) {
	dns := testdns.Start(t)
	s := start(t, domainOptions(dns))
	app := s.service("app", nil)
	for host, addr := range map[string]string{
		"loopback.example.test": "127.0.0.1", "private.example.test": "10.0.0.7", "metadata.example.test": "169.254.169.254",
		"mapped.example.test": "::ffff:127.0.0.1", "nat64.example.test": "64:ff9b::7f00:1", "local.example.test": "::1",
	} {
		dns.Host(host, addr)
		s.isRefused(s.attach(app, host), "address_refused")
		s.unknown(host)
	}

	s = start(t, domainOptions(dns, "allow_private"))
	app = s.service("app", nil)
	// Another web server, at the same port of another address.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", s.port))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	elsewhere := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, fmt.Sprintf("http://app.localhost:%d%s", s.port, r.URL.Path), http.StatusFound)
	})}
	go func() { _ = elsewhere.Serve(l) }()
	defer elsewhere.Close()
	dns.Host("redirected.example.test", "127.0.0.2")
	s.isRefused(s.attach(app, "redirected.example.test"), "wrong_answer")
	if asked.Load() != 1 {
		t.Errorf("the other server was asked %d times", asked.Load())
	}
	s.unknown("redirected.example.test")
}

// A verified domain whose name leads nowhere for long enough is given up.
func TestDomainsAreCheckedAgain(t *testing.T) {
	t.Parallel()
	dns := testdns.Start(t)
	s := start(t, domainOptions(dns, "allow_private", "recheck 1s"))
	app := s.running("app", "hello", nil)
	d := s.attach(app, "shop.example.test")
	dns.Host("shop.example.test", "127.0.0.1")
	s.isVerified(d, "shop.example.test", "hello")
	dns.Host("shop.example.test")
	s.answers("shop.example.test", "hello")
	s.eventually(20*time.Second, "the domain is given up", func() bool {
		var now object
		s.expect(http.StatusOK, "GET", d.at(), nil, &now)
		return now.str("status") == "failed" && now.str("last_error.code") == "host_not_found"
	})
	s.unknown("shop.example.test")
}
