package api_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/denia-paas/denia/platform/api"
)

func TestLoginsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.user("anna", false)
		login := func(ip, name string) answer {
			return e.do("", "POST", "/v1/auth/login", credentials(name, goodPassword), "Test-Ip", ip)
		}
		for i := range 5 {
			a := login("192.0.2.7", "anna").want(200)
			if left := a.header.Get("RateLimit-Remaining"); left != fmt.Sprint(4-i) {
				t.Errorf("after %d: %s left", i+1, left)
			}
		}
		a := login("192.0.2.7", "anna").want(429, "rate_limited")
		if a.header.Get("Retry-After") != "12" || a.header.Get("RateLimit-Limit") != "5" || a.header.Get("RateLimit-Remaining") != "0" || a.header.Get("RateLimit-Reset") != "60" {
			t.Errorf("429 with %v", a.header)
		}
		// Another address is another client, up to the limit of the name.
		for i := range 5 {
			login(fmt.Sprintf("192.0.2.%d", 100+i), "anna").want(200)
		}
		login("192.0.2.200", "anna").want(429, "rate_limited")
		time.Sleep(12 * time.Second)
		login("192.0.2.7", "anna").want(200)
	})
}

func TestCallsAreLimitedByToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		token, other := e.super(), e.super()
		for range 600 {
			e.do(token, "GET", "/v1/me", nil).want(200)
		}
		a := e.do(token, "GET", "/v1/me", nil).want(429, "rate_limited")
		if a.header.Get("Retry-After") != "1" || a.header.Get("RateLimit-Limit") != "600" {
			t.Errorf("429 with %v", a.header)
		}
		e.do(other, "GET", "/v1/me", nil).want(200)
		e.do("", "GET", "/healthz", nil).want(200)
		time.Sleep(time.Second)
		for range 10 {
			e.do(token, "GET", "/v1/me", nil).want(200)
		}
		e.do(token, "GET", "/v1/me", nil).want(429)

		// Guessing tokens is limited by address, and holds up nobody's good one.
		for range 600 {
			e.do("dn_api_guess", "GET", "/v1/me", nil).want(401)
		}
		e.do("dn_api_guess", "GET", "/v1/me", nil).want(429)
		e.do(other, "GET", "/v1/me", nil).want(200)
	})
}

func TestLimitersForget(t *testing.T) {
	if n := api.Buckets(api.BucketsKept + 500); n != api.BucketsKept {
		t.Errorf("%d buckets are kept, want %d", n, api.BucketsKept)
	}
}
