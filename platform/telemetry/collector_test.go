package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

// engine is a container engine as far as logs go: it keeps the output of
// replicas, gives it from a time on, inclusive, and can go away.
type engine struct {
	mu      sync.Mutex
	output  map[string][]platform.LogLine
	ended   map[string]bool // the replica has exited
	down    error
	opened  atomic.Int64 // how often
	open    atomic.Int64 // readers now
	breakAt int          // a reader fails after so many lines, if positive
	changed chan struct{}
}

func newEngine() *engine {
	return &engine{output: map[string][]platform.LogLine{}, ended: map[string]bool{}, changed: make(chan struct{})}
}

func (e *engine) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *engine) print(replica string, lines ...platform.LogLine) {
	e.change(func() {
		e.output[replica] = append([]platform.LogLine{}, e.output[replica]...)
		for _, l := range lines {
			l.Replica = "" // the engine does not know labels
			e.output[replica] = append(e.output[replica], l)
		}
	})
}

func (e *engine) openLogs(_ context.Context, replica string, since time.Time) (platform.LogReader, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opened.Add(1)
	if e.down != nil {
		return nil, e.down
	}
	if _, ok := e.output[replica]; !ok && !e.ended[replica] {
		return nil, platform.NotFoundf("no replica %s", replica)
	}
	e.open.Add(1)
	return &reader{e: e, replica: replica, since: since, closed: make(chan struct{})}, nil
}

type reader struct {
	e       *engine
	replica string
	since   time.Time
	next    int
	given   int
	closed  chan struct{}
	once    sync.Once
}

func (r *reader) Next() (platform.LogLine, error) {
	for {
		r.e.mu.Lock()
		output, ended, changed, down := r.e.output[r.replica], r.e.ended[r.replica], r.e.changed, r.e.down
		breakAt := r.e.breakAt
		r.e.mu.Unlock()
		switch {
		case down != nil:
			return platform.LogLine{}, down
		case breakAt > 0 && r.given == breakAt:
			return platform.LogLine{}, errors.New("connection reset")
		case r.next < len(output):
			l := output[r.next]
			r.next++
			if l.TS.Before(r.since) {
				continue
			}
			r.given++
			return l, nil
		case ended:
			return platform.LogLine{}, io.EOF
		}
		select {
		case <-changed:
		case <-r.closed:
			return platform.LogLine{}, io.ErrClosedPipe
		}
	}
}

func (r *reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.e.open.Add(-1)
	})
	return nil
}

func newCollector(t *testing.T, logs *telemetry.Logs, e *engine) *telemetry.Collector {
	c := telemetry.NewCollector(logs, e.openLogs, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		c.Close()
		if n := e.open.Load(); n != 0 {
			t.Errorf("%d readers are open after Close", n)
		}
	})
	return c
}

func texts(t *testing.T, logs *telemetry.Logs) string {
	t.Helper()
	var all []string
	for _, l := range read(t, logs, key, telemetry.Query{}) {
		all = append(all, l.Line)
	}
	return strings.Join(all, " ")
}

// at makes a line printed so many milliseconds after start.
func at(ms int, text string) platform.LogLine {
	return platform.LogLine{TS: start.Add(time.Duration(ms) * time.Millisecond), Stream: platform.StreamStdout, Line: text}
}

func TestCollectorCopiesLive(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		e.print("r0", line(0))
		e.print("r1")
		for range 3 {
			c.Start("r0", key, "1.0")
			c.Start("r1", key, "1.1")
		}
		synctest.Wait()
		e.print("r1", line(1))
		synctest.Wait()
		e.print("r0", line(2))
		synctest.Wait()
		want := lines(0, 3)
		want[1].Replica = "1.1"
		wantLines(t, read(t, logs, key, telemetry.Query{}), want)
		if n := e.opened.Load(); n != 2 {
			t.Errorf("%d readers were opened", n)
		}
	})
}

