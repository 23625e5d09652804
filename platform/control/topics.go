package control

import (
	"sync"

	"github.com/denia-paas/denia/platform"
)

// topics hands out "something changed" signals by id. Safe for concurrent use.
type topics struct {
	mu   sync.Mutex
	subs map[platform.ID]map[chan struct{}]struct{}
}

func (t *topics) subscribe(id platform.ID) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subs == nil {
		t.subs = map[platform.ID]map[chan struct{}]struct{}{}
	}
	if t.subs[id] == nil {
		t.subs[id] = map[chan struct{}]struct{}{}
	}
	t.subs[id][ch] = struct{}{}
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.subs[id], ch)
		if len(t.subs[id]) == 0 {
			delete(t.subs, id)
		}
	}
}

// publish signals the subscribers of each id, and those of the zero id.
func (t *topics) publish(ids ...platform.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range append(ids, "") {
		for ch := range t.subs[id] {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}
