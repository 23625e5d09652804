package store

import (
	"context"
	"fmt"

	"github.com/denia-paas/denia/platform"
)

// ClaimBuild moves the oldest pending deployment that needs an image made or
// fetched, and whose service has no other one building or starting, to
// building, and returns it; ok is false when there is none. Redeployments need
// no image. Concurrent claims never get the same deployment.
func (s *Store) ClaimBuild(ctx context.Context) (d platform.Deployment, ok bool, err error) {
	defer explain(&err, "claiming a build")
	err = s.write(ctx, func(tx tx) error {
		d, ok, err = one(ctx, tx, s.scanDeployment, `UPDATE deployments SET status = 'building', started_at = $1
			WHERE status = 'pending' AND id = (
				SELECT p.id FROM deployments p WHERE p.status = 'pending' AND p.needs_build AND NOT EXISTS (
					SELECT 1 FROM deployments o WHERE o.service_id = p.service_id AND o.status IN ('building', 'starting'))
				ORDER BY p.created_at, p.id LIMIT 1)
			RETURNING `+deploymentColumns, tx.now)
		return err
	})
	return d, ok && err == nil, err
}

// Refreeze gives a service's newest deployment that has not started its
// replicas yet another configuration, and returns it; ok is false when there
// is none. A redeployment of a named deployment keeps what that one froze.
func (s *Store) Refreeze(ctx context.Context, service platform.ID, config platform.ReleaseConfig) (d platform.Deployment, ok bool, err error) {
	defer explain(&err, "changing what a deployment of service %s froze", service)
	err = s.write(ctx, func(tx tx) error {
		list, err := all(ctx, tx, s.scanDeployment, selectDeployments+` WHERE service_id = $1 AND status IN ('pending', 'building') ORDER BY number DESC`, service)
		if err != nil {
			return err
		}
		for _, candidate := range list {
			if candidate.Source.DeploymentID != "" || candidate.CancelRequested {
				continue
			}
			candidate.Config = &config
			doc, err := s.encodeDeployment(candidate)
			if err != nil {
				return err
			}
			if _, err := tx.exec(ctx, `UPDATE deployments SET config = $1, secrets = $2 WHERE id = $3`, doc.config, doc.secrets, candidate.ID); err != nil {
				return err
			}
			d, ok = candidate, true
			return nil
		}
		return nil
	})
	return d, ok && err == nil, err
}

// Advance moves an unfinished deployment from one state to the next: to
// Building, Starting, Failed or Canceled; Promote leads to the others. It
// writes the times the new state implies. change, unless nil, may set Phases,
// Artifact and Error, what else it sets is not kept; it must not use the
// Store.
//
// Conflict "status_changed" when the deployment is not, or no longer, in from;
// "deployment_under_way" when it would begin while another one of its service
// is building or starting.
func (s *Store) Advance(ctx context.Context, id platform.ID, from, to platform.Status, change func(*platform.Deployment)) (d platform.Deployment, err error) {
	defer explain(&err, "moving deployment %s from %s to %s", id, from, to)
	switch to {
	case platform.Building, platform.Starting, platform.Failed, platform.Canceled:
	default:
		return d, fmt.Errorf("only Promote and MarkStopped lead to %s", to)
	}
	if !from.Can(to) {
		return d, fmt.Errorf("%s does not follow %s", to, from)
	}
	err = s.write(ctx, func(tx tx) error {
		now := tx.now
		next, err := s.mustDeployment(ctx, tx, id)
		if err != nil {
			return err
		}
		if next.Status != from {
			return statusChanged(next)
		}
		if from == platform.Pending && to.Unfinished() {
			busy, err := exists(ctx, tx, `SELECT 1 FROM deployments WHERE service_id = $1 AND status IN ('building', 'starting')`, next.ServiceID)
			if err != nil {
				return err
			}
			if busy {
				return platform.Errorf(platform.Conflict, "deployment_under_way", "another deployment of the service is under way")
			}
		}
		if change != nil {
			change(&next)
		}
		if to.Unfinished() && next.StartedAt == nil {
			next.StartedAt = &now
		}
		if !to.Unfinished() {
			next.FinishedAt = &now
		}
		phases, err := encodePhases(next.Phases)
		if err != nil {
			return err
		}
		artifact, err := asJSON(next.Artifact)
		if err != nil {
			return err
		}
		reason, err := asJSON(next.Error)
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `UPDATE deployments SET status = $1, phases = $2, artifact = $3, error = $4, started_at = $5, finished_at = $6 WHERE id = $7`,
			to, phases, artifact, reason, next.StartedAt, next.FinishedAt, id); err != nil {
			return err
		}
		d, err = s.mustDeployment(ctx, tx, id)
		return err
	})
	return d, err
}

