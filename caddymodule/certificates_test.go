package caddymodule

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
)

// authority is Caddy and a certificate authority as the certificates see them:
// a handshake finds a certificate, or orders one, and tells about it by events.
type authority struct {
	of       *certificates
	lifetime time.Duration
	offline  bool // the policy is not on-demand
	dns      bool // certificates for wildcards are the operator's
	decides  bool // Denia's permission alone is asked
	free     bool

	mu     sync.Mutex
	lost   error // of the storage
	refuse func(name string) error
	stored map[string]*x509.Certificate
	orders map[string][]time.Time
}

func (a *authority) onDemand(name string) bool {
	return !a.offline && (!a.dns || !platform.IsWildcard(name))
}
func (a *authority) decided() bool               { return a.decides }
func (a *authority) issues(name string) bool     { return !strings.HasSuffix(name, ".localhost") }
func (a *authority) isFree(string) bool          { return a.free }
func (a *authority) renewalRatio(string) float64 { return 1. / 3 }

func (a *authority) handshake(ctx context.Context, name string) (*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.stored[name]
	if found != nil && a.lost != nil { // and Caddy has not got it in memory
		return nil, a.lost
	}
	now := time.Now()
	renewal := found != nil && now.Before(found.NotAfter)
	if renewal && found.NotAfter.Sub(now) > a.lifetime/3 {
		return found, nil
	}
	if found == nil {
		if err := a.of.allow(name); err != nil {
			return nil, err
		}
	}
	if a.offline {
		return nil, errors.New("no certificate available")
	}
	if a.lost != nil {
		return nil, a.lost
	}
	err := a.of.obtaining(name, renewal)
	if err == nil {
		a.orders[name] = append(a.orders[name], now)
		if err = a.refuse(name); err != nil {
			err := fmt.Errorf("solving challenge: %w", err)
			if renewal { // that goes on behind the handshake
				go a.of.failure(name, renewal, err)
				return found, nil
			}
			a.of.failure(name, renewal, err)
			<-ctx.Done() // Caddy tries again in a minute, unless it is told to stop
			return nil, ctx.Err()
		}
	}
	if err != nil {
		if renewal {
			return found, nil
		}
		return nil, err
	}
	next := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Issuer: pkix.Name{Organization: []string{"Test"}, CommonName: "X1"},
		NotBefore: now, NotAfter: now.Add(a.lifetime),
	}
	a.stored[name] = next
	a.of.obtained(name)
	return next, nil
}

func (a *authority) placed() (all []time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, times := range a.orders {
		all = append(all, times...)
	}
	slices.SortFunc(all, time.Time.Compare)
	return all
}

func (a *authority) loseStorage(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost = err
}

func (a *authority) refuseWith(refuse func(name string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = refuse
}

func refusesNone(string) error { return nil }

// withAuthority runs a test in which time costs nothing.
func withAuthority(t *testing.T, test func(t *testing.T, c *certificates, a *authority)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertificates(Certificates{OrdersPerHour: 100, OrdersPerDomain: 50}, "", slog.New(slog.DiscardHandler))
		a := &authority{of: c, lifetime: 90 * 24 * time.Hour, refuse: refusesNone, stored: map[string]*x509.Certificate{}, orders: map[string][]time.Time{}}
		c.start()
		defer c.close()
		c.useView(a)
		test(t, c, a)
	})
}

func verified(hosts ...string) control.Names {
	var given control.Names
	for _, host := range slices.Sorted(slices.Values(hosts)) {
		given.Domains = append(given.Domains, platform.DomainName{Hostname: host, TLS: "auto"})
	}
	return given
}

func wait(d time.Duration) {
	<-time.After(d) // of the bubble's time
	synctest.Wait()
}

func wantState(t *testing.T, c *certificates, name, want string) platform.CertificateState {
	t.Helper()
	s := c.state(name)
	if s.State != want {
		t.Errorf("the certificate for %s is %s (%q), want %s", name, s.State, s.Error, want)
	}
	return s
}

