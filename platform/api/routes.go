package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// route is one row of the API: router, authorisation, audit and document all
// follow it.
type route struct {
	section string // a heading of the reference
	method  string
	path    string
	least   access
	scope   scope
	id      string // operationId
	summary string
	about   string // what the summary leaves open; may be empty
	status  int    // of success; 0: 200
	creates bool   // honours Idempotency-Key
	limit   limitClass

	// Exactly one of them is set: a JSON operation through huma, or a handler
	// with a hand-written description.
	operation func(*API, huma.API, huma.Operation)
	plain     func(*API, http.ResponseWriter, *http.Request)
	document  func(huma.Registry, *huma.Operation) // of a plain one

	run http.HandlerFunc // what huma made of operation
}

func (rt *route) pattern() string { return rt.method + " " + rt.path }

// op makes a JSON operation of a method of API.
func op[I, O any](f func(*API, context.Context, *I) (*O, error)) func(*API, huma.API, huma.Operation) {
	return func(a *API, h huma.API, o huma.Operation) {
		huma.Register(h, o, func(ctx context.Context, in *I) (*O, error) {
			out, err := f(a, ctx, in)
			if err != nil {
				c, p := callFrom(ctx), problemOf(ctx, err)
				c.code = p.Code
				if p.Status == http.StatusUnauthorized {
					c.header.Set("WWW-Authenticate", challenge(c.request))
				}
				return nil, p
			}
			return out, nil
		})
	}
}

const (
	get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete

	secHealth      = "Health & node"
	secAuth        = "Auth, users & tokens"
	secProjects    = "Projects & members"
	secServices    = "Services"
	secDomains     = "Domains"
	secDeployments = "Deployments"
	secRegistry    = "Hosted registry control & OCI cache"
)

