package store

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

// ProjectFilter says which projects a list may show: those named, or All.
type ProjectFilter struct {
	IDs []platform.ID
	All bool
}

// CreateProject makes a project. Conflict "name_taken" when there is one of
// that name.
func (s *Store) CreateProject(ctx context.Context, spec platform.ProjectSpec) (p platform.Project, err error) {
	defer explain(&err, "creating project %q", spec.Name)
	err = s.write(ctx, func(tx tx) error {
		if err := projectNameFree(ctx, tx, spec.Name); err != nil {
			return err
		}
		p, err = s.insertProject(ctx, tx, spec)
		return err
	})
	return p, err
}

// Project returns the project with that id.
func (s *Store) Project(ctx context.Context, id platform.ID) (p platform.Project, err error) {
	defer explain(&err, "reading project %s", id)
	return s.mustProject(ctx, s.read(), id)
}

// ProjectByName returns the project of that name.
func (s *Store) ProjectByName(ctx context.Context, name string) (p platform.Project, err error) {
	defer explain(&err, "reading project %q", name)
	p, found, err := s.findProject(ctx, s.read(), "name = $1", name)
	if err == nil && !found {
		err = platform.NotFoundf("there is no project %q", name)
	}
	return p, err
}

// Projects lists projects by name, and returns the cursor of the next page.
func (s *Store) Projects(ctx context.Context, f ProjectFilter, page Page) (list []platform.Project, next string, err error) {
	defer explain(&err, "listing projects")
	after, err := page.position("projects", 1)
	if err != nil || !f.All && len(f.IDs) == 0 {
		return nil, "", err
	}
	var q builder
	q.add(`SELECT ` + projectColumns + ` FROM projects WHERE TRUE`)
	if !f.All {
		q.addIn("id", f.IDs)
	}
	if after != nil {
		q.add(` AND name > ?`, after[0])
	}
	q.add(` ORDER BY name LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), s.scanProject, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "projects", list, func(p platform.Project) []string { return []string{p.Name} })
	return list, next, nil
}

// UpdateProject replaces what a user may write of a project. A new name gives
// its services new host labels.
//
// Precondition "version_mismatch" unless version is 0 or the stored one;
// Conflict "name_taken", "default_project" when the project "default" would
// get another name, "host_taken" when a new host label belongs to a service
// elsewhere; Invalid when a host label would be too long.
func (s *Store) UpdateProject(ctx context.Context, id platform.ID, spec platform.ProjectSpec, version int64) (p platform.Project, err error) {
	defer explain(&err, "updating project %s", id)
	err = s.write(ctx, func(tx tx) error {
		old, err := s.mustProject(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := sameVersion("project", old.Version, version); err != nil {
			return err
		}
		if spec.Name != old.Name {
			if old.Name == platform.DefaultProject {
				return platform.Errorf(platform.Conflict, "default_project", "the project %q cannot be renamed", platform.DefaultProject)
			}
			if err := projectNameFree(ctx, tx, spec.Name); err != nil {
				return err
			}
			if err := relabel(ctx, tx, id, spec.Name); err != nil {
				return err
			}
		}
		doc, sec, err := s.encodeProject(spec)
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `UPDATE projects SET name = $1, spec = $2, secrets = $3, version = version + 1, updated_at = $4 WHERE id = $5`,
			spec.Name, doc, sec, tx.now, id); err != nil {
			return err
		}
		p, err = s.mustProject(ctx, tx, id)
		return err
	})
	return p, err
}

// DeleteProject removes a project with its memberships and the tokens bound to
// it. Conflict "project_not_empty" while it has services, "default_project"
// for the project "default".
func (s *Store) DeleteProject(ctx context.Context, id platform.ID) (err error) {
	defer explain(&err, "deleting project %s", id)
	return s.write(ctx, func(tx tx) error {
		p, err := s.mustProject(ctx, tx, id)
		if err != nil {
			return err
		}
		if p.Name == platform.DefaultProject {
			return platform.Errorf(platform.Conflict, "default_project", "the project %q cannot be deleted", platform.DefaultProject)
		}
		name, found, err := one(ctx, tx, scanString, `SELECT name FROM services WHERE project_id = $1 ORDER BY name LIMIT 1`, id)
		if err != nil {
			return err
		}
		if found {
			return platform.Errorf(platform.Conflict, "project_not_empty", "the project %q still has services, %q for one: delete them first", p.Name, name)
		}
		_, err = tx.exec(ctx, `DELETE FROM projects WHERE id = $1`, id)
		return err
	})
}

const projectColumns = `id, name, spec, secrets, version, created_at, updated_at`

func (s *Store) scanProject(r row) (p platform.Project, err error) {
	var sec secrets
	var name string
	err = r.Scan(&p.ID, &name, intoJSON(&p.ProjectSpec), s.intoSealed(&sec), &p.Version, intoTime(&p.CreatedAt), intoTime(&p.UpdatedAt))
	p.Name, p.SharedSecretEnv = name, sec.Env
	return p, err
}

func (s *Store) findProject(ctx context.Context, tx tx, where string, arg any) (platform.Project, bool, error) {
	return one(ctx, tx, s.scanProject, `SELECT `+projectColumns+` FROM projects WHERE `+where, arg)
}

func (s *Store) mustProject(ctx context.Context, tx tx, id platform.ID) (platform.Project, error) {
	p, found, err := s.findProject(ctx, tx, "id = $1", id)
	if err == nil && !found {
		err = platform.NotFoundf("there is no project %s", id)
	}
	return p, err
}

func (s *Store) insertProject(ctx context.Context, tx tx, spec platform.ProjectSpec) (platform.Project, error) {
	doc, sec, err := s.encodeProject(spec)
	if err != nil {
		return platform.Project{}, err
	}
	id := NewID()
	if _, err := tx.exec(ctx, `INSERT INTO projects (`+projectColumns+`) VALUES ($1, $2, $3, $4, 1, $5, $5)`,
		id, spec.Name, doc, sec, tx.now); err != nil {
		return platform.Project{}, err
	}
	return s.mustProject(ctx, tx, id)
}

func (s *Store) encodeProject(spec platform.ProjectSpec) (doc, sec any, err error) {
	if sec, err = s.sealed(secrets{Env: spec.SharedSecretEnv}); err != nil {
		return nil, nil, err
	}
	spec.SharedSecretEnv = nil
	doc, err = asJSON(&spec)
	return doc, sec, err
}

func projectNameFree(ctx context.Context, tx tx, name string) error {
	taken, err := exists(ctx, tx, `SELECT 1 FROM projects WHERE name = $1`, name)
	if err == nil && taken {
		err = platform.Errorf(platform.Conflict, "name_taken", "there is a project %q already", name)
	}
	return err
}

func sameVersion(what string, stored, wanted int64) error {
	if wanted == 0 || wanted == stored {
		return nil
	}
	return platform.Errorf(platform.Precondition, "version_mismatch", "the %s was changed meanwhile: read it again, then repeat the change", what)
}