// lasts tells whether a certificate has a month left: it was renewed.
func lasts(s platform.CertificateState) bool {
	return s.NotAfter != nil && s.NotAfter.After(time.Now().Add(30*24*time.Hour))
}

func TestVerifiedDomainsGetTheirCertificatesWithoutAVisitor(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		given := verified("a.example.com", "b.example.org")
		given.Domains = append(given.Domains, platform.DomainName{Hostname: "off.example.com", TLS: "off"})
		given.Services = []string{"svc.apps.example.net"}
		c.useNames(given)
		c.useControlDomain("denia.example.net")
		wait(time.Second)
		if got := slices.Sorted(maps.Keys(a.orders)); !slices.Equal(got, []string{"a.example.com", "b.example.org", "denia.example.net"}) {
			t.Errorf("ordered %q", got)
		}
		s := wantState(t, c, "a.example.com", "issued")
		if s.Issuer != "Test X1" || s.NotAfter == nil || s.NextTry != nil || s.Error != "" {
			t.Errorf("the state is %+v", s)
		}
		wantState(t, c, "off.example.com", "none")
		wantState(t, c, "other.example.com", "none")

		c.useNames(control.Names{})
		wantState(t, c, "a.example.com", "none")
	})
}

// Whoever visits such names, nothing is looked up or ordered for them.
func TestPermission(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		given := verified("shop.example.com", "*.wild.example.com", "xn--bcher-kva.example")
		given.Domains = append(given.Domains, platform.DomainName{Hostname: "zz.example.com", TLS: "off"})
		given.Services = []string{"app.apps.example.net", "app.localhost", "web.apps.example.net"}
		c.useNames(given)
		c.useControlDomain("denia.example.net")
		for _, name := range []string{
			"shop.example.com", "any.wild.example.com", "xn--bcher-kva.example", "app.apps.example.net", "web.apps.example.net", "denia.example.net",
		} {
			if err := c.allow(name); err != nil {
				t.Errorf("%s is refused: %v", name, err)
			}
		}
		for _, name := range []string{
			"", ".", "*", "*.wild.example.com", "wild.example.com", "a.b.wild.example.com", ".wild.example.com.", "example.com",
			"www.shop.example.com", "shop.example.com.", "zz.example.com", "gone.apps.example.net", "apps.example.net", "x.denia.example.net",
			"127.0.0.1", "::1", "localhost", "app.localhost", "bücher.example", "shop.example.com\x00", strings.Repeat("a.", 200) + "com",
		} {
			if err := c.allow(name); err == nil {
				t.Errorf("%q is allowed", name)
			}
		}
		c.useControlDomain("")
		if err := c.allow("localhost"); err == nil {
			t.Error("localhost is allowed where others issue")
		}
		a.free = true
		if err := c.allow("localhost"); err != nil {
			t.Errorf("localhost is refused, where the API is: %v", err)
		}
		c.useNames(verified("other.example.com"))
		for _, name := range []string{"shop.example.com", "any.wild.example.com", "app.apps.example.net", "denia.example.net"} {
			if err := c.allow(name); err == nil {
				t.Errorf("%s is allowed, and was removed", name)
			}
		}
	})
}

var refusal = acme.Problem{Type: "urn:ietf:params:acme:error:unauthorized", Status: 403, Detail: "no such token\n at http://x"}

func TestRefusedDomainIsTriedEverMoreSeldom(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error { return refusal })
		c.useNames(verified("bad.example.com"))
		wait(time.Minute)
		s := wantState(t, c, "bad.example.com", "failed")
		if s.Error != "unauthorized: no such token  at http://x" || s.NextTry == nil || !s.NextTry.After(time.Now()) {
			t.Errorf("the state is %+v", s)
		}
		if err := c.allow("bad.example.com"); err == nil {
			t.Error("a visitor may have it ordered again at once")
		}
		wait(time.Hour)
		if n := len(a.placed()); n > 2 {
			t.Errorf("%d orders in an hour, each of two validations: more than 4 are too many", n)
		}
		wait(30 * 24 * time.Hour)
		if n := len(a.placed()); n > 40 {
			t.Errorf("%d orders in a month", n)
		}
		a.refuseWith(refusesNone)
		wait(30 * time.Hour)
		wantState(t, c, "bad.example.com", "issued")
	})
}

