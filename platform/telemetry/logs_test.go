package telemetry_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/leak"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

const key = "services/0198c0de-0000-7000-8000-000000000001"

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func open(t testing.TB, dir string, o telemetry.LogOptions) *telemetry.Logs {
	t.Helper()
	logs, err := telemetry.OpenLogs(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := logs.Close(); err != nil {
			t.Error(err)
		}
		if files, _ := telemetry.OpenFiles(logs); files != 0 {
			t.Errorf("%d files are open after Close", files)
		}
	})
	return logs
}

// line makes the i-th line: i seconds after start.
func line(i int) platform.LogLine {
	return platform.LogLine{TS: start.Add(time.Duration(i) * time.Second), Stream: platform.StreamStdout, Replica: "1.0", Line: fmt.Sprintf("line %d", i)}
}

func lines(from, to int) []platform.LogLine {
	var all []platform.LogLine
	for i := from; i < to; i++ {
		all = append(all, line(i))
	}
	return all
}

func appendAll(t testing.TB, logs *telemetry.Logs, key string, all ...platform.LogLine) {
	t.Helper()
	if err := logs.Append(key, all...); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, logs *telemetry.Logs, key string, q telemetry.Query) []platform.LogLine {
	t.Helper()
	got, err := logs.Read(key, q)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func wantLines(t testing.TB, got, want []platform.LogLine) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("line %d is %.200v, want %.200v", i, got[i], want[i])
		}
	}
}

func diskBytes(t testing.TB, dir string) (total int64, segments []string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, key, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range segments {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return total, segments
}

func TestLinesComeBackAsTheyWere(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{})
	want := []platform.LogLine{
		{TS: start, Stream: platform.StreamStdout, Replica: "3.0", Line: "listening"},
		{TS: start.Add(1), Stream: platform.StreamStderr, Replica: "3.1", Line: ""},
		{TS: start.Add(-time.Hour), Stream: platform.StreamSystem, Line: "  spaces, tabs\t, ünïcode 🦊, \x00 NUL and a \r return "},
		{TS: time.Unix(0, -5).UTC(), Stream: platform.StreamStdout, Replica: "3.0", Line: "1 o 3.0 looks like a record"},
	}
	appendAll(t, logs, key, want...)
	wantLines(t, read(t, logs, key, telemetry.Query{}), want)
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 10}), want)

	info, err := os.Stat(filepath.Join(dir, key, "0000000000000000.log"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("segment: %v, %v; want mode 0600", info, err)
	}
}

func TestWhatARecordCannotHoldIsReplaced(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	appendAll(t, logs, key,
		platform.LogLine{TS: start, Stream: "noise", Replica: "a b\nc", Line: "one\ntwo"},
		platform.LogLine{TS: start, Stream: platform.StreamStdout, Line: "bad \xff byte"})
	wantLines(t, read(t, logs, key, telemetry.Query{}), []platform.LogLine{
		{TS: start, Stream: platform.StreamSystem, Replica: "a_b_c", Line: "one"},
		{TS: start, Stream: platform.StreamSystem, Replica: "a_b_c", Line: "two"},
		{TS: start, Stream: platform.StreamStdout, Line: "bad \uFFFD byte"},
	})
}

func TestLongLinesAreSplitBetweenCharacters(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	long := strings.Repeat("é", telemetry.MaxLine) // two bytes each
	appendAll(t, logs, key, platform.LogLine{TS: start, Stream: platform.StreamStdout, Line: "x" + long})
	got := read(t, logs, key, telemetry.Query{})
	var joined strings.Builder
	for _, l := range got {
		if len(l.Line) > telemetry.MaxLine || strings.Contains(l.Line, "\uFFFD") {
			t.Errorf("a record holds %d bytes", len(l.Line))
		}
		joined.WriteString(l.Line)
	}
	if joined.String() != "x"+long || len(got) != 3 {
		t.Errorf("%d records do not give the line back", len(got))
	}
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 2}), got[1:])
}

