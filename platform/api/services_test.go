package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
)

func TestCreateServiceFillsDefaults(t *testing.T) {
	e := newEnv(t)
	a := e.do(e.super(), "POST", "/v1/services", `{"name":"web"}`).want(201)
	if a.header.Get("Location") != "/v1/services/"+a.str("id") || a.header.Get("ETag") == "" {
		t.Errorf("headers %v", a.header)
	}
	for _, c := range []struct {
		path []any
		want any
	}{
		{[]any{"port"}, 8080.0}, {[]any{"protocol"}, "http"}, {[]any{"tls"}, "auto"}, {[]any{"source"}, nil},
		{[]any{"scale", "min"}, 1.0}, {[]any{"scale", "max"}, 1.0}, {[]any{"health_check", "path"}, "/"},
		{[]any{"state"}, "new"}, {[]any{"replicas", "desired"}, 1.0}, {[]any{"active_deployment_id"}, nil},
		{[]any{"url"}, "http://web.apps.test:8080"}, {[]any{"stop_grace_s"}, 10.0}, {[]any{"auto_rollback"}, nil},
	} {
		if got := a.field(c.path...); got != c.want {
			t.Errorf("%v is %v, want %v", c.path, got, c.want)
		}
	}
	for _, list := range []string{"command", "entrypoint", "volumes"} {
		if got, ok := a.field(list).([]any); !ok || len(got) != 0 {
			t.Errorf("%s is %v", list, a.field(list))
		}
	}
	if _, kicked := e.plane.took(); len(kicked) != 1 || !slices.Equal(kicked[0], []platform.ID{platform.ID(a.str("id"))}) {
		t.Errorf("kicked %v", kicked)
	}
	e.do(e.super(), "POST", "/v1/services", `{"name":"web"}`).want(409, "name_taken")
}

func TestURLsFollowTheWayTheAPIIsReached(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	e.service(e.project("shop"), "web")
	url := func(headers ...string) string {
		return e.do(token, "GET", "/v1/services/shop:web", nil, headers...).str("url")
	}
	if got := url("X-Forwarded-Proto", "https"); got != "https://web-shop.apps.test:8080" {
		t.Errorf("over TLS: %s", got)
	}
	if got := url(); got != "http://web-shop.apps.test:8080" {
		t.Errorf("plain: %s", got)
	}
	e = newEnv(t, func(o *api.Options) {
		o.PublicURL = func(_ *http.Request, label string) string { return "https://" + label + ".example" }
	})
	token = e.super()
	e.service(e.project("shop"), "web")
	if got := url(); got != "https://web-shop.example" {
		t.Errorf("as the options say: %s", got)
	}
}