// A name whose order was refused is ordered again when it turns out to lead here,
// but an hour has room for two tries of a name, of two validations each, and a
// week for fifty below a registered domain.
func TestNameThatLeadsHereIsOrderedAgain(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error { return refusal })
		c.useNames(verified("late.example.com", "fine.example.com"))
		wait(10 * time.Hour)
		before := len(a.orders["late.example.com"])
		s := wantState(t, c, "late.example.com", "failed")
		if time.Until(*s.NextTry) < time.Hour {
			t.Fatalf("the next try is at %s", s.NextTry)
		}
		c.reached("late.example.com")
		wait(time.Minute)
		if n := len(a.orders["late.example.com"]) - before; n != 1 {
			t.Errorf("%d orders once it leads here", n)
		}
		for range 23 * 60 { // and somebody verifies it all the time
			c.reached("late.example.com")
			c.reached("nobodys.example.com")
			wait(time.Minute)
		}
		times := a.orders["late.example.com"]
		if n := most(times, time.Hour); n > 2 {
			t.Errorf("%d orders in an hour, each of two validations: more than 4 are too many", n)
		}
		for i := range times[1:] {
			if d := times[i+1].Sub(times[i]); d < 15*time.Minute {
				t.Errorf("ordered again after %s", d)
			}
		}
		if n := len(times) - before; n < 4 || n > 7 {
			t.Errorf("%d orders in a day", n)
		}
		wait(time.Hour)
		a.refuseWith(refusesNone)
		c.reached("late.example.com")
		wait(time.Minute)
		if s := wantState(t, c, "late.example.com", "issued"); s.Error != "" || s.NextTry != nil {
			t.Errorf("the state is %+v", s)
		}
		wantState(t, c, "fine.example.com", "failed")
		c.reached("late.example.com")
		wait(time.Minute)
		if n := len(a.orders["late.example.com"]); n != len(times)+1 {
			t.Errorf("%d orders more, although there is a certificate", n-len(times)-1)
		}
	})
}

func TestAuthorityThatIsAwayIsAskedAgainSoon(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error { return errors.New("dial tcp: connection refused by https://user:secret@ca") })
		c.useNames(verified("shop.example.com"))
		wait(time.Second)
		s := wantState(t, c, "shop.example.com", "failed")
		if strings.Contains(s.Error, "secret") || s.NextTry == nil || time.Until(*s.NextTry) > 30*time.Second {
			t.Errorf("the state is %+v", s)
		}
		a.refuseWith(refusesNone)
		wait(30 * time.Second)
		if s := wantState(t, c, "shop.example.com", "issued"); s.Error != "" || s.NextTry != nil {
			t.Errorf("the state is %+v", s)
		}
	})
}

func TestRateLimitIsRespected(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error {
			return acme.Problem{Type: "urn:ietf:params:acme:error:rateLimited", Status: 429, Detail: "too many"}
		})
		c.useNames(verified("shop.example.com"))
		wait(25 * time.Minute)
		c.reached("shop.example.com")
		wait(25 * time.Minute)
		if n := len(a.placed()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
		wantState(t, c, "shop.example.com", "failed")
	})
}