func TestQuery(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{CapBytes: 1 << 20, SegmentBytes: 2000})
	all := lines(0, 500)
	for i := range all {
		if i%2 == 1 {
			all[i].Replica = "1.1"
		}
		if i%5 == 0 {
			all[i].Stream = platform.StreamStderr
		}
	}
	appendAll(t, logs, key, all...)
	for name, q := range map[string]telemetry.Query{
		"all":         {},
		"tail":        {Tail: 7},
		"none":        {Tail: -1},
		"since":       {Since: start.Add(450 * time.Second)},
		"until":       {Until: start.Add(20 * time.Second)},
		"window":      {Since: start.Add(100 * time.Second), Until: start.Add(200 * time.Second), Tail: 3},
		"grep":        {Grep: "line 4"},
		"replica":     {Replica: "1.1", Tail: 20},
		"stream":      {Stream: platform.StreamStderr, Tail: 20},
		"no stream":   {Stream: "stdin"},
		"all at once": {Stream: platform.StreamStderr, Replica: "1.0", Grep: "0", Since: start.Add(30 * time.Second), Tail: 4},
	} {
		var want []platform.LogLine
		for _, l := range all {
			if (q.Since.IsZero() || !l.TS.Before(q.Since)) && (q.Until.IsZero() || !l.TS.After(q.Until)) &&
				strings.Contains(l.Line, q.Grep) && (q.Replica == "" || l.Replica == q.Replica) && (q.Stream == "" || l.Stream == q.Stream) {
				want = append(want, l)
			}
		}
		switch {
		case q.Tail < 0:
			want = nil
		case q.Tail > 0:
			want = want[max(0, len(want)-q.Tail):]
		}
		t.Run(name, func(t *testing.T) {
			wantLines(t, read(t, logs, key, q), want)
			if err := logs.Finish(key); err != nil {
				t.Fatal(err)
			}
			wantLines(t, followAll(t, logs, key, "", q), want)
		})
	}
}

func TestTailReadsOnlyTheEnd(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{CapBytes: 1 << 20, SegmentBytes: 100 << 10})
	appendAll(t, logs, key, lines(0, 20_000)...)
	_, segments := diskBytes(t, dir)
	if len(segments) < 5 {
		t.Fatalf("only %d segments", len(segments))
	}
	// Directories in the place of older segments fail whoever reads them.
	for _, name := range segments[:len(segments)-2] {
		if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 200}), lines(19_800, 20_000))
	f := follow(t, logs, key, "", telemetry.Query{Tail: 200})
	wantNext(t, f, line(19_800))
}

func TestNoLogIsNoError(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	wantLines(t, read(t, logs, key, telemetry.Query{}), nil)
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 5}), nil)
	if err := logs.Remove(key); err != nil {
		t.Error(err)
	}
	if keys, err := logs.Keys(""); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestKeysCannotLeaveTheDirectory(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	for _, bad := range []string{"", "services", "services/", "../x", "services/..", "services/a/b", "/services/x", "services/.x", "services/a\x00"} {
		if err := logs.Append(bad, line(0)); err == nil {
			t.Errorf("key %q was taken", bad)
		}
		if err := logs.Remove(bad); err == nil {
			t.Errorf("key %q was removed", bad)
		}
	}
}

func TestKeysAndRemove(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{})
	for _, k := range []string{"services/b", "services/a", "deployments/c"} {
		appendAll(t, logs, k, line(0))
	}
	if keys, err := logs.Keys("services/"); err != nil || strings.Join(keys, " ") != "services/a services/b" {
		t.Errorf("keys %v, %v", keys, err)
	}
	if err := logs.Remove("services/a"); err != nil {
		t.Fatal(err)
	}
	if keys, err := logs.Keys(""); err != nil || strings.Join(keys, " ") != "deployments/c services/b" {
		t.Errorf("keys %v, %v", keys, err)
	}
	appendAll(t, logs, "services/a", line(7))
	wantLines(t, read(t, logs, "services/a", telemetry.Query{}), lines(7, 8))
}

func TestCapHoldsAndOldestGoFirst(t *testing.T) {
	dir := t.TempDir()
	const capBytes = 20_000
	logs := open(t, dir, telemetry.LogOptions{CapBytes: capBytes})
	for i := range 2000 {
		appendAll(t, logs, key, line(i))
		if i%100 == 0 {
			if total, _ := diskBytes(t, dir); total > capBytes {
				t.Fatalf("after %d lines %d bytes are on disk; the cap is %d", i, total, capBytes)
			}
		}
	}
	// One batch larger than everything.
	appendAll(t, logs, key, lines(2000, 4000)...)
	total, _ := diskBytes(t, dir)
	if total > capBytes || total < capBytes*8/10 {
		t.Errorf("%d bytes are on disk; the cap is %d", total, capBytes)
	}
	got := read(t, logs, key, telemetry.Query{})
	wantLines(t, got, lines(4000-len(got), 4000))
	if len(got) < 300 {
		t.Errorf("only %d lines are left", len(got))
	}
	logs.Close()
	wantLines(t, read(t, open(t, dir, telemetry.LogOptions{CapBytes: capBytes}), key, telemetry.Query{}), got)
}

