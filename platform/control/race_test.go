package control_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
	"github.com/denia-paas/denia/platform/store"
)

func TestNoRequestFailsThroughManyRollouts(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	var stop atomic.Bool
	var requests atomic.Int64
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for !stop.Load() {
				if status, body, err := w.try("web"); err != nil || status != http.StatusOK {
					t.Errorf("a request got %d %q, %v", status, body, err)
					return
				}
				requests.Add(1)
			}
		})
	}
	for i := range 3 {
		w.become(w.deploy(service.ID, fmt.Sprintf("app:%d", i)).ID, platform.Healthy)
		d, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"N": fmt.Sprint(i)} })
		w.become(d.ID, platform.Healthy)
		d, err := w.Restart(t.Context(), service.ID, "tester")
		check(t, err)
		w.become(d.ID, platform.Healthy)
		w.update(service.ID, func(s *platform.ServiceSpec) { s.Scale = &platform.Scale{Min: 1 + i%2, Max: 2} })
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d requests", requests.Load())
}

func TestCancelIsNeverOvertakenByPromotion(t *testing.T) {
	w := start(t)
	service, active := w.running(spec("web"), "app:1")
	promoted, canceled := 0, 0
	for i := range 6 {
		listen, listens := gate(t)
		image := fmt.Sprintf("race:%d", i)
		w.engine.Script(digest(image), platformtest.Behavior{Listen: listen})
		d := w.deploy(service.ID, image)
		w.await("the candidate runs", func() bool { return w.engine.Runs(digest(image)) == 1 })
		listens()
		if i%2 == 0 {
			w.await("it is accepting", func() bool { return w.deployment(d.ID).Status == platform.Healthy || rand.IntN(2) == 0 })
		}
		_, err := w.Cancel(t.Context(), d.ID, "tester")
		if platform.CodeOf(err) == "already_finished" {
			promoted++
			active = w.become(d.ID, platform.Healthy)
		} else {
			check(t, err)
			canceled++
			w.become(d.ID, platform.Canceled)
		}
		if got := w.reread(service.ID).ActiveDeploymentID; got != active.ID {
			t.Fatalf("round %d: the active release is not deployment %d", i, active.Number)
		}
		w.runs(service.ID, fmt.Sprintf("%d.0", active.Number))
	}
	t.Logf("%d promoted, %d canceled", promoted, canceled)
}

func TestDeleteAtAnyMomentLeavesNothing(t *testing.T) {
	w := start(t)
	w.images.on("app:1", making{Output: "fetching\n"})
	for i := range 8 {
		service := w.service(spec("web"))
		d := w.deploy(service.ID, "app:1")
		phases := []func() bool{
			func() bool { return true },
			func() bool { return w.deployment(d.ID).Status != platform.Pending },
			func() bool { return w.deployment(d.ID).Status == platform.Starting },
			func() bool { return len(w.observed(service.ID)) > 0 },
			func() bool { return w.deployment(d.ID).Status == platform.Healthy },
		}
		moment := phases[i%len(phases)]
		w.await("the moment has come", func() bool { return moment() || w.deployment(d.ID).Status == platform.Healthy })
		check(t, w.DeleteService(t.Context(), service.ID, false))
		w.await("its supervisor is gone", func() bool { return w.Status(service.ID).State == platform.ServiceNew })
		w.runs(service.ID)
	}
}