// Caddy renews some certificates without asking for permission: one that storage
// has no more, and one that was revoked.
func TestRemovedDomainIsNotOrdered(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.decides = true
		c.useNames(verified("shop.example.com", "*.example.org"))
		wait(time.Second)
		if _, err := a.handshake(t.Context(), "shop.example.org"); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		c.useNames(control.Names{})
		wait(200 * 24 * time.Hour)
		for _, name := range []string{"shop.example.com", "shop.example.org"} {
			for _, renewal := range []bool{false, true} {
				if err := c.obtaining(name, renewal); err == nil {
					t.Errorf("%s is ordered, renewal: %v", name, renewal)
				}
			}
		}
		a.decides = false // sites of the operator's, which others permit, are not Denia's affair
		if err := c.obtaining("elsewhere.example.net", false); err != nil {
			t.Errorf("a name of the operator's own is not ordered: %v", err)
		}
	})
}

// A domain that is detached and attached again does not get around its back-off.
func TestBackOffOutlivesTheDomain(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error { return refusal })
		for range 20 {
			c.useNames(verified("bad.example.com"))
			wait(10 * time.Second)
			c.useNames(control.Names{})
			wait(10 * time.Second)
		}
		if n := len(a.placed()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
	})
}

func most(times []time.Time, span time.Duration) (n int) {
	for i := range times {
		j := i
		for j < len(times) && times[j].Sub(times[i]) < span {
			j++
		}
		n = max(n, j-i)
	}
	return n
}

func TestManyDomainsTakeTurns(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		var hosts []string
		for i := range 350 {
			hosts = append(hosts, fmt.Sprintf("www.shop%d.com", i))
		}
		c.useNames(verified(hosts...))
		wait(time.Minute)
		var waiting platform.CertificateState
		issued := 0
		for _, host := range hosts {
			if s := c.state(host); s.State == "pending" {
				waiting = s
			} else if s.State == "issued" {
				issued++
			}
		}
		if issued != 100 || waiting.NextTry == nil || waiting.Error == "" {
			t.Errorf("%d of 350 are issued after a minute; one that waits is %+v", issued, waiting)
		}
		wait(12 * time.Hour)
		if n := len(a.placed()); n != 350 {
			t.Errorf("%d orders for 350 domains", n)
		}
		if n := most(a.placed(), time.Hour); n > 100 {
			t.Errorf("%d orders within an hour", n)
		}
	})
}

// One tenant with many names does not use up what others need.
func TestRegisteredDomainIsBounded(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		var hosts []string
		for i := range 90 {
			hosts = append(hosts, fmt.Sprintf("n%d.greedy.co.uk", i))
		}
		c.useNames(verified(append(hosts, "*.greedy.co.uk", "www.modest.co.uk")...))
		wait(time.Minute)
		wantState(t, c, "www.modest.co.uk", "issued")
		allowed := 0
		for i := range 10_000 { // visitors with names somebody made up
			if c.allow(fmt.Sprintf("random%d.greedy.co.uk", i)) == nil {
				allowed++
			}
		}
		if allowed > 0 {
			t.Errorf("%d random names are allowed beyond the limit", allowed)
		}
		if n := len(c.entries); n > 100 {
			t.Errorf("%d names are remembered", n)
		}
		wait(30 * 24 * time.Hour)
		if n := most(a.placed(), 7*24*time.Hour); n > 51 {
			t.Errorf("%d orders within a week", n)
		}
		wantState(t, c, hosts[0], "issued")
		wantState(t, c, hosts[len(hosts)-1], "issued")
	})
}

func TestIdleCertificatesAreRenewed(t *testing.T) {
	for _, lifetime := range []time.Duration{90 * 24 * time.Hour, 6 * 24 * time.Hour, time.Minute} {
		t.Run(lifetime.String(), func(t *testing.T) {
			withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
				a.lifetime = lifetime
				c.useNames(verified("idle.example.com"))
				wait(time.Second)
				for range 200 {
					wait(lifetime / 20)
					wantState(t, c, "idle.example.com", "issued")
				}
				if n := len(a.placed()); n < 10 || n > 16 {
					t.Errorf("%d certificates in ten lifetimes", n)
				}
			})
		})
	}
}

