package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// However many names there are, an authority that is down is asked by one at a
// time, and as soon as it answers all have their certificates.
func TestAuthorityThatIsDownIsAskedNowAndThen(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		down := &url.Error{Op: "Post", URL: "https://authority.example/order", Err: io.EOF}
		var hosts []string
		for i := range 80 {
			hosts = append(hosts, fmt.Sprintf("shop.example%d.com", i))
		}
		c.useNames(verified("first.example.com"))
		wait(time.Second)
		wantState(t, c, "first.example.com", "issued")
		before := len(a.placed())

		a.refuseWith(func(string) error { return down })
		c.useNames(verified(append(hosts, "first.example.com")...))
		wait(time.Minute)
		if n := len(a.placed()) - before; n < manyNames || n > 8 {
			t.Errorf("%d tries in a minute", n)
		}
		wait(24 * time.Hour)
		if n := len(a.placed()) - before; n > 60 {
			t.Errorf("%d tries in a day", n)
		}
		waits := 0
		for _, host := range hosts {
			if s := c.state(host); s.State == "pending" && s.Error == errOutage.Error() && s.NextTry != nil {
				waits++
			}
		}
		if waits < 20 {
			t.Errorf("%d names wait", waits)
		}

		a.refuseWith(refusesNone)
		wait(2 * time.Hour)
		for _, host := range hosts {
			wantState(t, c, host, "issued")
		}
	})
}

// An outage ends no back-off: what an authority has refused it would refuse
// again, and count.
func TestOutageEndsNoBackOff(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		bad := []string{"bad.example1.com", "bad.example2.com", "bad.example3.com"}
		others := func(err error) func(string) error {
			return func(name string) error {
				if slices.Contains(bad, name) {
					return refusal
				}
				return err
			}
		}
		a.refuseWith(others(nil))
		c.useNames(verified(bad...))
		wait(10 * time.Hour) // by now they wait for hours
		refused := len(a.placed())
		a.refuseWith(others(acme.Problem{Status: 503, Type: "about:blank"}))
		c.useNames(verified(append(bad, "a.example.org", "b.example.org", "c.example.org", "d.example.org")...))
		wait(2 * time.Hour)
		for _, name := range bad {
			if s := wantState(t, c, name, "failed"); !strings.HasPrefix(s.Error, "unauthorized") || time.Until(*s.NextTry) < time.Hour {
				t.Errorf("in an outage %s is %+v", name, s)
			}
		}
		a.refuseWith(others(nil))
		wait(2 * time.Hour)
		wantState(t, c, "d.example.org", "issued")
		again := 0
		for _, name := range bad {
			again += len(a.orders[name])
		}
		if again != refused {
			t.Errorf("%d orders of refused names after the outage", again-refused)
		}
	})
}

// Renewals wait, too.
func TestRenewalsWaitForAnAuthorityThatIsDown(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		var hosts []string
		for i := range 40 {
			hosts = append(hosts, fmt.Sprintf("shop.example%d.com", i))
		}
		c.useNames(verified(hosts...))
		wait(time.Minute)
		before := len(a.placed())
		a.refuseWith(func(string) error { return acme.Problem{Status: 503, Type: "about:blank"} })
		wait(70 * 24 * time.Hour)
		if n := len(a.placed()) - before; n > 30*24 {
			t.Errorf("%d tries", n)
		}
		a.refuseWith(refusesNone)
		wait(24 * time.Hour)
		for _, host := range hosts {
			if s := wantState(t, c, host, "issued"); s.NotAfter.Before(time.Now().Add(80 * 24 * time.Hour)) {
				t.Errorf("%s was not renewed: %+v", host, s)
			}
		}
	})
}

// What the owners of domains can bring about holds up no others.
func TestOwnersCauseNoOutage(t *testing.T) {
	for name, err := range map[string]error{
		"refused":     acme.Problem{Status: 403, Type: "urn:ietf:params:acme:error:unauthorized"},
		"too often":   acme.Problem{Status: 429, Type: acme.ProblemTypeRateLimited},
		"slow":        fmt.Errorf("checking the authorization: %w", context.DeadlineExceeded),
		"interrupted": &url.Error{Op: "Post", URL: "x", Err: context.Canceled},
		"else":        errors.New("solving the challenge"),
	} {
		t.Run(name, func(t *testing.T) {
			withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
				a.refuseWith(func(name string) error {
					if name == "good.example.org" {
						return nil
					}
					return err
				})
				c.useNames(verified("a.example.com", "b.example.com", "c.example.com", "d.example.com", "good.example.org"))
				wait(time.Minute)
				wantState(t, c, "d.example.com", "failed")
				wantState(t, c, "good.example.org", "issued")
			})
		})
	}
}
