package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

func basic(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

type token struct {
	Token        string
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresIn    int    `json:"expires_in"`
	IssuedAt     string `json:"issued_at"`
	Scope        string
}

// token gets a token by GET.
func (s *service) token(authorization string, scopes ...string) token {
	s.t.Helper()
	return s.get("/v2/token?"+url.Values{"service": {"registry.test:5000"}, "scope": scopes}.Encode(), "Authorization", authorization).token(s.t)
}

func (a answer) token(t testing.TB) token {
	t.Helper()
	var got token
	a.want(t, http.StatusOK, "").header(t, "Content-Type", "application/json").header(t, "Cache-Control", "no-store, no-transform").decode(t, &got)
	if got.Token == "" || got.Token != got.AccessToken || got.RefreshToken != "" || got.ExpiresIn < 300 {
		t.Fatalf("an unusable token: %s", a.body)
	}
	return got
}

func (t token) bearer() string { return "Bearer " + t.Token }

const realm = `Bearer realm="http://registry.test:5000/v2/token",service="registry.test:5000"`

func TestPing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	anonymous := s.token("", "repository:open/app:pull").bearer()
	for _, authorization := range []string{"", anonymous, basic("ann", "wrong"), basic("nobody", ""), "Basic !", "Negotiate x"} {
		s.get("/v2/", "Authorization", authorization).want(t, http.StatusUnauthorized, "UNAUTHORIZED").header(t, "WWW-Authenticate", realm)
	}
	s.get("/v2/", "Authorization", "Bearer x").want(t, http.StatusUnauthorized, "UNAUTHORIZED").header(t, "WWW-Authenticate", realm+`,error="invalid_token"`)
	for _, authorization := range []string{basic("ann", "nna"), basic("bob", "bob"), s.token(basic("bob", "bob")).bearer()} {
		for _, path := range []string{"/v2/", "/v2"} {
			s.get(path, "Authorization", authorization).want(t, http.StatusOK, "").header(t, "Docker-Distribution-Api-Version", "registry/2.0")
		}
	}
}

func TestPing_NamesWhereTheClientCameBy(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *registry.Config) { c.Scheme = func(*http.Request) string { return "https" } })
	for host, want := range map[string]string{
		"registry.test":      `Bearer realm="https://registry.test/v2/token",service="registry.test"`,
		"[::1]:8443":         `Bearer realm="https://[::1]:8443/v2/token",service="[::1]:8443"`,
		`x",realm="evil`:     `Bearer realm="https://registry/v2/token",service="registry"`,
		"evil.test/\r\nX: y": `Bearer realm="https://registry/v2/token",service="registry"`,
	} {
		r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if got := w.Header().Get("WWW-Authenticate"); got != want {
			t.Errorf("%q: %s", host, got)
		}
	}
}

