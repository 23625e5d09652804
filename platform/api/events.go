package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

const (
	keptEvents = 4096 // a client that was away for longer has to read everything again
	eventTick  = 2 * time.Second
)

// stateEvent is a change of state, as every client that may see its project
// gets it.
type stateEvent struct {
	seq     uint64
	project platform.ID
	name    string
	data    any
}

// serviceEvent is the data of `event: service`.
type serviceEvent struct {
	ServiceID          platform.ID `json:"service_id"`
	ProjectID          platform.ID `json:"project_id"`
	Name               string      `json:"name"`
	State              string      `json:"state" doc:"As of the service; deleted when it is gone."`
	Replicas           replicas    `json:"replicas"`
	ActiveDeploymentID platform.ID `json:"active_deployment_id"`
}

// eventLog finds changes by comparing what is with what was, whenever one of
// its readers is woken. It has no goroutine: without readers there is nothing
// to do. Safe for concurrent use.
type eventLog struct {
	epoch string // tells apart the numbers of different processes

	mu         sync.Mutex
	looked     time.Time
	primed     bool
	events     []stateEvent
	seq        uint64
	services   map[platform.ID]serviceEvent
	unfinished map[platform.ID]platform.Deployment
}

func newEventLog() *eventLog {
	return &eventLog{epoch: strconv.FormatInt(time.Now().UnixMilli(), 36), services: map[platform.ID]serviceEvent{}}
}

func (l *eventLog) add(project platform.ID, name string, data any) {
	l.seq++
	l.events = append(l.events, stateEvent{l.seq, project, name, data})
	if len(l.events) > keptEvents {
		l.events = append([]stateEvent(nil), l.events[len(l.events)-keptEvents/2:]...)
	}
}

// look compares, unless somebody has since the caller was woken.
func (a *API) look(ctx context.Context, woken time.Time) error {
	l := a.events
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looked.After(woken) {
		return nil
	}
	started := time.Now()
	refs, err := a.Store.AllServices(ctx)
	if err != nil {
		return err
	}
	pending, err := a.Store.Unfinished(ctx)
	if err != nil {
		return err
	}
	services := make(map[platform.ID]serviceEvent, len(refs))
	for _, ref := range refs {
		services[ref.ID] = a.serviceEvent(ref)
	}
	unfinished := make(map[platform.ID]platform.Deployment, len(pending))
	for _, d := range pending {
		unfinished[d.ID] = d
	}
	if l.primed {
		a.compare(ctx, services, unfinished)
	}
	l.services, l.unfinished, l.primed, l.looked = services, unfinished, true, started
	return nil
}

func (a *API) serviceEvent(ref store.ServiceRef) serviceEvent {
	status := a.Plane.Status(ref.ID)
	return serviceEvent{ref.ID, ref.ProjectID, ref.Name, status.State, replicas(status.Replicas), ref.ActiveDeploymentID}
}

// compare adds an event for each difference. The log's mu must be held.
func (a *API) compare(ctx context.Context, services map[platform.ID]serviceEvent, unfinished map[platform.ID]platform.Deployment) {
	l := a.events
	tell := func(d platform.Deployment) {
		if s, ok := services[d.ServiceID]; ok {
			l.add(s.ProjectID, "deployment", deploymentView(d, platform.RoleViewer))
		}
	}
	for id, d := range unfinished {
		if before, known := l.unfinished[id]; !known || stateOf(before) != stateOf(d) {
			tell(d)
		}
	}
	for id := range l.unfinished {
		if _, still := unfinished[id]; !still {
			if d, err := a.Store.Deployment(ctx, id); err == nil {
				tell(d)
			}
		}
	}
	for id, s := range services {
		if l.services[id] != s {
			l.add(s.ProjectID, "service", s)
		}
	}
	for id, s := range l.services {
		if _, still := services[id]; !still {
			s.State, s.Replicas, s.ActiveDeploymentID = "deleted", replicas{}, ""
			l.add(s.ProjectID, "service", s)
		}
	}
}

// after returns the events after seq, and where the log stands; complete is
// false when some are no longer kept.
func (l *eventLog) after(seq uint64) (events []stateEvent, now uint64, complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) > 0 && l.events[0].seq > seq+1 || seq > l.seq {
		return nil, l.seq, false
	}
	for i, e := range l.events {
		if e.seq > seq {
			return append([]stateEvent(nil), l.events[i:]...), l.seq, true
		}
	}
	return nil, l.seq, true
}

func (l *eventLog) id(seq uint64) string { return l.epoch + "-" + strconv.FormatUint(seq, 10) }

// position reads an event id of this process.
func (l *eventLog) position(id string) (seq uint64, ok bool) {
	epoch, number, _ := strings.Cut(id, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	return seq, err == nil && epoch == l.epoch
}

// streamEvents sends changes of state the caller may see, from now on or from
// Last-Event-ID. When it cannot resume it says reset: read everything again.
func (a *API) streamEvents(w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	// All this before the status goes out: who has it misses nothing after it.
	changed, unsubscribe := a.Plane.Subscribe("")
	defer unsubscribe()
	if err := a.look(r.Context(), time.Now()); err != nil {
		fail(w, r, err)
		return
	}
	resume := lastEventID(r)
	seq, ok := a.events.position(resume)
	if !ok {
		_, seq, _ = a.events.after(0)
	}
	a.stream(w, r, func(ctx context.Context, out *sse) error {
		if !ok {
			if resume != "" {
				if err := out.event(a.events.id(seq), "reset", struct{}{}); err != nil {
					return err
				}
			}
		}
		alive, tick := time.NewTicker(keepAlive), time.NewTicker(eventTick)
		defer alive.Stop()
		defer tick.Stop()
		for {
			events, now, complete := a.events.after(seq)
			if !complete {
				if err := out.event(a.events.id(now), "reset", struct{}{}); err != nil {
					return err
				}
			}
			seq = now
			who := c.identity() // renewed by the watcher: memberships change
			for _, e := range events {
				if who.RoleIn(e.project) == platform.RoleNone {
					continue
				}
				if err := out.event(a.events.id(e.seq), e.name, e.data); err != nil {
					return err
				}
			}
			if err := out.flush(); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-alive.C:
				if err := out.comment(); err != nil {
					return err
				}
				continue
			case <-changed:
			case <-tick.C:
			}
			if err := a.look(ctx, time.Now()); err != nil {
				return err
			}
		}
	})
}
