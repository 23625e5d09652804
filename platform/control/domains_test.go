package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/testdns"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/ingress"
)

// internet is what Denia sees of the world when it verifies a domain: a DNS
// server and one web server, whose answers depend on the host.
type internet struct {
	*testdns.Server
	web   *httptest.Server
	port  int
	mu    sync.Mutex
	sites map[string]http.HandlerFunc
	asked []string // hosts
}

func newInternet(t *testing.T) *internet {
	n := &internet{Server: testdns.Start(t), sites: map[string]http.HandlerFunc{}}
	n.web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		n.mu.Lock()
		n.asked = append(n.asked, host)
		site := n.sites[host]
		n.mu.Unlock()
		if site == nil {
			http.NotFound(w, r)
			return
		}
		site(w, r)
	}))
	t.Cleanup(n.web.Close)
	n.port = n.web.Listener.Addr().(*net.TCPAddr).Port
	return n
}

// site points a name to the web server, where handler answers.
func (n *internet) site(name string, handler http.HandlerFunc) {
	n.mu.Lock()
	n.sites[name] = handler
	n.mu.Unlock()
	n.Host(name, "127.0.0.1")
}

func (n *internet) visitors() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

// options have Denia look at n.
func (n *internet) options(change ...func(*control.Options)) func(*control.Options) {
	return func(o *control.Options) {
		o.Domains = control.DomainOptions{AllowPrivate: true, Resolver: n.Addr, ChallengePort: n.port}
		for _, c := range change {
			c(o)
		}
	}
}

// denia answers challenges as Denia does to whom a host points.
func (w *world) denia(rw http.ResponseWriter, r *http.Request) {
	token, found := strings.CutPrefix(r.URL.Path, platform.ChallengePath)
	if !found || !w.Challenge(r.Host, token) {
		http.NotFound(rw, r)
		return
	}
	_, _ = io.WriteString(rw, token)
}

func (w *world) attach(service platform.ID, hostname string) platform.Domain {
	w.t.Helper()
	d, err := w.AttachDomain(w.t.Context(), service, hostname)
	check(w.t, err)
	return d
}

func (w *world) verify(d platform.Domain) platform.Domain {
	w.t.Helper()
	d, err := w.VerifyDomain(w.t.Context(), d.ServiceID, d.ID)
	check(w.t, err)
	return d
}

// verified checks that it is, and that requests find its service at once.
func (w *world) verified(d platform.Domain) platform.Domain {
	w.t.Helper()
	d = w.verify(d)
	if d.Status != platform.DomainVerified {
		w.t.Fatalf("%s is %s: %+v", d.Hostname, d.Status, d.LastError)
	}
	if !w.options.Ingress.Has(strings.Replace(d.Hostname, "*", "any", 1)) {
		w.t.Fatalf("%s is verified and not routed", d.Hostname)
	}
	return d
}

// refused checks that it is not verified, for that reason, and not routed.
func (w *world) refused(d platform.Domain, code string) platform.Domain {
	w.t.Helper()
	d = w.verify(d)
	if d.Status != platform.DomainFailed || d.LastError.Code != code {
		w.t.Fatalf("%s is %s with %+v, want %s", d.Hostname, d.Status, d.LastError, code)
	}
	return d
}

// otherProject makes a service in a project of its own.
func (w *world) otherProject(name string) platform.Service {
	w.t.Helper()
	p, err := w.store.CreateProject(w.t.Context(), platform.ProjectSpec{Name: name})
	check(w.t, err)
	s, err := w.store.CreateService(w.t.Context(), p.ID, spec("site").WithDefaults())
	check(w.t, err)
	w.Kick(s.ID)
	return s
}

func TestVerifiedDomainIsRouted(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	service, _ := w.running(spec("web"), "app:1")
	n.site("shop.example.com", w.denia)
	d := w.attach(service.ID, "Shop.Example.com")
	if w.options.Ingress.Has("shop.example.com") {
		t.Fatal("a claim is routed before it is proven")
	}
	w.verified(d)
	reply := w.ask("shop.example.com")
	if reply != "1.0" {
		t.Errorf("shop.example.com answers %q", reply)
	}
	if got := w.Routes(); len(got) != 2 || got[1].Host != "shop.example.com" || got[1].ServiceID != service.ID {
		t.Errorf("the routes are %v", got)
	}
	w.restart()
	if !w.options.Ingress.Has("shop.example.com") || !w.Challenge("shop.example.com", d.Token) {
		t.Error("after a restart it is not routed, or its challenge not answered")
	}
	w.verified(d)
	check(t, w.DetachDomain(t.Context(), service.ID, d.ID))
	if w.options.Ingress.Has("shop.example.com") || w.Challenge("shop.example.com", d.Token) {
		t.Error("it is detached and still routed, or its challenge answered")
	}
	if err := w.DetachDomain(t.Context(), service.ID, d.ID); platform.KindOf(err) != platform.NotFound {
		t.Errorf("detached a second time: %v", err)
	}
	w.verified(w.attach(service.ID, "shop.example.com"))
	check(t, w.DeleteService(t.Context(), service.ID, false))
	if w.options.Ingress.Has("shop.example.com") {
		t.Error("its service is deleted and it is still routed")
	}
}

