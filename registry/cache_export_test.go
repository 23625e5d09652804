package registry

import "time"

// SetCachePatience shortens what the cache waits for. Call it while there is no
// request.
func SetCachePatience(g *Registry, ask, stall time.Duration) {
	p := &g.cache.patience
	p.compare, p.manifest, p.header, p.stall = ask, ask, ask, stall
	g.cache.upstreams.close()
	g.cache.upstreams = newUpstreams(g.now, ask)
}

// SetCacheBounds shortens for how long an upstream may be slow, a download
// waits for its turn, and it goes on alone. Call it while there is no request.
func SetCacheBounds(g *Registry, pace, turn, alone time.Duration) {
	p := &g.cache.patience
	p.pace, p.turn, p.alone = pace, turn, alone
}

// AllowCacheRedirects lets an upstream redirect to this machine, where a test
// has its other hosts. Call it while there is no request.
func AllowCacheRedirects(g *Registry) {
	g.cache.upstreams.outside = g.cache.upstreams.anywhere
}
