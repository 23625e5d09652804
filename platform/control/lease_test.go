package control_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/testpg"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/platformtest"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
)

// beside starts a second Plane on the same store and the same engine.
func (w *world) beside(node string) *control.Plane {
	w.t.Helper()
	o := w.options
	o.Node, o.DataDir = node, scratch(w.t)
	logs, err := telemetry.OpenLogs(filepath.Join(o.DataDir, "logs"), telemetry.LogOptions{})
	check(w.t, err)
	o.Logs, o.Ingress = logs, ingress.New(ingress.Options{Log: o.Log})
	p := control.New(o)
	w.t.Cleanup(func() {
		check(w.t, p.Close())
		o.Ingress.Close()
		check(w.t, logs.Close())
	})
	check(w.t, p.Start(w.t.Context()))
	if !o.Ingress.Has("web.localhost") {
		w.t.Error("the second node does not know the routes")
	}
	return p
}

func TestOnlyTheHolderOfTheLeaseActsAndTheOtherTakesOver(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	second := w.beside("node-2")
	w.await("the second is asked to act", func() bool { second.Kick(service.ID); return true })
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	if got := w.engine.Runs(digest("app:2")); got != 1 {
		t.Errorf("the release ran %d times", got)
	}

	// A deployment asked for on the second is carried out by the first; one
	// that the first leaves unfinished, by the second.
	w.engine.Script(digest("app:3"), platformtest.Behavior{Deaf: true})
	d := w.deploy(service.ID, "app:3")
	w.runs(service.ID, "2.0", "3.0")
	check(t, w.Close())
	if got := w.replicas(service.ID); !slices.Equal(got, []string{"2.0", "3.0"}) {
		t.Errorf("after the first closed %v run", got)
	}
	_, err := second.Cancel(t.Context(), d.ID, "tester")
	check(t, err)
	w.become(d.ID, platform.Canceled)
	w.runs(service.ID, "2.0")
	if state := second.Status(service.ID).State; state != platform.ServiceRunning {
		w.await("the second sees the service run", func() bool { return second.Status(service.ID).State == platform.ServiceRunning })
	}
}

func TestNodeThatLosesTheLeaseStopsActing(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	check(t, w.store.ReleaseLease(t.Context(), "loops", "node-1"))
	held, err := w.store.AcquireLease(t.Context(), "loops", "node-2", time.Hour, time.Now())
	check(t, err)
	if !held {
		t.Fatal("the lease cannot be taken")
	}
	w.await("it is left to its holder", func() bool { return w.Status(service.ID).State == platform.ServiceNew })
	calls := len(w.engine.Calls())
	d := w.deploy(service.ID, "app:2")
	w.engine.Kill(w.engineReplica(service.ID), 1, false)
	check(t, w.store.ReleaseLease(t.Context(), "loops", "node-2"))
	if got := w.engine.Calls(); len(got) != calls {
		t.Errorf("without the lease the engine was called: %+v", got[calls:])
	}
	// It gets the lease back, and takes everything up again.
	w.become(d.ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	w.serves("web", "2.0")
}

// stuckEngine answers nothing about its projects.
type stuckEngine struct{ platform.Runtime }

func (stuckEngine) Projects(ctx context.Context) ([]platform.ID, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// What another node changes is routed soon, by the leader too, and while its
// engine hangs.
func TestTheLeaderRoutesWhatAnotherNodeChanges(t *testing.T) {
	shared, err := store.Open(t.Context(), testpg.Start(t), store.Options{Log: slog.New(slog.DiscardHandler), Seal: reverse, Unseal: reverse})
	check(t, err)
	t.Cleanup(func() { check(t, shared.Close()) })
	w := start(t, func(o *control.Options) { o.Store, o.Runtime = shared, stuckEngine{o.Runtime} })
	project, err := shared.ProjectByName(t.Context(), platform.DefaultProject)
	check(t, err)
	service, err := shared.CreateService(t.Context(), project.ID, spec("web").WithDefaults())
	check(t, err)
	d, err := shared.CreateDomain(t.Context(), service.ID, "shop.example.com", "sesame", 1)
	check(t, err)
	_, _, err = shared.JudgeDomain(t.Context(), d.ID, platform.DomainCheck{At: time.Now(), Interval: time.Hour, HTTP: true})
	check(t, err)
	w.await("both are routed", func() bool {
		return w.options.Ingress.Has("web.localhost") && w.options.Ingress.Has("shop.example.com") && w.Challenge("shop.example.com", "sesame")
	})
	check(t, shared.DeleteService(t.Context(), service.ID))
	w.await("neither is", func() bool {
		return !w.options.Ingress.Has("web.localhost") && !w.options.Ingress.Has("shop.example.com") && !w.Challenge("shop.example.com", "sesame")
	})
}

func TestCloseSaysSoToWhateverLasts(t *testing.T) {
	w := newWorld(t)
	w.shut() // one that was never started, too
	w.boot()
	check(t, w.Start(t.Context()))
	w.Drain()
	<-w.Draining()
	service := w.service(spec("web"))
	w.become(w.deploy(service.ID, "app:1").ID, platform.Healthy) // it works until it is closed
	w.shut()
	w.Kick(service.ID) // too late, and harmless
	w.boot()
}