// TestCollectorResumes kills the collector after each prefix of what it may
// have stored, and has it go on: with equal times, equal lines, and times that
// run against the order.
func TestCollectorResumes(t *testing.T) {
	output := []platform.LogLine{
		at(0, "a"), at(0, "a"), at(0, "b"), at(1500, "c"), at(1490, "late"), at(1500, "c"), at(1500, "d"),
		at(1500, strings.Repeat("L", telemetry.MaxLine+1)), at(1501, "c"), at(900, "later"), at(5000, "e"), at(9000, "f"),
	}
	var want []string
	for _, l := range output {
		want = append(want, l.Line)
	}
	for stored := range len(output) {
		for _, split := range []bool{false, true} {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
				for _, l := range output[:stored] {
					l.Replica = "1.0"
					appendAll(t, logs, key, l)
				}
				if split && len(output[stored].Line) > telemetry.MaxLine {
					half := output[stored] // killed between the two records of one line
					half.Replica, half.Line = "1.0", half.Line[:telemetry.MaxLine]
					appendAll(t, logs, key, half)
				}
				// What another replica wrote is no obstacle.
				appendAll(t, logs, key, platform.LogLine{TS: start.Add(time.Hour), Replica: "1.1", Stream: platform.StreamStdout, Line: "other"})
				logs.Close()
				logs = open(t, dir, telemetry.LogOptions{})
				e.print("r0", output...)
				c := newCollector(t, logs, e)
				c.Start("r0", key, "1.0")
				synctest.Wait()
				var got []string
				for _, l := range read(t, logs, key, telemetry.Query{Replica: "1.0"}) {
					got = append(got, l.Line)
				}
				// A line kept in two records is still one.
				if strings.Join(got, "") != strings.Join(want, "") {
					t.Errorf("after %d stored lines: %d of %d: %.20q", stored, len(got), len(want), got)
				}
			})
		}
	}
}

func TestCollectorGoesOnAfterInterruptions(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		e.print("r0", lines(0, 20)...)
		e.breakAt = 7
		c.Start("r0", key, "1.0")
		time.Sleep(10 * time.Second)
		e.change(func() { e.down = errors.New("engine is away") })
		before := e.opened.Load()
		time.Sleep(10 * time.Minute)
		attempts := e.opened.Load() - before
		e.change(func() { e.down, e.breakAt = nil, 0 })
		if attempts < 30 || attempts > 60 {
			t.Errorf("%d attempts in 10 minutes without the engine", attempts)
		}
		e.print("r0", lines(20, 30)...)
		time.Sleep(16 * time.Second)
		wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 30))
	})
}

func TestCollectorTakesUpAReplicaThatStartedAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		e.print("r0", line(0))
		e.ended["r0"] = true
		c.Start("r0", key, "1.0")
		time.Sleep(10 * time.Minute)
		if n := e.opened.Load(); n > 60 {
			t.Errorf("an ended output was opened %d times in 10 minutes", n)
		}
		e.change(func() { e.ended["r0"] = false })
		e.print("r0", line(1))
		c.Start("r0", key, "1.0")
		time.Sleep(300 * time.Millisecond)
		wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 2))
	})
}

// TestCollectorKeepsUpWithMuch interrupts a replica that prints more than is
// remembered of it.
func TestCollectorKeepsUpWithMuch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		const n = 80_000
		var all []platform.LogLine
		for i := range n {
			l := line(0)
			l.TS = start.Add(time.Duration(i/3) * 10 * time.Microsecond)
			l.Line = strconv.Itoa(i % 7)
			all = append(all, l)
		}
		e.print("r0", all...)
		e.breakAt = n - 10
		c := newCollector(t, logs, e)
		c.Start("r0", key, "1.0")
		synctest.Wait()
		e.change(func() { e.breakAt = 0 })
		time.Sleep(time.Second)
		wantLines(t, read(t, logs, key, telemetry.Query{}), all)
	})
}

