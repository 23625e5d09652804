package control_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/platformtest"
	"github.com/denia-paas/denia/platform/store"
)

// upload is a build context with one file, stored as
// "<name>\n<content>"; unpack unpacks it.
func (w *world) upload(service platform.ID, name, content string) platform.Upload {
	w.t.Helper()
	u := platform.Upload{ID: store.NewID(), ServiceID: service, SizeBytes: 100, Digest: "sha256:sent", ExpiresAt: time.Now().Add(time.Hour)}
	check(w.t, os.WriteFile(w.UploadPath(u.ID), []byte(name+"\n"+content), 0o600))
	check(w.t, w.store.CreateUpload(w.t.Context(), u))
	return u
}

func unpack(_ context.Context, archive, dir string) error {
	text, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	name, content, _ := strings.Cut(string(text), "\n")
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (w *world) noUpload(u platform.Upload) {
	w.t.Helper()
	w.await("the upload is gone", func() bool {
		_, err := w.store.Upload(w.t.Context(), u.ID)
		return platform.KindOf(err) == platform.NotFound && !exists(w.UploadPath(u.ID))
	})
	if left, err := os.ReadDir(filepath.Join(w.options.DataDir, "builds")); err != nil || len(left) > 0 {
		w.t.Errorf("left in builds: %v, %v", left, err)
	}
}

func TestUploadIsBuiltOnceThenRemoved(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	u := w.upload(service.ID, "sub/Dockerfile.prod", "built")
	source := platform.Source{
		Type: platform.SourceUpload, UploadID: u.ID, Context: "sub", Dockerfile: "Dockerfile.prod",
		Build: &platform.BuildOptions{Args: platform.Env{"V": "1"}, Target: "final", Secrets: platform.Env{"TOKEN": "s3cret-token"}},
	}
	d := w.become(w.deployFrom(service.ID, source).ID, platform.Healthy)
	builds := w.images.built()
	if len(builds) != 1 {
		t.Fatalf("built %d times", len(builds))
	}
	b := builds[0]
	if filepath.Base(b.ContextDir) != "sub" || b.Dockerfile != "Dockerfile.prod" || b.Args["V"] != "1" || b.Target != "final" ||
		b.Secrets["TOKEN"] != "s3cret-token" || b.Tag != "denia/default/web:1" {
		t.Errorf("the build was %+v", b)
	}
	if d.Artifact.Digest != digest("built") || d.Artifact.Source.UploadDigest != "sha256:sent" {
		t.Errorf("the artifact is %+v", d.Artifact)
	}
	w.noUpload(u)
	if got := w.reread(service.ID).Source; got.UploadID != "" || got.Context != "sub" {
		t.Errorf("the service keeps %+v", got)
	}

	again := w.upload(service.ID, "sub/Dockerfile.prod", "built again")
	w.become(w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: again.ID}).ID, platform.Healthy)
	if b := w.images.built()[1]; b.Target != "final" || b.Dockerfile != "Dockerfile.prod" {
		t.Errorf("the second build does not inherit: %+v", b)
	}
}

func TestBuildFailuresKeepTheirCode(t *testing.T) {
	for name, test := range map[string]struct {
		source  platform.Source
		file    string
		making  making
		code    string
		message string
		gone    bool
	}{
		"a step fails":      {making: making{Output: "RUN make\nno rule\n", Err: platform.Errorf(platform.Invalid, platform.CodeBuildFailed, "step 3 failed")}, code: platform.CodeBuildFailed, message: "Step 3 failed."},
		"does not parse":    {making: making{Err: platform.Errorf(platform.Invalid, platform.CodeDockerfileInvalid, "line 2")}, code: platform.CodeDockerfileInvalid},
		"no such file":      {source: platform.Source{Dockerfile: "Containerfile"}, code: platform.CodeDockerfileMissing, message: "Containerfile"},
		"no such directory": {source: platform.Source{Context: "backend"}, code: platform.CodeContextMissing, message: "backend"},
		"engine is down":    {making: making{Err: platform.Errorf(platform.Unavailable, platform.CodeEngineUnavailable, "gone")}, code: platform.CodeEngineUnavailable},
		"internal":          {making: making{Err: fmt.Errorf("a nil pointer")}, code: platform.CodeBuildFailed, message: "internal reason"},
		"bytes are gone":    {code: platform.CodeUploadMissing, message: "again", gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			service, _ := w.running(spec("web"), "app:1")
			w.images.on("built", test.making)
			w.journal.expect("a nil pointer")
			u := w.upload(service.ID, "Dockerfile", "built")
			if test.gone {
				check(t, os.Remove(w.UploadPath(u.ID)))
			}
			test.source.Type, test.source.UploadID = platform.SourceUpload, u.ID
			d := w.become(w.deployFrom(service.ID, test.source).ID, platform.Failed)
			if d.Error.Code != test.code || !strings.Contains(d.Error.Message, test.message) || strings.Contains(d.Error.Message, "nil pointer") {
				t.Errorf("failed with %+v", d.Error)
			}
			if test.making.Output != "" && !strings.Contains(strings.Join(d.Error.Evidence.LogTail, "\n"), "no rule") {
				t.Errorf("the evidence is %+v", d.Error.Evidence)
			}
			w.noUpload(u)
			w.serves("web", "1.0")
		})
	}
}

