package api_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry"
)

// docker asks for a registry token with these credentials.
func (e *env) docker(ip, username, password string) (subject string, err error) {
	r := httptest.NewRequest(http.MethodGet, "/v2/token?service=denia", nil)
	r.Header.Set("Test-Ip", ip)
	return e.api.AuthenticateRegistry(r, username, password)
}

func (e *env) roleIn(subject string, p platform.Project) (platform.Role, string) {
	e.t.Helper()
	role, actor, err := e.api.RegistryRoles(e.ctx, subject)
	if err != nil {
		e.t.Fatal(err)
	}
	return role(p.ID), actor
}

func TestRegistryTakesPasswordsAndTokens(t *testing.T) {
	e := newEnv(t)
	shop, blog := e.project("shop"), e.project("blog")
	anna := e.member(shop, "anna", platform.RoleOperator)
	if _, _, err := e.store.PutMember(e.ctx, blog.ID, anna.ID, platform.RoleViewer); err != nil {
		t.Fatal(err)
	}
	api := func(change func(*platform.Token)) string {
		return e.token(anna, func(t *platform.Token) {
			t.Kind, t.Name, t.ExpiresAt = platform.TokenAPI, "ci", nil
			change(t)
		})
	}
	bounded := api(func(t *platform.Token) { t.ProjectID, t.Role = shop.ID, platform.RoleViewer })
	for name, c := range map[string]struct {
		username, password string
		inShop, inBlog     platform.Role
		actor              string
	}{
		"password":           {"anna", goodPassword, platform.RoleOperator, platform.RoleViewer, "anna"},
		"API token":          {"anna", api(func(*platform.Token) {}), platform.RoleOperator, platform.RoleViewer, "anna"},
		"bounded API token":  {"whoever", bounded, platform.RoleViewer, platform.RoleNone, "anna"},
		"token without name": {"", bounded, platform.RoleViewer, platform.RoleNone, "anna"},
		"session":            {"x", e.token(anna), platform.RoleOperator, platform.RoleViewer, "anna"},
		"admin token":        {"admin", adminSecret, platform.RoleAdmin, platform.RoleAdmin, "admin token"},
	} {
		subject, err := e.docker("192.0.2.7", c.username, c.password)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		inShop, actor := e.roleIn(subject, shop)
		if inBlog, _ := e.roleIn(subject, blog); inShop != c.inShop || inBlog != c.inBlog || actor != c.actor {
			t.Errorf("%s: %q is %q in shop, %q in blog, called %q", name, subject, inShop, inBlog, actor)
		}
		if strings.Contains(subject, c.password) {
			t.Errorf("%s: the subject %q is a secret", name, subject)
		}
	}
	for name, c := range map[string][2]string{
		"wrong password": {"anna", goodPassword + "!"}, "unknown user": {"bert", goodPassword}, "no name": {"", goodPassword},
		"no password": {"anna", ""}, "unknown token": {"anna", "dn_api_nonsense"}, "nothing": {"", ""},
		"long password": {"anna", strings.Repeat("x", 5000)},
	} {
		if subject, err := e.docker("192.0.2.8", c[0], c[1]); !errors.Is(err, registry.ErrUnauthorized) {
			t.Errorf("%s: %q, %v", name, subject, err)
		}
	}
	if strings.Contains(e.log.String(), goodPassword) || strings.Contains(e.log.String(), bounded) {
		t.Error("a secret was logged")
	}
}

func TestRegistryRolesAreReadAnew(t *testing.T) {
	e := newEnv(t)
	shop := e.project("shop")
	admin := e.member(shop, "ada", platform.RoleAdmin)
	anna := e.member(shop, "anna", platform.RoleOperator)
	byPassword := must2(e.docker("192.0.2.7", "anna", goodPassword))(t)
	expires := time.Now().Add(time.Hour)
	secret := e.token(anna, func(t *platform.Token) { t.Kind, t.ExpiresAt = platform.TokenAPI, &expires })
	byToken := must2(e.docker("192.0.2.7", "", secret))(t)

	if _, _, err := e.store.PutMember(e.ctx, shop.ID, anna.ID, platform.RoleViewer); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{byPassword, byToken} {
		if role, _ := e.roleIn(subject, shop); role != platform.RoleViewer {
			t.Errorf("%s was made a viewer and is %q", subject, role)
		}
	}
	if err := e.store.DeleteToken(e.ctx, platform.ID(strings.TrimPrefix(byToken, "token:"))); err != nil {
		t.Fatal(err)
	}
	if role, actor := e.roleIn(byToken, shop); role != platform.RoleNone || actor != "" {
		t.Errorf("a deleted token is %q, called %q", role, actor)
	}
	if err := e.store.RemoveMember(e.ctx, shop.ID, anna.ID); err != nil {
		t.Fatal(err)
	}
	if role, _ := e.roleIn(byPassword, shop); role != platform.RoleNone {
		t.Errorf("a removed member is %q", role)
	}
	past := time.Now().Add(-time.Hour)
	expired := must2(e.store.CreateToken(e.ctx, platform.Token{UserID: admin.ID, Kind: platform.TokenAPI, Hash: []byte("h"), ExpiresAt: &past}))(t)
	for _, nobody := range []string{"", "token:" + string(expired.ID), "token:", "user:" + string(store.NewID()), "internal", "anna", "user:"} {
		if role, actor := e.roleIn(nobody, shop); role != platform.RoleNone || actor != "" {
			t.Errorf("%q is %q, called %q", nobody, role, actor)
		}
	}
}

