package store_test

import (
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestChangeArtifact(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		project, err := s.ProjectByName(t.Context(), platform.DefaultProject)
		ok(t, err)
		service, err := s.CreateService(t.Context(), project.ID, platform.ServiceSpec{Name: "web"}.WithDefaults())
		ok(t, err)
		d, _, err := s.CreateDeployment(t.Context(), platform.Deployment{ServiceID: service.ID, Source: platform.Source{Type: platform.SourcePush, Digest: "sha256:m", Image: "default/web@sha256:m"}})
		ok(t, err)
		if d.Source.Digest != "sha256:m" {
			t.Errorf("the source came back as %+v", d.Source)
		}
		record := func(a *platform.Artifact) { a.ManifestDigest = "sha256:copy" }
		if _, err := s.ChangeArtifact(t.Context(), d.ID, record); platform.CodeOf(err) != "no_artifact" {
			t.Errorf("a deployment without an image: %v", err)
		}
		if _, err := s.ChangeArtifact(t.Context(), store.NewID(), record); platform.KindOf(err) != platform.NotFound {
			t.Errorf("no deployment: %v", err)
		}
		_, err = s.Advance(t.Context(), d.ID, platform.Pending, platform.Starting, func(d *platform.Deployment) {
			d.Artifact = &platform.Artifact{Image: "denia/default/web:1", Digest: "sha256:i", SizeBytes: 5}
		})
		ok(t, err)
		_, _, err = s.Promote(t.Context(), d.ID)
		ok(t, err)
		_, err = s.ChangeArtifact(t.Context(), d.ID, record)
		ok(t, err)
		d, err = s.Deployment(t.Context(), d.ID)
		ok(t, err)
		if want := (platform.Artifact{Image: "denia/default/web:1", Digest: "sha256:i", SizeBytes: 5, ManifestDigest: "sha256:copy"}); *d.Artifact != want || d.Status != platform.Healthy {
			t.Errorf("it is %s with %+v", d.Status, d.Artifact)
		}
	})
}
