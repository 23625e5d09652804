package platform_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
)

// fieldsOf lists the fields an error names.
func fieldsOf(err error) []string {
	e, ok := errors.AsType[*platform.Error](err)
	if !ok {
		return nil
	}
	var names []string
	for _, f := range e.Fields {
		names = append(names, f.Field)
	}
	return names
}

func valid() platform.ServiceSpec { return platform.ServiceSpec{Name: "web"}.WithDefaults() }

// A bad value is an error that names its field.
func TestServiceValidationNamesTheField(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	negative := -1
	for field, spoil := range map[string]func(*platform.ServiceSpec){
		"name":                        func(s *platform.ServiceSpec) { s.Name = "Web_1" },
		"port":                        func(s *platform.ServiceSpec) { s.Port = 70000 },
		"protocol":                    func(s *platform.ServiceSpec) { s.Protocol = "ftp" },
		"user":                        func(s *platform.ServiceSpec) { s.User = "a b" },
		"command":                     func(s *platform.ServiceSpec) { s.Command = []string{"a\x00b"} },
		"entrypoint":                  func(s *platform.ServiceSpec) { s.Entrypoint = make([]string, 2000) },
		"env":                         func(s *platform.ServiceSpec) { s.Env = platform.Env{"1A": ""} },
		"env.A":                       func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "\x00"} },
		"secret_env":                  func(s *platform.ServiceSpec) { s.SecretEnv = platform.Env{"A": strings.Repeat("x", 70000)} },
		"health_check.type":           func(s *platform.ServiceSpec) { s.HealthCheck.Type = "grpc" },
		"health_check.path":           func(s *platform.ServiceSpec) { s.HealthCheck.Path = "/%zz" },
		"health_check.status":         func(s *platform.ServiceSpec) { s.HealthCheck.Status = "200-700" },
		"health_check.interval_s":     func(s *platform.ServiceSpec) { s.HealthCheck.IntervalS = -1 },
		"health_check.timeout_s":      func(s *platform.ServiceSpec) { s.HealthCheck.TimeoutS = 301 },
		"health_check.start_period_s": func(s *platform.ServiceSpec) { s.HealthCheck.StartPeriodS = 4000 },
		"resources.cpu_millis":        func(s *platform.ServiceSpec) { s.Resources.CPUMillis = -1 },
		"resources.memory_bytes":      func(s *platform.ServiceSpec) { s.Resources.MemoryBytes = 1000 },
		"resources.pids":              func(s *platform.ServiceSpec) { s.Resources.PIDs = 1 << 20 },
		"scale.min":                   func(s *platform.ServiceSpec) { s.Scale = &platform.Scale{Min: 0, Max: 1} },
		"scale.max":                   func(s *platform.ServiceSpec) { s.Scale = &platform.Scale{Min: 3, Max: 2} },
		"volumes[0].name":             func(s *platform.ServiceSpec) { s.Volumes = []platform.Volume{{Name: "../x", Path: "/data"}} },
		"volumes[0].path":             func(s *platform.ServiceSpec) { s.Volumes = []platform.Volume{{Name: "data", Path: "/proc/x"}} },
		"volumes[1]": func(s *platform.ServiceSpec) {
			s.Volumes = []platform.Volume{{Name: "a", Path: "/a"}, {Name: "b", Path: "/a"}}
		},
		"stop_grace_s":      func(s *platform.ServiceSpec) { s.StopGraceS = &negative },
		"drain_timeout_s":   func(s *platform.ServiceSpec) { s.DrainTimeoutS = &negative },
		"auto_rollback":     func(s *platform.ServiceSpec) { s.AutoRollback = &platform.AutoRollback{} },
		"tls":               func(s *platform.ServiceSpec) { s.TLS = "maybe" },
		"follow_tag":        func(s *platform.ServiceSpec) { s.FollowTag = "-latest" },
		"source.type":       func(s *platform.ServiceSpec) { s.Source = &platform.Source{Type: "ftp"} },
		"source.image":      func(s *platform.ServiceSpec) { s.Source = &platform.Source{Type: "external_image", Image: "a b"} },
		"source.context":    func(s *platform.ServiceSpec) { s.Source = &platform.Source{Type: "upload", Context: "../x"} },
		"source.dockerfile": func(s *platform.ServiceSpec) { s.Source = &platform.Source{Type: "upload", Dockerfile: "/etc/x"} },
	} {
		s := valid()
		spoil(&s)
		if err := s.Validate(); platform.KindOf(err) != platform.Invalid || !slices.Contains(fieldsOf(err), field) {
			t.Errorf("%s: got %v with fields %v", field, err, fieldsOf(err))
		}
	}
}

