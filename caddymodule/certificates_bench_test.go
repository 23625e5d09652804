package caddymodule

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
)

// BenchmarkUseNames is what it costs to hear of one more domain, and that it is
// gone, beside so many names, half of them services' own.
func BenchmarkUseNames(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCertificates(Certificates{OrdersPerHour: 100, OrdersPerDomain: 50}, "", slog.New(slog.DiscardHandler))
			hosts := make([]string, n/2)
			var services []string
			for i := range hosts {
				hosts[i] = fmt.Sprintf("d%d.example.com", i)
				services = append(services, fmt.Sprintf("s%d.apps.example.net", i))
			}
			without := verified(hosts...)
			slices.Sort(services)
			without.Services = services
			with := control.Names{Domains: append(slices.Clone(without.Domains), platform.DomainName{Hostname: "new.example.com", TLS: "auto"}), Services: services}
			c.useNames(without)
			for b.Loop() {
				c.useNames(with)
				if _, ok := c.names.Load().find("new.example.com"); !ok {
					b.Fatal("the name is not known")
				}
				c.useNames(without)
			}
		})
	}
}