func TestAccess(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.push("latest", s.image())
	image := s.image()
	pull := "repository:team/app:pull"

	for _, test := range []struct {
		who, authorization, method, name string
		status                           int
		code                             string
		challenge                        string // its scope and what follows
	}{
		{"who may do everything", basic("ann", "nna"), "GET", "team/app", 200, "", ""},
		{"who may do everything", basic("ann", "nna"), "PUT", "team/app", 201, "", ""},
		{"who may pull", basic("vera", "arev"), "GET", "team/app", 200, "", ""},
		{"who may pull", basic("vera", "arev"), "PUT", "team/app", 403, "DENIED", ""},
		{"who may pull", basic("vera", "arev"), "DELETE", "team/app", 403, "DENIED", ""},
		{"who may do nothing", basic("bob", "bob"), "GET", "team/app", 404, "NAME_UNKNOWN", ""},
		{"who may do nothing", basic("bob", "bob"), "PUT", "team/app", 404, "NAME_UNKNOWN", ""},
		{"who may do nothing, where nothing is", basic("bob", "bob"), "GET", "team/none", 404, "NAME_UNKNOWN", ""},
		{"who may know that there is no project", basic("ann", "nna"), "GET", "teem/app", 404, "NAME_UNKNOWN", ""},
		{"the public", "", "GET", "team/app", 401, "UNAUTHORIZED", `scope="repository:team/app:pull"`},
		{"the public, where nothing is", "", "GET", "none/app", 401, "UNAUTHORIZED", `scope="repository:none/app:pull"`},
		{"the public", "", "PUT", "team/app", 401, "UNAUTHORIZED", `scope="repository:team/app:pull,push"`},
		{"the public", "", "DELETE", "team/app", 401, "UNAUTHORIZED", `scope="repository:team/app:delete"`},
		{"the public, what is public", "", "GET", "open/app", 404, "MANIFEST_UNKNOWN", ""},
		{"the public, into what is public", "", "PUT", "open/app", 401, "UNAUTHORIZED", `scope="repository:open/app:pull,push"`},
		{"a wrong password", basic("ann", "ann"), "GET", "open/app", 401, "UNAUTHORIZED", `scope="repository:open/app:pull"`},

		{"a token to pull", s.token(basic("ann", "nna"), pull).bearer(), "GET", "team/app", 200, "", ""},
		{"a token to pull", s.token(basic("ann", "nna"), pull).bearer(), "PUT", "team/app", 401, "UNAUTHORIZED", `scope="repository:team/app:pull,push",error="insufficient_scope"`},
		{"a token for another repository", s.token(basic("ann", "nna"), "repository:team/ap:pull").bearer(), "GET", "team/app", 401, "UNAUTHORIZED", `scope="repository:team/app:pull",error="insufficient_scope"`},
		{"a token for more than its bearer may do", s.token(basic("vera", "arev"), "repository:team/app:pull,push").bearer(), "PUT", "team/app", 403, "DENIED", ""},
		{"a token for everything", s.token(basic("ann", "nna"), "repository:team/app:*").bearer(), "DELETE", "team/app", 202, "", ""},
		{"a token of the public", s.token("", "repository:open/app:pull,push").bearer(), "GET", "open/app", 404, "MANIFEST_UNKNOWN", ""},
		{"a token of the public", s.token("", "repository:open/app:pull,push").bearer(), "PUT", "open/app", 401, "UNAUTHORIZED", `scope="repository:open/app:pull,push"`},
	} {
		t.Run(test.who+", "+test.method+" "+test.name, func(t *testing.T) {
			body := strings.NewReader("")
			if test.method == http.MethodPut {
				body = strings.NewReader(string(image))
			}
			a := s.do(test.method, "/v2/"+test.name+"/manifests/latest", body, "Authorization", test.authorization).want(t, test.status, test.code)
			want := ""
			if test.challenge != "" {
				want = realm + "," + test.challenge
			}
			a.header(t, "WWW-Authenticate", want)
			if test.name == "teem/app" && a.errors(t)[0].Message != "there is no project teem" {
				t.Errorf("says nothing of what is missing: %s", a.body)
			}
		})
	}
}

func TestAccess_IsLostWithinSeconds(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.push("latest", s.image())
	bearer := s.token(basic("vera", "arev"), "repository:team/app:pull").bearer()
	s.get(manifests+"latest", "Authorization", bearer).want(t, http.StatusOK, "")
	s.mu.Lock()
	s.barred["user:vera"] = true
	asked := s.asked
	s.mu.Unlock()
	for range 10 {
		s.get(manifests+"latest", "Authorization", bearer).want(t, http.StatusOK, "")
	}
	if s.asked != asked {
		t.Errorf("asked %d times within two seconds", s.asked-asked)
	}
	s.clock.pass(2 * time.Second)
	s.get(manifests+"latest", "Authorization", bearer).want(t, http.StatusNotFound, "NAME_UNKNOWN")
}