func TestCollectorLosesNothingToAFullDisk(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		var left atomic.Int64
		left.Store(100)
		telemetry.FailWrites(logs, &left, syscall.ENOSPC)
		c := newCollector(t, logs, e)
		e.print("r0", lines(0, 50)...)
		c.Start("r0", key, "1.0")
		time.Sleep(time.Minute)
		if n := len(read(t, logs, key, telemetry.Query{})); n == 0 || n > 10 {
			t.Fatalf("%d lines fit on the full disk", n)
		}
		left.Store(1 << 20)
		time.Sleep(time.Minute)
		wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 50))
	})
}

func TestStopDrains(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		prepare func(e *engine, stopped <-chan struct{})
		want    string
		took    time.Duration
	}{
		"output that ends": {func(e *engine, _ <-chan struct{}) {
			time.Sleep(400 * time.Millisecond)
			e.print("r0", at(1, "last"))
			e.change(func() { e.ended["r0"] = true })
		}, "first last", 400 * time.Millisecond},
		"output that is quiet": {func(e *engine, _ <-chan struct{}) {
			time.Sleep(400 * time.Millisecond)
			e.print("r0", at(1, "more"))
		}, "first more", 900 * time.Millisecond},
		"output without end": {func(e *engine, stopped <-chan struct{}) {
			for i := 0; ; i++ {
				select {
				case <-stopped:
					return
				case <-time.After(100 * time.Millisecond):
					e.print("r0", at(i, "x"))
				}
			}
		}, "", 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, e := open(t, dir+name, telemetry.LogOptions{}), newEngine()
				c := newCollector(t, logs, e)
				e.print("r0", at(0, "first"))
				c.Start("r0", key, "1.0")
				synctest.Wait()
				stopped := make(chan struct{})
				var printing sync.WaitGroup
				printing.Go(func() { tc.prepare(e, stopped) })
				began := time.Now()
				c.Stop("r0", "unknown")
				if took := time.Since(began); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				close(stopped)
				printing.Wait()
				if got := texts(t, logs); tc.want != "" && got != tc.want {
					t.Errorf("collected %q, want %q", got, tc.want)
				}
				before := e.opened.Load()
				time.Sleep(time.Minute)
				if e.opened.Load() != before {
					t.Error("collection went on after Stop")
				}
				c.Stop("r0")
			})
		})
	}
}

func TestStopTriesOnceMoreAfterAnInterruption(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		e.down = errors.New("engine is away")
		c.Start("r0", key, "1.0")
		time.Sleep(time.Hour)
		e.change(func() { e.down = nil; e.ended["r0"] = true })
		e.print("r0", line(0))
		c.Stop("r0")
		wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 1))
	})
}

func TestCollectionEndsWhenTheReplicaIsGone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		c.Start("r0", key, "1.0")
		time.Sleep(time.Hour)
		if n := e.opened.Load(); n != 1 {
			t.Errorf("%d attempts at a replica that does not exist", n)
		}
		e.print("r0", line(0))
		c.Start("r0", key, "1.0")
		synctest.Wait()
		wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 1))
	})
}

func TestManyCollectionsEndTogether(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs, e := open(t, dir, telemetry.LogOptions{}), newEngine()
		c := newCollector(t, logs, e)
		var replicas []string
		for i := range 20 {
			replicas = append(replicas, fmt.Sprintf("r%d", i))
			e.print(replicas[i], line(i))
			c.Start(replicas[i], key, fmt.Sprintf("1.%d", i))
		}
		synctest.Wait()
		began := time.Now()
		c.Stop(replicas...)
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("took %v", took)
		}
		got := read(t, logs, key, telemetry.Query{})
		slices.SortFunc(got, func(a, b platform.LogLine) int { return a.TS.Compare(b.TS) })
		if len(got) != 20 || got[19].Replica != "1.19" {
			t.Errorf("got %v", got)
		}
		c.Close()
		c.Start("r0", key, "1.0") // too late, and no harm
	})
}
