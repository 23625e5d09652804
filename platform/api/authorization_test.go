package api_test

import (
	"archive/tar"
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
)

// world is what one case of the authorization test acts on.
type world struct {
	project    platform.Project
	service    platform.Service
	deployment platform.Deployment
	domain     platform.Domain
	victim     platform.User // whom member and user routes name
	stranger   platform.User // no member of anything
	own        platform.Token
	session    platform.Token
	tokens     map[string]string // by caller
}

var callers = []string{"nobody", "bad token", "outsider", "viewer", "operator", "admin", "super-admin"}

func newWorld(e *env, n string, empty bool) world {
	w := world{project: e.project("p" + n), tokens: map[string]string{"nobody": "", "bad token": "dn_ses_nonsense"}}
	elsewhere := e.project("q" + n)
	users := map[string]platform.User{
		"outsider":    e.member(elsewhere, "outsider"+n, platform.RoleAdmin),
		"viewer":      e.member(w.project, "viewer"+n, platform.RoleViewer),
		"operator":    e.member(w.project, "operator"+n, platform.RoleOperator),
		"admin":       e.member(w.project, "admin"+n, platform.RoleAdmin),
		"super-admin": e.user("super"+n, true),
	}
	for name, u := range users {
		w.tokens[name] = e.token(u)
	}
	w.victim = e.member(w.project, "victim"+n, platform.RoleViewer)
	w.stranger = e.user("stranger"+n, false)
	if !empty {
		w.service = e.service(w.project, "web")
		w.deployment = e.deployment(w.service)
		d, err := e.store.CreateDomain(e.ctx, w.service.ID, "shop.example.com", "token"+n, 100)
		w.domain = must(e.t, d, err)
	}
	// What "owner" routes name belongs to the operator.
	expires := time.Now().Add(time.Hour)
	for kind, into := range map[string]*platform.Token{platform.TokenAPI: &w.own, platform.TokenSession: &w.session} {
		t, err := e.store.CreateToken(e.ctx, platform.Token{UserID: users["operator"].ID, Kind: kind, Name: "mine", Hash: []byte(kind + n), ExpiresAt: &expires})
		*into = must(e.t, t, err)
	}
	return w
}

// path fills a route's placeholders.
func (w world) path(pattern string) string {
	id := string(w.service.ID)
	switch {
	case strings.HasPrefix(pattern, "/v1/projects/"):
		id = string(w.project.ID)
	case strings.HasPrefix(pattern, "/v1/deployments/"):
		id = string(w.deployment.ID)
	case strings.HasPrefix(pattern, "/v1/auth/sessions/"):
		id = string(w.session.ID)
	}
	user := w.victim.ID
	if pattern == "/v1/users/{user_id}" {
		user = w.own.UserID
	}
	return strings.NewReplacer("{id}", id, "{user_id}", string(user), "{token_id}", string(w.own.ID),
		"{domain_id}", string(w.domain.ID), "{token}", knownToken).Replace(pattern)
}

// bodies holds a good body for every POST and PUT; a route that is missing
// here fails the test.
var bodies = map[string]func(w world, n string) any{
	"POST /v1/bootstrap":                                func(w world, n string) any { return `{"username":"first","password":"` + goodPassword + `"}` },
	"POST /v1/auth/login":                               func(w world, n string) any { return `{"username":"viewer` + n + `","password":"` + goodPassword + `"}` },
	"POST /v1/auth/logout":                              none,
	"POST /v1/users":                                    func(w world, n string) any { return `{"name":"new` + n + `","password":"` + goodPassword + `"}` },
	"PUT /v1/users/{user_id}":                           func(w world, n string) any { return `{}` },
	"POST /v1/api-tokens":                               func(w world, n string) any { return `{"name":"ci"}` },
	"POST /v1/projects":                                 func(w world, n string) any { return `{"name":"new` + n + `"}` },
	"PUT /v1/projects/{id}":                             func(w world, n string) any { return `{"name":"` + w.project.Name + `"}` },
	"POST /v1/projects/{id}/members":                    func(w world, n string) any { return `{"user_id":"` + string(w.stranger.ID) + `","role":"viewer"}` },
	"POST /v1/services":                                 func(w world, n string) any { return `{"name":"api","project_id":"` + string(w.project.ID) + `"}` },
	"PUT /v1/services/{id}":                             func(w world, n string) any { return `{"name":"web"}` },
	"POST /v1/services/{id}/start":                      none,
	"POST /v1/services/{id}/stop":                       none,
	"POST /v1/services/{id}/restart":                    none,
	"POST /v1/services/{id}/scale":                      func(w world, n string) any { return `{"replicas":2}` },
	"POST /v1/services/{id}/uploads":                    func(w world, n string) any { return tarball("Dockerfile", "FROM scratch\n") },
	"POST /v1/services/{id}/domains":                    func(w world, n string) any { return `{"hostname":"www.example.com"}` },
	"POST /v1/services/{id}/domains/{domain_id}/verify": none,
	"POST /v1/deployments":                              func(w world, n string) any { return `{"service_id":"` + string(w.service.ID) + `"}` },
	"POST /v1/deployments/{id}/cancel":                  none,
	"POST /v1/registry/gc":                              none,
	"POST /v1/oci/cache/gc":                             none,
}