func TestSecretsAreHidden(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	e.service(p, "web")
	viewer, operator := e.token(e.member(p, "viewer", platform.RoleViewer)), e.token(e.member(p, "operator", platform.RoleOperator))
	path := "/v1/services/shop:web"

	seen := e.do(viewer, "GET", path, nil).want(200)
	if seen.str("env", "COLOR") != "***" || seen.str("secret_env", "KEY") != "***" {
		t.Errorf("a viewer sees %s", seen.body)
	}
	if list := e.do(viewer, "GET", "/v1/services", nil); list.str(0, "env", "COLOR") != "***" {
		t.Errorf("a viewer's list shows %s", list.body)
	}
	read := e.do(operator, "GET", path, nil).want(200)
	if read.str("env", "COLOR") != "green" || read.str("secret_env", "KEY") != "***" {
		t.Errorf("an operator sees %s", read.body)
	}

	// What was read can be written back: nothing changes, the secret stays.
	e.plane.took()
	e.do(operator, "PUT", path, read.body).want(200)
	if applied, _ := e.plane.took(); len(applied) != 0 {
		t.Error("writing back what was read rolled the service over")
	}
	s := must2(e.store.ServiceByName(e.ctx, p.ID, "web"))(t)
	if s.SecretEnv["KEY"] != "sesame-opens" || s.Env["COLOR"] != "green" {
		t.Errorf("after writing back: %v %v", s.Env, s.SecretEnv)
	}

	admin := e.token(e.member(p, "admin", platform.RoleAdmin))
	shared := e.do(admin, "PUT", "/v1/projects/shop", `{"name":"shop","shared_env":{"A":"open"},"shared_secret_env":{"B":"sesame"}}`).want(200)
	if shared.str("shared_env", "A") != "open" || shared.str("shared_secret_env", "B") != "***" {
		t.Errorf("an admin sees %s", shared.body)
	}
	if seen := e.do(viewer, "GET", "/v1/projects/shop", nil); seen.str("shared_env", "A") != "***" {
		t.Errorf("a viewer sees %s", seen.body)
	}
	e.do(admin, "PUT", "/v1/projects/shop", shared.body).want(200)
	if p := must2(e.store.Project(e.ctx, p.ID))(t); p.SharedSecretEnv["B"] != "sesame" {
		t.Errorf("after writing back: %v", p.SharedSecretEnv)
	}

	secrets := `{"name":"built","project_id":"shop","source":{"type":"upload","build":{"secrets":{"NPM":"sesame"},"args":{"V":"1"}}}}`
	built := e.do(operator, "POST", "/v1/services", secrets).want(201)
	if built.str("source", "build", "secrets", "NPM") != "***" || built.str("source", "build", "args", "V") != "1" {
		t.Errorf("an operator sees %s", built.body)
	}
	e.do(operator, "PUT", "/v1/services/shop:built", built.body).want(200)
	if s := must2(e.store.ServiceByName(e.ctx, p.ID, "built"))(t); s.Source.Build.Secrets["NPM"] != "sesame" {
		t.Errorf("after writing back: %v", s.Source.Build.Secrets)
	}
}

func TestUpdatesThatChangeWhatRunsRollOver(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	p := e.project("shop")
	s := e.service(p, "web")
	path := "/v1/services/" + string(s.ID)
	put := func(query string, change func(map[string]any)) answer {
		t.Helper()
		var body map[string]any
		if err := json.Unmarshal(e.do(token, "GET", path, nil).want(200).body, &body); err != nil {
			t.Fatal(err)
		}
		change(body)
		text := must2(json.Marshal(body))(t)
		e.plane.took()
		return e.do(token, "PUT", path+query, text).want(200)
	}
	rolled := func() bool { applied, _ := e.plane.took(); return len(applied) > 0 }

	a := put("", func(b map[string]any) { b["env"] = map[string]string{"COLOR": "blue"} })
	if !rolled() || !strings.Contains(a.header.Get("Link"), `rel="deployment"`) {
		t.Errorf("a new env did not roll over: %v", a.header)
	}
	put("?apply=false", func(b map[string]any) { b["port"] = 9000 })
	if rolled() {
		t.Error("apply=false rolled over")
	}
	put("", func(b map[string]any) { b["scale"] = map[string]int{"min": 2, "max": 3} })
	if rolled() {
		t.Error("a new scale rolled over")
	}
	a = put("", func(b map[string]any) { b["name"] = "shopfront" })
	if rolled() || a.str("url") != "http://shopfront-shop.apps.test:8080" || a.str("id") != string(s.ID) {
		t.Errorf("renamed: %s", a.body)
	}
	e.do(token, "PUT", path, `{"name":"web","project_id":"default"}`).want(422)

	e.do(token, "PUT", "/v1/projects/shop", `{"name":"shop","description":"just words"}`).want(200)
	if rolled() {
		t.Error("a new description rolled over")
	}
	e.do(token, "PUT", "/v1/projects/shop?apply=false", `{"name":"shop","shared_env":{"A":"1"}}`).want(200)
	if rolled() {
		t.Error("apply=false rolled over")
	}
	e.do(token, "PUT", "/v1/projects/shop", `{"name":"shop","shared_env":{"A":"2"}}`).want(200)
	if !rolled() {
		t.Error("new shares did not roll over")
	}
	// The routes are made once for a project, however many services it has.
	sister := e.service(p, "api")
	e.do(token, "PUT", "/v1/projects/shop", `{"name":"store","shared_env":{"A":"2"}}`).want(200)
	if _, kicked := e.plane.took(); len(kicked) != 1 || !slices.Equal(kicked[0], []platform.ID{sister.ID, s.ID}) {
		t.Errorf("renaming the project kicked %v", kicked)
	}
}

