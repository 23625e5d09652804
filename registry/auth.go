package registry

import (
	"errors"
	"net/http"
	"strings"
	"time"
)

// internalUser is the user name of Registry.Credentials. No account can have
// it: it isn't a name.
const internalUser = "<denia>"

// identity is who sent a request.
type identity struct {
	subject string
	limits  *claims // of a token or credential: more than this it doesn't give; nil: a password
	bearer  bool    // a token of /v2/token was shown
}

// Reasons for a 401, besides ErrUnauthorized.
var (
	errAnonymous = errors.New("authentication required")
	errToken     = errors.New("the token is expired, or not one of this registry")
	errScope     = errors.New("the token was not issued for this")
	errScheme    = errors.New("the Authorization header is neither Basic nor Bearer")
)

// identify tells who sent the request: nobody in particular, when it carries
// no credentials.
func (c *call) identify() (identity, error) {
	header := c.r.Header.Get("Authorization")
	if header == "" {
		return identity{}, nil
	}
	scheme, credentials, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		limits, err := c.verify(strings.TrimSpace(credentials), tokenHeader)
		if err != nil {
			return identity{}, err
		}
		return identity{subject: limits.Subject, limits: limits, bearer: true}, nil
	case strings.EqualFold(scheme, "Basic"):
		username, password, ok := c.r.BasicAuth()
		if !ok {
			return identity{}, ErrUnauthorized
		}
		return c.authenticate(username, password)
	}
	return identity{}, errScheme
}

// authenticate tells whose user name and password these are.
func (c *call) authenticate(username, password string) (identity, error) {
	if username == internalUser {
		limits, err := c.verify(password, credentialHeader)
		if err != nil {
			return identity{}, ErrUnauthorized
		}
		return identity{subject: Internal, limits: limits}, nil
	}
	subject, err := c.cfg.Authenticate(c.r, username, password)
	if err != nil {
		return identity{}, err
	}
	if subject == "" || subject == Internal {
		// Neither the public nor Denia itself has a password.
		return identity{}, ErrUnauthorized
	}
	return identity{subject: subject}, nil
}

// authorize finds out who asks and what they may do, sets the call's subject
// and grant, and tells whether the call may go on. When it may not, it has
// been answered.
func (c *call) authorize(e endpoint) bool {
	who, err := c.identify()
	if err != nil {
		c.unauthorized(err, e.actions)
		return false
	}
	return c.permit(who, e.actions)
}

// authorizeAgain is for after a body was read, which may have taken days: who
// lost the right to do the actions, or the account, must not go on because
// they began before. A token or credential has to be valid still, unless it
// may expire: reading a large blob takes longer than tokens live.
func (c *call) authorizeAgain(actions string, mayExpire bool) bool {
	who := c.who
	if !mayExpire || who.limits == nil {
		var err error
		if who, err = c.identify(); err != nil {
			c.unauthorized(err, actions)
			return false
		}
	}
	return c.permit(who, actions)
}

// permit is authorize for somebody who is identified.
func (c *call) permit(who identity, actions string) bool {
	c.subject, c.who = who.subject, who
	grant, err := c.grantOf(c.r.Context(), who.subject, c.name)
	if err != nil {
		c.failed(err)
		return false
	}
	c.grant = grant
	switch {
	case grant.allows(actions):
		if who.limits.allow(c.name, actions) {
			return true
		}
		c.unauthorized(errScope, actions)
	case who.subject == "":
		// Whether there is such a repository, somebody who logs in may learn.
		c.unauthorized(errAnonymous, actions)
	case grant.Repo == "":
		c.unknownName()
	default:
		c.fail(http.StatusForbidden, codeDenied, "your role does not allow to "+verb(actions)+" "+c.name, nil)
	}
	return false
}

// pullFrom tells what the caller may do with another repository, of which it
// wants to pull something. It fails with errScope when the caller may pull
// there, but not with the token it shows. Whoever may not must not be told
// whether there is such a repository.
func (c *call) pullFrom(name string) (Grant, error) {
	who, err := c.identify()
	if err != nil {
		return Grant{}, err
	}
	grant, err := c.grantOf(c.r.Context(), who.subject, name)
	if err == nil && grant.allows("pull") && !who.limits.allow(name, "pull") {
		return Grant{}, errScope
	}
	return grant, err
}

