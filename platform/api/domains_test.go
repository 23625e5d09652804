package api_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
)

func TestDomains(t *testing.T) {
	start, end := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 4, 2, 3, 4, 5, 0, time.UTC)
	e := newEnv(t, func(o *api.Options) {
		o.Certificate = func(hostname string) platform.CertificateState {
			if hostname != "xn--bcher-kva.example" {
				return platform.CertificateState{State: platform.CertificatePending, NextTry: &end}
			}
			return platform.CertificateState{State: platform.CertificateIssued, Issuer: "An Authority", NotBefore: &start, NotAfter: &end}
		}
	})
	s := e.service(e.project("shop"), "web")
	token := e.super()
	at := "/v1/services/shop:web/domains"

	made := e.do(token, "POST", at, `{"hostname":"Bücher.example."}`).want(201)
	id := made.str("id")
	if got, want := made.header.Get("Location"), "/v1/services/"+string(s.ID)+"/domains/"+id; got != want || made.header.Get("ETag") == "" {
		t.Errorf("Location %q, want %q; ETag %q", got, want, made.header.Get("ETag"))
	}
	secret := made.str("challenge", "token")
	for field, want := range map[string]any{
		"hostname": "xn--bcher-kva.example", "service_id": string(s.ID), "status": "pending", "verified_at": nil, "last_check_at": nil, "last_error": nil,
	} {
		if got := made.field(field); got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	for field, want := range map[string]any{
		"http_url": "http://xn--bcher-kva.example/.well-known/denia-challenge/" + secret,
		"dns_name": "_denia-challenge.xn--bcher-kva.example", "dns_value": secret,
	} {
		if got := made.field("challenge", field); got != want || secret == "" {
			t.Errorf("challenge.%s is %v, want %v", field, got, want)
		}
	}
	if got := fmt.Sprint(made.field("tls")); got != "map[error:<nil> issuer:<nil> next_try:<nil> not_after:<nil> not_before:<nil> state:none]" {
		t.Errorf("tls is %s", got)
	}

	failed := e.do(token, "POST", at+"/"+id+"/verify", nil).want(200)
	if failed.str("status") != "failed" || failed.str("last_error", "code") != "host_not_found" || failed.str("last_error", "message") == "" || failed.field("last_check_at") == nil {
		t.Errorf("without a proof: %s", failed.body)
	}
	e.plane.proven["xn--bcher-kva.example"] = true
	verified := e.do(token, "POST", at+"/"+id+"/verify", nil).want(200)
	if verified.str("status") != "verified" || verified.field("last_error") != nil || verified.field("verified_at") == nil {
		t.Errorf("with a proof: %s", verified.body)
	}
	if got := fmt.Sprint(verified.field("tls")); got != "map[error:<nil> issuer:An Authority next_try:<nil> not_after:2026-04-02T03:04:05.000Z not_before:2026-01-02T03:04:05.000Z state:issued]" {
		t.Errorf("tls is %s", got)
	}
	read := e.do(token, "GET", at+"/"+id, nil).want(200)
	if string(read.body) != string(verified.body) || read.header.Get("ETag") == made.header.Get("ETag") {
		t.Errorf("read as %s with the ETag %s", read.body, read.header.Get("ETag"))
	}

	wild := e.do(token, "POST", at, `{"hostname":"*.example.com"}`).want(201)
	if wild.field("challenge", "http_url") != nil || wild.str("challenge", "dns_name") != "_denia-challenge.example.com" {
		t.Errorf("the wildcard's challenge is %v", wild.field("challenge"))
	}

	e.do(token, "DELETE", at+"/"+id, nil).want(204)
	e.do(token, "DELETE", at+"/"+id, nil).want(404)
	e.do(token, "GET", at+"/"+id, nil).want(404)
	e.do(token, "POST", at+"/"+id+"/verify", nil).want(404)
}

