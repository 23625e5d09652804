package api

import (
	"context"
	"fmt"
	"strings"

	"github.com/denia-paas/denia/platform"
)

// access is the least a caller must be.
type access int

const (
	public     access = iota
	adminToken        // the admin token itself
	anyToken          // any authenticated principal
	owner             // whom the object belongs to; the handler knows
	viewer            // viewer in the scope's project
	operator
	admin
	superAdmin
)

var accessWords = map[access]string{
	public: "public", adminToken: "admin token", anyToken: "any token", owner: "owner",
	viewer: "Viewer", operator: "Operator", admin: "Admin", superAdmin: "super-admin",
}

// String is the word of the contract's table.
func (a access) String() string { return accessWords[a] }

// role is the project role a asks for.
func (a access) role() platform.Role {
	switch a {
	case viewer:
		return platform.RoleViewer
	case operator:
		return platform.RoleOperator
	case admin:
		return platform.RoleAdmin
	}
	return platform.RoleNone
}

// scope says where the project is found in which a role counts.
type scope int

const (
	nowhere      scope = iota // no project is involved
	collection                // filtered: what the caller may see
	anywhere                  // the role in any project is enough
	inBody                    // the body names it: the handler authorises
	ofProject                 // {id} is a project
	ofService                 // {id} is a service
	ofDeployment              // {id} is a deployment
)

// admit lets the call in or says why not. It identifies the caller, finds what
// the path names, and holds the route's least role against it.
func (a *API) admit(c *call) error {
	switch c.route.limit {
	case limitLogin:
		if err := a.logins.charge(c, addressKey(c.ip)); err != nil {
			return err
		}
	case limitPublic:
		if err := a.strangers.charge(c, addressKey(c.ip)); err != nil {
			return err
		}
	}
	if c.route.least == public {
		return nil
	}
	ctx := c.request.Context()
	who, err := a.authenticate(ctx, c)
	if err != nil {
		if platform.KindOf(err) == platform.Unauthenticated && c.route.limit == limitCalls {
			if limited := a.strangers.charge(c, addressKey(c.ip)); limited != nil {
				return limited
			}
		}
		return err
	}
	c.who.Store(who)
	if c.route.limit == limitCalls {
		if err := a.calls.charge(c, "token/"+string(who.TokenID)); err != nil {
			return err
		}
	}
	return a.authorize(ctx, c, who)
}

// authorize holds the route's least role against who.
func (a *API) authorize(ctx context.Context, c *call, who identity) error {
	switch c.route.least {
	case adminToken:
		if !who.AdminToken {
			return forbidden("this takes the admin token itself", "admin token")
		}
	case superAdmin:
		if !who.SuperAdmin {
			return forbidden("this takes a super-admin", "super-admin")
		}
	}
	ref := c.request.PathValue("id")
	var project platform.ID
	var err error
	switch c.route.scope {
	case anywhere:
		return a.authorizeAnywhere(who, c.route.least.role())
	case ofProject:
		c.project, err = a.findProject(ctx, ref)
		project = c.project.ID
		c.resource = project
	case ofService:
		c.service, err = a.findService(ctx, ref)
		project, c.resource = c.service.ProjectID, c.service.ID
	case ofDeployment:
		c.deployment, err = a.findDeployment(ctx, ref)
		if err == nil {
			c.service, err = a.Store.Service(ctx, c.deployment.ServiceID)
		}
		project, c.resource = c.service.ProjectID, c.deployment.ID
	default:
		return nil
	}
	switch {
	case platform.KindOf(err) == platform.NotFound:
		return notThere(c.route.scope)
	case err != nil:
		return err
	}
	c.audited = project
	return may(who.Principal, project, c.route.least.role(), notThere(c.route.scope))
}

func (a *API) authorizeAnywhere(who identity, least platform.Role) error {
	if who.SuperAdmin {
		return nil
	}
	for _, role := range who.Roles {
		if role.Covers(least) {
			return nil
		}
	}
	return forbidden(fmt.Sprintf("this takes the role %s in a project", least), string(least))
}

// may tells whether who has the role in the project. To who has none there,
// the thing does not exist.
func may(who platform.Principal, project platform.ID, least platform.Role, hidden error) error {
	switch role := who.RoleIn(project); {
	case role == platform.RoleNone:
		return hidden
	case !role.Covers(least):
		return forbidden(fmt.Sprintf("this takes the role %s in the project; yours is %s", least, role), string(least))
	}
	return nil
}

func forbidden(detail, role string) error {
	return &roleError{error: platform.Errorf(platform.Forbidden, "forbidden", "%s", detail), role: role}
}

func notThere(s scope) error {
	switch s {
	case ofProject:
		return platform.NotFoundf("there is no such project")
	case ofDeployment:
		return platform.NotFoundf("there is no such deployment")
	}
	return platform.NotFoundf("there is no such service")
}

// findProject finds a project by id or name.
func (a *API) findProject(ctx context.Context, ref string) (platform.Project, error) {
	if isID(ref) {
		p, err := a.Store.Project(ctx, platform.ID(ref))
		if platform.KindOf(err) != platform.NotFound {
			return p, err
		}
	}
	return a.Store.ProjectByName(ctx, ref)
}

// findService finds a service by id or "project:name".
func (a *API) findService(ctx context.Context, ref string) (platform.Service, error) {
	project, name, named := strings.Cut(ref, ":")
	switch {
	case named:
		p, err := a.findProject(ctx, project)
		if err != nil {
			return platform.Service{}, err
		}
		return a.Store.ServiceByName(ctx, p.ID, name)
	case isID(ref):
		return a.Store.Service(ctx, platform.ID(ref))
	}
	return platform.Service{}, notThere(ofService)
}

func (a *API) findDeployment(ctx context.Context, ref string) (platform.Deployment, error) {
	if !isID(ref) {
		return platform.Deployment{}, notThere(ofDeployment)
	}
	return a.Store.Deployment(ctx, platform.ID(ref))
}

// projectIn finds the project a body or a query names, and holds least against
// the caller's role in it.
func (a *API) projectIn(ctx context.Context, ref string, least platform.Role) (platform.Project, error) {
	c := callFrom(ctx)
	p, err := a.findProject(ctx, ref)
	if platform.KindOf(err) == platform.NotFound {
		return p, notThere(ofProject)
	}
	if err != nil {
		return p, err
	}
	c.audited = p.ID
	return p, may(c.identity().Principal, p.ID, least, notThere(ofProject))
}
