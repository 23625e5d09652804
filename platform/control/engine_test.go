package control_test

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/denia-paas/denia/platform"
)

// engineReplica is the id of a service's only replica.
func (w *world) engineReplica(service platform.ID) string {
	w.t.Helper()
	list := w.observed(service)
	if len(list) != 1 {
		w.t.Fatalf("the service has %d replicas", len(list))
	}
	return list[0].ID
}

// oddEngine fails in ways an engine should not.
type oddEngine struct {
	platform.Runtime
	removals atomic.Int64
	looks    atomic.Int64 // of Replicas, for one service, that ended

	mu       sync.Mutex
	list     error           // of Replicas, for one service
	slow     <-chan struct{} // they wait for
	removing error           // of Ensure with no replicas
}

func (e *oddEngine) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = err
}

// hold has looks at a service wait for a gate, before they see anything.
func (e *oddEngine) hold(gate <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slow = gate
}

func (e *oddEngine) failRemovals(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.removing = err
}

func (e *oddEngine) Replicas(ctx context.Context, service platform.ID) ([]platform.Replica, error) {
	e.mu.Lock()
	err, slow := e.list, e.slow
	e.mu.Unlock()
	if service == "" {
		return e.Runtime.Replicas(ctx, service)
	}
	defer e.looks.Add(1)
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return e.Runtime.Replicas(ctx, service)
}

func (e *oddEngine) Ensure(ctx context.Context, w platform.Workload) error {
	if w.Replicas == 0 {
		e.removals.Add(1)
		e.mu.Lock()
		err := e.removing
		e.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return e.Runtime.Ensure(ctx, w)
}