func (w *world) ask(host string) string {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodGet, w.server.URL, nil)
	check(w.t, err)
	req.Host = host
	res, err := w.client.Do(req)
	check(w.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	check(w.t, err)
	return string(text)
}

func TestDomainIsProvenByDNS(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	service := w.service(spec("web"))
	exact, wild := w.attach(service.ID, "shop.example.com"), w.attach(service.ID, "*.example.com")
	n.site("any.example.com", w.denia)
	w.refused(exact, platform.DomainNotFound)
	w.refused(wild, platform.DomainNoRecord)
	n.TXT("_denia-challenge.shop.example.com", "v=spf1 -all", exact.Token)
	w.verified(exact)
	n.TXT("_denia-challenge.example.com", exact.Token)
	w.refused(wild, platform.DomainNoRecord)
	// An answer of many kilobytes comes over TCP.
	n.TXT("_denia-challenge.example.com", strings.Repeat("x", 20_000), strings.Repeat("y", 20_000), wild.Token)
	w.verified(wild)
	if w.options.Ingress.Has("example.com") || w.options.Ingress.Has("a.b.example.com") {
		t.Error("the wildcard stands for more than one label")
	}
}

// What is no proof, and what is said about it. Nothing of it changes routes.
func TestProofsThatAreNone(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	service := w.service(spec("web"))
	n.Host("elsewhere.example.com", "127.0.0.1")
	n.Fail("broken.example.com", true)
	n.Fail("_denia-challenge.broken.example.com", true)
	token := func(r *http.Request) string { return strings.TrimPrefix(r.URL.Path, platform.ChallengePath) }
	at := func(host string) string { return fmt.Sprintf("http://%s:%d", host, n.port) }
	n.site("elsewhere.example.com", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, token(r)) })
	for name, c := range map[string]struct {
		site http.HandlerFunc
		code string
	}{
		"other-host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, at("elsewhere.example.com")+r.URL.Path, http.StatusFound)
		}, platform.DomainWrongAnswer},
		"other-port": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://other-port.example.com:9"+r.URL.Path, http.StatusFound)
		}, platform.DomainWrongAnswer},
		"other-style": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "ftp://other-style.example.com/x", http.StatusFound)
		}, platform.DomainWrongAnswer},
		"for-ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }, platform.DomainWrongAnswer},
		"wrong":    {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }, platform.DomainWrongAnswer},
		"around":   {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>"+token(r)+"</p>") }, platform.DomainWrongAnswer},
		"long":     {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, token(r)+strings.Repeat("\n", 2000)) }, platform.DomainWrongAnswer},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, platform.DomainWrongAnswer},
		"headers": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 100_000))
			io.WriteString(w, token(r))
		}, platform.DomainUnreachable},
		"missing": {http.NotFound, platform.DomainWrongAnswer},
		"created": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(201); io.WriteString(w, token(r)) }, platform.DomainWrongAnswer},
		"cut":     {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, platform.DomainUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			host := name + ".example.com"
			n.site(host, c.site)
			d := w.refused(w.attach(service.ID, host), c.code)
			if w.options.Ingress.Has(host) || !strings.Contains(d.LastError.Message, host) {
				t.Errorf("routed, or said %q", d.LastError.Message)
			}
		})
	}
	w.refused(w.attach(service.ID, "nowhere.example.com"), platform.DomainNotFound)
	w.refused(w.attach(service.ID, "broken.example.com"), platform.DomainUnreachable)
	if slices.Contains(n.visitors(), "elsewhere.example.com") {
		t.Error("a redirect to another host was followed")
	}
}