// Passwords are guessed at the registry no faster than at the login. A good
// one may be shown for every repository of a push, until it is changed.
func TestRegistryLimitsPasswords(t *testing.T) {
	e := newEnv(t)
	anna := e.user("anna", false)
	for i := range 20 {
		if _, err := e.docker("192.0.2.7", "anna", goodPassword); err != nil {
			t.Fatalf("login %d: %v", i+1, err)
		}
	}
	limited := func(ip, username, password string) bool {
		_, err := e.docker(ip, username, password)
		l, ok := errors.AsType[*registry.Limited](err)
		if ok && (l.RetryAfter < time.Second || l.RetryAfter > time.Minute) {
			t.Errorf("try again after %s", l.RetryAfter)
		}
		return ok
	}
	tries := 0
	for !limited("192.0.2.7", "anna", "wrong password") {
		if tries++; tries > 10 {
			t.Fatal("an address may guess for ever")
		}
	}
	if tries != 4 { // the first login took one of five
		t.Errorf("limited after %d guesses", tries)
	}
	if _, err := e.docker("192.0.2.7", "anna", goodPassword); err != nil {
		t.Errorf("a known password is not a guess: %v", err)
	}
	for i := range 20 {
		if limited("2001:db8:"+id2hex(i)+"::1", "anna", "wrong password") {
			if i < 4 {
				t.Errorf("limited after %d more guesses at one name", i)
			}
			break
		}
		if i == 19 {
			t.Error("a name may be guessed at for ever")
		}
	}
	e.do("", "POST", "/v1/auth/login", credentials("anna", goodPassword), "Test-Ip", "192.0.2.9").want(429)

	// A new password voids the old one at once.
	anna.PasswordHash = strings.Replace(cheapHash, "$c2Fsd", "$d2Fsd", 1)
	must2(e.store.UpdateUser(e.ctx, anna, 0))(t)
	if subject, err := e.docker("192.0.2.10", "anna", goodPassword); err == nil {
		t.Errorf("the old password still makes %q", subject)
	}
}

func TestRegistryLoginsAreAudited(t *testing.T) {
	e := newEnv(t)
	anna := e.user("anna", false)
	p := e.project("shop")
	for range 3 {
		must2(e.docker("192.0.2.7", "anna", goodPassword))(t)
	}
	if _, err := e.docker("192.0.2.8", "anna", "a wrong password"); err == nil {
		t.Fatal("a wrong password is good")
	}
	if err := e.api.AuditRegistry(e.ctx, "user:"+string(anna.ID), "PUT /v2/", 201, p.ID, p.ID); err != nil {
		t.Fatal(err)
	}
	rows, _, err := e.store.Audit(e.ctx, store.AuditFilter{All: true}, store.Page{})
	if err != nil || len(rows) != 3 {
		t.Fatalf("the audit has %+v, %v", rows, err)
	}
	pushed, denied, login := rows[0], rows[1], rows[2]
	if login.Action != "GET /v2/token" || login.Status != 200 || login.ActorID != anna.ID || login.RemoteIP != "192.0.2.7" {
		t.Errorf("the login: %+v", login)
	}
	if denied.Status != 401 || denied.Actor != "anna" || denied.Code != "bad_credentials" || denied.RemoteIP != "192.0.2.8" {
		t.Errorf("the denial: %+v", denied)
	}
	if pushed.Action != "PUT /v2/" || pushed.Actor != "anna" || pushed.ProjectID != p.ID {
		t.Errorf("the push: %+v", pushed)
	}
}
