package control

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/internal/testdns"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	plain := func(text []byte) ([]byte, error) { return text, nil }
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "denia.db"), store.Options{Log: slog.New(slog.DiscardHandler), Seal: plain, Unseal: plain})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// node is a Plane on a store that others write to as well. It runs no loops.
type node struct {
	*Plane
	told Names
}

func newNode(t *testing.T, o Options) *node {
	t.Helper()
	n := &node{}
	o.Ingress, o.Log = ingress.New(ingress.Options{}), slog.New(slog.DiscardHandler)
	o.Names = func(names Names) { n.told = names }
	n.Plane = New(o)
	t.Cleanup(o.Ingress.Close)
	check(t, n.rereadRoutes(t.Context()))
	return n
}

// answers are what a request to each of the hosts is told: the service has been
// stopped, which it names by its id, or there is none.
func (n *node) answers(t *testing.T, hosts []string) []string {
	t.Helper()
	for _, ref := range n.hosts.services {
		n.Ingress.Configure(ingress.PoolSpec{ServiceID: ref.ID, Name: string(ref.ID), Stopped: true})
	}
	var all []string
	for _, host := range hosts {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		r.Header.Set("Accept", "application/json")
		w := httptest.NewRecorder()
		n.Ingress.ServeHTTP(w, r)
		var body struct{ Detail string }
		check(t, json.Unmarshal(w.Body.Bytes(), &body))
		all = append(all, host+": "+body.Detail)
	}
	return all
}

// differences are the hosts that are routed otherwise after than before, as is
// found by comparing, and as the routes say.
func differences(p *Plane, before, after hosts) (found, real map[string]bool) {
	found, real = map[string]bool{}, map[string]bool{}
	before.addOthers(found, &after, p.hostOf)
	after.addOthers(found, &before, p.hostOf)
	of := func(h hosts) map[string]platform.ID {
		services := map[string]platform.ID{}
		for _, r := range h.routes(p.hostOf) {
			services[r.Host] = r.ServiceID
		}
		return services
	}
	was, is := of(before), of(after)
	for _, host := range slices.Concat(slices.Collect(maps.Keys(was)), slices.Collect(maps.Keys(is))) {
		if was[host] != is[host] {
			real[host] = true
		}
	}
	return found, real
}

// Whatever happens to services and domains, here or on another node, one change
// after the other leads to where a node that has just started begins.
func TestChangesOfRoutesAddUp(t *testing.T) {
	ctx := t.Context()
	s, dns := openStore(t), testdns.Start(t)
	controlDomain := ""
	o := Options{Store: s, ControlDomain: func() string { return controlDomain }, Domains: DomainOptions{AllowPrivate: true, Resolver: dns.Addr}}
	n, elsewhere := newNode(t, o), newNode(t, o)
	random := rand.New(rand.NewPCG(7, 8))
	pick := func(names []string) string { return names[random.IntN(len(names))] }

	names, hostnames := []string{"a", "b", "c", "d"}, []string{"a.test.example", "b.test.example", "c.test.example", "*.test.example", "z.example"}
	projects := []platform.ID{}
	hosts := []string{"x.test.example", "a.b.test.example"}
	for _, name := range []string{platform.DefaultProject, "one", "two", "three"} {
		if name != platform.DefaultProject && name != "three" {
			p, err := s.CreateProject(ctx, platform.ProjectSpec{Name: name})
			check(t, err)
			projects = append(projects, p.ID)
		}
		for _, service := range append(names, "between") {
			hosts = append(hosts, service+"-"+name+".localhost", service+".localhost")
		}
	}
	for _, host := range hostnames {
		hosts = append(hosts, strings.Replace(host, "*", "any", 1))
	}
	first, err := s.ProjectByName(ctx, platform.DefaultProject)
	check(t, err)
	projects = append(projects, first.ID)

	services := func() []store.ServiceRef {
		all, err := s.AllServices(ctx)
		check(t, err)
		return all
	}
	// What clashes with another name is refused, and changes nothing.
	create := func() (made []platform.ID) {
		spec := platform.ServiceSpec{Name: pick(names)}
		if v, err := s.CreateService(ctx, projects[random.IntN(len(projects))], spec.WithDefaults()); err == nil {
			made = append(made, v.ID)
		}
		return made
	}
	rename := func(id platform.ID, name string) {
		v, err := s.Service(ctx, id)
		check(t, err)
		v.Name = name
		_, _ = s.UpdateService(ctx, id, v.ServiceSpec, 0)
	}
	renameProject := func(id platform.ID, name string) {
		p, err := s.Project(ctx, id)
		check(t, err)
		p.Name = name
		_, _ = s.UpdateProject(ctx, id, p.ProjectSpec, 0)
	}
	prove := func(n *node, id platform.ID) {
		host := pick(hostnames)
		d, err := n.AttachDomain(ctx, id, host)
		if err != nil { // it has it, or the name is the control domain's
			return
		}
		dns.TXT(platform.ChallengeDNSName(host), d.Token)
		d, err = n.VerifyDomain(ctx, id, d.ID)
		check(t, err)
		if d.Status != platform.DomainVerified || !n.Ingress.Has(strings.Replace(host, "*", "any", 1)) {
			t.Fatalf("%s is %s: %+v", host, d.Status, d.LastError)
		}
	}

	for step := range 400 {
		var what string
		refs := services()
		if len(refs) < 2 {
			n.Kick(create()...)
			continue
		}
		before := n.hosts
		at := random.Perm(len(refs))
		one, other := refs[at[0]], refs[at[1]]
		switch random.IntN(12) {
		case 0, 1, 2:
			what = "a service is made"
			n.Kick(create()...)
		case 3:
			what = "a service is renamed"
			rename(one.ID, pick(names))
			n.Kick(one.ID)
		case 4:
			what = "two services change names"
			rename(one.ID, "between")
			rename(other.ID, one.Name)
			rename(one.ID, other.Name)
			n.Kick(one.ID, other.ID)
		case 5:
			what = "two projects change names"
			renameProject(projects[0], "between")
			renameProject(projects[1], "one")
			renameProject(projects[0], "two")
			slices.Reverse(projects[:2])
			n.Kick(one.ID)
		case 6:
			what = "a service goes and another has its name"
			check(t, s.DeleteService(ctx, one.ID))
			rename(other.ID, one.Name)
			n.Kick(other.ID)
		case 7, 8, 9:
			what = "a domain is proven"
			prove(n, one.ID)
		case 10:
			what = "a domain of a service that was made elsewhere is proven"
			for _, id := range create() {
				prove(n, id)
			}
			n.Kick()
		case 11:
			what = "domains come and go elsewhere, and the control domain is another"
			prove(elsewhere, one.ID)
			prove(elsewhere, other.ID)
			for _, ref := range refs[:len(refs)/2] {
				list, _, err := s.Domains(ctx, ref.ID, store.Page{})
				check(t, err)
				for _, d := range list {
					by := []*node{n, elsewhere}[random.IntN(2)]
					check(t, by.DetachDomain(ctx, ref.ID, d.ID))
				}
			}
			controlDomain = pick([]string{"", "", "a.test.example", "z.example"})
			check(t, n.rereadRoutes(ctx))
		}
		if got, want := differences(n.Plane, before, n.hosts); !maps.Equal(got, want) {
			t.Fatalf("step %d, %s: changed are %v, want %v", step, what, got, want)
		}
		fresh := newNode(t, o)
		if got, want := n.Routes(), fresh.Routes(); !slices.Equal(got, want) {
			t.Fatalf("step %d, %s: the routes are\n%v\nwant\n%v", step, what, got, want)
		}
		if got, want := n.answers(t, hosts), fresh.answers(t, hosts); !slices.Equal(got, want) {
			t.Fatalf("step %d, %s: the answers are\n%q\nwant\n%q", step, what, got, want)
		}
		if !slices.IsSorted(n.told.Services) {
			t.Fatalf("step %d, %s: told are %s", step, what, n.told.Services)
		}
		if got, want := fmt.Sprint(n.told), fmt.Sprint(fresh.told); got != want {
			t.Fatalf("step %d, %s: told is %s, want %s", step, what, got, want)
		}
	}
}

