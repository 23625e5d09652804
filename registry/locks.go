package registry

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// locks has one lock per digest: whoever makes content of a digest appear or
// disappear holds it from the look at the metadata to the last write. A lock
// that nobody holds or waits for takes no memory.
type locks struct {
	mu   sync.Mutex
	held map[digest.Digest]*lockEntry
}

type lockEntry struct {
	turn  chan struct{} // full while held
	users int           // who hold it or wait
}

func newLocks() *locks { return &locks{held: map[digest.Digest]*lockEntry{}} }

// lock waits for the lock of d, or for the end of ctx. The caller must call
// unlock once.
func (l *locks) lock(ctx context.Context, d digest.Digest) (unlock func(), err error) {
	l.mu.Lock()
	e := l.held[d]
	if e == nil {
		e = &lockEntry{turn: make(chan struct{}, 1)}
		l.held[d] = e
	}
	e.users++
	l.mu.Unlock()

	select {
	case e.turn <- struct{}{}:
		return func() {
			<-e.turn
			l.leave(d, e)
		}, nil
	case <-ctx.Done():
		l.leave(d, e)
		return nil, ctx.Err()
	}
}

func (l *locks) leave(d digest.Digest, e *lockEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.held, d)
	}
}