func TestProofsAfterARedirectOnTheSameHost(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	d := w.attach(w.service(spec("web")).ID, "shop.example.com")
	n.site("shop.example.com", func(rw http.ResponseWriter, r *http.Request) {
		if token, found := strings.CutPrefix(r.URL.Path, "/elsewhere/"); found {
			if w.Challenge(r.Host, token) {
				io.WriteString(rw, token+"\r\n")
			}
			return
		}
		http.Redirect(rw, r, "/elsewhere/"+strings.TrimPrefix(r.URL.Path, platform.ChallengePath), http.StatusMovedPermanently)
	})
	w.verified(d)
}

// By default nothing at a private address is asked, whichever way it is
// written, and the person is not told what the name resolved to.
func TestPrivateAddressesAreRefused(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options(func(o *control.Options) { o.Domains.AllowPrivate = false }))
	service := w.service(spec("web"))
	for i, addr := range []string{"127.0.0.1", "10.1.2.3", "192.168.7.7", "172.16.5.5", "169.254.169.254", "100.64.0.9", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1", "fd00::1", "ff02::1", "2002:7f00:1::1"} {
		host := fmt.Sprintf("h%d.example.com", i)
		n.site(host, w.denia)
		n.Host(host, addr)
		d := w.refused(w.attach(service.ID, host), platform.DomainRefused)
		if strings.Contains(d.LastError.Message, addr) {
			t.Errorf("%s: the message gives the address away: %s", addr, d.LastError.Message)
		}
	}
	if asked := n.visitors(); len(asked) > 0 {
		t.Errorf("asked were %v", asked)
	}
	d := w.attach(service.ID, "dns.example.com")
	n.Host("dns.example.com", "10.0.0.1")
	n.TXT("_denia-challenge.dns.example.com", d.Token)
	w.verified(d)
}

func TestOneOfTwoServicesGetsAHostname(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	a, b := w.service(spec("a")), w.otherProject("shop")
	for i := range 5 {
		host := fmt.Sprintf("h%d.example.com", i)
		n.site(host, w.denia)
		claims := []platform.Domain{w.attach(a.ID, host), w.attach(b.ID, host)}
		var both sync.WaitGroup
		for at := range claims {
			both.Go(func() {
				d, err := w.VerifyDomain(context.Background(), claims[at].ServiceID, claims[at].ID)
				if err != nil {
					t.Error(err)
				}
				claims[at] = d
			})
		}
		both.Wait()
		if claims[0].Status != platform.DomainVerified {
			slices.Reverse(claims)
		}
		if claims[0].Status != platform.DomainVerified || claims[1].Status != platform.DomainFailed || claims[1].LastError.Code != platform.DomainTaken {
			t.Fatalf("%+v and %+v", claims[0], claims[1])
		}
		for _, r := range w.Routes() {
			if r.Host == host && r.ServiceID != claims[0].ServiceID {
				t.Errorf("%s is routed to the loser", host)
			}
		}
		// The loser may give up without a trace of the winner's going with it.
		check(t, w.DetachDomain(t.Context(), claims[1].ServiceID, claims[1].ID))
		if !w.options.Ingress.Has(host) {
			t.Errorf("the loser's end took %s away from the winner", host)
		}
	}
}

func TestAHostnameIsTakenOverByDNSOnly(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	squatter, owner := w.service(spec("squatter")), w.otherProject("shop")
	n.site("shop.example.com", w.denia)
	held := w.verified(w.attach(squatter.ID, "shop.example.com"))
	claim := w.attach(owner.ID, "shop.example.com")
	// That the host points to Denia is true for both, and says nothing.
	w.refused(claim, platform.DomainTaken)
	n.TXT("_denia-challenge.shop.example.com", claim.Token, held.Token)
	w.refused(claim, platform.DomainTaken)
	n.TXT("_denia-challenge.shop.example.com", claim.Token)
	w.verified(claim)
	if at := slices.IndexFunc(w.Routes(), func(r ingress.Route) bool { return r.Host == "shop.example.com" }); w.Routes()[at].ServiceID != owner.ID {
		t.Error("it is verified for its owner and routed to the squatter")
	}
	lost, err := w.store.Domain(t.Context(), squatter.ID, held.ID)
	check(t, err)
	if lost.Status != platform.DomainFailed || lost.LastError.Code != platform.DomainTakenOver {
		t.Errorf("the squatter's is %s: %+v", lost.Status, lost.LastError)
	}
	w.refused(held, platform.DomainTaken)
	check(t, w.DetachDomain(t.Context(), squatter.ID, held.ID))
	if !w.options.Ingress.Has("shop.example.com") {
		t.Error("the squatter's end took it away from its owner")
	}
}

