package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// keep brings the active release to what is desired: its replicas run, and no
// more of them than wanted; none when the service is stopped.
func (s *supervisor) keep(w *world, pool ingress.PoolStatus) time.Duration {
	if w.active == nil {
		return rest
	}
	replicas := w.replicas[w.active.ID]
	if w.service.Stopped {
		if w.active.Status == platform.Healthy {
			s.mark(w, true)
		}
		if len(replicas) == 0 {
			return rest
		}
		if busy(pool, w.active.ID) {
			return time.Second
		}
		return s.ensure(w, w.active, 0)
	}
	running, surplus, kept := 0, 0, w.want
	for _, r := range replicas {
		switch {
		case r.Index >= w.want:
			surplus++
			if known(pool, targetID(r)) {
				kept = max(kept, r.Index+1) // it drains
			}
		case r.State == platform.ReplicaRunning:
			running++
			if isReady(pool, r) {
				s.release(w.active.ID).servedBy(r)
				if w.active.Status == platform.Stopped {
					s.mark(w, false)
				}
			}
		case r.State == platform.ReplicaExited:
			s.crashed(w, r)
		}
	}
	if running < w.want || surplus > 0 && kept == w.want {
		return s.ensure(w, w.active, kept)
	}
	if surplus > 0 {
		return time.Second
	}
	return rest
}

