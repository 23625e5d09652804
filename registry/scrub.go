package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// scrubRound is the shortest time between two looks at the same blob, and
	// the time over which Options.ScrubBytes are spread.
	scrubRound = 24 * time.Hour

	// scrubSpeed is the most that is read in a second, so that nobody else's
	// reads have to wait.
	scrubSpeed = 16 << 20

	// scrubChunk is what is read at once.
	scrubChunk = 64 << 10
)

// errDamaged says that the stored bytes of a blob are not what its digest says,
// or are not there.
var errDamaged = errors.New("the bytes are not those of the digest")

// scrub hashes what is stored again, blob by blob and slowly, and takes what is
// damaged out of service. It begins anywhere, so that with a process that lives
// shortly every blob has its turn one day.
func (c *collector) scrub(ctx context.Context) {
	if c.g.cfg.ScrubBytes < 0 {
		return
	}
	after := digest.FromString(rand.Text())
	var round time.Time // when the last one began at the first blob
	for {
		blobs, err := c.g.cfg.Metadata.Blobs(ctx, after, reviewsAtOnce)
		if err != nil {
			if ctx.Err() == nil {
				c.g.cfg.Log.WarnContext(ctx, "registry: scrubbing failed, will try again", "err", err)
			}
			if pause(ctx, retryAfter) != nil {
				return
			}
			continue
		}
		for _, blob := range blobs {
			after = blob.Digest
			if blob.State != oci.Live {
				continue
			}
			began := time.Now()
			n, err := c.g.scrubBlob(ctx, blob)
			if err != nil && ctx.Err() == nil {
				c.g.cfg.Log.WarnContext(ctx, "registry: scrubbing failed", "digest", blob.Digest, "err", err)
			}
			if pause(ctx, c.share(n)-time.Since(began)) != nil {
				return
			}
		}
		if len(blobs) == 0 {
			if pause(ctx, time.Until(round.Add(scrubRound))) != nil {
				return
			}
			after, round = "", time.Now()
		}
	}
}

// share is how long n bytes have to last.
func (c *collector) share(n int64) time.Duration {
	return time.Duration(float64(max(n, scrubChunk)) / float64(c.g.cfg.ScrubBytes) * float64(scrubRound))
}

// scrubBlob hashes a blob and returns how many bytes it read.
func (g *Registry) scrubBlob(ctx context.Context, blob oci.Blob) (int64, error) {
	n, err := g.verifyContent(ctx, blob.Digest, scrubSpeed)
	g.metrics.scrubbed.Add(float64(n))
	if errors.Is(err, errDamaged) {
		return n, g.quarantine(ctx, blob.Digest)
	}
	return n, err
}

// quarantine takes a blob out of service if it is damaged. That was seen before
// already, but then the blob may have been collected and pushed again: with the
// lock of the digest held, it is read a second time. Only a push of these very
// bytes waits for that.
func (g *Registry) quarantine(ctx context.Context, d digest.Digest) error {
	unlock, err := g.locks.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	blob, found, err := g.cfg.Metadata.BlobState(ctx, d)
	if err != nil || !found || blob.State != oci.Live {
		return err
	}
	if _, err := g.verifyContent(ctx, d, 0); !errors.Is(err, errDamaged) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	// The file goes first: a crash leaves a live blob without one, which the
	// next start quarantines.
	if err := g.cfg.Storage.Trash(ctx, d, blob.Gen); err != nil {
		return fmt.Errorf("putting damaged blob %s aside: %w", d, err)
	}
	if _, err := g.cfg.Metadata.Quarantine(ctx, d); err != nil {
		return fmt.Errorf("quarantining blob %s: %w", d, err)
	}
	g.memo.dropBlob(d)
	g.metrics.quarantined.Inc()
	g.lost(ctx, d, errDamaged.Error())
	g.step("scrub.quarantined")
	if _, err := g.cfg.Storage.EmptyTrash(ctx); err != nil {
		return fmt.Errorf("emptying the trash: %w", err)
	}
	return nil
}

// verifyContent reads the content of d, at most speed bytes a second unless
// that is zero, and returns how many bytes that were. It fails with errDamaged
// when they are not those of d, cannot be read, or are not there.
func (g *Registry) verifyContent(ctx context.Context, d digest.Digest, speed int64) (n int64, err error) {
	content, err := g.cfg.Storage.Open(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errDamaged
	}
	if err != nil {
		return 0, fmt.Errorf("opening blob %s: %w", d, err)
	}
	defer content.Close()
	buf := make([]byte, scrubChunk)
	verifier := d.Verifier()
	for {
		read, err := content.Read(buf)
		n += int64(read)
		// It never fails, hashes do not.
		_, _ = verifier.Write(buf[:read])
		switch {
		case errors.Is(err, io.EOF):
			if !verifier.Verified() {
				return n, errDamaged
			}
			return n, nil
		case errors.Is(err, syscall.EIO):
			return n, errDamaged
		case err != nil:
			return n, fmt.Errorf("reading blob %s: %w", d, err)
		}
		wait := time.Duration(0)
		if speed > 0 {
			wait = time.Duration(read) * time.Second / time.Duration(speed)
		}
		if err := pause(ctx, wait); err != nil {
			return n, err
		}
	}
}
