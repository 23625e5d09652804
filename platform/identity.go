package platform

import (
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Role is what a member may do in a project. Each role includes the ones below.
type Role string

// The roles, lowest first. RoleNone is the absence of any.
const (
	RoleNone     Role = ""
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

func (r Role) rank() int {
	switch r {
	case RoleViewer:
		return 1
	case RoleOperator:
		return 2
	case RoleAdmin:
		return 3
	}
	return 0
}

// Valid tells whether r is one of the three roles a member can have.
func (r Role) Valid() bool { return r.rank() > 0 }

// Covers tells whether r includes least.
func (r Role) Covers(least Role) bool { return r.rank() >= least.rank() }

// Min returns the lower of r and limit.
func (r Role) Min(limit Role) Role {
	if r.rank() < limit.rank() {
		return r
	}
	return limit
}

// User is a person with a password.
type User struct {
	ID           ID        `json:"id"`
	Name         string    `json:"name"`
	PasswordHash string    `json:"-"` // argon2id, PHC string
	SuperAdmin   bool      `json:"super_admin"`
	Version      int64     `json:"-"`
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

// Member is a user's role in a project.
type Member struct {
	ProjectID ID        `json:"project_id"`
	UserID    ID        `json:"user_id"`
	UserName  string    `json:"user_name"`
	Role      Role      `json:"role"`
	CreatedAt time.Time `json:"created_at"`
}

// Token kinds and the prefixes of their secrets, by which scanners find leaks.
const (
	TokenSession = "session"
	TokenAPI     = "api"

	SessionPrefix = "dn_ses_"
	APIPrefix     = "dn_api_"
	AdminPrefix   = "dn_adm_"
)

// Token is a session or an API token. Only the SHA-256 of its secret is kept.
type Token struct {
	ID         ID         `json:"id"`
	UserID     ID         `json:"user_id"`
	Kind       string     `json:"kind"`
	Name       string     `json:"name,omitempty"`
	Hash       []byte     `json:"-"` // SHA-256 of the secret
	ProjectID  ID         `json:"project_id,omitempty"`
	Role       Role       `json:"role,omitempty"` // upper bound; RoleNone = the owner's own
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

// Principal is who makes a request, as far as authorisation needs to know.
type Principal struct {
	UserID     ID // zero for the admin token
	Name       string
	TokenID    ID // zero for the admin token
	AdminToken bool
	SuperAdmin bool        // already bounded by the token
	Roles      map[ID]Role // by project, already bounded by the token
}

// RoleIn returns p's role in the project; a super-admin has RoleAdmin everywhere.
func (p Principal) RoleIn(project ID) Role {
	if p.SuperAdmin {
		return RoleAdmin
	}
	return p.Roles[project]
}

// NewPrincipal bounds what a user may do by the token in use: a token for one
// project sees no other, a token with a role has at most that role, and a
// token bounded either way is never super-admin.
func NewPrincipal(u User, roles map[ID]Role, t Token) Principal {
	p := Principal{UserID: u.ID, Name: u.Name, TokenID: t.ID, SuperAdmin: u.SuperAdmin, Roles: map[ID]Role{}}
	for project, role := range roles {
		p.Roles[project] = role
	}
	if t.ProjectID == "" && t.Role == RoleNone {
		return p
	}
	if t.ProjectID != "" {
		role := p.RoleIn(t.ProjectID)
		p.Roles = map[ID]Role{}
		if role != RoleNone {
			p.Roles[t.ProjectID] = role
		}
		p.SuperAdmin = false
	}
	if t.Role != RoleNone {
		for project, role := range p.Roles {
			p.Roles[project] = role.Min(t.Role)
		}
		p.SuperAdmin = false
	}
	return p
}

// AuditEntry records one mutating call, login or denial. It holds no secret.
type AuditEntry struct {
	ID         ID        `json:"id"`
	At         time.Time `json:"at"`
	ActorID    ID        `json:"actor_id,omitempty"`
	Actor      string    `json:"actor"` // user name, "admin token", or "" when unknown
	TokenID    ID        `json:"token_id,omitempty"`
	RemoteIP   string    `json:"remote_ip"`
	Action     string    `json:"action"` // "POST /v1/services"
	ProjectID  ID        `json:"project_id,omitempty"`
	ResourceID ID        `json:"resource_id,omitempty"`
	Status     int       `json:"status"`
	Code       string    `json:"code,omitempty"`
	RequestID  string    `json:"request_id"`
}

// MinPassword is the least number of characters in a password.
const MinPassword = 12

var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9._@+-]{0,63}$`)

// ValidateUserName checks a user's name.
func ValidateUserName(name string) error {
	if !userName.MatchString(name) {
		return InvalidField("name", "bad_value", "must be 1 to 64 characters of a-z, 0-9 and . _ @ + -, starting with a letter or digit")
	}
	return nil
}

// ValidatePassword checks a new password.
func ValidatePassword(password string) error {
	switch n := utf8.RuneCountInString(password); {
	case n < MinPassword:
		return InvalidField("password", "too_short", "must have at least %d characters", MinPassword)
	case len(password) > 1024:
		return InvalidField("password", "too_long", "must be at most 1024 bytes")
	case strings.TrimSpace(password) == "":
		return InvalidField("password", "blank", "must not be blank")
	}
	return nil
}
