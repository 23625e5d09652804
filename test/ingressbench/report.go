package main

import (
	"github.com/denia-paas/denia/test/bench"
)

// What is measured of proxies under load.
const (
	kCPU    = "cpu_ms_per_1k"
	kAllocs = "allocs_per_req"
	kPeak   = "rss_peak_mib"
)

// promises are of CPU per request, of Caddy's reverse_proxy. The peers' ratios
// are those of Traefik's fast proxy and of kamal-proxy in a measurement of
// their own, on two cores; 0: there is none.
var promises = []struct {
	scenario, peer string
	limit          float64
	traefik, kamal float64
}{
	{plain, caddyName, 0.45, 0.53, 0.75},
	{medium, caddyName, 0.6, 0.71, 0.93},
	{large, caddyName, 0.88, 0.88, 0.93},
	{secure, caddyName, 0.47, 0.51, 0.77},
	{http2, caddyName, 0.54, 0.58, 0.76},
	{plain, caddyLogs, 0.38, 0, 0.72},
}

// judge compares with what the project promises.
func (b *run) judge() {
	r := b.report
	for _, p := range promises {
		of := r.Series(p.scenario, deniaName, kCPU).Over(r.Series(p.scenario, p.peer, kCPU))
		name := "CPU, " + p.scenario + ", of " + p.peer
		r.Check(name, of, bench.AtMost(p.limit), "x")
		if p.traefik > 0 {
			r.Check(name+": less than Traefik's fast proxy", of, bench.Below(p.traefik), "x")
		}
		r.Check(name+": less than kamal-proxy", of, bench.Below(p.kamal), "x")
	}
	r.Check("allocations per request, "+plain, r.Series(plain, deniaName, kAllocs), bench.AtMost(80), "")
	r.Check("peak memory with 256 connections", r.Series(crowd, deniaName, kPeak), bench.AtMost(120), "MiB")
	r.Check("memory per WebSocket", r.Series(mSockets, deniaName, "socket_kib"), bench.AtMost(45), "KiB")
	many := mHosts(100_000)
	r.Check("lookup among 100,000 hosts", r.Series(many, tableName, "lookup_ns"), bench.AtMost(200), "ns")
	r.Check("memory per host of 100,000", r.Series(many, tableName, "bytes_per_host"), bench.AtMost(500), "B")
	r.Check("a route change until every request sees it, 1,000 hosts, 99th percentile", r.Series(mHosts(1000), tableName, "change_p99_ms"), bench.AtMost(1), "ms")
	r.Check("a route change until every request sees it, 100,000 hosts, 99th percentile", r.Series(many, tableName, "change_p99_ms"), bench.AtMost(20), "ms")
	r.Check("a route change until the first request through it has its answer, 1,000 hosts, median", r.Series(mHosts(1000), tableName, "visible_p50_ms"), bench.AtMost(1), "ms")
	r.Check("99th percentile with 100 route changes a second among 100,000 hosts, of that without",
		r.Series(many, tableName, "p99_changing_ms").Over(r.Series(many, tableName, "p99_quiet_ms")), bench.AtMost(1.1), "x")
}

// write writes the report as JSON, as a page, and as a chart.
func (b *run) write() error {
	b.judge()
	b.report.Ended()
	chart := b.chart()
	return b.report.Write(b.out, b.files(), b.page(chart != ""), chart)
}

// measured are the names of the kinds of load that were measured.
func (b *run) measured() (names []string) {
	for _, s := range scenarios {
		if len(b.report.Of(s.name)) > 0 {
			names = append(names, s.name)
		}
	}
	return names
}

// ofCaddy is the CPU a proxy needs per request, of what Caddy does.
func (b *run) ofCaddy(scenario, proxy string) bench.Series {
	return b.report.Series(scenario, proxy, kCPU).Over(b.report.Series(scenario, caddyName, kCPU))
}

// chart draws the CPU per request, of Caddy's.
func (b *run) chart() string {
	c := bench.Chart{Title: "CPU per request, of Caddy's reverse_proxy (median, lowest to highest; red: what Denia promises)"}
	for _, scenario := range b.measured() {
		g := bench.Group{Name: scenario}
		for _, result := range b.report.Of(scenario) {
			of := b.ofCaddy(scenario, result.Of)
			if len(of) == 0 {
				continue
			}
			bar := bench.Bar{Name: result.Of, Figure: of.Figure(), Ours: result.Of == deniaName}
			for _, p := range promises {
				if bar.Ours && p.scenario == scenario && p.peer == caddyName {
					bar.Limit = p.limit
				}
			}
			g.Bars = append(g.Bars, bar)
		}
		if len(g.Bars) > 0 {
			c.Groups = append(c.Groups, g)
		}
	}
	return c.SVG()
}