func none(world, string) any { return nil }

func tarball(name, content string) []byte {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		panic(err)
	}
	if _, err := t.Write([]byte(content)); err != nil {
		panic(err)
	}
	if err := t.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// wanted is the status the table's least role asks for.
func wanted(row api.Row, caller string) int {
	rank := slices.Index(callers, caller)
	least := map[string]int{"Viewer": 3, "Operator": 4, "Admin": 5, "super-admin": 6}[row.Least]
	switch {
	case row.Least == "public":
		return row.Status
	case rank < 2:
		return http.StatusUnauthorized
	case row.Path == "/v1/bootstrap":
		return http.StatusForbidden
	case row.Least == "any token":
		return row.Status
	case row.Least == "owner" && (caller == "operator" || caller == "super-admin"):
		return row.Status
	case row.Least == "owner" && row.Method == http.MethodPut:
		return http.StatusForbidden
	case row.Least == "owner":
		return http.StatusNotFound
	case row.Scope == "collection":
		return row.Status
	case caller == "outsider" && row.Least != "super-admin" && row.Scope != "anywhere":
		return http.StatusNotFound
	case caller == "outsider" && row.Scope == "anywhere":
		return row.Status // admin of another project
	case rank < least:
		return http.StatusForbidden
	}
	return row.Status
}

// Every route, for every kind of caller, answers what its least role says.
func TestEveryRouteHoldsItsLeastRole(t *testing.T) {
	e := newEnv(t)
	server := e.serve()
	n := 0
	for _, row := range api.Table() {
		t.Run(row.Method+" "+row.Path, func(t *testing.T) {
			body, known := bodies[row.Method+" "+row.Path]
			if writes := row.Method == http.MethodPost || row.Method == http.MethodPut; writes && !known {
				t.Fatal("the test has no body for this route")
			}
			var w world
			var id string
			for untouched, i := false, 0; i < len(callers); i++ {
				caller := callers[i]
				n++
				if !untouched { // who was refused has changed nothing
					id = string(rune('a'+n/676)) + string(rune('a'+n/26%26)) + string(rune('a'+n%26))
					w = newWorld(e, id, row.Method+" "+row.Path == "DELETE /v1/projects/{id}")
				}
				ctx, cancel := context.WithCancel(t.Context())
				var content any
				if known {
					content = body(w, id)
				}
				r := request(w.tokens[caller], row.Method, server.URL+w.path(row.Path), content, "Test-Ip", "2001:db8:0:"+id2hex(n)+"::1").WithContext(ctx)
				r.RequestURI, r.Host = "", ""
				if strings.HasSuffix(row.Path, "/uploads") {
					r.Header.Set("Content-Type", "application/x-tar")
				}
				reply, err := server.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				if want := wanted(row, caller); reply.StatusCode != want {
					t.Errorf("%s: status %d, want %d", caller, reply.StatusCode, want)
				}
				if kind := reply.Header.Get("Content-Type"); reply.StatusCode >= 400 && kind != "application/problem+json" {
					t.Errorf("%s: an error of type %q", caller, kind)
				}
				if challenge := reply.Header.Get("WWW-Authenticate"); (reply.StatusCode == http.StatusUnauthorized) != strings.HasPrefix(challenge, "Bearer") {
					t.Errorf("%s: status %d with WWW-Authenticate %q", caller, reply.StatusCode, challenge)
				}
				cancel()
				reply.Body.Close()
				untouched = reply.StatusCode >= 400 || row.Method == http.MethodGet
			}
		})
	}
}

func id2hex(n int) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}

func TestBootstrapTakesTheAdminToken(t *testing.T) {
	e := newEnv(t)
	first := `{"username":"first","password":"` + goodPassword + `"}`
	e.do("", "POST", "/v1/bootstrap", first).want(401)
	e.do(e.super(), "POST", "/v1/bootstrap", first).want(403, "forbidden")
	e.do(adminSecret, "POST", "/v1/bootstrap", first).want(409, "already_bootstrapped")

	e = newEnv(t)
	made := e.do(adminSecret, "POST", "/v1/bootstrap", first).want(201)
	if made.header.Get("Location") != "/v1/users/"+made.str("id") || made.field("super_admin") != true {
		t.Errorf("bootstrap answered %s, %s", made.header, made.body)
	}
	login := e.do("", "POST", "/v1/auth/login", first).want(200)
	e.do(login.str("token"), "GET", "/v1/users", nil).want(200)
	e.do(adminSecret, "POST", "/v1/bootstrap", first).want(409, "already_bootstrapped")
}