// Where one project has a name, another gets none below it because that happens
// to point to Denia.
func TestNamesBelowAnotherProjectsTakeDNS(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	owner, stranger := w.otherProject("shop"), w.service(spec("stranger"))
	n.site("example.com", w.denia)
	n.site("evil.example.com", w.denia)
	w.verified(w.attach(owner.ID, "example.com"))
	evil := w.attach(stranger.ID, "evil.example.com")
	w.refused(evil, platform.DomainNeedsDNS)
	n.TXT("_denia-challenge.evil.example.com", evil.Token)
	w.verified(evil)
}

func TestReservedHostnamesAreRefused(t *testing.T) {
	controlDomain := "denia.example.org"
	n := newInternet(t)
	w := start(t, n.options(func(o *control.Options) { o.ControlDomain = func() string { return controlDomain } }))
	service := w.service(spec("web"))
	for _, host := range []string{"a.localhost", "denia.example.org", "Denia.Example.ORG.", "*.example.org"} {
		if _, err := w.AttachDomain(t.Context(), service.ID, host); platform.CodeOf(err) != "hostname_reserved" || platform.KindOf(err) != platform.Conflict {
			t.Errorf("%s: %v", host, err)
		}
	}
	// One that has become the control domain is given up at the next look.
	n.site("next.example.org", w.denia)
	d := w.verified(w.attach(service.ID, "next.example.org"))
	controlDomain = "next.example.org"
	w.refused(d, platform.DomainNowReserved)
	if w.options.Ingress.Has("next.example.org") {
		t.Error("the control domain is routed to a service")
	}
}

func TestDomainsAreCheckedAgain(t *testing.T) {
	const interval = time.Second
	n := newInternet(t)
	w := start(t, n.options(func(o *control.Options) { o.Domains.Recheck = interval }))
	service := w.service(spec("web"))
	fine, dark, gone := w.attach(service.ID, "fine.example.com"), w.attach(service.ID, "dark.example.com"), w.attach(service.ID, "gone.example.com")
	for _, d := range []platform.Domain{fine, dark, gone} {
		n.site(d.Hostname, w.denia)
		w.verified(d)
	}
	reread := func(d platform.Domain) platform.Domain {
		t.Helper()
		d, err := w.store.Domain(t.Context(), service.ID, d.ID)
		check(t, err)
		return d
	}
	n.Fail("dark.example.com", true)
	n.Fail("_denia-challenge.dark.example.com", true)
	n.Host("gone.example.com")
	w.await("the failure is seen", func() bool { return reread(gone).LastError != nil })
	if d := reread(gone); d.Status != platform.DomainVerified || !w.options.Ingress.Has("gone.example.com") {
		t.Errorf("at the first failure it is %s", d.Status)
	}
	w.await("it is lost", func() bool { return reread(gone).Status == platform.DomainFailed })
	if d := reread(gone); d.LastError.Code != platform.DomainNotFound || d.LastCheckAt.Sub(d.CreatedAt) < 3*interval {
		t.Errorf("lost as %+v", d)
	}
	w.await("it is not routed", func() bool { return !w.options.Ingress.Has("gone.example.com") })
	if d := reread(dark); d.Status != platform.DomainVerified || d.LastError == nil || d.LastError.Code != platform.DomainUnreachable {
		t.Errorf("while DNS gives no answer, it is %s: %+v", d.Status, d.LastError)
	}
	n.Fail("dark.example.com", false)
	w.await("the answer is seen", func() bool { return reread(dark).LastError == nil })
	if d := reread(fine); d.Status != platform.DomainVerified || d.LastError != nil {
		t.Errorf("what is fine is %s: %+v", d.Status, d.LastError)
	}
}

// A node that starts leaves its listeners the time to start as well: what it is
// asked before, it does not answer.
func TestChecksDoNotBeginAtOnce(t *testing.T) {
	n := newInternet(t)
	w := newWorld(t, n.options(func(o *control.Options) { o.Domains.Recheck = 50 * time.Second }))
	n.site("shop.example.com", w.denia)
	d := w.verified(w.attach(w.service(spec("web")).ID, "shop.example.com"))
	overdue := platform.DomainCheck{At: time.Now().Add(-time.Hour), Interval: time.Minute, HTTP: true}
	_, _, err := w.store.JudgeDomain(t.Context(), d.ID, overdue)
	check(t, err)
	began := time.Now().Truncate(time.Millisecond) // as rows have it
	check(t, w.Start(t.Context()))
	w.await("it is checked", func() bool {
		d, err = w.store.Domain(t.Context(), d.ServiceID, d.ID)
		check(t, err)
		return d.LastCheckAt.After(began)
	})
	if waited := d.LastCheckAt.Sub(began); waited < 500*time.Millisecond {
		t.Errorf("it was checked after %s", waited)
	}
}

