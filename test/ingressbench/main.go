// Command ingressbench measures Denia's ingress beside Caddy's reverse_proxy,
// nginx and HAProxy, on one machine in one run, with one replica behind all of
// them that Denia has deployed.
//
// How it measures, and what can be relied on, is told in package bench.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

type options struct {
	denia   string // the program
	against string // another build of it, empty for none
	out     string
	only    *regexp.Regexp
	proxies *regexp.Regexp
	rounds  int
	seconds int

	loopback bool // the replica is there, and not in its container
}

// What the project promises is measured with these.
var full = options{rounds: 5, seconds: 5}

const warmUp = time.Second

// scenario is one kind of load.
type scenario struct {
	name        string
	path        string // of the replica: how many bytes it answers with
	connections int
	tls, h2     bool
}

const (
	plain  = "200 B"
	crowd  = "200 B, 256 connections"
	medium = "64 KiB"
	large  = "1 MiB"
	secure = "200 B, TLS"
	http2  = "200 B, HTTP/2"
)

// small is the path of answers of 200 bytes.
const small = "/200"

var scenarios = []scenario{
	{name: plain, path: small, connections: 64},
	{name: crowd, path: small, connections: 256},
	{name: medium, path: "/65536", connections: 64},
	{name: large, path: "/1048576", connections: 64},
	{name: secure, path: small, connections: 64, tls: true},
	{name: http2, path: small, connections: 16, tls: true, h2: true},
}

