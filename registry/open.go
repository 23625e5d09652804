package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Defaults of Options.
const (
	defaultLease         = 24 * time.Hour
	defaultCacheLease    = time.Hour
	defaultUploadTTL     = 24 * time.Hour
	defaultTokenTTL      = 5 * time.Minute
	defaultManifestBytes = 8 << 20
	defaultCacheTTL      = 5 * time.Minute
	defaultCacheBytes    = 10 << 30
	defaultScrubBytes    = 20 << 30

	tokenKeyBytes = 32
)

// Registry serves /v2 and owns the goroutines that keep its store tidy. One
// process at a time may have a store open. All methods may be called
// concurrently.
type Registry struct {
	cfg Config

	locks     *locks
	sessions  *sessions
	seen      *seen
	memo      *memo
	collector *collector
	cache     *cache
	metrics   *metrics

	// returned are quarantined blobs that had a file when the store was opened.
	returned []digest.Digest

	// ctx ends with Close; every goroutine of the registry is in tasks.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex // guards closed against spawn
	closed bool

	// serving is read-locked by each request. Close takes it and keeps it, so
	// that it returns after the last request and none begins any more.
	serving sync.RWMutex
	once    sync.Once
}

// Open makes a Registry of its parts and brings the store into order after
// whatever ended the process before. It starts nothing: requests may be served
// from now on, Start begins the work in the background.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	g := &Registry{cfg: cfg, locks: newLocks(), seen: newSeen(), memo: newMemo(), metrics: newMetrics()}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.sessions = newSessions(cfg.Storage, g.now, g.metrics.uploads)
	g.collector = newCollector(g)
	g.cache = newCache(g)
	if err := g.recover(ctx); err != nil {
		g.cancel()
		return nil, fmt.Errorf("bringing the registry's store into order: %w", err)
	}
	return g, nil
}

func (c *Config) complete() error {
	switch {
	case c.Storage == nil, c.Metadata == nil, c.Log == nil,
		c.Authenticate == nil, c.Authorize == nil, c.OnPush == nil, c.OnDelete == nil, c.Reserved == nil, c.Keep == nil:
		return errors.New("registry: an incomplete Config")
	case len(c.TokenKey) < tokenKeyBytes:
		return fmt.Errorf("registry: TokenKey has %d bytes and needs %d", len(c.TokenKey), tokenKeyBytes)
	}
	o := &c.Options
	setDefault(&o.Lease, defaultLease)
	setDefault(&o.CacheLease, defaultCacheLease)
	setDefault(&o.UploadTTL, defaultUploadTTL)
	setDefault(&o.TokenTTL, defaultTokenTTL)
	setDefault(&o.ManifestBytes, defaultManifestBytes)
	setDefault(&o.CacheTTL, defaultCacheTTL)
	setDefault(&o.CacheBytes, defaultCacheBytes)
	setDefault(&o.ScrubBytes, defaultScrubBytes)
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// Start begins collecting, scrubbing, healing and expiring. Call it once.
func (g *Registry) Start() {
	g.spawn(g.collector.run)
	if len(g.returned) > 0 {
		g.spawn(g.heal)
	}
}

// spawn runs task in a goroutine that Close waits for; the task's context ends
// with Close. False: the registry is closed already, and nothing was run.
func (g *Registry) spawn(task func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.tasks.Go(func() { task(g.ctx) })
	return true
}

// Close ends the work in the background, breaks off uploads and downloads that
// are under way, and returns when the last goroutine and the last request have
// ended. Later requests are answered with 503.
func (g *Registry) Close() error {
	g.once.Do(func() {
		g.mu.Lock()
		g.closed = true
		g.mu.Unlock()
		g.cancel()
		g.serving.Lock()
		g.tasks.Wait()
	})
	return nil
}

func (g *Registry) now() time.Time { return g.cfg.Now() }

// step marks a point that a crash could follow.
func (g *Registry) step(name string) {
	if g.cfg.Failpoint != nil {
		g.cfg.Failpoint(name)
	}
}

// leaseTime is for how long what is asked for now is safe in a repository.
func (g *Registry) leaseTime(grant Grant) time.Duration {
	if grant.Upstream != nil {
		return g.cfg.CacheLease
	}
	return g.cfg.Lease
}

// lease is until when what is asked for now is safe in a repository.
func (g *Registry) lease(grant Grant) time.Time {
	return g.now().Add(g.leaseTime(grant))
}

// renewable tells whether so much of a lease is used up that it is worth a
// write. What was promised to a client therefore is three quarters of a lease.
func (g *Registry) renewable(grant Grant, lease time.Time) bool {
	full := g.leaseTime(grant)
	return lease.Sub(g.now()) < full-full/4
}
