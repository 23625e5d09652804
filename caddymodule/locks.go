package caddymodule

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform/store"
)

const (
	lockPoll  = 500 * time.Millisecond
	lockBeat  = 10 * time.Second
	lockStale = 3 * lockBeat
)

// certificateLocks are the locks by which the nodes of one database take turns
// at a certificate. A holder changes its row with each beat; a row that has not
// changed for lockStale, by the clock of who waits, belongs to nobody any more.
// So no two clocks are compared, and a clock that is set takes no lock away.
type certificateLocks struct {
	store   *store.Store
	node    string
	process string // another one for each process of the node
	log     *slog.Logger

	poll, beating, stale time.Duration

	mu    sync.Mutex
	count int
	held  map[string]heldLock
	seen  map[string]sighting
}

type heldLock struct {
	holder string
	stop   func() // returns when nothing beats any more
}

// sighting is a lock of somebody else's, and since when it looks like that.
type sighting struct {
	lock  store.CertificateLock
	since time.Time
}

func newCertificateLocks(s *store.Store, node, process string, log *slog.Logger) *certificateLocks {
	return &certificateLocks{store: s, node: node, process: process, log: log, poll: lockPoll, beating: lockBeat, stale: lockStale, held: map[string]heldLock{}, seen: map[string]sighting{}}
}

// take takes a lock, once it is free if wait, and tells whether it has it.
func (l *certificateLocks) take(ctx context.Context, name string, wait bool) (bool, error) {
	l.mu.Lock()
	l.count++
	holder := fmt.Sprintf("%s/%s/%d", l.node, l.process, l.count)
	l.mu.Unlock()
	var stale store.CertificateLock
	for {
		lock, taken, err := l.tryOnce(ctx, name, holder, stale)
		if err != nil {
			return false, err
		}
		if taken {
			l.keep(name, holder)
			return true, nil
		}
		if previous := stale; l.isStale(name, lock) && lock != previous {
			stale = lock
			continue
		}
		if !wait {
			return false, nil
		}
		poll := time.NewTimer(l.poll)
		select {
		case <-poll.C:
		case <-ctx.Done():
			poll.Stop()
			return false, fmt.Errorf("waiting for the lock %s: %w", name, context.Cause(ctx))
		}
	}
}

func (l *certificateLocks) tryOnce(ctx context.Context, name, holder string, stale store.CertificateLock) (store.CertificateLock, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return l.store.TakeCertificateLock(ctx, name, holder, stale)
}

// isStale judges a lock that somebody else holds.
func (l *certificateLocks) isStale(name string, lock store.CertificateLock) bool {
	// The data directory is this process's alone, so whoever held it before
	// has died.
	if strings.HasPrefix(lock.Holder, l.node+"/") && !strings.HasPrefix(lock.Holder, l.node+"/"+l.process+"/") {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last, known := l.seen[name]
	if known && last.lock == lock {
		return time.Since(last.since) >= l.stale
	}
	for other, s := range l.seen {
		if time.Since(s.since) > time.Hour {
			delete(l.seen, other) // nobody waits for it any more
		}
	}
	l.seen[name] = sighting{lock, time.Now()}
	return false
}

// keep beats until the lock is released.
func (l *certificateLocks) keep(name, holder string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	l.mu.Lock()
	delete(l.seen, name)
	l.held[name] = heldLock{holder, func() { cancel(); <-done }}
	l.mu.Unlock()
	go func() {
		defer close(done)
		ticker := time.NewTicker(l.beating)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if held, err := l.beat(ctx, name, holder); err != nil && ctx.Err() == nil {
				l.log.Warn("keeping a certificate lock failed", "lock", name, "error", err)
			} else if err == nil && !held {
				l.log.Warn("a certificate lock was taken away: this node did not reach the database for too long", "lock", name)
				return
			}
		}
	}()
}

func (l *certificateLocks) beat(ctx context.Context, name, holder string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return l.store.BeatCertificateLock(ctx, name, holder)
}

// renew fails when the lock is not held any more.
func (l *certificateLocks) renew(ctx context.Context, name string) error {
	l.mu.Lock()
	lock, ok := l.held[name]
	l.mu.Unlock()
	if ok {
		held, err := l.beat(ctx, name, lock.holder)
		if err != nil || held {
			return err
		}
	}
	return fmt.Errorf("the lock %s is not held any more", name)
}

// release ends a lock that take has given.
func (l *certificateLocks) release(ctx context.Context, name string) error {
	l.mu.Lock()
	lock, ok := l.held[name]
	delete(l.held, name)
	l.mu.Unlock()
	if !ok {
		return fmt.Errorf("the lock %s is not held", name)
	}
	lock.stop()
	return l.store.ReleaseCertificateLock(ctx, name, lock.holder)
}

// close leaves the locks that are still held: whoever comes next takes them.
func (l *certificateLocks) close() {
	l.mu.Lock()
	held := l.held
	l.held = map[string]heldLock{}
	l.mu.Unlock()
	for _, lock := range held {
		lock.stop()
	}
}
