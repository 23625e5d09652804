package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// evictSpare is the part of the budget that an eviction frees more than it
	// has to, so that not every fill after it begins another one.
	evictSpare = 10

	// evictLeased is the part of the budget by which the cache may exceed it
	// before what was used within its lease is given up as well.
	evictLeased = 4

	// budgetStep is the part of the budget that is filled before the whole is
	// counted again.
	budgetStep = 100

	// leastRoom is what a full disk takes from the cache at once: work that
	// meets a full disk needs more than the last byte.
	leastRoom = 256 << 20

	// roomPart is the part of the cache's budget that a full disk takes at
	// most: whoever announces an upload that no disk holds must not empty it.
	roomPart = 8

	// evictPage is how many manifests are looked at in one run.
	evictPage = 10_000

	// edgeCost is about what the database needs for a child of a manifest: the
	// edge, its indexes, and the part of the manifest that names it.
	edgeCost = 512
)

// manifestCost is what manifests of so many bytes and children take of the
// budget.
func manifestCost(size int64, children int) int64 { return size + edgeCost*int64(children) }

// CacheStatus tells how the pull-through cache does. Hits, Misses and
// BytesSaved count since the registry was opened.
type CacheStatus struct {
	Entries    int   // manifests
	TotalBytes int64 // of blobs, each once, and about what manifests take
	Hits       int64 // answered from what was stored or already being fetched
	Misses     int64 // fetched
	BytesSaved int64 // that hits did not fetch

	// OldestEntryAge is how long ago the manifest was used that has been used
	// least lately. Zero: there is none.
	OldestEntryAge time.Duration

	LastCollection *CacheCollection // that gave something up, or was asked for; nil: none since the registry was opened
}

// CacheCollection is one run of giving up what was used least lately.
type CacheCollection struct {
	StartedAt  time.Time
	FinishedAt time.Time
	Manifests  int   // given up
	Bytes      int64 // of what was given up; the collector frees its blobs next
	Left       int64 // bytes that the cache has still
	Err        error
}

// CacheStatus counts what the cache holds, which takes a scan of its links.
func (g *Registry) CacheStatus(ctx context.Context) (CacheStatus, error) {
	h := g.cache
	totals, err := g.cfg.Metadata.PrefixTotals(ctx, CachePrefix)
	if err != nil {
		return CacheStatus{}, fmt.Errorf("counting the cache: %w", err)
	}
	status := CacheStatus{
		Entries:        totals.Manifests,
		TotalBytes:     cost(totals),
		Hits:           h.hits.Load(),
		Misses:         h.misses.Load(),
		BytesSaved:     h.saved.Load(),
		LastCollection: h.last.Load(),
	}
	if !totals.OldestLease.IsZero() {
		used := totals.OldestLease.Add(-g.cfg.CacheLease)
		status.OldestEntryAge = max(0, g.now().Sub(used))
	}
	return status, nil
}

// CacheCollect brings the cache below its budget, Options.CacheBytes: the
// manifests used least lately go first, with the blobs only they need. What was
// used within Options.CacheLease stays, unless the budget is exceeded by a
// quarter; what Config.Keep wants stays in any case. It also removes what a
// crash left of downloads. One runs at a time; while another one does, it fails
// with ErrCollecting.
func (g *Registry) CacheCollect(ctx context.Context) (CacheCollection, error) {
	select {
	case g.cache.collecting <- struct{}{}:
		defer g.cache.finish()
	default:
		return CacheCollection{}, ErrCollecting
	}
	if err := g.cache.sweep(ctx); err != nil {
		return CacheCollection{}, err
	}
	run := g.cache.collect(ctx, g.cfg.CacheBytes, true)
	return run, run.Err
}

// grown notes that n bytes were stored, and has the budget looked at when
// enough of them were.
func (h *cache) grown(n int64) {
	budget := h.g.cfg.CacheBytes
	if h.filled.Add(n) < max(1, budget/budgetStep) {
		return
	}
	h.filled.Store(0)
	h.background(func(context.Context) int64 { return budget })
}

