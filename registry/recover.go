package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// rowsAtOnce and filesAtOnce bound what recovery holds in memory.
	rowsAtOnce  = 512
	filesAtOnce = 1 << 15

	// damageLogged is how many lost blobs are logged one by one.
	damageLogged = 20
)

// recover brings metadata and storage into line after whatever ended the
// process before; it may be ended itself anywhere, and run again. Nothing else
// may use the store meanwhile.
//
// A blob that is condemned is deleted. A file without a row was never
// acknowledged, or is deleted already, and goes too. A live blob without a file
// must not happen; it is quarantined, so that clients push it again, and
// logged. Files of quarantined blobs are left to heal.
func (g *Registry) recover(ctx context.Context) error {
	r := &recovery{g: g, compared: map[string]bool{}}
	if err := g.cfg.Storage.Walk(ctx, func(d digest.Digest) error { return r.found(ctx, d) }); err != nil {
		return fmt.Errorf("looking at each stored blob: %w", err)
	}
	if err := r.rest(ctx); err != nil {
		return fmt.Errorf("looking at each blob's row: %w", err)
	}
	freed, err := g.cfg.Storage.EmptyTrash(ctx)
	if err != nil && ctx.Err() == nil {
		// Rubbish is no reason not to start; the collector tries again.
		g.collector.trash = true
		g.cfg.Log.WarnContext(ctx, "registry: emptying the trash failed, will try again", slog.Any("error", err))
	}
	level := slog.LevelInfo
	if r.lost > 0 {
		level = slog.LevelError
	}
	if r.lost+r.deleted > 0 || freed > 0 {
		g.cfg.Log.Log(ctx, level, "registry: brought the store into order",
			"lost", r.lost, "deleted", r.deleted, "freed_bytes", freed)
	}
	return nil
}

// recovery compares files and rows bucket by bucket: those whose digests begin
// alike. A storage has them one after the other. Where it does not, each
// suspicion costs a question, and nothing is decided wrongly.
type recovery struct {
	g        *Registry
	files    []digest.Digest // of one bucket, not yet compared
	compared map[string]bool // the buckets that were

	lost, deleted int
}

// bucketDigits is how much of a digest counts, so that a bucket of a large
// store is read at once and there are not too many.
const bucketDigits = 2

func bucketOf(d digest.Digest) string {
	return string(d[:len(d.Algorithm())+1+bucketDigits])
}

// found takes note of a file.
func (r *recovery) found(ctx context.Context, d digest.Digest) error {
	if len(r.files) > 0 && (bucketOf(r.files[0]) != bucketOf(d) || len(r.files) >= filesAtOnce) {
		if err := r.compareFiles(ctx); err != nil {
			return err
		}
	}
	r.files = append(r.files, d)
	return nil
}

func (r *recovery) compareFiles(ctx context.Context) error {
	if len(r.files) == 0 {
		return nil
	}
	files := r.files
	r.files = r.files[:0]
	return r.compare(ctx, bucketOf(files[0]), files)
}

