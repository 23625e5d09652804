package registry

import (
	"context"
	"fmt"

	"github.com/denia-paas/denia/registry/oci"
)

// Repositories lists the repositories whose key is one of keys, or begins with
// one of them + "/", by key, with their tags.
func (g *Registry) Repositories(ctx context.Context, keys []string) ([]oci.Repository, error) {
	list, err := g.cfg.Metadata.Repositories(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("listing repositories: %w", err)
	}
	return list, nil
}

// Untag removes a tag from the repository with that key, as a client's DELETE
// does. A tag or a repository that does not exist is no error.
func (g *Registry) Untag(ctx context.Context, repo, tag string) error {
	_, err := g.cfg.Metadata.DeleteTag(ctx, repo, tag)
	g.memo.drop(repo)
	if err != nil {
		return fmt.Errorf("removing the tag %s: %w", tag, err)
	}
	g.collector.kick()
	return nil
}
