package store

import (
	"context"
	"errors"

	"github.com/denia-paas/denia/platform"
)

// ServiceFilter says which services a list may show: those of the projects
// named, or All.
type ServiceFilter struct {
	Projects []platform.ID
	All      bool
}

// ServiceRef is what routing needs to know of a service.
type ServiceRef struct {
	ID                 platform.ID
	ProjectID          platform.ID
	Name               string
	ProjectName        string
	HostLabel          string // below the base domain
	Protocol           string // platform.ProtocolHTTP or ProtocolH2C
	TLS                string // "auto" or "off"
	Stopped            bool   // desired
	ActiveDeploymentID platform.ID
}

// CreateService makes a service. NotFound when the project does not exist;
// Conflict "name_taken" within the project, "host_taken" when another service
// has the same host label, which the message names; Invalid when the host
// label would be too long.
func (s *Store) CreateService(ctx context.Context, project platform.ID, spec platform.ServiceSpec) (v platform.Service, err error) {
	defer explain(&err, "creating service %q", spec.Name)
	err = s.write(ctx, func(tx tx) error {
		p, err := s.mustProject(ctx, tx, project)
		if err != nil {
			return err
		}
		if err := serviceNameFree(ctx, tx, p, spec.Name); err != nil {
			return err
		}
		label, err := freeLabel(ctx, tx, spec.Name, p.Name)
		if err != nil {
			return err
		}
		doc, sec, err := s.encodeService(spec)
		if err != nil {
			return err
		}
		id := NewID()
		if _, err := tx.exec(ctx, `INSERT INTO services (id, project_id, name, host_label, protocol, tls, spec, secrets, stopped, version, created_at, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, FALSE, 1, $9, $9)`,
			id, project, spec.Name, label, protocol(spec), tlsOf(spec), doc, sec, tx.now); err != nil {
			return err
		}
		v, err = s.mustService(ctx, tx, id)
		return err
	})
	return v, err
}

// Service returns the service with that id.
func (s *Store) Service(ctx context.Context, id platform.ID) (v platform.Service, err error) {
	defer explain(&err, "reading service %s", id)
	return s.mustService(ctx, s.read(), id)
}

// ServiceByName returns a project's service of that name.
func (s *Store) ServiceByName(ctx context.Context, project platform.ID, name string) (v platform.Service, err error) {
	defer explain(&err, "reading service %q of project %s", name, project)
	v, found, err := one(ctx, s.read(), s.scanService, selectServices+` WHERE project_id = $1 AND name = $2`, project, name)
	if err == nil && !found {
		err = platform.NotFoundf("there is no service %q", name)
	}
	return v, err
}

