package docker

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/events"

	"github.com/denia-paas/denia/platform"
)

// Watch passes on what the engine tells of this instance's containers; see
// platform.Runtime.
func (e *Engine) Watch(ctx context.Context) (<-chan platform.Event, error) {
	// The stream opens without a word; only an answer tells that the engine
	// is there.
	if _, err := e.Ping(ctx); err != nil {
		return nil, err
	}
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	filter := e.ours()
	filter.Add("type", string(events.ContainerEventType))
	for _, action := range []events.Action{events.ActionStart, events.ActionDie, events.ActionOOM, events.ActionDestroy} {
		filter.Add("event", string(action))
	}
	if err := e.begin(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stopWithEngine := context.AfterFunc(e.ctx, cancel)
	// The engine begins to listen a moment after it has answered; from a given
	// time on it also tells what came in between.
	messages, errs := api.Events(ctx, events.ListOptions{
		Filters: filter,
		Since:   time.Now().UTC().Format(time.RFC3339Nano),
	})
	out := make(chan platform.Event, 64)
	go func() {
		defer e.wg.Done()
		defer close(out)
		defer stopWithEngine()
		defer func() {
			// The client's goroutine ends with its context, its channel after.
			cancel()
			for range errs {
			}
		}()
		for {
			select {
			case m := <-messages:
				event := platform.Event{
					ServiceID: platform.ID(m.Actor.Attributes[labelService]),
					ReleaseID: platform.ID(m.Actor.Attributes[labelRelease]),
					ReplicaID: m.Actor.ID,
				}
				select {
				case out <- event:
				case <-ctx.Done():
					return
				}
			case err := <-errs:
				if ctx.Err() == nil {
					e.log.Warn("the engine's event stream ended", "error", err)
				}
				return
			}
		}
	}()
	return out, nil
}
