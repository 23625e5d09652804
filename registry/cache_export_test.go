package registry

import "time"

// SetCachePatience shortens what the cache waits for. Call it while there is no
// request.
func SetCachePatience(g *Registry, ask, stall time.Duration) {
	g.cache.patience = cachePatience{compare: ask, manifest: ask, header: ask, stall: stall}
	g.cache.upstreams.close()
	g.cache.upstreams = newUpstreams(g.now, ask)
}
