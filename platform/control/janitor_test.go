package control_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/platformtest"
	"github.com/denia-paas/denia/platform/store"
)

// What no row explains goes at the start; what one explains never does.

func TestJanitorRemovesReplicasAndNetworksNobodyKnows(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	w.shut()
	stranger := platformtest.Workload("gone", "web", 7)
	check(t, w.engine.Ensure(t.Context(), stranger))
	w.boot()
	check(t, w.Start(t.Context()))
	w.runs(stranger.ServiceID)
	w.runs(service.ID, "1.0")
	w.shut() // a minute later
	w.boot()
	check(t, w.Start(t.Context()))
	w.await("the network is gone", func() bool {
		projects, err := w.engine.Projects(t.Context())
		check(t, err)
		return slices.Equal(projects, []platform.ID{service.ProjectID})
	})
	w.serves("web", "1.0")
}

func TestJanitorRemovesUploadsNobodyNeeds(t *testing.T) {
	w := start(t)
	service := w.service(spec("web"))
	hold, release := gate(t)
	w.images.on("built", making{Hold: hold})
	waiting := w.upload(service.ID, "Dockerfile", "built")
	d := w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: waiting.ID})
	w.become(d.ID, platform.Building)
	superseded := w.upload(service.ID, "Dockerfile", "built")
	w.deployFrom(service.ID, platform.Source{Type: platform.SourceUpload, UploadID: superseded.ID})
	next := w.deploy(service.ID, "app:1")
	unused := w.upload(service.ID, "Dockerfile", "later")
	expired := platform.Upload{ID: store.NewID(), ServiceID: service.ID, ExpiresAt: time.Now().Add(-time.Second)}
	check(t, os.WriteFile(w.UploadPath(expired.ID), nil, 0o600))
	check(t, w.store.CreateUpload(t.Context(), expired))
	orphan := w.UploadPath("orphan") // cut off with the process
	check(t, os.WriteFile(orphan, nil, 0o600))
	stale := filepath.Join(w.options.DataDir, "builds", "stale")
	check(t, os.MkdirAll(filepath.Join(stale, "src"), 0o700))

	w.restart()
	w.await("what nobody needs is gone", func() bool {
		return !exists(w.UploadPath(superseded.ID)) && !exists(w.UploadPath(expired.ID)) && !exists(orphan) && !exists(stale)
	})
	for _, path := range []string{w.UploadPath(waiting.ID), w.UploadPath(unused.ID)} {
		if !exists(path) {
			t.Errorf("%s is gone", path)
		}
	}
	release()
	w.become(next.ID, platform.Healthy)
	if got := w.deployment(d.ID).Status; got != platform.Inactive {
		t.Errorf("the build that was under way is %s", got)
	}
}

func TestJanitorKeepsTheImagesOfReleasesWithinRetention(t *testing.T) {
	w := start(t, func(o *control.Options) { o.KeepReleases = 2 })
	service := w.service(spec("web"))
	for _, image := range []string{"app:1", "app:2", "app:3", "app:4"} {
		w.become(w.deploy(service.ID, image).ID, platform.Healthy)
	}
	w.engine.Script(digest("app:5"), platformtest.Behavior{Exits: -1})
	w.become(w.deploy(service.ID, "app:5").ID, platform.Failed)
	// An old image that is active again is kept under both its names' rows.
	first, _, err := w.store.Deployments(t.Context(), service.ID, store.Page{})
	check(t, err)
	w.become(w.deployFrom(service.ID, platform.Source{Type: platform.SourceRedeploy, DeploymentID: first[len(first)-1].ID}).ID, platform.Healthy)
	_, err = w.images.Pull(t.Context(), platform.Pull{Reference: "app:9", Tag: "denia/default/deleted:1"}, discard{})
	check(t, err)
	w.engine.Script(digest("app:7"), platformtest.Behavior{Deaf: true})
	starting := w.deploy(service.ID, "app:7")
	w.become(starting.ID, platform.Starting)
	w.restart()
	want := []string{"denia/default/web:4", "denia/default/web:6", "denia/default/web:7"}
	w.await("the others are gone", func() bool {
		tags, err := w.images.Tags(t.Context())
		check(t, err)
		return slices.Equal(tags, want)
	})
}

func TestJanitorRemovesLogsNobodyKnows(t *testing.T) {
	w := start(t)
	service, d := w.running(spec("web"), "app:1")
	requests := "requests/" + string(service.ID)
	for _, key := range []string{"services/gone", "deployments/gone", "requests/gone", requests} {
		check(t, w.options.Logs.Append(key, platform.LogLine{Line: "old"}))
	}
	w.restart()
	want := []string{"deployments/" + string(d.ID), requests, "services/" + string(service.ID)}
	w.await("they are gone", func() bool {
		keys, err := w.options.Logs.Keys("")
		check(t, err)
		slices.Sort(keys)
		return slices.Equal(keys, want)
	})
}

func TestCloseLeavesReplicasRunningAndForgetsExpiredTokens(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	user, err := w.store.Bootstrap(t.Context(), platform.User{Name: "ada", PasswordHash: "x"})
	check(t, err)
	past := time.Now().Add(-time.Hour)
	token, err := w.store.CreateToken(t.Context(), platform.Token{UserID: user.ID, Kind: platform.TokenSession, Hash: []byte("hash"), ExpiresAt: &past})
	check(t, err)
	w.shut()
	if got := w.replicas(service.ID); !slices.Equal(got, []string{"1.0"}) {
		t.Errorf("%v run", got)
	}
	w.boot()
	check(t, w.Start(t.Context()))
	w.await("the token is gone", func() bool {
		_, err := w.store.Token(t.Context(), token.ID)
		return platform.KindOf(err) == platform.NotFound
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
