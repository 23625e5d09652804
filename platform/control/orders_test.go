package control_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestStopAndStart(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	w.runs(service.ID)
	w.become(d.ID, platform.Stopped)
	w.state(service.ID, platform.ServiceStopped)
	if status, body := w.get("web"); status != http.StatusServiceUnavailable || !strings.Contains(body, "stopped") {
		t.Errorf("it answers %d %q", status, body)
	}
	check(t, w.SetStopped(t.Context(), service.ID, false, "tester"))
	w.become(d.ID, platform.Healthy)
	w.serves("web", "1.0")
	w.state(service.ID, platform.ServiceRunning)
	if latest, _, err := w.store.LatestOf(t.Context(), service.ID); err != nil || latest.ID != d.ID {
		t.Errorf("starting made deployment %d, %v", latest.Number, err)
	}
}

func TestStartTakesUpWhatChangedMeanwhile(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	w.runs(service.ID)
	if _, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} }); made {
		t.Error("a stopped service was deployed")
	}
	check(t, w.SetStopped(t.Context(), service.ID, false, "tester"))
	w.runs(service.ID, "2.0")
	if got := w.engine.Load(w.engineReplica(service.ID)).Config.Env["A"]; got != "1" {
		t.Errorf("it runs with A=%q", got)
	}
}

func TestStopCancelsWhatIsUnfinished(t *testing.T) {
	w := start(t)
	service, active := w.running(spec("web"), "app:1")
	w.engine.Script(digest("app:2"), platformtest.Behavior{Deaf: true})
	starting := w.deploy(service.ID, "app:2")
	w.runs(service.ID, "1.0", "2.0")
	waiting := w.deploy(service.ID, "app:3")
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	if got := w.deployment(waiting.ID); got.Status != platform.Canceled || got.Error.Code != platform.CodeCanceled {
		t.Errorf("what waited is %s: %+v", got.Status, got.Error)
	}
	w.become(starting.ID, platform.Canceled)
	w.runs(service.ID)
	w.become(active.ID, platform.Stopped)
}

func TestDeploymentStartsAStoppedService(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	w.runs(service.ID)
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	if w.reread(service.ID).Stopped {
		t.Error("the service is still stopped")
	}
}

func TestConfigurationChangeRollsOver(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	if _, made := w.update(service.ID, func(*platform.ServiceSpec) {}); made {
		t.Error("a change of nothing made a deployment")
	}
	d, made := w.update(service.ID, func(s *platform.ServiceSpec) {
		s.Env = platform.Env{"A": "1"}
		s.SecretEnv = platform.Env{"B": "hush"}
	})
	if !made || d.Trigger != platform.TriggerConfig || d.Number != 2 {
		t.Fatalf("made %v: %+v", made, d)
	}
	d = w.become(d.ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	load := w.engine.Load(w.engineReplica(service.ID))
	if load.Config.Env["A"] != "1" || load.Config.SecretEnv["B"] != "hush" || load.Digest != digest("app:1") {
		t.Errorf("it runs with %+v", load)
	}
	if d.Artifact.Source.DeploymentID != old.ID || d.Artifact.Image != "denia/default/web:2" {
		t.Errorf("the artifact is %+v", d.Artifact)
	}
}

func TestConfigurationIsTakenUpByWhatHasNotStarted(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.images.on("app:1", making{Hold: hold})
	d := w.deploy(service.ID, "app:1")
	w.become(d.ID, platform.Building)
	if _, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "building"} }); made {
		t.Error("a change while building made a deployment")
	}
	pending := w.deploy(service.ID, "app:2")
	if _, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "pending"} }); made {
		t.Error("a change while pending made a deployment")
	}
	release()
	w.become(pending.ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	if got := w.deployment(d.ID).Config.Env["A"]; got != "building" {
		t.Errorf("the first froze A=%q", got)
	}
	if got := w.engine.Load(w.engineReplica(service.ID)).Config.Env["A"]; got != "pending" {
		t.Errorf("it runs with A=%q", got)
	}
}

