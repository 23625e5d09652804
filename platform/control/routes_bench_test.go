package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
)

// BenchmarkRouteDomain is the way from a row that says verified to a route that
// is visible, and back, beside so many other domains.
func BenchmarkRouteDomain(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := Options{Ingress: ingress.New(ingress.Options{})}
			o.defaults()
			defer o.Ingress.Close()
			p := &Plane{Options: o}
			p.hosts.byID = map[platform.ID]store.ServiceRef{"service": {ID: "service", HostLabel: "web", TLS: "auto"}}
			for i := range n {
				p.hosts.names.Domains = append(p.hosts.names.Domains, platform.DomainName{Hostname: fmt.Sprintf("d%d.example.com", i), ServiceID: "service"})
			}
			slices.SortFunc(p.hosts.names.Domains, func(a, b platform.DomainName) int { return strings.Compare(a.Hostname, b.Hostname) })
			p.Ingress.SetRoutes(p.hosts.routes(p.hostOf))
			i := 0
			for b.Loop() {
				host := fmt.Sprintf("new%d.example.com", i)
				p.routeDomain(host, "service")
				if !p.Ingress.Has(host) {
					b.Fatal("the host is not routed")
				}
				p.unrouteDomain(host, "service")
				i++
			}
			if len(p.hosts.names.Domains) != n || !slices.IsSortedFunc(p.hosts.names.Domains, func(a, b platform.DomainName) int { return strings.Compare(a.Hostname, b.Hostname) }) {
				b.Error("the domains are not what they were")
			}
		})
	}
}