func TestVolumePathsAreAbsoluteAndClean(t *testing.T) {
	for path, good := range map[string]bool{
		"/data": true, "/var/lib/app": true, "/development": true,
		"": false, "/": false, "data": false, "/a/": false, "/a/../b": false, "/a:b": false, "/dev": false, "/sys/x": false, "/" + strings.Repeat("x", 2000): false,
	} {
		s := valid()
		s.Volumes = []platform.Volume{{Name: "data", Path: path}}
		if err := s.Validate(); (err == nil) != good {
			t.Errorf("%.40q: %v", path, err)
		}
	}
}

// A deployment request names an upload or another deployment, a service's
// source neither.
func TestSourcesOfServicesAndOfRequests(t *testing.T) {
	for _, c := range []struct {
		source              platform.Source
		service, deployment bool
	}{
		{platform.Source{Type: "upload"}, true, false},
		{platform.Source{Type: "upload", UploadID: "u", Context: "backend", Dockerfile: "docker/Dockerfile"}, false, true},
		{platform.Source{Type: "upload", UploadID: "u", Image: "x"}, false, false},
		{platform.Source{Type: "external_image", Image: "host:5000/team/app@sha256:abc"}, true, true},
		{platform.Source{Type: "external_image"}, false, false},
		{platform.Source{Type: "redeploy", DeploymentID: "d"}, false, true},
		{platform.Source{Type: "redeploy"}, false, false},
		{platform.Source{Type: "push", Image: "shop/web@sha256:abc", Digest: "sha256:abc"}, false, false}, // only Denia makes it
		{platform.Source{}, false, false},
	} {
		if err := c.source.ValidateServiceSource(); (err == nil) != c.service {
			t.Errorf("%+v as a service's: %v", c.source, err)
		}
		if err := c.source.ValidateDeploymentSource(); (err == nil) != c.deployment {
			t.Errorf("%+v in a request: %v", c.source, err)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := platform.ParseStatus("200, 204,300-399")
	if want := []platform.StatusRange{{200, 200}, {204, 204}, {300, 399}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "ok", "200-", "-200", "399-300", "99", "200-600", "200;204"} {
		if got, err := platform.ParseStatus(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

var statuses = []platform.Status{platform.Pending, platform.Building, platform.Starting, platform.Healthy, platform.Inactive, platform.Failed, platform.Canceled, platform.Stopped}

// From every unfinished state a deployment can fail and be canceled; an end is
// an end; and nothing becomes healthy but by starting, or from being stopped.
func TestStateMachine(t *testing.T) {
	for _, from := range statuses {
		if from.Unfinished() != (from.Can(platform.Failed) && from.Can(platform.Canceled)) {
			t.Errorf("%s: unfinished %v, but can fail %v and be canceled %v", from, from.Unfinished(), from.Can(platform.Failed), from.Can(platform.Canceled))
		}
		if from.Can(platform.Healthy) != (from == platform.Starting || from == platform.Stopped) {
			t.Errorf("%s can become healthy: %v", from, from.Can(platform.Healthy))
		}
		if from.Can(from) || from.Can(platform.Pending) {
			t.Errorf("%s goes back", from)
		}
		for _, end := range []platform.Status{platform.Inactive, platform.Failed, platform.Canceled} {
			if end.Can(from) {
				t.Errorf("%s, an end, leads to %s", end, from)
			}
		}
	}
}

var roles = []platform.Role{platform.RoleNone, platform.RoleViewer, platform.RoleOperator, platform.RoleAdmin}

// Whatever the user and the token: a bounded token never gives more than its
// bound, nor more than its owner has, and never super-admin.
func TestTokensNeverGiveMore(t *testing.T) {
	for _, super := range []bool{false, true} {
		for _, own := range roles {
			for _, bound := range roles {
				for _, project := range []platform.ID{"", "a", "b", "elsewhere"} {
					user := platform.User{ID: "u", SuperAdmin: super}
					held := map[platform.ID]platform.Role{"a": own, "b": platform.RoleAdmin}
					token := platform.Token{ProjectID: project, Role: bound}
					p := platform.NewPrincipal(user, maps.Clone(held), token)
					bounded := project != "" || bound != platform.RoleNone
					if p.SuperAdmin != (super && !bounded) {
						t.Errorf("super-admin %v, token %+v: super-admin %v", super, token, p.SuperAdmin)
					}
					for _, in := range []platform.ID{"a", "b", "elsewhere"} {
						got, without := p.RoleIn(in), held[in]
						if super {
							without = platform.RoleAdmin
						}
						switch {
						case !without.Covers(got):
							t.Errorf("token %+v gives %q in %s, its owner has %q", token, got, in, without)
						case bound != platform.RoleNone && !bound.Covers(got):
							t.Errorf("token %+v gives %q in %s", token, got, in)
						case project != "" && in != project && got != platform.RoleNone:
							t.Errorf("token %+v reaches %s", token, in)
						}
					}
				}
			}
		}
	}
}

// Later wins: the project's share, then the service's own; resources inherit.
func TestFreeze(t *testing.T) {
	project := platform.Project{ProjectSpec: platform.ProjectSpec{
		SharedEnv: platform.Env{"A": "project", "B": "project"}, SharedSecretEnv: platform.Env{"S": "project"},
		DefaultResources: platform.Resources{MemoryBytes: 64 << 20},
	}}
	service := platform.Service{ServiceSpec: platform.ServiceSpec{RunSpec: platform.RunSpec{
		Env: platform.Env{"B": "service"}, SecretEnv: platform.Env{"S": "service"}, Resources: platform.Resources{CPUMillis: 500},
	}}}
	got := platform.Freeze(project, service)
	if !maps.Equal(got.Env, platform.Env{"A": "project", "B": "service"}) || got.SecretEnv["S"] != "service" {
		t.Errorf("env %v, secrets %v", got.Env, got.SecretEnv)
	}
	if want := (platform.Resources{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: platform.DefaultResources.PIDs}); got.Resources != want {
		t.Errorf("resources %+v, want %+v", got.Resources, want)
	}
	if got.Port != platform.DefaultPort || got.HealthCheck.Path != "/" || *got.DrainTimeoutS != platform.DefaultDrainTimeoutS {
		t.Errorf("defaults are missing: %+v", got)
	}
	got.Env["A"] = "changed"
	if project.SharedEnv["A"] != "project" {
		t.Error("a release shares its environment with the project")
	}
}

// What a client read redacted and writes back keeps the stored value.
func TestRedactedValuesAreKept(t *testing.T) {
	stored := platform.Env{"A": "one", "B": "two"}
	read := stored.Redact()
	if read["A"] != platform.Redacted || len(read) != 2 {
		t.Errorf("redacted to %v", read)
	}
	read["B"], read["C"] = "new", platform.Redacted
	if got := read.Restore(stored); !maps.Equal(got, platform.Env{"A": "one", "B": "new", "C": platform.Redacted}) {
		t.Errorf("restored to %v", got)
	}
	if platform.Env(nil).Redact() != nil || platform.Env(nil).Restore(stored) != nil {
		t.Error("an absent environment becomes a present one")
	}
}

func TestHostLabel(t *testing.T) {
	for _, c := range []struct{ service, project, want string }{
		{"web", "default", "web"}, {"web", "shop", "web-shop"},
	} {
		if got, err := platform.HostLabel(c.service, c.project); err != nil || got != c.want {
			t.Errorf("%s in %s: %q, %v", c.service, c.project, got, err)
		}
	}
	if _, err := platform.HostLabel(strings.Repeat("a", 40), strings.Repeat("b", 40)); platform.KindOf(err) != platform.Invalid {
		t.Errorf("a label of 81 characters: %v", err)
	}
}

func TestPasswordsAndNames(t *testing.T) {
	for password, good := range map[string]bool{"twelve chars": true, "zwölf zeichä": true, "short": false, strings.Repeat(" ", 20): false, strings.Repeat("x", 2000): false} {
		if err := platform.ValidatePassword(password); (err == nil) != good {
			t.Errorf("password of %d bytes: %v", len(password), err)
		}
	}
	for name, good := range map[string]bool{"ada": true, "ada@example.com": true, "": false, "Ada": false, ".ada": false, "a b": false} {
		if err := platform.ValidateUserName(name); (err == nil) != good {
			t.Errorf("user name %q: %v", name, err)
		}
	}
}

func TestErrorsCarryKindAndCode(t *testing.T) {
	cause := errors.New("cause")
	err := errors.Join(errors.New("other"), platform.Wrap(cause, platform.Conflict, "taken", "the name %s is taken", "x"))
	if platform.KindOf(err) != platform.Conflict || platform.CodeOf(err) != "taken" || !errors.Is(err, cause) {
		t.Errorf("%v is %v %q", err, platform.KindOf(err), platform.CodeOf(err))
	}
	if platform.KindOf(cause) != platform.Internal || platform.CodeOf(nil) != "internal" {
		t.Error("a stranger's error is not internal")
	}
}

// Releases are copied under tags of their own; a push to one deploys nothing.
func TestFollowTagIsATagButNotARelease(t *testing.T) {
	for tag, good := range map[string]bool{
		"": true, "latest": true, "v1.2_x-y": true, "_": true, "release": true, "release-x": true, strings.Repeat("x", 128): true,
		".x": false, "a b": false, "a:b": false, "ä": false, strings.Repeat("x", 129): false, "release-7": false,
	} {
		s := platform.ServiceSpec{Name: "web", FollowTag: tag}.WithDefaults()
		if err := s.Validate(); (err == nil) != good {
			t.Errorf("%.20q: %v", tag, err)
		}
	}
	if got := valid().FollowTag; got != "latest" {
		t.Errorf("the default is %q", got)
	}
}