func TestTornRecordIsCutOffAtOpening(t *testing.T) {
	for name, torn := range map[string]string{
		"half a record": "1767225600000000000 o 1.0 half a li",
		"half a time":   "17672",
		"zeros":         strings.Repeat("\x00", 70_000),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			logs := open(t, dir, telemetry.LogOptions{})
			appendAll(t, logs, key, lines(0, 3)...)
			logs.Close()
			tear(t, filepath.Join(dir, key, "0000000000000000.log"), torn)

			logs = open(t, dir, telemetry.LogOptions{})
			wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 3))
			appendAll(t, logs, key, line(3))
			wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 4))
			wantLines(t, read(t, logs, key, telemetry.Query{Tail: 9}), lines(0, 4))
		})
	}
}

func TestDamageCostsOnlyTheLinesItHit(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{SegmentBytes: 100_000})
	appendAll(t, logs, key, lines(0, 3)...)
	logs.Close()
	first := filepath.Join(dir, key, "0000000000000000.log")
	tear(t, first, strings.Repeat("\x00", 90_000)+"\nno record\n\n")
	logs = open(t, dir, telemetry.LogOptions{SegmentBytes: 90_200})
	appendAll(t, logs, key, lines(3, 400)...)
	_, segments := diskBytes(t, dir)
	if len(segments) != 2 {
		t.Fatalf("%d segments, want 2", len(segments))
	}
	want := lines(0, 400)
	wantLines(t, read(t, logs, key, telemetry.Query{}), want)
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 400}), want)

	// A segment before the last that lost its end.
	logs.Close()
	info, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(first, info.Size()-5); err != nil {
		t.Fatal(err)
	}
	logs = open(t, dir, telemetry.LogOptions{SegmentBytes: 90_200})
	got := read(t, logs, key, telemetry.Query{})
	if len(got) != 399 || got[398] != line(399) {
		t.Fatalf("%d lines are left, want all but one", len(got))
	}
	wantLines(t, read(t, logs, key, telemetry.Query{Tail: 400}), got)
	if err := logs.Finish(key); err != nil {
		t.Fatal(err)
	}
	wantLines(t, followAll(t, logs, key, "", telemetry.Query{}), got)
}

func tear(t *testing.T, name, torn string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(torn)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{})
	var left atomic.Int64
	left.Store(100)
	telemetry.FailWrites(logs, &left, syscall.ENOSPC)
	f := follow(t, logs, key, "", telemetry.Query{})
	appendAll(t, logs, key, lines(0, 2)...)
	err := logs.Append(key, lines(2, 10)...)
	if platform.KindOf(err) != platform.Unavailable || platform.CodeOf(err) != "disk_full" || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v", err)
	}
	wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 2))
	left.Store(1 << 20)
	appendAll(t, logs, key, lines(2, 5)...)
	wantLines(t, read(t, logs, key, telemetry.Query{}), lines(0, 5))
	for i := range 5 {
		wantNext(t, f, line(i))
	}
	logs.Close()
	wantLines(t, read(t, open(t, dir, telemetry.LogOptions{}), key, telemetry.Query{}), lines(0, 5))
}

func TestOpenFilesAreBounded(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{OpenFiles: 4})
	for round := range 3 {
		for i := range 20 {
			appendAll(t, logs, fmt.Sprintf("services/s%d", i), line(round))
		}
	}
	if files, keys := telemetry.OpenFiles(logs); files > 4 || keys > 4 {
		t.Errorf("%d files are open, %d keys in memory; 4 are allowed", files, keys)
	}
	for i := range 20 {
		wantLines(t, read(t, logs, fmt.Sprintf("services/s%d", i), telemetry.Query{}), lines(0, 3))
	}
}

func TestFinish(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{})
	appendAll(t, logs, key, line(0))
	for range 2 {
		if err := logs.Finish(key); err != nil {
			t.Fatal(err)
		}
	}
	if err := logs.Finish("deployments/empty"); err != nil {
		t.Fatal(err)
	}
	logs.Close()
	logs = open(t, dir, telemetry.LogOptions{})
	if err := logs.Append(key, line(1)); platform.CodeOf(err) != "log_finished" {
		t.Errorf("append after finish: %v", err)
	}
	wantLines(t, followAll(t, logs, key, "", telemetry.Query{}), lines(0, 1))
	wantLines(t, followAll(t, logs, "deployments/empty", "", telemetry.Query{}), nil)
}