func TestPullFailuresKeepTheirCode(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	for _, code := range []string{platform.CodePullDenied, platform.CodeImageNotFound, platform.CodePullFailed} {
		w.images.on("app:1", making{Err: platform.Errorf(platform.Unavailable, code, "the registry says no")})
		d := w.become(w.deploy(service.ID, "app:1").ID, platform.Failed)
		if d.Error.Code != code || d.Error.Message != "The registry says no." {
			t.Errorf("failed with %+v", d.Error)
		}
	}
}

func TestBuildThatTakesTooLongIsEnded(t *testing.T) {
	w := start(t, func(o *control.Options) { o.BuildTimeout, o.PullTimeout = 50*time.Millisecond, 50*time.Millisecond })
	service := w.service(spec("web"))
	never := make(chan struct{})
	w.images.on("built", making{Hold: never, Output: "compiling\n"})
	w.images.on("app:1", making{Hold: never})
	u := w.upload(service.ID, "Dockerfile", "built")
	d := w.become(w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: u.ID}).ID, platform.Failed)
	if d.Error.Code != platform.CodeBuildTimeout || !strings.Contains(d.Error.Message, "50ms") {
		t.Errorf("the build failed with %+v", d.Error)
	}
	w.noUpload(u)
	if d := w.become(w.deploy(service.ID, "app:1").ID, platform.Failed); d.Error.Code != platform.CodePullTimeout {
		t.Errorf("the pull failed with %+v", d.Error)
	}
}

func TestCancelEndsABuildAndTheNextOneBegins(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.images.on("built", making{Hold: make(chan struct{})})
	u := w.upload(service.ID, "Dockerfile", "built")
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: u.ID})
	w.await("it is being built", func() bool { return len(w.images.built()) == 1 })
	next := w.deploy(service.ID, "app:2")
	got, err := w.Cancel(t.Context(), d.ID, "tester")
	check(t, err)
	if got.Status == platform.Canceled && len(w.images.built()) == 0 {
		t.Error("canceled before its processes were gone")
	}
	d = w.become(d.ID, platform.Canceled)
	if d.Error.Code != platform.CodeCanceled {
		t.Errorf("it ended with %+v", d.Error)
	}
	w.noUpload(u)
	w.become(next.ID, platform.Healthy)
}

func TestSecretsAreHiddenInLogAndError(t *testing.T) {
	w := start(t)
	s := spec("web")
	s.SecretEnv = platform.Env{"PASSWORD": "hunter2-and-more"}
	service := w.service(s)
	encoded := base64.StdEncoding.EncodeToString([]byte("s3cret-token"))
	w.images.on("built", making{
		Output: "using s3cret-token\nas " + encoded + "\nand hunter2-and-more\n",
		Err:    platform.Errorf(platform.Invalid, platform.CodeBuildFailed, "RUN login s3cret-token failed"),
	})
	u := w.upload(service.ID, "Dockerfile", "built")
	d := w.become(w.deployFrom(service.ID, platform.Source{
		Type: platform.SourceUpload, UploadID: u.ID, Build: &platform.BuildOptions{Secrets: platform.Env{"TOKEN": "s3cret-token"}},
	}).ID, platform.Failed)

	w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: -1, ExitCode: 1, Output: []string{"cannot log in with hunter2-and-more"}})
	exited := w.become(w.deploy(service.ID, "app:1").ID, platform.Failed)
	if exited.Error.Code != platform.CodeContainerExited || len(exited.Error.Evidence.LogTail) == 0 {
		t.Errorf("failed with %+v", exited.Error)
	}
	all := fmt.Sprint(w.story(d.ID), w.story(exited.ID), d.Error.Message, d.Error.Evidence, exited.Error.Message, exited.Error.Evidence, w.journal.text())
	for _, secret := range []string{"s3cret-token", encoded, "hunter2-and-more"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q can be read:\n%s", secret, all)
		}
	}
}

func TestBuildThatWouldFillTheDiskIsRefused(t *testing.T) {
	w := start(t, func(o *control.Options) { o.DiskReserve = 1 << 60 })
	service := w.service(spec("web"))
	d := w.become(w.deploy(service.ID, "app:1").ID, platform.Failed)
	if d.Error.Code != platform.CodeDiskFull || !strings.Contains(d.Error.Message, "MiB") {
		t.Errorf("failed with %+v", d.Error)
	}
}

func TestDeleteDuringABuildEndsIt(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.images.on("built", making{Hold: make(chan struct{})})
	u := w.upload(service.ID, "Dockerfile", "built")
	w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: u.ID})
	w.await("it is being built", func() bool { return len(w.images.built()) == 1 })
	check(t, w.DeleteService(t.Context(), service.ID, false))
	w.await("its directory is gone", func() bool {
		left, err := os.ReadDir(filepath.Join(w.options.DataDir, "builds"))
		return err == nil && len(left) == 0
	})
	w.noUpload(u)
	// The builder is free again.
	w.running(spec("other"), "app:1")
}

func TestSeveralBuildersNeverBuildOneDeploymentTwice(t *testing.T) {
	w := start(t, func(o *control.Options) { o.BuildWorkers = 3 })
	var all []platform.ID
	for i := range 5 {
		service := w.service(spec(fmt.Sprintf("web%d", i)))
		u := w.upload(service.ID, "Dockerfile", fmt.Sprintf("built %d", i))
		all = append(all, w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: u.ID}).ID)
	}
	for _, id := range all {
		d := w.become(id, platform.Healthy)
		if len(d.Phases) != 2 || d.Phases[1].Name != "start" {
			t.Errorf("the phases are %+v", d.Phases)
		}
	}
	if got := len(w.images.built()); got != 5 {
		t.Errorf("there were %d builds", got)
	}
}
