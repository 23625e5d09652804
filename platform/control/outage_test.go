package control_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestCrashedReplicaIsStartedAgain(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	replica := w.observed(service.ID)[0]
	w.engine.Kill(replica.ID, 2, false)
	w.await("it runs again", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
	w.serves("web", "1.0")
	w.state(service.ID, platform.ServiceRunning)
	if again := w.observed(service.ID); len(again) != 1 || again[0].ID != replica.ID {
		t.Errorf("there is %+v", again)
	}
	w.await("the service's log tells", func() bool {
		return strings.Contains(w.log("services/"+string(service.ID)), "replica ended (exit code 2), starting it again")
	})
}

func TestCrashIsNoticedWithoutEvents(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	w.engine.Mute(true)
	w.engine.Kill(w.observed(service.ID)[0].ID, 2, false)
	w.await("it runs again", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
	w.serves("web", "1.0")
}

func TestQuickCrashesAreSlowedDown(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: -1, ExitCode: 1})
	began := time.Now()
	w.engine.Kill(w.observed(service.ID)[0].ID, 1, false)
	// Two at once, then after 0.5 s and 1 s.
	w.await("it ran four times more", func() bool { return w.engine.Runs(digest("app:1")) >= 5 })
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("four starts within %s", took)
	}
	w.state(service.ID, platform.ServiceUnavailable)
	// Neither a stop nor a new release waits for the back-off.
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.runs(service.ID, "2.0")
}

func TestEngineThatGoesAwayLeavesWhatRunsServing(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	w.journal.expect("looking at service")
	w.engine.Down(true)
	w.Kick(service.ID)
	w.await("it was noticed", func() bool { return strings.Contains(w.journal.text(), "looking at service") })
	w.serves("web", "1.0")
	if got := w.Status(service.ID).State; got != platform.ServiceRunning {
		t.Errorf("the service is %s", got)
	}
	w.engine.Down(false)
	w.engine.Kill(w.engineReplica(service.ID), 1, false)
	w.await("it is looked after again", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
	if calls := w.engine.Calls(); len(calls) != 2 {
		t.Errorf("the engine was called %d times", len(calls))
	}
}

func TestDeploymentGoesOnWhenTheEngineIsBack(t *testing.T) {
	w := start(t)
	// The start period is over when the engine is back: that time does not
	// count.
	short := spec("web")
	short.HealthCheck.StartPeriodS = 3
	service := w.service(short)
	listen, listens := gate(t)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Listen: listen})
	d := w.deploy(service.ID, "app:1")
	w.runs(service.ID, "1.0")
	w.journal.expect("looking at service")
	w.engine.Down(true)
	w.Kick(service.ID)
	down := time.Now()
	w.await("it is down for longer than the start period", func() bool { return time.Since(down) > 3500*time.Millisecond })
	if got := w.deployment(d.ID).Status; got != platform.Starting {
		t.Errorf("meanwhile the deployment is %s", got)
	}
	w.engine.Down(false)
	listens()
	w.become(d.ID, platform.Healthy)
	w.serves("web", "1.0")
}

func TestReplicaIsNotLateBeforeItWasWatched(t *testing.T) {
	odd := &oddEngine{}
	w := start(t, func(o *control.Options) {
		odd.Runtime = o.Runtime
		o.Runtime = odd
	})
	short := spec("web")
	short.HealthCheck.StartPeriodS = 2
	service := w.service(short)
	look, looks := gate(t)
	listen, listens := gate(t)
	hold, held := gate(t)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Hold: hold, Listen: listen})
	d := w.deploy(service.ID, "app:1")
	w.await("the engine starts it", func() bool { return len(w.engine.Calls()) == 1 })
	odd.hold(look)
	held()
	w.await("it runs", func() bool { return w.engine.Runs(digest("app:1")) == 1 })
	ran := time.Now()
	w.await("a look takes longer than the start period", func() bool { return time.Since(ran) > 2500*time.Millisecond })
	seen := odd.looks.Load()
	odd.hold(nil)
	looks()
	w.Kick(service.ID)
	w.await("it was looked at more than once since", func() bool { return odd.looks.Load() >= seen+3 })
	listens()
	w.become(d.ID, platform.Healthy)
	w.serves("web", "1.0")
}

