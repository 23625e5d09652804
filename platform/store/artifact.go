package store

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

// ChangeArtifact lets change write to the artifact of a deployment, whatever
// state that is in, and returns the deployment. change must not use the Store.
// NotFound when there is no such deployment, Conflict "no_artifact" when it has
// none.
func (s *Store) ChangeArtifact(ctx context.Context, id platform.ID, change func(*platform.Artifact)) (d platform.Deployment, err error) {
	defer explain(&err, "changing the artifact of deployment %s", id)
	err = s.write(ctx, func(tx tx) error {
		if d, err = s.mustDeployment(ctx, tx, id); err != nil {
			return err
		}
		if d.Artifact == nil {
			return platform.Errorf(platform.Conflict, "no_artifact", "the deployment has no image")
		}
		change(d.Artifact)
		artifact, err := asJSON(d.Artifact)
		if err != nil {
			return err
		}
		_, err = tx.exec(ctx, `UPDATE deployments SET artifact = $1 WHERE id = $2`, artifact, id)
		return err
	})
	return d, err
}
