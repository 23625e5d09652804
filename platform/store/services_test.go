package store_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func fullSpec() platform.ServiceSpec {
	grace := 3
	return platform.ServiceSpec{
		Name: "web",
		Source: &platform.Source{Type: platform.SourceUpload, Dockerfile: "D", Context: "c", Build: &platform.BuildOptions{
			Args: platform.Env{"A": "1"}, Target: "t", Secrets: platform.Env{"S": "2"},
		}},
		RunSpec: platform.RunSpec{
			Port: 1234, Protocol: platform.ProtocolH2C, Command: []string{"a", ""}, Entrypoint: []string{"b"}, User: "u",
			Env: platform.Env{"E": "3"}, SecretEnv: platform.Env{"F": "4"},
			HealthCheck: &platform.HealthCheck{Type: platform.HealthTCP, IntervalS: 7},
			Resources:   platform.Resources{CPUMillis: 5}, Volumes: []platform.Volume{{Name: "v", Path: "/v", ReadOnly: true}}, StopGraceS: &grace,
		},
		Scale: &platform.Scale{Min: 2, Max: 3}, AutoRollback: &platform.AutoRollback{WindowS: 9, MaxErrorPct: 1.5}, TLS: "off",
	}
}

func TestServices_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := project(t, s, "shop")
		v := get(s.CreateService(t.Context(), p.ID, fullSpec())).or(t)
		same(t, "spec", v.ServiceSpec, fullSpec())
		equal(t, "project", v.ProjectID, p.ID)
		equal(t, "version", v.Version, 1)
		same(t, "by id", get(s.Service(t.Context(), v.ID)).or(t), v)
		same(t, "by name", get(s.ServiceByName(t.Context(), p.ID, "web")).or(t), v)
		_, err := s.ServiceByName(t.Context(), defaultProject(t, s).ID, "web")
		notFound(t, err)
		_, err = s.Service(t.Context(), store.NewID())
		notFound(t, err)
		_, err = s.CreateService(t.Context(), store.NewID(), fullSpec())
		notFound(t, err)
		_, err = s.CreateService(t.Context(), p.ID, fullSpec())
		fails(t, err, platform.Conflict, "name_taken")

		changed := fullSpec()
		changed.SecretEnv, changed.Source = nil, nil
		v2 := get(s.UpdateService(t.Context(), v.ID, changed, v.Version)).or(t)
		same(t, "changed", v2.ServiceSpec, changed)
		equal(t, "version", v2.Version, 2)
		_, err = s.UpdateService(t.Context(), v.ID, changed, v.Version)
		fails(t, err, platform.Precondition, "version_mismatch")
		_, err = s.UpdateService(t.Context(), store.NewID(), changed, 0)
		notFound(t, err)

		source := platform.Source{Type: platform.SourceExternalImage, Image: "x"}
		ok(t, s.SetSource(t.Context(), v.ID, source))
		ok(t, s.SetStopped(t.Context(), v.ID, true))
		v3 := get(s.Service(t.Context(), v.ID)).or(t)
		equal(t, "source", *v3.Source, source)
		equal(t, "stopped", v3.Stopped, true)
		equal(t, "version", v3.Version, 4)
		notFound(t, s.SetSource(t.Context(), store.NewID(), source))
		notFound(t, s.SetStopped(t.Context(), store.NewID(), true))
	})
}

func TestServices_HostLabelsAreUnique(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := project(t, s, "b")
		first := service(t, s, p.ID, "a") // a-b
		_, err := s.CreateService(t.Context(), defaultProject(t, s).ID, platform.ServiceSpec{Name: "a-b"})
		fails(t, err, platform.Conflict, "host_taken")
		if !strings.Contains(err.Error(), `service "a" of the project "b"`) {
			t.Errorf("%q does not name the other service", err)
		}
		other := service(t, s, defaultProject(t, s).ID, "c")
		_, err = s.UpdateService(t.Context(), other.ID, platform.ServiceSpec{Name: "a-b"}, 0)
		fails(t, err, platform.Conflict, "host_taken")
		_, err = s.UpdateService(t.Context(), first.ID, platform.ServiceSpec{Name: strings.Repeat("a", 63)}, 0)
		fails(t, err, platform.Invalid, "validation_failed")
		get(s.UpdateService(t.Context(), first.ID, platform.ServiceSpec{Name: "z"}, 0)).or(t)
		get(s.UpdateService(t.Context(), other.ID, platform.ServiceSpec{Name: "a-b"}, 0)).or(t)
		oneWins(t, together(4, func(i int) error {
			pair := [][2]string{{"b", "y-q"}, {"q-b", "y"}}[i%2]
			p, err := s.ProjectByName(context.Background(), pair[0])
			if platform.KindOf(err) == platform.NotFound {
				p, err = s.CreateProject(context.Background(), platform.ProjectSpec{Name: pair[0]})
			}
			if platform.CodeOf(err) == "name_taken" {
				p, err = s.ProjectByName(context.Background(), pair[0])
			}
			if err != nil {
				return err
			}
			_, err = s.CreateService(context.Background(), p.ID, platform.ServiceSpec{Name: pair[1]})
			if platform.CodeOf(err) == "name_taken" {
				err = platform.Errorf(platform.Conflict, "host_taken", "")
			}
			return err
		}), platform.Conflict, "host_taken")
	})
}

