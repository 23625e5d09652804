package platformtest

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Behavior is what becomes of a release's replicas. The zero value starts at
// once, writes "serving", answers every request with 200 and its label, and
// stops as soon as it is told to.
type Behavior struct {
	Hold    <-chan struct{} // Ensure waits until it is closed before it starts anything
	Fail    error           // Ensure's, after a replica was created and could not be started
	Missing bool            // there is no such image

	Output   []string        // instead of "serving"
	Exits    int             // how many runs, over all replicas, end as soon as they began; -1: all
	ExitCode int             // of those runs
	OOM      bool            // those runs are killed at their memory limit
	Deaf     bool            // runs, but listens nowhere
	Listen   <-chan struct{} // runs, but refuses connections until it is closed
	Handler  http.Handler    // what replicas answer

	Linger <-chan struct{} // a replica that is told to stop goes once it is closed
}

// Fake is a platform.Runtime in memory that does what its script says. Its
// replicas are HTTP servers on the loopback interface. All methods may be
// called concurrently.
type Fake struct {
	servers sync.WaitGroup

	mu       sync.Mutex
	script   map[string]Behavior // by digest
	replicas map[string]*fakeReplica
	networks map[platform.ID]bool
	volumes  map[string]bool // "<service>/<name>"
	watchers map[chan platform.Event]struct{}
	calls    []platform.Workload
	runs     map[string]int // by digest
	made     int
	last     time.Time     // the last time given away
	outage   chan struct{} // closed: the engine is down
	mute     bool
}

type fakeReplica struct {
	platform.Replica
	load    platform.Workload
	stop    func() // ends the server, nil when there is none
	lines   []platform.LogLine
	changed chan struct{} // closed at the next change
	gone    bool
}

// NewFake makes a Fake whose replicas all have the zero Behavior.
func NewFake() *Fake {
	return &Fake{
		script: map[string]Behavior{}, replicas: map[string]*fakeReplica{}, networks: map[platform.ID]bool{},
		volumes: map[string]bool{}, watchers: map[chan platform.Event]struct{}{}, runs: map[string]int{}, outage: make(chan struct{}),
	}
}

// Close ends every replica and waits for its server.
func (f *Fake) Close() {
	f.mu.Lock()
	for id, r := range f.replicas {
		r.end(0, false, f.tick())
		r.gone = true
		r.tell()
		delete(f.replicas, id)
	}
	f.mu.Unlock()
	f.servers.Wait()
}

// Script says how replicas made from the image with that digest behave, from
// their next start on.
func (f *Fake) Script(digest string, b Behavior) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script[digest] = b
}

// Down takes the engine away, or brings it back: every call fails, streams
// and events end. What runs goes on running.
func (f *Fake) Down(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch was := f.isDown(); {
	case down && !was:
		close(f.outage)
		for w := range f.watchers {
			delete(f.watchers, w)
			close(w)
		}
	case !down && was:
		f.outage = make(chan struct{})
	}
}

// Mute loses all events from now on, or no longer.
func (f *Fake) Mute(mute bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mute = mute
}

// Kill ends a replica's run.
func (f *Fake) Kill(replica string, code int, oom bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.replicas[replica]; r != nil && r.State == platform.ReplicaRunning {
		r.end(code, oom, f.tick())
		f.emit(r)
	}
}

