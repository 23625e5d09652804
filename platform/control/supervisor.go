package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// supervisor is the only one to create or remove a service's replicas. It runs
// step after step: each reads the rows and what the runtime shows, and does
// the one next thing for each release. Nothing in a step blocks on the engine;
// calls to it run beside the loop, one per release at a time, and wake the
// loop when they are done.
type supervisor struct {
	plane *Plane
	id    platform.ID
	kick  chan struct{}

	// Owned by the loop.
	adopted   bool // the first look at the runtime has been taken
	releases  map[platform.ID]*releaseState
	collected map[string]bool // replicas whose output is copied

	calls sync.WaitGroup // calls to the engine under way

	mu      sync.Mutex
	now     platform.ServiceStatus
	volumes []platform.Volume // to be removed with the service
}

// releaseState is what the loop remembers of a release between steps.
type releaseState struct {
	busy     chan ensured   // a call under way delivers here
	failures int            // engine calls failed in a row, or crashes in quick succession
	notUntil time.Time      // back-off: no Ensure before
	ended    map[int]string // by replica index: the last run whose end was counted
	ends     int            // of a candidate's replicas
	waitSaid bool
	lastErr  error
}

type ensured struct {
	replicas int
	err      error
}

func newSupervisor(p *Plane, id platform.ID) *supervisor {
	return &supervisor{
		plane: p, id: id, kick: make(chan struct{}, 1),
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
	defer s.plane.wg.Done()
	defer s.calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.plane.ctx.Done():
			return
		case <-s.kick:
		case <-timer.C:
		}
		next, done := s.step(s.plane.ctx)
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
	active    *platform.Deployment
	candidate *platform.Deployment
	pending   *platform.Deployment // waits, and needs no build
	unbuilt   bool                 // something is being built
	replicas  map[platform.ID][]platform.Replica
	want      int
	now       time.Time
}