// MakeRoom has the cache of other registries give up about n bytes, in the
// background, because the disk lacks them, but no more than an eighth of its
// budget at a time. What was used lately goes last.
func (g *Registry) MakeRoom(n int64) {
	g.cache.shrink(min(max(n, leastRoom), g.cfg.CacheBytes/roomPart))
}

// shrink makes the cache give up n bytes in the background, because the disk
// lacks them.
func (h *cache) shrink(n int64) {
	h.background(func(ctx context.Context) int64 {
		total, err := h.total(ctx)
		if err != nil {
			return h.g.cfg.CacheBytes // the collection meets the error again, and reports it
		}
		return max(0, total-n)
	})
}

// background runs a collection to the budget. While one is under way, which may
// have counted already, it has another one follow.
func (h *cache) background(budget func(ctx context.Context) int64) {
	h.again.Store(true)
	select {
	case h.collecting <- struct{}{}:
		h.again.Store(false)
	default:
		return
	}
	err := h.spawn(func(ctx context.Context) {
		defer h.finish()
		if run := h.collect(ctx, budget(ctx), false); run.Err != nil && ctx.Err() == nil {
			h.g.cfg.Log.ErrorContext(ctx, "registry could not bring the cache below its budget", "err", run.Err)
		}
	})
	if err != nil {
		<-h.collecting
	}
}

// finish ends a collection, and begins the one that is to follow.
func (h *cache) finish() {
	<-h.collecting
	if h.again.Load() {
		h.background(func(context.Context) int64 { return h.g.cfg.CacheBytes })
	}
}

// collect brings the cache below a budget. h.collecting must be held. A run that
// nobody asked for, and that had nothing to do, is not worth remembering.
func (h *cache) collect(ctx context.Context, budget int64, asked bool) CacheCollection {
	run := CacheCollection{StartedAt: h.g.now()}
	run.Err = h.evict(ctx, budget, &run)
	run.FinishedAt = h.g.now()
	if run.Manifests > 0 {
		h.g.collector.kick()
		h.g.cfg.Log.InfoContext(ctx, "registry gave up cached images to keep within the cache's budget",
			"manifests", run.Manifests, "bytes", run.Bytes, "left", run.Left, "budget", budget)
	}
	if last := run; asked || run.Manifests > 0 || run.Err != nil {
		h.last.Store(&last)
	}
	return run
}

