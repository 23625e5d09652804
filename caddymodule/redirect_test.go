package caddymodule

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/ingress"
)

func TestPlainRequestsForDomainsGoToHTTPS(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		in := ingress.New(ingress.Options{})
		defer in.Close()
		e := &Engine{certificates: c, ingress: in}
		location := func(method, url string, change ...func(*http.Request)) string {
			t.Helper()
			r := httptest.NewRequest(method, url, nil)
			for _, f := range change {
				f(r)
			}
			w := httptest.NewRecorder()
			if !e.redirect(w, r) {
				return ""
			}
			if w.Code != http.StatusPermanentRedirect || w.Header().Get("Connection") != "close" {
				t.Errorf("%s: %d, %v", url, w.Code, w.Header())
			}
			return w.Header().Get("Location")
		}
		want := func(url, want string) {
			t.Helper()
			if got := location("GET", url); got != want {
				t.Errorf("%s goes to %q, want %q", url, got, want)
			}
		}
		refused := errors.New("refused")
		a.refuseWith(func(name string) error {
			if name == "refused.example.com" {
				return refused
			}
			return nil
		})
		given := verified("shop.example.com", "refused.example.com", "*.wild.example.com")
		given.Domains = append(given.Domains, platform.DomainName{Hostname: "z.example.com", TLS: "off"})
		given.Services = []string{"web.apps.example.net"}
		c.useNames(given)
		c.useControlDomain("denia.example.net")
		want("http://shop.example.com/", "")
		wait(time.Second)

		want("http://shop.example.com/", "https://shop.example.com/")
		want("http://SHOP.example.com.:8080/a%2Fb//c?q=1;2&x=%zz", "https://shop.example.com/a%2Fb//c?q=1;2&x=%zz")
		if got := location("POST", "http://shop.example.com//evil.example.com/?"); got != "https://shop.example.com//evil.example.com/?" {
			t.Errorf("a POST goes to %q", got)
		}
		for _, url := range []string{
			"http://shop.example.com/.well-known/acme-challenge/x", "http://shop.example.com/.well-known/denia-challenge/x",
			"http://refused.example.com/", "http://z.example.com/", "http://web.apps.example.net/", "http://denia.example.net/", "http://other.example.com/",
		} {
			want(url, "")
		}
		for name, change := range map[string]func(*http.Request){
			"TLS":            func(r *http.Request) { r.TLS = &tls.ConnectionState{} },
			"a whole server": func(r *http.Request) { r.Method, r.URL.Path = "OPTIONS", "*" },
			"no scheme's":    func(r *http.Request) { r.URL.Opaque = "x" },
			"a CONNECT":      func(r *http.Request) { r.Method = "CONNECT" },
			"a proxy with TLS": func(r *http.Request) {
				r.Header.Set("X-Forwarded-Proto", "https")
				*r = *r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.TrustedProxyVarKey: true}))
			},
		} {
			if got := location("GET", "http://shop.example.com/", change); got != "" {
				t.Errorf("%s goes to %q", name, got)
			}
		}
		if location("GET", "http://shop.example.com/", func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") }) == "" {
			t.Error("anybody can keep a request from https")
		}

		// Below a wildcard each name has its own, once there was a visitor.
		want("http://one.wild.example.com/", "")
		_, _ = a.handshake(t.Context(), "one.wild.example.com")
		wait(time.Minute)
		want("http://one.wild.example.com/", "https://one.wild.example.com/")
		want("http://two.wild.example.com/", "")

		c.useNames(control.Names{Domains: []platform.DomainName{{Hostname: "shop.example.com", TLS: "off"}}})
		want("http://shop.example.com/", "")
		want("http://one.wild.example.com/", "")
		c.useNames(given)
		wait(time.Second)
		want("http://shop.example.com/", "https://shop.example.com/")

		// It cannot be renewed, and ends.
		a.refuseWith(func(string) error { return refused })
		wait(80 * 24 * time.Hour)
		want("http://shop.example.com/", "https://shop.example.com/")
		wait(11 * 24 * time.Hour)
		want("http://shop.example.com/", "")
	})
}

// A domain whose TLS is off stays so below the wildcard of another service, also
// where the operator has a certificate for the wildcard itself.
func TestTLSIsOffBelowAWildcard(t *testing.T) {
	for name, dns := range map[string]bool{"on demand": false, "by DNS": true} {
		t.Run(name, func(t *testing.T) {
			withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
				in := ingress.New(ingress.Options{})
				defer in.Close()
				e := &Engine{certificates: c, ingress: in}
				redirected := func(host string) bool {
					return e.redirect(httptest.NewRecorder(), httptest.NewRequest("GET", "http://"+host+"/", nil))
				}
				visit := func(name string) error {
					if _, err := a.handshake(t.Context(), name); err != nil {
						return err
					}
					wait(time.Minute)
					return nil
				}
				a.dns = dns
				wild := verified("*.example.com")
				c.useNames(wild)
				for _, name := range []string{"any.example.com", "b.example.com"} {
					if err := visit(name); err != nil {
						t.Fatal(err)
					}
				}
				wait(8 * time.Hour) // the wildcard is looked at
				if !redirected("b.example.com") {
					t.Error("a name below a wildcard with its certificate is not sent there")
				}

				both := control.Names{Domains: append(slices.Clone(wild.Domains),
					platform.DomainName{Hostname: "a.example.com", TLS: "off"}, platform.DomainName{Hostname: "b.example.com", TLS: "off"})}
				c.useNames(both)
				for _, name := range []string{"a.example.com", "b.example.com"} {
					if err := c.allow(name); err == nil {
						t.Errorf("%s may have a certificate", name)
					}
					wantState(t, c, name, "none")
					if redirected(name) {
						t.Errorf("%s is sent to https", name)
					}
				}
				if err := visit("a.example.com"); err == nil {
					t.Error("a visitor had a certificate ordered")
				}
				wait(100 * 24 * time.Hour)
				if n := len(a.orders["b.example.com"]); n != 1 {
					t.Errorf("b.example.com was ordered %d times: its certificate is renewed", n)
				}

				c.useNames(wild)
				if err := c.allow("b.example.com"); err != nil {
					t.Errorf("below the wildcard alone: %v", err)
				}
			})
		})
	}
}

// One for the wildcard itself, which an operator has by DNS, covers every name.
func TestWildcardCertificatesSecureTheirNames(t *testing.T) {
	var s secured
	s.note(&entry{name: "*.example.com", kind: wildcardName, leaf: leaf{notAfter: time.Now().Add(time.Hour)}})
	for host, want := range map[string]bool{"a.example.com": true, "example.com": false, ".example.com": false, "a.b.example.com": false, "": false, "com": false} {
		if got := s.covers(host); got != want {
			t.Errorf("%q is covered: %v", host, got)
		}
	}
}

func BenchmarkCovers(b *testing.B) {
	var s secured
	for _, name := range []string{"a.example.com", "b.example.com"} {
		s.note(&entry{name: name, kind: domainName, leaf: leaf{notAfter: time.Now().Add(time.Hour)}})
	}
	for b.Loop() {
		s.covers("web.apps.example.com")
	}
}