// Promote makes a starting deployment its service's active release: it becomes
// healthy and its phases end, the one before it, whose id is returned, becomes
// inactive.
//
// Conflict "status_changed" when the deployment is not starting,
// "cancel_requested" when somebody has asked to cancel it: a cancel that was
// accepted is never overtaken.
func (s *Store) Promote(ctx context.Context, id platform.ID) (d platform.Deployment, previous platform.ID, err error) {
	defer explain(&err, "promoting deployment %s", id)
	err = s.write(ctx, func(tx tx) error {
		d, err = s.mustDeployment(ctx, tx, id)
		if err != nil {
			return err
		}
		if d.Status != platform.Starting {
			return statusChanged(d)
		}
		if d.CancelRequested {
			return platform.Errorf(platform.Conflict, "cancel_requested", "the deployment is being canceled")
		}
		previous, _, err = one(ctx, tx, scanID, `UPDATE deployments SET status = 'inactive'
			WHERE service_id = $1 AND status IN ('healthy', 'stopped') RETURNING id`, d.ServiceID)
		if err != nil {
			return err
		}
		for i := range d.Phases {
			if d.Phases[i].FinishedAt == nil {
				d.Phases[i].FinishedAt = &tx.now
			}
		}
		phases, err := encodePhases(d.Phases)
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `UPDATE deployments SET status = 'healthy', phases = $1, finished_at = $2 WHERE id = $3`, phases, tx.now, id); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `UPDATE services SET active_deployment_id = $1 WHERE id = $2`, id, d.ServiceID); err != nil {
			return err
		}
		d, err = s.mustDeployment(ctx, tx, id)
		return err
	})
	if err != nil {
		previous = ""
	}
	return d, previous, err
}

// MarkStopped moves a service's active deployment from healthy to stopped, or
// back. It does nothing when the deployment is there already or there is none.
func (s *Store) MarkStopped(ctx context.Context, service platform.ID, stopped bool) (err error) {
	defer explain(&err, "marking the release of service %s stopped or not", service)
	from, to := platform.Healthy, platform.Stopped
	if !stopped {
		from, to = to, from
	}
	return s.write(ctx, func(tx tx) error {
		_, err := tx.exec(ctx, `UPDATE deployments SET status = $1 WHERE service_id = $2 AND status = $3`, to, service, from)
		return err
	})
}

// RequestCancel asks for the end of a deployment. A pending one is canceled at
// once; one that is building or starting gets CancelRequested, and whoever
// works on it ends it. Conflict "already_finished" for any other.
func (s *Store) RequestCancel(ctx context.Context, id platform.ID) (d platform.Deployment, err error) {
	defer explain(&err, "canceling deployment %s", id)
	err = s.write(ctx, func(tx tx) error {
		d, err = s.mustDeployment(ctx, tx, id)
		if err != nil {
			return err
		}
		switch {
		case !d.Status.Unfinished():
			return platform.Errorf(platform.Conflict, "already_finished", "the deployment is %s, there is nothing left to cancel", d.Status)
		case d.Status == platform.Pending:
			reason, err := asJSON(&platform.DeploymentError{Code: platform.CodeCanceled, Message: "The deployment was canceled before it began."})
			if err != nil {
				return err
			}
			if _, err := tx.exec(ctx, `UPDATE deployments SET status = 'canceled', error = $1, finished_at = $2 WHERE id = $3`, reason, tx.now, id); err != nil {
				return err
			}
		default:
			if _, err := tx.exec(ctx, `UPDATE deployments SET cancel_requested = TRUE WHERE id = $1`, id); err != nil {
				return err
			}
		}
		d, err = s.mustDeployment(ctx, tx, id)
		return err
	})
	return d, err
}

// SavePhases replaces the phases of a deployment, in whatever state it is.
func (s *Store) SavePhases(ctx context.Context, id platform.ID, phases []platform.Phase) (err error) {
	defer explain(&err, "saving the phases of deployment %s", id)
	doc, err := encodePhases(phases)
	if err != nil {
		return err
	}
	n, err := s.single().exec(ctx, `UPDATE deployments SET phases = $1 WHERE id = $2`, doc, id)
	if err == nil && n == 0 {
		err = platform.NotFoundf("there is no deployment %s", id)
	}
	return err
}

func statusChanged(d platform.Deployment) error {
	return platform.Errorf(platform.Conflict, "status_changed", "the deployment is %s by now", d.Status)
}
