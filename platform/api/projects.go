package api

import (
	"context"
	"net/http"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

type project struct {
	Name             string       `json:"name" doc:"DNS label, unique. The project \"default\" cannot be renamed."`
	Description      string       `json:"description" required:"false" doc:"Free text, at most 1024 bytes."`
	SharedEnv        platform.Env `json:"shared_env" required:"false" doc:"Environment of every service; a service's own wins. Values read \"***\" for a Viewer."`
	SharedSecretEnv  platform.Env `json:"shared_secret_env" required:"false" doc:"The same, sealed at rest; values read \"***\" for everyone. Writing \"***\" keeps the value."`
	DefaultResources resources    `json:"default_resources" required:"false" doc:"For services that do not say."`
	AnonymousPull    bool         `json:"anonymous_pull" required:"false" doc:"Whether everybody may pull from the repositories of its services, without a login."`
	ID               platform.ID  `json:"id" readOnly:"true"`
	CreatedAt        *timestamp   `json:"created_at" readOnly:"true"`
	UpdatedAt        *timestamp   `json:"updated_at" readOnly:"true"`
}

type resources struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty" doc:"1000 is one core; left out: no bound."`
	MemoryBytes int64 `json:"memory_bytes,omitempty" doc:"At least 6291456 (6 MiB); left out: the project's, then 512 MiB."`
	PIDs        int64 `json:"pids,omitempty" doc:"Processes and threads; left out: the project's, then 512."`
}

func (p project) spec() platform.ProjectSpec {
	return platform.ProjectSpec{
		Name: p.Name, Description: p.Description, SharedEnv: p.SharedEnv, SharedSecretEnv: p.SharedSecretEnv,
		DefaultResources: platform.Resources(p.DefaultResources), AnonymousPull: p.AnonymousPull,
	}
}

func projectView(who platform.Principal) func(platform.Project) project {
	return func(p platform.Project) project {
		env := p.SharedEnv
		if !who.RoleIn(p.ID).Covers(platform.RoleOperator) {
			env = env.Redact()
		}
		return project{
			Name: p.Name, Description: p.Description, SharedEnv: orEmpty(env), SharedSecretEnv: orEmpty(p.SharedSecretEnv.Redact()),
			DefaultResources: resources(p.DefaultResources), AnonymousPull: p.AnonymousPull, ID: p.ID,
			CreatedAt: &timestamp{p.CreatedAt}, UpdatedAt: &timestamp{p.UpdatedAt},
		}
	}
}

func orEmpty(e platform.Env) platform.Env {
	if e == nil {
		return platform.Env{}
	}
	return e
}

// visible is what a principal may see, as a filter.
type visible platform.Principal

func (v visible) ids() []platform.ID {
	ids := make([]platform.ID, 0, len(v.Roles))
	for id := range v.Roles {
		ids = append(ids, id)
	}
	return ids
}

func (v visible) projects() store.ProjectFilter {
	return store.ProjectFilter{All: v.SuperAdmin, IDs: v.ids()}
}

func (v visible) services() store.ServiceFilter {
	return store.ServiceFilter{All: v.SuperAdmin, Projects: v.ids()}
}

// ProjectRef is {id} of a project in a path. The gates have found it already:
// the field is there for the document.
type ProjectRef struct {
	ID string `path:"id" doc:"Project, by id or name."`
}

type projectsInput struct{ Paging }

func (a *API) listProjects(ctx context.Context, in *projectsInput) (*listing[project], error) {
	c := callFrom(ctx)
	who := c.identity().Principal
	rows, next, err := a.Store.Projects(ctx, visible(who).projects(), in.page())
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, projectView(who)), nil
}

type projectInput struct{ Body project }

func (a *API) createProject(ctx context.Context, in *projectInput) (*created[project], error) {
	c := callFrom(ctx)
	spec := in.Body.spec()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	p, err := a.Store.CreateProject(ctx, spec)
	if err != nil {
		return nil, err
	}
	c.touch(p.ID, p.ID)
	return &created[project]{
		Location: "/v1/projects/" + string(p.ID), ETag: etag(p.Version), Body: projectView(c.identity().Principal)(p),
	}, nil
}

type getProjectInput struct{ ProjectRef }

func (a *API) getProject(ctx context.Context, _ *getProjectInput) (*object[project], error) {
	c := callFrom(ctx)
	return &object[project]{ETag: etag(c.project.Version), Body: projectView(c.identity().Principal)(c.project)}, nil
}

type putProjectInput struct {
	ProjectRef
	IfMatch
	Apply
	Body project
}