func TestServiceActions(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	s := e.service(e.project("shop"), "web")
	path := "/v1/services/" + string(s.ID)
	if a := e.do(token, "POST", path+"/stop", nil).want(202); a.str("state") != "stopped" {
		t.Errorf("stopped: %s", a.body)
	}
	if a := e.do(token, "POST", path+"/start", `{}`).want(202); a.str("state") == "stopped" {
		t.Errorf("started: %s", a.body)
	}
	d := e.do(token, "POST", path+"/restart", nil).want(202)
	if d.header.Get("Location") != "/v1/deployments/"+d.str("id") || d.str("service_id") != string(s.ID) {
		t.Errorf("restarted: %s", d.body)
	}
	for body, want := range map[string][2]float64{`{"replicas":3}`: {3, 3}, `{"min":1,"max":4}`: {1, 4}} {
		if a := e.do(token, "POST", path+"/scale", body).want(202); a.field("scale", "min") != want[0] || a.field("scale", "max") != want[1] {
			t.Errorf("%s: %s", body, a.body)
		}
	}
	e.do(token, "POST", path+"/scale", `{}`).want(422)
	e.do(token, "POST", path+"/scale", `{"replicas":101}`).want(422)
	e.do(token, "DELETE", path+"?volumes=true", nil).want(204)
	if !e.plane.volumes {
		t.Error("volumes=true did not arrive")
	}
}

func TestDeployments(t *testing.T) {
	e := newEnv(t)
	p := e.project("shop")
	s := e.service(p, "web")
	operator, viewer := e.member(p, "operator", platform.RoleOperator), e.token(e.member(p, "viewer", platform.RoleViewer))
	token := e.token(operator)
	d := e.do(token, "POST", "/v1/deployments", `{"service_id":"shop:web"}`).want(202)
	if d.field("number") != 1.0 || d.str("status") != "pending" || d.str("trigger") != "api" || d.str("actor") != "operator" {
		t.Errorf("created %s", d.body)
	}
	path := "/v1/deployments/" + d.str("id")
	if d.header.Get("Location") != path {
		t.Errorf("Location %s", d.header.Get("Location"))
	}
	for _, body := range []string{
		`{"service_id":"shop:web","source":{"type":"external_image"}}`,
		`{"service_id":"shop:web","source":{"type":"upload"}}`,
		`{"service_id":"shop:web","source":{"type":"push","image":"shop/web@sha256:abc"}}`,
		`{"service_id":"shop:web","source":{"type":"redeploy"}}`,
		`{"service_id":"shop:web","source":{"type":"tarball"}}`,
		`{}`,
	} {
		e.do(token, "POST", "/v1/deployments", body).want(422, "validation_failed")
	}
	back := e.do(token, "POST", "/v1/deployments", `{"service_id":"shop:web","source":{"type":"redeploy","deployment_id":"`+d.str("id")+`"}}`).want(202)
	if back.str("trigger") != "rollback" {
		t.Errorf("a redeploy is %s", back.body)
	}
	if a := e.do(viewer, "GET", path, nil).want(200); a.str("status") != "canceled" || a.str("error", "code") != "superseded" {
		t.Errorf("the older one is %s", a.body)
	}
	list := e.do(viewer, "GET", "/v1/services/shop:web/deployments", nil).want(200)
	if list.field(0, "number") != 2.0 || list.field(1, "number") != 1.0 {
		t.Errorf("listed %s", list.body)
	}
	if a := e.do(token, "POST", "/v1/deployments/"+back.str("id")+"/cancel", nil).want(202); a.str("status") != "canceled" {
		t.Errorf("canceled %s", a.body)
	}
	e.do(token, "POST", "/v1/deployments/"+back.str("id")+"/cancel", nil).want(409, "already_finished")

	// Log lines are for operators, also where they are evidence.
	failed := e.deployment(s)
	if _, err := e.store.Advance(e.ctx, failed.ID, platform.Pending, platform.Failed, func(d *platform.Deployment) {
		code := 1
		d.Error = &platform.DeploymentError{Code: platform.CodeContainerExited, Message: "It exited.", Evidence: &platform.Evidence{ExitCode: &code, LogTail: []string{"boom"}}}
	}); err != nil {
		t.Fatal(err)
	}
	path = "/v1/deployments/" + string(failed.ID)
	if a := e.do(token, "GET", path, nil); a.str("error", "evidence", "log_tail", 0) != "boom" || a.field("error", "evidence", "exit_code") != 1.0 {
		t.Errorf("an operator sees %s", a.body)
	}
	if a := e.do(viewer, "GET", path, nil); strings.Contains(string(a.body), "boom") || a.field("error", "evidence", "exit_code") != 1.0 {
		t.Errorf("a viewer sees %s", a.body)
	}
}

