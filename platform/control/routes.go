package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
)

// Names are the hosts that may have a certificate.
type Names struct {
	Domains  []platform.DomainName // verified, by host name
	Services []string              // services' own, below the base domain, unless TLS is off; in order
}

// hosts is what the route table was last made from. It is guarded by
// Plane.routesMu; what it refers to is replaced and never changed.
type hosts struct {
	known    bool
	services []store.ServiceRef
	byID     map[platform.ID]store.ServiceRef
	names    Names
}

// find tells where in the domains a host name stands or would.
func (h *hosts) find(hostname string) (int, bool) {
	return slices.BinarySearchFunc(h.names.Domains, hostname, func(d platform.DomainName, name string) int {
		return strings.Compare(d.Hostname, name)
	})
}

// changeRoutes waits until it is one's turn to write what decides about routes or
// challenges; done ends it. What was read of the rows before is old by then.
func (p *Plane) changeRoutes() (done func()) {
	p.routesMu.Lock()
	p.changes++
	return p.routesMu.Unlock
}

// rebuildRoutes makes the table that of the services' rows and the domains as
// they are known.
func (p *Plane) rebuildRoutes(ctx context.Context) error {
	defer p.changeRoutes()()
	return p.rereadServices(ctx)
}

// rereadServices is called with p.routesMu held.
func (p *Plane) rereadServices(ctx context.Context) error {
	services, err := p.Store.AllServices(ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	p.route(services, p.hosts.names.Domains)
	return nil
}

// rows are all that routes and challenges follow from.
type rows struct {
	services []store.ServiceRef
	domains  []platform.DomainName // verified, in order
	claims   map[tokenHash]claim
}

func (p *Plane) readRows(ctx context.Context) (r rows, err error) {
	refs, err := p.Store.AllDomains(ctx)
	if err != nil {
		return r, fmt.Errorf("reading the domains: %w", err)
	}
	for _, ref := range refs {
		if ref.Verified {
			r.domains = append(r.domains, platform.DomainName{Hostname: ref.Hostname, ServiceID: ref.ServiceID})
		}
	}
	slices.SortFunc(r.domains, func(a, b platform.DomainName) int { return cmp.Compare(a.Hostname, b.Hostname) })
	r.claims = claimsOf(refs)
	if r.services, err = p.Store.AllServices(ctx); err != nil {
		return r, fmt.Errorf("reading the services: %w", err)
	}
	return r, nil
}

// rereadRoutes makes the table that of all rows, which another node may have
// changed. Many take long to read: that is done before others have to wait, and
// once more while they do only if one of them has changed something meanwhile.
func (p *Plane) rereadRoutes(ctx context.Context) error {
	p.routesMu.Lock()
	changes := p.changes
	p.routesMu.Unlock()
	found, err := p.readRows(ctx)
	if err != nil {
		return err
	}
	return p.useRows(ctx, found, changes)
}

// useRows takes over rows that were read after so many changes.
func (p *Plane) useRows(ctx context.Context, found rows, changes uint64) (err error) {
	p.routesMu.Lock()
	defer p.routesMu.Unlock()
	if p.changes != changes {
		if found, err = p.readRows(ctx); err != nil {
			return err
		}
	}
	p.claims.replace(found.claims)
	p.route(found.services, found.domains)
	return nil
}

// followRows reads the routes again and again, on every node: soon after another
// one may have changed them, and where there is none, as memory may have missed
// something while the store did not answer. Nothing that waits for the engine
// holds it up.
func (p *Plane) followRows() {
	pause := time.Minute
	if p.Store.Shared() {
		pause = leaseTTL / 3
	}
	for {
		sleep(p.ctx, pause)
		if p.ctx.Err() != nil {
			return
		}
		if err := p.rereadRoutes(p.ctx); err != nil {
			p.logFailure("reading the routes", err)
		}
	}
}

// route makes the table that of the services, and of those of the domains, which
// are in order, whose service exists and whose host name is not Denia's own. A
// service's own host goes first: probes carry it. p.routesMu must be held.
func (p *Plane) route(refs []store.ServiceRef, domains []platform.DomainName) {
	next := hosts{known: true, services: refs, byID: make(map[platform.ID]store.ServiceRef, len(refs))}
	next.names.Services = make([]string, 0, len(refs))
	for _, ref := range refs {
		next.byID[ref.ID] = ref
		if ref.TLS != "off" {
			next.names.Services = append(next.names.Services, p.hostOf(ref))
		}
	}
	slices.Sort(next.names.Services)
	next.names.Domains = make([]platform.DomainName, 0, len(domains))
	for _, d := range domains {
		ref, known := next.byID[d.ServiceID]
		if known && p.checkReserved(d.Hostname) == nil {
			d.TLS = ref.TLS
			next.names.Domains = append(next.names.Domains, d)
		}
	}
	p.claims.keep(func(service platform.ID) bool { _, known := next.byID[service]; return known })
	before := p.hosts
	p.tellNames(next)
	if !before.known {
		p.Ingress.SetRoutes(next.routes(p.hostOf))
		return
	}
	// Nearly always one host has changed, or none. To set 100,000 keeps the
	// ingress from everything else for a third of a second.
	changed := map[string]bool{}
	before.addOthers(changed, &next, p.hostOf)
	next.addOthers(changed, &before, p.hostOf)
	if len(changed) > 0 {
		set := slices.DeleteFunc(next.routes(p.hostOf), func(r ingress.Route) bool { return !changed[r.Host] })
		p.Ingress.Change(set, slices.Collect(maps.Keys(changed)))
	}
}

// addOthers adds the hosts that other has not, or routes to another service.
func (h *hosts) addOthers(to map[string]bool, other *hosts, hostOf func(store.ServiceRef) string) {
	for _, ref := range h.services {
		if there, known := other.byID[ref.ID]; !known || there.HostLabel != ref.HostLabel {
			to[hostOf(ref)] = true
		}
	}
	rest := other.names.Domains
	for _, d := range h.names.Domains {
		for len(rest) > 0 && rest[0].Hostname < d.Hostname {
			rest = rest[1:]
		}
		if len(rest) == 0 || rest[0].Hostname != d.Hostname || rest[0].ServiceID != d.ServiceID {
			to[d.Hostname] = true
		}
	}
}

// meetService makes sure that a service has routes: another node may have made
// it just now. p.routesMu must be held.
func (p *Plane) meetService(ctx context.Context, id platform.ID) error {
	if _, known := p.hosts.byID[id]; known {
		return nil
	}
	return p.rereadServices(ctx)
}

// routeDomain routes a host name to a service, and to nobody else. p.routesMu
// must be held.
func (p *Plane) routeDomain(hostname string, service platform.ID) {
	ref, known := p.hosts.byID[service]
	if !known || p.checkReserved(hostname) != nil {
		return // the service was deleted meanwhile, and the domain with it
	}
	next := p.hosts
	name := platform.DomainName{Hostname: hostname, ServiceID: service, TLS: ref.TLS}
	at, found := next.find(hostname)
	next.names.Domains = slices.Concat(next.names.Domains[:at], []platform.DomainName{name}, next.names.Domains[at:])
	if found {
		next.names.Domains = slices.Delete(next.names.Domains, at+1, at+2)
	}
	p.tellNames(next)
	p.Ingress.Change([]ingress.Route{{Host: hostname, ServiceID: service}}, nil)
}

// unrouteDomain takes a host name away from a service, if it has it. p.routesMu
// must be held.
func (p *Plane) unrouteDomain(hostname string, service platform.ID) {
	next := p.hosts
	at, found := next.find(hostname)
	if !found || next.names.Domains[at].ServiceID != service {
		return
	}
	next.names.Domains = slices.Concat(next.names.Domains[:at], next.names.Domains[at+1:])
	p.tellNames(next)
	p.Ingress.Change(nil, []string{hostname})
}

// tellNames takes next over and passes its names on if they are others than
// before. p.routesMu must be held.
func (p *Plane) tellNames(next hosts) {
	before := p.hosts
	p.hosts = next
	if p.Names == nil || before.known && slices.Equal(before.names.Domains, next.names.Domains) && slices.Equal(before.names.Services, next.names.Services) {
		return
	}
	p.Names(next.names)
}

func (h *hosts) routes(hostOf func(store.ServiceRef) string) []ingress.Route {
	routes := make([]ingress.Route, 0, len(h.services)+len(h.names.Domains))
	for _, ref := range h.services {
		routes = append(routes, ingress.Route{Host: hostOf(ref), ServiceID: ref.ID})
	}
	for _, d := range h.names.Domains {
		routes = append(routes, ingress.Route{Host: d.Hostname, ServiceID: d.ServiceID})
	}
	return routes
}

// Routes lists every host that is routed: services' own first, then domains.
func (p *Plane) Routes() []ingress.Route {
	p.routesMu.Lock()
	defer p.routesMu.Unlock()
	return p.hosts.routes(p.hostOf)
}

func (p *Plane) hostOf(ref store.ServiceRef) string { return ref.HostLabel + "." + p.BaseDomain }

// checkReserved refuses host names that are Denia's own.
func (p *Plane) checkReserved(hostname string) error {
	return platform.CheckReserved(hostname, p.BaseDomain, p.ControlDomain())
}