// rest compares the last files, and looks at the rows that have none near them.
func (r *recovery) rest(ctx context.Context) error {
	if err := r.compareFiles(ctx); err != nil {
		return err
	}
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for n := range 1 << (4 * bucketDigits) {
			bucket := fmt.Sprintf("%s:%0*x", a, bucketDigits, n)
			if r.compared[bucket] {
				continue
			}
			if err := r.compare(ctx, bucket, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare looks at the files that were found in a bucket, and at all its rows.
func (r *recovery) compare(ctx context.Context, bucket string, files []digest.Digest) error {
	r.compared[bucket] = true
	slices.Sort(files)
	// Nothing has this digest, and it stands before all that begin so.
	algorithm, _, _ := strings.Cut(bucket, ":")
	after := digest.Digest(bucket + strings.Repeat("0", 2*digest.Algorithm(algorithm).Size()-bucketDigits))
	for {
		rows, err := r.g.cfg.Metadata.Blobs(ctx, after, rowsAtOnce)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if bucketOf(row.Digest) != bucket {
				return r.filesOnly(ctx, files)
			}
			after = row.Digest
			n, found := slices.BinarySearch(files, row.Digest)
			if err := r.filesOnly(ctx, files[:n]); err != nil {
				return err
			}
			files = files[n:]
			if found {
				files = files[1:]
				err = r.both(ctx, row)
			} else {
				err = r.withoutFile(ctx, row)
			}
			if err != nil {
				return err
			}
		}
		if len(rows) < rowsAtOnce {
			return r.filesOnly(ctx, files)
		}
	}
}

// filesOnly puts files aside that have no row.
func (r *recovery) filesOnly(ctx context.Context, files []digest.Digest) error {
	for _, d := range files {
		_, found, err := r.g.cfg.Metadata.BlobState(ctx, d)
		if err != nil {
			return err
		}
		if found {
			continue
		}
		r.deleted++
		if err := r.g.cfg.Storage.Trash(ctx, d, 0); err != nil {
			return fmt.Errorf("putting aside %s, which has no row: %w", d, err)
		}
	}
	return nil
}

// withoutFile looks at a row for which no file was found.
func (r *recovery) withoutFile(ctx context.Context, row oci.Blob) error {
	_, err := r.g.cfg.Storage.Size(ctx, row.Digest)
	switch {
	case err == nil:
		return r.both(ctx, row)
	case errors.Is(err, fs.ErrNotExist):
		return r.rowOnly(ctx, row)
	default:
		return fmt.Errorf("looking for the file of blob %s: %w", row.Digest, err)
	}
}

func (r *recovery) both(ctx context.Context, row oci.Blob) error {
	switch row.State {
	case oci.Condemned:
		r.deleted++
		_, err := r.g.bury(ctx, row.Digest, row.Gen)
		return err
	case oci.Quarantined:
		r.g.returned = append(r.g.returned, row.Digest)
	}
	return nil
}

// heal looks at the files of quarantined blobs that recovery found. They had
// vanished, with a disk that was not mounted, say, and came back; or they are
// what a power loss left of one that was put aside, or pushed again. Their bytes
// tell. There may be very many, so the start does not wait for it.
func (g *Registry) heal(ctx context.Context) {
	healed := 0
	for _, d := range g.returned {
		ok, err := g.healBlob(ctx, d)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			g.cfg.Log.WarnContext(ctx, "registry: a quarantined blob could not be looked at", "digest", d, "err", err)
		}
		if ok {
			healed++
		}
	}
	g.cfg.Log.InfoContext(ctx, "registry: looked at the files of quarantined blobs", "files", len(g.returned), "healed", healed)
	g.step("heal.done")
}

// healBlob makes a quarantined blob live again if its bytes are there, else puts
// aside what is. Only a push of these very bytes waits for it.
func (g *Registry) healBlob(ctx context.Context, d digest.Digest) (healed bool, err error) {
	unlock, err := g.locks.lock(ctx, d)
	if err != nil {
		return false, err
	}
	defer unlock()
	blob, found, err := g.cfg.Metadata.BlobState(ctx, d)
	if err != nil || !found || blob.State != oci.Quarantined {
		return false, err
	}
	switch _, err := g.verifyContent(ctx, d, 0); {
	case errors.Is(err, errDamaged):
		if err := g.cfg.Storage.Trash(ctx, d, blob.Gen); err != nil {
			return false, fmt.Errorf("putting damaged blob %s aside: %w", d, err)
		}
		_, err := g.cfg.Storage.EmptyTrash(ctx)
		return false, err
	case err != nil:
		return false, err
	}
	if healed, err = g.cfg.Metadata.Heal(ctx, d); err != nil {
		return false, fmt.Errorf("healing blob %s: %w", d, err)
	}
	return healed, nil
}

func (r *recovery) rowOnly(ctx context.Context, row oci.Blob) error {
	switch row.State {
	case oci.Condemned:
		r.deleted++
		if _, err := r.g.cfg.Metadata.Forget(ctx, row.Digest, row.Gen); err != nil {
			return fmt.Errorf("forgetting blob %s: %w", row.Digest, err)
		}
	case oci.Live:
		if r.lost++; r.lost <= damageLogged {
			r.g.lost(ctx, row.Digest, "its file is missing")
		}
		r.g.metrics.quarantined.Inc()
		if _, err := r.g.cfg.Metadata.Quarantine(ctx, row.Digest); err != nil {
			return fmt.Errorf("quarantining blob %s: %w", row.Digest, err)
		}
	}
	return nil
}

// lost says loudly that a stored blob is no more.
func (g *Registry) lost(ctx context.Context, d digest.Digest, reason string) {
	g.cfg.Log.ErrorContext(ctx, "registry: a stored blob is damaged; images that need it cannot be pulled until it is pushed again",
		"digest", d, "reason", reason)
}
