package control_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
)

func TestDeploymentBecomesHealthyAndServes(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	if got := w.Status(service.ID).State; got != platform.ServiceNew {
		t.Errorf("before its first deployment the service is %s", got)
	}
	changes, unsubscribe := w.Subscribe(service.ID)
	defer unsubscribe()
	d := w.deploy(service.ID, "app:1")
	if d.Number != 1 || d.Status != platform.Pending {
		t.Errorf("created as %+v", d)
	}
	d = w.become(d.ID, platform.Healthy)
	<-changes
	w.state(service.ID, platform.ServiceRunning)
	w.serves("web", "1.0")
	if got := w.Status(service.ID).Replicas; got != (platform.Replicas{Ready: 1, Desired: 1}) {
		t.Errorf("replicas are %+v", got)
	}
	if w.reread(service.ID).ActiveDeploymentID != d.ID || d.FinishedAt == nil || d.Error != nil {
		t.Errorf("the active release is not %+v", d)
	}
	var phases []string
	for _, p := range d.Phases {
		phases = append(phases, p.Name)
		if p.FinishedAt == nil {
			t.Errorf("phase %s has no end", p.Name)
		}
	}
	if !slices.Equal(phases, []string{"pull", "start"}) {
		t.Errorf("the phases are %v", phases)
	}
	if got := w.reread(service.ID).Source; got == nil || got.Image != "app:1" {
		t.Errorf("the service keeps the source %+v", got)
	}
	w.await("the output is collected", func() bool { return strings.Contains(w.log("services/"+string(service.ID)), "serving") })
	if log := w.story(d.ID); !strings.Contains(log, "image denia/default/web:1 ready") || !strings.HasSuffix(log, "requests go to deployment 1 now\n") {
		t.Errorf("the deployment log is\n%s", log)
	}
}

func TestOldReleaseServesUntilTheNewIsReadyThenDrains(t *testing.T) {
	w := start(t)
	held, release := gate(t)
	arrived := make(chan struct{}, 1)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.UserAgent() != "Denia-Health/1" && r.Method == http.MethodGet && r.Header.Get("Slow") != "" {
			arrived <- struct{}{}
			<-held
		}
		_, _ = io.WriteString(rw, "old")
	})})
	service, old := w.running(spec("web"), "app:1")

	listen, listens := gate(t)
	w.engine.Script(digest("app:2"), platformtest.Behavior{Listen: listen})
	d := w.deploy(service.ID, "app:2")
	w.await("both run", func() bool { return len(w.replicas(service.ID)) == 2 })
	w.serves("web", "old")

	answer := make(chan string, 1)
	go func() {
		req, _ := http.NewRequest(http.MethodGet, w.server.URL, nil)
		req.Host = "web.localhost"
		req.Header.Set("Slow", "yes")
		res, err := w.client.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		answer <- string(body)
	}()
	<-arrived
	listens()
	w.become(d.ID, platform.Healthy)
	w.await("requests go to the new one", func() bool { _, body := w.get("web"); return body == "2.0" })
	if got := w.deployment(old.ID).Status; got != platform.Inactive {
		t.Errorf("the old release is %s", got)
	}
	if got := w.replicas(service.ID); !slices.Equal(got, []string{"1.0", "2.0"}) {
		t.Errorf("with a request in flight on the old one %v run", got)
	}
	release()
	if got := <-answer; got != "old" {
		t.Errorf("the request in flight got %q", got)
	}
	w.runs(service.ID, "2.0")
}

