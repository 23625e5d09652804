package api

import (
	"context"
	"time"

	"github.com/denia-paas/denia/platform"
)

// apiToken is an API token without its secret.
type apiToken struct {
	ID         platform.ID  `json:"id"`
	UserID     platform.ID  `json:"user_id"`
	Name       string       `json:"name"`
	ProjectID  *platform.ID `json:"project_id" doc:"The only project it is good for; null: all of its owner's."`
	Role       *string      `json:"role" enum:"viewer,operator,admin" doc:"The most it may do; null: whatever its owner may."`
	CreatedAt  timestamp    `json:"created_at"`
	ExpiresAt  *timestamp   `json:"expires_at" nullable:"true"`
	LastUsedAt *timestamp   `json:"last_used_at" nullable:"true" doc:"To the minute."`
}

func viewToken(t platform.Token) apiToken {
	v := apiToken{
		ID: t.ID, UserID: t.UserID, Name: t.Name, CreatedAt: timestamp{t.CreatedAt},
		ExpiresAt: timestampOf(t.ExpiresAt), LastUsedAt: timestampOf(t.LastUsedAt),
	}
	if t.ProjectID != "" {
		v.ProjectID = &t.ProjectID
	}
	if t.Role != platform.RoleNone {
		role := string(t.Role)
		v.Role = &role
	}
	return v
}

// mintedToken is a token with its secret, at the one moment it is known.
type mintedToken struct {
	Token string `json:"token" doc:"The bearer token; shown only now."`
	APIToken
}

// APIToken is apiToken under a name huma sees when it is embedded.
type APIToken = apiToken

// unbounded refuses a token bounded to a project or role: it must not reach
// what belongs to its owner as a whole.
func unbounded(who identity) error {
	if who.token.ProjectID == "" && who.token.Role == platform.RoleNone {
		return nil
	}
	return forbidden("this token is bounded to a project or role: log in to manage the account", "session")
}

// within tells whether token t may do no more than the bounds of the token in
// use allow.
func within(t, bounds platform.Token) bool {
	if bounds.ProjectID != "" && t.ProjectID != bounds.ProjectID {
		return false
	}
	if bounds.Role != platform.RoleNone && (t.Role == platform.RoleNone || !bounds.Role.Covers(t.Role)) {
		return false
	}
	return bounds.Kind != platform.TokenAPI || bounds.ExpiresAt == nil || t.ExpiresAt != nil && !t.ExpiresAt.After(*bounds.ExpiresAt)
}

type tokensInput struct{ Paging }

// listTokens lists the caller's own API tokens.
func (a *API) listTokens(ctx context.Context, in *tokensInput) (*listing[apiToken], error) {
	c := callFrom(ctx)
	who := c.identity()
	if who.AdminToken {
		return listed(c, []platform.Token{}, "", viewToken), nil
	}
	rows, next, err := a.Store.Tokens(ctx, who.UserID, platform.TokenAPI, in.page())
	if err != nil {
		return nil, err
	}
	seen := rows[:0]
	for _, t := range rows {
		if within(t, who.token) {
			seen = append(seen, t)
		}
	}
	return listed(c, seen, next, viewToken), nil
}

type mintInput struct {
	Body struct {
		Name      string        `json:"name" minLength:"1" maxLength:"64" doc:"What it is for."`
		ExpiresAt *timestamp    `json:"expires_at,omitempty" nullable:"true" doc:"Left out: never."`
		ProjectID string        `json:"project_id,omitempty" doc:"Bound it to this project, by id or name."`
		Role      platform.Role `json:"role,omitempty" enum:"viewer,operator,admin" doc:"Bound it to this role, which must not be higher than your own."`
	} `nameHint:"NewToken"`
}

