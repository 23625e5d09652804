package docker_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestRuntimeContract(t *testing.T) {
	behave := func(w *platform.Workload, args ...string) {
		w.Image, w.Digest, w.Config.Command = appImage.Image, appImage.Digest, args
	}
	platformtest.Runtime(t, platformtest.Harness{
		New: func(t *testing.T) platform.Runtime {
			t.Parallel() // each has an instance of its own
			return open(t)
		},
		Serve:  func(w *platform.Workload) { behave(w, "serve") },
		Exit:   func(w *platform.Workload, code int) { behave(w, "exit", strconv.Itoa(code)) },
		Broken: func(w *platform.Workload) { behave(w); w.Config.Entrypoint = []string{"/no/such/program"} },
		Missing: func(w *platform.Workload) {
			w.Image, w.Digest = "denia/shop/missing:1", "sha256:"+strings.Repeat("0", 64)
		},
		OOM: func(w *platform.Workload) { behave(w, "oom"); w.Config.Resources.MemoryBytes = 16 << 20 },
	})
}

func message(err error) string {
	if e, ok := errors.AsType[*platform.Error](err); ok {
		return e.Message
	}
	return err.Error()
}