// A verified domain is routed before the reply is sent, on whichever node it is
// verified.
func TestADomainOfAServiceMadeElsewhereIsRoutedAtOnce(t *testing.T) {
	s, dns := openStore(t), testdns.Start(t)
	n := newNode(t, Options{Store: s, Domains: DomainOptions{Resolver: dns.Addr}})
	project, err := s.ProjectByName(t.Context(), platform.DefaultProject)
	check(t, err)
	spec := platform.ServiceSpec{Name: "web"}
	service, err := s.CreateService(t.Context(), project.ID, spec.WithDefaults())
	check(t, err)
	d, err := n.AttachDomain(t.Context(), service.ID, "shop.example.com")
	check(t, err)
	dns.TXT(platform.ChallengeDNSName(d.Hostname), d.Token)
	d, err = n.VerifyDomain(t.Context(), service.ID, d.ID)
	check(t, err)
	if d.Status != platform.DomainVerified || !n.Ingress.Has("shop.example.com") || !n.Ingress.Has("web.localhost") {
		t.Errorf("it is %s and not routed, or its service is not", d.Status)
	}
}

// What changes while somebody reads all rows is not undone by what was read.
func TestReadingTheRowsUndoesNothing(t *testing.T) {
	ctx := t.Context()
	s, dns := openStore(t), testdns.Start(t)
	n := newNode(t, Options{Store: s, Domains: DomainOptions{Resolver: dns.Addr}})
	project, err := s.ProjectByName(ctx, platform.DefaultProject)
	check(t, err)
	var service platform.Service
	var d platform.Domain
	for _, step := range []struct {
		what               string
		change             func() error
		own, domain, claim bool // the hosts are routed, the challenge is answered
	}{
		{"a service is made", func() (err error) {
			spec := platform.ServiceSpec{Name: "web"}
			service, err = s.CreateService(ctx, project.ID, spec.WithDefaults())
			n.Kick(service.ID)
			return err
		}, true, false, false},
		{"a domain is attached", func() (err error) {
			d, err = n.AttachDomain(ctx, service.ID, "shop.example.com")
			return err
		}, true, false, true},
		{"it is verified", func() error {
			dns.TXT(platform.ChallengeDNSName(d.Hostname), d.Token)
			_, err := n.VerifyDomain(ctx, service.ID, d.ID)
			return err
		}, true, true, true},
		{"it is detached", func() error { return n.DetachDomain(ctx, service.ID, d.ID) }, true, false, false},
		{"the service is deleted", func() error {
			err := s.DeleteService(ctx, service.ID)
			n.Kick(service.ID)
			return err
		}, false, false, false},
	} {
		changes := n.changes
		found, err := n.readRows(ctx)
		check(t, err)
		check(t, step.change())
		check(t, n.useRows(ctx, found, changes))
		own, domain, claim := n.Ingress.Has("web.localhost"), n.Ingress.Has("shop.example.com"), n.Challenge("shop.example.com", d.Token)
		if own != step.own || domain != step.domain || claim != step.claim {
			t.Errorf("%s: the service is routed: %v, the domain: %v, its challenge answered: %v", step.what, own, domain, claim)
		}
	}
}
