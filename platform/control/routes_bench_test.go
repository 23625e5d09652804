package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// many makes a Plane that routes a service and so many domains of its, and tells
// its names to somebody who looks at each.
func many(b *testing.B, n int) (*Plane, platform.ID) {
	b.Helper()
	s := openStore(b)
	project, err := s.ProjectByName(b.Context(), platform.DefaultProject)
	check(b, err)
	spec := platform.ServiceSpec{Name: "web"}
	service, err := s.CreateService(b.Context(), project.ID, spec.WithDefaults())
	check(b, err)
	var domains []platform.DomainName
	for i := range n {
		domains = append(domains, platform.DomainName{Hostname: fmt.Sprintf("d%d.example.com", i), ServiceID: service.ID})
	}
	slices.SortFunc(domains, func(a, b platform.DomainName) int { return strings.Compare(a.Hostname, b.Hostname) })
	p := New(Options{Store: s, Ingress: ingress.New(ingress.Options{}), Names: func(names Names) {
		for _, d := range names.Domains {
			if d.TLS != "auto" {
				b.Errorf("the TLS of %s is %q", d.Hostname, d.TLS)
			}
		}
	}})
	b.Cleanup(p.Ingress.Close)
	p.routesMu.Lock()
	defer p.routesMu.Unlock()
	services, err := s.AllServices(b.Context())
	check(b, err)
	p.route(services, domains)
	return p, service.ID
}

// BenchmarkRouteDomain is the way from a row that says verified to a route that
// is visible, and back, beside so many other domains.
func BenchmarkRouteDomain(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, service := many(b, n)
			i := 0
			for b.Loop() {
				host := fmt.Sprintf("new%d.example.com", i)
				p.routeDomain(host, service)
				if !p.Ingress.Has(host) {
					b.Fatal("the host is not routed")
				}
				p.unrouteDomain(host, service)
				i++
			}
			if len(p.hosts.names.Domains) != n || !slices.IsSortedFunc(p.hosts.names.Domains, func(a, b platform.DomainName) int { return strings.Compare(a.Hostname, b.Hostname) }) {
				b.Error("the domains are not what they were")
			}
		})
	}
}

// BenchmarkKick is what a change of a service costs in which no host changes.
func BenchmarkKick(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, service := many(b, n)
			for b.Loop() {
				p.Kick(service)
			}
		})
	}
}