// step does what there is to do now and returns when to look again at the
// latest; done when the service is gone and nothing of it is left.
func (s *supervisor) step(ctx context.Context) (next time.Duration, done bool) {
	w, err := s.look(ctx)
	switch {
	case platform.KindOf(err) == platform.NotFound:
		return s.tearDown(ctx)
	case err != nil:
		s.plane.logFailure("looking at service "+string(s.id), err)
		return time.Second, false
	}
	s.collect()
	next = tick

	if w.candidate != nil && w.candidate.CancelRequested {
		s.cancel(w)
		return 0, false
	}
	if w.candidate == nil && w.pending != nil && !w.unbuilt {
		s.begin(ctx, w)
		return 0, false
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

// look reads the rows and the runtime.
func (s *supervisor) look(ctx context.Context) (*world, error) {
	p := s.plane
	service, err := p.Store.Service(ctx, s.id)
	if err != nil {
		return nil, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return nil, err
	}
	w := &world{service: service, project: project, now: time.Now(), want: 1, replicas: map[platform.ID][]platform.Replica{}}
	if service.Scale != nil {
		w.want = max(1, service.Scale.Min)
	}
	if service.ActiveDeploymentID != "" {
		d, err := p.Store.Deployment(ctx, service.ActiveDeploymentID)
		if err != nil {
			return nil, fmt.Errorf("reading the active deployment: %w", err)
		}
		w.active = &d
	}
	unfinished, err := p.Store.UnfinishedOf(ctx, s.id)
	if err != nil {
		return nil, fmt.Errorf("reading unfinished deployments: %w", err)
	}
	for _, d := range unfinished {
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
		return nil, fmt.Errorf("listing replicas: %w", err)
	}
	for _, r := range replicas {
		w.replicas[r.ReleaseID] = append(w.replicas[r.ReleaseID], r)
	}
	s.copyOutput(replicas)
	return w, nil
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
	for id := range s.collected {
		if !there[id] {
			s.plane.collector.Stop(id)
		}
	}
	s.collected = there
}

// begin moves a deployment that needs no build on to starting. One that was
// made from "whatever is active" is settled now: an older image must not
// follow a newer one because it waited.
func (s *supervisor) begin(ctx context.Context, w *world) {
	d := *w.pending
	if d.CancelRequested {
		s.plane.end(d, platform.Pending, platform.Canceled, &platform.DeploymentError{Code: platform.CodeCanceled, Message: "The deployment was canceled."})
		return
	}
	from := w.active
	if d.Source.DeploymentID != "" {
		past, err := s.plane.Store.Deployment(ctx, d.Source.DeploymentID)
		if err != nil {
			s.plane.logFailure("reading the deployment to roll back to", err)
			s.plane.sleep(time.Second)
			return
		}
		from = &past
	}
	if from == nil || from.Artifact == nil {
		s.plane.end(d, platform.Pending, platform.Failed, &platform.DeploymentError{Code: platform.CodeImageNotFound, Message: "There is no active release whose image could be used. Deploy the service first."})
		return
	}
	artifact := redeployed(*from)
	tagged, err := s.plane.Images.Tag(ctx, artifact.Digest, imageTag(w.project.Name, w.service.Name, d.Number))
	switch {
	case platform.CodeOf(err) == platform.CodeImageNotFound:
		s.plane.end(d, platform.Pending, platform.Failed, &platform.DeploymentError{Code: platform.CodeImageNotFound, Message: fmt.Sprintf(
			"The image %s is no longer in the engine. Deploy from source again.", short(artifact.Digest))})
		return
	case err != nil:
		s.plane.logFailure("tagging an image", err)
		s.plane.sleep(time.Second)
		return
	}
	tagged.Source = artifact.Source
	now := time.Now().UTC()
	if _, err := s.plane.Store.Advance(ctx, d.ID, platform.Pending, platform.Starting, func(row *platform.Deployment) {
		row.Artifact = &tagged
		row.StartedAt = &now
		row.Phases = []platform.Phase{{Name: "start", StartedAt: now}}
	}); err != nil && platform.KindOf(err) != platform.Conflict {
		s.plane.logFailure("starting a deployment", err)
	}
	s.plane.topics.publish(d.ID, s.id)
}

// advance takes the candidate one step on: replicas, readiness, promotion or
// failure. again asks for another step at once.
func (s *supervisor) advance(ctx context.Context, w *world, pool ingress.PoolStatus) (again bool, next time.Duration) {
	d := w.candidate
	r := s.release(d.ID)
	if failure := s.failure(ctx, w, pool); failure != nil {
		s.plane.end(*d, platform.Starting, platform.Failed, failure)
		return true, 0
	}
	running, ready := 0, 0
	for _, replica := range w.replicas[d.ID] {
		if replica.State == platform.ReplicaRunning && replica.Index < w.want {
			running++
			if isReady(pool, replica) {
				ready++
			}
		}
	}
	if ready >= w.want {
		return s.promote(ctx, w), time.Second
	}
	if running == w.want && !r.waitSaid {
		r.waitSaid = true
		s.plane.say(d.ID, "%d of %d replicas run, waiting for %s", running, w.want, expectation(d.Config))
	}
	wait := time.Second
	if running < w.want {
		wait = min(wait, s.ensure(w, d, w.want))
	}
	return false, wait
}

func expectation(c *platform.ReleaseConfig) string {
	switch h := c.HealthCheck; h.Type {
	case platform.HealthNone:
		return "nothing more"
	case platform.HealthTCP:
		return fmt.Sprintf("port %d to accept connections", c.Port)
	default:
		return fmt.Sprintf("GET %s on port %d to answer %s", h.Path, c.Port, h.Status)
	}
}

// promote makes the candidate the active release: first durably, then in the
// ingress. Only after both is the old one drained, by the next steps.
func (s *supervisor) promote(ctx context.Context, w *world) bool {
	d, previous, err := s.plane.Store.Promote(ctx, w.candidate.ID)
	if err != nil {
		if platform.KindOf(err) != platform.Conflict {
			s.plane.logFailure("promoting a release", err)
		}
		return false
	}
	w.active, w.candidate = &d, nil
	s.configure(w)
	s.plane.say(d.ID, "healthy: requests go to deployment %d now", d.Number)
	s.plane.finishLog(d.ID)
	s.plane.topics.publish(d.ID, s.id, previous)
	s.plane.kickBuilder()
	return true
}

// configure tells the ingress which replicas serve and which are on trial.
func (s *supervisor) configure(w *world) {
	spec := ingress.PoolSpec{
		ServiceID: s.id, Name: w.service.Name, Stopped: w.service.Stopped,
		Undeployed:   w.active == nil && w.candidate == nil && w.pending == nil && !w.unbuilt,
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
				ID: targetID(r), ReleaseID: d.ID, Addr: r.Addr, Presumed: presumed,
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

// keep brings the active release to what is desired: its replicas run, and no
// more of them than wanted; none when the service is stopped.
func (s *supervisor) keep(w *world, pool ingress.PoolStatus) time.Duration {
	if w.active == nil {
		return tick
	}
	replicas := w.replicas[w.active.ID]
	if w.service.Stopped {
		if w.active.Status == platform.Healthy {
			s.mark(w, true)
		}
		if len(replicas) == 0 {
			return tick
		}
		if busy(pool, w.active.ID) {
			return time.Second
		}
		return s.ensure(w, w.active, 0)
	}
	running, surplus, surplusBusy := 0, 0, false
	for _, r := range replicas {
		switch {
		case r.Index >= w.want:
			surplus++
			surplusBusy = surplusBusy || known(pool, targetID(r))
		case r.State == platform.ReplicaRunning:
			running++
			if w.active.Status == platform.Stopped && isReady(pool, r) {
				s.mark(w, false)
			}
		case r.State == platform.ReplicaExited:
			s.crashed(w, r)
		}
	}
	if running < w.want || surplus > 0 && !surplusBusy {
		return s.ensure(w, w.active, w.want)
	}
	if surplus > 0 {
		return time.Second
	}
	return tick
}

// mark sets the active deployment to stopped or back to healthy.
func (s *supervisor) mark(w *world, stopped bool) {
	if err := s.plane.Store.MarkStopped(s.plane.ctx, s.id, stopped); err != nil {
		s.plane.logFailure("marking the deployment", err)
		return
	}
	w.active.Status = platform.Healthy
	if stopped {
		w.active.Status = platform.Stopped
	}
	s.plane.topics.publish(w.active.ID, s.id)
}

const (
	stableAfter = 5 * time.Second
	maxBackOff  = 10 * time.Second
)

// crashed counts a replica's exit once, and says so in the service's log. A
// replica that had run for a while is started again at once; quick successions
// are slowed down.
func (s *supervisor) crashed(w *world, r platform.Replica) {
	state := s.release(w.active.ID)
	if !state.countEnd(r) {
		return
	}
	if r.FinishedAt.Sub(r.StartedAt) >= stableAfter {
		state.failures = 0
	}
	state.backOff(w.now)
	why := fmt.Sprintf("exit code %d", r.ExitCode)
	if r.OOMKilled {
		why = "out of memory"
	}
	line := platform.LogLine{TS: time.Now().UTC(), Stream: platform.StreamSystem, Replica: r.Label, Line: "replica ended (" + why + "), starting it again"}
	if err := s.plane.Logs.Append(serviceLog(s.id), line); err != nil {
		s.plane.logFailure("writing the service log", err)
	}
}

// countEnd notes the end of a replica's run; false if it was noted before.
func (r *releaseState) countEnd(replica platform.Replica) bool {
	run := targetID(replica)
	if r.ended[replica.Index] == run {
		return false
	}
	if r.ended == nil {
		r.ended = map[int]string{}
	}
	r.ended[replica.Index] = run
	r.ends++
	return true
}

// backOff counts a failure: the first two cost nothing, then 0.5 s, doubling.
func (r *releaseState) backOff(now time.Time) {
	r.failures++
	if r.failures > 2 {
		r.notUntil = now.Add(min(maxBackOff, 500*time.Millisecond<<min(r.failures-3, 10)))
	}
}

func busy(pool ingress.PoolStatus, release platform.ID) bool {
	for _, t := range pool.Targets {
		if t.ReleaseID == release {
			return true
		}
	}
	return false
}

func known(pool ingress.PoolStatus, target string) bool {
	for _, t := range pool.Targets {
		if t.ID == target {
			return true
		}
	}
	return false
}

// removeOthers removes releases that are neither active nor on trial, once the
// ingress has drained them.
func (s *supervisor) removeOthers(w *world, pool ingress.PoolStatus) time.Duration {
	next := tick
	for release := range w.replicas {
		if w.active != nil && release == w.active.ID || w.candidate != nil && release == w.candidate.ID {
			continue
		}
		if busy(pool, release) {
			next = min(next, time.Second)
			continue
		}
		next = min(next, s.ensure(w, &platform.Deployment{ID: release}, 0))
	}
	for release := range s.releases {
		if _, exists := w.replicas[release]; !exists && s.releases[release].busy == nil && !w.wants(release) {
			delete(s.releases, release)
		}
	}
	return next
}

func (w *world) wants(release platform.ID) bool {
	return w.active != nil && w.active.ID == release || w.candidate != nil && w.candidate.ID == release
}

func (s *supervisor) release(id platform.ID) *releaseState {
	if s.releases[id] == nil {
		s.releases[id] = &releaseState{}
	}
	return s.releases[id]
}

// ensure calls the runtime beside the loop, unless a call for that release is
// under way or its back-off has not passed. It returns when to look again.
func (s *supervisor) ensure(w *world, d *platform.Deployment, replicas int) time.Duration {
	r := s.release(d.ID)
	if r.busy != nil {
		return tick
	}
	if wait := r.notUntil.Sub(w.now); wait > 0 && replicas > 0 {
		return wait
	}
	load := platform.Workload{
		ID: d.ID, ServiceID: s.id, ProjectID: w.service.ProjectID,
		ServiceName: w.service.Name, ProjectName: w.project.Name, Number: d.Number, Replicas: replicas,
	}
	if d.Artifact != nil {
		load.Image, load.Digest = d.Artifact.Image, d.Artifact.Digest
	}
	if d.Config != nil {
		load.Config = *d.Config
	}
	s.call(r, load)
	return tick
}

func (s *supervisor) call(r *releaseState, load platform.Workload) {
	r.busy = make(chan ensured, 1)
	deliver := r.busy
	s.calls.Add(1)
	go func() {
		defer s.calls.Done()
		ctx, cancel := context.WithTimeout(s.plane.ctx, ensureTimeout(load))
		defer cancel()
		deliver <- ensured{load.Replicas, s.plane.Runtime.Ensure(ctx, load)}
		s.wake()
	}()
}

// ensureTimeout bounds a call to the engine: a minute for one that is slow,
// and the longest grace there is where replicas are stopped.
func ensureTimeout(load platform.Workload) time.Duration {
	if load.Replicas > 0 {
		return time.Minute
	}
	return time.Minute + time.Hour
}

// collect takes the results of calls that have ended.
func (s *supervisor) collect() {
	for id, r := range s.releases {
		select {
		case result := <-r.busy:
			r.busy = nil
			r.lastErr = nil
			if result.err != nil && s.plane.ctx.Err() == nil {
				r.lastErr = result.err
				r.failures = max(r.failures, 2)
				r.backOff(time.Now())
				s.plane.Log.Warn("the engine could not bring a release to what is desired", "service", s.id, "release", id, "replicas", result.replicas, "error", result.err)
			}
		default:
		}
	}
}

// tearDown removes everything of a service whose row is gone.
func (s *supervisor) tearDown(ctx context.Context) (time.Duration, bool) {
	p := s.plane
	s.collect()
	p.Ingress.Remove(s.id)
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
		if r := s.release(release); r.busy == nil && time.Now().After(r.notUntil) {
			s.call(r, platform.Workload{ID: release, ServiceID: s.id})
		}
	}
	if len(left) > 0 {
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
	if err := p.Logs.Remove(serviceLog(s.id)); err != nil {
		p.logFailure("removing logs", err)
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
	case w.active == nil && (w.candidate != nil || w.pending != nil || w.unbuilt):
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
	latest, ok, err := s.plane.Store.LatestOf(s.plane.ctx, s.id)
	if err == nil && ok && latest.Status == platform.Failed {
		return platform.ServiceFailed
	}
	return platform.ServiceNew
}