func main() {
	o := full
	flag.StringVar(&o.denia, "denia", "bin/denia", "the `program` to measure")
	flag.StringVar(&o.against, "against", "", "another build of the `program`, to be measured in turns with it")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "`directory` for ingress.json, ingress.md and ingress.svg, or those of ingress-loopback")
	flag.IntVar(&o.rounds, "rounds", o.rounds, "how often everything is measured")
	flag.IntVar(&o.seconds, "seconds", o.seconds, "how long each proxy is loaded each time")
	matching := func(into **regexp.Regexp) func(string) error {
		return func(s string) (err error) {
			*into, err = regexp.Compile(s)
			return err
		}
	}
	flag.Func("only", "measure only what matches this `expression`: the kinds of load, "+mSockets+", "+mPromote+", hosts", matching(&o.only))
	flag.Func("proxies", "measure only proxies that match this `expression`", matching(&o.proxies))
	flag.BoolVar(&o.loopback, "loopback", false, "as root: have the replica answer on loopback, without the engine's bridge; only the kinds of load")
	replica := flag.Bool("replica", false, "serve as the replica, for a run of this program")
	hosts := flag.Int("hosts", 0, "measure the route table with this many `hosts`, for a run of this program")
	to := flag.String("to", "", "`address` of the replica the hosts are routed to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case *replica:
		err = serveReplica(ctx)
	case *hosts > 0:
		err = printed(measureHosts(ctx, *hosts, *to, o.seconds))
	default:
		err = measure(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// printed has the run of this program that started this one read the sample.
func printed(s bench.Sample, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// run is one run.
type run struct {
	options
	servers bench.Servers
	host    string // of the service
	replica string // its address
	denia   *bench.Denia
	made    []*service
	proxies []*bench.Process
	report  *bench.Report
}

// settings are what a run was told, as ingress.json has it.
type settings struct {
	Rounds  int `json:"rounds"`
	Seconds int `json:"seconds"`
	Sockets int `json:"websockets"`
}

func (o options) settings() settings { return settings{o.rounds, o.seconds, sockets} }

// files is the name of what a run writes.
func (o options) files() string {
	if o.loopback {
		return "ingress-loopback"
	}
	return "ingress"
}

func measure(ctx context.Context, o options) (err error) {
	if o.loopback && os.Geteuid() != 0 {
		return errors.New("-loopback gives the machine an address, which takes root")
	}
	b := &run{options: o}
	if b.servers.Program, err = filepath.Abs(o.denia); err != nil {
		return err
	}
	if b.servers.Dir, err = os.MkdirTemp("", "ingressbench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.servers.Dir)
	b.report = bench.NewReport(ctx, b.servers.Dir, o.settings(), "nginx", "haproxy", "wrk", "nghttp2-client")
	defer b.servers.End()
	defer b.remove()
	if err := b.start(ctx); err != nil {
		return err
	}
	if o.loopback {
		giveBack, err := b.takeOver(ctx)
		defer giveBack()
		if err != nil {
			return err
		}
	}
	items, err := b.items(ctx)
	if err != nil {
		return err
	}
	if err := b.report.InTurns(ctx, o.rounds, items); err != nil {
		return err
	}
	return b.write()
}

// items are everything to measure in each round.
func (b *run) items(ctx context.Context) (items []bench.Item, err error) {
	add := func(measure, of string, run func(context.Context) (bench.Sample, error)) {
		items = append(items, bench.Item{Measure: measure, Of: of, Run: run})
	}
	if b.wants(mSockets) && !b.loopback {
		for _, p := range b.chosen() {
			if p.Name != caddyLogs && p.Name != floorName {
				add(mSockets, p.Name, func(ctx context.Context) (bench.Sample, error) { return b.freshSockets(ctx, p) })
			}
		}
	}
	for _, s := range scenarios {
		if !b.wants(s.name) {
			continue
		}
		for _, p := range b.chosen() {
			// One is there for the promise about both logging, one to tell what
			// no proxy within Caddy can do without.
			if (p.Name != caddyLogs || s.name == plain) && (p.Name != floorName || s.path == small) {
				add(s.name, p.Name, func(ctx context.Context) (bench.Sample, error) { return b.loaded(ctx, p, s) })
			}
		}
	}
	for _, n := range tableSizes {
		if b.wants(mHosts(n)) && !b.loopback {
			add(mHosts(n), tableName, func(ctx context.Context) (bench.Sample, error) { return b.hosts(ctx, n) })
		}
	}
	if b.wants(mPromote) && !b.loopback {
		moving, err := b.deploy(ctx, b.denia, "moving")
		if err != nil {
			return nil, err
		}
		add(mPromote, deniaName, func(ctx context.Context) (bench.Sample, error) { return b.promote(ctx, moving) })
	}
	return items, nil
}

func (b *run) wants(name string) bool { return b.only == nil || b.only.MatchString(name) }

// chosen are the proxies to measure.
func (b *run) chosen() (chosen []*bench.Process) {
	for _, p := range b.proxies {
		if b.options.proxies == nil || b.options.proxies.MatchString(p.Name) {
			chosen = append(chosen, p)
		}
	}
	return chosen
}

// file is the path of a file of the run's.
func (b *run) file(name string) string { return filepath.Join(b.servers.Dir, name) }

// loaded loads one proxy.
func (b *run) loaded(ctx context.Context, p *bench.Process, s scenario) (bench.Sample, error) {
	if _, err := b.load(ctx, p, s, warmUp); err != nil {
		return nil, err
	}
	var got bench.Sample
	var objects, bytes float64
	used, err := p.Measure(func() (err error) {
		if p.Admin != "" {
			if objects, bytes, err = p.Allocations(ctx); err != nil {
				return err
			}
		}
		got, err = b.load(ctx, p, s, time.Duration(b.seconds)*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	got["cpu_ms_per_1k"] = used["cpu_s"] * 1e6 / got["requests"]
	got["rss_peak_mib"] = used["rss_peak_mib"]
	if p.Admin != "" {
		objectsAfter, bytesAfter, err := p.Allocations(ctx)
		if err != nil {
			return nil, err
		}
		got["allocs_per_req"] = (objectsAfter - objects) / got["requests"]
		got["alloc_bytes_per_req"] = (bytesAfter - bytes) / got["requests"]
	}
	return got, nil
}