func (h *cache) evict(ctx context.Context, budget int64, run *CacheCollection) error {
	total, err := h.total(ctx)
	if err != nil {
		return err
	}
	before := total
	defer func() { run.Left, run.Bytes = total, before-total }()
	if total <= budget {
		return nil
	}
	refs, err := h.g.cfg.Metadata.Oldest(ctx, CachePrefix, evictPage)
	if err != nil {
		return fmt.Errorf("listing what was used least lately: %w", err)
	}
	refs, err = h.dispensable(ctx, refs)
	if err != nil {
		return err
	}
	now := h.g.now()
	for _, pass := range []struct {
		leased   bool // within its lease, a manifest may be in the middle of being pulled
		from, to int64
	}{
		{false, budget, budget - budget/evictSpare},
		{true, budget + budget/evictLeased, budget},
	} {
		if total <= pass.from {
			break
		}
		estimate := total
		for _, ref := range refs {
			if now.Before(ref.Lease) != pass.leased {
				continue
			}
			freed, err := h.giveUp(ctx, ref)
			if err != nil {
				return err
			}
			run.Manifests++
			if estimate -= freed; estimate > pass.to {
				continue
			}
			// What another repository has as well is not freed yet.
			if total, err = h.total(ctx); err != nil {
				return err
			}
			if estimate = total; total <= pass.to {
				break
			}
		}
		if total, err = h.total(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cost is what counts of the cache against its budget.
func cost(t oci.Totals) int64 { return t.PhysicalBytes + manifestCost(t.ManifestBytes, t.Edges) }

// total is how many bytes the cache has.
func (h *cache) total(ctx context.Context) (int64, error) {
	totals, err := h.g.cfg.Metadata.PrefixTotals(ctx, CachePrefix)
	if err != nil {
		return 0, fmt.Errorf("counting the cache: %w", err)
	}
	return cost(totals), nil
}

// dispensable returns those of the manifests that nothing outside of the
// registry needs, neither directly nor as part of an index.
func (h *cache) dispensable(ctx context.Context, refs []oci.Ref) ([]oci.Ref, error) {
	type key struct {
		repo   string
		digest digest.Digest
	}
	kept := map[key]bool{}
	for _, ref := range refs {
		keep, err := h.g.cfg.Keep(ctx, ref.Repo, ref.Digest)
		if err != nil {
			return nil, fmt.Errorf("asking who else needs manifest %s: %w", ref.Digest, err)
		}
		if !keep {
			continue
		}
		kept[key{ref.Repo, ref.Digest}] = true
		_, children, err := h.children(ctx, ref)
		if err != nil {
			return nil, err
		}
		for _, child := range children {
			kept[key{ref.Repo, child.Digest}] = true
		}
	}
	var rest []oci.Ref
	for _, ref := range refs {
		if !kept[key{ref.Repo, ref.Digest}] {
			rest = append(rest, ref)
		}
	}
	return rest, nil
}

// children lists what a stored manifest refers to, and tells how large it is;
// nothing if it is gone.
func (h *cache) children(ctx context.Context, ref oci.Ref) (size int64, list []oci.Child, err error) {
	m, found, err := h.g.cfg.Metadata.Manifest(ctx, ref.Repo, ref.Digest)
	if err != nil {
		return 0, nil, fmt.Errorf("reading manifest %s: %w", ref.Digest, err)
	}
	if !found {
		return 0, nil, nil
	}
	parsed, err := oci.ParseManifest(m.Content, m.MediaType)
	if err != nil {
		return 0, nil, fmt.Errorf("reading manifest %s: %w", ref.Digest, err)
	}
	return m.Size, parsed.Children, nil
}

// giveUp deletes a manifest, and unlinks the blobs that no other manifest of its
// repository needs, without waiting for their leases: whoever wants one after
// all gets it from the upstream again. It returns how many bytes of the
// budget that frees.
func (h *cache) giveUp(ctx context.Context, ref oci.Ref) (freed int64, err error) {
	metadata := h.g.cfg.Metadata
	size, children, err := h.children(ctx, ref)
	if err != nil {
		return 0, err
	}
	defer h.g.memo.drop(ref.Repo)
	if _, err := metadata.DeleteManifest(ctx, ref.Repo, ref.Digest); err != nil {
		return 0, fmt.Errorf("deleting manifest %s: %w", ref.Digest, err)
	}
	freed = manifestCost(size, len(children))
	for _, child := range children {
		link, found, err := metadata.Blob(ctx, ref.Repo, child.Digest)
		if err != nil {
			return freed, fmt.Errorf("looking for blob %s: %w", child.Digest, err)
		}
		if !found {
			continue
		}
		unlinked, err := metadata.UnlinkBlob(ctx, ref.Repo, child.Digest)
		switch {
		case errors.Is(err, oci.ErrInUse):
		case err != nil:
			return freed, fmt.Errorf("unlinking blob %s: %w", child.Digest, err)
		case unlinked:
			freed += link.Size
		}
	}
	return freed, nil
}

// sweep removes the downloads that nobody is writing to: a crash ended them.
func (h *cache) sweep(ctx context.Context) error {
	uploads, err := h.g.cfg.Storage.Uploads(ctx)
	if err != nil {
		return fmt.Errorf("listing uploads: %w", err)
	}
	// Listed first: what is begun after that is not in the list.
	h.mu.Lock()
	running := map[string]bool{}
	for _, f := range h.downloads {
		running[f.upload] = true
	}
	h.mu.Unlock()
	for _, upload := range uploads {
		if !strings.HasPrefix(upload.ID, downloadPrefix) || running[upload.ID] {
			continue
		}
		if err := h.g.cfg.Storage.Abort(ctx, upload.ID); err != nil {
			return fmt.Errorf("removing the broken download %s: %w", upload.ID, err)
		}
	}
	return nil
}