// Calls returns every Ensure there was, in order.
func (f *Fake) Calls() []platform.Workload {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Runs tells how many runs there were of replicas made from that digest.
func (f *Fake) Runs(digest string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs[digest]
}

// Load returns what a replica was made from.
func (f *Fake) Load(replica string) platform.Workload {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.replicas[replica]; r != nil {
		return r.load
	}
	return platform.Workload{}
}

// Volumes lists the volumes there are, as "<service id>/<name>".
func (f *Fake) Volumes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.volumes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Ensure implements platform.Runtime.
func (f *Fake) Ensure(ctx context.Context, w platform.Workload) error {
	if err := f.available(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	f.calls = append(f.calls, w)
	b := f.script[w.Digest]
	f.mu.Unlock()
	if w.Replicas > 0 {
		if err := f.wait(ctx, b.Hold); err != nil {
			return err
		}
		if b.Missing {
			return platform.Errorf(platform.Unavailable, platform.CodeImageNotFound, "there is no image %s", w.Digest)
		}
	}
	for _, r := range f.of(w.ID) {
		if r.Index >= w.Replicas {
			if err := f.remove(ctx, r); err != nil {
				return err
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range w.Replicas {
		r := f.find(w.ID, i)
		if r == nil {
			r = f.create(w, i)
		}
		if r.State == platform.ReplicaRunning {
			continue
		}
		if b.Fail != nil {
			r.Error = b.Fail.Error()
			return b.Fail
		}
		if err := f.start(r, b); err != nil {
			return err
		}
	}
	return nil
}

// Replicas implements platform.Runtime.
func (f *Fake) Replicas(ctx context.Context, service platform.ID) ([]platform.Replica, error) {
	if err := f.available(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []platform.Replica
	for _, r := range f.replicas {
		if service == "" || r.ServiceID == service {
			list = append(list, r.Replica)
		}
	}
	slices.SortFunc(list, func(a, b platform.Replica) int {
		return cmp.Or(cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.ReleaseID, b.ReleaseID), cmp.Compare(a.Index, b.Index))
	})
	return list, nil
}

// Watch implements platform.Runtime.
func (f *Fake) Watch(ctx context.Context) (<-chan platform.Event, error) {
	if err := f.available(ctx); err != nil {
		return nil, err
	}
	events := make(chan platform.Event, 1024)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[events] = struct{}{}
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, open := f.watchers[events]; open {
			delete(f.watchers, events)
			close(events)
		}
	})
	return events, nil
}

// Projects implements platform.Runtime.
func (f *Fake) Projects(ctx context.Context) ([]platform.ID, error) {
	if err := f.available(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []platform.ID
	for id := range f.networks {
		list = append(list, id)
	}
	slices.Sort(list)
	return list, nil
}

// RemoveProject implements platform.Runtime.
func (f *Fake) RemoveProject(ctx context.Context, project platform.ID) error {
	if err := f.available(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.replicas {
		if r.ProjectID == project {
			return platform.Errorf(platform.Conflict, "network_in_use", "the network has replicas")
		}
	}
	delete(f.networks, project)
	return nil
}

// RemoveVolumes implements platform.Runtime.
func (f *Fake) RemoveVolumes(ctx context.Context, service platform.ID, names []string) error {
	if err := f.available(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		delete(f.volumes, string(service)+"/"+name)
	}
	return nil
}

func errDown() error {
	return platform.Errorf(platform.Unavailable, platform.CodeEngineUnavailable, "the engine cannot be reached")
}

func (f *Fake) isDown() bool {
	select {
	case <-f.outage:
		return true
	default:
		return false
	}
}

func (f *Fake) available(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("asking the engine: %w", err)
	}
	if f.isDown() {
		return errDown()
	}
	return nil
}

// wait returns once gate is closed; a nil gate is open.
func (f *Fake) wait(ctx context.Context, gate <-chan struct{}) error {
	if gate == nil {
		return nil
	}
	f.mu.Lock()
	outage := f.outage
	f.mu.Unlock()
	select {
	case <-gate:
		return f.available(ctx)
	case <-outage:
		return errDown()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the engine: %w", ctx.Err())
	}
}

// tick gives each thing that happens a time of its own. f.mu must be held.
func (f *Fake) tick() time.Time {
	now := time.Now().UTC()
	if !now.After(f.last) {
		now = f.last.Add(1)
	}
	f.last = now
	return now
}

func (f *Fake) of(release platform.ID) []*fakeReplica {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*fakeReplica
	for _, r := range f.replicas {
		if r.ReleaseID == release {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *fakeReplica) int { return b.Index - a.Index })
	return list
}

func (f *Fake) find(release platform.ID, index int) *fakeReplica {
	for _, r := range f.replicas {
		if r.ReleaseID == release && r.Index == index {
			return r
		}
	}
	return nil
}

func (f *Fake) create(w platform.Workload, index int) *fakeReplica {
	f.made++
	r := &fakeReplica{load: w, changed: make(chan struct{}), Replica: platform.Replica{
		ID: fmt.Sprintf("replica-%d", f.made), ServiceID: w.ServiceID, ProjectID: w.ProjectID, ReleaseID: w.ID,
		Index: index, Label: fmt.Sprintf("%d.%d", w.Number, index), State: platform.ReplicaCreated,
	}}
	f.replicas[r.ID] = r
	f.networks[w.ProjectID] = true
	for _, v := range w.Config.Volumes {
		f.volumes[string(w.ServiceID)+"/"+v.Name] = true
	}
	return r
}

func (f *Fake) remove(ctx context.Context, r *fakeReplica) error {
	f.mu.Lock()
	linger := f.script[r.load.Digest].Linger
	f.mu.Unlock()
	if err := f.wait(ctx, linger); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.State == platform.ReplicaRunning {
		r.end(0, false, f.tick())
	}
	r.gone = true
	delete(f.replicas, r.ID)
	r.tell()
	f.emit(r)
	return nil
}

// start begins a run. f.mu must be held.
func (f *Fake) start(r *fakeReplica, b Behavior) error {
	f.runs[r.load.Digest]++
	r.State, r.StartedAt, r.FinishedAt, r.ExitCode, r.OOMKilled, r.Error = platform.ReplicaRunning, f.tick(), time.Time{}, 0, false, ""
	// Nobody listens on port 1.
	r.Addr = "127.0.0.1:1"
	if !b.Deaf {
		if err := f.serve(r, b); err != nil {
			return err
		}
	}
	output := b.Output
	if output == nil {
		output = []string{"serving"}
	}
	for _, line := range output {
		r.lines = append(r.lines, platform.LogLine{TS: f.tick(), Stream: platform.StreamStdout, Replica: r.Label, Line: line})
	}
	r.tell()
	f.emit(r)
	if b.Exits < 0 || f.runs[r.load.Digest] <= b.Exits {
		r.end(b.ExitCode, b.OOM, f.tick())
		f.emit(r)
	}
	return nil
}

// serve gives a run an address and answers there. f.mu must be held.
func (f *Fake) serve(r *fakeReplica, b Behavior) error {
	handler := b.Handler
	if handler == nil {
		label := r.Label
		handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, label) })
	}
	address := "127.0.0.1:0"
	if b.Listen != nil {
		address = freePort()
		r.Addr = address
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: handler}
	r.stop = func() {
		cancel()
		_ = server.Close()
	}
	if b.Listen == nil {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("listening for a replica: %w", err)
		}
		r.Addr = listener.Addr().String()
		f.servers.Go(func() { _ = server.Serve(listener) })
		return nil
	}
	f.servers.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-b.Listen:
		}
		if listener, err := net.Listen("tcp", address); err == nil {
			_ = server.Serve(listener)
		}
	})
	return nil
}

// freePort names a loopback address on which nobody listens now.
func freePort() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:1"
	}
	defer listener.Close()
	return listener.Addr().String()
}

// emit tells the watchers. f.mu must be held.
func (f *Fake) emit(r *fakeReplica) {
	if f.mute {
		return
	}
	for w := range f.watchers {
		select {
		case w <- platform.Event{ServiceID: r.ServiceID, ReleaseID: r.ReleaseID, ReplicaID: r.ID}:
		default:
		}
	}
}

// end ends a run. The Fake's mu must be held.
func (r *fakeReplica) end(code int, oom bool, now time.Time) {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	if oom {
		code = 137
	}
	r.State, r.Addr, r.ExitCode, r.OOMKilled, r.FinishedAt = platform.ReplicaExited, "", code, oom, now
	r.tell()
}

func (r *fakeReplica) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}