func TestAccess_TooManyAttempts(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, path := range []string{"/v2/", "/v2/token", manifests + "latest"} {
		s.get(path, "Authorization", basic("tired", "")).want(t, http.StatusTooManyRequests, "TOOMANYREQUESTS").header(t, "Retry-After", "2")
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ann, vera := basic("ann", "nna"), basic("vera", "arev")
	for _, test := range []struct {
		name, authorization string
		scopes              []string
		want                string
	}{
		{"docker login", ann, nil, ""},
		{"one scope", ann, []string{"repository:team/app:push,pull"}, "repository:team/app:pull,push"},
		{"scopes of one repository", ann, []string{"repository:team/app:pull", "repository:team/app:pull,push"}, "repository:team/app:pull,push"},
		{"several in one string", ann, []string{"repository:team/a:pull repository:team/b:pull,push  repository:team/a:delete"}, "repository:team/a:pull,delete repository:team/b:pull,push"},
		{"a subset", vera, []string{"repository:team/app:pull,push,delete"}, "repository:team/app:pull"},
		{"all of it", vera, []string{"repository:team/app:*"}, "repository:team/app:pull"},
		{"without what may not be seen", ann, []string{"repository:team/a:pull,push", "repository:secret/b:pull"}, "repository:team/a:pull,push"},
		{"nothing at all", basic("bob", "bob"), []string{"repository:team/app:pull"}, ""},
		{"of the public", "", []string{"repository:open/app:pull,push", "repository:team/app:pull"}, "repository:open/app:pull"},
		{"with a class", ann, []string{"repository(plugin):team/app:pull"}, "repository:team/app:pull"},
		{"with a port", ann, []string{"repository:team/registry.test_5000/app:pull"}, "repository:team/registry.test_5000/app:pull"},
		{"what is no repository's", ann, []string{"registry:catalog:*", "x", "", ":", "repository:", "repository::pull", "repository:../x:pull", "repository:team/app:"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.token(test.authorization, test.scopes...)
			if got.Scope != test.want {
				t.Errorf("granted %q", got.Scope)
			}
			if issued, err := time.Parse(time.RFC3339, got.IssuedAt); err != nil || !issued.Equal(s.clock.Now()) {
				t.Errorf("issued at %q: %v", got.IssuedAt, err)
			}
		})
	}
}

func TestToken_Refused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	bearer := s.token(basic("ann", "nna"), "repository:team/app:pull").bearer()
	for name, authorization := range map[string]string{
		"a wrong password":                        basic("ann", "x"),
		"nobody":                                  "",
		"a token for a token":                     bearer,
		"a scheme of which nothing is known":      "Digest x",
		"Denia's own user with a password":        basic("<denia>", "x"),
		"Denia's own user with somebody's token":  basic("<denia>", bearer[len("Bearer "):]),
		"a user who calls himself the registry's": basic(registry.Internal, registry.Internal),
	} {
		a := s.get("/v2/token?account=ann&client_id=docker&offline_token=true&service=registry.test:5000", "Authorization", authorization)
		if a.want(t, http.StatusUnauthorized, "UNAUTHORIZED").Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no challenge", name)
		}
	}
	s.get("/v2/token?scope=repository:team/app:pull", "Authorization", "").want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.do(http.MethodPut, "/v2/token", nil).want(t, http.StatusMethodNotAllowed, "UNSUPPORTED").header(t, "Allow", "GET, POST")
	s.get("/v2/token?%zz").want(t, http.StatusBadRequest, "UNSUPPORTED")
}

func TestToken_ByForm(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.push("latest", s.image())
	post := func(form url.Values, headers ...string) answer {
		t.Helper()
		return s.do(http.MethodPost, "/v2/token", strings.NewReader(form.Encode()),
			append([]string{"Authorization", "", "Content-Type", "application/x-www-form-urlencoded"}, headers...)...)
	}
	password := url.Values{
		"grant_type": {"password"}, "service": {"x"}, "client_id": {"containerd-client"}, "access_type": {"offline"},
		"username": {"ann"}, "password": {"nna"}, "scope": {"repository:team/app:pull repository:team/app:pull,push repository:other/x:pull"},
	}
	got := post(password).token(t)
	if got.Scope != "repository:team/app:pull,push" {
		t.Errorf("granted %q", got.Scope)
	}
	s.get(manifests+"latest", "Authorization", got.bearer()).want(t, http.StatusOK, "")

	password.Set("password", "wrong")
	post(password).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	password.Del("username")
	post(password).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	post(password, "Authorization", basic("ann", "nna")).token(t)
	post(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {got.Token}}).want(t, http.StatusBadRequest, "UNSUPPORTED")
	post(url.Values{"grant_type": {"password"}, "scope": {strings.Repeat("x", 65<<10)}}).want(t, http.StatusBadRequest, "UNSUPPORTED")
	s.do(http.MethodPost, "/v2/token?grant_type=password&username=ann&password=nna", nil, "Authorization", "").want(t, http.StatusBadRequest, "UNSUPPORTED")
}

