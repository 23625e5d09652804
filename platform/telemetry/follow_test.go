package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

func TestFollowWaitsForALogThatDoesNotExistYet(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs := open(t, dir, telemetry.LogOptions{})
		f := follow(t, logs, key, "", telemetry.Query{Tail: 200})
		got := make(chan platform.LogLine)
		go func() {
			defer close(got)
			for {
				_, l, err := f.Next(t.Context())
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				got <- l
			}
		}()
		synctest.Wait()
		for i := range 3 {
			appendAll(t, logs, key, line(i))
			if l := <-got; l != line(i) {
				t.Errorf("got %v", l)
			}
		}
		synctest.Wait()
		if err := logs.Finish(key); err != nil {
			t.Fatal(err)
		}
		if l, more := <-got; more {
			t.Errorf("got %v after the last line", l)
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs := open(t, dir, telemetry.LogOptions{})
		f := follow(t, logs, key, "", telemetry.Query{})
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if _, _, err := f.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		appendAll(t, logs, key, line(0))
		wantNext(t, f, line(0)) // it can go on
	})
}

func TestRemoveEndsFollowers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		logs := open(t, dir, telemetry.LogOptions{})
		appendAll(t, logs, key, line(0))
		f := follow(t, logs, key, "", telemetry.Query{})
		wantNext(t, f, line(0))
		ended := make(chan error)
		go func() {
			_, _, err := f.Next(t.Context())
			ended <- err
		}()
		synctest.Wait()
		if err := logs.Remove(key); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != io.EOF {
			t.Errorf("error %v", err)
		}
	})
}

func TestCursorResumesWithoutLossOrRepeat(t *testing.T) {
	dir := t.TempDir()
	o := telemetry.LogOptions{SegmentBytes: 777}
	logs := open(t, dir, o)
	appendAll(t, logs, key, lines(0, 100)...)
	f := follow(t, logs, key, "", telemetry.Query{})
	var cursors []telemetry.Cursor
	for i := range 100 {
		cursors = append(cursors, wantNext(t, f, line(i)))
	}
	for restart := range 2 {
		appendAll(t, logs, key, lines(100+10*restart, 110+10*restart)...)
		for i, c := range cursors {
			f := follow(t, logs, key, c, telemetry.Query{Tail: 1})
			for next := i + 1; next < 110+10*restart; next++ {
				wantNext(t, f, line(next))
			}
			f.Close()
		}
		f.Close()
		logs.Close()
		logs = open(t, dir, o)
	}
}

func TestCursorOfADeletedSegmentResumesAtTheOldest(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{CapBytes: 5000, SegmentBytes: 500})
	appendAll(t, logs, key, lines(0, 3)...)
	f := follow(t, logs, key, "", telemetry.Query{})
	first := wantNext(t, f, line(0))
	appendAll(t, logs, key, lines(3, 1000)...)

	// A follower that has the segment open reads it to its end, then the rest.
	left := read(t, logs, key, telemetry.Query{})
	for i := 1; ; i++ {
		_, l, err := f.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if l == left[0] {
			break
		}
		if l != line(i) {
			t.Fatalf("line %d is %v", i, l)
		}
	}
	if err := logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	wantLines(t, followAll(t, logs, key, first, telemetry.Query{}), left)
}

func TestCursorBeyondTheEndWaitsForWhatComes(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	appendAll(t, logs, key, line(0))
	atEnd := follow(t, logs, key, "1000000", telemetry.Query{})
	nowhere := follow(t, logs, "services/none", "1000000", telemetry.Query{})
	waitThen := func(f *telemetry.Follower, key string, i int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, _, err := f.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		appendAll(t, logs, key, line(i))
		wantNext(t, f, line(i))
	}
	waitThen(atEnd, key, 1)
	waitThen(nowhere, "services/none", 5)
}

// TestCursorInsideARecord has a cursor that a power failure made wrong: the
// lines it was given for are lost, others have come in their place.
func TestCursorInsideARecord(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	appendAll(t, logs, key, lines(0, 3)...)
	for _, inside := range []telemetry.Cursor{"2", "5", "25"} {
		f := follow(t, logs, key, inside, telemetry.Query{})
		wantNext(t, f, line(1))
	}
}

