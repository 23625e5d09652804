package registry_test

import (
	"context"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// depot is a service whose process can be killed and whose storage can be
// looked into.
type depot struct {
	*service
	cfg     registry.Config
	storage registry.Storage
}

func newDepot(t testing.TB, change ...func(*registry.Config)) *depot {
	t.Helper()
	d := &depot{}
	d.service = newService(t, append(change, func(c *registry.Config) {
		d.cfg, d.storage = *c, c.Storage
	})...)
	return d
}

// restart goes on as a new process does after the old one was killed: nothing
// was closed, and all that was in memory is lost.
func (s *depot) restart() {
	s.t.Helper()
	killed := s.Registry
	s.t.Cleanup(func() { killed.Close() })
	g, err := registry.Open(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Registry = g
}

// brokenMetadata fails to link blobs, before or after it has done so.
type brokenMetadata struct {
	oci.Metadata
	done bool
	err  error
}

func (m *brokenMetadata) CommitBlob(ctx context.Context, repo string, d digest.Digest, size int64, lease time.Time) error {
	if m.err == nil || m.done {
		if err := m.Metadata.CommitBlob(ctx, repo, d, size, lease); err != nil {
			return err
		}
	}
	return m.err
}
