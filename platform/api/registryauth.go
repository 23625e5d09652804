package api

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry"
)

// Subjects are what the registry calls those who use it.
const (
	subjectAdmin = "admin"
	subjectUser  = "user:"
	subjectToken = "token:"
)

// AuthenticateRegistry tells whose credentials a client of the registry shows:
// a user's name and password; or, under any name at all, an API token, a
// session or the admin token as the password. The subject is what
// RegistryRoles takes; it holds no secret.
//
// Passwords are under the limits of a login and cost what they cost there. One
// that was good is remembered for a few minutes, because docker shows it for
// every single repository; a change of password or user counts at once all the
// same.
//
// It fails with registry.ErrUnauthorized, and with *registry.Limited when it
// was tried too often.
func (a *API) AuthenticateRegistry(r *http.Request, username, password string) (subject string, err error) {
	ctx := r.Context()
	c := a.registryCall(r)
	who, err := a.registryCaller(ctx, c, username, password)
	switch platform.KindOf(err) {
	case platform.Unauthenticated:
		c.code = platform.CodeOf(err)
		a.audit(c, http.StatusUnauthorized)
		return "", registry.ErrUnauthorized
	case platform.RateLimited:
		seconds, err := strconv.Atoi(c.header.Get("Retry-After"))
		if err != nil {
			seconds = 1
		}
		return "", &registry.Limited{RetryAfter: time.Duration(seconds) * time.Second}
	}
	switch {
	case err != nil:
		return "", err
	case who.AdminToken:
		return subjectAdmin, nil
	case who.TokenID != "":
		return subjectToken + string(who.TokenID), nil
	}
	return subjectUser + string(who.UserID), nil
}

// registryCall is a call from outside of the route table, for limits and audit.
func (a *API) registryCall(r *http.Request) *call {
	c := &call{log: a.Log, header: http.Header{}, request: r, id: r.Header.Get("X-Request-Id")}
	if !requestIDShape.MatchString(c.id) {
		c.id = string(store.NewID())
	}
	c.ip, _ = a.Client(r)
	// One row of the audit's vocabulary, whatever the repository is called.
	c.route = &route{method: r.Method, path: "/v2/"}
	if r.URL.Path == "/v2/token" {
		c.route.path = "/v2/token"
	}
	return c
}

func (a *API) registryCaller(ctx context.Context, c *call, username, password string) (identity, error) {
	if a.isToken(password) {
		who, err := a.bySecret(ctx, c, password)
		if platform.KindOf(err) == platform.Unauthenticated {
			if limited := a.strangers.charge(c, addressKey(c.ip)); limited != nil {
				return identity{}, limited
			}
		}
		return who, err
	}
	return a.byPassword(ctx, c, username, password)
}

// byPassword checks a user's password as login does, and leaves an audit row
// of each good one that was not known.
func (a *API) byPassword(ctx context.Context, c *call, username, password string) (identity, error) {
	wrong := platform.Errorf(platform.Unauthenticated, "bad_credentials", "user name or password is wrong")
	if username == "" || password == "" || len(username) > 64 || len(password) > 1024 {
		// Nobody's, whatever it would cost to make sure. Saying so costs a row
		// of the audit.
		if err := a.strangers.charge(c, addressKey(c.ip)); err != nil {
			return identity{}, err
		}
		return identity{}, wrong
	}
	found, err := a.Store.UserByName(ctx, username)
	if err != nil && platform.KindOf(err) != platform.NotFound {
		return identity{}, err
	}
	who := identity{Principal: platform.Principal{UserID: found.ID, Name: found.Name}}
	if found.ID != "" && a.passwords.knows(found, password) {
		return who, nil
	}
	if err := a.logins.charge(c, addressKey(c.ip)); err != nil {
		return identity{}, err
	}
	if err := a.names.charge(c, "user/"+strings.ToLower(username)); err != nil {
		return identity{}, err
	}
	c.actor = found.Name
	ok, err := a.checkPassword(ctx, found.PasswordHash, password)
	if err != nil {
		return identity{}, err
	}
	if !ok {
		return identity{}, wrong
	}
	a.passwords.learn(found, password)
	c.who.Store(who)
	a.audit(c, http.StatusOK)
	return who, nil
}