// Services lists services by name, and returns the cursor of the next page.
func (s *Store) Services(ctx context.Context, f ServiceFilter, page Page) (list []platform.Service, next string, err error) {
	defer explain(&err, "listing services")
	after, err := page.position("services", 2)
	if err != nil || !f.All && len(f.Projects) == 0 {
		return nil, "", err
	}
	var q builder
	q.add(selectServices + ` WHERE TRUE`)
	if !f.All {
		q.addIn("project_id", f.Projects)
	}
	if after != nil {
		q.add(` AND (name, id) > (?, ?)`, after[0], after[1])
	}
	q.add(` ORDER BY name, id LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), s.scanService, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "services", list, func(v platform.Service) []string { return []string{v.Name, string(v.ID)} })
	return list, next, nil
}

// AllServices lists every service, by project and name. It reads no document
// and opens no seal.
func (s *Store) AllServices(ctx context.Context) (list []ServiceRef, err error) {
	defer explain(&err, "listing all services")
	return all(ctx, s.read(), func(r row) (ref ServiceRef, err error) {
		err = r.Scan(&ref.ID, &ref.ProjectID, &ref.Name, &ref.ProjectName, &ref.HostLabel, &ref.Protocol, &ref.TLS, &ref.Stopped, intoOptionalID(&ref.ActiveDeploymentID))
		return ref, err
	}, `SELECT v.id, v.project_id, v.name, p.name, v.host_label, v.protocol, v.tls, v.stopped, v.active_deployment_id
		FROM services v JOIN projects p ON p.id = v.project_id ORDER BY p.name, v.name`)
}

// UpdateService replaces what a user may write of a service. The errors are
// those of CreateService, and Precondition "version_mismatch" unless version
// is 0 or the stored one. A service's version grows with UpdateService,
// SetSource and SetStopped, not with its deployments: a release that goes live
// must not void an edit that is under way.
func (s *Store) UpdateService(ctx context.Context, id platform.ID, spec platform.ServiceSpec, version int64) (v platform.Service, err error) {
	defer explain(&err, "updating service %s", id)
	err = s.write(ctx, func(tx tx) error {
		old, err := s.mustService(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := sameVersion("service", old.Version, version); err != nil {
			return err
		}
		if spec.Name != old.Name {
			p, err := s.mustProject(ctx, tx, old.ProjectID)
			if err != nil {
				return err
			}
			if err := serviceNameFree(ctx, tx, p, spec.Name); err != nil {
				return err
			}
			label, err := freeLabel(ctx, tx, spec.Name, p.Name)
			if err != nil {
				return err
			}
			if _, err := tx.exec(ctx, `UPDATE services SET host_label = $1 WHERE id = $2`, label, id); err != nil {
				return err
			}
		}
		v, err = s.saveService(ctx, tx, id, spec)
		return err
	})
	return v, err
}

// SetStopped sets whether the service should be stopped. What runs, and the
// state of the active deployment, follow later.
func (s *Store) SetStopped(ctx context.Context, id platform.ID, stopped bool) (err error) {
	defer explain(&err, "changing the desired state of service %s", id)
	n, err := s.single().exec(ctx, `UPDATE services SET stopped = $1, version = version + 1, updated_at = $2 WHERE id = $3`, stopped, now(), id)
	if err == nil && n == 0 {
		err = noService(id)
	}
	return err
}

// SetSource replaces the source kept with a service.
func (s *Store) SetSource(ctx context.Context, id platform.ID, source platform.Source) (err error) {
	defer explain(&err, "changing the source of service %s", id)
	return s.write(ctx, func(tx tx) error {
		v, err := s.mustService(ctx, tx, id)
		if err != nil {
			return err
		}
		v.Source = &source
		_, err = s.saveService(ctx, tx, id, v.ServiceSpec)
		return err
	})
}

// DeleteService removes a service with its deployments and uploads. The bytes
// of the uploads are the caller's to remove.
func (s *Store) DeleteService(ctx context.Context, id platform.ID) (err error) {
	defer explain(&err, "deleting service %s", id)
	return s.write(ctx, func(tx tx) error {
		n, err := tx.exec(ctx, `DELETE FROM services WHERE id = $1`, id)
		if err == nil && n == 0 {
			err = noService(id)
		}
		return err
	})
}

const selectServices = `SELECT id, project_id, name, spec, secrets, stopped, active_deployment_id, version, created_at, updated_at FROM services`

func (s *Store) scanService(r row) (v platform.Service, err error) {
	var sec secrets
	var name string
	err = r.Scan(&v.ID, &v.ProjectID, &name, intoJSON(&v.ServiceSpec), s.intoSealed(&sec), &v.Stopped,
		intoOptionalID(&v.ActiveDeploymentID), &v.Version, intoTime(&v.CreatedAt), intoTime(&v.UpdatedAt))
	v.Name, v.SecretEnv = name, sec.Env
	pasteBuildSecrets(v.Source, sec.Build)
	return v, err
}

func (s *Store) mustService(ctx context.Context, tx tx, id platform.ID) (platform.Service, error) {
	v, found, err := one(ctx, tx, s.scanService, selectServices+` WHERE id = $1`, id)
	if err == nil && !found {
		err = noService(id)
	}
	return v, err
}

func noService(id platform.ID) error { return platform.NotFoundf("there is no service %s", id) }

func (s *Store) saveService(ctx context.Context, tx tx, id platform.ID, spec platform.ServiceSpec) (platform.Service, error) {
	doc, sec, err := s.encodeService(spec)
	if err != nil {
		return platform.Service{}, err
	}
	if _, err := tx.exec(ctx, `UPDATE services SET name = $1, protocol = $2, tls = $3, spec = $4, secrets = $5, version = version + 1, updated_at = $6 WHERE id = $7`,
		spec.Name, protocol(spec), tlsOf(spec), doc, sec, tx.now, id); err != nil {
		return platform.Service{}, err
	}
	return s.mustService(ctx, tx, id)
}

func (s *Store) encodeService(spec platform.ServiceSpec) (doc, sec any, err error) {
	hidden := secrets{Env: spec.SecretEnv}
	spec.SecretEnv = nil
	if spec.Source != nil {
		var source platform.Source
		source, hidden.Build = cutBuildSecrets(*spec.Source)
		spec.Source = &source
	}
	if sec, err = s.sealed(hidden); err != nil {
		return nil, nil, err
	}
	doc, err = asJSON(&spec)
	return doc, sec, err
}

func protocol(spec platform.ServiceSpec) string { return spec.RunSpec.WithDefaults().Protocol }

func tlsOf(spec platform.ServiceSpec) string { return spec.WithDefaults().TLS }

// fillTLS completes the rows that were written before services had the column.
func fillTLS(ctx context.Context, tx tx) error {
	type service struct {
		id   platform.ID
		spec platform.ServiceSpec
	}
	list, err := all(ctx, tx, func(r row) (v service, err error) { return v, r.Scan(&v.id, intoJSON(&v.spec)) },
		`SELECT id, spec FROM services WHERE tls = ''`)
	if err != nil {
		return err
	}
	for _, v := range list {
		if _, err := tx.exec(ctx, `UPDATE services SET tls = $1 WHERE id = $2`, tlsOf(v.spec), v.id); err != nil {
			return err
		}
	}
	return nil
}

func serviceNameFree(ctx context.Context, tx tx, p platform.Project, name string) error {
	taken, err := exists(ctx, tx, `SELECT 1 FROM services WHERE project_id = $1 AND name = $2`, p.ID, name)
	if err == nil && taken {
		err = platform.Errorf(platform.Conflict, "name_taken", "the project %q has a service %q already", p.Name, name)
	}
	return err
}

// freeLabel returns the host label of a service if nobody has it.
func freeLabel(ctx context.Context, tx tx, service, project string) (string, error) {
	label, err := platform.HostLabel(service, project)
	if err != nil {
		return "", err
	}
	type owner struct{ service, project string }
	other, taken, err := one(ctx, tx, func(r row) (o owner, err error) { return o, r.Scan(&o.service, &o.project) },
		`SELECT v.name, p.name FROM services v JOIN projects p ON p.id = v.project_id WHERE v.host_label = $1`, label)
	if err == nil && taken {
		err = platform.Errorf(platform.Conflict, "host_taken", "the host label %q belongs to the service %q of the project %q: choose another name", label, other.service, other.project)
	}
	return label, err
}

// relabel gives the services of a project the host labels that go with its new
// name. All old labels go first: a new one may equal the old one of a sister.
func relabel(ctx context.Context, tx tx, project platform.ID, name string) error {
	type service struct {
		id   platform.ID
		name string
	}
	list, err := all(ctx, tx, func(r row) (v service, err error) { return v, r.Scan(&v.id, &v.name) },
		`SELECT id, name FROM services WHERE project_id = $1 ORDER BY name`, project)
	if err != nil {
		return err
	}
	if _, err := tx.exec(ctx, `UPDATE services SET host_label = '~' || id WHERE project_id = $1`, project); err != nil {
		return err
	}
	for _, v := range list {
		label, err := freeLabel(ctx, tx, v.name, name)
		if e, ok := errors.AsType[*platform.Error](err); ok && e.Kind == platform.Conflict {
			e.Message = "the service \"" + v.name + "\" would clash: " + e.Message
		}
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `UPDATE services SET host_label = $1 WHERE id = $2`, label, v.id); err != nil {
			return err
		}
	}
	return nil
}