func TestBadCursor(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	for _, bad := range []telemetry.Cursor{"x", "-1", "1.5", " 1", "99999999999999999999"} {
		if _, err := logs.Follow(t.Context(), key, bad, telemetry.Query{}); platform.CodeOf(err) != "bad_cursor" || platform.KindOf(err) != platform.Malformed {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
	if _, keys := telemetry.OpenFiles(logs); keys != 0 {
		t.Errorf("%d keys stay in memory", keys)
	}
}

// TestEveryFollowerGetsEveryLineOnce has appenders and followers at work at
// the same time, in segments small enough to change all the time. Followers
// hang up now and then and resume by cursor.
func TestEveryFollowerGetsEveryLineOnce(t *testing.T) {
	const appenders, each, followers = 4, 500, 6
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{SegmentBytes: 3000})
	var work sync.WaitGroup
	for a := range appenders {
		work.Go(func() {
			w := logs.Writer(key, platform.StreamStdout, nil)
			for i := 0; i < each; i++ {
				if a%2 == 0 {
					if _, err := fmt.Fprintf(w, "%d %d\n", a, i); err != nil {
						t.Error(err)
					}
				} else if err := logs.Append(key, platform.LogLine{TS: start, Line: fmt.Sprintf("%d %d", a, i)}); err != nil {
					t.Error(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	results := make([][]string, followers)
	var reading sync.WaitGroup
	for i := range followers {
		reading.Go(func() {
			var cursor telemetry.Cursor
			for {
				f, err := logs.Follow(t.Context(), key, cursor, telemetry.Query{})
				if err != nil {
					t.Error(err)
					return
				}
				for range 1 + rand.IntN(300) {
					c, l, err := f.Next(t.Context())
					if err == io.EOF {
						f.Close()
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					cursor = c
					results[i] = append(results[i], l.Line)
				}
				f.Close()
			}
		})
	}
	work.Wait()
	if err := logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
	for i, got := range results {
		if len(got) != appenders*each {
			t.Fatalf("follower %d got %d lines of %d", i, len(got), appenders*each)
		}
		next := [appenders]int{}
		for _, l := range got {
			var a, n int
			fmt.Sscan(l, &a, &n)
			if next[a] != n {
				t.Fatalf("follower %d got line %q, want number %d", i, l, next[a])
			}
			next[a]++
		}
		if i > 0 && !slices.Equal(got, results[0]) {
			t.Errorf("follower %d has another order", i)
		}
	}
	if _, keys := telemetry.OpenFiles(logs); keys != 0 {
		t.Errorf("%d keys stay in memory after the log was finished", keys)
	}
}

// TestFollowersSurviveDeletion reads while old segments are deleted all the
// time: lines may be missing, never out of order, and the last one comes.
func TestFollowersSurviveDeletion(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{CapBytes: 3000})
	const n = 3000
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			f, err := logs.Follow(t.Context(), key, "", telemetry.Query{Tail: 10})
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			last := start.Add(-time.Second)
			for {
				_, l, err := f.Next(t.Context())
				if err == io.EOF {
					break
				}
				if err != nil || !l.TS.After(last) {
					t.Errorf("line %v after %v, %v", l, last, err)
					return
				}
				last = l.TS
			}
			if last != line(n-1).TS {
				t.Errorf("the last line was of %v", last)
			}
		})
		work.Go(func() {
			for range 100 {
				if _, err := logs.Read(key, telemetry.Query{Tail: 1000}); err != nil {
					t.Error(err)
				}
				if _, err := logs.Read(key, telemetry.Query{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		appendAll(t, logs, key, line(i))
	}
	if err := logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	work.Wait()
}

func TestAppendGoesOnWhileLogsAreRemoved(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{OpenFiles: 2})
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			for n := range 200 {
				k := fmt.Sprintf("services/s%d", (i+n)%3)
				if err := logs.Append(k, line(n)); err != nil {
					t.Error(err)
				}
				if n%20 == 0 {
					if err := logs.Remove(k); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	work.Wait()
	if files, keys := telemetry.OpenFiles(logs); keys > files || files > 3 {
		t.Errorf("%d files are open, %d keys in memory", files, keys)
	}
}

func BenchmarkAppend(b *testing.B) {
	logs := open(b, b.TempDir(), telemetry.LogOptions{})
	l := line(1)
	l.Line = strings.Repeat("x", 120)
	b.SetBytes(int64(len(l.Line)))
	b.ReportAllocs()
	for b.Loop() {
		if err := logs.Append(key, l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendBatch100(b *testing.B) {
	logs := open(b, b.TempDir(), telemetry.LogOptions{})
	batch := lines(0, 100)
	b.ReportAllocs()
	for b.Loop() {
		if err := logs.Append(key, batch...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFollow(b *testing.B) {
	logs := open(b, b.TempDir(), telemetry.LogOptions{CapBytes: 1 << 30})
	const n = 100_000
	for i := 0; i < n; i += 1000 {
		appendAll(b, logs, key, lines(i, i+1000)...)
	}
	b.ReportAllocs()
	f := follow(b, logs, key, "", telemetry.Query{})
	read := 0
	for b.Loop() {
		if read++; read > n {
			f.Close()
			f, read = follow(b, logs, key, "", telemetry.Query{}), 1
		}
		if _, _, err := f.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTail200Of100MiB(b *testing.B) {
	logs := open(b, b.TempDir(), telemetry.LogOptions{})
	batch := lines(0, 1000)
	for i := range batch {
		batch[i].Line = strings.Repeat("x", 100)
	}
	for range 900 {
		appendAll(b, logs, key, batch...)
	}
	for name, q := range map[string]telemetry.Query{"tail": {Tail: 200}, "grep for nothing": {Tail: 200, Grep: "needle"}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := logs.Read(key, q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
