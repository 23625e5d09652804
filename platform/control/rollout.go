package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
)

// begin moves a deployment that needs no build on to starting. One that was
// made from "whatever is active" is settled now: an older image must not
// follow a newer one because it waited. False: it could not, try again later.
func (s *supervisor) begin(ctx context.Context, w *world) bool {
	d := *w.pending
	from, err := s.imageOf(ctx, w)
	if err != nil {
		s.plane.logFailure("reading the deployment whose image is to be used", err)
		return false
	}
	if from == nil || from.Artifact == nil {
		return s.plane.end(ctx, d, platform.Pending, platform.Failed, &platform.DeploymentError{Code: platform.CodeImageNotFound, Message: "There is no release whose image could be used. Deploy the service first."})
	}
	r := s.release(d.ID)
	if r.busy != nil {
		return false // its image is being brought back
	}
	artifact := redeployed(*from)
	if r.restored != nil {
		artifact.Digest = r.restored.Digest
	}
	tagged, err := s.plane.Images.Tag(ctx, artifact.Digest, imageTag(w.project.Name, w.service.Name, d.Number))
	switch {
	case platform.CodeOf(err) == platform.CodeImageNotFound && artifact.ManifestDigest != "" && r.restores == 0:
		s.bringBack(w, &d, *artifact)
		return false
	case platform.CodeOf(err) == platform.CodeImageNotFound:
		return s.plane.end(ctx, d, platform.Pending, platform.Failed, lostImage(artifact, r.unrestored))
	case platform.CodeOf(err) == platform.CodeDiskFull:
		return s.plane.end(ctx, d, platform.Pending, platform.Failed, buildError(err, nil))
	case err != nil:
		s.plane.logFailure("tagging an image", err)
		return false
	}
	tagged.Source, tagged.ManifestDigest = artifact.Source, artifact.ManifestDigest
	now := time.Now().UTC()
	if _, err := s.plane.Store.Advance(ctx, d.ID, platform.Pending, platform.Starting, func(row *platform.Deployment) {
		row.Artifact = &tagged
		row.Phases = []platform.Phase{{Name: "start", StartedAt: now}}
	}); err != nil {
		s.plane.movedOn("starting a deployment", err)
		return false
	}
	s.plane.topics.publish(d.ID, s.id)
	return true
}

// imageOf returns the deployment whose image the pending one runs: the one it
// names, else the active release. A configuration that was changed while the
// very first release was starting goes with that one's image, whatever became
// of it.
func (s *supervisor) imageOf(ctx context.Context, w *world) (*platform.Deployment, error) {
	if id := w.pending.Source.DeploymentID; id != "" {
		past, err := s.plane.Store.Deployment(ctx, id)
		return &past, err
	}
	if w.active != nil || w.pending.Trigger != platform.TriggerConfig {
		return w.active, nil
	}
	past, _, err := s.plane.Store.Deployments(ctx, s.id, store.Page{})
	if err != nil {
		return nil, err
	}
	for _, d := range past {
		if d.Artifact != nil {
			return &d, nil
		}
	}
	return nil, nil
}

// advance takes the candidate one step on: replicas, readiness, promotion or
// failure. again asks for another step at once.
func (s *supervisor) advance(ctx context.Context, w *world, pool ingress.PoolStatus) (again bool, next time.Duration) {
	d := w.candidate
	r := s.release(d.ID)
	if failure := s.failure(ctx, w, pool); failure != nil {
		return s.plane.end(ctx, *d, platform.Starting, platform.Failed, failure), time.Second
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
		s.plane.movedOn("promoting a release", err)
		return false
	}
	w.active, w.candidate = &d, nil
	s.configure(w)
	s.plane.say(d.ID, "healthy: requests go to deployment %d now", d.Number)
	s.plane.finishLog(d.ID)
	s.plane.topics.publish(d.ID, s.id, previous)
	s.plane.kickBuilder()
	s.plane.copies.want(s.id)
	return true
}

// lostImage says that the engine no longer has an image; why is what kept it
// from being brought back.
func lostImage(artifact *platform.Artifact, why error) *platform.DeploymentError {
	lost := &platform.DeploymentError{Code: platform.CodeImageNotFound, Message: fmt.Sprintf("The image %s is no longer in the engine", short(artifact.Digest))}
	if e, ok := errors.AsType[*platform.Error](why); ok && artifact.ManifestDigest != "" {
		lost.Message += ", and could not be brought back from the registry: " + e.Message
	}
	lost.Message += ". Deploy from source again."
	return lost
}

// cancel ends a candidate a person canceled: its replicas go first, then the
// status says so, and only then cancel returns true.
func (s *supervisor) cancel(ctx context.Context, w *world) bool {
	d := w.candidate
	w.candidate, w.canceled = nil, d
	r := s.release(d.ID)
	r.interrupt()
	if r.busy != nil || len(w.replicas[d.ID]) > 0 {
		return false
	}
	return s.plane.end(ctx, *d, platform.Starting, platform.Canceled, &platform.DeploymentError{Code: platform.CodeCanceled, Message: "The deployment was canceled."})
}