// A domain that was to be checked in a year, as the clock said last time, is
// checked now that it is right.
func TestAWrongClockDoesNotEndChecks(t *testing.T) {
	n := newInternet(t)
	w := newWorld(t, n.options(func(o *control.Options) { o.Domains.Recheck = time.Second }))
	n.site("shop.example.com", w.denia)
	d := w.verified(w.attach(w.service(spec("web")).ID, "shop.example.com"))
	ahead := platform.DomainCheck{At: time.Now().AddDate(1, 0, 0), Interval: time.Second, HTTP: true}
	_, _, err := w.store.JudgeDomain(t.Context(), d.ID, ahead)
	check(t, err)
	check(t, w.Start(t.Context()))
	w.await("it is checked", func() bool {
		d, err = w.store.Domain(t.Context(), d.ServiceID, d.ID)
		check(t, err)
		return d.LastCheckAt.Before(time.Now())
	})
	if d.Status != platform.DomainVerified || d.ProvenAt.After(time.Now()) {
		t.Errorf("it is %s, proven at %s", d.Status, d.ProvenAt)
	}
}

// A project whose hosts do not answer keeps no other waiting.
func TestSlowHostsKeepNobodyElseWaiting(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	slow, quick := w.service(spec("slow")), w.otherProject("shop")
	n.site("quick.example.com", w.denia)
	claim := w.attach(quick.ID, "quick.example.com")
	hang, release := gate(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	began := time.Now()
	for i := range 8 {
		host := fmt.Sprintf("slow%d.example.com", i)
		n.site(host, func(http.ResponseWriter, *http.Request) { <-hang })
		d := w.attach(slow.ID, host)
		waiting.Go(func() { _, _ = w.VerifyDomain(ctx, slow.ID, d.ID) })
	}
	w.await("four are asked", func() bool { return len(n.visitors()) >= 4 })
	w.verified(claim)
	// Twice, the second time for a token nobody made. Once the first of the slow
	// ones have been given up, others may have taken their turn.
	if asked := n.visitors(); len(asked) != 4+2 && time.Since(began) < 5*time.Second {
		t.Errorf("asked were %v", asked)
	}
	release()
}

func TestAPersonWhoGivesUpChangesNothing(t *testing.T) {
	n := newInternet(t)
	w := start(t, n.options())
	hang, release := gate(t)
	n.site("slow.example.com", func(http.ResponseWriter, *http.Request) { <-hang })
	d := w.attach(w.service(spec("web")).ID, "slow.example.com")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gaveUp := make(chan error)
	go func() {
		_, err := w.VerifyDomain(ctx, d.ServiceID, d.ID)
		gaveUp <- err
	}()
	w.await("it is asked", func() bool { return len(n.visitors()) == 1 })
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	release()
	after, err := w.store.Domain(t.Context(), d.ServiceID, d.ID)
	check(t, err)
	if after.Status != platform.DomainPending || after.LastCheckAt != nil {
		t.Errorf("it is %s, looked at %v", after.Status, after.LastCheckAt)
	}
}

func TestNamesAreToldBeforeTheyAreRouted(t *testing.T) {
	n := newInternet(t)
	var mu sync.Mutex
	var told []control.Names
	var w *world
	w = newWorld(t, n.options(func(o *control.Options) {
		o.Names = func(names control.Names) {
			mu.Lock()
			defer mu.Unlock()
			for _, d := range names.Domains {
				known := len(told) > 0 && slices.ContainsFunc(told[len(told)-1].Domains, func(k platform.DomainName) bool { return k.Hostname == d.Hostname })
				if !known && w.options.Ingress.Has(d.Hostname) {
					t.Errorf("%s was routed before its name was told", d.Hostname)
				}
			}
			told = append(told, names)
		}
	}))
	check(t, w.Start(t.Context()))
	last := func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(told[len(told)-1])
	}
	if got := last(); got != "{[] []}" {
		t.Errorf("at the start: %s", got)
	}
	service := w.service(spec("web"))
	d := w.attach(service.ID, "shop.example.com")
	if got := last(); got != "{[] [web.localhost]}" {
		t.Errorf("with a service and a claim: %s", got)
	}
	n.site("shop.example.com", w.denia)
	w.verified(d)
	if got, want := last(), fmt.Sprintf("{[{shop.example.com %s auto}] [web.localhost]}", service.ID); got != want {
		t.Errorf("verified: %s, want %s", got, want)
	}
	n.TXT("_denia-challenge.a.example.com", "")
	for _, host := range []string{"z.example.com", "a.example.com"} {
		n.site(host, w.denia)
		w.verified(w.attach(service.ID, host))
	}
	w.update(service.ID, func(s *platform.ServiceSpec) { s.TLS = "off" })
	w.Kick(service.ID)
	if got, want := last(), fmt.Sprintf("{[{a.example.com %[1]s off} {shop.example.com %[1]s off} {z.example.com %[1]s off}] []}", service.ID); got != want {
		t.Errorf("without TLS: %s, want %s", got, want)
	}
	mu.Lock()
	before := len(told)
	mu.Unlock()
	w.Kick(service.ID)
	w.verified(d)
	mu.Lock()
	if len(told) != before {
		t.Errorf("told again although nothing had changed: %v", told[before:])
	}
	mu.Unlock()
	check(t, w.DetachDomain(t.Context(), service.ID, d.ID))
	if got, want := last(), fmt.Sprintf("{[{a.example.com %[1]s off} {z.example.com %[1]s off}] []}", service.ID); got != want {
		t.Errorf("detached: %s, want %s", got, want)
	}
}