func TestClosed(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	appendAll(t, logs, key, line(0))
	f := follow(t, logs, key, "", telemetry.Query{})
	wantNext(t, f, line(0))
	logs.Close()
	if _, _, err := f.Next(t.Context()); !errors.Is(err, telemetry.ErrClosed) {
		t.Errorf("follower ended with %v", err)
	}
	if err := logs.Append(key, line(1)); !errors.Is(err, telemetry.ErrClosed) {
		t.Errorf("append: %v", err)
	}
}

func TestWriter(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	w := logs.Writer(key, platform.StreamStderr, func(s string) string { return strings.ReplaceAll(s, "hunter2", "***") })
	for _, part := range []string{"one\ntw", "o\r\n", "the password is hun", "ter2\n\n", strings.Repeat("x", 900<<10), strings.Repeat("hunter2", 100<<10), "\nlast"} {
		if n, err := io.WriteString(w, part); n != len(part) || err != nil {
			t.Fatalf("wrote %d of %d, %v", n, len(part), err)
		}
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "late"); err == nil {
		t.Error("a closed writer took a line")
	}
	var got []string
	cut := ""
	for _, l := range read(t, logs, key, telemetry.Query{}) {
		if l.Stream != platform.StreamStderr || time.Since(l.TS) > time.Minute {
			t.Errorf("line %v", l)
		}
		if strings.Contains(l.Line, "hunter") || strings.Contains(l.Line, "hun\n") {
			t.Error("a secret was not hidden")
		}
		if strings.HasPrefix(l.Line, "xxx") || strings.Contains(l.Line, "***x") || strings.HasPrefix(l.Line, "*") {
			cut += l.Line
			continue
		}
		got = append(got, l.Line)
	}
	if want := []string{"one", "two", "the password is ***", "", "last"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("lines %q, want %q", got, want)
	}
	if len(cut) > 1<<20 || !strings.HasSuffix(cut, "longer than 1 MiB]") {
		t.Errorf("the long line was kept with %d bytes and ends in %q", len(cut), cut[max(0, len(cut)-60):])
	}
}

// TestKilled has a process killed while it appends, again and again. Every
// line whose Append returned is there, whole and in order.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	next := 0
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "TELEMETRY_APPEND_TO="+dir, fmt.Sprintf("TELEMETRY_FROM=%d", next))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := next - 1
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			if _, err := fmt.Sscan(scanner.Text(), &acknowledged); err != nil {
				t.Fatal(err)
			}
			if acknowledged >= next+500 {
				cmd.Process.Kill()
				break
			}
		}
		for scanner.Scan() {
			fmt.Sscan(scanner.Text(), &acknowledged)
		}
		cmd.Wait()
		logs := open(t, dir, telemetry.LogOptions{SegmentBytes: 5000})
		got := read(t, logs, key, telemetry.Query{})
		if len(got) <= acknowledged {
			t.Fatalf("%d lines were acknowledged, %d are there", acknowledged+1, len(got))
		}
		wantLines(t, got, lines(0, len(got)))
		next = len(got)
		logs.Close()
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("TELEMETRY_APPEND_TO"); dir != "" {
		from := 0
		fmt.Sscan(os.Getenv("TELEMETRY_FROM"), &from)
		logs, err := telemetry.OpenLogs(dir, telemetry.LogOptions{SegmentBytes: 5000})
		if err != nil {
			panic(err)
		}
		for i := from; ; i += 3 {
			if err := logs.Append(key, lines(i, i+3)...); err != nil {
				panic(err)
			}
			fmt.Println(i + 2)
		}
	}
	leak.Main(m)
}

func follow(t testing.TB, logs *telemetry.Logs, key string, after telemetry.Cursor, q telemetry.Query) *telemetry.Follower {
	t.Helper()
	f, err := logs.Follow(context.Background(), key, after, q)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// followAll reads a finished log to its end.
func followAll(t testing.TB, logs *telemetry.Logs, key string, after telemetry.Cursor, q telemetry.Query) []platform.LogLine {
	t.Helper()
	f := follow(t, logs, key, after, q)
	var got []platform.LogLine
	for {
		_, l, err := f.Next(t.Context())
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, l)
	}
}

func wantNext(t testing.TB, f *telemetry.Follower, want platform.LogLine) telemetry.Cursor {
	t.Helper()
	cursor, got, err := f.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("next line is %v, want %v", got, want)
	}
	return cursor
}