func TestEngineThatFailsInTheMiddleOfAStartIsAskedAgain(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Hold: hold})
	d := w.deploy(service.ID, "app:1")
	w.await("the engine starts it", func() bool { return len(w.engine.Calls()) == 1 })
	w.journal.expect("looking at service")
	w.engine.Down(true)
	w.await("the call failed", func() bool {
		return strings.Contains(w.journal.text(), "could not bring a release to what is desired")
	})
	w.engine.Down(false)
	release()
	w.become(d.ID, platform.Healthy)
}

func TestRequestsAreHeldWhileTheEngineIsDownAtTheStart(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	stopped, _ := w.running(spec("halted"), "app:1")
	check(t, w.SetStopped(t.Context(), stopped.ID, true, "tester"))
	w.runs(stopped.ID)
	w.journal.expect("looking at service")
	w.journal.expect("sweeping replicas")
	w.shut()
	w.engine.Down(true)
	w.boot()
	check(t, w.Start(t.Context()))
	w.state(service.ID, platform.ServiceUnavailable)
	answer := make(chan int, 1)
	go func() {
		status, _, _ := w.try("web")
		answer <- status
	}()
	w.await("the request waits", func() bool { return w.options.Ingress.Status(service.ID).Waiting == 1 })
	if status, _ := w.get("halted"); status != http.StatusServiceUnavailable {
		t.Errorf("the stopped service answers %d", status)
	}
	w.engine.Down(false)
	if got := <-answer; got != http.StatusOK {
		t.Errorf("the request that waited got %d", got)
	}
	w.state(service.ID, platform.ServiceRunning)
	if got := w.engine.Runs(digest("app:1")); got != 2 {
		t.Errorf("there were %d runs", got)
	}
}

