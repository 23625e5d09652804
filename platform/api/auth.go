package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"log/slog"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	sessionIdle  = 24 * time.Hour     // a session lives so long after its last use
	sessionCap   = 7 * 24 * time.Hour // and never longer than this
	touchEvery   = time.Minute        // last_used_at is this exact
	adminActor   = "admin token"
	secretLength = 32
)

// authenticate finds out who sent the request. The answer is read from the
// store each time: what was revoked is gone with the next request.
func (a *API) authenticate(ctx context.Context, c *call) (identity, error) {
	scheme, secret, _ := strings.Cut(c.request.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return identity{}, platform.Errorf(platform.Unauthenticated, "unauthenticated", "a token is needed: Authorization: Bearer …")
	}
	c.secret = secret
	return a.bySecret(ctx, c, secret)
}

// isAdminToken tells whether secret is the admin token.
func (a *API) isAdminToken(secret string) bool {
	hash := sha256.Sum256([]byte(secret))
	return a.AdminToken != "" && subtle.ConstantTimeCompare(hash[:], a.adminHash[:]) == 1
}

// bySecret finds out whose token the secret is.
func (a *API) bySecret(ctx context.Context, c *call, secret string) (identity, error) {
	if a.isAdminToken(secret) {
		c.actor = adminActor
		return identity{Principal: platform.Principal{Name: adminActor, AdminToken: true, SuperAdmin: true}}, nil
	}
	bad := platform.Errorf(platform.Unauthenticated, "invalid_token", "the token is unknown, expired or revoked")
	if !strings.HasPrefix(secret, platform.SessionPrefix) && !strings.HasPrefix(secret, platform.APIPrefix) {
		return identity{}, bad
	}
	hash := sha256.Sum256([]byte(secret))
	token, err := a.Store.TokenByHash(ctx, hash[:])
	if platform.KindOf(err) == platform.NotFound {
		return identity{}, bad
	}
	if err != nil {
		return identity{}, err
	}
	now := time.Now()
	if subtle.ConstantTimeCompare(token.Hash, hash[:]) != 1 || token.ExpiresAt != nil && !now.Before(*token.ExpiresAt) {
		return identity{}, bad
	}
	user, err := a.Store.User(ctx, token.UserID)
	if platform.KindOf(err) == platform.NotFound {
		return identity{}, bad
	}
	if err != nil {
		return identity{}, err
	}
	roles, err := a.Store.Roles(ctx, user.ID)
	if err != nil {
		return identity{}, err
	}
	a.touch(ctx, &token, now)
	c.actor = user.Name
	return identity{Principal: platform.NewPrincipal(user, roles, token), token: token}, nil
}

// touch notes the use of a token, and slides a session's end, but not for
// every request: a store write each would be the most expensive part of it.
func (a *API) touch(ctx context.Context, token *platform.Token, now time.Time) {
	if token.LastUsedAt != nil && now.Sub(*token.LastUsedAt) < touchEvery {
		return
	}
	if token.Kind == platform.TokenSession {
		expires := now.Add(sessionIdle)
		if latest := token.CreatedAt.Add(sessionCap); latest.Before(expires) {
			expires = latest
		}
		token.ExpiresAt = &expires
	}
	if err := a.Store.TouchToken(ctx, token.ID, now, token.ExpiresAt); err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "noting the use of a token failed", slog.Any("error", err))
	}
}

// newSecret makes a token's secret and the hash that is stored of it.
func newSecret(prefix string) (secret string, hash []byte) {
	random := make([]byte, secretLength)
	rand.Read(random)
	secret = prefix + base64.RawURLEncoding.EncodeToString(random)
	sum := sha256.Sum256([]byte(secret))
	return secret, sum[:]
}

// credentials name a user. "name" is the word of the user object, "username"
// what login forms send: either will do.
type credentials struct {
	Username string `json:"username,omitempty" maxLength:"64" doc:"The user's name."`
	Name     string `json:"name,omitempty" maxLength:"64" doc:"The same; username wins."`
	Password string `json:"password" maxLength:"1024" doc:"The password; at least 12 characters."`
}

func (c credentials) user() string {
	if c.Username != "" {
		return c.Username
	}
	return c.Name
}

type loginInput struct{ Body credentials }

