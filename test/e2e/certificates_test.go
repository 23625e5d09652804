package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/testpg"
)

// secured starts a Denia that has its certificates of the authority.
func (a *authority) secured(t testing.TB, write func(s *server)) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), port: freePort(t), https: freePort(t), admin: freePort(t), token: "dn_adm_e2e-test-admin-token", log: &logBuffer{}}
	s.data = filepath.Join(s.dir, "data")
	write(s)
	t.Cleanup(func() {
		s.stop() // nothing was deployed, so there is nothing to remove
		if t.Failed() {
			t.Logf("Denia's log:\n%s", tail(s.log.String(), 20000))
		}
	})
	s.run()
	return s
}

func (s *server) configure(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.caddyfile(), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// claim attaches and verifies a domain, and returns the path of it.
func (s *server) claim(a *authority, service, hostname string) string {
	s.t.Helper()
	var d object
	s.expect(http.StatusCreated, "POST", "/v1/services/"+service+"/domains", object{"hostname": hostname}, &d)
	a.dns.Host(hostname, "127.0.0.1")
	a.dns.TXT(d.str("challenge.dns_name"), d.str("challenge.dns_value"))
	path := "/v1/services/" + service + "/domains/" + d.str("id")
	s.expect(http.StatusOK, "POST", path+"/verify", nil, &d)
	if d.str("status") != "verified" {
		s.t.Fatalf("%s is %s: %v", hostname, d.str("status"), d["last_error"])
	}
	return path
}

// certified waits until a domain's certificate is in the state.
func (s *server) certified(path, state string) object {
	s.t.Helper()
	var d object
	s.eventually(40*time.Second, path+" is "+state, func() bool {
		s.expect(http.StatusOK, "GET", path, nil, &d)
		return d.str("tls.state") == state
	})
	return d
}

// served is the certificate that a visitor of the name gets.
func (s *server) served(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{ServerName: name, RootCAs: roots}}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.https))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

func (s *server) serves(name string, roots *x509.CertPool) *x509.Certificate {
	s.t.Helper()
	found, err := s.served(name, roots)
	if err != nil {
		s.t.Fatalf("https://%s: %v", name, err)
	}
	return found
}

// sentTo is where a plain request for the name is sent; empty when it is served.
func (s *server) sentTo(name, path string) string {
	s.t.Helper()
	r, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", s.port, path), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Host = name
	reply, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode == http.StatusPermanentRedirect {
		return reply.Header.Get("Location")
	}
	return ""
}