func TestMistakenNotFoundFromTheEngineRemovesNothing(t *testing.T) {
	odd := &oddEngine{}
	w := start(t, func(o *control.Options) {
		odd.Runtime = o.Runtime
		o.Runtime = odd
	})
	service, _ := w.running(spec("web"), "app:1")
	w.journal.expect("looking at service")
	odd.fail(platform.NotFoundf("no such container"))
	w.Kick(service.ID)
	w.await("it was noticed", func() bool { return strings.Contains(w.journal.text(), "no such container") })
	odd.fail(nil)
	w.engine.Kill(w.engineReplica(service.ID), 1, false)
	w.await("it is looked after", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
	for _, call := range w.engine.Calls() {
		if call.Replicas == 0 {
			t.Errorf("it was removed: %+v", call)
		}
	}
}

func TestRemovalThatFailsIsNotRepeatedWithoutAPause(t *testing.T) {
	odd := &oddEngine{}
	w := start(t, func(o *control.Options) {
		odd.Runtime = o.Runtime
		o.Runtime = odd
	})
	service, _ := w.running(spec("web"), "app:1")
	odd.failRemovals(platform.Errorf(platform.Unavailable, platform.CodeEngineUnavailable, "the disk is read-only"))
	began := time.Now()
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.await("it was tried again", func() bool { return odd.removals.Load() >= 3 })
	if took := time.Since(began); took < 1400*time.Millisecond {
		t.Errorf("three attempts within %s", took)
	}
	odd.failRemovals(nil)
	w.runs(service.ID, "2.0")
}

func TestRestartOfDeniaAdoptsWhatRuns(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	before, calls := w.observed(service.ID), len(w.engine.Calls())
	w.restart()
	w.serves("web", "1.0")
	w.state(service.ID, platform.ServiceRunning)
	if after := w.observed(service.ID); !slices.Equal(after, before) {
		t.Errorf("replicas were %+v, are %+v", before, after)
	}
	if got := w.engine.Calls(); len(got) != calls {
		t.Errorf("the engine was called: %+v", got[calls:])
	}
	if got := w.deployment(d.ID); got.Status != platform.Healthy {
		t.Errorf("the deployment is %s", got.Status)
	}
}

func TestRestartOfDeniaTakesUpWhatIsUnfinished(t *testing.T) {
	t.Run("pending", func(t *testing.T) {
		w := start(t)
		hold, release := gate(t)
		w.images.on("slow:1", making{Hold: hold})
		first := w.deploy(w.service(spec("other")).ID, "slow:1")
		w.become(first.ID, platform.Building)
		second := w.deploy(w.service(spec("web")).ID, "app:1")
		w.restart()
		release()
		w.become(second.ID, platform.Healthy)
		w.become(first.ID, platform.Healthy)
	})
	t.Run("building", func(t *testing.T) {
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		hold, release := gate(t)
		w.images.on("app:2", making{Hold: hold})
		d := w.deploy(service.ID, "app:2")
		w.await("it is being fetched", func() bool { return strings.Contains(w.log("deployments/"+string(d.ID)), "pulling") })
		w.restart()
		w.serves("web", "1.0")
		release()
		w.become(d.ID, platform.Healthy)
		w.runs(service.ID, "2.0")
	})
	t.Run("building and asked to end", func(t *testing.T) {
		w := start(t)
		service := w.service(spec("web"))
		w.images.on("app:1", making{Hold: make(chan struct{})})
		d := w.deploy(service.ID, "app:1")
		w.become(d.ID, platform.Building)
		w.shut()
		_, err := w.store.RequestCancel(t.Context(), d.ID)
		check(t, err)
		w.boot()
		check(t, w.Start(t.Context()))
		w.become(d.ID, platform.Canceled)
	})
	t.Run("starting", func(t *testing.T) {
		w := start(t)
		short := spec("web")
		short.HealthCheck.StartPeriodS = 1
		service, _ := w.running(short, "app:1")
		listen, listens := gate(t)
		w.engine.Script(digest("app:2"), platformtest.Behavior{Listen: listen})
		d := w.deploy(service.ID, "app:2")
		w.runs(service.ID, "1.0", "2.0")
		w.shut()
		// While Denia is away the start period passes, and the replica gets
		// ready: that it was not seen is not its fault.
		away := time.Now()
		w.await("the start period is over", func() bool { return time.Since(away) > 1200*time.Millisecond })
		listens()
		w.boot()
		check(t, w.Start(t.Context()))
		w.become(d.ID, platform.Healthy)
		w.runs(service.ID, "2.0")
		if got := w.engine.Runs(digest("app:2")); got != 1 {
			t.Errorf("the candidate ran %d times", got)
		}
	})
	t.Run("promoted with the old one left", func(t *testing.T) {
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		linger, leave := gate(t)
		w.engine.Script(digest("app:1"), platformtest.Behavior{Linger: linger})
		d := w.deploy(service.ID, "app:2")
		w.become(d.ID, platform.Healthy)
		w.restart()
		w.serves("web", "2.0")
		if got := w.replicas(service.ID); !slices.Equal(got, []string{"1.0", "2.0"}) {
			t.Errorf("%v run", got)
		}
		leave()
		w.runs(service.ID, "2.0")
		if got := w.engine.Runs(digest("app:2")); got != 1 {
			t.Errorf("the new release ran %d times", got)
		}
	})
	t.Run("stopping", func(t *testing.T) {
		w := start(t)
		service, d := w.running(spec("web"), "app:1")
		linger, leave := gate(t)
		w.engine.Script(digest("app:1"), platformtest.Behavior{Linger: linger})
		check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
		w.become(d.ID, platform.Stopped)
		w.restart()
		leave()
		w.runs(service.ID)
		w.state(service.ID, platform.ServiceStopped)
	})
	t.Run("stopped with something under way", func(t *testing.T) {
		// The process ended between the halves of an order.
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		w.engine.Script(digest("app:2"), platformtest.Behavior{Deaf: true})
		d := w.deploy(service.ID, "app:2")
		w.runs(service.ID, "1.0", "2.0")
		w.shut()
		check(t, w.store.SetStopped(t.Context(), service.ID, true))
		w.boot()
		check(t, w.Start(t.Context()))
		w.become(d.ID, platform.Canceled)
		w.runs(service.ID)
	})
	t.Run("deleted with replicas left", func(t *testing.T) {
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		w.shut()
		check(t, w.store.DeleteService(t.Context(), service.ID))
		w.boot()
		check(t, w.Start(t.Context()))
		w.runs(service.ID)
	})
}
