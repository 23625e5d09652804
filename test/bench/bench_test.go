package bench_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/denia-paas/denia/test/bench"
)

func TestRatiosArePairedWithinRounds(t *testing.T) {
	r := bench.NewReport(t.Context(), t.TempDir(), nil)
	for _, v := range []struct{ ours, theirs float64 }{{1, 2}, {8, 8}, {3, 4}} { // a machine that was four times as slow in one round
		r.Add("m", "a", bench.Sample{"cpu_s": v.ours})
		r.Add("m", "b", bench.Sample{"cpu_s": v.theirs})
	}
	got := r.Series("m", "a", "cpu_s").Over(r.Series("m", "b", "cpu_s"))
	if want := (bench.Figure{Median: 0.75, Low: 0.5, High: 1}); got.Figure() != want {
		t.Errorf("the ratio is %v, want %v", got.Figure(), want)
	}
	if text := got.Figure().String(); text != "0.75 (0.50–1.00)" {
		t.Errorf("it is written %s", text)
	}
	r.Check("at most", got, bench.AtMost(0.75), "x")
	r.Check("below", got, bench.Below(0.75), "x")
	r.Check("at least", got, bench.AtLeast(0.7), "x")
	r.Check("not measured", r.Series("m", "c", "cpu_s"), bench.AtMost(1), "x")
	var met []bool
	for _, target := range r.Targets {
		met = append(met, target.Met)
	}
	if !slices.Equal(met, []bool{true, false, true}) {
		t.Errorf("met: %v", met)
	}
}

func TestRoundsTurn(t *testing.T) {
	r := bench.NewReport(t.Context(), t.TempDir(), nil)
	var order []string
	var items []bench.Item
	for _, of := range []string{"A", "B"} {
		items = append(items, bench.Item{Measure: "m", Of: of, Run: func(context.Context) (bench.Sample, error) {
			order = append(order, of)
			return bench.Sample{"v": 1}, nil
		}})
	}
	if err := r.InTurns(t.Context(), 3, items); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "ABBAAB" {
		t.Errorf("the order is %s", got)
	}
	if got := len(r.Series("m", "A", "v")); got != 3 {
		t.Errorf("%d rounds are reported", got)
	}
}

// The CPU time of a process is that of all its threads, and stays when one of
// them ends.
func TestUsageKeepsWhatThreadsThatEndedUsed(t *testing.T) {
	before, err := bench.UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	var task string
	ended := make(chan struct{})
	var work func()
	work = func() {
		runtime.LockOSThread()            // and the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() { // but for the first thread; while this is locked to it, others are not
			again := make(chan struct{})
			go func() { defer close(again); work() }()
			<-again
			return
		}
		defer close(ended)
		task = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
		for took < 50*time.Millisecond {
			took, _ = bench.ThreadCPU()
		}
	}
	go work()
	<-ended
	if err := bench.Until(t.Context(), 10*time.Second, time.Millisecond, "the thread has ended", func() (bool, error) {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist), nil
	}); err != nil {
		t.Fatal(err)
	}
	after, err := bench.UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got := after.CPU - before.CPU; got < took-5*time.Millisecond {
		t.Errorf("of %s there are %s", took, got)
	}
	if before.RSS <= 0 || before.Peak < before.RSS {
		t.Errorf("the memory is %+v", before)
	}
}

func TestUntilTellsWhatItWaitedFor(t *testing.T) {
	err := bench.Until(t.Context(), 5*time.Millisecond, time.Millisecond, "pigs fly", func() (bool, error) { return false, nil })
	if err == nil || !strings.Contains(err.Error(), "pigs fly") {
		t.Errorf("it says %v", err)
	}
}

func TestReportIsWritten(t *testing.T) {
	dir := t.TempDir()
	r := bench.NewReport(t.Context(), dir, map[string]int{"rounds": 2}, "no-such-package")
	r.Add("m", "denia", bench.Sample{"v": 1.23456})
	r.Add("m", "denia", bench.Sample{"v": 2})
	r.Check("the value", r.Series("m", "denia", "v"), bench.AtMost(1), "ms")
	r.Ended()
	page := new(bench.Page)
	page.Begin(r, "Title", "make x", "x.json", "How.")
	page.Targets(r)
	chart := bench.Chart{Title: "a & b", Groups: []bench.Group{{Name: "<g>", Bars: []bench.Bar{
		{Name: "denia", Figure: r.Series("m", "denia", "v").Figure(), Ours: true, Limit: 1}, {Name: "none", Figure: bench.Series{0.5}.Figure()},
	}}}}.SVG()
	if err := r.Write(dir, "x", page.String(), chart); err != nil {
		t.Fatal(err)
	}
	var read struct {
		Results []struct {
			Median map[string]float64
			Spread map[string][2]float64
		}
		Targets []struct {
			Bound string
			Limit float64
			Met   bool
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "x.json"))
	if err == nil {
		err = json.Unmarshal(text, &read)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := read.Results[0]; got.Median["v"] != 1.617 || got.Spread["v"] != [2]float64{1.235, 2} {
		t.Errorf("the JSON has %+v", got)
	}
	if got := read.Targets[0]; got.Bound != "≤" || got.Limit != 1 || got.Met {
		t.Errorf("the JSON has %+v", got)
	}
	if !strings.Contains(page.String(), "| the value | 1.62 (1.24–2.00) ms | ≤ 1.00 ms | **fail** |") {
		t.Errorf("the page is\n%s", page)
	}
	drawn := xml.NewDecoder(strings.NewReader(chart))
	for {
		if _, err := drawn.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, chart)
		}
	}
	if empty := (bench.Chart{Groups: []bench.Group{{Bars: []bench.Bar{{Figure: bench.Figure{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}}}}}}).SVG(); empty != "" {
		t.Errorf("nothing is drawn as %s", empty)
	}
}
