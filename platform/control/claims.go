package control

import (
	"crypto/sha256"
	"net"
	"strings"
	"sync"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// claims holds every claim to one host name by its token: challenges are
// answered from memory. Tokens are looked up by their hash, so that the time it
// takes says nothing about them. Safe for concurrent use.
type claims struct {
	mu sync.RWMutex
	of map[tokenHash]claim
}

type tokenHash [sha256.Size]byte

type claim struct {
	hostname string
	service  platform.ID
}

func newClaims() *claims { return &claims{of: map[tokenHash]claim{}} }

// add takes a claim in. One to a wildcard is none to a host that could be
// asked.
func (c *claims) add(hostname, token string, service platform.ID) {
	if platform.IsWildcard(hostname) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[sha256.Sum256([]byte(token))] = claim{hostname, service}
}

func (c *claims) remove(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, sha256.Sum256([]byte(token)))
}

// claimsOf are the claims of the rows.
func claimsOf(rows []store.DomainRef) map[tokenHash]claim {
	of := make(map[tokenHash]claim, len(rows))
	for _, row := range rows {
		if !platform.IsWildcard(row.Hostname) {
			of[sha256.Sum256([]byte(row.Token))] = claim{row.Hostname, row.ServiceID}
		}
	}
	return of
}

// replace has of be the claims.
func (c *claims) replace(of map[tokenHash]claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of = of
}

// keep drops the claims of services that are gone.
func (c *claims) keep(exists func(platform.ID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for token, claim := range c.of {
		if !exists(claim.service) {
			delete(c.of, token)
		}
	}
}

// longestToken bounds what is hashed for a stranger.
const longestToken = 128

// Challenge tells whether token is that of a claim to host, given as in a Host
// header: then, and only then, the host's answer to the challenge is the token.
// It asks nothing but memory.
func (p *Plane) Challenge(host, token string) bool {
	if len(token) > longestToken {
		return false
	}
	p.claims.mu.RLock()
	claim, found := p.claims.of[sha256.Sum256([]byte(token))]
	p.claims.mu.RUnlock()
	if !found {
		return false
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.EqualFold(strings.TrimSuffix(host, "."), claim.hostname)
}
