package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/telemetry"
)

// supervisor is the only one to create or remove a service's replicas. It runs
// step after step: each reads the rows and what the runtime shows, and does
// the one next thing for each release. Nothing in a step blocks on the engine;
// calls to it run beside the loop, one per release at a time, and wake the
// loop when they are done.
type supervisor struct {
	plane *Plane
	ctx   context.Context // ends with the term it was made in
	id    platform.ID
	kick  chan struct{}

	// Owned by the loop.
	adopted    bool      // the first look at the runtime has been taken
	blindSince time.Time // since when looking fails, zero while it does not
	awaySince  time.Time // since when it is the engine that fails
	releases   map[platform.ID]*releaseState
	collected  map[string]bool // replicas whose output is copied

	calls sync.WaitGroup // calls to the engine under way

	mu      sync.Mutex
	now     platform.ServiceStatus
	volumes []platform.Volume // to be removed with the service
	seen    []platform.Replica
}

// releaseState is what the loop remembers of a release between steps.
type releaseState struct {
	busy     chan error         // a call under way delivers here
	desired  int                // replicas the last call asked for
	stop     context.CancelFunc // ends the call under way
	err      error              // of the last call
	failures int                // engine calls failed in a row, or crashes in quick succession
	notUntil time.Time          // back-off: no call before
	ended    map[int]string     // by replica index: the last run whose end was counted
	ends     map[int]int        // by replica index: how many ends of a candidate were counted
	served   map[int]string     // by replica index: the last run that was ready
	waitSaid bool

	lost     bool               // the engine does not have the image any more
	restore  time.Time          // since when a call brings it back; zero: none does
	restores int                // how often that was tried
	restored *platform.Artifact // as it was brought back

	unrestored error // why it was not, the last time

	// since is when this supervisor first saw the candidate, watch since when
	// the ingress probes its replicas, by their index. Both are put forward by
	// the time in which nothing could be seen: what Denia or the engine was
	// away for does not count against a release.
	since time.Time
	watch map[int]watch
}

// watch is of one run of a replica.
type watch struct {
	run   string
	since time.Time
}

func newSupervisor(ctx context.Context, p *Plane, id platform.ID) *supervisor {
	return &supervisor{
		plane: p, ctx: ctx, id: id, kick: make(chan struct{}, 1),
		releases: map[platform.ID]*releaseState{},
		now:      platform.ServiceStatus{State: platform.ServiceNew},
	}
}

func (s *supervisor) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *supervisor) status() platform.ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *supervisor) dropVolumes(v []platform.Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes = v
}

func (s *supervisor) run() {
	defer s.calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.kick:
		case <-timer.C:
		}
		next, done := s.step(s.ctx)
		if done {
			s.plane.forget(s)
			s.plane.topics.publish(s.id)
			return
		}
		timer.Reset(next)
	}
}

// world is all that a step decides on.
type world struct {
	service   platform.Service
	project   platform.Project
	holds     int // of the ingress, before all this was read
	active    *platform.Deployment
	candidate *platform.Deployment
	pending   *platform.Deployment // waits, and needs no build
	canceled  *platform.Deployment // was the candidate, its replicas are going
	unbuilt   bool                 // something is being built
	underWay  bool                 // any deployment is unfinished
	stoppable bool                 // any unfinished one has not been asked to end
	replicas  map[platform.ID][]platform.Replica
	want      int
	now       time.Time
}

// step does what there is to do now and returns when to look again at the
// latest; done when the service is gone and nothing of it is left.
func (s *supervisor) step(ctx context.Context) (next time.Duration, done bool) {
	// First what calls have done, then what there is: a call that is known to
	// have ended has left nothing that the look does not show.
	s.collect()
	began := time.Now()
	w, gone, err := s.look(ctx)
	switch {
	case gone:
		return s.tearDown(ctx)
	case err != nil:
		s.lost(w, began, err)
		return time.Second, false
	}
	s.found()
	next = rest

	switch {
	case w.service.Stopped && w.stoppable:
		if err := s.plane.cancelOfStopped(ctx, s.id); err == nil {
			return 0, false
		}
		s.plane.logFailure("canceling deployments of a stopped service", err)
		next = time.Second
	case w.candidate != nil && w.candidate.CancelRequested:
		if s.cancel(ctx, w) {
			return 0, false
		}
		next = time.Second
	case w.candidate == nil && w.pending != nil && !w.unbuilt:
		if s.begin(ctx, w) {
			return 0, false
		}
		next = time.Second
	}

	s.configure(w)
	pool := s.plane.Ingress.Status(s.id)
	if w.candidate != nil {
		again, soon := s.advance(ctx, w, pool)
		if again {
			return 0, false
		}
		next = min(next, soon)
	}
	next = min(next, s.keep(w, pool))
	next = min(next, s.removeOthers(w, pool))
	s.observe(w, pool)
	s.adopted = true
	return next, false
}

