package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// commit makes a complete upload the content of its digest, unless that is
// there already, and links the blob in the repository. When it returns nil all
// of that survives a power loss. Either way the upload is gone.
func (g *Registry) commit(ctx context.Context, repo, uploadID string, d digest.Digest, size int64, lease time.Time) error {
	asked := time.Now()
	unlock, err := g.locks.lock(ctx, d)
	if err != nil {
		return errors.Join(fmt.Errorf("waiting for the lock of blob %s: %w", d, err), g.cfg.Storage.Abort(context.WithoutCancel(ctx), uploadID))
	}
	defer unlock()
	g.metrics.collectionWait.Observe(time.Since(asked).Seconds())
	// The bytes are all here. A client that hangs up now must not leave half
	// of a commit.
	ctx = context.WithoutCancel(ctx)
	g.step("upload.locked")
	there, err := g.intact(ctx, d, size)
	if err != nil {
		return errors.Join(err, g.cfg.Storage.Abort(ctx, uploadID))
	}
	if there {
		// An upload that is not durable yet must never replace content that is.
		if err := g.cfg.Storage.Abort(ctx, uploadID); err != nil {
			return fmt.Errorf("removing an upload of what is there: %w", err)
		}
	} else if err := g.cfg.Storage.Commit(ctx, uploadID, d); err != nil {
		return fmt.Errorf("storing blob %s: %w", d, err)
	}
	g.step("upload.renamed")
	if err := g.cfg.Metadata.CommitBlob(ctx, repo, d, size, lease); err != nil {
		err = fmt.Errorf("linking blob %s: %w", d, err)
		if !there {
			err = errors.Join(err, g.discard(ctx, d))
		}
		return err
	}
	g.memo.renewLink(repo, d, lease)
	g.step("upload.txn")
	return nil
}

// intact tells whether the content of a digest is there, durable, and of the
// right size: then its blob is live. The digest's lock must be held.
func (g *Registry) intact(ctx context.Context, d digest.Digest, size int64) (bool, error) {
	stored, err := g.cfg.Storage.Size(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for the content of %s: %w", d, err)
	}
	if stored != size {
		return false, nil
	}
	blob, found, err := g.cfg.Metadata.BlobState(ctx, d)
	if err != nil {
		return false, fmt.Errorf("reading the state of blob %s: %w", d, err)
	}
	return found && blob.State == oci.Live, nil
}

// discard puts content aside that was stored for a blob that did not come to be
// live. A transaction that failed may have been carried out nevertheless, so
// the row is asked. The digest's lock must be held.
func (g *Registry) discard(ctx context.Context, d digest.Digest) error {
	blob, found, err := g.cfg.Metadata.BlobState(ctx, d)
	switch {
	case err != nil:
		// Content without a row is removed at the next start.
		return fmt.Errorf("reading the state of blob %s: %w", d, err)
	case found && blob.State == oci.Live:
		return nil
	}
	if err := g.cfg.Storage.Trash(ctx, d, blob.Gen); err != nil {
		return fmt.Errorf("putting the content of %s aside: %w", d, err)
	}
	if _, err := g.cfg.Storage.EmptyTrash(ctx); err != nil {
		return fmt.Errorf("removing the content of %s: %w", d, err)
	}
	return nil
}