// routes is the table. Its order is that of the reference.
func routes() []*route {
	return []*route{
		{section: secHealth, method: get, path: "/healthz", least: public, id: "health", limit: limitNone,
			summary: "Liveness", operation: op((*API).health)},
		{section: secHealth, method: get, path: "/v1/node", least: viewer, scope: anywhere, id: "get-node",
			summary: "Node metadata, host CPU and memory, disk usage", about: "For members of any project.", operation: op((*API).node)},
		{section: secHealth, method: get, path: "/v1/ingress/routes", least: superAdmin, id: "list-ingress-routes",
			summary: "The ingress's table as it is now", operation: op((*API).ingressRoutes)},
		{section: secHealth, method: get, path: "/v1/audit", least: admin, scope: anywhere, id: "list-audit",
			summary: "Mutating calls, logins and denials, newest first",
			about:   "A super-admin sees all of them, a project's admin those of the project.", operation: op((*API).listAudit)},
		{section: secHealth, method: get, path: "/v1/events", least: anyToken, scope: collection, id: "stream-events",
			summary: "Changes of state, as they happen", plain: (*API).streamEvents, document: documentEvents},
		{section: secHealth, method: get, path: "/v1/openapi.json", least: public, id: "get-openapi", limit: limitPublic,
			summary: "This API as an OpenAPI 3.1 document", plain: (*API).serveOpenAPI, document: documentOpenAPI},

		{section: secAuth, method: post, path: "/v1/bootstrap", least: adminToken, id: "bootstrap", status: http.StatusCreated, creates: true, limit: limitLogin,
			summary: "Make the first user, a super-admin",
			about:   "Works once: 409 already_bootstrapped afterwards.", operation: op((*API).bootstrap)},
		{section: secAuth, method: post, path: "/v1/auth/login", least: public, id: "login", limit: limitLogin,
			summary: "Trade user name and password for a session token",
			about:   "At most 5 a minute from one address and 10 a minute for one user name.", operation: op((*API).login)},
		{section: secAuth, method: post, path: "/v1/auth/logout", least: anyToken, id: "logout", status: http.StatusNoContent,
			summary: "End the session in use", operation: op((*API).logout)},
		{section: secAuth, method: get, path: "/v1/auth/sessions", least: anyToken, id: "list-sessions",
			summary: "Your sessions", operation: op((*API).listSessions)},
		{section: secAuth, method: del, path: "/v1/auth/sessions/{id}", least: owner, id: "delete-session", status: http.StatusNoContent,
			summary: "End a session of yours", about: "A super-admin may end anybody's.", operation: op((*API).deleteSession)},
		{section: secAuth, method: get, path: "/v1/me", least: anyToken, id: "get-me",
			summary: "Who you are, and your memberships", operation: op((*API).me)},
		{section: secAuth, method: get, path: "/v1/users", least: superAdmin, id: "list-users",
			summary: "All users, by name", operation: op((*API).listUsers)},
		{section: secAuth, method: post, path: "/v1/users", least: superAdmin, id: "create-user", status: http.StatusCreated, creates: true,
			summary: "Create a user", operation: op((*API).createUser)},
		{section: secAuth, method: put, path: "/v1/users/{user_id}", least: owner, id: "update-user",
			summary:   "Change name, password or super-admin",
			about:     "A super-admin may change everybody; everybody may change their own password, giving the old one. What is left out stays. A changed password ends the user's other sessions.",
			operation: op((*API).putUser)},
		{section: secAuth, method: del, path: "/v1/users/{user_id}", least: superAdmin, id: "delete-user", status: http.StatusNoContent,
			summary: "Delete a user, with tokens and memberships",
			about:   "The last super-admin and the last admin of a project stay: 409.", operation: op((*API).deleteUser)},
		{section: secAuth, method: get, path: "/v1/api-tokens", least: anyToken, id: "list-api-tokens",
			summary: "Your API tokens, without their secrets", operation: op((*API).listTokens)},
		{section: secAuth, method: post, path: "/v1/api-tokens", least: anyToken, id: "create-api-token", status: http.StatusCreated, creates: true,
			summary: "Mint an API token", about: "The secret is in this reply and nowhere else. A token can make only tokens bounded at least as tightly as itself.",
			operation: op((*API).mintToken)},
		{section: secAuth, method: del, path: "/v1/api-tokens/{token_id}", least: owner, id: "delete-api-token", status: http.StatusNoContent,
			summary: "Revoke an API token", about: "A super-admin may revoke anybody's.", operation: op((*API).deleteToken)},

		{section: secProjects, method: get, path: "/v1/projects", least: viewer, scope: collection, id: "list-projects",
			summary: "Projects you belong to, by name", operation: op((*API).listProjects)},
		{section: secProjects, method: post, path: "/v1/projects", least: superAdmin, id: "create-project", status: http.StatusCreated, creates: true,
			summary: "Create a project", operation: op((*API).createProject)},
		{section: secProjects, method: get, path: "/v1/projects/{id}", least: viewer, scope: ofProject, id: "get-project",
			summary: "A project", operation: op((*API).getProject)},
		{section: secProjects, method: put, path: "/v1/projects/{id}", least: admin, scope: ofProject, id: "update-project",
			summary: "Replace a project's writable fields",
			about:   "Changed shares roll over the services they concern, unless apply=false.", operation: op((*API).putProject)},
		{section: secProjects, method: del, path: "/v1/projects/{id}", least: admin, scope: ofProject, id: "delete-project", status: http.StatusNoContent,
			summary: "Delete an empty project", operation: op((*API).deleteProject)},
		{section: secProjects, method: get, path: "/v1/projects/{id}/members", least: viewer, scope: ofProject, id: "list-members",
			summary: "Members and their roles, by name", operation: op((*API).listMembers)},
		{section: secProjects, method: post, path: "/v1/projects/{id}/members", least: admin, scope: ofProject, id: "add-member", status: http.StatusCreated, creates: true,
			summary: "Give a user a role", about: "200 instead of 201 when the user was a member already. The last admin cannot be demoted: 409.", operation: op((*API).addMember)},
		{section: secProjects, method: del, path: "/v1/projects/{id}/members/{user_id}", least: admin, scope: ofProject, id: "remove-member", status: http.StatusNoContent,
			summary: "Remove a member", about: "The last admin stays: 409.", operation: op((*API).removeMember)},

		{section: secServices, method: get, path: "/v1/services", least: viewer, scope: collection, id: "list-services",
			summary: "Services you may see, by name", operation: op((*API).listServices)},
		{section: secServices, method: post, path: "/v1/services", least: operator, scope: inBody, id: "create-service", status: http.StatusCreated, creates: true,
			summary: "Create a service", about: "Its host answers at once; something runs there after the first deployment.", operation: op((*API).createService)},
		{section: secServices, method: get, path: "/v1/services/{id}", least: viewer, scope: ofService, id: "get-service",
			summary: "A service", operation: op((*API).getService)},
		{section: secServices, method: put, path: "/v1/services/{id}", least: operator, scope: ofService, id: "update-service",
			summary: "Replace a service's writable fields",
			about:   "A change of what runs rolls the active release over to it, unless apply=false.", operation: op((*API).putService)},
		{section: secServices, method: del, path: "/v1/services/{id}", least: operator, scope: ofService, id: "delete-service", status: http.StatusNoContent,
			summary: "Delete a service", about: "Containers, routes, domains, logs and deployments go with it; volumes only with volumes=true.", operation: op((*API).deleteService)},
		{section: secServices, method: post, path: "/v1/services/{id}/start", least: operator, scope: ofService, id: "start-service", status: http.StatusAccepted,
			summary: "Start a stopped service", operation: op((*API).startService)},
		{section: secServices, method: post, path: "/v1/services/{id}/stop", least: operator, scope: ofService, id: "stop-service", status: http.StatusAccepted,
			summary: "Stop a service", about: "Unfinished deployments are canceled; the release comes back with start.", operation: op((*API).stopService)},
		{section: secServices, method: post, path: "/v1/services/{id}/restart", least: operator, scope: ofService, id: "restart-service", status: http.StatusAccepted, creates: true,
			summary: "Replace the running replicas", about: "As a deployment of the same image and configuration, without an outage.", operation: op((*API).restartService)},
		{section: secServices, method: post, path: "/v1/services/{id}/scale", least: operator, scope: ofService, id: "scale-service", status: http.StatusAccepted,
			summary: "Set the number of replicas", operation: op((*API).scaleService)},
		{section: secServices, method: get, path: "/v1/services/{id}/logs", least: operator, scope: ofService, id: "get-service-logs",
			summary: "Stored log lines", plain: (*API).serviceLogs, document: documentLogs},
		{section: secServices, method: get, path: "/v1/services/{id}/logs/stream", least: operator, scope: ofService, id: "stream-service-logs",
			summary: "Log lines as they are written", plain: (*API).streamServiceLogs, document: documentServiceStream},
		{section: secServices, method: get, path: "/v1/services/{id}/requests", least: viewer, scope: ofService, id: "list-requests",
			summary: "Requests to the service that have ended, newest first",
			about:   "Those that Denia answered itself as well. They are kept for as long as the service, up to a size.", operation: op((*API).listRequests)},
		{section: secServices, method: get, path: "/v1/services/{id}/requests/stream", least: viewer, scope: ofService, id: "stream-requests",
			summary: "Requests to the service as they end", plain: (*API).streamRequests, document: documentRequestStream},
		{section: secServices, method: post, path: "/v1/services/{id}/uploads", least: operator, scope: ofService, id: "create-upload", status: http.StatusCreated, creates: true,
			summary: "Upload a build context", plain: (*API).createUpload, document: documentUpload},

		{section: secDomains, method: get, path: "/v1/services/{id}/domains", least: viewer, scope: ofService, id: "list-domains",
			summary: "A service's domains, by host name", operation: op((*API).listDomains)},
		{section: secDomains, method: post, path: "/v1/services/{id}/domains", least: operator, scope: ofService, id: "attach-domain", status: http.StatusCreated, creates: true,
			summary: "Attach a domain",
			about:   "It is a claim, which stands in nobody's way and routes nothing until it is verified. The control domain, the base domain and what is below that are refused: 409.", operation: op((*API).attachDomain)},
		{section: secDomains, method: get, path: "/v1/services/{id}/domains/{domain_id}", least: viewer, scope: ofService, id: "get-domain",
			summary: "A domain", operation: op((*API).getDomain)},
		{section: secDomains, method: post, path: "/v1/services/{id}/domains/{domain_id}/verify", least: operator, scope: ofService, id: "verify-domain",
			summary: "Look for the proof of a domain now",
			about:   "status tells the outcome, last_error why there was no proof. When it is verified, the host is routed before the reply is sent. Verified domains are looked at again daily by themselves.", operation: op((*API).verifyDomain)},
		{section: secDomains, method: del, path: "/v1/services/{id}/domains/{domain_id}", least: operator, scope: ofService, id: "detach-domain", status: http.StatusNoContent,
			summary: "Detach a domain", about: "Its host is not routed any more when the reply is sent.", operation: op((*API).detachDomain)},
		{section: secDomains, method: get, path: "/.well-known/denia-challenge/{token}", least: public, id: "get-challenge", limit: limitNone,
			summary: "The answer to a domain's challenge",
			about:   "At the host name itself, through whichever service has it: the token of a claim to just that host. A token of no such claim is left to the service.", plain: (*API).serveChallenge, document: documentChallenge},

		{section: secDeployments, method: post, path: "/v1/deployments", least: operator, scope: inBody, id: "create-deployment", status: http.StatusAccepted, creates: true,
			summary: "Deploy a service, or roll it back", operation: op((*API).createDeployment)},
		{section: secDeployments, method: get, path: "/v1/deployments/{id}", least: viewer, scope: ofDeployment, id: "get-deployment",
			summary: "A deployment", operation: op((*API).getDeployment)},
		{section: secDeployments, method: get, path: "/v1/deployments/{id}/logs/stream", least: operator, scope: ofDeployment, id: "stream-deployment-logs",
			summary: "Build and start log, with the states in between", plain: (*API).streamDeploymentLogs, document: documentDeploymentStream},
		{section: secDeployments, method: post, path: "/v1/deployments/{id}/cancel", least: operator, scope: ofDeployment, id: "cancel-deployment", status: http.StatusAccepted,
			summary: "Cancel an unfinished deployment", operation: op((*API).cancelDeployment)},
		{section: secDeployments, method: get, path: "/v1/services/{id}/deployments", least: viewer, scope: ofService, id: "list-deployments",
			summary: "A service's deployments, newest first", operation: op((*API).listDeployments)},

		{section: secRegistry, method: get, path: "/v1/registry/repositories", least: viewer, scope: collection, id: "list-repositories",
			summary: "Repositories of the services you may see, by service",
			about:   "limit counts services: a page may hold fewer repositories, because a service has none until something is pushed, or more.", operation: op((*API).listRepositories)},
		{section: secRegistry, method: get, path: "/v1/registry/status", least: viewer, scope: anywhere, id: "get-registry-status",
			summary: "What the registry holds, and its last collection", about: "The cache's content included.", operation: op((*API).registryStatus)},
		{section: secRegistry, method: post, path: "/v1/registry/gc", least: superAdmin, id: "collect-registry", status: http.StatusAccepted,
			summary: "Delete what nobody needs any more",
			about:   "It happens by itself, too, as soon as something falls due. The reply has the whole run when that takes less than 10 seconds. One run at a time: 409 gc_running.", operation: op((*API).collectRegistry)},
		{section: secRegistry, method: get, path: "/v1/oci/cache/status", least: viewer, scope: anywhere, id: "get-cache-status",
			summary: "What is kept of other registries, and what that saved", operation: op((*API).cacheStatus)},
		{section: secRegistry, method: post, path: "/v1/oci/cache/gc", least: operator, scope: anywhere, id: "collect-cache", status: http.StatusAccepted,
			summary: "Give up what was used least lately, down to the budget",
			about:   "It happens by itself, too. For operators of any project. One run at a time: 409 gc_running.", operation: op((*API).collectCache)},
	}
}