// look reads the rows and the runtime; gone tells that the service's row does
// not exist, which nothing else may be mistaken for. With an error the world,
// unless nil, has all but the replicas.
func (s *supervisor) look(ctx context.Context) (w *world, gone bool, err error) {
	p := s.plane
	holds := p.Ingress.Holds(s.id)
	service, err := p.Store.Service(ctx, s.id)
	if err != nil {
		return nil, platform.KindOf(err) == platform.NotFound, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return nil, false, err
	}
	w = &world{service: service, project: project, holds: holds, now: time.Now(), want: 1, replicas: map[platform.ID][]platform.Replica{}}
	if service.Scale != nil {
		w.want = max(1, service.Scale.Min)
	}
	if service.ActiveDeploymentID != "" {
		d, err := p.Store.Deployment(ctx, service.ActiveDeploymentID)
		if err != nil {
			return nil, false, fmt.Errorf("reading the active deployment: %w", err)
		}
		w.active = &d
	}
	unfinished, err := p.Store.UnfinishedOf(ctx, s.id)
	if err != nil {
		return nil, false, fmt.Errorf("reading unfinished deployments: %w", err)
	}
	w.underWay = len(unfinished) > 0
	for _, d := range unfinished {
		w.stoppable = w.stoppable || !d.CancelRequested
		switch {
		case d.Status == platform.Starting:
			w.candidate = &d
		case d.Status == platform.Building:
			w.unbuilt = true
		case d.Source.Type == platform.SourceRedeploy:
			w.pending = &d
		}
	}
	replicas, err := p.Runtime.Replicas(ctx, s.id)
	if err != nil {
		return w, false, fmt.Errorf("listing replicas: %w", err)
	}
	for _, r := range replicas {
		w.replicas[r.ReleaseID] = append(w.replicas[r.ReleaseID], r)
	}
	s.saw(replicas)
	s.copyOutput(replicas)
	return w, false, nil
}

// saw remembers what the runtime showed.
func (s *supervisor) saw(replicas []platform.Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = replicas
}

// hasSeen tells whether the runtime shows what it showed at the last look.
func (s *supervisor) hasSeen(replicas []platform.Replica) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Equal(s.seen, replicas)
}

// lost notes that looking failed, which it began to at a time. What was
// configured stays as it is.
func (s *supervisor) lost(w *world, began time.Time, err error) {
	if w == nil && platform.KindOf(err) == platform.NotFound {
		return // deleted between two reads: the next look will tell
	}
	if s.blindSince.IsZero() {
		s.blindSince = began
		s.plane.logFailure("looking at service "+string(s.id), err)
	}
	if w == nil {
		s.awaySince = time.Time{}
		return
	}
	if s.awaySince.IsZero() {
		s.awaySince = began
	}
	if !s.adopted || w.service.Stopped {
		// The rows alone say whether requests are to wait; where nothing was
		// ever seen, nothing is ready.
		s.configure(w)
		s.observe(w, s.plane.Ingress.Status(s.id))
	}
	if d := w.candidate; d != nil && time.Since(s.awaySince) > blindAllowance {
		s.plane.end(s.ctx, *d, platform.Starting, platform.Failed, &platform.DeploymentError{Code: platform.CodeEngineUnavailable, Message: fmt.Sprintf(
			"The engine did not answer for %s while the replicas were to start. See that it runs, then deploy again.", blindAllowance)})
	}
}

// found notes that looking works, after it may have failed. The look that found
// it so may have waited for long: until it ended nothing was seen.
func (s *supervisor) found() {
	if s.blindSince.IsZero() {
		return
	}
	away := time.Since(s.blindSince)
	s.blindSince, s.awaySince = time.Time{}, time.Time{}
	s.plane.Log.Info("the service can be looked at again", "service", s.id, "after", away)
	for _, r := range s.releases {
		r.standStill(away)
	}
}

// copyOutput has the output of every replica there is copied into the
// service's log, and of none that is gone.
func (s *supervisor) copyOutput(replicas []platform.Replica) {
	there := map[string]bool{}
	for _, r := range replicas {
		if r.State != platform.ReplicaCreated {
			there[r.ID] = true
			s.plane.collector.Start(r.ID, serviceLog(s.id), r.Label)
		}
	}
	var gone []string
	for id := range s.collected {
		if !there[id] {
			gone = append(gone, id)
		}
	}
	s.plane.collector.Stop(gone...)
	s.collected = there
}

