package caddymodule

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// acmePath is where authorities look. Caddy answers them by itself; what comes
// further is for somebody else, who has to answer as asked.
const acmePath = "/.well-known/acme-challenge/"

// mayRedirect tells whether the server whose routes are being made may send
// plain requests to https: `auto_https disable_redirects` is Caddy's way to say
// that it may not.
func mayRedirect(ctx caddy.Context) bool {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return !ok || server.AutoHTTPS == nil || !server.AutoHTTPS.DisableRedir
}

// redirect sends a plain request for a verified domain to https, if there is a
// certificate that the client would find there. It tells whether it did.
func (e *Engine) redirect(w http.ResponseWriter, r *http.Request) bool {
	if r.TLS != nil || !e.certificates.secure.some.Load() || r.Method == http.MethodConnect || !strings.HasPrefix(r.URL.Path, "/") || r.URL.Opaque != "" {
		return false
	}
	host := strings.ToLower(bareHost(r.Host))
	if !e.certificates.covers(host) || isChallenge(r.URL.Path) || strings.HasPrefix(r.URL.Path, acmePath) || scheme(r) == "https" {
		return false
	}
	e.ingress.Redirect(w, r, "https://"+host+r.URL.RequestURI())
	return true
}

// secured are the domains that have a certificate, and when it ends. They are
// looked up at each plain request.
type secured struct {
	some  atomic.Bool // until is not empty
	mu    sync.RWMutex
	until map[string]time.Time // by name; by what follows the asterisk for a wildcard
}

// note takes over what is known of a name's certificate.
func (s *secured) note(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.TrimPrefix(e.name, "*")
	if domain := e.kind == domainName || e.kind == childName || e.kind == wildcardName; e.gone || !domain || e.leaf.notAfter.IsZero() {
		delete(s.until, key)
	} else {
		if s.until == nil {
			s.until = map[string]time.Time{}
		}
		s.until[key] = e.leaf.notAfter
	}
	s.some.Store(len(s.until) > 0)
}

// covers tells whether a host may have a certificate and has one, or its
// wildcard has. TLS may be off for it and not for the wildcard.
func (c *certificates) covers(host string) bool {
	if !c.secure.covers(host) {
		return false
	}
	_, known := c.names.Load().find(host)
	return known
}

// covers tells whether a host has a certificate, or its wildcard has one.
func (s *secured) covers(host string) bool {
	dot := strings.IndexByte(host, '.')
	if dot < 1 {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	until, ok := s.until[host]
	if !ok {
		until, ok = s.until[host[dot:]]
	}
	return ok && time.Now().Before(until)
}