func (a *authority) placed(what string, before int64, want int64) {
	a.t.Helper()
	if got := a.orders.Load() - before; got != want {
		a.t.Errorf("%s: %d orders placed, want %d", what, got, want)
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 90*24*time.Hour)
	policy := func(lines ...string) func(*server) {
		return func(s *server) {
			s.port, s.https = a.http, a.tls
			s.configure(a.caddyfile(s, []string{"base_domain apps.test"}, lines, "denia"))
		}
	}
	s := a.secured(t, policy("disable_tlsalpn_challenge"))
	roots := a.roots()
	service := s.service("shop", nil)
	reconfigured := func(lines ...string) {
		t.Helper()
		policy(lines...)(s)
		if out, err := s.reload(); err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
	}

	t.Run("by HTTP, without a visitor", func(t *testing.T) {
		d := s.certified(s.claim(a, service, "http.example.com"), "issued")
		if !strings.Contains(d.str("tls.issuer"), "Pebble") || d.str("tls.not_after") == "" || d.str("tls.error") != "" {
			t.Errorf("the domain shows %v", d["tls"])
		}
		a.placed("one domain", 0, 1)
		s.serves("http.example.com", roots)
		s.serves("HTTP.Example.COM", roots)
		a.placed("visits", 0, 1)

		if got := s.sentTo("HTTP.example.com", "/a%2Fb?q=1&x=%zz"); got != "https://http.example.com/a%2Fb?q=1&x=%zz" {
			t.Errorf("plain requests go to %q", got)
		}
		for _, path := range []string{"/.well-known/acme-challenge/x", "/.well-known/denia-challenge/x"} {
			if got := s.sentTo("http.example.com", path); got != "" {
				t.Errorf("%s goes to %q", path, got)
			}
		}
	})

	t.Run("by TLS, without a visitor", func(t *testing.T) {
		reconfigured("disable_http_challenge")
		before := a.orders.Load()
		s.certified(s.claim(a, service, "alpn.example.com"), "issued")
		a.placed("one domain", before, 1)
		s.serves("alpn.example.com", roots)
		s.serves("http.example.com", roots)
	})

	t.Run("never for others", func(t *testing.T) {
		before := a.orders.Load()
		var unverified object
		s.expect(http.StatusCreated, "POST", "/v1/services/"+service+"/domains", object{"hostname": "unverified.example.com"}, &unverified)
		removed := s.claim(a, service, "removed.example.com")
		s.certified(removed, "issued")
		s.expect(http.StatusNoContent, "DELETE", removed, nil, nil)
		a.placed("a domain that is removed then", before, 1)

		names := []string{
			"unverified.example.com", "example.com", "sub.http.example.com", "nosuch.apps.test", "apps.test", "localhost", "xn--", "*.example.com",
			"*", "a..b", "..", strings.Repeat("a.", 120) + "test", strings.Repeat("x", 255), "http.example.com\x00.evil", "http.example.com/../x", "ünïcode.test", "'; --",
		}
		for len(names) < 1000 {
			names = append(names, strings.ToLower(rand.Text())+[]string{".com", ".example.com", ".http.example.com", ".apps.test", ".test"}[len(names)%5])
		}
		work := make(chan string)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for name := range work {
					if found, err := s.served(name, roots); err == nil {
						t.Errorf("%q is served %v", name, found.DNSNames)
					}
				}
			})
		}
		for _, name := range names {
			work <- name
		}
		close(work)
		wg.Wait()
		a.placed("1,000 strange names", before, 1)

		// Of a removed domain the certificate may still be in memory. After a
		// restart it is not, and nobody fetches it.
		s.stop()
		s.run()
		if _, err := s.served("removed.example.com", roots); err == nil {
			t.Error("a removed domain has a certificate")
		}
		s.serves("http.example.com", roots)
		a.placed("a restart", before, 1)
	})

	t.Run("a service's host, for its first visitor", func(t *testing.T) {
		before := a.orders.Load()
		a.dns.Host("shop.apps.test", "127.0.0.1")
		a.dns.Host("plain.apps.test", "127.0.0.1")
		s.serves("shop.apps.test", roots)
		s.serves("shop.apps.test", roots)
		a.placed("two visits", before, 1)
		off := s.service("plain", object{"tls": "off"})
		if _, err := s.served("plain.apps.test", roots); err == nil {
			t.Error("a service without TLS has a certificate")
		}
		path := s.claim(a, off, "off.example.com")
		if d := s.certified(path, "none"); d.str("tls.error") != "" {
			t.Errorf("the domain shows %v", d["tls"])
		}
		if _, err := s.served("off.example.com", roots); err == nil {
			t.Error("a domain of a service without TLS has a certificate")
		}
		for _, name := range []string{"shop.apps.test", "off.example.com"} {
			if got := s.sentTo(name, "/"); got != "" {
				t.Errorf("http://%s goes to %q", name, got)
			}
		}
		a.placed("a service without TLS", before, 1)
	})

	t.Run("below a wildcard, for its first visitor", func(t *testing.T) {
		before := a.orders.Load()
		s.claim(a, service, "*.wild.example.net")
		a.dns.Host("one.wild.example.net", "127.0.0.1")
		s.serves("one.wild.example.net", roots)
		for _, name := range []string{"wild.example.net", "a.one.wild.example.net"} {
			if _, err := s.served(name, roots); err == nil {
				t.Errorf("%s has a certificate", name)
			}
		}
		a.placed("one visit", before, 1)
	})

	t.Run("refused", func(t *testing.T) {
		before := a.orders.Load()
		path := s.claim(a, service, "blocked.example")
		d := s.certified(path, "failed")
		next, err := time.Parse(time.RFC3339, d.str("tls.next_try"))
		if err != nil || time.Until(next) < 10*time.Minute || !strings.Contains(d.str("tls.error"), "rejectedIdentifier") {
			t.Errorf("the domain shows %v", d["tls"])
		}
		started := time.Now()
		for range 5 {
			if _, err := s.served("blocked.example", roots); err == nil {
				t.Error("it has a certificate")
			}
		}
		if d := time.Since(started); d > 5*time.Second {
			t.Errorf("five visitors waited %s to hear no", d)
		}
		a.placed("one try and five visitors", before, 1)
	})

	t.Run("too often", func(t *testing.T) {
		a.mode.Store("limited")
		defer a.mode.Store("")
		before := a.orders.Load()
		d := s.certified(s.claim(a, service, "limited.example.com"), "failed")
		next, err := time.Parse(time.RFC3339, d.str("tls.next_try"))
		if err != nil || time.Until(next) < 30*time.Minute || !strings.Contains(d.str("tls.error"), "too many new orders") {
			t.Errorf("the domain shows %v", d["tls"])
		}
		a.placed("one try", before, 1)
	})

	t.Run("revoked", func(t *testing.T) {
		old := s.serves("http.example.com", roots)
		a.revoked.Store(old.SerialNumber.String(), true)
		s.eventually(30*time.Second, "the revoked certificate is replaced", func() bool {
			found, err := s.served("http.example.com", roots)
			return err == nil && found.SerialNumber.Cmp(old.SerialNumber) != 0
		})
	})

	t.Run("the authority is down", func(t *testing.T) {
		a.mode.Store("down")
		path := s.claim(a, service, "patient.example.com")
		d := s.certified(path, "failed")
		next, err := time.Parse(time.RFC3339, d.str("tls.next_try"))
		if err != nil || time.Until(next) > time.Minute || d.str("tls.error") == "" {
			t.Errorf("the domain shows %v", d["tls"])
		}
		s.serves("http.example.com", roots)
		if got := s.sentTo("patient.example.com", "/"); got != "" {
			t.Errorf("without a certificate, plain requests go to %q", got)
		}
		// Further ones fail alike; then one at a time is tried.
		s.claim(a, service, "patient.example.net")
		s.certified(s.claim(a, service, "patient.example.org"), "failed")
		held := s.claim(a, service, "held.example.com")
		s.eventually(40*time.Second, "a name waits for the authority", func() bool {
			s.expect(http.StatusOK, "GET", held, nil, &d)
			return d.str("tls.state") == "pending" && strings.Contains(d.str("tls.error"), "does not answer")
		})
		a.mode.Store("")
		s.certified(path, "issued")
		s.serves("patient.example.com", roots)
		s.certified(held, "issued")
	})
}

