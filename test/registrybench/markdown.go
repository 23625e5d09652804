package main

import (
	"fmt"
	"math"
	"strings"
)

const (
	mTrace       = "bytes of one GET by system call"
	fileServer   = "caddy file_server"
	smallestName = "smallest handler"
	thisProgram  = "this program"
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
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func times(v float64) string { return number(v) + "x" }

func (r *report) markdown() string {
	p := new(page)
	p.printf("# The registry, measured\n\nWritten by `make bench-registry` on %s; every round is in [registry.json](registry.json). ", r.At.Format("2006-01-02"))
	p.printf("Medians of %d rounds, whose order turns. CPU is the server's own, by the scheduler's account of all its threads; what a client needs is not in it, unless it says so. MB/s and requests a second depend on what else the machine does, and compare only within this run.\n\n", r.Settings.Rounds)
	m := r.Machine
	sha := "without SHA extensions"
	if m.SHA {
		sha = "with SHA extensions"
	}
	p.printf("Machine: %d CPUs (%s, %s), %.0f GiB, Linux %s, %s, %s; load %.1f before and %.1f after. Beside Denia:", m.CPUs, m.Model, sha, m.MemoryGiB, m.Kernel, m.Filesystem, m.Go, m.Load[0], m.Load[1])
	for _, v := range r.Versions {
		p.printf(" %s %s (Debian),", v[0], v[1])
	}
	p.printf(" and Caddy's `file_server` in Denia's own program. A large blob has %s MiB, other sizes are those of the list of targets.\n\n", number(mib(r.Settings.Size)))
	if r.Settings != (settings{full.rounds, full.size, full.seconds, connections, full.tags, full.images, full.smallBlobs}) {
		p.printf("**A short run: the targets are set for the full one.**\n\n")
	}
	r.targetTable(p)
	r.transferTable(p)
	r.requestTable(p)
	r.otherTables(p)
	return p.String()
}

func (r *report) targetTable(p *page) {
	rows := [][]string{{"target", "measured", "limit", "met"}}
	for _, t := range r.Targets {
		sign, met := "≤", "yes"
		if t.AtLeast {
			sign = "≥"
		}
		if !t.Met {
			met = "**no**"
		}
		rows = append(rows, []string{t.Name, number(t.Measured) + " " + t.Unit, sign + " " + number(t.Limit) + " " + t.Unit, met})
	}
	p.printf("## Targets\n\n")
	p.table(rows)
}

// select returns the results of some measurements, in their order.
func (r *report) results(measures ...string) (found []*result) {
	for _, measure := range measures {
		for _, result := range r.Results {
			if result.Measure == measure {
				found = append(found, result)
			}
		}
	}
	return found
}

func (r *report) transferTable(p *page) {
	rows := [][]string{{"", "", "CPU s/GiB", "of SHA-256 alone, or of nginx", "with the client's", "MB/s", "memory before", "peak"}}
	hash := r.value(mHash, thisProgram, "cpu_s_per_gib")
	for _, f := range r.results(mHash, mPush, mStream, mParallel, mGet, mImagePush, mImagePull) {
		beside := ""
		switch f.Measure {
		case mPush, mStream, mParallel:
			beside = times(f.get("cpu_s_per_gib") / hash)
		case mGet:
			beside = times(f.get("cpu_s_per_gib") / r.value(mGet, "nginx", "cpu_s_per_gib"))
		}
		rows = append(rows, []string{f.Measure, f.Of, f.cell("cpu_s_per_gib"), beside, f.cell("both_cpu_s_per_gib"), f.cell("mb_per_s"), f.cell("rss_before_mib"), f.cell("rss_peak_mib")})
	}
	if len(rows) == 1 {
		return
	}
	p.printf("## Transfers\n\n")
	p.printf("A 201 says that the blob is durable, in so far as what it is stored on is. The smallest handler hashes what comes, writes it past the page cache and syncs it, and does nothing else that a registry does: Go can do with no less. Over loopback the kernel does the network's work of both ends for whoever happens to run, and books it there; so GETs are judged by what server and client need together, with a client that has the kernel throw away what comes. A GET is of pages in memory; nginx and Caddy send the very file that Denia has. Memory in MiB, all of it resident; idle:")
	separator := " "
	for _, f := range r.results("idle") {
		p.printf("%s%s %s", separator, f.Of, f.cell("rss_mib"))
		separator = ", "
	}
	p.printf(".\n\n")
	p.table(rows)
	traces := r.results(mTrace)
	if len(traces) == 0 {
		return
	}
	p.printf("How a GET leaves the process, by strace of one: ")
	for i, f := range traces {
		if i > 0 {
			p.printf("; ")
		}
		p.printf("%s %s MiB in %.0f calls of `sendfile` and %s MiB by all others that write", f.Of, f.cell("sendfile_mib"), f.get("sendfile_calls"), f.cell("other_mib"))
	}
	p.printf(".\n\n")
}

func (r *report) requestTable(p *page) {
	rows := [][]string{{"", "", "requests/s", "of file_server", "CPU µs", "p50 ms", "p99 ms", "peak MiB"}}
	for _, f := range r.results(mHead, mHeadMany, mHeadTurn, mGetTag) {
		beside := r.value(mHead, fileServer, "req_per_s")
		if f.Measure == mGetTag {
			beside = r.value(mGetTag, fileServer, "req_per_s")
		}
		rows = append(rows, []string{f.Measure, f.Of, f.cell("req_per_s"), times(f.get("req_per_s") / beside), f.cell("cpu_us_per_req"), f.cell("p50_ms"), f.cell("p99_ms"), f.cell("rss_peak_mib")})
	}
	if len(rows) == 1 {
		return
	}
	p.printf("## Small requests\n\nA manifest of 1.8 kB on %d kept connections; many are %d tags of different manifests.\n\n", r.Settings.Connections, r.Settings.Tags)
	p.table(rows)
}

func (r *report) otherTables(p *page) {
	rows := [][]string{{"", "", "p50 ms", "p99 ms", "longest ms"}}
	for _, f := range r.results(mDurable) {
		rows = append(rows, []string{f.Measure, f.Of, f.cell("p50_ms"), f.cell("p99_ms"), f.cell("max_ms")})
	}
	if len(rows) > 1 {
		p.printf("## Durable blobs of 64 KiB\n\n%d in a row on one connection, POST and PUT together. What a disk needs for a file alone (write, fsync, rename, fsync of the directory) is this program's.\n\n", r.Settings.SmallBlobs)
		p.table(rows)
	}
	rows = [][]string{{"", "HEAD p50 ms", "p99 ms", "longest ms", "PUT p50 ms", "p99 ms", "longest ms"}}
	for _, f := range r.results(mQuiet, mDeleting, mCollecting) {
		rows = append(rows, []string{f.Measure, f.cell("head_p50_ms"), f.cell("head_p99_ms"), f.cell("head_max_ms"), f.cell("put_p50_ms"), f.cell("put_p99_ms"), f.cell("put_max_ms")})
	}
	if len(rows) > 1 {
		p.printf("## A collection, seen from another repository\n\n%d images of another repository are deleted with 8 connections, and then collected, with a lease of a second. Meanwhile one client asks for a manifest and writes it again, in turn and with a rest of 4 ms; quiet is the same for as long afterwards. Longest is the median of the rounds' longest.\n\n", r.Settings.Images)
		p.table(rows)
	}
}

func (r *result) get(key string) float64 {
	if v, ok := r.Median[key]; ok {
		return v
	}
	return math.NaN()
}

func (r *result) cell(key string) string { return number(r.get(key)) }