func TestFailedCandidateTellsWhyAndLeavesTheOldAlone(t *testing.T) {
	for name, test := range map[string]struct {
		behavior platformtest.Behavior
		soon     bool // the start period is short
		code     string
		message  string
		evidence func(*platform.Evidence) bool
	}{
		"exits twice": {
			behavior: platformtest.Behavior{Exits: -1, ExitCode: 3, Output: []string{"no database at db:5432"}},
			code:     platform.CodeContainerExited, message: "exit code 3",
			evidence: func(e *platform.Evidence) bool {
				return *e.ExitCode == 3 && !e.OOMKilled && slices.Contains(e.LogTail, "no database at db:5432")
			},
		},
		"out of memory": {
			behavior: platformtest.Behavior{Exits: -1, OOM: true},
			code:     platform.CodeOutOfMemory, message: "512.0 MiB",
			evidence: func(e *platform.Evidence) bool { return e.OOMKilled },
		},
		"killed, the engine does not know why": {
			behavior: platformtest.Behavior{Exits: -1, ExitCode: 137},
			code:     platform.CodeContainerExited, message: "perhaps at its memory limit of 512.0 MiB",
			evidence: func(e *platform.Evidence) bool { return *e.ExitCode == 137 },
		},
		"does not listen": {
			behavior: platformtest.Behavior{Deaf: true}, soon: true,
			code: platform.CodePortNotListening, message: "$PORT",
			evidence: func(e *platform.Evidence) bool {
				return strings.Contains(e.LastProbe, "refused") && slices.Contains(e.LogTail, "serving")
			},
		},
		"fails its health check": {
			behavior: platformtest.Behavior{Handler: http.NotFoundHandler()}, soon: true,
			code: platform.CodeHealthCheckFailed, message: "answered 404",
			evidence: func(e *platform.Evidence) bool { return strings.HasPrefix(e.LastProbe, "status 404") },
		},
		"cannot be started": {
			behavior: platformtest.Behavior{Fail: platform.Errorf(platform.Unavailable, platform.CodeStartFailed, "no such command: serve")},
			code:     platform.CodeStartFailed, message: "No such command",
		},
		"has lost its image": {
			behavior: platformtest.Behavior{Missing: true},
			code:     platform.CodeImageNotFound, message: "image",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			service, old := w.running(spec("web"), "app:1")
			before := w.observed(service.ID)
			if test.soon {
				row := w.reread(service.ID)
				row.HealthCheck.StartPeriodS = 1
				_, err := w.store.UpdateService(t.Context(), service.ID, row.ServiceSpec, 0)
				check(t, err)
			}
			w.engine.Script(digest("app:2"), test.behavior)
			d := w.become(w.deploy(service.ID, "app:2").ID, platform.Failed)
			if d.Error == nil || d.Error.Code != test.code || !strings.Contains(d.Error.Message, test.message) {
				t.Fatalf("failed with %+v", d.Error)
			}
			if test.evidence != nil && (d.Error.Evidence == nil || !test.evidence(d.Error.Evidence)) {
				t.Errorf("the evidence is %+v", d.Error.Evidence)
			}
			if log := w.story(d.ID); !strings.Contains(log, "failed: "+d.Error.Message) {
				t.Errorf("the log does not say why:\n%s", log)
			}
			w.runs(service.ID, "1.0")
			w.serves("web", "1.0")
			if after := w.observed(service.ID); after[0] != before[0] {
				t.Errorf("the old replica was %+v, is %+v", before[0], after[0])
			}
			if got := w.deployment(old.ID).Status; got != platform.Healthy || w.reread(service.ID).ActiveDeploymentID != old.ID {
				t.Errorf("the old release is %s", got)
			}
			w.state(service.ID, platform.ServiceRunning)
		})
	}
}

func TestCandidateThatEndsOnceIsStartedAgain(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: 1, ExitCode: 1})
	w.become(w.deploy(service.ID, "app:1").ID, platform.Healthy)
	if got := w.engine.Runs(digest("app:1")); got != 2 {
		t.Errorf("it ran %d times", got)
	}
}

func TestFirstReleaseThatFailsLeavesTheServiceFailed(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	w.engine.Script(digest("app:1"), platformtest.Behavior{Exits: -1, ExitCode: 1})
	w.become(w.deploy(service.ID, "app:1").ID, platform.Failed)
	w.state(service.ID, platform.ServiceFailed)
	w.runs(service.ID)
	if status, _ := w.get("web"); status != http.StatusServiceUnavailable {
		t.Errorf("it answers %d", status)
	}
}

