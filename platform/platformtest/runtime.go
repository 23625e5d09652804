// Package platformtest holds the promises of platform's contracts as tests, so
// that every implementation, the fake of the loops' tests included, is held to
// the same ones.
package platformtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Harness is what Runtime needs to know of an implementation. The funcs that
// take a workload fill in its Image, Digest and Config so that its replicas
// behave as described.
type Harness struct {
	// New makes a runtime that holds nothing, and clears away at the test's
	// end what the test left in it.
	New func(t *testing.T) platform.Runtime

	// Serve: each replica writes the line "serving" to stdout and runs until
	// it is told to stop, then exits at once.
	Serve func(w *platform.Workload)

	// Exit: each replica writes "one", "two" and "three" to stdout and exits
	// with the code.
	Exit func(w *platform.Workload, code int)

	// Broken: the runtime cannot start it.
	Broken func(w *platform.Workload)

	// Missing: the runtime does not have its image.
	Missing func(w *platform.Workload)

	// OOM: each replica is killed at its memory limit. Optional.
	OOM func(w *platform.Workload)
}

// Runtime holds h's runtime to the contract of platform.Runtime.
func Runtime(t *testing.T, h Harness) {
	t.Run("EnsureMakesReplicas", h.testEnsure)
	t.Run("EnsureScales", h.testScale)
	t.Run("EnsureStartsExitedAgain", h.testStartAgain)
	t.Run("EnsureKeepsReleasesApart", h.testReleases)
	t.Run("EnsureFails", h.testFailures)
	t.Run("ReplicasTellHowTheyEnded", h.testExit)
	t.Run("ReplicasTellOOM", h.testOOM)
	t.Run("LogsEndAndResume", h.testLogs)
	t.Run("LogsFollow", h.testFollow)
	t.Run("WatchTells", h.testWatch)
	t.Run("ProjectsComeAndGo", h.testProjects)
	t.Run("VolumesMayBeAbsent", h.testVolumes)
}

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// Workload is release `number` of a service of a project, one replica; the
// three together name it.
func Workload(project, service string, number int) platform.Workload {
	memory, grace := int64(64<<20), 5
	w := platform.Workload{
		ID:          platform.ID(fmt.Sprintf("release-%s-%s-%d", project, service, number)),
		ServiceID:   platform.ID(fmt.Sprintf("service-%s-%s", project, service)),
		ProjectID:   platform.ID("project-" + project),
		ServiceName: service,
		ProjectName: project,
		Number:      number,
		Replicas:    1,
	}
	w.Config.RunSpec = platform.RunSpec{StopGraceS: &grace}.WithDefaults()
	w.Config.Resources = platform.Resources{MemoryBytes: memory, PIDs: 64}
	return w
}

func (h Harness) testEnsure(t *testing.T) {
	ctx, r := t.Context(), h.New(t)
	w := Workload("shop", "web", 3)
	h.Serve(&w)
	w.Replicas = 2
	before := time.Now().Add(-time.Minute)
	ensure(t, r, w)
	first := replicas(t, r, w.ServiceID)
	if len(first) != 2 {
		t.Fatalf("2 replicas asked for, got %+v", first)
	}
	for i, got := range first {
		if got.Index != i || got.ServiceID != w.ServiceID || got.ProjectID != w.ProjectID || got.ReleaseID != w.ID ||
			got.Label != fmt.Sprintf("3.%d", i) {
			t.Errorf("replica %d is named %+v", i, got)
		}
		if got.State != platform.ReplicaRunning || got.Addr == "" || got.StartedAt.Before(before) || got.Error != "" {
			t.Errorf("replica %d does not run: %+v", i, got)
		}
	}
	if first[0].Addr == first[1].Addr || first[0].ID == first[1].ID {
		t.Errorf("two replicas share an address or id: %+v", first)
	}

	ensure(t, r, w)
	if again := replicas(t, r, w.ServiceID); !slices.Equal(again, first) {
		t.Errorf("a second Ensure changed %+v\ninto %+v", first, again)
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	w.Replicas = 3
	if err := r.Ensure(ended, w); !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure with an ended context: %v", err)
	}
}

func (h Harness) testScale(t *testing.T) {
	r := h.New(t)
	w := Workload("shop", "web", 1)
	h.Serve(&w)
	w.Replicas = 3
	ensure(t, r, w)
	first := replicas(t, r, w.ServiceID)
	w.Replicas = 1
	ensure(t, r, w)
	if got := replicas(t, r, w.ServiceID); len(got) != 1 || got[0] != first[0] {
		t.Errorf("scaled from 3 to 1: %+v, want %+v", got, first[:1])
	}
	gone := platform.Workload{ID: w.ID, ServiceID: w.ServiceID}
	for range 2 {
		ensure(t, r, gone)
		if got := replicas(t, r, w.ServiceID); len(got) != 0 {
			t.Errorf("scaled to 0: %+v", got)
		}
	}
}