func TestConfigurationChangedWhileStartingFollowsWithTheNewImage(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	listen, listens := gate(t)
	w.engine.Script(digest("app:2"), platformtest.Behavior{Listen: listen})
	starting := w.deploy(service.ID, "app:2")
	w.become(starting.ID, platform.Starting)
	config, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	if !made || config.Number != 3 {
		t.Fatalf("made %v: %+v", made, config)
	}
	// Once more, by two at a time: there is one deployment that waits, and it
	// takes the change up.
	for range 2 {
		if _, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "2"} }); made {
			t.Error("a further change made a further deployment")
		}
	}
	listens()
	w.become(config.ID, platform.Healthy)
	w.runs(service.ID, "3.0")
	// The image is the one that is active when it begins, not the one that was
	// active when it was asked for.
	if load := w.engine.Load(w.engineReplica(service.ID)); load.Digest != digest("app:2") || load.Config.Env["A"] != "2" {
		t.Errorf("it runs %s with %v", load.Digest, load.Config.Env)
	}
}

func TestConfigurationChangedWhileTheFirstReleaseStartsIsNotForgotten(t *testing.T) {
	for name, fails := range map[string]bool{"that becomes healthy": false, "that fails": true} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			service := w.service(spec("web"))
			listen, listens := gate(t)
			w.engine.Script(digest("app:1"), platformtest.Behavior{Listen: listen})
			first := w.deploy(service.ID, "app:1")
			w.runs(service.ID, "1.0")
			config, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
			if !made {
				t.Fatal("the change is forgotten")
			}
			if fails {
				w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: 2, ExitCode: 1})
				w.engine.Kill(w.engineReplica(service.ID), 1, false)
				w.become(first.ID, platform.Failed)
			}
			listens()
			w.become(config.ID, platform.Healthy)
			w.runs(service.ID, "2.0")
			if got := w.engine.Load(w.engineReplica(service.ID)).Config.Env["A"]; got != "1" {
				t.Errorf("it runs with A=%q", got)
			}
		})
	}
}

func TestChangedProjectRollsItsServicesOver(t *testing.T) {
	w := start(t)
	a, _ := w.running(spec("a"), "app:1")
	b, _ := w.running(spec("b"), "app:1")
	undeployed := w.service(spec("c"))
	project, err := w.store.Project(t.Context(), a.ProjectID)
	check(t, err)
	project.SharedEnv = platform.Env{"SHARED": "1"}
	_, err = w.store.UpdateProject(t.Context(), project.ID, project.ProjectSpec, 0)
	check(t, err)
	check(t, w.ApplyProject(t.Context(), project.ID, "tester"))
	for _, service := range []platform.Service{a, b} {
		w.runs(service.ID, "2.0")
		if got := w.engine.Load(w.engineReplica(service.ID)).Config.Env["SHARED"]; got != "1" {
			t.Errorf("%s runs with SHARED=%q", service.Name, got)
		}
	}
	w.runs(undeployed.ID)
}

func TestRollbackUsesThatImageAndItsConfiguration(t *testing.T) {
	w := start(t)
	first := spec("web")
	first.Env = platform.Env{"A": "old"}
	service, old := w.running(first, "app:1")
	w.images.on("app:2", making{Hold: nil})
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "new"} })
	w.runs(service.ID, "3.0")
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID})
	if d.Trigger != platform.TriggerRollback {
		t.Errorf("the trigger is %s", d.Trigger)
	}
	w.become(d.ID, platform.Healthy)
	w.runs(service.ID, "4.0")
	if load := w.engine.Load(w.engineReplica(service.ID)); load.Digest != digest("app:1") || load.Config.Env["A"] != "old" {
		t.Errorf("it runs %s with %v", load.Digest, load.Config.Env)
	}
	if got := w.reread(service.ID).Env["A"]; got != "new" {
		t.Errorf("the service itself has A=%q", got)
	}
}

