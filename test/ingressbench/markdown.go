package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// page is Markdown in the making.
type page struct{ strings.Builder }

func (p *page) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

// table writes a table with the columns' names in the first row.
func (p *page) table(rows [][]string) {
	for i, row := range rows {
		p.printf("| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			p.printf("|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	p.printf("\n")
}

// number writes a value with three digits or so, and a dash for none.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case math.Abs(v) >= 10_000:
		return fmt.Sprintf("%.1fk", v/1000)
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) markdown() string {
	p := new(page)
	p.printf("# The ingress, measured\n\nWritten by `make bench-ingress` on %s; every round is in [ingress.json](ingress.json). ", r.At.Format("2006-01-02"))
	p.printf("Medians of %d rounds of %d seconds, whose order turns. CPU is the proxy's own, by the scheduler's account of all its threads, in milliseconds for 1,000 requests. Requests a second depend on what else the machine does, and compare only within this run.\n\n", r.Rounds, r.Seconds)
	m := r.Machine
	p.printf("Machine: %d CPUs (%s), %.0f GiB, Linux %s, %s; load %.1f before and %.1f after.", m.CPUs, m.Model, m.MemoryGiB, m.Kernel, m.Go, m.Load[0], m.Load[1])
	for i, v := range r.Versions {
		separator := ", "
		if i == 0 {
			separator = " From Debian: "
		}
		p.printf("%s%s %s", separator, v[0], v[1])
	}
	p.printf(". Caddy is `reverse_proxy` in Denia's own program, with 512 idle connections. Denia writes its access entries; nginx, HAProxy and `caddy` write nothing.\n\n")
	if r.Rounds < full.rounds || r.Seconds < full.seconds {
		p.printf("**A short run: the targets are set for the full one.**\n\n")
	}
	if len(r.Targets) > 0 {
		rows := [][]string{{"promise", "measured", "limit", ""}}
		for _, t := range r.Targets {
			met := "met"
			if !t.Met {
				met = "**missed**"
			}
			rows = append(rows, []string{t.Name, number(t.Measured) + " " + t.Unit, number(t.Limit) + " " + t.Unit, met})
		}
		p.printf("## Promises\n\n")
		p.table(rows)
	}
	r.matrix(p, "CPU, ms for 1,000 requests (of Caddy's)", "cpu_ms_per_1k", true)
	r.chart(p)
	r.matrix(p, "Requests a second", "req_per_s", false)
	r.matrix(p, "Latency, median, ms", "p50_ms", false)
	r.matrix(p, "Latency, 99th percentile, ms", "p99_ms", false)
	r.matrix(p, "Peak memory, MiB", "rss_peak_mib", false)
	return p.String()
}

// axes are the scenarios and proxies that were measured, in order.
func (r *report) axes() (scenarios, proxies []string) {
	for _, result := range r.Results {
		if !slices.Contains(scenarios, result.Scenario) {
			scenarios = append(scenarios, result.Scenario)
		}
		if !slices.Contains(proxies, result.Proxy) {
			proxies = append(proxies, result.Proxy)
		}
	}
	return scenarios, proxies
}

func (r *report) matrix(p *page, title, key string, ratio bool) {
	scenarios, proxies := r.axes()
	rows := [][]string{append([]string{""}, scenarios...)}
	for _, proxy := range proxies {
		row := []string{proxy}
		for _, scenario := range scenarios {
			v := r.value(scenario, proxy, key)
			cell := number(v)
			if of := v / r.value(scenario, "caddy", key); ratio && !math.IsNaN(of) {
				cell += fmt.Sprintf(" (%.2f)", of)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	p.printf("## %s\n\n", title)
	p.table(rows)
}

// chart draws the CPU of the first scenario.
func (r *report) chart(p *page) {
	scenarios, proxies := r.axes()
	if len(scenarios) == 0 {
		return
	}
	most := 0.0
	for _, proxy := range proxies {
		if v := r.value(scenarios[0], proxy, "cpu_ms_per_1k"); v > most {
			most = v
		}
	}
	p.printf("CPU for 1,000 requests, %s:\n\n```\n", scenarios[0])
	for _, proxy := range proxies {
		v := r.value(scenarios[0], proxy, "cpu_ms_per_1k")
		if math.IsNaN(v) {
			continue
		}
		p.printf("%-18s %s %s\n", proxy, strings.Repeat("█", max(1, int(60*v/most))), number(v))
	}
	p.printf("```\n\n")
}
