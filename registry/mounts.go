package registry

import (
	"container/list"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// mount links a blob that another repository has. False: it must be uploaded,
// because it is not there, or because the caller may not know whether it is. It
// fails with errScope where the caller may know, and has a token that does not
// say so.
func (c *call) mount(d digest.Digest, from string) (bool, error) {
	if from != "" {
		if !oci.ValidName(from) {
			return false, nil
		}
		source, err := c.pullFrom(from)
		if err != nil || !source.allows("pull") {
			return false, err
		}
		return c.mountFrom(source.Repo, d)
	}
	if mounted, err := c.mountFrom(c.grant.Repo, d); mounted || err != nil {
		return mounted, err
	}
	if c.subject == Internal {
		return false, nil // it always knows the source
	}
	// Without a source, the blob is taken from where this very subject pushed
	// it lately, if they may still read there. To search all repositories would
	// tell whether somebody else has it. The token cannot vouch for a
	// repository the client did not name; what the subject may do can.
	from, ok := c.seen.find(c.subject, d)
	if !ok {
		return false, nil
	}
	source, err := c.grantOf(c.r.Context(), c.subject, from)
	if err != nil || !source.allows("pull") {
		return false, err
	}
	return c.mountFrom(source.Repo, d)
}

func (c *call) mountFrom(source string, d digest.Digest) (bool, error) {
	_, found, err := c.cfg.Metadata.MountBlob(c.r.Context(), source, c.grant.Repo, d, c.lease(c.grant))
	if err != nil {
		return false, fmt.Errorf("mounting blob %s: %w", d, err)
	}
	if found {
		c.seen.add(c.subject, d, c.name)
		c.metrics.blobPushes.Inc()
	}
	return found, nil
}

// seenPushes is how many pushes are remembered.
const seenPushes = 4096

// seen remembers into which repository a subject pushed a blob last, for the
// mounts that name no source. The oldest pushes are forgotten.
type seen struct {
	mu     sync.Mutex
	places map[seenKey]*list.Element
	newest list.List // of seenPush
}

type seenKey struct {
	subject string
	digest  digest.Digest
}

type seenPush struct {
	seenKey
	name string
}

func newSeen() *seen { return &seen{places: map[seenKey]*list.Element{}} }

func (s *seen) add(subject string, d digest.Digest, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := seenKey{subject, d}
	if e := s.places[key]; e != nil {
		e.Value = seenPush{key, name}
		s.newest.MoveToFront(e)
		return
	}
	s.places[key] = s.newest.PushFront(seenPush{key, name})
	if s.newest.Len() > seenPushes {
		oldest := s.newest.Remove(s.newest.Back()).(seenPush)
		delete(s.places, oldest.seenKey)
	}
}

// find returns the name of that repository.
func (s *seen) find(subject string, d digest.Digest) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.places[seenKey{subject, d}]
	if e == nil {
		return "", false
	}
	return e.Value.(seenPush).name, true
}
