package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// CachePrefix begins the keys of the repositories whose content is fetched from
// other registries, and which share the budget Options.CacheBytes.
const CachePrefix = "cache:"

// cachePatience bounds what the cache waits for.
type cachePatience struct {
	compare  time.Duration // for an upstream to say whether a tag still means the same
	manifest time.Duration // for a manifest, whole
	header   time.Duration // for the beginning of an answer, and for a handshake
	stall    time.Duration // for the next byte of a blob
	pace     time.Duration // for what makes leastRate of it
	turn     time.Duration // for other downloads to make room for one
	alone    time.Duration // for somebody to read a download that nobody reads
}

var defaultCachePatience = cachePatience{
	compare:  10 * time.Second,
	manifest: 30 * time.Second,
	header:   20 * time.Second,
	stall:    30 * time.Second,
	pace:     30 * time.Second,
	turn:     15 * time.Second,
	alone:    time.Minute,
}

// cache answers for the repositories that have an upstream: from what is
// stored, or else by fetching it. What it stores is ordinary content, seen
// through links like any other and collected like any other; only the eviction
// by budget is its own.
//
// Everything that is asked of an upstream is asked in a goroutine of the
// registry, once for all who wait for it, so that a client that goes away takes
// nothing from the others.
type cache struct {
	g         *Registry
	patience  cachePatience
	upstreams *upstreams
	awake     sync.Once
	slots     chan struct{} // holds a token for each download that has its turn

	mu        sync.Mutex // guards what is below
	questions map[questionKey]*question
	downloads map[downloadKey]*download
	lanes     map[laneKey]*lane

	hits, misses, saved atomic.Int64

	filled     atomic.Int64  // bytes stored since the budget was last looked at
	collecting chan struct{} // holds one token while a collection runs
	again      atomic.Bool   // another one has to follow it
	last       atomic.Pointer[CacheCollection]
}

func newCache(g *Registry) *cache {
	h := &cache{
		g:          g,
		patience:   defaultCachePatience,
		slots:      make(chan struct{}, maxDownloads),
		questions:  map[questionKey]*question{},
		downloads:  map[downloadKey]*download{},
		lanes:      map[laneKey]*lane{},
		collecting: make(chan struct{}, 1),
	}
	h.upstreams = newUpstreams(g.now, h.patience.header)
	return h
}

// spawn runs task as Registry.spawn does. The first call also removes what a
// crash left of downloads, and sees to it that no idle connection outlives the
// registry.
func (h *cache) spawn(task func(ctx context.Context)) error {
	h.awake.Do(func() {
		h.g.spawn(func(ctx context.Context) {
			if err := h.sweep(ctx); err != nil && ctx.Err() == nil {
				h.g.cfg.Log.WarnContext(ctx, "registry could not remove what is left of downloads", "err", err)
			}
			<-ctx.Done()
			h.upstreams.close()
		})
	})
	if !h.g.spawn(task) {
		return errors.New("the registry is shut down")
	}
	return nil
}

// questionKey tells questions to upstreams apart. Nobody shares the answer to
// one who may see another repository.
type questionKey struct {
	kind string // "manifest", "tag" or "blob"
	repo string
	ref  string
}

// question is one that an upstream is being asked.
type question struct {
	answered chan struct{}
	answer   any // set before answered is closed
	err      error
}

// once asks a question, or waits for the answer somebody else is waiting for.
// It fails with the error of ctx when that ends first; the question is asked to
// the end then nevertheless.
func (h *cache) once(ctx context.Context, key questionKey, ask func(ctx context.Context) (any, error)) (any, error) {
	h.mu.Lock()
	q := h.questions[key]
	if q == nil {
		q = &question{answered: make(chan struct{})}
		h.questions[key] = q
		err := h.spawn(func(ctx context.Context) {
			q.answer, q.err = ask(ctx)
			h.mu.Lock()
			delete(h.questions, key)
			h.mu.Unlock()
			close(q.answered)
		})
		if err != nil {
			delete(h.questions, key)
			h.mu.Unlock()
			return nil, err
		}
	}
	h.mu.Unlock()
	select {
	case <-q.answered:
		return q.answer, q.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hit counts content that was answered from the store, miss what had to be
// fetched.
func (h *cache) hit() {
	h.hits.Add(1)
	h.g.metrics.cacheHits.Inc()
}

func (h *cache) miss() {
	h.misses.Add(1)
	h.g.metrics.cacheMisses.Inc()
}

// save counts n bytes that a call was answered with from the store.
func (h *cache) save(c *call, n int64) {
	if c.r.Method == http.MethodGet {
		h.saved.Add(n)
		h.g.metrics.cacheSaved.Add(float64(n))
	}
}

// refuse answers for what an upstream did not give. unknown is the code for
// what the upstream does not have. Nothing the upstream wrote gets into the
// answer.
func (c *call) refuse(err error, unknown, what string) {
	var failed *upstreamError
	if !errors.As(err, &failed) {
		c.failed(err)
		return
	}
	up := c.grant.Upstream
	if failed.retry > 0 {
		c.w.Header().Set("Retry-After", seconds(failed.retry))
	}
	switch {
	case failed.unknown():
		c.fail(http.StatusNotFound, unknown, fmt.Sprintf("%s has no %s in %s", up.Host, what, up.Repository), nil)
		return
	case failed.denied():
		credentials := "no credentials are set for it"
		if up.Username != "" || up.Password != "" {
			credentials = "the credentials set for it do not suffice"
		}
		c.fail(http.StatusForbidden, codeDenied, fmt.Sprintf("%s refused %s in %s: it is not there, or %s", up.Host, what, up.Repository, credentials), nil)
		return
	}
	c.log(slog.LevelWarn, "registry could not fetch from another registry",
		"upstream", up.Host, "repository", up.Repository, "what", what, "err", failed.cause)
	switch {
	case failed.limited():
		if failed.retry == 0 {
			c.w.Header().Set("Retry-After", seconds(backOffFirst))
		}
		c.fail(http.StatusTooManyRequests, codeTooManyRequests, up.Host+" limits how often it may be asked, and the limit is reached", nil)
	case failed.timeout:
		c.fail(http.StatusGatewayTimeout, codeUnavailable, up.Host+" did not answer in time", nil)
	case failed.bad:
		c.fail(http.StatusBadGateway, codeUnavailable, up.Host+" sent something else than what it was asked for", nil)
	default:
		c.fail(http.StatusBadGateway, codeUnavailable, up.Host+" could not be asked", nil)
	}
}

// warnStale tells the client that what it gets may be out of date: a Warning of
// the form the distribution specification has ("Warnings").
func (c *call) warnStale(err error) {
	reason := "could not be asked"
	var failed *upstreamError
	switch {
	case errors.As(err, &failed) && failed.limited():
		reason = "limits how often it may be asked"
	case errors.As(err, &failed) && failed.timeout:
		reason = "did not answer in time"
	}
	host := strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' {
			return '_'
		}
		return r
	}, c.grant.Upstream.Host)
	c.w.Header().Add("Warning", fmt.Sprintf(`299 - "%s %s; this is what was stored earlier"`, host, reason))
	c.metrics.cacheStale.Inc()
}
