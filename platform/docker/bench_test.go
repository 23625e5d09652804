package docker_test

import (
	"testing"

	"github.com/denia-paas/denia/platform"
)

// BenchmarkEnsure is what a deployment of an image that is there waits for:
// one replica of a new release in a project that runs already.
func BenchmarkEnsure(b *testing.B) {
	e := open(b)
	ensure(b, e, app(1, "serve"))
	number := 1
	for b.Loop() {
		number++
		ensure(b, e, app(number, "serve"))
	}
	b.StopTimer()
	for ; number > 0; number-- {
		w := app(number)
		none := 0
		w.Replicas, w.Config.StopGraceS = 0, &none
		ensure(b, e, w)
	}
}

// BenchmarkReplicas is what every tick of every supervisor costs.
func BenchmarkReplicas(b *testing.B) {
	e := open(b)
	w := app(1, "serve")
	ensure(b, e, w)
	for b.Loop() {
		if _, err := e.Replicas(b.Context(), w.ServiceID); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	ensure(b, e, platform.Workload{ID: w.ID, ServiceID: w.ServiceID})
}