// putProject replaces the writable fields, and rolls over the services for
// which that changes what runs.
func (a *API) putProject(ctx context.Context, in *putProjectInput) (*object[project], error) {
	c := callFrom(ctx)
	var before platform.Project
	p, err := update(in.IfMatch,
		func() (platform.Project, int64, error) {
			p, err := a.Store.Project(ctx, c.project.ID)
			before = p
			return p, p.Version, err
		},
		func(current platform.Project, version int64) (platform.Project, error) {
			spec := in.Body.spec()
			spec.SharedEnv = spec.SharedEnv.Restore(current.SharedEnv)
			spec.SharedSecretEnv = spec.SharedSecretEnv.Restore(current.SharedSecretEnv)
			if err := spec.Validate(); err != nil {
				return platform.Project{}, err
			}
			return a.Store.UpdateProject(ctx, current.ID, spec, version)
		})
	if err != nil {
		return nil, err
	}
	if p.Name != before.Name {
		if err := a.kickProject(ctx, p.ID); err != nil {
			return nil, err
		}
	}
	shares := platform.Freeze(before, platform.Service{})
	if in.apply() && !same(shares, platform.Freeze(p, platform.Service{})) {
		if err := a.Plane.ApplyProject(ctx, p.ID, c.actor); err != nil {
			return nil, err
		}
	}
	return &object[project]{ETag: etag(p.Version), Body: projectView(c.identity().Principal)(p)}, nil
}

// kickProject makes the services' new host names known.
func (a *API) kickProject(ctx context.Context, project platform.ID) error {
	refs, err := a.Store.AllServices(ctx)
	if err != nil {
		return err
	}
	var changed []platform.ID
	for _, ref := range refs {
		if ref.ProjectID == project {
			changed = append(changed, ref.ID)
		}
	}
	a.Plane.Kick(changed...)
	return nil
}

type deleteProjectInput struct {
	ProjectRef
	IfMatch
}

func (a *API) deleteProject(ctx context.Context, in *deleteProjectInput) (*nothing, error) {
	c := callFrom(ctx)
	if err := in.check(c.project.Version); err != nil {
		return nil, err
	}
	return nil, a.Store.DeleteProject(ctx, c.project.ID)
}

type member struct {
	ProjectID platform.ID   `json:"project_id"`
	UserID    platform.ID   `json:"user_id"`
	UserName  string        `json:"user_name"`
	Role      platform.Role `json:"role" enum:"viewer,operator,admin"`
	CreatedAt timestamp     `json:"created_at"`
}

func memberView(m platform.Member) member {
	return member{m.ProjectID, m.UserID, m.UserName, m.Role, timestamp{m.CreatedAt}}
}

type membersInput struct {
	ProjectRef
	Paging
}

func (a *API) listMembers(ctx context.Context, in *membersInput) (*listing[member], error) {
	c := callFrom(ctx)
	rows, next, err := a.Store.Members(ctx, c.project.ID, in.page())
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, memberView), nil
}

type addMemberInput struct {
	ProjectRef
	Body struct {
		UserID   platform.ID   `json:"user_id,omitempty" doc:"The user; or give user_name."`
		UserName string        `json:"user_name,omitempty" doc:"The user, by name."`
		Role     platform.Role `json:"role" enum:"viewer,operator,admin"`
	} `nameHint:"NewMember"`
}

type memberOutput struct {
	Status   int
	Location string `header:"Location"`
	Body     member
}

// addMember gives a user a role; 200 instead of 201 when it had one already.
func (a *API) addMember(ctx context.Context, in *addMemberInput) (*memberOutput, error) {
	c := callFrom(ctx)
	var u platform.User
	var err error
	field := "user_id"
	switch {
	case in.Body.UserID != "":
		u, err = a.Store.User(ctx, in.Body.UserID)
	case in.Body.UserName != "":
		field = "user_name"
		u, err = a.Store.UserByName(ctx, in.Body.UserName)
	default:
		return nil, platform.InvalidField("user_id", "required", "is required, unless user_name is given")
	}
	if platform.KindOf(err) == platform.NotFound {
		return nil, platform.InvalidField(field, "not_found", "names no user")
	}
	if err != nil {
		return nil, err
	}
	m, fresh, err := a.Store.PutMember(ctx, c.project.ID, u.ID, in.Body.Role)
	if err != nil {
		return nil, err
	}
	c.resource = u.ID
	out := &memberOutput{Status: http.StatusOK, Body: memberView(m)}
	if fresh {
		out.Status = http.StatusCreated
		out.Location = "/v1/projects/" + string(c.project.ID) + "/members/" + string(u.ID)
	}
	return out, nil
}

type removeMemberInput struct {
	ProjectRef
	UserID platform.ID `path:"user_id" doc:"The user's id."`
}

func (a *API) removeMember(ctx context.Context, in *removeMemberInput) (*nothing, error) {
	c := callFrom(ctx)
	c.resource = in.UserID
	return nil, a.Store.RemoveMember(ctx, c.project.ID, in.UserID)
}
