package store_test

import (
	"context"
	"sync"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestClaimBuild_NoDeploymentTwice(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		const services = 20
		project := defaultProject(t, s).ID
		for i := range services {
			deploy(t, s, service(t, s, project, "s"+string(rune('a'+i))).ID)
		}
		var mu sync.Mutex
		claimed := map[platform.ID]bool{}
		for _, err := range together(8, func(int) error {
			for {
				d, ok, err := s.ClaimBuild(context.Background())
				if err != nil || !ok {
					return err
				}
				mu.Lock()
				if claimed[d.ID] || d.Status != platform.Building || d.StartedAt == nil {
					t.Errorf("claimed %+v, before: %v", d, claimed[d.ID])
				}
				claimed[d.ID] = true
				mu.Unlock()
			}
		}) {
			ok(t, err)
		}
		equal(t, "claimed", len(claimed), services)
	})
}

func TestClaimBuild_OldestFirstOneAService(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		web, api := anyService(t, s), service(t, s, defaultProject(t, s).ID, "api")
		first := deploy(t, s, web.ID)
		claim := func(want platform.ID) {
			t.Helper()
			d, found := get2(s.ClaimBuild(t.Context())).or(t)
			equal(t, "found", found, want != "")
			equal(t, "claimed", d.ID, want)
		}
		claim(first.ID)
		second := deploy(t, s, web.ID)
		claim("") // the service is busy
		other := deploy(t, s, api.ID)
		claim(other.ID)
		get(s.Advance(t.Context(), first.ID, platform.Building, platform.Starting, nil)).or(t)
		claim("")
		_, err := s.Advance(t.Context(), second.ID, platform.Pending, platform.Starting, nil)
		fails(t, err, platform.Conflict, "deployment_under_way")
		get2(s.Promote(t.Context(), first.ID)).or(t)
		claim(second.ID)
	})
}

func TestClaimBuild_LeavesRedeploymentsAlone(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		live := release(t, s, v.ID)
		again := pending(v.ID)
		again.Source = platform.Source{Type: platform.SourceRedeploy, DeploymentID: live.ID}
		d, _ := get2(s.CreateDeployment(t.Context(), again)).or(t)
		_, found := get2(s.ClaimBuild(t.Context())).or(t)
		equal(t, "found", found, false)
		d = get(s.Advance(t.Context(), d.ID, platform.Pending, platform.Starting, nil)).or(t)
		if d.StartedAt == nil {
			t.Error("it has no start")
		}
	})
}

func TestRefreeze_ChangesWhatHasNotStarted(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		config := platform.ReleaseConfig{RunSpec: platform.RunSpec{Port: 9, SecretEnv: platform.Env{"A": "new"}}}
		refreeze := func(want platform.ID) {
			t.Helper()
			d, found := get2(s.Refreeze(t.Context(), v.ID, config)).or(t)
			equal(t, "found", found, want != "")
			equal(t, "refrozen", d.ID, want)
			if found {
				stored := get(s.Deployment(t.Context(), want)).or(t)
				same(t, "config", *stored.Config, config)
				same(t, "returned", d, stored)
			}
		}
		refreeze("")
		live := release(t, s, v.ID)
		refreeze("")
		waiting := deploy(t, s, v.ID)
		refreeze(waiting.ID)
		get(s.Advance(t.Context(), waiting.ID, platform.Pending, platform.Building, nil)).or(t)
		refreeze(waiting.ID)
		back := pending(v.ID)
		back.Source = platform.Source{Type: platform.SourceRedeploy, DeploymentID: live.ID}
		get2(s.CreateDeployment(t.Context(), back)).or(t)
		refreeze(waiting.ID) // a roll-back keeps its configuration
		get(s.RequestCancel(t.Context(), waiting.ID)).or(t)
		refreeze("")
	})
}

func TestAdvance(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		d := deploy(t, s, v.ID)
		d = get(s.Advance(t.Context(), d.ID, platform.Pending, platform.Building, func(d *platform.Deployment) {
			d.Phases = append(d.Phases, platform.Phase{Name: "build", StartedAt: d.CreatedAt})
			d.Number, d.Actor = 99, "nobody"
		})).or(t)
		equal(t, "status", d.Status, platform.Building)
		equal(t, "phase", d.Phases[0].Name, "build")
		equal(t, "number", d.Number, 1)
		equal(t, "actor", d.Actor, "ann")
		if d.StartedAt == nil || d.FinishedAt != nil {
			t.Errorf("started at %v, finished at %v", d.StartedAt, d.FinishedAt)
		}
		_, err := s.Advance(t.Context(), d.ID, platform.Pending, platform.Building, nil)
		fails(t, err, platform.Conflict, "status_changed")
		exit := 137
		failure := &platform.DeploymentError{Code: platform.CodeOutOfMemory, Message: "m", Evidence: &platform.Evidence{
			ExitCode: &exit, OOMKilled: true, LastProbe: "503", LogTail: []string{"bad \x00 \xff bytes", "l2"},
		}}
		d = get(s.Advance(t.Context(), d.ID, platform.Building, platform.Failed, func(d *platform.Deployment) { d.Error = failure })).or(t)
		equal(t, "status", d.Status, platform.Failed)
		equal(t, "exit code", *d.Error.Evidence.ExitCode, 137)
		equal(t, "log tail", d.Error.Evidence.LogTail[0], "bad \x00 \uFFFD bytes")
		if d.FinishedAt == nil {
			t.Error("it has no end")
		}
		for _, bad := range [][2]platform.Status{
			{platform.Failed, platform.Building}, {platform.Starting, platform.Healthy}, {platform.Healthy, platform.Inactive}, {platform.Building, platform.Pending},
		} {
			if _, err := s.Advance(t.Context(), d.ID, bad[0], bad[1], nil); err == nil || platform.KindOf(err) != platform.Internal {
				t.Errorf("%s to %s: %v", bad[0], bad[1], err)
			}
		}
		_, err = s.Advance(t.Context(), store.NewID(), platform.Pending, platform.Building, nil)
		notFound(t, err)

		d = deploy(t, s, v.ID)
		won := together(6, func(i int) error {
			_, err := s.Advance(context.Background(), d.ID, platform.Pending, []platform.Status{platform.Building, platform.Failed, platform.Canceled}[i%3], nil)
			return err
		})
		oneWins(t, won, platform.Conflict, "status_changed")
	})
}

