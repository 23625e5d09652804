package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestPushDeploysByDigest(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	d, made := w.push(service.ID, "latest", "app:1")
	if !made || d.Trigger != platform.TriggerPush || d.Actor != "pusher" || d.Number != 1 {
		t.Fatalf("made %v: %+v", made, d)
	}
	d = w.become(d.ID, platform.Healthy)
	w.serves("web", "1.0")
	want := platform.Artifact{
		Image: "denia/default/web:1", Digest: digest("app:1"), SizeBytes: 4096, ManifestDigest: manifest("app:1"),
		Source: &platform.ArtifactSource{Type: platform.SourcePush, Image: "default/web@" + manifest("app:1")},
	}
	if got := *d.Artifact; *got.Source != *want.Source || got.ManifestDigest != want.ManifestDigest || got.Digest != want.Digest || got.Image != want.Image {
		t.Errorf("the artifact is %+v from %+v", got, got.Source)
	}
	if got := w.images.pulledAs(); !slices.Equal(got, []string{hubAddress + "/default/web@" + manifest("app:1")}) {
		t.Errorf("the engine pulled %v", got)
	}
	if d.Phases[0].Name != "pull" {
		t.Errorf("the phases are %+v", d.Phases)
	}
	if got := w.reread(service.ID).Source; got != nil {
		t.Errorf("a push became the service's source: %+v", got)
	}
	if strings.Contains(w.journal.text()+w.story(d.ID), "password for") {
		t.Error("a credential was logged")
	}
	if tags := w.hub.tagsOf(service.ID); !slices.Equal(tags, []string{"latest"}) {
		t.Errorf("a pushed image was copied: %v", tags)
	}
}

func TestPushOfWhatIsThereOrNotFollowedMakesNoDeployment(t *testing.T) {
	w := start(t)
	s := spec("web")
	s.FollowTag = "stable"
	service := w.service(s)
	for _, tag := range []string{"latest", "release-1", "Stable"} {
		if d, made := w.push(service.ID, tag, "app:1"); made {
			t.Errorf("the tag %s made deployment %d", tag, d.Number)
		}
	}
	hold, release := gate(t)
	w.images.on(hubAddress+"/default/web@"+manifest("app:1"), making{})
	w.images.on(hubAddress+"/default/web@"+manifest("app:2"), making{Hold: hold})
	first, _ := w.push(service.ID, "stable", "app:2")
	w.become(first.ID, platform.Building)
	if _, made := w.push(service.ID, "stable", "app:2"); made {
		t.Error("what is being pulled made a second deployment")
	}
	second, made := w.push(service.ID, "stable", "app:3")
	if !made {
		t.Fatal("another digest made no deployment")
	}
	if _, made := w.push(service.ID, "stable", "app:3"); made {
		t.Error("what waits made a second deployment")
	}
	release()
	w.become(second.ID, platform.Healthy)
	if _, made := w.push(service.ID, "stable", "app:3"); made {
		t.Error("what is active made a second deployment")
	}
	// A changed configuration runs the same image.
	config, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	w.become(config.ID, platform.Healthy)
	if _, made := w.push(service.ID, "stable", "app:3"); made {
		t.Error("what is active under a new configuration made a second deployment")
	}
	if _, _, err := w.Push(t.Context(), control.PushEvent{Service: "nobody", Tag: "latest", Digest: "sha256:x"}); platform.KindOf(err) != platform.NotFound {
		t.Errorf("a push to no service: %v", err)
	}
}

func TestPushOfWhatFailedIsTriedAgain(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: -1})
	first, _ := w.push(service.ID, "latest", "app:1")
	w.become(first.ID, platform.Failed)
	w.engine.Script(digest("app:1"), platformtest.Behavior{})
	again, made := w.push(service.ID, "latest", "app:1")
	if !made {
		t.Fatal("the same digest was not deployed again after it failed")
	}
	w.become(again.ID, platform.Healthy)
}

