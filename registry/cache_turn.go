package registry

import (
	"context"
	"errors"
	"time"
)

const (
	// maxDownloads bounds the blobs that are downloaded at a time, laneDownloads
	// those for one project from one host, so that neither takes the turns of
	// others.
	maxDownloads  = 32
	laneDownloads = 4
)

// errBusy says that too much is being downloaded already.
var errBusy = errors.New("too many downloads at a time")

// laneKey tells the lanes apart that downloads wait in.
type laneKey struct {
	whose string
	host  string
}

// lane lets laneDownloads pass at a time.
type lane struct {
	slots chan struct{} // holds a token for each that has its turn
	users int           // who have or want one; guarded by cache.mu
}

// turn waits until a download for the grant may begin; done ends it. It fails
// with errBusy when that takes too long: whoever waits does better to have the
// image elsewhere then.
func (h *cache) turn(ctx context.Context, grant Grant) (done func(), err error) {
	whose, _ := splitCacheKey(grant.Repo)
	key := laneKey{whose, grant.Upstream.Host}
	h.mu.Lock()
	l := h.lanes[key]
	if l == nil {
		l = &lane{slots: make(chan struct{}, laneDownloads)}
		h.lanes[key] = l
	}
	l.users++
	h.mu.Unlock()
	leave := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(h.lanes, key)
		}
	}

	late := time.NewTimer(h.patience.turn)
	defer late.Stop()
	take := func(slots chan struct{}) error {
		select {
		case slots <- struct{}{}:
			return nil
		case <-late.C:
			return errBusy
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// Who waits for the others of its lane takes nobody else's turn meanwhile.
	if err := take(l.slots); err != nil {
		leave()
		return nil, err
	}
	if err := take(h.slots); err != nil {
		<-l.slots
		leave()
		return nil, err
	}
	return func() {
		<-h.slots
		<-l.slots
		leave()
	}, nil
}