// Certificates are renewed though nobody ever visits.
func TestIdleCertificatesAreRenewed(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 15*time.Second)
	s := a.secured(t, func(s *server) {
		s.port, s.https = a.http, a.tls
		s.configure(a.caddyfile(s, nil, nil, "file_system "+filepath.Join(s.dir, "certificates")))
	})
	path := s.claim(a, s.service("idle", nil), "idle.example.com")
	first := s.certified(path, "issued").str("tls.not_after")
	var d object
	for range 2 {
		s.eventually(40*time.Second, "the certificate is renewed", func() bool {
			s.expect(http.StatusOK, "GET", path, nil, &d)
			if d.str("tls.state") != "issued" {
				t.Errorf("the domain shows %v", d["tls"])
			}
			return d.str("tls.not_after") != first
		})
		first = d.str("tls.not_after")
	}
	if got := s.serves("idle.example.com", a.roots()); time.Until(got.NotAfter) < 0 {
		t.Error("an expired certificate is served")
	}
}

// A second Denia on the same database serves the certificate of the first and
// orders none, and both go on serving it when the database is away.
// The base domain's wildcard comes by DNS, through a provider that was built in,
// and is used for what is below it; nothing is ordered name by name.
func TestBaseDomainHasOneCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 90*24*time.Hour)
	a.dns.Zone("apps.test")
	told := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		name, values := r.FormValue("name"), []string{r.FormValue("value")}
		if r.Method == http.MethodDelete {
			values = nil
		}
		a.dns.TXT(name, values...)
	}))
	defer told.Close()
	program := filepath.Join(t.TempDir(), "dnsdenia")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "nobadger,nomysql,nopgx", "-o", program, "./dnsdenia")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	s := a.secured(t, func(s *server) {
		s.path, s.port, s.https = program, a.http, a.tls
		s.configure(a.caddyfile(s, []string{"base_domain apps.test"}, nil, "denia") + fmt.Sprintf(`
https://*.apps.test {
	bind 127.0.0.1
	tls {
		issuer acme {
			dir %s/dir
			trusted_roots %s
			dns test %s
			resolvers %s
			propagation_timeout -1
		}
	}
	denia
}
`, a.proxy.URL, filepath.Join(a.dir, "cert.pem"), told.URL, a.dns.Addr))
	})
	roots := a.roots()
	var one *x509.Certificate
	s.eventually(40*time.Second, "the wildcard is served", func() (ok bool) {
		var err error
		one, err = s.served("nobody.apps.test", roots)
		return err == nil
	})
	if len(one.DNSNames) != 1 || one.DNSNames[0] != "*.apps.test" {
		t.Errorf("the certificate is for %v", one.DNSNames)
	}
	a.placed("the wildcard", 0, 1)
	s.service("shop", nil)
	if got := s.serves("shop.apps.test", roots); got.SerialNumber.Cmp(one.SerialNumber) != 0 {
		t.Errorf("a service has a certificate of its own, for %v", got.DNSNames)
	}
	// Others are ordered as always, from the site that stands for every host.
	service := s.service("own", nil)
	s.certified(s.claim(a, service, "own.example.com"), "issued")
	a.placed("the wildcard and a domain", 0, 2)
}