// A name that is proven by DNS and led here afterwards is told as soon as a check
// finds it, with the TXT record still in place; what leads elsewhere is not.
func TestHostsThatLeadHereAreTold(t *testing.T) {
	n := newInternet(t)
	reached := make(chan string, 1000)
	var named atomic.Value
	named.Store(control.Names{})
	w := start(t, n.options(func(o *control.Options) {
		o.Domains.Recheck = time.Second
		o.Names = func(names control.Names) { named.Store(names) }
		o.Domains.Reached = func(hostname string) {
			if !slices.ContainsFunc(named.Load().(control.Names).Domains, func(d platform.DomainName) bool { return d.Hostname == hostname }) {
				t.Errorf("%s leads here, and its name was not told", hostname)
			}
			reached <- hostname
		}
	}))
	none := func(when string) {
		t.Helper()
		if len(reached) > 0 {
			t.Errorf("%s: %s leads here", when, <-reached)
		}
	}
	service := w.service(spec("web"))
	d, wild := w.attach(service.ID, "shop.example.com"), w.attach(service.ID, "*.example.com")
	n.TXT("_denia-challenge.shop.example.com", d.Token)
	n.TXT("_denia-challenge.example.com", wild.Token)
	w.verified(d)
	w.verified(wild)
	none("proven by DNS alone")
	n.site("shop.example.com", func(w http.ResponseWriter, r *http.Request) { // whatever it is asked for
		io.WriteString(w, strings.TrimPrefix(r.URL.Path, platform.ChallengePath))
	})
	w.verified(d)
	none("at a host that proves nothing")

	n.site("shop.example.com", w.denia)
	for range 2 { // checks go on, and tell it each time
		select {
		case host := <-reached:
			if host != "shop.example.com" {
				t.Errorf("%s leads here", host)
			}
		case <-time.After(patience):
			t.Fatal("that the name leads here is not told")
		}
	}
}

func TestChallengesAreAnsweredForTheirHostOnly(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	d, wild := w.attach(service.ID, "shop.example.com"), w.attach(service.ID, "*.example.com")
	if d.Token == wild.Token || len(d.Token) < 26 {
		t.Errorf("the tokens are %q and %q", d.Token, wild.Token)
	}
	for host, answered := range map[string]bool{
		"shop.example.com": true, "SHOP.example.com:8080": true, "shop.example.com.": true, "shop.example.com.:80": true,
		"example.com": false, "other.example.com": false, "": false, ":80": false, "shop.example.com.evil.test": false, "[::1]:80": false,
	} {
		if got := w.Challenge(host, d.Token); got != answered {
			t.Errorf("for %q: %v", host, got)
		}
		if w.Challenge(host, wild.Token) || w.Challenge(host, "") || w.Challenge(host, strings.Repeat("x", 1<<20)) {
			t.Errorf("for %q another token is answered", host)
		}
	}
	check(t, w.DeleteService(t.Context(), service.ID, false))
	if w.Challenge("shop.example.com", d.Token) {
		t.Error("the service is deleted and its challenge answered")
	}
}
