package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

func credentials(name, password string) string {
	return fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)
}

func TestLogin(t *testing.T) {
	e := newEnv(t)
	u := e.user("anna", false)
	ok := e.do("", "POST", "/v1/auth/login", credentials("anna", goodPassword)).want(200)
	token := ok.str("token")
	if !strings.HasPrefix(token, "dn_ses_") || ok.str("user", "id") != string(u.ID) {
		t.Fatalf("login answered %s", ok.body)
	}
	expires := must2(time.Parse(time.RFC3339, ok.str("expires_at")))(t)
	if left := time.Until(expires); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("the session lasts %s", left)
	}
	if me := e.do(token, "GET", "/v1/me", nil).want(200); me.str("user", "name") != "anna" || me.str("kind") != "session" {
		t.Errorf("me is %s", me.body)
	}
	wrong := e.do("", "POST", "/v1/auth/login", credentials("anna", goodPassword+"!")).want(401, "bad_credentials")
	unknown := e.do("", "POST", "/v1/auth/login", credentials("bert", goodPassword)).want(401, "bad_credentials")
	if wrong.str("detail") != unknown.str("detail") {
		t.Error("login tells whether a user exists")
	}
	e.do(token, "POST", "/v1/auth/logout", nil).want(204)
	e.do(token, "GET", "/v1/me", nil).want(401, "invalid_token")
}

func must2[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { return must(t, v, err) }
}

// A user made through the API has a real argon2id hash, and can log in.
func TestPasswordsAreArgon2id(t *testing.T) {
	e := newEnv(t)
	super := e.super()
	e.do(super, "POST", "/v1/users", credentials("carl", "short")).want(422, "validation_failed")
	made := e.do(super, "POST", "/v1/users", credentials("carl", goodPassword)).want(201)
	if strings.Contains(string(made.body), "argon2") || strings.Contains(string(made.body), "password") {
		t.Errorf("the reply holds a password hash: %s", made.body)
	}
	u := must2(e.store.UserByName(e.ctx, "carl"))(t)
	if !strings.HasPrefix(u.PasswordHash, "$argon2id$v=19$m=47104,t=3,p=1$") {
		t.Errorf("the hash is %s", u.PasswordHash)
	}
	e.do("", "POST", "/v1/auth/login", credentials("carl", goodPassword)).want(200)
	e.do(super, "POST", "/v1/users", credentials("carl", goodPassword)).want(409, "name_taken")
}

func TestSessionsSlideAndEnd(t *testing.T) {
	e := newEnv(t)
	u := e.user("anna", false)
	at := func(created, expires time.Duration) string {
		return e.token(u, func(t *platform.Token) {
			until := time.Now().Add(expires)
			t.CreatedAt, t.ExpiresAt = time.Now().Add(created), &until
		})
	}
	expired := at(-25*time.Hour, -time.Second)
	e.do(expired, "GET", "/v1/me", nil).want(401, "invalid_token")

	young, old := at(-time.Hour, time.Hour), at(-6*24*time.Hour-12*time.Hour, time.Hour)
	e.do(young, "GET", "/v1/me", nil).want(200)
	e.do(old, "GET", "/v1/me", nil).want(200)
	sessions := e.do(young, "GET", "/v1/auth/sessions", nil).want(200)
	var youngLeft, oldLeft time.Duration
	for i := range sessions.field().([]any) {
		left := time.Until(must2(time.Parse(time.RFC3339, sessions.str(i, "expires_at")))(t))
		switch {
		case sessions.field(i, "current") == true:
			youngLeft = left
		case sessions.field(i, "last_used_at") != nil:
			oldLeft = left
		}
	}
	if youngLeft < 23*time.Hour || youngLeft > 24*time.Hour {
		t.Errorf("a session in use lasts %s", youngLeft)
	}
	if oldLeft < 11*time.Hour || oldLeft > 13*time.Hour {
		t.Errorf("a session of 6.5 days lasts another %s: the cap is 7 days", oldLeft)
	}
	var other string
	for i := range sessions.field().([]any) {
		if sessions.field(i, "current") == false && sessions.field(i, "last_used_at") != nil {
			other = sessions.str(i, "id")
		}
	}
	e.do(young, "DELETE", "/v1/auth/sessions/"+other, nil).want(204)
	e.do(old, "GET", "/v1/me", nil).want(401)
}