func TestRollbackThatCannotBe(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	_, elsewhere := w.running(spec("other"), "app:1")
	w.images.on("app:2", making{Err: platform.Errorf(platform.Invalid, platform.CodeImageNotFound, "no such tag")})
	unbuilt := w.become(w.deploy(service.ID, "app:2").ID, platform.Failed)
	for name, id := range map[string]platform.ID{"of another service": elsewhere.ID, "without an image": unbuilt.ID, "that does not exist": "nobody"} {
		_, err := w.Deploy(t.Context(), platform.DeployRequest{ServiceID: service.ID, Source: &platform.Source{Type: platform.SourceRedeploy, DeploymentID: id}})
		if platform.KindOf(err) != platform.Invalid {
			t.Errorf("a deployment %s: %v", name, err)
		}
	}
}

func TestRollbackToAnImageThatIsGoneFails(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	old = w.copied(old.ID)
	w.hub.forget(old.Artifact.ManifestDigest)
	w.images.lose(old.Artifact.Digest)
	d := w.become(w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID}).ID, platform.Failed)
	if d.Error.Code != platform.CodeImageNotFound || !strings.Contains(d.Error.Message, "from the registry") {
		t.Errorf("failed with %+v", d.Error)
	}
	w.runs(service.ID, "2.0")
}

func TestConfigurationChangeDoesNotLoseARollbackThatWaits(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	listen, listens := gate(t)
	w.engine.Script(digest("app:3"), platformtest.Behavior{Listen: listen})
	w.become(w.deploy(service.ID, "app:3").ID, platform.Starting)
	w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID})
	w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	last, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "2"} })
	if !made {
		t.Fatal("the last change made no deployment")
	}
	listens()
	w.become(last.ID, platform.Healthy)
	w.runs(service.ID, "6.0")
	if load := w.engine.Load(w.engineReplica(service.ID)); load.Digest != digest("app:1") || load.Config.Env["A"] != "2" {
		t.Errorf("it runs %s with %v", load.Digest, load.Config.Env)
	}
}

func TestRestartGivesFreshReplicas(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	if _, err := w.Restart(t.Context(), service.ID, "tester"); platform.CodeOf(err) != "not_deployed" {
		t.Errorf("before the first deployment: %v", err)
	}
	w.become(w.deploy(service.ID, "app:1").ID, platform.Healthy)
	before := w.engineReplica(service.ID)
	d, err := w.Restart(t.Context(), service.ID, "tester")
	check(t, err)
	w.become(d.ID, platform.Healthy)
	w.runs(service.ID, "2.0")
	if w.engineReplica(service.ID) == before {
		t.Error("the replica is the same")
	}
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	if _, err := w.Restart(t.Context(), service.ID, "tester"); platform.CodeOf(err) != "service_stopped" {
		t.Errorf("of a stopped service: %v", err)
	}
}

func TestRestartConflictsWithADeploymentUnderWay(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	listen, listens := gate(t)
	w.engine.Script(digest("app:2"), platformtest.Behavior{Listen: listen})
	d := w.deploy(service.ID, "app:2")
	if _, err := w.Restart(t.Context(), service.ID, "tester"); platform.CodeOf(err) != "deployment_in_progress" {
		t.Errorf("got %v", err)
	}
	listens()
	w.become(d.ID, platform.Healthy)
}

func TestCancelWhilePending(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.images.on("app:1", making{Hold: hold})
	building := w.deploy(service.ID, "app:1")
	w.become(building.ID, platform.Building)
	d, err := w.Cancel(t.Context(), w.deploy(service.ID, "app:2").ID, "tester")
	check(t, err)
	if d.Status != platform.Canceled || d.Error.Code != platform.CodeCanceled {
		t.Errorf("it is %s: %+v", d.Status, d.Error)
	}
	if log := w.story(d.ID); !strings.Contains(log, "cancel requested by tester") {
		t.Errorf("its log is\n%s", log)
	}
	if _, err := w.Cancel(t.Context(), d.ID, "tester"); platform.KindOf(err) != platform.Conflict {
		t.Errorf("a second time: %v", err)
	}
	release()
	w.become(building.ID, platform.Healthy)
}

