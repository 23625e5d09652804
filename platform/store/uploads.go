package store

import (
	"context"
	"time"

	"github.com/denia-paas/denia/platform"
)

// CreateUpload records an upload under the id it has. NotFound when its
// service does not exist.
func (s *Store) CreateUpload(ctx context.Context, upload platform.Upload) (err error) {
	defer explain(&err, "recording upload %s", upload.ID)
	return s.write(ctx, func(tx tx) error {
		if found, err := exists(ctx, tx, `SELECT 1 FROM services WHERE id = $1`, upload.ServiceID); err != nil {
			return err
		} else if !found {
			return noService(upload.ServiceID)
		}
		_, err := tx.exec(ctx, `INSERT INTO uploads (`+uploadColumns+`) VALUES ($1, $2, $3, $4, $5, $6)`,
			upload.ID, upload.ServiceID, upload.SizeBytes, upload.Digest, upload.ExpiresAt, optional(upload.DeploymentID))
		return err
	})
}

// Upload returns the upload with that id, expired or used ones too.
func (s *Store) Upload(ctx context.Context, id platform.ID) (u platform.Upload, err error) {
	defer explain(&err, "reading upload %s", id)
	return mustUpload(ctx, s.read(), id)
}

// ExpiredUploads returns the uploads whose bytes nobody needs any more: unused
// ones that ended at or before now, and those whose deployment is finished.
func (s *Store) ExpiredUploads(ctx context.Context, now time.Time) (list []platform.Upload, err error) {
	defer explain(&err, "listing expired uploads")
	return all(ctx, s.read(), scanUpload, `SELECT u.id, u.service_id, u.size_bytes, u.digest, u.expires_at, u.deployment_id
		FROM uploads u LEFT JOIN deployments d ON d.id = u.deployment_id
		WHERE (u.deployment_id IS NULL AND u.expires_at <= $1) OR d.status NOT IN ('pending', 'building', 'starting')
		ORDER BY u.expires_at, u.id`, now)
}

// DeleteUpload forgets an upload. One that does not exist is no error.
func (s *Store) DeleteUpload(ctx context.Context, id platform.ID) (err error) {
	defer explain(&err, "deleting upload %s", id)
	_, err = s.single().exec(ctx, `DELETE FROM uploads WHERE id = $1`, id)
	return err
}

// UploadIDs returns the ids of all uploads.
func (s *Store) UploadIDs(ctx context.Context) (ids []platform.ID, err error) {
	defer explain(&err, "listing uploads")
	return all(ctx, s.read(), scanID, `SELECT id FROM uploads ORDER BY id`)
}

const (
	uploadColumns = `id, service_id, size_bytes, digest, expires_at, deployment_id`
	selectUploads = `SELECT ` + uploadColumns + ` FROM uploads`
)

func scanUpload(r row) (u platform.Upload, err error) {
	err = r.Scan(&u.ID, &u.ServiceID, &u.SizeBytes, &u.Digest, intoTime(&u.ExpiresAt), intoOptionalID(&u.DeploymentID))
	return u, err
}

func mustUpload(ctx context.Context, tx tx, id platform.ID) (platform.Upload, error) {
	u, found, err := one(ctx, tx, scanUpload, selectUploads+` WHERE id = $1`, id)
	if err == nil && !found {
		err = platform.NotFoundf("there is no upload %s", id)
	}
	return u, err
}

func consumeUpload(ctx context.Context, tx tx, id, service, deployment platform.ID) error {
	u, err := mustUpload(ctx, tx, id)
	switch {
	case err != nil:
		return err
	case u.ServiceID != service:
		return platform.NotFoundf("there is no upload %s for this service", id)
	case u.DeploymentID != "":
		return platform.Errorf(platform.Conflict, "upload_used", "the upload %s was used by deployment %s: send the build context again", id, u.DeploymentID)
	case !u.ExpiresAt.After(tx.now):
		return platform.NotFoundf("the upload %s has expired: send the build context again", id)
	}
	_, err = tx.exec(ctx, `UPDATE uploads SET deployment_id = $1 WHERE id = $2`, deployment, id)
	return err
}
