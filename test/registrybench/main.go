// Command registrybench measures Denia's registry beside Debian's
// docker-registry, nginx and Caddy's file_server, on one machine in one run.
//
// How it measures, and what can be relied on, is told in package bench.
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/denia-paas/denia/test/bench"
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
var full = options{rounds: 5, size: 1 << 30, seconds: 2, tags: 3000, images: 1000, smallBlobs: 60}

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
		err = measure(ctx, o)
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

// run is one run.
type run struct {
	options
	servers bench.Servers
	denia   *registry
	docker  *registry // Debian's docker-registry
	nginx   *bench.Process
	corked  *bench.Process // nginx with tcp_nopush
	caddy   *bench.Process // file_server
	large   *source
	report  *bench.Report
}

// measurements are the parts of a run, in order.
var measurements = []struct {
	name string
	run  func(*run, context.Context) error
}{
	{"push", (*run).pushes},
	{"parallel", (*run).parallelPushes},
	{"get", (*run).gets},
	{"durable", (*run).durable},
	{"image", (*run).image},
	{"requests", (*run).requests},
	{"collection", (*run).collection},
}

func parts() (names []string) {
	for _, m := range measurements {
		names = append(names, m.name)
	}
	return names
}

func measure(ctx context.Context, o options) (err error) {
	b := &run{options: o}
	if b.servers.Program, err = filepath.Abs(o.denia); err != nil {
		return err
	}
	if b.servers.Dir, err = os.MkdirTemp(o.within, "registrybench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.servers.Dir)
	b.report = bench.NewReport(ctx, b.servers.Dir, o.settings(), "docker-registry", "nginx")
	defer b.servers.End()
	if err := b.start(ctx); err != nil {
		return err
	}
	if b.large, err = newSource(b.file("large"), o.size); err != nil {
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
		bench.Say("%s took %.0f s", m.name, time.Since(began).Seconds())
	}
	return b.write()
}

// file is the path of a file of the run's.
func (b *run) file(name string) string { return filepath.Join(b.servers.Dir, name) }

// inTurns measures the items in rounds.
func (b *run) inTurns(ctx context.Context, items []bench.Item) error {
	return b.manyTurns(ctx, b.rounds, items)
}

func (b *run) manyTurns(ctx context.Context, rounds int, items []bench.Item) error {
	for i, item := range items {
		items[i].Run = func(ctx context.Context) (bench.Sample, error) {
			// What one has written is not to be on its way to the disk while the
			// next is measured.
			syscall.Sync()
			return item.Run(ctx)
		}
	}
	return b.report.InTurns(ctx, rounds, items)
}
