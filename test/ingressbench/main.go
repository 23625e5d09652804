// Command ingressbench measures Denia's ingress beside Caddy's reverse_proxy,
// nginx and HAProxy, on one machine in one run, with one replica behind all of
// them that Denia has deployed.
//
// Each figure is the median of several rounds, and the order within a round
// turns from one round to the next, so that what else the machine does falls
// on all alike. What can be relied on is the proxy's CPU time, which the kernel
// accounts per thread; requests a second compare only within one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

type options struct {
	denia   string // the program
	out     string
	only    *regexp.Regexp
	proxies *regexp.Regexp
	rounds  int
	seconds int
	warmUp  time.Duration
}

// What the project promises is measured with these.
var full = options{rounds: 5, seconds: 10, warmUp: 2 * time.Second}

// scenario is one kind of load.
type scenario struct {
	name        string
	path        string // of the replica: how many bytes it answers with
	connections int
	tls, h2     bool
}

var scenarios = []scenario{
	{name: "200 B", path: "/200", connections: 64},
	{name: "200 B, 256 connections", path: "/200", connections: 256},
	{name: "64 KiB", path: "/65536", connections: 64},
	{name: "1 MiB", path: "/1048576", connections: 64},
	{name: "200 B, TLS", path: "/200", connections: 64, tls: true},
	{name: "200 B, HTTP/2", path: "/200", connections: 16, tls: true, h2: true},
}

func main() {
	o := full
	flag.StringVar(&o.denia, "denia", "bin/denia", "the `program` to measure")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "`directory` for ingress.json and ingress.md")
	flag.IntVar(&o.rounds, "rounds", o.rounds, "how often everything is measured")
	flag.IntVar(&o.seconds, "seconds", o.seconds, "how long each proxy is loaded each time")
	matching := func(into **regexp.Regexp) func(string) error {
		return func(s string) (err error) {
			*into, err = regexp.Compile(s)
			return err
		}
	}
	flag.Func("only", "measure only scenarios that match this `expression`", matching(&o.only))
	flag.Func("proxies", "measure only proxies that match this `expression`", matching(&o.proxies))
	replica := flag.String("replica", "", "serve as the replica on this `address`, for a run of this program")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *replica != "" {
		err = serveReplica(ctx, *replica)
	} else {
		err = run(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	options
	dir     string
	host    string // of the service
	replica string // its address
	denia   *deployed
	proxies []*proxy
	report  *report
}

func run(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	if b.options.denia, err = filepath.Abs(o.denia); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "ingressbench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	b.report = newReport(ctx, o)
	defer b.stop()
	if err := b.start(ctx); err != nil {
		return err
	}
	for round := range o.rounds {
		for _, s := range scenarios {
			if o.only != nil && !o.only.MatchString(s.name) {
				continue
			}
			for i := range b.proxies {
				p := b.proxies[(i+round)%len(b.proxies)]
				if o.proxies != nil && !o.proxies.MatchString(p.name) {
					continue
				}
				measured, err := b.measure(ctx, p, s)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, p.name, err)
				}
				b.report.add(s.name, p.name, measured)
				b.say("%d/%d %-24s %-20s%v", round+1, o.rounds, s.name, p.name, measured)
			}
		}
	}
	return b.report.write(o.out)
}

// measure loads one proxy.
func (b *bench) measure(ctx context.Context, p *proxy, s scenario) (sample, error) {
	if _, err := b.load(ctx, p, s, b.warmUp); err != nil {
		return nil, err
	}
	if err := p.forgetPeak(); err != nil {
		return nil, err
	}
	before, err := p.usage()
	if err != nil {
		return nil, err
	}
	got, err := b.load(ctx, p, s, time.Duration(b.seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	after, err := p.usage()
	if err != nil {
		return nil, err
	}
	got["cpu_ms_per_1k"] = (after.cpu - before.cpu).Seconds() * 1e6 / got["requests"]
	got["rss_peak_mib"] = float64(after.peak) / (1 << 20)
	return got, nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