// unknownName says that there is no such repository, to somebody who is logged
// in.
func (c *call) unknownName() {
	message := c.grant.Missing
	if message == "" {
		message = "there is no repository " + c.name + ", or you may not see it"
	}
	c.fail(http.StatusNotFound, codeNameUnknown, message, map[string]string{"name": c.name})
}

// unauthorized answers what identify or authorize failed with. actions is what a
// token has to allow to get further; empty where none helps in particular. It
// has to allow pulling from the others, too.
func (c *call) unauthorized(err error, actions string, others ...string) {
	var reason string
	switch {
	case errors.Is(err, errToken):
		reason = "invalid_token"
	case errors.Is(err, errScope):
		reason = "insufficient_scope"
	case errors.Is(err, errAnonymous), errors.Is(err, errScheme), errors.Is(err, ErrUnauthorized):
	default:
		c.failed(err)
		return
	}
	var b strings.Builder
	b.WriteString(`Bearer realm="`)
	b.WriteString(c.origin())
	b.WriteString(`/v2/token",service="`)
	b.WriteString(c.host())
	b.WriteByte('"')
	if actions != "" {
		if actions == "push" {
			actions = "pull,push"
		}
		b.WriteString(`,scope="repository:` + c.name + `:` + actions)
		for _, name := range others {
			b.WriteString(` repository:` + name + `:pull`)
		}
		b.WriteByte('"')
	}
	if reason != "" {
		b.WriteString(`,error="` + reason + `"`)
	}
	c.w.Header().Set("Www-Authenticate", b.String())
	c.fail(http.StatusUnauthorized, codeUnauthorized, err.Error(), nil)
}

// host is what the client called this registry, if that can stand in a quoted
// string.
func (c *call) host() string {
	host := c.r.Host
	for i := range len(host) {
		if b := host[i]; b <= ' ' || b >= 0x7f || b == '"' || b == '\\' || b == '/' {
			return "registry"
		}
	}
	return host
}

func (c *call) origin() string {
	scheme := "http"
	switch {
	case c.cfg.Scheme != nil:
		scheme = c.cfg.Scheme(c.r)
	case c.r.TLS != nil:
		scheme = "https"
	}
	return scheme + "://" + c.host()
}

// servePing answers GET /v2/. Clients choose from it how they log in, so that
// it asks everybody to, even where some repositories are public.
func (g *Registry) servePing(w http.ResponseWriter, r *http.Request) {
	c := &call{Registry: g, w: w, r: r}
	who, err := c.identify()
	if err == nil && who.subject == "" {
		err = errAnonymous
	}
	if err != nil {
		c.unauthorized(err, "")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", "2")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write([]byte("{}"))
	}
}

// Credentials returns a user name and password with which Denia itself may do
// the actions ("pull", or several: "pull,push") in one repository for a while,
// by Basic authentication or the token flow. The password is no account's and
// needs no storing: it is signed with Config.TokenKey.
func (g *Registry) Credentials(name, actions string, ttl time.Duration) (username, password string) {
	now := g.now()
	return internalUser, g.sign(credentialHeader, &claims{
		Subject: Internal,
		Issued:  now.Unix(),
		Expires: expiry(now, ttl),
		Access:  []access{{Type: "repository", Name: name, Actions: strings.Split(actions, ",")}},
	})
}

// allows tells whether the grant covers an endpoint's actions.
func (g Grant) allows(actions string) bool {
	if g.Repo == "" {
		return false
	}
	for action := range strings.SplitSeq(actions, ",") {
		switch action {
		case "pull":
			if !g.Pull {
				return false
			}
		case "push":
			if !g.Push {
				return false
			}
		case "delete":
			if !g.Delete {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func verb(actions string) string {
	switch actions {
	case "pull":
		return "pull from"
	case "delete":
		return "delete from"
	}
	return "push to"
}
