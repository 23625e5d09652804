package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/registry/oci"
)

// What is signed begins with one of these, so that one kind is never taken for
// the other, and no other algorithm is ever asked for.
var (
	tokenHeader      = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
	credentialHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"denia-credential"}`))
)

const (
	maxToken     = 16 << 10 // bytes; longer ones aren't ours
	maxTokenForm = 64 << 10 // bytes of a POST to /v2/token
	maxScopes    = 16       // repositories one token may be for
	maxVerified  = 1024     // tokens remembered to be genuine
)

// What a token may allow to do with a repository.
const (
	actionPull   = "pull"
	actionPush   = "push"
	actionDelete = "delete"
)

// claims is what a token says.
type claims struct {
	Subject string   `json:"sub"`
	Issued  int64    `json:"iat"` // seconds since 1970, as Expires
	Expires int64    `json:"exp"`
	Access  []access `json:"access"`
}

// access is the part of a token, or of a scope, about one repository.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// allow tells whether the actions on the repository are among the claims.
// Without a token everything is.
func (cl *claims) allow(name, actions string) bool {
	if cl == nil {
		return true
	}
	for i := range cl.Access {
		if a := &cl.Access[i]; a.Name == name {
			for action := range strings.SplitSeq(actions, ",") {
				if !slices.Contains(a.Actions, action) {
					return false
				}
			}
			return true
		}
	}
	return false
}

// verified remembers tokens whose signature was found right, by what was
// signed. Who shows one has to show the signature all the same.
type verified struct {
	mu    sync.Mutex
	known map[string]verifiedToken
}

type verifiedToken struct {
	mac    [sha256.Size]byte
	claims *claims
}

func newVerified() *verified { return &verified{known: map[string]verifiedToken{}} }

func (g *Registry) mac(signed string) (mac [sha256.Size]byte) {
	h := hmac.New(sha256.New, g.cfg.TokenKey)
	h.Write([]byte(signed))
	h.Sum(mac[:0])
	return mac
}

func (g *Registry) sign(header string, cl *claims) string {
	// Strings and numbers: there is nothing that could not be marshalled.
	payload, _ := json.Marshal(cl)
	signed := header + "." + base64.RawURLEncoding.EncodeToString(payload)
	mac := g.mac(signed)
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac[:])
}

// verify takes a token apart if it was signed here, with that header, and has
// not expired; it fails with errToken. The claims must not be changed.
func (g *Registry) verify(token, header string) (*claims, error) {
	if len(token) > maxToken {
		return nil, errToken
	}
	dot := strings.LastIndexByte(token, '.')
	if dot <= len(header) || token[:len(header)] != header || token[len(header)] != '.' {
		return nil, errToken
	}
	signed := token[:dot]
	var given [sha256.Size]byte
	if base64.RawURLEncoding.DecodedLen(len(token)-dot-1) != len(given) {
		return nil, errToken
	}
	if _, err := base64.RawURLEncoding.Strict().Decode(given[:], []byte(token[dot+1:])); err != nil {
		return nil, errToken
	}

	tokens := g.memo.tokens
	tokens.mu.Lock()
	known, ok := tokens.known[signed]
	tokens.mu.Unlock()
	if !ok {
		known = verifiedToken{mac: g.mac(signed), claims: &claims{}}
	}
	if !hmac.Equal(known.mac[:], given[:]) {
		return nil, errToken
	}
	if !ok {
		payload, err := base64.RawURLEncoding.DecodeString(signed[len(header)+1:])
		if err != nil {
			return nil, errToken
		}
		if err := json.Unmarshal(payload, known.claims); err != nil {
			return nil, errToken
		}
		tokens.mu.Lock()
		if len(tokens.known) >= maxVerified {
			clear(tokens.known)
		}
		tokens.known[signed] = known
		tokens.mu.Unlock()
	}
	if g.now().Unix() >= known.claims.Expires {
		return nil, errToken
	}
	return known.claims, nil
}

// expiry is when something ends that is issued now, in whole seconds, rounded
// up.
func expiry(now time.Time, ttl time.Duration) int64 {
	return now.Add(ttl + time.Second - 1).Unix()
}

// serveToken answers GET and POST of /v2/token, as Docker's clients expect
// (https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/):
// a token for as much of the scopes as the subject may have, that ends no later
// than the credential shown for it. It never issues a refresh token.
func (g *Registry) serveToken(w http.ResponseWriter, r *http.Request) {
	c := &call{Registry: g, w: w, r: r}
	w.Header().Set("Cache-Control", "no-store, no-transform")
	switch r.Method {
	case http.MethodGet:
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			c.fail(http.StatusBadRequest, codeUnsupported, "the query cannot be read", nil)
			return
		}
		who, err := c.identify()
		c.issue(who, err, query["scope"])
	case http.MethodPost:
		c.issueByForm()
	default:
		w.Header().Set("Allow", "GET, POST")
		c.fail(http.StatusMethodNotAllowed, codeUnsupported, "tokens are to be had by GET and POST", nil)
	}
}

// issueByForm answers a POST: OAuth 2.0's password grant.
func (c *call) issueByForm() {
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxTokenForm)
	if err := c.r.ParseForm(); err != nil {
		c.fail(http.StatusBadRequest, codeUnsupported, "the form cannot be read", nil)
		return
	}
	// Never the query: a password does not belong there.
	form := c.r.PostForm
	if grant := form.Get("grant_type"); grant != "password" {
		c.fail(http.StatusBadRequest, codeUnsupported, "the only grant_type is password", nil)
		return
	}
	var who identity
	var err error
	if username := form.Get("username"); username != "" {
		who, err = c.authenticate(username, form.Get("password"))
	} else {
		who, err = c.identify()
	}
	c.issue(who, err, form["scope"])
}

// issue answers with a token for what is granted of the scopes, or with why
// there is none.
func (c *call) issue(who identity, err error, scopes []string) {
	if err == nil && who.bearer {
		// A token doesn't prolong itself.
		err = errToken
	}
	if err != nil {
		c.noToken(err)
		return
	}
	c.subject = who.subject
	granted := []access{}
	for _, wanted := range parseScopes(scopes) {
		grant, err := c.grantOf(c.r.Context(), who.subject, wanted.Name)
		if err != nil {
			c.failed(err)
			return
		}
		if wanted.Actions = grantable(grant, who.limits, wanted); len(wanted.Actions) > 0 {
			granted = append(granted, wanted)
		}
	}
	if who.subject == "" && len(granted) == 0 {
		c.noToken(errAnonymous)
		return
	}

	now := c.now()
	expires := expiry(now, c.cfg.TokenTTL)
	if who.limits != nil {
		expires = min(expires, who.limits.Expires)
	}
	token := c.sign(tokenHeader, &claims{Subject: who.subject, Issued: now.Unix(), Expires: expires, Access: granted})
	answer, _ := json.Marshal(map[string]any{
		"token":        token,
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   min(expires-now.Unix(), int64(c.cfg.TokenTTL/time.Second)),
		"issued_at":    now.UTC().Format(time.RFC3339),
		"scope":        formatScopes(granted),
	})
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	c.w.Write(answer)
}

// noToken answers what made a token impossible. Here the client has shown
// a password, or should have.
func (c *call) noToken(err error) {
	for _, refusal := range []error{errAnonymous, errToken, errScheme, ErrUnauthorized} {
		if errors.Is(err, refusal) {
			c.w.Header().Set("Www-Authenticate", `Basic realm="Denia"`)
			c.fail(http.StatusUnauthorized, codeUnauthorized, refusal.Error(), nil)
			return
		}
	}
	c.failed(err)
}

// grantable is what is granted of the wanted actions.
func grantable(grant Grant, limits *claims, wanted access) []string {
	var actions []string
	for _, action := range []string{actionPull, actionPush, actionDelete} {
		asked := slices.Contains(wanted.Actions, action) || slices.Contains(wanted.Actions, "*")
		if asked && grant.allows(action) && limits.allow(wanted.Name, action) {
			actions = append(actions, action)
		}
	}
	return actions
}

// parseScopes reads scopes: each string holds some, separated by spaces. What
// is wanted of one repository is put together; what is no repository's is left
// out, as is what goes beyond maxScopes.
func parseScopes(scopes []string) []access {
	var wanted []access
	for _, several := range scopes {
		for scope := range strings.FieldsSeq(several) {
			a, ok := parseScope(scope)
			if !ok {
				continue
			}
			i := slices.IndexFunc(wanted, func(b access) bool { return b.Name == a.Name })
			if i >= 0 {
				wanted[i].Actions = append(wanted[i].Actions, a.Actions...)
			} else if len(wanted) < maxScopes {
				wanted = append(wanted, a)
			}
		}
	}
	return wanted
}

// parseScope reads one: "repository:<name>:<action>,<action>". The type may
// have a class in brackets, which matters to nobody here.
func parseScope(scope string) (access, bool) {
	kind, rest, _ := strings.Cut(scope, ":")
	kind, _, _ = strings.Cut(kind, "(")
	colon := strings.LastIndexByte(rest, ':')
	if kind != "repository" || colon < 0 || !oci.ValidName(rest[:colon]) {
		return access{}, false
	}
	return access{Type: kind, Name: rest[:colon], Actions: strings.Split(rest[colon+1:], ",")}, true
}

func formatScopes(granted []access) string {
	scopes := make([]string, len(granted))
	for i, a := range granted {
		scopes[i] = a.Type + ":" + a.Name + ":" + strings.Join(a.Actions, ",")
	}
	return strings.Join(scopes, " ")
}
