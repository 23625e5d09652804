package docker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/docker"
)

// buildLog is a log writer that can be waited on.
type buildLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *buildLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *buildLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// buildContext writes a build context. In a file BASE stands for the base image
// and UNIQUE for what no run before had in its cache.
func buildContext(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.NewReplacer("BASE", busybox, "UNIQUE", run).Replace(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// build builds the files as a service of its own; change may be nil.
func build(t testing.TB, e *docker.Engine, files map[string]string, change func(*platform.Build)) (platform.Artifact, string, error) {
	t.Helper()
	b := platform.Build{
		ContextDir: buildContext(t, files),
		Tag:        "denia/" + run + "/" + strings.ToLower(t.Name()) + ":1",
	}
	if change != nil {
		change(&b)
	}
	var log buildLog
	artifact, err := e.Build(t.Context(), b, &log)
	return artifact, log.String(), err
}

// output runs the image to its end and returns what it wrote.
func output(t testing.TB, e *docker.Engine, a platform.Artifact) string {
	t.Helper()
	w := app(1)
	w.Image, w.Digest = a.Image, a.Digest
	ensure(t, e, w)
	r := finished(t, e, w)
	reader, err := e.Logs(t.Context(), r.ID, platform.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var lines []string
	for {
		line, err := reader.Next()
		if err != nil {
			break
		}
		lines = append(lines, line.Line)
	}
	w.Replicas = 0
	ensure(t, e, w)
	return strings.Join(lines, "\n")
}

func wantLog(t testing.TB, log string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(log, part) {
			t.Errorf("the log has no %q:\n%s", part, log)
		}
	}
}

func TestBuildMakesRunnableImage(t *testing.T) {
	t.Parallel()
	e := open(t)
	files := map[string]string{
		"Dockerfile":    "FROM BASE\nARG GREETING=nobody\nCOPY . /src\nRUN echo building; echo \"$GREETING\" > /greeting\nCMD cat /greeting /src/file; ls /src\n",
		"file":          "content UNIQUE\n",
		"ignored":       "x",
		".dockerignore": "ignored\nDockerfile\n.dockerignore\n",
	}
	a, log, err := build(t, e, files, func(b *platform.Build) { b.Args = platform.Env{"GREETING": "hello"} })
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if !strings.HasPrefix(a.Digest, "sha256:") || a.SizeBytes < 1<<20 || !strings.HasSuffix(a.Image, ":1") {
		t.Errorf("artifact %+v", a)
	}
	wantLog(t, log, "[3/3] RUN echo building", "\nbuilding\n", "[3/3] done in ")
	if got, want := output(t, e, a), "hello\ncontent "+run+"\nfile"; got != want {
		t.Errorf("the image writes %q, want %q", got, want)
	}
}

func TestBuildAgainHitsTheCache(t *testing.T) {
	t.Parallel()
	e := open(t)
	files := map[string]string{
		"Dockerfile": "FROM BASE\nCOPY file /file\nRUN cat /file; date +%N > /when\n",
		"file":       "content UNIQUE\n",
	}
	first, log, err := build(t, e, files, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	second, log, err := build(t, e, files, func(b *platform.Build) {
		b.Tag = strings.TrimSuffix(b.Tag, "1") + "2"
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(b.ContextDir, "file"), later, later); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	wantLog(t, log, "[2/3] COPY file /file CACHED", "[3/3] RUN cat /file; date +%N > /when CACHED")
	if first.Digest != second.Digest {
		t.Errorf("the same context gave %s and %s", first.Digest, second.Digest)
	}
	third, log, err := build(t, e, map[string]string{"Dockerfile": files["Dockerfile"], "file": "other UNIQUE\n"}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	wantLog(t, log, "\nother "+run+"\n")
	if third.Digest == first.Digest {
		t.Error("another context gave the same image")
	}
}

func TestBuildTargetHeredocAndSubdirectory(t *testing.T) {
	t.Parallel()
	e := open(t)
	files := map[string]string{
		"docker/app.Dockerfile": "# syntax=docker/dockerfile:1.7-labs\nFROM BASE AS one\nRUN <<EOF\nset -e\necho from one > /out\nEOF\nCMD cat /out\n" +
			"FROM BASE AS two\nRUN echo the wrong target; exit 1\n",
	}
	a, log, err := build(t, e, files, func(b *platform.Build) {
		b.Dockerfile, b.Target = "docker/app.Dockerfile", "one"
		b.Args = platform.Env{"BUILDKIT_SYNTAX": "example.invalid/frontend"}
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if got := output(t, e, a); got != "from one" {
		t.Errorf("the image writes %q", got)
	}
}

func TestBuildSecretsReachOnlyTheStep(t *testing.T) {
	t.Parallel()
	e := open(t)
	files := map[string]string{
		"Dockerfile": "FROM BASE\nRUN --mount=type=secret,id=TOKEN wc -c < /run/secrets/TOKEN > /length\nCMD cat /length; ls /run/secrets 2>/dev/null\n",
	}
	a, log, err := build(t, e, files, func(b *platform.Build) { b.Secrets = platform.Env{"TOKEN": "hunter2hunter2"} })
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	got := output(t, e, a)
	if got != "14" || strings.Contains(log, "hunter2") {
		t.Errorf("the image writes %q", got)
	}
	history, err := engine.ImageHistory(t.Context(), a.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range history {
		if strings.Contains(layer.CreatedBy, "hunter2") {
			t.Errorf("the image's history holds the secret: %s", layer.CreatedBy)
		}
	}
	_, _, err = build(t, e, map[string]string{"Dockerfile": "FROM BASE\nRUN --mount=type=secret,id=OTHER,required true\n"}, nil)
	if m := wantCode(t, err, platform.CodeBuildFailed); !strings.Contains(m, "OTHER") {
		t.Errorf("a secret that does not exist: %s", m)
	}
}

// What a secret left in a step's result is seen by no build of another
// project, and by none after the secret has changed.
func TestBuildResultsWithSecretsAreNotShared(t *testing.T) {
	t.Parallel()
	e := open(t)
	files := map[string]string{
		"Dockerfile": "FROM BASE\nRUN --mount=type=secret,id=TOKEN,required=true cp /run/secrets/TOKEN /kept\nCMD cat /kept\n",
	}
	with := func(scope platform.ID, secrets platform.Env) func(*platform.Build) {
		return func(b *platform.Build) { b.Scope, b.Secrets = scope, secrets }
	}
	theirs, log, err := build(t, e, files, with("theirs", platform.Env{"TOKEN": "first"}))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if got := output(t, e, theirs); got != "first" {
		t.Errorf("the image writes %q", got)
	}
	rotated, log, err := build(t, e, files, with("theirs", platform.Env{"TOKEN": "second"}))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if got := output(t, e, rotated); got != "second" {
		t.Errorf("after the secret changed the image writes %q", got)
	}
	if stolen, _, err := build(t, e, files, with("ours", nil)); err == nil {
		t.Errorf("without the secret, another project's build has its result: %q", output(t, e, stolen))
	}
	if same, _, err := build(t, e, files, with("ours", platform.Env{"TOKEN": "ours"})); err != nil || output(t, e, same) != "ours" {
		t.Errorf("another project's build with a secret of its own: %v", err)
	}
}

// A changed file is built anew even where its size and time are the same.
func TestBuildSeesAChangeThatSizeAndTimeHide(t *testing.T) {
	t.Parallel()
	e := open(t)
	for _, text := range []string{"one", "two"} {
		a, log, err := build(t, e, map[string]string{"Dockerfile": "FROM BASE\nCOPY text /text\nCMD cat /text\n", "text": text}, func(b *platform.Build) {
			b.Tag = "denia/" + run + "/sametime:1"
			for _, name := range []string{"text", "Dockerfile"} {
				if err := os.Chtimes(filepath.Join(b.ContextDir, name), time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
					t.Fatal(err)
				}
			}
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		if got := output(t, e, a); got != text {
			t.Errorf("the image writes %q, want %q", got, text)
		}
	}
}

func TestBuildFailures(t *testing.T) {
	t.Parallel()
	e := open(t)
	for _, c := range []struct {
		name  string
		files map[string]string
		code  string
		wants []string // in the message
	}{
		{"a step fails", map[string]string{"Dockerfile": "FROM BASE\nRUN true\nRUN echo why; exit 42\n"},
			platform.CodeBuildFailed, []string{"[3/3] RUN echo why; exit 42", "exit code 42"}},
		{"a file to copy is not there", map[string]string{"Dockerfile": "FROM BASE\nCOPY nothing /\n"},
			platform.CodeBuildFailed, []string{"[2/2] COPY nothing /", "not found"}},
		{"unknown instruction", map[string]string{"Dockerfile": "FROM BASE\n\nRAN true\n"},
			platform.CodeDockerfileInvalid, []string{"Dockerfile:3: ", "RAN"}},
		{"empty", map[string]string{"Dockerfile": ""}, platform.CodeDockerfileInvalid, []string{"Dockerfile"}},
		{"no such stage", map[string]string{"Dockerfile": "FROM BASE AS other\n"},
			platform.CodeDockerfileInvalid, []string{"Dockerfile", "wanted"}},
		{"unreachable registry", map[string]string{"Dockerfile": "FROM scratch AS one\nFROM 127.0.0.1:1/nowhere:2\n"},
			platform.CodePullFailed, []string{"Dockerfile:2: ", "127.0.0.1:1/nowhere:2", "connection refused"}},
		{"another frontend", map[string]string{"Dockerfile": "# syntax=example.com/tools/other:1\nFROM BASE\n"},
			platform.CodeDockerfileInvalid, []string{"Dockerfile:1: ", "example.com/tools/other:1"}},
		{"somebody's service as base", map[string]string{"Dockerfile": "FROM " + appImage.Image + "\n"},
			platform.CodeDockerfileInvalid, []string{"Dockerfile:1: ", appImage.Image}},
		{"copied from somebody's service", map[string]string{"Dockerfile": "FROM scratch\nCOPY --from=" + appImage.Image + " /app /app\n"},
			platform.CodeDockerfileInvalid, []string{appImage.Image}},
		{"mounted from somebody's service", map[string]string{"Dockerfile": "FROM scratch\nRUN --mount=from=" + appImage.Image + ",target=/x true\n"},
			platform.CodeDockerfileInvalid, []string{appImage.Image}},
		{"a URL to add", map[string]string{"Dockerfile": "FROM scratch\nADD http://127.0.0.1:1/x /x\n"},
			platform.CodeDockerfileInvalid, []string{"http://127.0.0.1:1/x", "RUN"}},
		{"a repository to add", map[string]string{"Dockerfile": "FROM scratch\nADD https://127.0.0.1:1/x.git /x\n"},
			platform.CodeDockerfileInvalid, []string{"127.0.0.1:1/x.git"}},
		{"no Dockerfile", map[string]string{"other": ""}, platform.CodeDockerfileMissing, []string{"Dockerfile"}},
		{"Dockerfile is a directory", map[string]string{"Dockerfile/x": ""}, platform.CodeDockerfileMissing, []string{"Dockerfile"}},
		{"disk full", map[string]string{"Dockerfile": "FROM BASE\nCOPY file /\nRUN cat /file >&2; exit 1\n", "file": "write: No space left on device\n"},
			platform.CodeDiskFull, nil},
		{"a command that speaks of a full disk", map[string]string{"Dockerfile": "FROM BASE\nRUN test no space left on device\n"},
			platform.CodeBuildFailed, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, log, err := build(t, e, c.files, func(b *platform.Build) {
				b.Tag = "denia/" + run + "/failures:1"
				if c.name == "no such stage" {
					b.Target = "wanted"
				}
			})
			m := wantCode(t, err, c.code)
			for _, part := range c.wants {
				if !strings.Contains(m, part) {
					t.Errorf("the message %q has no %q", m, part)
				}
			}
			if t.Failed() {
				t.Log(log)
			}
		})
	}
	if _, err := engine.ImageInspect(t.Context(), "denia/"+run+"/failures:1"); err == nil {
		t.Error("a failed build left an image")
	}
}

// processes counts the processes of the machine with the text in their command
// line. The engine of these tests runs on the same kernel.
func processes(t testing.TB, text string) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if args, err := os.ReadFile(path); err == nil && bytes.Contains(args, []byte(text)) {
			n++
		}
	}
	return n
}

// Not beside the others, as it is timed.
func TestBuildCanceledEndsItsProcesses(t *testing.T) {
	e := open(t)
	const mark = "86413"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log buildLog
	ended := make(chan error, 1)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM BASE\nRUN trap '' TERM; echo sleeping; sleep " + mark + "\n"})
	go func() {
		_, err := e.Build(ctx, platform.Build{ContextDir: dir, Tag: "denia/" + run + "/canceled:1"}, &log)
		ended <- err
	}()
	eventually(t, "the step runs", func() bool {
		return regexp.MustCompile(`(?m)^sleeping$`).MatchString(log.String()) && processes(t, mark) > 0
	})
	began := time.Now()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled build: %v", err)
	}
	if left := processes(t, mark); left > 0 {
		t.Errorf("%d processes of the build still run", left)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("canceling took %v", took)
	}
}
