package caddymodule

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage" // of the configurations below
)

func init() {
	caddy.RegisterModule(new(either))
	caddy.RegisterModule(new(onlooker))
}

// onlooker is an app that sees who decides in its configuration.
type onlooker struct{}

var seen bool // by the last onlooker

func (*onlooker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "onlooker", New: func() caddy.Module { return new(onlooker) }}
}

func (*onlooker) Provision(ctx caddy.Context) error {
	if _, err := ctx.App("tls"); err != nil {
		return err
	}
	app, err := ctx.App("denia")
	if err != nil {
		return err
	}
	view, err := newTLSView(ctx, app.(*App).decides)
	if err == nil {
		seen = view.decided()
	}
	return err
}

func (*onlooker) Start() error { return nil }
func (*onlooker) Stop() error  { return nil }

// either permits what Denia or somebody else does.
type either struct {
	FirstRaw json.RawMessage `json:"first" caddy:"namespace=tls.permission inline_key=module"`
}

func (*either) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "tls.permission.either", New: func() caddy.Module { return new(either) }}
}

func (e *either) Provision(ctx caddy.Context) error {
	_, err := ctx.LoadModule(e, "FirstRaw")
	return err
}

func (*either) CertificateAllowed(context.Context, string) error { return nil }

// Denia refuses names it does not know where it is asked about all of them: where
// another module permits some, they are that module's affair.
func TestWhoDecidesAboutNames(t *testing.T) {
	for permission, want := range map[string]bool{
		`{"module": "denia"}`: true,
		`{"module": "http", "endpoint": "http://localhost/"}`: false,
		`{"module": "either", "first": {"module": "denia"}}`:  false,
	} {
		var config caddy.Config
		text := `{"storage": {"module": "file_system", "root": "` + t.TempDir() + `"}, "apps": {"denia": {}, "onlooker": {},
			"tls": {"automation": {"policies": [{"on_demand": true}], "on_demand": {"permission": ` + permission + `}}}}}`
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&config); err != nil {
			t.Fatal(err)
		}
		if seen != want {
			t.Errorf("with %s Denia decides: %v", permission, seen)
		}
	}
}

var _ caddytls.OnDemandPermission = (*either)(nil)
