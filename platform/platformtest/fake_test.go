package platformtest_test

import (
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestFakeKeepsTheContract(t *testing.T) {
	var fake *platformtest.Fake
	as := func(digest string, b platformtest.Behavior) func(*platform.Workload) {
		return func(w *platform.Workload) {
			w.Digest = digest
			fake.Script(digest, b)
		}
	}
	platformtest.Runtime(t, platformtest.Harness{
		New: func(t *testing.T) platform.Runtime {
			fake = platformtest.NewFake()
			t.Cleanup(fake.Close)
			return fake
		},
		Serve: as("serve", platformtest.Behavior{}),
		Exit: func(w *platform.Workload, code int) {
			as("exit", platformtest.Behavior{Exits: -1, ExitCode: code, Output: []string{"one", "two", "three"}})(w)
		},
		Broken:  as("broken", platformtest.Behavior{Fail: platform.Errorf(platform.Unavailable, platform.CodeStartFailed, "no such command")}),
		Missing: as("missing", platformtest.Behavior{Missing: true}),
		OOM:     as("oom", platformtest.Behavior{Exits: -1, OOM: true}),
	})
}