func TestPushStartsAStoppedService(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	check(t, w.SetStopped(t.Context(), service.ID, true, "tester"))
	w.runs(service.ID)
	d, _ := w.push(service.ID, "latest", "app:2")
	w.become(d.ID, platform.Healthy)
	w.runs(service.ID, "2.0")
}

// The repository is called what the service is called when the engine asks.
func TestPushSurvivesARename(t *testing.T) {
	w := start(t)
	service, other := w.service(spec("web")), w.service(spec("other"))
	hold, release := gate(t)
	w.images.on("slow:1", making{Hold: hold})
	w.become(w.deploy(other.ID, "slow:1").ID, platform.Building)
	d, _ := w.push(service.ID, "latest", "app:1")
	w.update(service.ID, func(s *platform.ServiceSpec) { s.Name = "site" })
	w.Kick(service.ID)
	release()
	w.become(d.ID, platform.Healthy)
	if want := hubAddress + "/default/site@" + manifest("app:1"); !slices.Contains(w.images.pulledAs(), want) {
		t.Errorf("the engine pulled %v, want %s", w.images.pulledAs(), want)
	}
}

func TestPushWaitsForARegistryThatIsStarting(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.setAway(true)
	d, _ := w.push(service.ID, "latest", "app:1")
	w.become(d.ID, platform.Building)
	w.hub.setAway(false)
	w.become(d.ID, platform.Healthy)
}

func TestPushOfAnImageThatIsGoneFails(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.mu.Lock()
	w.hub.tags[service.ID] = map[string]string{"latest": "sha256:gone"}
	w.hub.mu.Unlock()
	d, _, err := w.Push(t.Context(), control.PushEvent{Service: service.ID, Tag: "latest", Digest: "sha256:gone", Actor: "pusher"})
	check(t, err)
	d = w.become(d.ID, platform.Failed)
	if d.Error.Code != platform.CodeImageNotFound || !strings.Contains(d.Error.Message, "default/web@sha256:gone") {
		t.Errorf("failed with %+v", d.Error)
	}
}

func TestExternalImagesComeThroughTheCache(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	d := w.become(w.deploy(service.ID, "ghcr.io/team/app:1").ID, platform.Healthy)
	if got := w.images.pulledAs(); !slices.Equal(got, []string{hubAddress + "/default/ghcr.io/team/app:1"}) {
		t.Errorf("the engine pulled %v", got)
	}
	if d.Artifact.Source.Image != "ghcr.io/team/app:1" {
		t.Errorf("the artifact is from %+v", d.Artifact.Source)
	}

	cached := hubAddress + "/default/docker.io/library/app:2"
	w.images.on(cached, making{Err: platform.Errorf(platform.Unavailable, platform.CodePullFailed, "no space in the cache")})
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	if got := w.images.pulledAs()[1:]; !slices.Equal(got, []string{cached, "app:2"}) {
		t.Errorf("when the cache failed the engine pulled %v", got)
	}

	for i, code := range []string{platform.CodeImageNotFound, platform.CodePullDenied} {
		// The engine may have what the cache cannot get, and has the last word.
		w.images.on(cached, making{Err: platform.Errorf(platform.NotFound, platform.CodeImageNotFound, "the cache says no")})
		w.images.on("app:2", making{Err: platform.Errorf(platform.NotFound, code, "it says no")})
		if d := w.become(w.deploy(service.ID, "app:2").ID, platform.Failed); d.Error.Code != code {
			t.Errorf("failed with %+v", d.Error)
		}
		if got := w.images.pulledAs()[3+2*i:]; !slices.Equal(got, []string{cached, "app:2"}) {
			t.Errorf("after %s the engine pulled %v", code, got)
		}
	}
}

func TestExternalImagesAreHadWithoutARegistry(t *testing.T) {
	w := start(t)
	w.hub.setAway(true)
	w.running(spec("web"), "app:1")
	if got := w.images.pulledAs(); !slices.Equal(got, []string{"app:1"}) {
		t.Errorf("the engine pulled %v", got)
	}
}