type loginReply struct {
	Token     string    `json:"token" doc:"The bearer token; shown only now."`
	ExpiresAt timestamp `json:"expires_at" doc:"Moves on with each use, 7 days after the login at the latest."`
	User      user      `json:"user"`
}

// login trades a password for a session. It says the same, after the same
// time, for an unknown user and a wrong password.
func (a *API) login(ctx context.Context, in *loginInput) (*object[loginReply], error) {
	c := callFrom(ctx)
	name := in.Body.user()
	if err := a.names.charge(c, "user/"+strings.ToLower(name)); err != nil {
		return nil, err
	}
	found, err := a.Store.UserByName(ctx, name)
	if err != nil && platform.KindOf(err) != platform.NotFound {
		return nil, err
	}
	// Never the name as typed: people type passwords there.
	c.actor = found.Name
	ok, err := a.checkPassword(ctx, found.PasswordHash, in.Body.Password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, platform.Errorf(platform.Unauthenticated, "bad_credentials", "user name or password is wrong")
	}
	secret, hash := newSecret(platform.SessionPrefix)
	now := time.Now()
	expires := now.Add(sessionIdle)
	token, err := a.Store.CreateToken(ctx, platform.Token{
		UserID: found.ID, Kind: platform.TokenSession, Hash: hash, CreatedAt: now, ExpiresAt: &expires, LastUsedAt: &now,
	})
	if err != nil {
		return nil, err
	}
	c.who.Store(identity{Principal: platform.Principal{UserID: found.ID, Name: found.Name, TokenID: token.ID}, token: token})
	c.resource = token.ID
	return &object[loginReply]{Body: loginReply{Token: secret, ExpiresAt: timestamp{expires}, User: userView(found)}}, nil
}

// logout ends the session in use.
func (a *API) logout(ctx context.Context, _ *nothing) (*nothing, error) {
	who := callFrom(ctx).identity()
	if who.token.Kind != platform.TokenSession {
		return nil, platform.Errorf(platform.Conflict, "not_a_session", "only a session can log out; an API token is revoked with DELETE /v1/api-tokens/{token_id}")
	}
	return nil, a.Store.DeleteToken(ctx, who.TokenID)
}

// bootstrap makes the first user, a super-admin.
func (a *API) bootstrap(ctx context.Context, in *loginInput) (*created[user], error) {
	fresh, err := a.newUser(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	u, err := a.Store.Bootstrap(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return createdUser(ctx, u), nil
}

type membership struct {
	ProjectID   platform.ID   `json:"project_id"`
	ProjectName string        `json:"project_name"`
	Role        platform.Role `json:"role" enum:"viewer,operator,admin"`
}

type principal struct {
	Kind        string       `json:"kind" enum:"session,api_token,admin_token" doc:"What was presented."`
	User        *user        `json:"user,omitempty" doc:"Absent for the admin token."`
	Name        string       `json:"name" doc:"The user's name, or \"admin token\"."`
	SuperAdmin  bool         `json:"super_admin" doc:"Bounded by the token in use, like the roles."`
	Token       *apiToken    `json:"token,omitempty" doc:"The API token in use."`
	Memberships []membership `json:"memberships" doc:"Projects and roles, at most 200; a super-admin may do everything everywhere besides."`
}

func (a *API) me(ctx context.Context, _ *nothing) (*object[principal], error) {
	who := callFrom(ctx).identity()
	me := principal{Kind: "admin_token", Name: who.Name, SuperAdmin: who.SuperAdmin, Memberships: []membership{}}
	if who.AdminToken {
		return &object[principal]{Body: me}, nil
	}
	u, err := a.Store.User(ctx, who.UserID)
	if err != nil {
		return nil, err
	}
	view := userView(u)
	me.User, me.Kind = &view, "session"
	if who.token.Kind == platform.TokenAPI {
		token := viewToken(who.token)
		me.Kind, me.Token = "api_token", &token
	}
	projects, _, err := a.Store.Projects(ctx, visible(who.Principal).projects(), Paging{Limit: 200}.page())
	if err != nil {
		return nil, err
	}
	for _, p := range projects {
		if role, ok := who.Roles[p.ID]; ok {
			me.Memberships = append(me.Memberships, membership{p.ID, p.Name, role})
		}
	}
	return &object[principal]{Body: me, ETag: etag(u.Version)}, nil
}
