package e2e

import (
	"crypto/rand"
	"net/http"
	"os"
	"strings"
	"testing"
)

// busybox is a base image's only file, for builds that run something.
func busybox(t testing.TB) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the tests need Debian's busybox-static: %v", err)
	}
	return string(program)
}

// hangingBuild is unlike any other: BuildKit has a step that two builds share
// run once, and it ends when both are canceled.
func hangingBuild(t testing.TB) files {
	return files{
		"busybox":    busybox(t),
		"Dockerfile": "FROM scratch\nCOPY busybox /bin/sh\nRUN echo about to hang " + rand.Text() + " && exec sleep 3600\n",
	}
}

// Every failed deployment has a code of its own, a sentence and evidence, and
// leaves the release before it serving.
func TestFailuresKeepTheOldRelease(t *testing.T) {
	t.Parallel()
	s := start(t, "builds {\n\t\t\ttimeout 20s\n\t\t}")
	quick := object{"interval_s": 1, "timeout_s": 1, "start_period_s": 4}
	id := s.running("app", "steady", object{"health_check": quick, "resources": object{"memory_bytes": 32 << 20}})
	settings := func(env object) object {
		return object{"name": "app", "health_check": quick, "resources": object{"memory_bytes": 32 << 20}, "env": env, "source": object{"type": "upload"}}
	}
	upload := func(f files) object { return object{"type": "upload", "upload_id": s.upload(id, f)} }

	for _, c := range []struct {
		name     string
		mode     string
		source   func() object
		code     string
		message  string
		evidence string
	}{
		{"a build that hangs", "", func() object { return upload(hangingBuild(t)) }, "build_timeout", "20s", "log_tail"},
		{"a step that fails", "", func() object {
			return upload(files{"busybox": busybox(t), "Dockerfile": "FROM scratch\nCOPY busybox /bin/sh\nRUN echo no good && exit 7\n"})
		}, "build_failed", "7", "log_tail"},
		{"a Dockerfile error", "", func() object { return upload(files{"Dockerfile": "FROM scratch\nCOPPY a b\n"}) }, "dockerfile_invalid", "COPPY", "log_tail"},
		{"no Dockerfile", "", func() object { return upload(files{"readme": "x"}) }, "dockerfile_not_found", "Dockerfile", "log_tail"},
		{"an image that exits 1", "exit", func() object { return upload(appContext("x")) }, "container_exited", "exit code 1", "log_tail"},
		{"one that never listens", "silent", func() object { return upload(appContext("x")) }, "port_not_listening", "8080", "last_probe"},
		{"one that answers 500", "500", func() object { return upload(appContext("x")) }, "health_check_failed", "500", "last_probe"},
		{"out of memory", "oom", func() object { return upload(appContext("x")) }, "out_of_memory", "32.0 MiB", "oom_killed"},
		{"a command that is not there", "", func() object {
			return upload(files{"app": string(app), "Dockerfile": "FROM scratch\nCOPY app /app\nCMD [\"/nothing\"]\n"})
		}, "start_failed", "/nothing", ""},
		{"a missing tag", "", func() object {
			return object{"type": "external_image", "image": emptyRegistry(t) + "/team/app:missing"}
		}, "image_not_found", "team/app:missing", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.expect(http.StatusOK, "PUT", "/v1/services/"+id+"?apply=false", settings(object{"MODE": c.mode}), nil)
			d := s.finished(s.deploy(id, c.source()))
			message := d.str("error.message")
			if d.str("status") != "failed" || d.str("error.code") != c.code || !strings.Contains(message, c.message) {
				t.Errorf("it is %s, code %s: %s; want code %s and a sentence with %q", d.str("status"), d.str("error.code"), message, c.code, c.message)
			}
			if c.evidence != "" && d.str("error.evidence."+c.evidence) == "" {
				t.Errorf("no %s in the evidence: %v", c.evidence, d["error"])
			}
			if c.mode == "exit" && !strings.Contains(d.str("error.evidence.log_tail"), "cannot find my configuration") {
				t.Errorf("the evidence does not show the process's last words: %v", d["error"])
			}
			t.Logf("%s: %s", d.str("error.code"), message)
			s.answers("app.localhost", "steady")
		})
	}
	if n := len(s.containers()); n != 1 {
		s.eventually(waitForRemoval, "only the steady release's container is left", func() bool { return len(s.containers()) == 1 })
	}
}