// Of two pushes to a tag at once it is the tag that decides, not which of them
// is told of last.
func TestPushThatWasOvertakenDeploysNothing(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.knows("default/web", service.ID)
	w.hub.mu.Lock()
	w.hub.put(service.ID, "latest", "app:1")
	w.hub.mu.Unlock()
	later, made := w.push(service.ID, "latest", "app:2")
	if !made {
		t.Fatal("the later push made no deployment")
	}
	_, made, err := w.Push(t.Context(), control.PushEvent{Service: service.ID, Tag: "latest", Digest: manifest("app:1"), Actor: "pusher"})
	check(t, err)
	if made {
		t.Error("the push that was overtaken made a deployment")
	}
	w.become(later.ID, platform.Healthy)
}

// Whoever asks at any moment of a deployment hears that its image is needed:
// the registry's collector and the janitor would remove it.
func TestImageIsKeptAtEachMomentOfItsDeployment(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.knows("default/web", service.ID)
	for n := range 10 {
		image := fmt.Sprintf("app:%d", n)
		d, _ := w.push(service.ID, "latest", image)
		done := make(chan struct{})
		asked := make(chan int)
		go func() {
			times := 0
			for ; ; times++ {
				if kept, err := w.Keep(t.Context(), service.ID, manifest(image)); err != nil || !kept {
					t.Errorf("%s is kept: %v, %v", image, kept, err)
				}
				select {
				case <-done:
					asked <- times
					return
				default:
				}
			}
		}()
		w.become(d.ID, platform.Healthy)
		close(done)
		t.Logf("asked %d times", <-asked)
	}
}

func TestReleasesAreCopiedIntoTheRegistry(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.knows("default/web", service.ID)
	hold, release := gate(t)
	first := hubAddress + "/default/web:release-1"
	w.images.on(first, making{Hold: hold})
	d := w.become(w.deploy(service.ID, "app:1").ID, platform.Healthy)
	// A copy that takes for ever delays no deployment.
	next := w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	config, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	w.become(config.ID, platform.Healthy)
	if got := w.deployment(d.ID).Artifact.ManifestDigest; got != "" {
		t.Errorf("the copy that is held has the digest %s", got)
	}
	w.images.on(first, making{})
	release()
	for id, image := range map[platform.ID]string{d.ID: "app:1", next.ID: "app:2", config.ID: "app:2"} {
		if got := w.copied(id).Artifact.ManifestDigest; got != manifest(image) {
			t.Errorf("the copy of %s is %s", image, got)
		}
	}
	if tags := w.hub.tagsOf(service.ID); !slices.Contains(tags, "release-1") {
		t.Errorf("the registry has %v", tags)
	}
	for id, want := range map[string]bool{manifest("app:1"): true, manifest("app:2"): true, "sha256:other": false} {
		if kept, err := w.Keep(t.Context(), service.ID, id); err != nil || kept != want {
			t.Errorf("%s is kept: %v, %v", id, kept, err)
		}
	}
	if strings.Contains(w.journal.text(), "password for") {
		t.Error("a credential was logged")
	}
}

func TestCopyThatFailsIsTriedAgain(t *testing.T) {
	w := start(t)
	reference := hubAddress + "/default/web:release-1"
	w.images.on(reference, making{Err: platform.Errorf(platform.Unavailable, platform.CodePushFailed, "the registry is away")})
	_, d := w.running(spec("web"), "app:1")
	w.await("a copy has failed", func() bool { return strings.Contains(w.journal.text(), "copying a release") })
	w.images.on(reference, making{})
	w.copied(d.ID)
}

// What became healthy before the process ended is copied by the next.
func TestCopyIsTakenUpAfterARestart(t *testing.T) {
	w := start(t)
	w.hub.setAway(true)
	_, d := w.running(spec("web"), "app:1")
	w.hub.setAway(false)
	w.restart()
	w.copied(d.ID)
}

