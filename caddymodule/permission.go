package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/denia-paas/denia/platform"
)

func init() { caddy.RegisterModule(new(Permission)) }

// Permission is `tls.permission.denia`. It permits certificates for verified
// domains and the names their wildcards stand for, for the hosts of services
// and for the control domain, and for nothing else. It answers from memory:
// Caddy asks at each handshake for a name without a certificate, whoever sends
// it.
type Permission struct{ app *App }

// CaddyModule returns the module's id and constructor.
func (*Permission) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "tls.permission.denia", New: func() caddy.Module { return new(Permission) }}
}

// UnmarshalCaddyfile reads `permission denia`; there is nothing to configure.
func (*Permission) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Err("permission denia takes no block")
	}
	return nil
}

// Provision finds the app.
func (p *Permission) Provision(ctx caddy.Context) error {
	module, err := ctx.App("denia")
	if err != nil {
		return fmt.Errorf("loading the app denia: %w", err)
	}
	p.app = module.(*App)
	// Below another module, such as one that asks several, it is not the one.
	if above := ctx.Modules(); len(above) > 1 {
		_, p.app.decides = above[len(above)-2].(*caddytls.TLS)
	}
	return nil
}

// CertificateAllowed implements caddytls.OnDemandPermission.
func (p *Permission) CertificateAllowed(_ context.Context, name string) error {
	engine := p.app.current()
	if engine == nil {
		return fmt.Errorf("%w: Denia is starting", caddytls.ErrPermissionDenied)
	}
	if err := engine.certificates.allow(name); err != nil {
		return fmt.Errorf("%w: %w", caddytls.ErrPermissionDenied, err)
	}
	return nil
}

// kind is why a name may have a certificate.
type kind int

const (
	domainName   kind = iota + 1 // a verified domain
	wildcardName                 // a verified domain that stands for others
	childName                    // one that such a domain stands for
	serviceName                  // a service's host below the base domain
	controlName                  // the control domain
	localName                    // localhost, where the API is without a control domain
)

// eager tells the names whose certificates are fetched before anybody asks. The
// others may be many that nobody ever visits, and authorities bound how many
// there are below one registered domain: they wait for a visitor.
func (k kind) eager() bool { return k == domainName || k == controlName }

// lazy tells the names that are of no concern before somebody asks for them. A
// wildcard is neither: nothing is ordered for it, but whether the operator has a
// certificate for it decides about plain requests.
func (k kind) lazy() bool { return !k.eager() && k != wildcardName }

// names are those that may have a certificate. They are never changed, and the
// two lists, which are the Plane's, are in order: there may be 100,000, and they
// change one by one.
type names struct {
	domains  []platform.DomainName
	services []string
	control  string // empty without a control domain
}

// find tells why name may have a certificate.
func (n *names) find(name string) (kind, bool) {
	if name == "" {
		return 0, false
	}
	if name == n.control {
		return controlName, true
	}
	if name == "localhost" && n.control == "" {
		return localName, true
	}
	if d, ok := n.domain(name); ok {
		// It alone decides, as it does where requests go: the wildcard above it
		// may be another service's.
		switch {
		case d.TLS == "off":
			return 0, false
		case platform.IsWildcard(name):
			return wildcardName, true
		}
		return domainName, true
	}
	if _, ok := slices.BinarySearch(n.services, name); ok {
		return serviceName, true
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		if d, ok := n.domain("*." + parent); ok && d.TLS != "off" {
			return childName, true
		}
	}
	return 0, false
}

func (n *names) domain(name string) (platform.DomainName, bool) {
	i, ok := slices.BinarySearchFunc(n.domains, name, func(d platform.DomainName, name string) int {
		return strings.Compare(d.Hostname, name)
	})
	if !ok {
		return platform.DomainName{}, false
	}
	return n.domains[i], true
}

var (
	errTurn      = errors.New("as many certificates are ordered as authorities allow; this one has to wait for its turn")
	errStrangers = errors.New("too many names below wildcards wait for their first certificate")
	errNobodys   = errors.New("no verified domain, no service and not the control domain")
	errNotPublic = errors.New("no public authority issues for such a name: use `tls internal`, or an authority of your own")
)

// allow is asked before a certificate is read from storage or ordered.
func (c *certificates) allow(name string) error {
	k, ok := c.names.Load().find(name)
	if !ok || platform.IsWildcard(name) {
		return errNobodys
	}
	view := c.automation()
	if k == localName && (view == nil || !view.isFree(name)) {
		return errNobodys // it is this machine's affair, and Caddy's own authority's
	}
	if view != nil && !view.issues(name) {
		return errNotPublic
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	e := c.entries[name]
	switch {
	case e == nil:
		free := view != nil && view.isFree(name)
		if k == childName {
			// Anybody can make up names below a wildcard: there are as many as
			// may be ordered, and as many of others as may be remembered.
			if turn := c.orders.next(name, now); !turn.IsZero() {
				return &waiting{until: turn, because: errTurn.Error()}
			}
			if c.strangers.full(name) {
				if free {
					return nil // it is had again for each visitor who needs it
				}
				return errStrangers
			}
		}
		e = c.add(name, k)
		e.free = free
		c.note(e)
	case e.absent && !e.running && now.Before(e.retry):
		return &waiting{until: e.retry, because: e.err}
	case e.running, e.asked, e.gone, e.valid(now), !k.lazy():
		return nil
	}
	e.asked = true
	c.reschedule(e, now.Add(visited))
	return nil
}

// waiting is why a certificate is not ordered now.
type waiting struct {
	until   time.Time
	because string
}

func (w *waiting) Error() string {
	text := "not before " + w.until.UTC().Format(time.RFC3339)
	if w.because != "" {
		text += ", because: " + w.because
	}
	return text
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Permission)(nil)
	_ caddyfile.Unmarshaler       = (*Permission)(nil)
	_ caddytls.OnDemandPermission = (*Permission)(nil)
)
