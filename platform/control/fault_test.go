package control_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite", to break things behind the Store's back

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/platformtest"
)

// fault makes a kind of write fail, as a full disk would, until heal is called.
func (w *world) fault(when string) (heal func()) {
	w.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(w.options.DataDir, "denia.db")+"?_pragma=busy_timeout(10000)")
	check(w.t, err)
	_, err = db.ExecContext(w.t.Context(), `CREATE TRIGGER fault `+when+` BEGIN SELECT RAISE(ABORT, 'the disk is broken'); END`)
	check(w.t, err)
	return func() {
		w.t.Helper()
		_, err := db.ExecContext(context.Background(), `DROP TRIGGER fault`)
		check(w.t, err)
		check(w.t, db.Close())
	}
}

// failures counts the errors logged so far that tell of the broken disk.
func (w *world) failures() int {
	return strings.Count(w.journal.text(), "the disk is broken")
}

func TestWriteThatFailsIsTriedAgainAfterAPause(t *testing.T) {
	for _, test := range []struct {
		name   string
		status platform.Status // that cannot be written
		how    platformtest.Behavior
		ends   platform.Status
	}{
		{"to starting", platform.Starting, platformtest.Behavior{}, platform.Healthy},
		{"to healthy", platform.Healthy, platformtest.Behavior{}, platform.Healthy},
		{"to failed", platform.Failed, platformtest.Behavior{Exits: -1}, platform.Failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := start(t)
			service, _ := w.running(spec("web"), "app:1")
			w.engine.Script(digest("app:2"), test.how)
			w.journal.expect("the disk is broken")
			heal := w.fault(`BEFORE UPDATE ON deployments WHEN NEW.status = '` + string(test.status) + `' AND OLD.status <> NEW.status`)
			began := time.Now()
			d := w.deploy(service.ID, "app:2")
			w.await("it failed for a while", func() bool { return w.failures() >= 2 && time.Since(began) > 1500*time.Millisecond })
			if got := w.failures(); got > 12 {
				t.Errorf("%d attempts in a second and a half", got)
			}
			w.serves("web", "1.0")
			heal()
			w.become(d.ID, test.ends)
		})
	}
	t.Run("to canceled", func(t *testing.T) {
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		w.engine.Script(digest("app:2"), platformtest.Behavior{Deaf: true})
		d := w.deploy(service.ID, "app:2")
		w.runs(service.ID, "1.0", "2.0")
		w.journal.expect("the disk is broken")
		heal := w.fault(`BEFORE UPDATE ON deployments WHEN NEW.status = 'canceled'`)
		_, err := w.Cancel(t.Context(), d.ID, "tester")
		check(t, err)
		w.await("it failed twice", func() bool { return w.failures() >= 2 })
		heal()
		w.become(d.ID, platform.Canceled)
		w.runs(service.ID, "1.0")
	})
	t.Run("of a configuration's deployment", func(t *testing.T) {
		w := start(t)
		service, _ := w.running(spec("web"), "app:1")
		w.journal.expect("the disk is broken")
		heal := w.fault(`BEFORE UPDATE ON deployments WHEN NEW.status = 'starting'`)
		d, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
		w.await("it failed twice", func() bool { return w.failures() >= 2 })
		// The active release is looked after all the same.
		w.engine.Kill(w.engineReplica(service.ID), 1, false)
		w.await("it runs again", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
		heal()
		w.become(d.ID, platform.Healthy)
	})
}

func TestEngineThatCannotTagDoesNotHoldUpTheActiveRelease(t *testing.T) {
	w := start(t)
	service, _ := w.running(spec("web"), "app:1")
	w.journal.expect("tagging an image")
	w.images.breakTags(platform.Errorf(platform.Unavailable, platform.CodeEngineUnavailable, "busy"))
	d, _ := w.update(service.ID, func(s *platform.ServiceSpec) { s.Env = platform.Env{"A": "1"} })
	w.await("it was tried", func() bool { return strings.Contains(w.journal.text(), "tagging an image") })
	w.engine.Kill(w.engineReplica(service.ID), 1, false)
	w.await("the active release runs again", func() bool { return w.engine.Runs(digest("app:1")) == 2 })
	w.images.breakTags(nil)
	w.become(d.ID, platform.Healthy)
}