// What the registry has lost is copied anew while the engine has the image.
func TestCopyThatWasLostIsMadeAgain(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	w.copied(d.ID)
	w.hub.forget(manifest("app:1"))
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy) // has the copies looked at
	w.await("the first release is copied again", func() bool {
		there, err := w.hub.Holds(t.Context(), service.ID, manifest("app:1"))
		return err == nil && there
	})
}

func TestRollbackBringsALostImageBack(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.copied(old.ID)
	w.prune("app:1")
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID})
	if !w.hub.wasTouched(manifest("app:1")) {
		t.Error("the manifest was not protected before the row referred to it")
	}
	if kept, err := w.Keep(t.Context(), service.ID, manifest("app:1")); err != nil || !kept {
		t.Errorf("the manifest is kept: %v, %v", kept, err)
	}
	d = w.become(d.ID, platform.Healthy)
	w.serves("web", "3.0")
	if d.Artifact.ManifestDigest != manifest("app:1") || d.Artifact.Digest != digest("app:1") {
		t.Errorf("the artifact is %+v", d.Artifact)
	}
	if !strings.Contains(w.story(d.ID), "bringing it back from the registry") {
		t.Errorf("the log does not say so:\n%s", w.story(d.ID))
	}
}

// An engine that goes away in the midst of it has not said that the image
// cannot be had.
func TestEngineOutageDoesNotFailARollbackThatBringsItsImageBack(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.copied(old.ID)
	w.prune("app:1")
	w.images.on("app:1", making{Err: platform.Errorf(platform.Unavailable, platform.CodeEngineUnavailable, "the engine restarts")})
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID})
	own := hubAddress + "/default/web@" + manifest("app:1")
	w.await("it was pulled in vain", func() bool { return slices.Contains(w.images.pulledAs(), own) })
	w.images.on("app:1", making{})
	w.become(d.ID, platform.Healthy)
	w.serves("web", "3.0")
}

func TestCrashedReplicaAndConfigurationBringALostImageBack(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	w.copied(d.ID)
	w.prune("app:1")
	w.engine.Kill(w.engineReplica(service.ID), 137, false)
	w.await("the replica runs again", func() bool { return slices.Equal(w.replicas(service.ID), []string{"1.0"}) })
	w.state(service.ID, platform.ServiceRunning)

	w.prune("app:1")
	config, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	w.become(config.ID, platform.Healthy)
	w.serves("web", "2.0")
}

// Bringing an image back may take longer than a replica may take to start.
func TestCandidateWaitsForItsLostImage(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	w.copied(d.ID)
	// Lost between its tag and its replicas.
	w.engine.Script(digest("app:1"), platformtest.Behavior{Missing: true})
	w.images.mu.Lock()
	w.images.pulled = func(digest string) { w.engine.Script(digest, platformtest.Behavior{}) }
	w.images.mu.Unlock()
	config, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	w.become(config.ID, platform.Healthy)
	w.serves("web", "2.0")
}

func TestLostImageThatCannotComeBackFails(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	d = w.copied(d.ID)
	w.hub.forget(d.Artifact.ManifestDigest)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Missing: true})
	config, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	config = w.become(config.ID, platform.Failed)
	if config.Error.Code != platform.CodeImageNotFound || !strings.Contains(config.Error.Message, "Deploy from source again") {
		t.Errorf("failed with %+v", config.Error)
	}
}

// The engine is asked again, too: somebody may have loaded the image by hand.
func TestLostImageOfTheActiveReleaseIsWaitedFor(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	d = w.copied(d.ID)
	w.hub.forget(d.Artifact.ManifestDigest)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Missing: true})
	w.engine.Kill(w.engineReplica(service.ID), 137, false)
	w.await("it was to be brought back", func() bool {
		return slices.Contains(w.images.pulledAs(), hubAddress+"/default/web@"+d.Artifact.ManifestDigest)
	})
	w.engine.Script(digest("app:1"), platformtest.Behavior{})
	w.state(service.ID, platform.ServiceRunning)
}

