package registry

import (
	"context"
	"sync"
	"time"
)

const (
	// grantTTL is how long an answer of Authorize is used: the longest that
	// somebody who lost a right goes on having it.
	grantTTL = 2 * time.Second
	// maxGrants bounds how many are remembered.
	maxGrants = 4096
)

// grants remembers answers of Authorize for grantTTL.
type grants struct {
	mu    sync.Mutex
	known map[grantKey]knownGrant
	drops uint64 // so that an answer asked for before a drop isn't remembered after it
}

type grantKey struct{ subject, name string }

type knownGrant struct {
	Grant
	until time.Time
}

func newGrants() *grants { return &grants{known: map[grantKey]knownGrant{}} }

// grantOf tells what a subject may do with a repository.
func (g *Registry) grantOf(ctx context.Context, subject, name string) (Grant, error) {
	now, key, known := g.now(), grantKey{subject, name}, g.memo.grants

	known.mu.Lock()
	found, ok := known.known[key]
	drops := known.drops
	known.mu.Unlock()
	if ok && now.Before(found.until) {
		return found.Grant, nil
	}

	grant, err := g.cfg.Authorize(ctx, subject, name)
	if err != nil {
		return Grant{}, err
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if known.drops != drops {
		return grant, nil
	}
	if len(known.known) >= maxGrants {
		known.makeRoom(now)
	}
	// From before the question was asked: what changed since is not in it.
	known.known[key] = knownGrant{grant, now.Add(grantTTL)}
	return grant, nil
}

func (k *grants) makeRoom(now time.Time) {
	for key, grant := range k.known {
		if !now.Before(grant.until) {
			delete(k.known, key)
		}
	}
	if len(k.known) >= maxGrants {
		clear(k.known)
	}
}

// drop forgets all answers.
func (k *grants) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drops++
	clear(k.known)
}