// configure tells the ingress which replicas serve and which are on trial.
func (s *supervisor) configure(w *world) {
	spec := ingress.PoolSpec{
		ServiceID: s.id, Name: w.service.Name, Project: w.project.Name, Stopped: w.service.Stopped,
		Undeployed: w.active == nil && !w.underWay, Holds: w.holds,
		DrainTimeout: time.Duration(*w.service.WithDefaults().DrainTimeoutS) * time.Second,
		Notify:       s.wake,
	}
	if w.active != nil && !w.service.Stopped {
		spec.Serving = s.targets(w, w.active, !s.adopted)
		spec.DrainTimeout = time.Duration(*w.active.Config.DrainTimeoutS) * time.Second
	}
	if w.candidate != nil && !w.service.Stopped {
		spec.Candidates = s.targets(w, w.candidate, false)
	}
	for _, replicas := range w.replicas {
		for _, r := range replicas {
			if r.State == platform.ReplicaExited {
				spec.Gone = append(spec.Gone, targetID(r))
			}
		}
	}
	s.plane.Ingress.Configure(spec)
}

func (s *supervisor) targets(w *world, d *platform.Deployment, presumed bool) []ingress.Target {
	var targets []ingress.Target
	for _, r := range w.replicas[d.ID] {
		if r.State == platform.ReplicaRunning && r.Index < w.want && r.Addr != "" {
			targets = append(targets, ingress.Target{
				ID: targetID(r), Label: r.Label, ReleaseID: d.ID, Addr: r.Addr, Presumed: presumed,
				Health: *d.Config.HealthCheck, Protocol: d.Config.Protocol,
			})
		}
	}
	return targets
}

// targetID tells one run of a replica from the next: its address may change,
// and what was known of its health is worth nothing.
func targetID(r platform.Replica) string {
	return fmt.Sprintf("%s@%d", r.ID, r.StartedAt.UnixNano())
}

func isReady(pool ingress.PoolStatus, r platform.Replica) bool {
	id := targetID(r)
	for _, t := range pool.Targets {
		if t.ID == id {
			return t.Ready
		}
	}
	return false
}

// tearDown removes everything of a service whose row is gone.
func (s *supervisor) tearDown(ctx context.Context) (time.Duration, bool) {
	p := s.plane
	p.Ingress.Remove(s.id)
	// A call that makes replicas would leave them behind.
	working := false
	for _, r := range s.releases {
		if r.busy != nil {
			working = true
			r.interrupt()
		}
	}
	replicas, err := p.Runtime.Replicas(ctx, s.id)
	if err != nil {
		p.logFailure("listing replicas of a deleted service", err)
		return time.Second, false
	}
	left := map[platform.ID]bool{}
	for _, r := range replicas {
		left[r.ReleaseID] = true
	}
	s.copyOutput(nil)
	for release := range left {
		if r := s.release(release); r.busy == nil && r.pause(0, time.Now()) <= 0 {
			s.call(r, platform.Workload{ID: release, ServiceID: s.id})
		}
	}
	if working || len(left) > 0 {
		return time.Second, false
	}
	s.mu.Lock()
	volumes := s.volumes
	s.mu.Unlock()
	if len(volumes) > 0 {
		names := make([]string, len(volumes))
		for i, v := range volumes {
			names[i] = v.Name
		}
		if err := p.Runtime.RemoveVolumes(ctx, s.id, names); err != nil {
			p.logFailure("removing volumes", err)
			return time.Second, false
		}
	}
	if !p.copies.end(s.id) {
		return 100 * time.Millisecond, false
	}
	if err := p.Registry.Drop(ctx, s.id); err != nil {
		p.logFailure("dropping the repositories of a deleted service", err)
		return time.Second, false
	}
	for _, key := range []string{serviceLog(s.id), telemetry.RequestsKey(s.id)} {
		if err := p.Logs.Remove(key); err != nil {
			p.logFailure("removing logs", err)
		}
	}
	return 0, true
}

// observe derives what the API shows.
func (s *supervisor) observe(w *world, pool ingress.PoolStatus) {
	status := platform.ServiceStatus{Replicas: platform.Replicas{Desired: w.want}}
	if w.active != nil {
		for _, r := range w.replicas[w.active.ID] {
			if r.State == platform.ReplicaRunning && r.Index < w.want && isReady(pool, r) {
				status.Replicas.Ready++
			}
		}
	}
	switch {
	case w.service.Stopped:
		status.State, status.Replicas.Desired = platform.ServiceStopped, 0
	case w.active == nil && w.underWay:
		status.State = platform.ServiceDeploying
	case w.active == nil:
		status.State, status.Replicas.Desired = s.neverHealthy(), 0
	case status.Replicas.Ready >= w.want:
		status.State = platform.ServiceRunning
	case status.Replicas.Ready > 0:
		status.State = platform.ServiceDegraded
	default:
		status.State = platform.ServiceUnavailable
	}
	s.mu.Lock()
	changed := s.now != status
	s.now = status
	s.mu.Unlock()
	if changed {
		s.plane.topics.publish(s.id)
	}
}

func (s *supervisor) neverHealthy() string {
	latest, ok, err := s.plane.Store.LatestOf(s.ctx, s.id)
	if err == nil && ok && latest.Status == platform.Failed {
		return platform.ServiceFailed
	}
	return platform.ServiceNew
}
