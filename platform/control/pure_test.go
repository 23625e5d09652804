package control

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

func TestBackOffGrowsAndIsBounded(t *testing.T) {
	now := time.Now()
	var r releaseState
	last := time.Duration(0)
	for i := 1; i < 100; i++ {
		r.backOff(now, 2)
		wait := max(0, r.notUntil.Sub(now))
		switch {
		case i <= 2 && wait != 0:
			t.Errorf("failure %d costs %s", i, wait)
		case i == 3 && wait != 500*time.Millisecond:
			t.Errorf("the third failure costs %s", wait)
		case wait < last || wait > maxBackOff:
			t.Errorf("failure %d costs %s after %s", i, wait, last)
		}
		last = wait
	}
	if last != maxBackOff {
		t.Errorf("in the end a failure costs %s", last)
	}
	if got := r.pause(0, now); got != 0 {
		t.Errorf("crashes hold a removal up for %s", got)
	}
	r.desired, r.err = 0, os.ErrInvalid
	if got := r.pause(0, now); got != maxBackOff {
		t.Errorf("a removal that failed is tried again after %s", got)
	}
}

func TestEndsAreCountedOnce(t *testing.T) {
	var r releaseState
	began := time.Now()
	run := platform.Replica{ID: "a", Index: 1, StartedAt: began}
	again := run
	again.StartedAt = began.Add(time.Second)
	for i, step := range []struct {
		replica platform.Replica
		counts  bool
	}{{run, true}, {run, false}, {again, true}, {again, false}} {
		if got := r.countEnd(step.replica); got != step.counts {
			t.Errorf("step %d: counted %v", i, got)
		}
	}
	if r.ends[1] != 2 || r.ends[0] != 0 {
		t.Errorf("ends are %v", r.ends)
	}
}

func TestConfigurationsAreComparedAsJSONWould(t *testing.T) {
	base := func() *platform.ReleaseConfig {
		c := platform.Freeze(platform.Project{}, platform.Service{ServiceSpec: platform.ServiceSpec{RunSpec: platform.RunSpec{Env: platform.Env{"A": "1"}}}})
		return &c
	}
	same := base()
	same.SecretEnv, same.Command, same.Entrypoint, same.Volumes = nil, []string{}, nil, []platform.Volume{}
	if !sameConfig(base(), same) {
		t.Error("nil and empty are told apart")
	}
	if sameConfig(nil, base()) || sameConfig(base(), nil) {
		t.Error("no configuration equals one")
	}
	for name, change := range map[string]func(*platform.ReleaseConfig){
		"env":       func(c *platform.ReleaseConfig) { c.Env = platform.Env{"A": "2"} },
		"secret":    func(c *platform.ReleaseConfig) { c.SecretEnv = platform.Env{"B": ""} },
		"port":      func(c *platform.ReleaseConfig) { c.Port = 1 },
		"command":   func(c *platform.ReleaseConfig) { c.Command = []string{"serve"} },
		"volume":    func(c *platform.ReleaseConfig) { c.Volumes = []platform.Volume{{Name: "a", Path: "/a"}} },
		"health":    func(c *platform.ReleaseConfig) { c.HealthCheck.Path = "/up" },
		"grace":     func(c *platform.ReleaseConfig) { grace := 1; c.StopGraceS = &grace },
		"resources": func(c *platform.ReleaseConfig) { c.Resources.MemoryBytes = 1 },
	} {
		if other := base(); true {
			change(other)
			if sameConfig(base(), other) {
				t.Errorf("a changed %s is not seen", name)
			}
		}
	}
}

func TestBuildContextStaysInsideTheUpload(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "upload")
	for _, d := range []string{"upload/sub/deep", "uploaded", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"out": "../elsewhere", "in": "sub", "near": "../uploaded"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{
		"": "", ".": "", "sub": "sub", "sub/deep": "sub/deep", "in": "sub", "in/deep": "sub/deep", "sub/..": "",
		"out": "!", "near": "!", "..": "!", "../elsewhere": "!", "sub/../../uploaded": "!", "file": "!", "nothing": "!",
	} {
		got, err := inside(dir, sub)
		switch {
		case want == "!" && platform.KindOf(err) != platform.Invalid:
			t.Errorf("%q is %s, %v", sub, got, err)
		case want != "!" && (err != nil || got != filepath.Join(dir, want)):
			t.Errorf("%q is %s, %v", sub, got, err)
		}
	}
}

func TestSourceOfARequestIsFilledFromTheService(t *testing.T) {
	own := &platform.Source{Type: platform.SourceUpload, Dockerfile: "D", Context: "c", Build: &platform.BuildOptions{Target: "t"}}
	image := &platform.Source{Type: platform.SourceExternalImage, Image: "app:1"}
	for name, test := range map[string]struct {
		own, asked *platform.Source
		want       platform.Source
		code       string
	}{
		"nothing at all":          {code: "validation_failed"},
		"the service's own":       {own: image, want: *image},
		"an upload without bytes": {own: own, code: "validation_failed"},
		"inherits":                {own: own, asked: &platform.Source{Type: platform.SourceUpload, UploadID: "u"}, want: platform.Source{Type: platform.SourceUpload, UploadID: "u", Dockerfile: "D", Context: "c", Build: own.Build}},
		"overrides":               {own: own, asked: &platform.Source{Type: platform.SourceUpload, UploadID: "u", Dockerfile: "E"}, want: platform.Source{Type: platform.SourceUpload, UploadID: "u", Dockerfile: "E", Context: "c", Build: own.Build}},
		"of another kind":         {own: own, asked: image, want: *image},
	} {
		got, err := resolveSource(platform.Service{ServiceSpec: platform.ServiceSpec{Source: test.own}}, test.asked)
		switch {
		case test.code != "" && platform.CodeOf(err) != test.code:
			t.Errorf("%s: %v", name, err)
		case test.code == "" && (err != nil || got != test.want):
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestSubscribersHearOfTheirsAndOfEverything(t *testing.T) {
	var topics topics
	a, endA := topics.subscribe("a")
	all, endAll := topics.subscribe("")
	topics.publish("b")
	if len(a) != 0 || len(all) != 1 {
		t.Errorf("of another's change %d and %d are heard", len(a), len(all))
	}
	topics.publish("a")
	topics.publish("b", "a") // folded
	if len(a) != 1 || len(all) != 1 {
		t.Errorf("%d and %d are heard", len(a), len(all))
	}
	endA()
	endAll()
	if len(topics.subs) != 0 {
		t.Errorf("left %v", topics.subs)
	}
	topics.publish("a")
}
