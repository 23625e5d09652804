package docker_test

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
)

func TestLogsAreWholeValidLines(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(2, "output")
	ensure(t, e, w)
	r := finished(t, e, w)
	reader, err := e.Logs(t.Context(), r.ID, platform.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var out, errOut []string
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.Replica != "2.0" || line.TS.IsZero() {
			t.Errorf("line %+v", line)
		}
		if line.Stream == platform.StreamStderr {
			errOut = append(errOut, line.Line)
		} else {
			out = append(out, line.Line)
		}
	}
	long := 0
	var rest []string
	for _, line := range out {
		if strings.HasPrefix(line, "y") {
			long += len(line)
			if len(line) > 64<<10 {
				t.Errorf("a line of %d bytes", len(line))
			}
			continue
		}
		rest = append(rest, line)
	}
	want := []string{"plain", "carriage return", "broken \uFFFD utf-8", strings.Repeat("x", 40_000), "", "no line break"}
	if strings.Join(rest, "\n") != strings.Join(want, "\n") {
		t.Errorf("stdout is %.200q, want %.200q", rest, want)
	}
	if long != 200_000 {
		t.Errorf("of a line of 200000 bytes %d came", long)
	}
	if len(errOut) != 1 || errOut[0] != "to stderr" {
		t.Errorf("stderr is %q", errOut)
	}
}

func TestLogsResumeWithoutLoss(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "tick")
	ensure(t, e, w)
	id := only(t, e, w).ID
	var last platform.LogLine
	next := 0
	for range 5 {
		reader, err := e.Logs(t.Context(), id, platform.LogOptions{Since: last.TS, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		for target := next + 20; next < target; {
			line, err := reader.Next()
			if err != nil {
				t.Fatal(err)
			}
			if line == last {
				continue // Since is inclusive
			}
			if line.Line != strconv.Itoa(next) {
				t.Fatalf("line %q follows %q", line.Line, last.Line)
			}
			last = line
			next++
		}
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
		for err == nil {
			_, err = reader.Next()
		}
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
	}
}

func TestCloseEndsStreams(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "serve")
	ensure(t, e, w)
	events, err := e.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := e.Logs(t.Context(), only(t, e, w).ID, platform.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	for range events {
	}
	for err == nil {
		_, err = reader.Next()
	}
	if errors.Is(err, io.EOF) {
		t.Error("a stream that was cut looks complete")
	}
}