func TestAPITokens(t *testing.T) {
	e := newEnv(t)
	p, q := e.project("shop"), e.project("blog")
	u := e.member(p, "anna", platform.RoleOperator)
	if _, _, err := e.store.PutMember(e.ctx, q.ID, u.ID, platform.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	e.service(p, "web")
	session := e.token(u)
	mint := func(by, body string) answer { return e.do(by, "POST", "/v1/api-tokens", body) }

	whole := mint(session, `{"name":"all"}`).want(201)
	if !strings.HasPrefix(whole.str("token"), "dn_api_") || whole.header.Get("Location") != "/v1/api-tokens/"+whole.str("id") {
		t.Fatalf("minted %s", whole.body)
	}
	e.do(whole.str("token"), "GET", "/v1/projects/blog", nil).want(200)

	shop := mint(session, `{"name":"shop only","project_id":"shop"}`).want(201).str("token")
	e.do(shop, "GET", "/v1/projects/blog", nil).want(404)
	e.do(shop, "POST", "/v1/services/shop:web/stop", nil).want(202)

	reader := mint(session, `{"name":"reader","role":"viewer"}`).want(201).str("token")
	e.do(reader, "GET", "/v1/services/shop:web", nil).want(200)
	e.do(reader, "POST", "/v1/services/shop:web/stop", nil).want(403, "forbidden")

	mint(session, `{"name":"too much","project_id":"shop","role":"admin"}`).want(403, "forbidden")
	mint(session, `{"name":"elsewhere","project_id":"default"}`).want(404)
	mint(session, `{"name":"past","expires_at":"2001-01-01T00:00:00Z"}`).want(422)
	mint(adminSecret, `{"name":"nobody's"}`).want(409, "no_user")

	// A bounded token makes nothing wider than itself, and does not reach the account.
	mint(reader, `{"name":"wider","role":"operator"}`).want(403)
	if got := mint(reader, `{"name":"same"}`).want(201); got.str("role") != "viewer" {
		t.Errorf("a viewer's token minted %s", got.body)
	}
	mint(shop, `{"name":"wider","project_id":"blog"}`).want(404)
	e.do(reader, "GET", "/v1/auth/sessions", nil).want(403)
	e.do(reader, "PUT", "/v1/users/"+string(u.ID), `{"password":"`+goodPassword+`2","current_password":"`+goodPassword+`"}`).want(403)
	e.do(reader, "DELETE", "/v1/api-tokens/"+whole.str("id"), nil).want(404)

	// A token that ends makes none that lasts longer.
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	short := mint(session, `{"name":"short","expires_at":"`+soon+`"}`).want(201).str("token")
	if got := mint(short, `{"name":"heir"}`).want(201); got.str("expires_at") == "" {
		t.Errorf("a token that ends minted %s", got.body)
	}
	mint(short, `{"name":"longer","expires_at":"2099-01-01T00:00:00Z"}`).want(403)

	listed := e.do(session, "GET", "/v1/api-tokens", nil).want(200)
	if strings.Contains(string(listed.body), "dn_api_") {
		t.Errorf("the list shows secrets: %s", listed.body)
	}
	e.do(session, "DELETE", "/v1/api-tokens/"+whole.str("id"), nil).want(204)
	e.do(whole.str("token"), "GET", "/v1/me", nil).want(401)
	e.do(session, "DELETE", "/v1/api-tokens/"+whole.str("id"), nil).want(404)
}

func TestRolesChangeWithTheNextRequest(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	e.service(p, "web")
	admin, u := e.token(e.member(p, "root", platform.RoleAdmin)), e.user("anna", false)
	token := e.token(u)
	members := "/v1/projects/shop/members"
	e.do(token, "GET", "/v1/services/shop:web", nil).want(404)
	added := e.do(admin, "POST", members, `{"user_name":"anna","role":"operator"}`).want(201)
	if added.header.Get("Location") != members+"/"+string(u.ID) && !strings.HasSuffix(added.header.Get("Location"), "/members/"+string(u.ID)) {
		t.Errorf("Location %s", added.header.Get("Location"))
	}
	e.do(token, "POST", "/v1/services/shop:web/stop", nil).want(202)
	e.do(admin, "POST", members, `{"user_id":"`+string(u.ID)+`","role":"viewer"}`).want(200)
	if role := e.do(token, "POST", "/v1/services/shop:web/stop", nil).want(403, "forbidden").str("required_role"); role != "operator" {
		t.Errorf("the role needed is called %q", role)
	}
	e.do(admin, "DELETE", members+"/"+string(u.ID), nil).want(204)
	e.do(token, "GET", "/v1/services/shop:web", nil).want(404)
	e.do(admin, "DELETE", members+"/"+string(u.ID), nil).want(404)
	e.do(admin, "POST", members, `{"user_name":"ghost","role":"viewer"}`).want(422)
	e.do(admin, "POST", members, `{"role":"viewer"}`).want(422)

	me := must2(e.store.UserByName(e.ctx, "root"))(t)
	e.do(admin, "DELETE", members+"/"+string(me.ID), nil).want(409, "last_admin")
	e.do(admin, "POST", members, `{"user_name":"root","role":"viewer"}`).want(409, "last_admin")
}

func TestUsersChange(t *testing.T) {
	e := newEnv(t)
	root := e.user("root", true)
	super, u := e.token(root), e.user("anna", false)
	own, other := e.token(u), e.token(u)
	path := "/v1/users/" + string(u.ID)

	e.do(own, "PUT", path, `{"name":"queen"}`).want(403)
	e.do(own, "PUT", path, `{"super_admin":true}`).want(403)
	e.do(own, "PUT", "/v1/users/"+string(root.ID), `{"password":"`+goodPassword+`"}`).want(403)
	e.do(own, "PUT", path, `{"password":"another password"}`).want(422)
	e.do(own, "PUT", path, `{"password":"another password","current_password":"wrong wrong wrong"}`).want(422)
	e.do(own, "PUT", path, `{"password":"another password","current_password":"`+goodPassword+`"}`).want(200)
	e.do(own, "GET", "/v1/me", nil).want(200)
	e.do(other, "GET", "/v1/me", nil).want(401)
	e.do("", "POST", "/v1/auth/login", credentials("anna", "another password")).want(200)

	e.do(super, "PUT", path, `{"name":"queen","super_admin":true}`).want(200)
	e.do(own, "GET", "/v1/users", nil).want(200)
	e.do(super, "PUT", path, `{"password":"a third password"}`).want(200)
	e.do(own, "GET", "/v1/me", nil).want(401)
	e.do(super, "DELETE", path, nil).want(204)
	e.do(super, "PUT", "/v1/users/"+string(root.ID), `{"super_admin":false}`).want(409, "last_super_admin")
	e.do(super, "DELETE", "/v1/users/"+string(root.ID), nil).want(409, "last_super_admin")
}

func TestAuditTellsWhatHappenedAndNoSecret(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	s := e.service(p, "web")
	super := e.super()
	viewer := e.member(p, "viewer", platform.RoleViewer)
	viewerToken := e.token(viewer)
	outsider := e.token(e.member(e.project("blog"), "outsider", platform.RoleAdmin))

	e.do("", "POST", "/v1/auth/login", credentials("viewer", goodPassword)).want(200)
	e.do("", "POST", "/v1/auth/login", credentials("viewer", "my secret passphrase")).want(401)
	e.do("", "POST", "/v1/auth/login", credentials("typed-my-password-here", "x")).want(401)
	e.do(super, "POST", "/v1/services", `{"name":"api","project_id":"shop","secret_env":{"A":"sesame-opens"}}`).want(201)
	e.do(viewerToken, "PUT", "/v1/services/"+string(s.ID), `{"name":"web"}`).want(403)
	e.do(outsider, "DELETE", "/v1/services/"+string(s.ID), nil).want(404)
	e.do("", "DELETE", "/v1/services/"+string(s.ID), nil).want(401)
	e.do(viewerToken, "GET", "/v1/services/"+string(s.ID)+"/logs", nil).want(403)
	e.do(super, "GET", "/v1/services", nil).want(200)

	a := e.do(super, "GET", "/v1/audit", nil).want(200)
	var got []string
	for i := range a.field().([]any) {
		got = append(got, fmt.Sprintf("%s %v %s %q", a.str(i, "action"), a.field(i, "status"), a.str(i, "actor"), a.str(i, "code")))
		if a.str(i, "remote_ip") != e.ip || a.str(i, "request_id") == "" {
			t.Errorf("row without address or request id: %v", a.field(i))
		}
	}
	want := []string{ // newest first
		`GET /v1/services/{id}/logs 403 viewer "forbidden"`,
		`DELETE /v1/services/{id} 401  "unauthenticated"`,
		`DELETE /v1/services/{id} 404 outsider "not_found"`,
		`PUT /v1/services/{id} 403 viewer "forbidden"`,
		`POST /v1/services 201 root- ""`,
		`POST /v1/auth/login 401  "bad_credentials"`,
		`POST /v1/auth/login 401 viewer "bad_credentials"`,
		`POST /v1/auth/login 200 viewer ""`,
	}
	for i := range want {
		if i >= len(got) || !strings.HasPrefix(strings.Replace(got[i], "root-"+strings.TrimPrefix(a.str(i, "actor"), "root-"), "root-", 1), want[i]) {
			t.Fatalf("row %d: got\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d rows, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for _, secret := range []string{"sesame", "passphrase", "typed-my", "dn_ses_", goodPassword} {
		if strings.Contains(string(a.body), secret) || strings.Contains(e.log.String(), secret) {
			t.Errorf("audit or log hold %q", secret)
		}
	}

	// A project's admin sees the project's rows; others nothing.
	admin := e.token(e.member(p, "admin", platform.RoleAdmin))
	rows := e.do(admin, "GET", "/v1/audit", nil).want(200).field().([]any)
	if len(rows) != 4 {
		t.Errorf("the project's admin sees %d rows, want 4", len(rows))
	}
	e.do(admin, "GET", "/v1/audit?project_id=blog", nil).want(404)
	e.do(viewerToken, "GET", "/v1/audit", nil).want(403)
}