func TestPromote_SwapsTheActiveRelease(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		first, previous := get2(s.Promote(t.Context(), build(t, s, v.ID).ID)).or(t)
		equal(t, "previous", previous, "")
		equal(t, "status", first.Status, platform.Healthy)
		if first.FinishedAt == nil || first.Artifact == nil {
			t.Errorf("it finished at %v with %v", first.FinishedAt, first.Artifact)
		}
		for _, stopped := range []bool{false, true} {
			ok(t, s.MarkStopped(t.Context(), v.ID, stopped))
			before := get(s.Service(t.Context(), v.ID)).or(t).ActiveDeploymentID
			second, previous := get2(s.Promote(t.Context(), build(t, s, v.ID).ID)).or(t)
			equal(t, "previous", previous, before)
			equal(t, "old status", get(s.Deployment(t.Context(), before)).or(t).Status, platform.Inactive)
			equal(t, "active", get(s.Service(t.Context(), v.ID)).or(t).ActiveDeploymentID, second.ID)
		}
		_, _, err := s.Promote(t.Context(), first.ID)
		fails(t, err, platform.Conflict, "status_changed")
		_, _, err = s.Promote(t.Context(), store.NewID())
		notFound(t, err)

		// A cancel that was accepted is not overtaken.
		d := build(t, s, v.ID)
		get(s.RequestCancel(t.Context(), d.ID)).or(t)
		_, _, err = s.Promote(t.Context(), d.ID)
		fails(t, err, platform.Conflict, "cancel_requested")
		get(s.Advance(t.Context(), d.ID, platform.Starting, platform.Canceled, nil)).or(t)
		d = build(t, s, v.ID)
		oneWins(t, together(4, func(int) error {
			_, _, err := s.Promote(context.Background(), d.ID)
			return err
		}), platform.Conflict, "status_changed")
	})
}

func TestMarkStopped(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		ok(t, s.MarkStopped(t.Context(), v.ID, true)) // never deployed
		d := release(t, s, v.ID)
		for _, step := range []struct {
			stopped bool
			want    platform.Status
		}{{true, platform.Stopped}, {true, platform.Stopped}, {false, platform.Healthy}, {false, platform.Healthy}} {
			ok(t, s.MarkStopped(t.Context(), v.ID, step.stopped))
			equal(t, "status", get(s.Deployment(t.Context(), d.ID)).or(t).Status, step.want)
		}
	})
}

func TestRequestCancel(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		d := get(s.RequestCancel(t.Context(), deploy(t, s, v.ID).ID)).or(t)
		equal(t, "status of a pending one", d.Status, platform.Canceled)
		equal(t, "code", d.Error.Code, platform.CodeCanceled)
		if d.FinishedAt == nil {
			t.Error("it has no end")
		}
		_, err := s.RequestCancel(t.Context(), d.ID)
		fails(t, err, platform.Conflict, "already_finished")

		d = deploy(t, s, v.ID)
		get(s.Advance(t.Context(), d.ID, platform.Pending, platform.Building, nil)).or(t)
		for range 2 { // asking again is no error
			d = get(s.RequestCancel(t.Context(), d.ID)).or(t)
			equal(t, "status of a building one", d.Status, platform.Building)
			equal(t, "asked for", d.CancelRequested, true)
		}
		d = get(s.Advance(t.Context(), d.ID, platform.Building, platform.Canceled, func(d *platform.Deployment) {
			d.CancelRequested = false
			d.Error = &platform.DeploymentError{Code: platform.CodeCanceled, Message: "by ann"}
		})).or(t)
		equal(t, "asked for", d.CancelRequested, true)
		_, err = s.RequestCancel(t.Context(), release(t, s, v.ID).ID)
		fails(t, err, platform.Conflict, "already_finished")
		_, err = s.RequestCancel(t.Context(), store.NewID())
		notFound(t, err)

		// A cancel races with the builder: either may win, nothing in between.
		for range 5 {
			d := deploy(t, s, v.ID)
			for _, err := range together(2, func(i int) (err error) {
				if i == 0 {
					_, err = s.RequestCancel(context.Background(), d.ID)
				} else {
					_, _, err = s.ClaimBuild(context.Background())
				}
				return err
			}) {
				ok(t, err)
			}
			d = get(s.Deployment(t.Context(), d.ID)).or(t)
			if canceled := d.Status == platform.Canceled; canceled == d.CancelRequested {
				t.Errorf("it is %s, cancel requested: %v", d.Status, d.CancelRequested)
			}
			if d.Status == platform.Building {
				get(s.Advance(t.Context(), d.ID, platform.Building, platform.Canceled, nil)).or(t)
			}
		}
	})
}
