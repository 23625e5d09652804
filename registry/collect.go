package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// reviewsAtOnce bounds what the collector holds in memory.
	reviewsAtOnce = 64

	// retryAfter is how long what failed is left alone, so that one broken
	// blob holds up nothing but itself.
	retryAfter = time.Minute

	// lookAgain is how often the list of reviews is looked at though nobody
	// asked for it.
	lookAgain = time.Minute

	// longestRest bounds the pause between two steps of a collection.
	longestRest = 10 * time.Millisecond
)

// ErrCollecting says that a collection that was asked for is under way.
var ErrCollecting = errors.New("a collection of the registry is under way")

// Collection is what a run of the collector came to, or would come to.
type Collection struct {
	StartedAt  time.Time
	FinishedAt time.Time // zero: under way
	DryRun     bool      // nothing was touched
	Scanned    int       // manifests, links and blobs that were looked at
	Manifests  int       // deleted, like all that follow
	Links      int
	Blobs      int
	Uploads    int   // nobody wrote to any more
	Bytes      int64 // freed on disk
	Err        error // the first failure; what failed is tried again
}

// collector deletes what nobody needs any more, while the registry serves.
//
// Whatever may have become garbage stands on Metadata's list of reviews. Each
// review is one transaction that decides from what it reads itself. A blob
// goes in three: it is condemned, so that nobody finds it; then, under the
// lock of its digest and if it still is condemned, its file is put aside and
// its row deleted. A push of the digest either makes the row live before, and
// the collector lets go of it, or comes after, and starts from nothing.
type collector struct {
	g     *Registry
	wake  chan struct{} // a signal is never lost: one is kept
	turn  chan struct{} // held during a run
	asked atomic.Bool   // a run that was asked for is under way

	// These belong to who has the turn.
	nextExpiry time.Time // of uploads
	trash      bool      // there may be something in the trash

	mu      sync.Mutex
	current *Collection
	last    *Collection
}

func newCollector(g *Registry) *collector {
	return &collector{
		g:    g,
		wake: make(chan struct{}, 1),
		turn: make(chan struct{}, 1),
	}
}

// kick has the list of reviews looked at soon. It never waits.
func (c *collector) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run collects and scrubs until ctx ends, and returns when nothing of it is
// left running.
func (c *collector) run(ctx context.Context) {
	var scrubbing sync.WaitGroup
	scrubbing.Go(func() { c.scrub(ctx) })
	defer scrubbing.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case c.turn <- struct{}{}:
		}
		run, next := c.collect(ctx)
		<-c.turn
		wait := lookAgain
		if !next.IsZero() {
			wait = min(wait, max(next.Sub(c.g.now()), 0))
		}
		if run.Err != nil {
			wait = max(wait, time.Second)
		}
		timer.Reset(wait)
	}
}

// Collect deletes everything that is due, and drops uploads nobody writes to,
// as the collector does by itself as soon as something falls due. It returns
// when all that was due at its start was looked at, or ctx ends. One run can
// be asked for at a time, others fail with ErrCollecting.
//
// A dry run only counts what a run would delete now, at any time.
func (g *Registry) Collect(ctx context.Context, dryRun bool) (Collection, error) {
	c := g.collector
	if dryRun {
		return c.preview(ctx)
	}
	if !c.asked.CompareAndSwap(false, true) {
		return Collection{}, ErrCollecting
	}
	defer c.asked.Store(false)
	select {
	case <-ctx.Done():
		return Collection{}, fmt.Errorf("waiting for the collection under way: %w", ctx.Err())
	case c.turn <- struct{}{}:
	}
	defer func() { <-c.turn }()
	c.nextExpiry = time.Time{}
	run, _ := c.collect(ctx)
	return run, run.Err
}

// collect works off what is due now, and tells when the next review falls due.
func (c *collector) collect(ctx context.Context) (run Collection, next time.Time) {
	run.StartedAt = c.g.now()
	c.report(run)
	next, err := c.workOff(ctx, &run)
	if err != nil && ctx.Err() == nil {
		c.failed(ctx, &run, err)
	}
	if run.Err == nil {
		run.Err = ctx.Err()
	}
	run.FinishedAt = c.g.now()
	c.finished(run)
	return run, next
}

