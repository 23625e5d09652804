package main

import (
	"slices"

	"github.com/denia-paas/denia/test/bench"
)

func (b *run) page(charted bool) string {
	p := new(bench.Page)
	title, command, where := "The ingress, measured", "make bench-ingress", "in a container that Denia has deployed"
	if b.loopback {
		title, command, where = "The ingress on loopback, measured", "scripts/bench-ingress -loopback", "on the machine's loopback: what the kernel does for each packet on the engine's bridge, which is the same for all of them, is left out"
	}
	p.Begin(b.report, title, command, b.files()+".json",
		"All proxies are before the same replica, "+where+". Caddy is `reverse_proxy` in Denia's own program, with 512 idle connections. Denia writes its access entries; nginx, HAProxy and `caddy` write nothing, `caddy, access log` is what both logging is compared with, and `caddy, no proxy` is Caddy's server that answers by itself: what every proxy within it adds to. The replica is nginx with sendfile.")
	if b.settings() != full.settings() {
		p.Printf("**A short run: the targets are set for the full one.**\n\n")
	}
	p.Targets(b.report)
	if len(b.measured()) > 0 {
		p.Printf("## Under load\n\n%d seconds of each kind of load after a second that is not measured, with 64 connections unless it says so; HTTP/2 with 16, of 4 requests at a time each. Memory is the peak of what is resident during the load.\n\n", b.seconds)
		if charted {
			p.Printf("![CPU per request, of Caddy's](%s.svg)\n\n", b.files())
		}
	}
	b.matrix(p, "CPU, ms for 1,000 requests", b.cells(kCPU))
	b.matrix(p, "CPU, of Caddy's", func(scenario, proxy string) string { return b.ofCaddy(scenario, proxy).Figure().String() })
	b.matrix(p, "Allocations per request", b.cells(kAllocs))
	b.matrix(p, "Requests a second", b.cells("req_per_s"))
	b.matrix(p, "Latency, median, ms", b.cells("p50_ms"))
	b.matrix(p, "Latency, 99th percentile, ms", b.cells("p99_ms"))
	b.matrix(p, "Peak memory, MiB", b.cells(kPeak))
	b.sockets(p)
	b.scale(p)
	return p.String()
}

func (b *run) cells(key string) func(scenario, proxy string) string {
	return func(scenario, proxy string) string { return b.report.Series(scenario, proxy, key).Figure().String() }
}

// matrix is a table of all proxies under all kinds of load.
func (b *run) matrix(p *bench.Page, title string, cell func(scenario, proxy string) string) {
	names := b.measured()
	if len(names) == 0 {
		return
	}
	rows := [][]string{append([]string{""}, names...)}
	for _, proxy := range b.proxies {
		row := []string{proxy.Name}
		for _, scenario := range names {
			row = append(row, cell(scenario, proxy.Name))
		}
		if slices.ContainsFunc(row[1:], func(cell string) bool { return cell != "–" }) {
			rows = append(rows, row)
		}
	}
	if len(rows) > 1 {
		p.Printf("### %s\n\n", title)
		p.Table(rows)
	}
}

func (b *run) sockets(p *bench.Page) {
	rows := [][]string{{"", "KiB each", "resident MiB", "peak MiB"}}
	for _, f := range b.report.Of(mSockets) {
		rows = append(rows, []string{f.Of, f.Cell("socket_kib"), f.Cell("rss_mib"), f.Cell(kPeak)})
	}
	if len(rows) > 1 {
		p.Printf("## WebSockets\n\nWhat the resident memory of a proxy that was started anew grows by with %d of them, each of which has said something both ways, beyond the first 100.\n\n", sockets)
		p.Table(rows)
	}
}

func (b *run) scale(p *bench.Page) {
	rows := [][]string{{"", "lookup ns", "B a host", "change µs", "seen after ms", "99th percentile", "all anew ms", "latency's p99, quiet ms", "with changes"}}
	for _, n := range tableSizes {
		for _, f := range b.report.Of(mHosts(n)) {
			rows = append(rows, []string{f.Measure, f.Cell("lookup_ns"), f.Cell("bytes_per_host"), f.Cell("change_us"), f.Cell("visible_p50_ms"), f.Cell("visible_p99_ms"), f.Cell("set_all_ms"), f.Cell("p99_quiet_ms"), f.Cell("p99_changing_ms")})
		}
	}
	if len(rows) > 1 {
		p.Printf("## Many hosts\n\nThe ingress's handler with its route table, in a process of its own behind net/http's server. Each host has a service of its own; the memory is of both, and with few hosts mostly that of the empty table. Seen is from the change until the first request has its answer from the replica. With changes is with 100 a second; both are of 64 connections that ask for 1,000 of the hosts in turn.\n\n")
		p.Table(rows)
	}
	for _, f := range b.report.Of(mPromote) {
		p.Printf("## From promote to the first request\n\nFrom when a deployment says it was promoted until the first request that went to the new replica has its answer, of a client that asks all the time: %s ms, at most %s ms.\n\n", f.Cell("first_p50_ms"), f.Cell("first_max_ms"))
	}
}
