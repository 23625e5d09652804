package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestDeployments_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		spec := fullSpec()
		wanted := pending(v.ID)
		wanted.Source, wanted.Config = *spec.Source, &platform.ReleaseConfig{RunSpec: spec.RunSpec}
		d, superseded := get2(s.CreateDeployment(t.Context(), wanted)).or(t)
		equal(t, "superseded", len(superseded), 0)
		same(t, "created", d, platform.Deployment{
			ID: d.ID, ServiceID: v.ID, Number: 1, Status: platform.Pending, Trigger: platform.TriggerAPI, Actor: "ann",
			Source: wanted.Source, Config: wanted.Config, CreatedAt: d.CreatedAt, Phases: []platform.Phase{},
		})
		same(t, "read", get(s.Deployment(t.Context(), d.ID)).or(t), d)

		begun := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.FixedZone("", 3600))
		ok(t, s.SavePhases(t.Context(), d.ID, []platform.Phase{{Name: "build", StartedAt: begun, FinishedAt: &begun}}))
		phases := get(s.Deployment(t.Context(), d.ID)).or(t).Phases
		equal(t, "phases", len(phases), 1)
		equal(t, "phase began", phases[0].StartedAt.Format(time.RFC3339Nano), "2026-01-02T02:04:05Z")

		_, err := s.Deployment(t.Context(), store.NewID())
		notFound(t, err)
		notFound(t, s.SavePhases(t.Context(), store.NewID(), nil))
		_, _, err = s.CreateDeployment(t.Context(), pending(store.NewID()))
		notFound(t, err)
		wanted.Status = platform.Healthy
		if _, _, err = s.CreateDeployment(t.Context(), wanted); err == nil {
			t.Error("a deployment was born healthy")
		}
	})
}

func TestDeployments_NumbersHaveNoGaps(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		web, api := anyService(t, s), service(t, s, defaultProject(t, s).ID, "api")
		const each = 5
		for _, err := range together(8, func(i int) error {
			for range each {
				wanted := pending([]platform.ID{web.ID, api.ID}[i%2])
				if i == 2 { // one that fails takes no number
					wanted.Source = platform.Source{Type: platform.SourceUpload, UploadID: store.NewID()}
					if _, _, err := s.CreateDeployment(context.Background(), wanted); platform.KindOf(err) != platform.NotFound {
						return err
					}
					continue
				}
				if _, _, err := s.CreateDeployment(context.Background(), wanted); err != nil {
					return err
				}
			}
			return nil
		}) {
			ok(t, err)
		}
		for id, count := range map[platform.ID]int{web.ID: 3 * each, api.ID: 4 * each} {
			list, _ := get2(s.Deployments(t.Context(), id, store.Page{})).or(t)
			equal(t, "deployments", len(list), count)
			for i, d := range list {
				equal(t, "number", d.Number, count-i)
				want := platform.Canceled
				if i == 0 {
					want = platform.Pending
				}
				equal(t, "status", d.Status, want)
			}
		}
	})
}

func TestDeployments_NewerSupersedesOlderPending(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v, other := anyService(t, s), service(t, s, defaultProject(t, s).ID, "other")
		stranger := deploy(t, s, other.ID)
		building := deploy(t, s, v.ID)
		get(s.Advance(t.Context(), building.ID, platform.Pending, platform.Building, nil)).or(t)
		second := deploy(t, s, v.ID)
		third, superseded := get2(s.CreateDeployment(t.Context(), pending(v.ID))).or(t)
		if !slices.Equal(superseded, []platform.ID{second.ID}) {
			t.Errorf("superseded %v, want %v", superseded, second.ID)
		}
		second = get(s.Deployment(t.Context(), second.ID)).or(t)
		equal(t, "status", second.Status, platform.Canceled)
		equal(t, "code", second.Error.Code, platform.CodeSuperseded)
		if second.FinishedAt == nil || second.Error.Message == "" {
			t.Errorf("it ended at %v with %q", second.FinishedAt, second.Error.Message)
		}
		unfinished := get(s.Unfinished(t.Context())).or(t)
		equal(t, "unfinished", names(unfinished, deploymentID), names([]platform.Deployment{stranger, building, third}, deploymentID))
		unfinished = get(s.UnfinishedOf(t.Context(), v.ID)).or(t)
		equal(t, "unfinished of one", names(unfinished, deploymentID), names([]platform.Deployment{building, third}, deploymentID))
	})
}

func deploymentID(d platform.Deployment) string { return string(d.ID) }