// workOff fails when the metadata cannot be reached. Whatever else fails is
// noted in run and put off.
func (c *collector) workOff(ctx context.Context, run *Collection) (next time.Time, err error) {
	g := c.g
	if !run.StartedAt.Before(c.nextExpiry) {
		c.nextExpiry = run.StartedAt.Add(g.cfg.UploadTTL / 24)
		if err := c.expireUploads(ctx, run); err != nil {
			c.failed(ctx, run, err)
		}
	}
	c.emptyTrash(ctx, run) // what a run left that was broken off
	for {
		// What falls due later is for the next run, so that this one ends;
		// what a review finds next is due at once.
		due, next, err := g.cfg.Metadata.Due(ctx, run.StartedAt, reviewsAtOnce)
		if err != nil {
			return time.Time{}, fmt.Errorf("listing what may be garbage: %w", err)
		}
		for _, r := range due {
			began := time.Now()
			if err := c.review(ctx, r, run); err != nil {
				if err := c.putOff(ctx, r, run); err != nil {
					return time.Time{}, err
				}
				if ctx.Err() != nil {
					return time.Time{}, ctx.Err()
				}
				c.failed(ctx, run, err)
			}
			run.Scanned++
			c.report(*run)
			// Half of the time belongs to the requests.
			if err := pause(ctx, min(time.Since(began), longestRest)); err != nil {
				return time.Time{}, err
			}
		}
		c.emptyTrash(ctx, run)
		if len(due) == 0 {
			return next, nil
		}
	}
}

// putOff has a review that failed repeated. It may be off the list already,
// with its blob condemned and not deleted, so that this is done even when the
// failure is that ctx has ended.
func (c *collector) putOff(ctx context.Context, r oci.Review, run *Collection) error {
	if err := c.g.cfg.Metadata.PutOff(context.WithoutCancel(ctx), r, run.StartedAt.Add(retryAfter)); err != nil {
		return fmt.Errorf("putting off the review of %s %s: %w", r.Kind, r.Digest, err)
	}
	return nil
}

func (c *collector) review(ctx context.Context, r oci.Review, run *Collection) error {
	switch r.Kind {
	case oci.ReviewsManifest:
		return c.reviewManifest(ctx, r, run)
	case oci.ReviewsLink:
		return c.reviewLink(ctx, r, run)
	default:
		return c.reviewBlob(ctx, r, run)
	}
}

func (c *collector) reviewManifest(ctx context.Context, r oci.Review, run *Collection) error {
	g := c.g
	// Who begins to need a manifest from now on touches it first, see Touch:
	// the review then finds a lease.
	keep, err := g.cfg.Keep(ctx, r.Repo, r.Digest)
	if err != nil {
		return fmt.Errorf("asking who else needs manifest %s: %w", r.Digest, err)
	}
	if keep {
		if err := g.cfg.Metadata.PutOff(ctx, r, run.StartedAt.Add(g.cfg.Lease)); err != nil {
			return fmt.Errorf("putting off the review of manifest %s: %w", r.Digest, err)
		}
		return nil
	}
	verdict, err := g.cfg.Metadata.ReviewManifest(ctx, r.Repo, r.Digest, run.StartedAt)
	if err != nil {
		g.memo.drop(r.Repo) // it may have come to pass
		return fmt.Errorf("reviewing manifest %s: %w", r.Digest, err)
	}
	if verdict == oci.Deleted {
		g.memo.drop(r.Repo)
		run.Manifests++
		g.step("gc.manifest")
	}
	return nil
}

func (c *collector) reviewLink(ctx context.Context, r oci.Review, run *Collection) error {
	g := c.g
	verdict, err := g.cfg.Metadata.ReviewLink(ctx, r.Repo, r.Digest, run.StartedAt)
	if err != nil {
		g.memo.dropLink(r.Repo, r.Digest) // it may have come to pass
		return fmt.Errorf("reviewing link to blob %s: %w", r.Digest, err)
	}
	if verdict == oci.Deleted {
		g.memo.dropLink(r.Repo, r.Digest)
		run.Links++
		g.step("gc.unlinked")
	}
	return nil
}