func (h Harness) testStartAgain(t *testing.T) {
	r := h.New(t)
	w := Workload("shop", "web", 1)
	h.Exit(&w, 3)
	ensure(t, r, w)
	first := exited(t, r, w)
	ensure(t, r, w)
	wait(t, "the replica has run twice", func() bool {
		got := replicas(t, r, w.ServiceID)
		return len(got) == 1 && got[0].State == platform.ReplicaExited && got[0].StartedAt.After(first.StartedAt)
	})
}

func (h Harness) testReleases(t *testing.T) {
	r := h.New(t)
	one, two, other := Workload("shop", "web", 1), Workload("shop", "web", 2), Workload("shop", "db", 1)
	for _, w := range []*platform.Workload{&one, &two, &other} {
		h.Serve(w)
	}
	two.Replicas = 2
	for _, w := range []platform.Workload{two, one, other} {
		ensure(t, r, w)
	}
	var names []string
	for _, got := range replicas(t, r, one.ServiceID) {
		names = append(names, got.Label)
	}
	if want := []string{"1.0", "2.0", "2.1"}; !slices.Equal(names, want) {
		t.Errorf("replicas of the service: %v, want %v", names, want)
	}
	if all := replicas(t, r, ""); len(all) != 4 {
		t.Errorf("replicas of all services: %+v, want 4", all)
	}
	one.Replicas = 0
	ensure(t, r, one)
	if left := replicas(t, r, one.ServiceID); len(left) != 2 || left[0].ReleaseID != two.ID || left[1].ReleaseID != two.ID {
		t.Errorf("after release 1 was removed: %+v", left)
	}
	if left := replicas(t, r, other.ServiceID); len(left) != 1 {
		t.Errorf("the other service has %+v", left)
	}
}

func (h Harness) testFailures(t *testing.T) {
	r := h.New(t)
	broken, missing := Workload("shop", "broken", 1), Workload("shop", "missing", 1)
	h.Broken(&broken)
	h.Missing(&missing)
	for range 2 {
		failed(t, r.Ensure(t.Context(), broken), platform.CodeStartFailed)
		failed(t, r.Ensure(t.Context(), missing), platform.CodeImageNotFound)
	}
	for _, w := range []platform.Workload{broken, missing} {
		for _, got := range replicas(t, r, w.ServiceID) {
			if got.State == platform.ReplicaRunning {
				t.Errorf("%s runs: %+v", w.ServiceName, got)
			}
		}
		w.Replicas = 0
		ensure(t, r, w)
		if left := replicas(t, r, w.ServiceID); len(left) != 0 {
			t.Errorf("%s left %+v", w.ServiceName, left)
		}
	}
}

func (h Harness) testExit(t *testing.T) {
	r := h.New(t)
	for _, code := range []int{0, 7} {
		w := Workload("shop", "web", code+1)
		h.Exit(&w, code)
		ensure(t, r, w)
		got := exited(t, r, w)
		if got.ExitCode != code || got.OOMKilled || got.Addr != "" || got.FinishedAt.Before(got.StartedAt) {
			t.Errorf("a replica that exits with %d: %+v", code, got)
		}
	}
}

func (h Harness) testOOM(t *testing.T) {
	if h.OOM == nil {
		return
	}
	r := h.New(t)
	w := Workload("shop", "web", 1)
	h.OOM(&w)
	ensure(t, r, w)
	if got := exited(t, r, w); !got.OOMKilled || got.ExitCode == 0 {
		t.Errorf("a replica killed at its memory limit: %+v", got)
	}
}

func (h Harness) testLogs(t *testing.T) {
	r := h.New(t)
	w := Workload("shop", "web", 4)
	h.Exit(&w, 0)
	ensure(t, r, w)
	id := exited(t, r, w).ID
	lines := read(t, r, id, platform.LogOptions{})
	if got, want := text(lines), "one|two|three"; got != want {
		t.Fatalf("the output is %q, want %q", got, want)
	}
	for i, line := range lines {
		if line.Replica != "4.0" || line.Stream != platform.StreamStdout || line.TS.IsZero() || i > 0 && line.TS.Before(lines[i-1].TS) {
			t.Errorf("line %d: %+v", i, line)
		}
	}
	resumed := read(t, r, id, platform.LogOptions{Since: lines[1].TS})
	if len(resumed) == 0 || !slices.Contains(resumed, lines[1]) || resumed[len(resumed)-1] != lines[2] {
		t.Errorf("from the second line on: %+v", resumed)
	}
	if _, err := r.Logs(t.Context(), "no-such-replica", platform.LogOptions{}); platform.KindOf(err) != platform.NotFound {
		t.Errorf("the output of no replica: %v", err)
	}
}

