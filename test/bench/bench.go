// Package bench is what the benchmarks here have in common: it starts the
// servers to compare, reads what they use, takes samples in turns, and writes
// a report as JSON, Markdown and a chart.
//
// What it promises is comparison within one run. Everything is measured in
// rounds, whose order turns (A B C, C B A, A B C, …), so that what else the
// machine does, and what drifts, falls on all alike; each figure is a median of
// the rounds with their minimum and maximum beside it; and a ratio of two
// servers is the median of the ratios within each round. CPU time can be relied
// on, as the kernel accounts it per process and in nanoseconds. Requests a
// second and latencies depend on what else the machine does.
//
// Units stand in the names of values: _s, _ms, _us and _ns are times, _mib and
// _kib are 2^20 and 2^10 bytes, mb_per_s is 10^6 bytes a second.
package bench

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Say tells whoever watches what is going on; the report is on standard output.
func Say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Item is something to measure in each round: the sample of one measure of one
// server.
type Item struct {
	Measure, Of string
	Run         func(context.Context) (Sample, error)
}

// InTurns measures items in rounds and adds them to the report. Every second
// round goes backwards, so that each item is as often early as late, and as
// often before as after each other one.
func (r *Report) InTurns(ctx context.Context, rounds int, items []Item) error {
	for round := range rounds {
		for i := range items {
			if round%2 == 1 {
				i = len(items) - 1 - i
			}
			s, err := items[i].Run(ctx)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", items[i].Measure, items[i].Of, err)
			}
			Say("%d/%d %-34s %-18s%s", round+1, rounds, items[i].Measure, items[i].Of, s)
			r.Add(items[i].Measure, items[i].Of, s)
		}
	}
	return nil
}

// Until looks again and again whether something is so, every time after a
// pause, and returns when it is. It is for what other processes do and nobody
// tells. It fails when look does, and when the time is up.
func Until(ctx context.Context, within, pause time.Duration, what string, look func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("after %s still not: %s", within, what))
	defer cancel()
	again := time.NewTicker(pause)
	defer again.Stop()
	for {
		so, err := look()
		if err != nil || so {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		}
	}
}

// Rest lets time pass in which only the servers do something.
func Rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