func TestToken_ExpiresAndCannotBeForged(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.push("latest", s.image())
	good := s.token(basic("vera", "arev"), "repository:team/app:pull")
	use := func(token string) answer {
		t.Helper()
		return s.get(manifests+"latest", "Authorization", "Bearer "+token)
	}
	use(good.Token).want(t, http.StatusOK, "")

	parts := strings.Split(good.Token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	other := newService(t).token(basic("vera", "arev"), "repository:team/app:pull").Token
	_, credential := s.Credentials("team/app", "pull", time.Hour)
	forged := map[string]string{
		"nothing":              "",
		"no parts":             "x",
		"dots":                 "..",
		"no signature":         parts[0] + "." + parts[1] + ".",
		"half a signature":     good.Token[:len(good.Token)-2],
		"a longer signature":   good.Token + "AA",
		"a byte more":          good.Token + "A",
		"of another key":       other,
		"of no algorithm":      encode(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + ".",
		"of no algorithm, yet": encode(`{"alg":"none"}`) + "." + parts[1] + "." + parts[2],
		"for more":             parts[0] + "." + encode(strings.Replace(string(payload), `"pull"`, `"pull","push"`, 1)) + "." + parts[2],
		"of another":           parts[0] + "." + encode(strings.Replace(string(payload), "vera", "ann", 1)) + "." + parts[2],
		"a credential":         credential,
		"a long one":           good.Token + strings.Repeat("A", 20<<10),
	}
	// The last digit carries bits that don't count; one that differs only
	// there is another token all the same.
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good.Token[len(good.Token)-1])
	forged["with other spare bits"] = good.Token[:len(good.Token)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last^1])
	for name, token := range forged {
		a := use(token)
		if a.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
	}
	use(good.Token).want(t, http.StatusOK, "")

	s.clock.pass(299 * time.Second)
	use(good.Token).want(t, http.StatusOK, "")
	s.clock.pass(2 * time.Second)
	use(good.Token).want(t, http.StatusUnauthorized, "UNAUTHORIZED").
		header(t, "WWW-Authenticate", realm+`,scope="repository:team/app:pull",error="invalid_token"`)
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.push("latest", s.image())
	username, password := s.Credentials("team/app", "pull", 10*time.Minute)
	own := basic(username, password)
	bearer := s.token(own, "repository:team/app:pull,push", "repository:team/other:pull")
	if bearer.Scope != "repository:team/app:pull" {
		t.Errorf("granted %q", bearer.Scope)
	}
	for _, authorization := range []string{own, bearer.bearer()} {
		s.get("/v2/", "Authorization", authorization).want(t, http.StatusOK, "")
		s.get(manifests+"latest", "Authorization", authorization).want(t, http.StatusOK, "")
		s.do(http.MethodDelete, manifests+"latest", nil, "Authorization", authorization).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
		s.get("/v2/team/other/manifests/latest", "Authorization", authorization).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	}
	s.get(manifests+"latest", "Authorization", basic("ann", password)).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.clock.pass(11 * time.Minute)
	s.get(manifests+"latest", "Authorization", own).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.get("/v2/token", "Authorization", own).want(t, http.StatusUnauthorized, "UNAUTHORIZED")

	username, password = s.Credentials("team/app", "pull,push", time.Minute)
	var short token
	s.get("/v2/token?scope=repository:team/app:pull,push", "Authorization", basic(username, password)).want(t, http.StatusOK, "").decode(t, &short)
	if short.ExpiresIn != 60 {
		t.Errorf("a token lives for %d s, its credential for a minute", short.ExpiresIn)
	}
	s.get("/v2/token?scope=repository:team/app:pull", "Authorization", short.bearer()).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.do(http.MethodPost, "/v2/token", strings.NewReader("grant_type=password&scope=repository:team/app:pull"),
		"Authorization", short.bearer(), "Content-Type", "application/x-www-form-urlencoded").want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.put("v2", s.image(), "Authorization", basic(username, password)).want(t, http.StatusCreated, "")
	if last := s.pushes[len(s.pushes)-1]; last.Subject != registry.Internal {
		t.Errorf("pushed by %q", last.Subject)
	}
}