func (h Harness) testFollow(t *testing.T) {
	r := h.New(t)
	w := Workload("shop", "web", 1)
	h.Serve(&w)
	ensure(t, r, w)
	id := replicas(t, r, w.ServiceID)[0].ID

	closed, err := r.Logs(t.Context(), id, platform.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if line, err := closed.Next(); err != nil || line.Line != "serving" {
		t.Fatalf("the first line is %+v, %v", line, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := closed.Next()
		ended <- err
	}()
	if err := closed.Close(); err != nil {
		t.Error(err)
	}
	if err := receive(t, ended); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Next after Close: %v", err)
	}

	followed, err := r.Logs(t.Context(), id, platform.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer followed.Close()
	go func() {
		for {
			if _, err := followed.Next(); err != nil {
				ended <- err
				return
			}
		}
	}()
	w.Replicas = 0
	ensure(t, r, w)
	if err := receive(t, ended); !errors.Is(err, io.EOF) {
		t.Errorf("the output of a removed replica ended with %v", err)
	}
}

func (h Harness) testWatch(t *testing.T) {
	r := h.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := r.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	next := func(what string, w platform.Workload) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case event, open := <-events:
				if !open {
					t.Fatalf("the events ended before %s", what)
				}
				if event.ServiceID == w.ServiceID && event.ReleaseID == w.ID && event.ReplicaID != "" {
					return
				}
			case <-deadline:
				t.Fatalf("no event: %s", what)
			}
		}
	}
	w := Workload("shop", "web", 1)
	h.Serve(&w)
	ensure(t, r, w)
	next("a replica started", w)
	dies := Workload("shop", "web", 2)
	h.Exit(&dies, 1)
	ensure(t, r, dies)
	next("a replica started", dies)
	next("a replica died", dies)
	cancel()
	deadline := time.After(patience)
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the channel stays open after its context ended")
		}
	}
}

func (h Harness) testProjects(t *testing.T) {
	r := h.New(t)
	if got, err := r.Projects(t.Context()); err != nil || len(got) != 0 {
		t.Fatalf("an empty runtime holds %v, %v", got, err)
	}
	a, b := Workload("shop", "web", 1), Workload("blog", "web", 1)
	h.Serve(&a)
	h.Exit(&b, 0)
	ensure(t, r, a)
	ensure(t, r, b)
	exited(t, r, b)
	projects := func() []platform.ID {
		t.Helper()
		got, err := r.Projects(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		return got
	}
	if got, want := projects(), []platform.ID{b.ProjectID, a.ProjectID}; !slices.Equal(got, want) {
		t.Errorf("the runtime holds %v, want %v", got, want)
	}
	for _, w := range []platform.Workload{a, b} {
		if err := r.RemoveProject(t.Context(), w.ProjectID); platform.KindOf(err) != platform.Conflict {
			t.Errorf("removing %s while it has a replica: %v", w.ProjectName, err)
		}
	}
	a.Replicas = 0
	ensure(t, r, a)
	for range 2 {
		if err := r.RemoveProject(t.Context(), a.ProjectID); err != nil {
			t.Errorf("removing %s: %v", a.ProjectName, err)
		}
	}
	if got, want := projects(), []platform.ID{b.ProjectID}; !slices.Equal(got, want) {
		t.Errorf("the runtime holds %v, want %v", got, want)
	}
	a.Replicas = 1
	ensure(t, r, a)
}

func (h Harness) testVolumes(t *testing.T) {
	if err := h.New(t).RemoveVolumes(t.Context(), "service-shop-web", []string{"data", "cache"}); err != nil {
		t.Errorf("removing volumes that do not exist: %v", err)
	}
}

func ensure(t *testing.T, r platform.Runtime, w platform.Workload) {
	t.Helper()
	if err := r.Ensure(t.Context(), w); err != nil {
		t.Fatalf("Ensure %s %d, %d replicas: %v", w.ServiceName, w.Number, w.Replicas, err)
	}
}

func replicas(t *testing.T, r platform.Runtime, service platform.ID) []platform.Replica {
	t.Helper()
	got, err := r.Replicas(t.Context(), service)
	if err != nil {
		t.Fatalf("Replicas: %v", err)
	}
	return got
}

// exited waits until the only replica of w has exited.
func exited(t *testing.T, r platform.Runtime, w platform.Workload) (last platform.Replica) {
	t.Helper()
	wait(t, "the replica of "+string(w.ID)+" exits", func() bool {
		for _, got := range replicas(t, r, w.ServiceID) {
			if got.ReleaseID == w.ID && got.State == platform.ReplicaExited {
				last = got
				return true
			}
		}
		return false
	})
	return last
}

func failed(t *testing.T, err error, code string) {
	t.Helper()
	if got := platform.CodeOf(err); err == nil || got != code {
		t.Errorf("failed with %v (%s), want %s", err, got, code)
	}
}

func read(t *testing.T, r platform.Runtime, id string, opt platform.LogOptions) (lines []platform.LogLine) {
	t.Helper()
	reader, err := r.Logs(t.Context(), id, opt)
	if err != nil {
		t.Fatalf("Logs: %v", err)
	}
	defer reader.Close()
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatalf("reading the output: %v", err)
		}
		lines = append(lines, line)
	}
}

func text(lines []platform.LogLine) string {
	var all []string
	for _, line := range lines {
		all = append(all, line.Line)
	}
	return strings.Join(all, "|")
}

func receive(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatal("nothing came")
		return nil
	}
}

func wait(t *testing.T, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !met(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