func TestDomainsThatAreRefused(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	e.service(p, "web")
	other := e.service(p, "other")
	token := e.super()
	at := "/v1/services/shop:web/domains"
	for hostname, status := range map[string]int{
		"denia.test": 409, "apps.test": 409, "web.apps.test": 409, "*.apps.test": 409,
		"": 422, "localhost": 422, "127.0.0.1": 422, "http://a.test": 422, "a_b.test": 422, strings.Repeat("a", 2000): 422,
	} {
		a := e.do(token, "POST", at, fmt.Sprintf(`{"hostname":%q}`, hostname)).want(status)
		if status == 409 && a.str("code") != "hostname_reserved" || status == 422 && a.str("errors", 0, "field") != "hostname" {
			t.Errorf("%.50q: %s", hostname, a.body)
		}
	}
	e.do(token, "POST", at, `{}`).want(422)
	e.do(token, "POST", at, `{"hostname":"a.test","token":"mine"}`).want(422)
	first := e.do(token, "POST", at, `{"hostname":"a.test"}`, "Idempotency-Key", "k").want(201)
	again := e.do(token, "POST", at, `{"hostname":"a.test"}`, "Idempotency-Key", "k").want(201)
	if again.str("id") != first.str("id") {
		t.Error("the repeated request attached another domain")
	}
	e.do(token, "POST", at, `{"hostname":"A.test."}`).want(409, "domain_exists")
	e.do(token, "POST", "/v1/services/shop:other/domains", `{"hostname":"a.test"}`).want(201)
	e.do(token, "GET", "/v1/services/"+string(other.ID)+"/domains/"+first.str("id"), nil).want(404)
	e.do(token, "DELETE", "/v1/services/"+string(other.ID)+"/domains/"+first.str("id"), nil).want(404)
}

func TestDomainsAreListedInPages(t *testing.T) {
	e := newEnv(t)
	s := e.service(e.project("shop"), "web")
	for i := range 5 {
		if _, err := e.plane.AttachDomain(e.ctx, s.ID, fmt.Sprintf("d%d.example.com", 4-i)); err != nil {
			t.Fatal(err)
		}
	}
	token := e.super()
	var seen []string
	for next := "/v1/services/shop:web/domains?limit=2"; next != ""; {
		page := e.do(token, "GET", next, nil).want(200)
		for _, d := range page.field().([]any) {
			seen = append(seen, d.(map[string]any)["hostname"].(string))
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(page.header.Get("Link"), "<"), ">")
	}
	if got, want := strings.Join(seen, " "), "d0.example.com d1.example.com d2.example.com d3.example.com d4.example.com"; got != want {
		t.Errorf("listed %s, want %s", got, want)
	}
}

func TestDomainsAreAudited(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	e.service(p, "web")
	token := e.super()
	id := e.do(token, "POST", "/v1/services/shop:web/domains", `{"hostname":"a.test"}`).want(201).str("id")
	e.do(token, "POST", "/v1/services/shop:web/domains/"+id+"/verify", nil).want(200)
	e.do(token, "DELETE", "/v1/services/shop:web/domains/"+id, nil).want(204)
	rows := e.do(token, "GET", "/v1/audit", nil).want(200)
	for i, action := range []string{"DELETE /v1/services/{id}/domains/{domain_id}", "POST /v1/services/{id}/domains/{domain_id}/verify", "POST /v1/services/{id}/domains"} {
		if rows.str(i, "action") != action || rows.str(i, "resource_id") != id || rows.str(i, "project_id") != string(p.ID) {
			t.Errorf("row %d is %v", i, rows.field(i))
		}
	}
}

func TestChallengeIsAnsweredForItsHost(t *testing.T) {
	e := newEnv(t)
	ask := func(method, host, path string) (*httptest.ResponseRecorder, bool) {
		r := request("", method, path, nil)
		r.Host = host
		w := httptest.NewRecorder()
		return w, e.api.ServeChallenge(w, r)
	}
	if w, answered := ask("GET", "shop.test", "/.well-known/denia-challenge/"+knownToken); !answered || w.Body.String() != knownToken || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("answered %v: %s, %v", answered, w.Body, w.Header())
	}
	for _, c := range [][3]string{
		{"GET", "denia.test:8080", "/.well-known/denia-challenge/" + knownToken},
		{"GET", "shop.test", "/.well-known/denia-challenge/other"},
		{"GET", "shop.test", "/.well-known/denia-challenge/"},
		{"GET", "shop.test", "/.well-known/denia-challenge"},
		{"GET", "shop.test", "/x/.well-known/denia-challenge/" + knownToken},
		{"POST", "shop.test", "/.well-known/denia-challenge/" + knownToken},
	} {
		if w, answered := ask(c[0], c[1], c[2]); answered || w.Body.Len() > 0 || len(w.Header()) > 0 {
			t.Errorf("%v: answered %v: %s", c, answered, w.Body)
		}
	}
	e.do("", "GET", "/.well-known/denia-challenge/"+knownToken, nil).want(404)
}
