package registry

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestLocks(t *testing.T) {
	l := newLocks()
	one, other := digest.FromString("one"), digest.FromString("other")
	unlock, err := l.lock(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}

	// Nobody waits for another digest's lock.
	free, err := l.lock(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	free()

	// Who waits gives up when it is told to, and leaves nothing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.lock(ctx, one); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting in an ended context: %v", err)
	}

	var held, most, sum int
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			unlock, err := l.lock(context.Background(), one)
			if err != nil {
				t.Error(err)
				return
			}
			held++
			most = max(most, held)
			sum++
			held--
			unlock()
		})
	}
	unlock()
	wg.Wait()
	if most != 1 || sum != 64 {
		t.Errorf("%d held the lock at once, %d in all", most, sum)
	}
	if len(l.held) != 0 {
		t.Errorf("%d locks are left in memory", len(l.held))
	}
}
