package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/denia-paas/denia/platform"
)

// CreateDeployment makes a pending deployment, with a new id unless it has
// one, and gives it the service's next number. In the same transaction it
// consumes the upload its source names, and cancels the service's older
// pending deployments as superseded; their ids are returned.
//
// NotFound when the service does not exist, or the upload does not, has
// expired or belongs to another service; Conflict "upload_used" when another
// deployment has used it.
func (s *Store) CreateDeployment(ctx context.Context, deployment platform.Deployment) (d platform.Deployment, superseded []platform.ID, err error) {
	defer explain(&err, "creating a deployment of service %s", deployment.ServiceID)
	if deployment.Status != platform.Pending && deployment.Status != "" {
		return d, nil, fmt.Errorf("a new deployment cannot be %s", deployment.Status)
	}
	if deployment.ID == "" {
		deployment.ID = NewID()
	}
	err = s.write(ctx, func(tx tx) error {
		if found, err := exists(ctx, tx, `SELECT 1 FROM services WHERE id = $1`, deployment.ServiceID); err != nil {
			return err
		} else if !found {
			return noService(deployment.ServiceID)
		}
		if deployment.CreatedAt.IsZero() {
			deployment.CreatedAt = tx.now
		}
		doc, err := s.encodeDeployment(deployment)
		if err != nil {
			return err
		}
		number, _, err := one(ctx, tx, func(r row) (n int64, err error) { return n, r.Scan(&n) },
			`SELECT COALESCE(MAX(number), 0) + 1 FROM deployments WHERE service_id = $1`, deployment.ServiceID)
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `INSERT INTO deployments (id, service_id, number, status, origin, actor, source, config, secrets, phases, needs_build, cancel_requested, created_at)
			VALUES ($1, $2, $3, 'pending', $4, $5, $6, $7, $8, $9, $10, FALSE, $11)`,
			deployment.ID, deployment.ServiceID, number, deployment.Trigger, deployment.Actor,
			doc.source, doc.config, doc.secrets, doc.phases, deployment.Source.Type != platform.SourceRedeploy, deployment.CreatedAt); err != nil {
			return err
		}
		if upload := deployment.Source.UploadID; deployment.Source.Type == platform.SourceUpload && upload != "" {
			if err := consumeUpload(ctx, tx, upload, deployment.ServiceID, deployment.ID); err != nil {
				return err
			}
		}
		reason, err := asJSON(&platform.DeploymentError{
			Code:    platform.CodeSuperseded,
			Message: fmt.Sprintf("Deployment %d took its place before it began.", number),
		})
		if err != nil {
			return err
		}
		if superseded, err = all(ctx, tx, scanID, `UPDATE deployments SET status = 'canceled', error = $1, finished_at = $2
			WHERE service_id = $3 AND status = 'pending' AND id <> $4 RETURNING id`,
			reason, tx.now, deployment.ServiceID, deployment.ID); err != nil {
			return err
		}
		d, err = s.mustDeployment(ctx, tx, deployment.ID)
		return err
	})
	if err != nil {
		superseded = nil // the transaction that canceled them is undone
	}
	return d, superseded, err
}

// Deployment returns the deployment with that id.
func (s *Store) Deployment(ctx context.Context, id platform.ID) (d platform.Deployment, err error) {
	defer explain(&err, "reading deployment %s", id)
	return s.mustDeployment(ctx, s.read(), id)
}