func TestCancelWhileStartingEndsWithItsReplicasGone(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	linger, leave := gate(t)
	w.engine.Script(digest("app:2"), platformtest.Behavior{Deaf: true, Linger: linger})
	d := w.deploy(service.ID, "app:2")
	w.runs(service.ID, "1.0", "2.0")
	_, err := w.Cancel(t.Context(), d.ID, "tester")
	check(t, err)
	w.await("it is told to stop", func() bool {
		calls := w.engine.Calls()
		last := calls[len(calls)-1]
		return last.ID == d.ID && last.Replicas == 0 && *last.Config.StopGraceS == 1
	})
	// The active release is looked after while that takes its time.
	active := w.observed(service.ID)[0]
	w.engine.Kill(active.ID, 1, false)
	w.await("the active release runs again", func() bool { return slices.Contains(w.replicas(service.ID), "1.0") })
	if got := w.deployment(d.ID).Status; got != platform.Starting {
		t.Errorf("with its replica there the deployment is %s", got)
	}
	leave()
	w.await("it is canceled", func() bool {
		gone := len(w.observed(service.ID)) == 1
		status := w.deployment(d.ID).Status
		if status == platform.Canceled && len(w.observed(service.ID)) != 1 {
			t.Fatal("canceled, and its replica is still there")
		}
		return gone && status == platform.Canceled
	})
	w.serves("web", "1.0")
}

func TestCancelEndsAStartThatHangs(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.engine.Script(digest("app:1"), platformtest.Behavior{Hold: make(chan struct{})})
	d := w.deploy(service.ID, "app:1")
	w.await("the engine starts it", func() bool { return len(w.engine.Calls()) == 1 })
	_, err := w.Cancel(t.Context(), d.ID, "tester")
	check(t, err)
	w.become(d.ID, platform.Canceled)
	w.runs(service.ID)
}

func TestDeleteRemovesReplicasLogsAndVolumesOnlyWhenAsked(t *testing.T) {
	for name, volumes := range map[string]bool{"with volumes": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			s := spec("web")
			s.Volumes = []platform.Volume{{Name: "data", Path: "/data"}}
			service, d := w.running(s, "app:1")
			w.await("there is output", func() bool { return w.log("services/"+string(service.ID)) != "" })
			check(t, w.options.Logs.Append("requests/"+string(service.ID), platform.LogLine{Line: "a request"}))
			check(t, w.DeleteService(t.Context(), service.ID, volumes))
			if status, _ := w.get("web"); status != http.StatusNotFound {
				t.Errorf("it answers %d", status)
			}
			w.runs(service.ID)
			w.await("the logs are gone", func() bool {
				keys, err := w.options.Logs.Keys("")
				check(t, err)
				return len(keys) == 0
			})
			want := []string{string(service.ID) + "/data"}
			if volumes {
				want = nil
			}
			w.await("the volumes are as asked", func() bool { return slices.Equal(w.engine.Volumes(), want) })
			if _, err := w.store.Deployment(t.Context(), d.ID); platform.KindOf(err) != platform.NotFound {
				t.Errorf("its deployment: %v", err)
			}
		})
	}
}

func TestDeleteDuringAStartLeavesNothing(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Hold: hold})
	w.deploy(service.ID, "app:1")
	w.await("the engine starts it", func() bool { return len(w.engine.Calls()) == 1 })
	check(t, w.DeleteService(t.Context(), service.ID, false))
	release()
	w.await("its supervisor is gone", func() bool { return w.Status(service.ID).State == platform.ServiceNew })
	w.runs(service.ID)
}

func TestDeleteThatFailedDoesNotTakeVolumesLater(t *testing.T) {
	w := start(t)
	s := spec("web")
	s.Volumes = []platform.Volume{{Name: "data", Path: "/data"}}
	service, _ := w.running(s, "app:1")
	heal := w.fault("BEFORE DELETE ON services")
	if err := w.DeleteService(t.Context(), service.ID, true); err == nil {
		t.Error("it was deleted")
	}
	heal()
	check(t, w.DeleteService(t.Context(), service.ID, false))
	w.runs(service.ID)
	w.await("its supervisor is gone", func() bool { return w.Status(service.ID).State == platform.ServiceNew })
	if got := w.engine.Volumes(); len(got) != 1 {
		t.Errorf("the volumes are %v", got)
	}
}