func TestToken_IsForFewRepositories(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var scopes []string
	for i := range 20 {
		scopes = append(scopes, fmt.Sprintf("repository:team/app%d:pull", i))
	}
	if got := strings.Fields(s.token(basic("ann", "nna"), scopes...).Scope); len(got) != 16 {
		t.Errorf("granted %d scopes", len(got))
	}
}

// slowly calls between when the first half of a body was read.
func slowly(content []byte, between func()) io.Reader {
	half := len(content) / 2
	return io.MultiReader(bytes.NewReader(content[:half]), &onRead{between}, bytes.NewReader(content[half:]))
}

type onRead struct{ do func() }

func (r *onRead) Read([]byte) (int, error) {
	r.do()
	return 0, io.EOF
}

func TestAccess_IsLostDuringAPush(t *testing.T) {
	t.Parallel()
	s := newDepot(t)
	ann := basic("ann", "nna")
	long := func() string { return s.token(ann, "repository:team/app:pull,push").bearer() }
	image := s.image()
	blob := "a blob that takes long"
	d := digest.FromString(blob)
	expire := func() { s.clock.pass(time.Hour) }
	bar := func(barred bool) func() {
		return func() {
			s.mu.Lock()
			s.barred["user:ann"] = barred
			s.mu.Unlock()
			s.clock.pass(3 * time.Second)
		}
	}
	manifest := func(authorization string, between func()) answer {
		t.Helper()
		return s.do(http.MethodPut, manifests+"latest", slowly(image, between), "Authorization", authorization)
	}
	upload := func(authorization string, between func()) answer {
		t.Helper()
		return s.do(http.MethodPut, s.start("")+"?digest="+d.String(), slowly([]byte(blob), between), "Authorization", authorization)
	}
	atOnce := func(authorization string, between func()) answer {
		t.Helper()
		return s.do(http.MethodPost, uploads+"?digest="+d.String(), slowly([]byte(blob), between), "Authorization", authorization)
	}
	for _, push := range []func(string, func()) answer{manifest, upload, atOnce} {
		for _, authorization := range []string{ann, long()} {
			push(authorization, bar(true)).want(t, http.StatusNotFound, "NAME_UNKNOWN")
			bar(false)()
		}
	}
	s.get(manifests+"latest").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.wantNoContent()
	if len(s.pushes) > 0 {
		t.Errorf("told of %v", s.pushes)
	}

	username, password := s.Credentials("team/app", "pull,push", time.Minute)
	manifest(basic(username, password), expire).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	manifest(long(), expire).want(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.get(manifests+"latest").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	// A blob may take longer than a token lives.
	upload(long(), expire).want(t, http.StatusCreated, "")
	username, password = s.Credentials("team/app", "pull,push", time.Minute)
	atOnce(basic(username, password), expire).want(t, http.StatusCreated, "")
	manifest(ann, expire).want(t, http.StatusCreated, "")
}

// FuzzToken: whatever stands in the Authorization header and in the scopes,
// nobody becomes somebody else, and no more is granted than may be.
func FuzzToken(f *testing.F) {
	s := newService(f)
	f.Add(s.token(basic("vera", "arev"), "repository:team/app:pull").bearer(), "repository:team/app:pull,push")
	f.Add(basic("vera", "arev"), "repository:team/app:* repository:open/app:pull")
	f.Add("Basic Og==", "repository:a:b:c")
	f.Add("bearer a.b.c", "repository(x):open/app:,,pull")
	f.Fuzz(func(t *testing.T, authorization, scope string) {
		r := httptest.NewRequest(http.MethodGet, "http://registry.test/v2/token?"+url.Values{"scope": {scope}}.Encode(), nil)
		r.Header["Authorization"] = []string{authorization}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			if w.Code >= 500 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			return
		}
		var answer token
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		for granted := range strings.FieldsSeq(answer.Scope) {
			_, rest, _ := strings.Cut(granted, ":")
			name, actions, _ := strings.Cut(rest, ":")
			project, _, _ := strings.Cut(name, "/")
			if !strings.HasPrefix(granted, "repository:") || project != "team" && project != "open" || actions != "pull" {
				if r.Header.Get("Authorization") != basic("ann", "nna") {
					t.Fatalf("granted %q to %q", granted, authorization)
				}
			}
		}
	})
}
