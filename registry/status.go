package registry

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// Status tells what the registry holds and what its collector is at.
type Status struct {
	oci.Totals
	Uploads   int   // in progress, that have a byte
	FreeBytes int64 // that can still be written

	Collecting     *Collection // nil: no collection is under way
	LastCollection *Collection // that found something to do, or was asked for; nil: none since Open
}

// Status counts what the registry holds, the cache included.
func (g *Registry) Status(ctx context.Context) (Status, error) {
	var s Status
	var err error
	if s.Totals, err = g.cfg.Metadata.Totals(ctx); err != nil {
		return Status{}, fmt.Errorf("reading the registry's status: %w", err)
	}
	uploads, err := g.cfg.Storage.Uploads(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("reading the registry's status: listing uploads: %w", err)
	}
	s.Uploads = len(uploads)
	if s.FreeBytes, err = g.cfg.Storage.Free(ctx); err != nil {
		return Status{}, fmt.Errorf("reading the registry's status: measuring free space: %w", err)
	}
	s.Collecting, s.LastCollection = g.collector.runs()
	return s, nil
}

// Touch renews the lease of a manifest, for somebody who is about to need it
// and whom Config.Keep does not know of yet. When it returns true, the manifest
// and all it refers to are safe from collection for Options.Lease. False: there
// is no such manifest.
func (g *Registry) Touch(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	lease := g.now().Add(g.cfg.Lease)
	found, err := g.cfg.Metadata.RenewManifest(ctx, repo, d, lease)
	if err != nil {
		return false, fmt.Errorf("touching manifest %s: %w", d, err)
	}
	if found {
		g.memo.renewManifest(repo, d, lease)
	}
	return found, nil
}

// Whole tells whether the repository has a manifest and, at any depth,
// everything it needs: whether it can be pulled.
func (g *Registry) Whole(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	whole, err := g.cfg.Metadata.Whole(ctx, repo, d)
	if err != nil {
		return false, fmt.Errorf("checking manifest %s: %w", d, err)
	}
	return whole, nil
}

// Drop removes the repository with that key and all whose key begins with
// key + "/", leases or not, and has what only they needed collected. It does
// not wait for that.
func (g *Registry) Drop(ctx context.Context, key string) error {
	err := g.cfg.Metadata.DropRepositories(ctx, key)
	g.memo.dropTree(key)
	if err != nil {
		return fmt.Errorf("dropping the repositories of %s: %w", key, err)
	}
	g.collector.kick()
	return nil
}