func TestConfigurationSurvivesChangesAndDeploymentsAtOnce(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			for n := range 5 {
				row, err := w.store.Service(t.Context(), service.ID)
				if err != nil {
					t.Error(err)
					return
				}
				row.Env = platform.Env{"N": fmt.Sprint(i, n)}
				if _, err := w.store.UpdateService(t.Context(), service.ID, row.ServiceSpec, 0); err != nil {
					t.Error(err)
				}
				if _, _, err := w.Apply(t.Context(), service.ID, "tester"); err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for n := range 3 {
				source := platform.Source{Type: platform.SourceExternalImage, Image: fmt.Sprintf("app:%d", n)}
				if _, err := w.Deploy(t.Context(), platform.DeployRequest{ServiceID: service.ID, Source: &source, Trigger: platform.TriggerAPI}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	w.settled(service.ID)
}

// settled waits until nothing is under way, and checks that what runs is what
// the rows say.
func (w *world) settled(id platform.ID) {
	w.t.Helper()
	w.await("nothing is under way", func() bool {
		unfinished, err := w.store.UnfinishedOf(w.t.Context(), id)
		check(w.t, err)
		return len(unfinished) == 0
	})
	row := w.reread(id)
	project, err := w.store.Project(w.t.Context(), row.ProjectID)
	check(w.t, err)
	active := w.deployment(row.ActiveDeploymentID)
	if want := platform.Freeze(project, row); !reflect.DeepEqual(active.Config.Env, want.Env) && len(active.Config.Env)+len(want.Env) > 0 {
		w.t.Errorf("deployment %d runs with %v, the service has %v", active.Number, active.Config.Env, want.Env)
	}
	var labels []string
	for i := range row.WithDefaults().Scale.Min {
		labels = append(labels, fmt.Sprintf("%d.%d", active.Number, i))
	}
	w.runs(id, labels...)
	w.state(id, platform.ServiceRunning)
	list, _, err := w.store.Deployments(w.t.Context(), id, store.Page{Limit: 200})
	check(w.t, err)
	for _, d := range list {
		if serving := d.Status == platform.Healthy || d.Status == platform.Stopped; serving != (d.ID == active.ID) {
			w.t.Errorf("deployment %d is %s, the active one is %d", d.Number, d.Status, active.Number)
		}
	}
}

func TestEverythingAtOnceSettles(t *testing.T) {
	w := start(t)
	for _, text := range []string{"looking at service", "tagging an image", "sweeping replicas", "listing replicas"} {
		w.journal.expect(text)
	}
	w.engine.Script(digest("bad:1"), platformtest.Behavior{Exits: -1, ExitCode: 1})
	w.engine.Script(digest("deaf:1"), platformtest.Behavior{Deaf: true})
	var services []platform.ID
	for _, name := range []string{"a", "b"} {
		service, _ := w.running(spec(name), "app:1")
		services = append(services, service.ID)
	}
	images := []string{"app:1", "app:2", "app:3", "bad:1", "deaf:1"}
	ctx := t.Context()
	var all sync.WaitGroup
	for seed := range 4 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), 7))
			for range 16 {
				id := services[random.IntN(len(services))]
				var err error
				switch random.IntN(9) {
				case 0, 1:
					source := platform.Source{Type: platform.SourceExternalImage, Image: images[random.IntN(len(images))]}
					_, err = w.Deploy(ctx, platform.DeployRequest{ServiceID: id, Source: &source, Trigger: platform.TriggerAPI})
				case 2:
					_, err = w.Restart(ctx, id, "tester")
				case 3:
					err = w.SetStopped(ctx, id, true, "tester")
				case 4:
					err = w.SetStopped(ctx, id, false, "tester")
				case 5:
					if latest, ok, _ := w.store.LatestOf(ctx, id); ok {
						_, err = w.Cancel(ctx, latest.ID, "tester")
					}
				case 6:
					row, _ := w.store.Service(ctx, id)
					row.Env, row.Scale = platform.Env{"N": fmt.Sprint(seed, random.Int())}, &platform.Scale{Min: 1 + random.IntN(2), Max: 2}
					if _, err = w.store.UpdateService(ctx, id, row.ServiceSpec, 0); err == nil {
						_, _, err = w.Apply(ctx, id, "tester")
					}
				case 7:
					if list, err := w.engine.Replicas(ctx, id); err == nil && len(list) > 0 {
						w.engine.Kill(list[random.IntN(len(list))].ID, 1, false)
					}
				case 8:
					w.engine.Down(random.IntN(3) == 0)
				}
				if err != nil && platform.KindOf(err) != platform.Conflict {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	w.engine.Down(false)
	w.restart()
	for _, id := range services {
		list, err := w.store.UnfinishedOf(ctx, id)
		check(t, err)
		for _, d := range slices.Backward(list) {
			if _, err := w.Cancel(ctx, d.ID, "tester"); platform.KindOf(err) != platform.Conflict {
				check(t, err)
			}
		}
		w.become(w.deploy(id, "app:4").ID, platform.Healthy)
		w.settled(id)
	}
}