// Deployments lists a service's deployments, newest first, and returns the
// cursor of the next page. A service that does not exist has none.
func (s *Store) Deployments(ctx context.Context, service platform.ID, page Page) (list []platform.Deployment, next string, err error) {
	defer explain(&err, "listing deployments of service %s", service)
	after, err := page.position("deployments", 1)
	if err != nil {
		return nil, "", err
	}
	var q builder
	q.add(selectDeployments+` WHERE service_id = ?`, service)
	if after != nil {
		n, err := number(after[0])
		if err != nil {
			return nil, "", err
		}
		q.add(` AND number < ?`, n)
	}
	q.add(` ORDER BY number DESC LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), s.scanDeployment, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "deployments", list, func(d platform.Deployment) []string { return []string{strconv.Itoa(d.Number)} })
	return list, next, nil
}

// Unfinished returns the pending, building and starting deployments of all
// services, oldest first.
func (s *Store) Unfinished(ctx context.Context) (list []platform.Deployment, err error) {
	defer explain(&err, "listing unfinished deployments")
	return all(ctx, s.read(), s.scanDeployment, selectDeployments+` WHERE status IN ('pending', 'building', 'starting') ORDER BY created_at, id`)
}

// UnfinishedOf returns the pending, building and starting deployments of a
// service, oldest first.
func (s *Store) UnfinishedOf(ctx context.Context, service platform.ID) (list []platform.Deployment, err error) {
	defer explain(&err, "listing unfinished deployments of service %s", service)
	return all(ctx, s.read(), s.scanDeployment, selectDeployments+` WHERE service_id = $1 AND status IN ('pending', 'building', 'starting') ORDER BY number`, service)
}

// LatestOf returns a service's newest deployment; ok is false when there is
// none.
func (s *Store) LatestOf(ctx context.Context, service platform.ID) (d platform.Deployment, ok bool, err error) {
	defer explain(&err, "reading the latest deployment of service %s", service)
	return one(ctx, s.read(), s.scanDeployment, selectDeployments+` WHERE service_id = $1 ORDER BY number DESC LIMIT 1`, service)
}

// HealthyHistory returns the newest n deployments of a service that were ever
// its active release, newest first.
func (s *Store) HealthyHistory(ctx context.Context, service platform.ID, n int) (list []platform.Deployment, err error) {
	defer explain(&err, "reading the releases of service %s", service)
	return all(ctx, s.read(), s.scanDeployment, selectDeployments+` WHERE service_id = $1 AND status IN ('healthy', 'inactive', 'stopped') AND artifact IS NOT NULL
		ORDER BY number DESC LIMIT $2`, service, max(n, 0))
}

const (
	deploymentColumns = `id, service_id, number, status, origin, actor, source, config, secrets, phases, artifact, error, cancel_requested, created_at, started_at, finished_at`
	selectDeployments = `SELECT ` + deploymentColumns + ` FROM deployments`
)

func (s *Store) scanDeployment(r row) (d platform.Deployment, err error) {
	var sec secrets
	err = r.Scan(&d.ID, &d.ServiceID, &d.Number, &d.Status, &d.Trigger, &d.Actor, intoJSON(&d.Source), intoJSON(&d.Config), s.intoSealed(&sec),
		intoJSON(&d.Phases), intoJSON(&d.Artifact), intoJSON(&d.Error), &d.CancelRequested,
		intoTime(&d.CreatedAt), intoOptionalTime(&d.StartedAt), intoOptionalTime(&d.FinishedAt))
	if d.Config != nil {
		d.Config.SecretEnv = sec.Env
	}
	pasteBuildSecrets(&d.Source, sec.Build)
	return d, err
}

func (s *Store) mustDeployment(ctx context.Context, tx tx, id platform.ID) (platform.Deployment, error) {
	d, found, err := one(ctx, tx, s.scanDeployment, selectDeployments+` WHERE id = $1`, id)
	if err == nil && !found {
		err = platform.NotFoundf("there is no deployment %s", id)
	}
	return d, err
}

// documents are the columns of a deployment that hold one.
type documents struct{ source, config, secrets, phases any }

func (s *Store) encodeDeployment(d platform.Deployment) (doc documents, err error) {
	var hidden secrets
	source, build := cutBuildSecrets(d.Source)
	hidden.Build = build
	config := d.Config
	if config != nil {
		bare := *config
		hidden.Env, bare.SecretEnv = bare.SecretEnv, nil
		config = &bare
	}
	if doc.source, err = asJSON(&source); err != nil {
		return doc, err
	}
	if doc.config, err = asJSON(config); err != nil {
		return doc, err
	}
	if doc.secrets, err = s.sealed(hidden); err != nil {
		return doc, err
	}
	doc.phases, err = encodePhases(d.Phases)
	return doc, err
}

// encodePhases keeps an empty list as one, so that it reads "[]" in the API.
func encodePhases(phases []platform.Phase) (any, error) {
	stored := make([]platform.Phase, len(phases))
	for i, p := range phases {
		p.StartedAt = p.StartedAt.UTC().Truncate(time.Millisecond)
		if p.FinishedAt != nil {
			finished := p.FinishedAt.UTC().Truncate(time.Millisecond)
			p.FinishedAt = &finished
		}
		stored[i] = p
	}
	return asJSON(&stored)
}
