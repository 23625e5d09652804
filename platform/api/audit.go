package api

import (
	"context"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// audit writes the row of the call. It outlives the client's patience, not the
// store's: a row that cannot be written is said in the log.
func (a *API) audit(c *call, status int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.request.Context()), 10*time.Second)
	defer cancel()
	who := c.identity()
	entry := platform.AuditEntry{
		At: time.Now(), ActorID: who.UserID, Actor: c.actor, TokenID: who.TokenID, RemoteIP: c.ip,
		Action: c.action(), ProjectID: c.audited, ResourceID: c.resource,
		Status: status, Code: c.code, RequestID: c.id,
	}
	if err := a.Store.AppendAudit(ctx, entry); err != nil {
		a.Log.ErrorContext(ctx, "writing the audit failed", "request_id", c.id, "action", entry.Action, "status", status, "error", err)
	}
}

type auditEntry struct {
	ID         platform.ID `json:"id"`
	At         timestamp   `json:"at"`
	ActorID    platform.ID `json:"actor_id" doc:"The user's id; empty for the admin token and strangers."`
	Actor      string      `json:"actor" doc:"The user's name, or \"admin token\"; empty when unknown."`
	TokenID    platform.ID `json:"token_id" doc:"The token that was used."`
	RemoteIP   string      `json:"remote_ip"`
	Action     string      `json:"action" doc:"Verb and path, e.g. POST /v1/services."`
	ProjectID  platform.ID `json:"project_id"`
	ResourceID platform.ID `json:"resource_id" doc:"What it was done to, or what it made."`
	Status     int         `json:"status" doc:"The HTTP status answered."`
	Code       string      `json:"code" doc:"The problem's code, when it was one."`
	RequestID  string      `json:"request_id"`
}

type auditInput struct {
	Paging
	ProjectID string `query:"project_id" doc:"Only this project, by id or name."`
}

// listAudit shows a super-admin everything, a project's admin the project's.
func (a *API) listAudit(ctx context.Context, in *auditInput) (*listing[auditEntry], error) {
	c := callFrom(ctx)
	who := c.identity()
	filter := store.AuditFilter{All: who.SuperAdmin}
	for id, role := range who.Roles {
		if role.Covers(platform.RoleAdmin) {
			filter.Projects = append(filter.Projects, id)
		}
	}
	if in.ProjectID != "" {
		project, err := a.projectIn(ctx, in.ProjectID, platform.RoleAdmin)
		if err != nil {
			return nil, err
		}
		filter = store.AuditFilter{Projects: []platform.ID{project.ID}}
	}
	rows, next, err := a.Store.Audit(ctx, filter, in.page())
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, func(e platform.AuditEntry) auditEntry {
		return auditEntry{
			e.ID, timestamp{e.At}, e.ActorID, e.Actor, e.TokenID, e.RemoteIP, e.Action,
			e.ProjectID, e.ResourceID, e.Status, e.Code, e.RequestID,
		}
	}), nil
}