// An image that is being brought back is nobody's once its deployment is
// canceled.
func TestCancelEndsWhatBringsAnImageBack(t *testing.T) {
	w := start(t)
	service, old := w.running(spec("web"), "app:1")
	w.become(w.deploy(service.ID, "app:2").ID, platform.Healthy)
	w.copied(old.ID)
	w.prune("app:1")
	never := make(chan struct{})
	own := hubAddress + "/default/web@" + manifest("app:1")
	w.images.on("app:1", making{Hold: never})
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: old.ID})
	w.await("it is being pulled", func() bool { return slices.Contains(w.images.pulledAs(), own) })
	_, err := w.Cancel(t.Context(), d.ID, "tester")
	check(t, err)
	w.become(d.ID, platform.Canceled)
	// The next one is not held up.
	w.become(w.deploy(service.ID, "app:3").ID, platform.Healthy)
}

func TestKeepFollowsRetention(t *testing.T) {
	w := start(t, func(o *control.Options) { o.KeepReleases = 1 })
	service := w.service(spec("web"))
	for _, image := range []string{"app:1", "app:2"} {
		d, _ := w.push(service.ID, "latest", image)
		w.become(d.ID, platform.Healthy)
	}
	w.engine.Script(digest("app:3"), platformtest.Behavior{Exits: -1})
	failed, _ := w.push(service.ID, "latest", "app:3")
	w.become(failed.ID, platform.Failed)
	hold, _ := gate(t)
	w.images.on("app:4", making{Hold: hold})
	building, _ := w.push(service.ID, "latest", "app:4")
	w.become(building.ID, platform.Building)
	for image, want := range map[string]bool{"app:1": false, "app:2": true, "app:3": false, "app:4": true} {
		if kept, err := w.Keep(t.Context(), service.ID, manifest(image)); err != nil || kept != want {
			t.Errorf("%s is kept: %v, %v", image, kept, err)
		}
	}
	if kept, err := w.Keep(t.Context(), "nobody", manifest("app:2")); err != nil || kept {
		t.Errorf("of no service: %v, %v", kept, err)
	}
}

func TestJanitorRemovesCopiesOutOfRetention(t *testing.T) {
	w := start(t, func(o *control.Options) { o.KeepReleases = 1 })
	service := w.service(spec("web"))
	w.hub.knows("default/web", service.ID)
	for _, image := range []string{"app:1", "app:2"} {
		w.copied(w.become(w.deploy(service.ID, image).ID, platform.Healthy).ID)
	}
	w.hub.mu.Lock()
	w.hub.put(service.ID, "mine", "app:1") // not Denia's to remove
	w.hub.mu.Unlock()
	w.restart()
	w.await("the old copy is gone", func() bool {
		return slices.Equal(w.hub.tagsOf(service.ID), []string{"mine", "release-2"})
	})
}

func TestDeleteDropsTheRepositories(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.hub.knows("default/web", service.ID)
	never := make(chan struct{})
	w.images.on(hubAddress+"/default/web:release-1", making{Hold: never})
	w.become(w.deploy(service.ID, "app:1").ID, platform.Healthy)
	w.await("it is being copied", func() bool {
		w.images.mu.Lock()
		defer w.images.mu.Unlock()
		return len(w.images.pushes) > 0
	})
	check(t, w.DeleteService(t.Context(), service.ID, false))
	if !w.hub.wasDropped(service.ID) {
		t.Error("the repositories were not dropped")
	}
	w.await("all of it is gone", func() bool { return w.Status(service.ID).State == platform.ServiceNew })
	// The next service is copied: nothing hangs.
	_, d := w.running(spec("other"), "app:1")
	w.copied(d.ID)
}