func TestDeployments_Lists(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		_, found := get2(s.LatestOf(t.Context(), v.ID)).or(t)
		equal(t, "found a latest", found, false)
		for range 3 {
			release(t, s, v.ID)
		}
		failed := deploy(t, s, v.ID)
		get(s.Advance(t.Context(), failed.ID, platform.Pending, platform.Failed, nil)).or(t)
		last := deploy(t, s, v.ID)

		first, next := get2(s.Deployments(t.Context(), v.ID, store.Page{Limit: 2})).or(t)
		deploy(t, s, v.ID) // a newer one shifts nothing
		second, next := get2(s.Deployments(t.Context(), v.ID, store.Page{Limit: 2, Cursor: next})).or(t)
		third, next := get2(s.Deployments(t.Context(), v.ID, store.Page{Limit: 2, Cursor: next})).or(t)
		var numbers []int
		for _, d := range slices.Concat(first, second, third) {
			numbers = append(numbers, d.Number)
		}
		if !slices.Equal(numbers, []int{5, 4, 3, 2, 1}) || next != "" {
			t.Errorf("pages gave %v and cursor %q", numbers, next)
		}
		latest, found := get2(s.LatestOf(t.Context(), v.ID)).or(t)
		equal(t, "latest", latest.Number, last.Number+1)
		equal(t, "found", found, true)
		var history []int
		for _, d := range get(s.HealthyHistory(t.Context(), v.ID, 2)).or(t) {
			history = append(history, d.Number)
		}
		if !slices.Equal(history, []int{3, 2}) {
			t.Errorf("healthy history is %v", history)
		}
		ok(t, s.MarkStopped(t.Context(), v.ID, true))
		equal(t, "history of a stopped service", len(get(s.HealthyHistory(t.Context(), v.ID, 9)).or(t)), 3)
		equal(t, "no history", len(get(s.HealthyHistory(t.Context(), v.ID, 0)).or(t)), 0)
	})
}

func TestUploads_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		u := upload(t, s, v.ID, time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond))
		same(t, "upload", get(s.Upload(t.Context(), u.ID)).or(t), u)
		second := upload(t, s, v.ID, u.ExpiresAt)
		if ids := get(s.UploadIDs(t.Context())).or(t); !slices.Equal(ids, []platform.ID{u.ID, second.ID}) {
			t.Errorf("ids are %v", ids)
		}
		ok(t, s.DeleteUpload(t.Context(), u.ID))
		ok(t, s.DeleteUpload(t.Context(), u.ID))
		_, err := s.Upload(t.Context(), u.ID)
		notFound(t, err)
		u.ServiceID = store.NewID()
		notFound(t, s.CreateUpload(t.Context(), u))
	})
}

func TestUploads_AreUsedOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v, other := anyService(t, s), service(t, s, defaultProject(t, s).ID, "other")
		use := func(service, upload platform.ID) error {
			wanted := pending(service)
			wanted.Source = platform.Source{Type: platform.SourceUpload, UploadID: upload}
			_, _, err := s.CreateDeployment(context.Background(), wanted)
			return err
		}
		u := upload(t, s, v.ID, time.Now().Add(time.Hour))
		notFound(t, use(other.ID, u.ID))
		oneWins(t, together(6, func(int) error { return use(v.ID, u.ID) }), platform.Conflict, "upload_used")
		latest, _ := get2(s.LatestOf(t.Context(), v.ID)).or(t)
		equal(t, "number", latest.Number, 1)
		equal(t, "used by", get(s.Upload(t.Context(), u.ID)).or(t).DeploymentID, latest.ID)
		notFound(t, use(v.ID, upload(t, s, v.ID, time.Now().Add(-time.Second)).ID))
		notFound(t, use(v.ID, store.NewID()))
		latest = get(s.Deployment(t.Context(), latest.ID)).or(t)
		equal(t, "status after failed successors", latest.Status, platform.Pending)
	})
}

func TestUploads_ExpireUnusedOrFinished(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		now := time.Now()
		used := upload(t, s, v.ID, now.Add(time.Hour))
		stale, fresh := upload(t, s, v.ID, now.Add(-2*time.Hour)), upload(t, s, v.ID, now.Add(time.Hour))
		wanted := pending(v.ID)
		wanted.Source = platform.Source{Type: platform.SourceUpload, UploadID: used.ID}
		d, _ := get2(s.CreateDeployment(t.Context(), wanted)).or(t)
		expired := func(at time.Time) string {
			return names(get(s.ExpiredUploads(t.Context(), at)).or(t), func(u platform.Upload) string { return string(u.ID) })
		}
		equal(t, "expired", expired(now), string(stale.ID))
		equal(t, "expired later", expired(now.Add(2*time.Hour)), string(stale.ID)+" "+string(fresh.ID))
		get(s.RequestCancel(t.Context(), d.ID)).or(t)
		equal(t, "expired after the deployment", expired(now), string(stale.ID)+" "+string(used.ID))
	})
}