func TestNodesShareCertificates(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 90*24*time.Hour)
	line := testpg.NewLine(t, testpg.Start(t))
	first := a.secured(t, func(s *server) {
		s.port, s.https = a.http, a.tls
		s.configure(a.caddyfile(s, []string{"database " + line.DSN}, nil, "denia"))
	})
	service := first.service("shared", nil)
	first.certified(first.claim(a, service, "shared.example.com"), "issued")
	roots := a.roots()
	want := first.serves("shared.example.com", roots)

	second := a.secured(t, func(s *server) {
		s.configure(a.caddyfile(s, []string{"database " + line.DSN}, nil, "denia"))
		key, err := os.ReadFile(filepath.Join(first.data, "keys", "age.key"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(s.data, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.data, "keys", "age.key"), key, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	got := second.serves("shared.example.com", roots)
	if got.SerialNumber.Cmp(want.SerialNumber) != 0 {
		t.Error("the second node has a certificate of its own")
	}
	a.placed("two nodes", 0, 1)

	line.Cut(true)
	for _, s := range []*server{first, second} {
		started := time.Now()
		s.serves("shared.example.com", roots)
		if d := time.Since(started); d > 2*time.Second {
			t.Errorf("a visitor waited %s while the database was away", d)
		}
	}
	line.Cut(false)
	// A domain verified on the first node is served by the second, which
	// answers no challenge and orders nothing.
	first.eventually(30*time.Second, "the database is back", func() bool { return first.call("GET", "/v1/services", nil, nil) == http.StatusOK })
	first.certified(first.claim(a, service, "later.example.com"), "issued")
	want = first.serves("later.example.com", roots)
	second.eventually(20*time.Second, "the second node serves it", func() bool {
		got, err := second.served("later.example.com", roots)
		return err == nil && got.SerialNumber.Cmp(want.SerialNumber) == 0
	})
	a.placed("two domains", 0, 2)
}
