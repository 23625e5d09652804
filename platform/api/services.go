package api

import (
	"context"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// ServiceRef is {id} of a service in a path. The gates have found it already:
// the field is there for the document.
type ServiceRef struct {
	ID string `path:"id" doc:"Service, by id or as project:name."`
}

type servicesInput struct {
	Paging
	ProjectID string `query:"project_id" doc:"Only this project, by id or name."`
}

func (a *API) listServices(ctx context.Context, in *servicesInput) (*listing[service], error) {
	c := callFrom(ctx)
	who := c.identity().Principal
	filter, err := a.servicesSeen(ctx, c, in.ProjectID)
	if err != nil {
		return nil, err
	}
	rows, next, err := a.Store.Services(ctx, filter, in.page())
	if err != nil {
		return nil, err
	}
	names, err := a.projectNames(ctx, rows)
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, func(s platform.Service) service {
		return a.serviceView(c, s, names[s.ProjectID], who.RoleIn(s.ProjectID))
	}), nil
}

// servicesSeen filters for the services the caller may see; of one project, by
// id or name, when one is given.
func (a *API) servicesSeen(ctx context.Context, c *call, project string) (store.ServiceFilter, error) {
	if project == "" {
		return visible(c.identity().Principal).services(), nil
	}
	p, err := a.projectIn(ctx, project, platform.RoleViewer)
	return store.ServiceFilter{Projects: []platform.ID{p.ID}}, err
}

// projectNames are the names of the services' projects, by id.
func (a *API) projectNames(ctx context.Context, services []platform.Service) (map[platform.ID]string, error) {
	names := map[platform.ID]string{}
	for _, s := range services {
		if _, known := names[s.ProjectID]; known {
			continue
		}
		p, err := a.Store.Project(ctx, s.ProjectID)
		if err != nil {
			return nil, err
		}
		names[s.ProjectID] = p.Name
	}
	return names, nil
}

// show shows a service to the caller.
func (a *API) show(ctx context.Context, s platform.Service) (service, error) {
	c := callFrom(ctx)
	p, err := a.Store.Project(ctx, s.ProjectID)
	if err != nil {
		return service{}, err
	}
	return a.serviceView(c, s, p.Name, c.identity().RoleIn(s.ProjectID)), nil
}

func (a *API) shown(ctx context.Context, s platform.Service) (*object[service], error) {
	view, err := a.show(ctx, s)
	if err != nil {
		return nil, err
	}
	return &object[service]{ETag: etag(s.Version), Body: view}, nil
}

type createServiceInput struct{ Body service }

func (a *API) createService(ctx context.Context, in *createServiceInput) (*created[service], error) {
	c := callFrom(ctx)
	ref := in.Body.ProjectID
	if ref == "" {
		ref = platform.DefaultProject
	}
	p, err := a.projectIn(ctx, ref, platform.RoleOperator)
	if err != nil {
		return nil, err
	}
	spec, err := in.Body.spec(platform.Service{})
	if err != nil {
		return nil, err
	}
	s, err := a.Store.CreateService(ctx, p.ID, spec)
	if err != nil {
		return nil, err
	}
	c.touch(p.ID, s.ID)
	a.Plane.Kick(s.ID)
	return &created[service]{
		Location: "/v1/services/" + string(s.ID), ETag: etag(s.Version),
		Body: a.serviceView(c, s, p.Name, c.identity().RoleIn(p.ID)),
	}, nil
}

type getServiceInput struct{ ServiceRef }

func (a *API) getService(ctx context.Context, _ *getServiceInput) (*object[service], error) {
	return a.shown(ctx, callFrom(ctx).service)
}

type putServiceInput struct {
	ServiceRef
	IfMatch
	Apply
	Body service
}

type updatedService struct {
	ETag string `header:"ETag" doc:"The version of the object, for If-Match."`
	Link string `header:"Link" doc:"rel=\"deployment\": the deployment that rolls the change out, when there is one."`
	Body service
}

// putService replaces the writable fields. A change of what runs is rolled out
// as a deployment of the same image.
func (a *API) putService(ctx context.Context, in *putServiceInput) (*updatedService, error) {
	c := callFrom(ctx)
	p, err := a.Store.Project(ctx, c.service.ProjectID)
	if err != nil {
		return nil, err
	}
	if ref := in.Body.ProjectID; ref != "" && ref != string(p.ID) && ref != p.Name {
		return nil, platform.InvalidField("project_id", "immutable", "cannot be changed: a service stays in its project")
	}
	s, changed, err := a.changeService(ctx, in.IfMatch, p, in.Body.spec)
	if err != nil {
		return nil, err
	}
	out := &updatedService{ETag: etag(s.Version)}
	if changed && in.apply() {
		d, rolling, err := a.Plane.Apply(ctx, s.ID, c.actor)
		if err != nil {
			return nil, err
		}
		if rolling {
			out.Link = "</v1/deployments/" + string(d.ID) + `>; rel="deployment"`
		}
	}
	out.Body = a.serviceView(c, s, p.Name, c.identity().RoleIn(p.ID))
	return out, nil
}