// mintToken makes an API token for the caller. A token can only make tokens
// bounded at least as tightly as itself.
func (a *API) mintToken(ctx context.Context, in *mintInput) (*created[mintedToken], error) {
	c := callFrom(ctx)
	who := c.identity()
	if who.AdminToken {
		return nil, platform.Errorf(platform.Conflict, "no_user", "the admin token belongs to no user and can own no tokens: log in as a user")
	}
	secret, hash := newSecret(platform.APIPrefix)
	token := platform.Token{
		UserID: who.UserID, Kind: platform.TokenAPI, Name: in.Body.Name, Hash: hash,
		Role: in.Body.Role, CreatedAt: time.Now(),
	}
	if token.Role == platform.RoleNone {
		token.Role = who.token.Role
	}
	if token.ProjectID = who.token.ProjectID; in.Body.ProjectID != "" {
		p, err := a.projectIn(ctx, in.Body.ProjectID, platform.RoleViewer)
		if err != nil {
			return nil, err
		}
		token.ProjectID = p.ID
	}
	if in.Body.ExpiresAt != nil {
		at := in.Body.ExpiresAt.UTC()
		if !at.After(token.CreatedAt) {
			return nil, platform.InvalidField("expires_at", "out_of_range", "must lie in the future")
		}
		token.ExpiresAt = &at
	} else if who.token.Kind == platform.TokenAPI {
		token.ExpiresAt = who.token.ExpiresAt
	}
	if !within(token, who.token) || !a.holds(who, token) {
		return nil, forbidden("a token may not do or last more than the one that makes it", "owner")
	}
	token, err := a.Store.CreateToken(ctx, token)
	if err != nil {
		return nil, err
	}
	c.touch(token.ProjectID, token.ID)
	return &created[mintedToken]{
		Location: "/v1/api-tokens/" + string(token.ID),
		Body:     mintedToken{Token: secret, APIToken: viewToken(token)},
	}, nil
}

// holds tells whether who has the role the token asks for: in the token's
// project, or in any if it has none.
func (a *API) holds(who identity, t platform.Token) bool {
	if t.Role == platform.RoleNone {
		return true
	}
	if t.ProjectID != "" {
		return who.RoleIn(t.ProjectID).Covers(t.Role)
	}
	return a.authorizeAnywhere(who, t.Role) == nil
}

type tokenRef struct {
	TokenID platform.ID `path:"token_id" doc:"The token's id."`
}

// deleteToken revokes a token of the caller's; a super-admin may revoke any.
func (a *API) deleteToken(ctx context.Context, in *tokenRef) (*nothing, error) {
	c := callFrom(ctx)
	who := c.identity()
	t, err := a.Store.Token(ctx, in.TokenID)
	if err == nil && (t.Kind != platform.TokenAPI || !who.SuperAdmin && (t.UserID != who.UserID || !within(t, who.token))) {
		err = platform.NotFoundf("there is no such token")
	}
	if err != nil {
		return nil, err
	}
	c.touch(t.ProjectID, t.ID)
	return nil, a.Store.DeleteToken(ctx, t.ID)
}

type session struct {
	ID         platform.ID `json:"id"`
	Current    bool        `json:"current" doc:"The session in use."`
	CreatedAt  timestamp   `json:"created_at"`
	ExpiresAt  *timestamp  `json:"expires_at" nullable:"true"`
	LastUsedAt *timestamp  `json:"last_used_at" nullable:"true" doc:"To the minute."`
}

type sessionsInput struct{ Paging }

// listSessions lists the caller's own sessions.
func (a *API) listSessions(ctx context.Context, in *sessionsInput) (*listing[session], error) {
	c := callFrom(ctx)
	who := c.identity()
	if err := unbounded(who); err != nil {
		return nil, err
	}
	var rows []platform.Token
	var next string
	var err error
	if !who.AdminToken {
		rows, next, err = a.Store.Tokens(ctx, who.UserID, platform.TokenSession, in.page())
	}
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, func(t platform.Token) session {
		return session{t.ID, t.ID == who.TokenID, timestamp{t.CreatedAt}, timestampOf(t.ExpiresAt), timestampOf(t.LastUsedAt)}
	}), nil
}

type sessionRef struct {
	ID platform.ID `path:"id" doc:"The session's id."`
}

// deleteSession ends one of the caller's sessions; a super-admin may end any.
func (a *API) deleteSession(ctx context.Context, in *sessionRef) (*nothing, error) {
	c := callFrom(ctx)
	who := c.identity()
	if err := unbounded(who); err != nil {
		return nil, err
	}
	t, err := a.Store.Token(ctx, in.ID)
	if err == nil && (t.Kind != platform.TokenSession || !who.SuperAdmin && t.UserID != who.UserID) {
		err = platform.NotFoundf("there is no such session")
	}
	if err != nil {
		return nil, err
	}
	c.resource = t.ID
	return nil, a.Store.DeleteToken(ctx, t.ID)
}