// A certificate that cannot be renewed stays while it is good: Caddy drops it
// when it may not renew it.
func TestFailedRenewalKeepsTheCertificate(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		c.useNames(verified("shop.example.com"))
		wait(time.Second)
		a.refuseWith(func(string) error { return refusal })
		wait(62 * 24 * time.Hour)
		s := wantState(t, c, "shop.example.com", "issued")
		if s.Error == "" || s.NextTry == nil {
			t.Errorf("the owner hears nothing of the failure: %+v", s)
		}
		if err := c.allow("shop.example.com"); err != nil {
			t.Errorf("permission is denied: %v", err)
		}
		if err := c.obtaining("shop.example.com", true); err == nil {
			t.Error("visitors can have it renewed as often as they come")
		}
		wait(30 * 24 * time.Hour)
		wantState(t, c, "shop.example.com", "failed")
		a.refuseWith(refusesNone)
		wait(30 * time.Hour)
		wantState(t, c, "shop.example.com", "issued")
	})
}

// What was wrong with a certificate that is there after all is over, and no more
// told. What is wrong with its renewal is not over while the old one is served.
func TestErrorEndsWithItsCause(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		c.useNames(verified("shop.example.com"))
		wait(time.Second)
		a.loseStorage(errors.New("the database cannot be reached"))
		wait(8 * time.Hour)
		if s := wantState(t, c, "shop.example.com", "issued"); s.Error == "" {
			t.Error("the failure is not told")
		}
		a.loseStorage(nil)
		wait(8 * time.Hour)
		if s := wantState(t, c, "shop.example.com", "issued"); s.Error != "" || s.NextTry != nil {
			t.Errorf("the state is %+v", s)
		}

		a.refuseWith(func(string) error { return refusal })
		wait(63 * 24 * time.Hour)
		for range 20 {
			wait(time.Hour)
			if s := wantState(t, c, "shop.example.com", "issued"); s.Error == "" {
				t.Error("the owner hears nothing of a renewal that fails")
			}
		}
		if n := most(a.placed(), 24*time.Hour); n > 6 {
			t.Errorf("%d orders in a day", n)
		}
	})
}

// A name below a wildcard, and a service's host, get one when somebody comes.
func TestVisitorsOrder(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		given := verified("*.wild.example.com")
		given.Services = []string{"app.apps.example.net"}
		c.useNames(given)
		wait(time.Hour)
		if n := len(a.placed()); n != 0 {
			t.Errorf("%d orders before anybody came", n)
		}
		for _, name := range []string{"app.apps.example.net", "tenant.wild.example.com"} {
			if err := c.allow(name); err != nil {
				t.Error(err)
			}
			if _, err := a.handshake(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		wait(200 * 24 * time.Hour)
		for name, times := range a.orders {
			if len(times) < 3 {
				t.Errorf("%s was ordered %d times in 200 days: it was not renewed", name, len(times))
			}
		}
	})
}

// A name that was waiting below a wildcard, or has a certificate from there, is
// fetched as all domains are once it is one itself.
func TestNameBelowAWildcardBecomesADomain(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.refuseWith(func(string) error { return errors.New("dial tcp: connection refused") })
		c.useNames(verified("*.example.com"))
		if err := c.allow("shop.example.com"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.handshake(ctx, "shop.example.com"); err == nil {
			t.Fatal("the authority is away, and has issued")
		}
		wait(time.Minute)
		a.refuseWith(refusesNone)
		c.useNames(verified("*.example.com", "shop.example.com"))
		wait(time.Minute)
		wantState(t, c, "shop.example.com", "issued")

		c.useNames(verified("*.example.com"))
		wait(100 * 24 * time.Hour)
		if s := wantState(t, c, "shop.example.com", "issued"); !lasts(s) {
			t.Errorf("below its wildcard again, it was not renewed: %+v", s)
		}
	})
}