// What concerns the registry is written and read like all else.
func TestFollowTagAndAnonymousPull(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	shop := e.project("shop")
	if got := e.do(token, "POST", "/v1/services", `{"name":"web","project_id":"shop"}`).want(201).str("follow_tag"); got != "latest" {
		t.Errorf("by default it follows %q", got)
	}
	e.plane.took()
	if got := e.do(token, "PUT", "/v1/services/shop:web", `{"name":"web","follow_tag":"stable"}`).want(200).str("follow_tag"); got != "stable" {
		t.Errorf("it follows %q", got)
	}
	if applied, _ := e.plane.took(); len(applied) != 0 {
		t.Error("another tag to follow rolled the release over")
	}
	e.do(token, "PUT", "/v1/services/shop:web", `{"name":"web","follow_tag":"release-7"}`).want(422, "validation_failed")
	if got := e.do(token, "GET", "/v1/projects/shop", nil).want(200).field("anonymous_pull"); got != false {
		t.Errorf("a new project's anonymous_pull is %v", got)
	}
	e.do(token, "PUT", "/v1/projects/shop", `{"name":"shop","anonymous_pull":true}`).want(200)
	if p := must2(e.store.Project(e.ctx, shop.ID))(t); !p.AnonymousPull {
		t.Error("anonymous_pull was not kept")
	}

	s := must2(e.store.ServiceByName(e.ctx, shop.ID, "web"))(t)
	d := must2(e.plane.Deploy(e.ctx, platform.DeployRequest{ServiceID: s.ID, Source: &platform.Source{Type: platform.SourcePush, Digest: "sha256:m"}, Trigger: platform.TriggerPush}))(t)
	_, err := e.store.Advance(e.ctx, d.ID, platform.Pending, platform.Starting, func(d *platform.Deployment) {
		d.Artifact = &platform.Artifact{Image: "denia/shop/web:1", Digest: "sha256:i", ManifestDigest: "sha256:m"}
	})
	if err != nil {
		t.Fatal(err)
	}
	shown := e.do(token, "GET", "/v1/deployments/"+string(d.ID), nil).want(200)
	if shown.str("trigger") != "push" || shown.str("artifact", "manifest_digest") != "sha256:m" {
		t.Errorf("the deployment reads %s", shown.body)
	}
}