// mark sets the active deployment to stopped or back to healthy.
func (s *supervisor) mark(w *world, stopped bool) {
	if err := s.plane.Store.MarkStopped(s.ctx, s.id, stopped); err != nil {
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
	free := 2
	if state.served[r.Index] == targetID(r) {
		// It starts well: whoever waits is better served by a new one at once.
		free = 10
	}
	state.backOff(w.now, free)
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
	if r.ends == nil {
		r.ends = map[int]int{}
	}
	r.ends[replica.Index]++
	return true
}

// pause is how long to wait before the runtime is asked for that many
// replicas. Crashes hold nothing up that is to go.
func (r *releaseState) pause(replicas int, now time.Time) time.Duration {
	if replicas == 0 && (r.desired > 0 || r.err == nil) {
		return 0
	}
	return r.notUntil.Sub(now)
}

// interrupt ends a call that makes replicas nobody wants any more.
func (r *releaseState) interrupt() {
	if r.busy != nil && r.desired > 0 {
		r.stop()
	}
}

// servedBy notes that a run of a replica was ready.
func (r *releaseState) servedBy(replica platform.Replica) {
	if r.served == nil {
		r.served = map[int]string{}
	}
	r.served[replica.Index] = targetID(replica)
}

// backOff counts a failure: the first ones cost nothing, then it is 0.5 s,
// doubling.
func (r *releaseState) backOff(now time.Time, free int) {
	r.failures++
	if over := r.failures - free; over > 0 {
		r.notUntil = now.Add(min(maxBackOff, 500*time.Millisecond<<min(over-1, 10)))
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
	next := rest
	for release := range w.replicas {
		if w.active != nil && release == w.active.ID || w.candidate != nil && release == w.candidate.ID {
			continue
		}
		if busy(pool, release) {
			next = min(next, time.Second)
			continue
		}
		load := platform.Deployment{ID: release}
		if w.canceled != nil && w.canceled.ID == release {
			grace := 1 // somebody waits
			load.Config = &platform.ReleaseConfig{RunSpec: platform.RunSpec{StopGraceS: &grace}}
		}
		next = min(next, s.ensure(w, &load, 0))
	}
	for release, r := range s.releases {
		if w.wants(release) {
			continue
		}
		if !r.restore.IsZero() {
			r.interrupt() // superseded while it waited for its image
		}
		if _, exists := w.replicas[release]; !exists && r.busy == nil {
			delete(s.releases, release)
		}
	}
	return next
}

func (w *world) wants(release platform.ID) bool {
	for _, d := range []*platform.Deployment{w.active, w.candidate, w.pending} {
		if d != nil && d.ID == release {
			return true
		}
	}
	return false
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
		if replicas == 0 {
			r.interrupt()
		}
		return rest
	}
	if wait := r.pause(replicas, w.now); wait > 0 {
		return wait
	}
	if replicas > 0 && r.lost && d.Artifact != nil && d.Artifact.ManifestDigest != "" {
		s.bringBack(w, d, *d.Artifact)
		return rest
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
	return rest
}

func (s *supervisor) call(r *releaseState, load platform.Workload) {
	deliver := make(chan error, 1)
	ctx, cancel := context.WithTimeout(s.ctx, ensureTimeout(load))
	r.busy, r.desired, r.stop = deliver, load.Replicas, cancel
	s.calls.Go(func() {
		defer cancel()
		deliver <- s.plane.Runtime.Ensure(ctx, load)
		s.wake()
	})
}

// bringBack has the engine fetch an image that it has lost from Denia's own
// registry, beside the loop. The artifact says which.
func (s *supervisor) bringBack(w *world, d *platform.Deployment, artifact platform.Artifact) {
	r, p := s.release(d.ID), s.plane
	deliver := make(chan error, 1)
	ctx, cancel := context.WithTimeout(s.ctx, p.PullTimeout)
	r.busy, r.desired, r.stop, r.restore = deliver, 1, cancel, w.now
	r.restores++
	id, recorded, tag := d.ID, d.Artifact != nil, imageTag(w.project.Name, w.service.Name, d.Number)
	p.say(id, "the image %s is no longer in the engine, bringing it back from the registry", short(artifact.Digest))
	p.Log.Warn("the engine has lost the image of a release; bringing it back from the registry", "service", s.id, "release", id)
	s.calls.Go(func() {
		defer cancel()
		image, err := p.pullOwn(ctx, s.id, artifact.ManifestDigest, tag, io.Discard)
		if err == nil && recorded && image.Digest != artifact.Digest {
			// The same content: engines differ in what they name an image by.
			_, err = p.Store.ChangeArtifact(ctx, id, func(a *platform.Artifact) { a.Digest = image.Digest })
		}
		if err == nil {
			r.restored = &image // the loop looks once it has the result
		}
		deliver <- err
		s.wake()
	})
}

// watched is for how long the ingress could have found that a run of a
// candidate's replica is ready.
func (r *releaseState) watched(replica platform.Replica) time.Duration {
	now := time.Now()
	w, run := r.watch[replica.Index], targetID(replica)
	if w.run != run {
		w = watch{run, now}
		if r.watch == nil {
			r.watch = map[int]watch{}
		}
		r.watch[replica.Index] = w
	}
	return now.Sub(w.since)
}

// standStill puts forward what a candidate is measured by, after a time in which
// nothing was seen. Of two such times that overlap nothing counts twice.
func (r *releaseState) standStill(away time.Duration) {
	now := time.Now()
	forward := func(t time.Time) time.Time {
		if t = t.Add(away); t.After(now) {
			return now
		}
		return t
	}
	if !r.since.IsZero() {
		r.since = forward(r.since)
	}
	for index, w := range r.watch {
		r.watch[index] = watch{w.run, forward(w.since)}
	}
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
		case err := <-r.busy:
			r.busy, r.stop, r.err = nil, nil, err
			if r.restore.IsZero() {
				r.lost = platform.CodeOf(err) == platform.CodeImageNotFound
			} else {
				// The next call asks the engine again: somebody may have loaded
				// the image by hand.
				r.lost, r.unrestored = false, err
				r.standStill(time.Since(r.restore))
				r.restore = time.Time{}
				if code := platform.CodeOf(err); code == platform.CodeEngineUnavailable || code == "database_unavailable" || errors.Is(err, context.Canceled) {
					// Nobody has said that the image is not there.
					r.restores--
					r.unrestored = nil
				}
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				r.failures = max(r.failures, 2)
				r.backOff(time.Now(), 2)
				s.plane.Log.Warn("the engine could not bring a release to what is desired", "service", s.id, "release", id, "replicas", r.desired, "error", err)
			}
		default:
		}
	}
}