func TestServices_Lists(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p, q := project(t, s, "p"), project(t, s, "q")
		for _, name := range []string{"c", "a", "b"} {
			service(t, s, p.ID, name)
			service(t, s, q.ID, name)
		}
		label := func(v platform.Service) string { return v.Name + "@" + string(v.ProjectID) }
		list, _ := get2(s.Services(t.Context(), store.ServiceFilter{Projects: []platform.ID{p.ID}}, store.Page{})).or(t)
		equal(t, "of p", names(list, func(v platform.Service) string { return v.Name }), "a b c")
		list, _ = get2(s.Services(t.Context(), store.ServiceFilter{}, store.Page{})).or(t)
		equal(t, "of none", len(list), 0)
		whole, _ := get2(s.Services(t.Context(), store.ServiceFilter{All: true}, store.Page{})).or(t)
		equal(t, "names", names(whole, func(v platform.Service) string { return v.Name }), "a a b b c c")
		var paged []platform.Service
		for page, more := (store.Page{Limit: 1}), true; more; more = page.Cursor != "" {
			list, page.Cursor = get2(s.Services(t.Context(), store.ServiceFilter{Projects: []platform.ID{p.ID, q.ID}}, page)).or(t)
			paged = append(paged, list...)
		}
		equal(t, "in pages", names(paged, label), names(whole, label))

		refs := get(s.AllServices(t.Context())).or(t)
		equal(t, "refs", names(refs, func(r store.ServiceRef) string { return r.HostLabel }), "a-p b-p c-p a-q b-q c-q")
		live := release(t, s, refs[0].ID)
		ok(t, s.SetStopped(t.Context(), refs[0].ID, true))
		same(t, "ref", get(s.AllServices(t.Context())).or(t)[0], store.ServiceRef{
			ID: refs[0].ID, ProjectID: p.ID, Name: "a", ProjectName: "p", HostLabel: "a-p",
			Protocol: platform.ProtocolHTTP, TLS: "auto", Stopped: true, ActiveDeploymentID: live.ID,
		})
	})
}

func TestServices_DeleteTakesDeploymentsAndUploads(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		d := release(t, s, v.ID)
		u := upload(t, s, v.ID, time.Now().Add(time.Hour))
		ok(t, s.DeleteService(t.Context(), v.ID))
		notFound(t, s.DeleteService(t.Context(), v.ID))
		_, err := s.Deployment(t.Context(), d.ID)
		notFound(t, err)
		_, err = s.Upload(t.Context(), u.ID)
		notFound(t, err)
		fresh := anyService(t, s)
		equal(t, "number of the first deployment of a service of the same name", deploy(t, s, fresh.ID).Number, 1)
	})
}

func TestServices_VersionIsNotMovedByDeployments(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		release(t, s, v.ID)
		get(s.UpdateService(t.Context(), v.ID, platform.ServiceSpec{Name: "web"}, v.Version)).or(t)
	})
}

func TestStore_ReadersAndWritersDoNotStarve(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, err := range together(24, func(i int) error {
			for range 20 {
				var err error
				switch i % 3 {
				case 0:
					_, err = s.UpdateService(ctx, v.ID, platform.ServiceSpec{Name: "web"}, 0)
				case 1:
					_, err = s.Service(ctx, v.ID)
				case 2:
					err = s.AppendAudit(ctx, platform.AuditEntry{Action: "x"})
				}
				if err != nil {
					return err
				}
			}
			return nil
		}) {
			ok(t, err)
		}
		equal(t, "version", get(s.Service(t.Context(), v.ID)).or(t).Version, 1+8*20)
	})
}