func TestFirstDeploymentShowsAsDeployingWhileItWaitsItsTurn(t *testing.T) {
	w := start(t)
	hold, release := gate(t)
	w.images.on("slow:1", making{Hold: hold})
	other := w.service(spec("other"))
	slow := w.deploy(other.ID, "slow:1")
	w.become(slow.ID, platform.Building)
	service := w.service(spec("web"))
	d := w.deploy(service.ID, "app:1")
	w.state(service.ID, platform.ServiceDeploying)
	answer := make(chan int, 1)
	go func() {
		status, _, _ := w.try("web")
		answer <- status
	}()
	w.await("the request waits", func() bool { return w.options.Ingress.Status(service.ID).Waiting == 1 })
	release()
	w.become(d.ID, platform.Healthy)
	if got := <-answer; got != http.StatusOK {
		t.Errorf("the request that waited got %d", got)
	}
	w.become(slow.ID, platform.Healthy)
}

func TestNewerDeploymentSupersedesOneThatWaits(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.images.on("app:1", making{Hold: hold})
	first := w.deploy(service.ID, "app:1")
	w.become(first.ID, platform.Building)
	second, third := w.deploy(service.ID, "app:2"), w.deploy(service.ID, "app:3")
	got := w.deployment(second.ID)
	if got.Status != platform.Canceled || got.Error.Code != platform.CodeSuperseded {
		t.Errorf("the second is %s: %+v", got.Status, got.Error)
	}
	if w.engine.Runs(digest("app:1")) != 0 {
		t.Error("the first runs already")
	}
	release()
	w.become(third.ID, platform.Healthy)
	w.runs(service.ID, "3.0")
	if got := w.deployment(first.ID).Status; got != platform.Inactive {
		t.Errorf("the first is %s", got)
	}
}

func TestScalingUpAndDownDrainsTheSurplusFirst(t *testing.T) {
	w := start(t)
	held, release := gate(t)
	arrived := make(chan struct{}, 8)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "Denia-Health/1" {
			return
		}
		arrived <- struct{}{}
		<-held
	})})
	service, active := w.running(spec("web"), "app:1")
	scale := func(n int) {
		if _, made := w.update(service.ID, func(s *platform.ServiceSpec) { s.Scale = &platform.Scale{Min: n, Max: n} }); made {
			t.Error("scaling made a deployment")
		}
	}
	scale(3)
	w.await("three are ready", func() bool { return w.Status(service.ID).Replicas == platform.Replicas{Ready: 3, Desired: 3} })
	w.runs(service.ID, "1.0", "1.1", "1.2")

	var answers [3]chan int
	for i := range answers {
		answers[i] = make(chan int, 1)
		go func() {
			status, _, _ := w.try("web")
			answers[i] <- status
		}()
		<-arrived // the next one goes to another replica: this has the load
	}
	scale(1)
	w.await("two drain", func() bool {
		draining := 0
		for _, target := range w.options.Ingress.Status(service.ID).Targets {
			if target.Draining {
				draining++
			}
		}
		return draining == 2
	})
	// A crash of the one that stays must not cost the ones that drain.
	w.engine.Kill(w.observed(service.ID)[0].ID, 1, false)
	w.await("it was started again", func() bool { return w.engine.Runs(digest("app:1")) == 4 })
	if got := w.replicas(service.ID); len(got) != 3 {
		t.Errorf("while two drain %v run", got)
	}
	release()
	answered := 0
	for _, answer := range answers {
		if <-answer == http.StatusOK {
			answered++
		}
	}
	if answered < 2 {
		t.Errorf("only %d of the drained requests were answered", answered)
	}
	w.runs(service.ID, "1.0")
	if got := w.reread(service.ID).ActiveDeploymentID; got != active.ID {
		t.Errorf("the active release is %s", got)
	}
}

func TestEveryReplicaMustBeReadyBeforeTheRelease(t *testing.T) {
	w := start(t)
	two := spec("web")
	two.Scale = &platform.Scale{Min: 2, Max: 2}
	service := w.service(two)
	listen, listens := gate(t)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Listen: listen})
	d := w.deploy(service.ID, "app:1")
	w.runs(service.ID, "1.0", "1.1")
	if got := w.deployment(d.ID).Status; got != platform.Starting {
		t.Errorf("the deployment is %s", got)
	}
	listens()
	w.become(d.ID, platform.Healthy)
	w.state(service.ID, platform.ServiceRunning)
	w.engine.Script(digest("app:1"), platformtest.Behavior{Listen: make(chan struct{})})
	w.engine.Kill(w.observed(service.ID)[1].ID, 1, false)
	w.state(service.ID, platform.ServiceDegraded)
}