// changeService writes what spec makes of the service, and tells whether that
// changes what runs.
func (a *API) changeService(ctx context.Context, m IfMatch, p platform.Project, spec func(platform.Service) (platform.ServiceSpec, error)) (s platform.Service, changed bool, err error) {
	var before platform.Service
	id := callFrom(ctx).service.ID
	s, err = update(m,
		func() (platform.Service, int64, error) {
			s, err := a.Store.Service(ctx, id)
			before = s
			return s, s.Version, err
		},
		func(current platform.Service, version int64) (platform.Service, error) {
			next, err := spec(current)
			if err != nil {
				return platform.Service{}, err
			}
			return a.Store.UpdateService(ctx, id, next, version)
		})
	if err != nil {
		return s, false, err
	}
	a.Plane.Kick(id)
	return s, !same(platform.Freeze(p, before), platform.Freeze(p, s)), nil
}

type deleteServiceInput struct {
	ServiceRef
	IfMatch
	Volumes bool `query:"volumes" doc:"Whether its volumes, with the data in them, go as well."`
}

func (a *API) deleteService(ctx context.Context, in *deleteServiceInput) (*nothing, error) {
	c := callFrom(ctx)
	if err := in.check(c.service.Version); err != nil {
		return nil, err
	}
	return nil, a.Plane.DeleteService(ctx, c.service.ID, in.Volumes)
}

type serviceAction struct{ ServiceRef }

func (a *API) startService(ctx context.Context, _ *serviceAction) (*object[service], error) {
	return a.setStopped(ctx, false)
}

func (a *API) stopService(ctx context.Context, _ *serviceAction) (*object[service], error) {
	return a.setStopped(ctx, true)
}

func (a *API) setStopped(ctx context.Context, stopped bool) (*object[service], error) {
	c := callFrom(ctx)
	if err := a.Plane.SetStopped(ctx, c.service.ID, stopped, c.actor); err != nil {
		return nil, err
	}
	s, err := a.Store.Service(ctx, c.service.ID)
	if err != nil {
		return nil, err
	}
	return a.shown(ctx, s)
}

// restartService replaces the replicas under the same rules as a deployment,
// because it is one.
func (a *API) restartService(ctx context.Context, _ *serviceAction) (*created[deployment], error) {
	c := callFrom(ctx)
	d, err := a.Plane.Restart(ctx, c.service.ID, c.actor)
	if err != nil {
		return nil, err
	}
	return a.accepted(c, c.service.ProjectID, d), nil
}

type scaleInput struct {
	ServiceRef
	IfMatch
	Body struct {
		Replicas *int `json:"replicas,omitempty" doc:"Exactly so many: min and max in one."`
		Min      *int `json:"min,omitempty"`
		Max      *int `json:"max,omitempty"`
	} `nameHint:"ScaleChange"`
}

// scaleService sets how many replicas there are; what is left out stays.
func (a *API) scaleService(ctx context.Context, in *scaleInput) (*object[service], error) {
	c := callFrom(ctx)
	if in.Body.Replicas == nil && in.Body.Min == nil && in.Body.Max == nil {
		return nil, platform.InvalidField("replicas", "required", "is required, unless min or max is given")
	}
	p, err := a.Store.Project(ctx, c.service.ProjectID)
	if err != nil {
		return nil, err
	}
	s, _, err := a.changeService(ctx, in.IfMatch, p, func(current platform.Service) (platform.ServiceSpec, error) {
		spec := current.WithDefaults()
		next := *spec.Scale
		if in.Body.Replicas != nil {
			next.Min, next.Max = *in.Body.Replicas, *in.Body.Replicas
		}
		if in.Body.Min != nil {
			next.Min = *in.Body.Min
		}
		if in.Body.Max != nil {
			next.Max = *in.Body.Max
		} else if next.Max < next.Min {
			next.Max = next.Min
		}
		spec.Scale = &next
		return spec, spec.Validate()
	})
	if err != nil {
		return nil, err
	}
	return a.shown(ctx, s)
}