// What a name is may change while it may have a certificate all the time.
func TestDomainBecomesTheControlDomain(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		c.useNames(verified("denia.example.com"))
		wait(time.Second)
		c.useControlDomain("denia.example.com")
		c.useNames(control.Names{}) // nobody else may have it
		wantState(t, c, "denia.example.com", "issued")
		if err := c.obtaining("denia.example.com", true); err != nil {
			t.Errorf("it is not renewed: %v", err)
		}
		wait(100 * 24 * time.Hour)
		if s := wantState(t, c, "denia.example.com", "issued"); !lasts(s) {
			t.Errorf("it was not renewed: %+v", s)
		}
	})
}

// Whatever keeps orders from being placed, strangers cannot have Denia remember
// names they make up below a wildcard without end, and none of these is ordered
// later, when nobody asks any more.
func TestNamesMadeUpBelowAWildcardAreForgotten(t *testing.T) {
	away := errors.New("the database cannot be reached")
	for name, begin := range map[string]func(*authority){
		"authority away": func(a *authority) {
			a.refuseWith(func(string) error { return &url.Error{Op: "Post", URL: "x", Err: io.EOF} })
		},
		"storage away": func(a *authority) { a.loseStorage(away) },
		"free":         func(a *authority) { a.free = true; a.loseStorage(away) },
	} {
		t.Run(name, func(t *testing.T) {
			withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
				begin(a)
				c.useNames(verified("*.example.com", "*.example.org"))
				visit, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := a.handshake(visit, "visited.example.com"); err == nil {
					t.Error("it is served")
				}
				for i := range 20_000 {
					_ = c.allow(fmt.Sprintf("random%d.example.com", i))
				}
				if n := len(c.entries); n > 2_000 {
					t.Errorf("%d names are remembered", n)
				}
				if err := c.allow("shop.example.org"); err != nil {
					t.Errorf("a name of somebody else's is refused: %v", err)
				}
				wait(3 * time.Hour)
				a.refuseWith(refusesNone)
				a.loseStorage(nil)
				wait(time.Hour) // the authority's outage is over
				before := len(a.placed())
				wait(3 * 24 * time.Hour)
				if n := len(a.placed()) - before; n > 0 {
					t.Errorf("%d were ordered", n)
				}
				if n := len(c.entries); n > 10 {
					t.Errorf("%d names are remembered after three days", n)
				}
				if err := c.allow("real.example.com"); err != nil {
					t.Errorf("a new name is refused: %v", err)
				}
				if _, err := a.handshake(t.Context(), "real.example.com"); err != nil {
					t.Error(err)
				}
				wait(time.Minute)
				if !a.free && !c.secure.covers("real.example.com") {
					t.Error("its certificate is not noticed")
				}
			})
		})
	}
}

// A visitor who comes back after a failure is served, and the name is looked
// after as if nothing had been.
func TestVisitorComesAgainAfterAFailure(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		c.useNames(verified("*.example.com"))
		a.loseStorage(errors.New("the database cannot be reached"))
		if _, err := a.handshake(t.Context(), "shop.example.com"); err == nil {
			t.Fatal("it is served without storage")
		}
		wait(time.Minute)
		a.loseStorage(nil)
		if _, err := a.handshake(t.Context(), "shop.example.com"); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		if !c.secure.covers("shop.example.com") {
			t.Error("its certificate is not noticed")
		}
		wait(100 * 24 * time.Hour)
		if n := len(a.orders["shop.example.com"]); n != 2 {
			t.Errorf("%d orders in a hundred days, want one and a renewal", n)
		}
	})
}

// Without a site that has certificates on demand there is none to be had, until
// a configuration with one is loaded.
func TestConfigurationChanges(t *testing.T) {
	withAuthority(t, func(t *testing.T, c *certificates, a *authority) {
		a.offline = true
		c.useNames(verified("shop.example.com"))
		wait(time.Minute)
		wantState(t, c, "shop.example.com", "none")
		c.useView(nil)
		wait(time.Minute)
		wantState(t, c, "shop.example.com", "none")
		a.offline = false
		c.useView(a)
		wait(time.Minute)
		wantState(t, c, "shop.example.com", "issued")
		c.useView(a)
		wait(time.Minute)
		if n := len(a.placed()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
	})
}