// reviewBlob may fail between condemning a blob and deleting it. Its review is
// put off then, like any that failed, and comes back to the condemned blob.
func (c *collector) reviewBlob(ctx context.Context, r oci.Review, run *Collection) error {
	gen, condemned, err := c.g.cfg.Metadata.Condemn(ctx, r.Digest)
	if err != nil {
		return fmt.Errorf("condemning blob %s: %w", r.Digest, err)
	}
	if !condemned {
		return nil
	}
	c.g.step("gc.condemned")
	c.trash = true
	deleted, err := c.g.bury(ctx, r.Digest, gen)
	if deleted {
		run.Blobs++
	}
	return err
}

// bury puts the file of a blob that is condemned in that generation aside, and
// deletes its row. False: it was committed again.
func (g *Registry) bury(ctx context.Context, d digest.Digest, gen int64) (bool, error) {
	unlock, err := g.locks.lock(ctx, d)
	if err != nil {
		return false, fmt.Errorf("locking condemned blob %s: %w", d, err)
	}
	defer unlock()
	// Short work, better not torn apart by a client that hung up.
	ctx = context.WithoutCancel(ctx)
	g.step("gc.locked")
	blob, found, err := g.cfg.Metadata.BlobState(ctx, d)
	if err != nil {
		return false, fmt.Errorf("reading state of condemned blob %s: %w", d, err)
	}
	if !found || blob.State != oci.Condemned || blob.Gen != gen {
		return false, nil
	}
	if err := g.cfg.Storage.Trash(ctx, d, gen); err != nil {
		return false, fmt.Errorf("putting blob %s aside: %w", d, err)
	}
	g.step("gc.trashed")
	deleted, err := g.cfg.Metadata.Forget(ctx, d, gen)
	if err != nil {
		return false, fmt.Errorf("forgetting blob %s: %w", d, err)
	}
	g.step("gc.forgotten")
	return deleted, nil
}

func (c *collector) emptyTrash(ctx context.Context, run *Collection) {
	if !c.trash {
		return
	}
	freed, err := c.g.cfg.Storage.EmptyTrash(ctx)
	run.Bytes += freed
	c.g.metrics.collectionFreed.Add(float64(freed))
	if err != nil {
		c.failed(ctx, run, fmt.Errorf("emptying the trash: %w", err))
		return
	}
	c.trash = false
	c.g.step("gc.emptied")
}

// failed notes the first failure of a run, and logs each, unless it is that the
// run was ended.
func (c *collector) failed(ctx context.Context, run *Collection, err error) {
	if run.Err == nil {
		run.Err = err
	}
	if ctx.Err() != nil {
		return
	}
	c.g.cfg.Log.WarnContext(ctx, "registry: collecting failed, will try again", slog.Any("error", err))
}

func (c *collector) report(run Collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = &run
}

// finished remembers the run, unless it was the look once a minute and found
// nothing to do.
func (c *collector) finished(run Collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = nil
	if !c.asked.Load() && run.Scanned == 0 && run.Uploads == 0 && run.Err == nil {
		return
	}
	c.last = &run
	c.g.metrics.collections.Inc()
	c.g.metrics.collectionDuration.Observe(run.FinishedAt.Sub(run.StartedAt).Seconds())
}

// runs returns the collection under way and the last one, nil if there is none.
func (c *collector) runs() (current, last *Collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, c.last
}

// pause waits for d, or fails when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// preview counts what collect would delete.
func (c *collector) preview(ctx context.Context) (Collection, error) {
	run := Collection{DryRun: true, StartedAt: c.g.now()}
	garbage, err := c.g.cfg.Metadata.Garbage(ctx, run.StartedAt, func(repo string, d digest.Digest) (bool, error) {
		return c.g.cfg.Keep(ctx, repo, d)
	})
	run.FinishedAt = c.g.now()
	if err != nil {
		return Collection{}, fmt.Errorf("counting what a collection would delete: %w", err)
	}
	run.Manifests, run.Links, run.Blobs, run.Bytes = garbage.Manifests, garbage.Links, garbage.Blobs, garbage.Bytes
	run.Scanned = run.Manifests + run.Links + run.Blobs
	return run, nil
}
