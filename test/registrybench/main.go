// Command registrybench measures Denia's registry beside Debian's
// docker-registry, nginx and Caddy's file_server, on one machine in one run.
//
// Each figure is the median of several rounds, and the order within a round
// turns from one round to the next, so that what else the machine does falls
// on all alike. What can be relied on is CPU time, which the kernel accounts
// per process; MB/s and requests a second compare only within one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	denia  string // the program
	out    string
	within string
	only   *regexp.Regexp

	rounds     int
	size       int64 // bytes of a large blob
	seconds    float64
	tags       int // of the repository with many
	images     int // deleted before a collection
	smallBlobs int // pushed one after the other
}

// What the project promises is measured with these.
var full = options{rounds: 5, size: 1 << 30, seconds: 3, tags: 3000, images: 1500, smallBlobs: 60}

func main() {
	o := full
	flag.StringVar(&o.denia, "denia", "bin/denia", "the `program` to measure")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "`directory` for registry.json and registry.md")
	flag.StringVar(&o.within, "dir", os.TempDir(), "`directory` for what the servers store, which needs room for ten large blobs")
	flag.IntVar(&o.rounds, "rounds", o.rounds, "how often everything is measured")
	flag.Float64Var(&o.seconds, "seconds", o.seconds, "how long small requests are sent")
	flag.IntVar(&o.tags, "tags", o.tags, "tags of the repository with many")
	flag.IntVar(&o.images, "images", o.images, "images deleted before a collection")
	flag.Func("size", "of a large blob, as 128MiB (default 1GiB)", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	flag.Func("only", "measure only what matches this `expression`: "+strings.Join(parts(), ", "), func(s string) (err error) {
		o.only, err = regexp.Compile(s)
		return err
	})
	smallest := flag.String("smallest", "", "serve the smallest handler on this `address`, for a run of this program")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *smallest != "" {
		err = serveSmallest(ctx, *smallest, o.within)
	} else {
		err = run(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parseSize(s string) (int64, error) {
	number, shift := s, 0
	for unit, by := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if before, ok := strings.CutSuffix(s, unit); ok {
			number, shift = before, by
		}
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n <= 0 {
		return 0, errors.New("want a number and KiB, MiB or GiB")
	}
	if n <<= shift; n < 4<<20 {
		return 0, errors.New("below 4 MiB there is nothing to measure")
	}
	return n, nil
}

// bench is one run.
type bench struct {
	options
	dir    string
	denia  *registry
	docker *registry // Debian's docker-registry
	nginx  *process
	caddy  *process // file_server
	large  *source
	report *report
}

// measurements are the parts of a run, in order.
var measurements = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"push", (*bench).pushes},
	{"parallel", (*bench).parallelPushes},
	{"get", (*bench).gets},
	{"durable", (*bench).durable},
	{"image", (*bench).image},
	{"requests", (*bench).requests},
	{"collection", (*bench).collection},
}

func parts() (names []string) {
	for _, m := range measurements {
		names = append(names, m.name)
	}
	return names
}

func run(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	if b.options.denia, err = filepath.Abs(o.denia); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(o.within, "registrybench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	b.report = newReport(ctx, o, b.dir)

	ctx, cancel := context.WithCancel(ctx)
	defer b.stop()
	defer cancel()
	if err := b.start(ctx); err != nil {
		return err
	}
	if b.large, err = newSource(filepath.Join(b.dir, "large"), o.size); err != nil {
		return err
	}
	for _, m := range measurements {
		if o.only != nil && !o.only.MatchString(m.name) {
			continue
		}
		began := time.Now()
		if err := m.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		b.say("%s took %.0f s", m.name, time.Since(began).Seconds())
	}
	return b.report.write(o.out)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// item is something to measure in each round.
type item struct {
	measure string
	of      string // whose figure this is
	run     func(context.Context) (sample, error)
}

// inTurns measures the items in rounds, each beginning with another one.
func (b *bench) inTurns(ctx context.Context, items []item) error {
	for round := range b.rounds {
		order := slices.Concat(items[round%len(items):], items[:round%len(items)])
		for _, i := range order {
			// What one has written is not to be on its way to the disk while the
			// next is measured.
			syscall.Sync()
			s, err := i.run(ctx)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", i.measure, i.of, err)
			}
			b.say("%d/%d %-34s %-16s %s", round+1, b.rounds, i.measure, i.of, s)
			b.report.add(i.measure, i.of, s)
		}
	}
	return nil
}