// isToken tells whether a password is a token rather than a password.
func (a *API) isToken(password string) bool {
	return strings.HasPrefix(password, platform.SessionPrefix) || strings.HasPrefix(password, platform.APIPrefix) || a.isAdminToken(password)
}

// RegistryRoles tells what the subject may do in a project, and what to call it
// in records. It is read anew each time: a member who was removed, a token that
// was deleted or has expired, a role that was changed count at the next call.
// Whoever is gone, and the empty subject, have no role anywhere and no name.
func (a *API) RegistryRoles(ctx context.Context, subject string) (role func(project platform.ID) platform.Role, actor string, err error) {
	none := func(platform.ID) platform.Role { return platform.RoleNone }
	who, err := a.registryPrincipal(ctx, subject)
	if platform.KindOf(err) == platform.NotFound {
		return none, "", nil
	}
	if err != nil {
		return none, "", err
	}
	return who.RoleIn, who.Name, nil
}

var errNobody = platform.NotFoundf("there is no such subject")

func (a *API) registryPrincipal(ctx context.Context, subject string) (platform.Principal, error) {
	var token platform.Token
	user, isUser := strings.CutPrefix(subject, subjectUser)
	id, isToken := strings.CutPrefix(subject, subjectToken)
	switch {
	case subject == subjectAdmin && a.AdminToken != "":
		return platform.Principal{Name: adminActor, AdminToken: true, SuperAdmin: true}, nil
	case isToken:
		var err error
		if token, err = a.Store.Token(ctx, platform.ID(id)); err != nil {
			return platform.Principal{}, err
		}
		if token.ExpiresAt != nil && !time.Now().Before(*token.ExpiresAt) {
			return platform.Principal{}, errNobody
		}
		user = string(token.UserID)
	case !isUser:
		return platform.Principal{}, errNobody
	}
	u, err := a.Store.User(ctx, platform.ID(user))
	if err != nil {
		return platform.Principal{}, err
	}
	roles, err := a.Store.Roles(ctx, u.ID)
	if err != nil {
		return platform.Principal{}, err
	}
	return platform.NewPrincipal(u, roles, token), nil
}

// AuditRegistry writes the row of something that was done through the registry
// by the subject. action is a verb and a path, status the answer, as in the
// other rows.
func (a *API) AuditRegistry(ctx context.Context, subject, action string, status int, project, resource platform.ID) error {
	who, err := a.registryPrincipal(ctx, subject)
	if err != nil && platform.KindOf(err) != platform.NotFound {
		return err
	}
	return a.Store.AppendAudit(ctx, platform.AuditEntry{
		At: time.Now(), ActorID: who.UserID, Actor: who.Name, TokenID: who.TokenID, Action: action,
		ProjectID: project, ResourceID: resource, Status: status, RequestID: string(store.NewID()),
	})
}

const (
	passwordKept = 5 * time.Minute
	passwordsMax = 1024
)

// passwords remembers which passwords were found good, as a keyed hash with a
// key nobody else has. Safe for concurrent use.
type passwords struct {
	key []byte

	mu    sync.Mutex
	known map[platform.ID]knownPassword
}

type knownPassword struct {
	mac   []byte
	phc   string // of the user then: another one voids this
	until time.Time
}

func newPasswords() *passwords {
	key := make([]byte, sha256.Size)
	rand.Read(key)
	return &passwords{key: key, known: map[platform.ID]knownPassword{}}
}

func (p *passwords) mac(u platform.User, password string) []byte {
	h := hmac.New(sha256.New, p.key)
	h.Write([]byte(string(u.ID) + "\x00" + password))
	return h.Sum(nil)
}

func (p *passwords) knows(u platform.User, password string) bool {
	mac := p.mac(u, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.known[u.ID]
	return ok && k.phc == u.PasswordHash && time.Now().Before(k.until) && subtle.ConstantTimeCompare(k.mac, mac) == 1
}

func (p *passwords) learn(u platform.User, password string) {
	mac := p.mac(u, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= passwordsMax {
		clear(p.known) // they are learnt again
	}
	p.known[u.ID] = knownPassword{mac: mac, phc: u.PasswordHash, until: time.Now().Add(passwordKept)}
}
