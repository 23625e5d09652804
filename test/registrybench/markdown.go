package main

import "github.com/denia-paas/denia/test/bench"

func (b *run) page() string {
	p := new(bench.Page)
	p.Begin(b.report, "The registry, measured", "make bench-registry", "registry.json", "Denia is beside Debian's docker-registry, and nginx and Caddy's `file_server`, which is in Denia's own program, with plain files. A large blob has "+bench.Number(bench.MiB(b.size))+" MiB.")
	if b.settings() != full.settings() {
		p.Printf("**A short run: the targets are set for the full one.**\n\n")
	}
	p.Targets(b.report)
	b.transferTable(p)
	b.requestTable(p)
	b.otherTables(p)
	return p.String()
}

func times(s bench.Series) string { return s.Figure().String() + "x" }

func (b *run) transferTable(p *bench.Page) {
	const cpu = "cpu_s_per_gib"
	rows := [][]string{{"", "", "CPU s/GiB", "of SHA-256 alone, or of nginx", "with the client's", "MB/s", "memory before", "peak"}}
	hash, nginx := b.report.Series(mHash, thisProgram, cpu), b.report.Series(mGet, nginxName, cpu)
	for _, f := range b.report.Of(mHash, mPush, mStream, mParallel, mGet, mImagePush, mImagePull) {
		beside := ""
		switch f.Measure {
		case mPush, mStream, mParallel:
			beside = times(f.Series(cpu).Over(hash))
		case mGet:
			beside = times(f.Series(cpu).Over(nginx))
		}
		rows = append(rows, []string{f.Measure, f.Of, f.Cell(cpu), beside, f.Cell("both_cpu_s_per_gib"), f.Cell("mb_per_s"), f.Cell("rss_before_mib"), f.Cell("rss_peak_mib")})
	}
	if len(rows) == 1 {
		return
	}
	p.Printf("## Transfers\n\n")
	p.Printf("A 201 says that the blob is durable, in so far as what it is stored on is. The smallest handler hashes what comes, writes it past the page cache and syncs it, and does nothing else that a registry does: Go can do with no less. Over loopback the kernel does the network's work of both ends for whoever happens to run, and books it there; so GETs are judged by what the server needs and, which is steadier, by what server and client need together, with a client that has the kernel throw away what comes. Go's connections send without delay, as nginx's do by itself; told to fill its segments first, it needs less. Nginx and Denia are measured twice in each round, in this order and in the other, %d transfers each time after one that is not measured. A GET is of pages in memory; nginx and Caddy send the very file that Denia has. Memory in MiB, all of it resident; idle:", transfers)
	separator := " "
	for _, f := range b.report.Of(mIdle) {
		p.Printf("%s%s %s", separator, f.Of, f.Cell("rss_mib"))
		separator = ", "
	}
	p.Printf(".\n\n")
	p.Table(rows)
	traces := b.report.Of(mTrace)
	if len(traces) == 0 {
		return
	}
	p.Printf("How a GET leaves the process, by strace of one: ")
	for i, f := range traces {
		if i > 0 {
			p.Printf("; ")
		}
		p.Printf("%s %s MiB in %s calls of `sendfile` and %s MiB by all others that write", f.Of, f.Cell("sendfile_mib"), f.Cell("sendfile_calls"), f.Cell("other_mib"))
	}
	p.Printf(".\n\n")
}

func (b *run) requestTable(p *bench.Page) {
	rows := [][]string{{"", "", "requests/s", "of file_server", "CPU µs", "p50 ms", "p99 ms", "peak MiB"}}
	for _, f := range b.report.Of(mHead, mHeadMany, mHeadTurn, mGetTag) {
		beside := mHead
		if f.Measure == mGetTag {
			beside = mGetTag
		}
		rows = append(rows, []string{f.Measure, f.Of, f.Cell("req_per_s"), times(f.Series("req_per_s").Over(b.report.Series(beside, fileServer, "req_per_s"))), f.Cell("cpu_us_per_req"), f.Cell("p50_ms"), f.Cell("p99_ms"), f.Cell("rss_peak_mib")})
	}
	if len(rows) == 1 {
		return
	}
	p.Printf("## Small requests\n\nA manifest of 1.8 kB on %d kept connections; many are %d tags of different manifests.\n\n", connections, b.tags)
	p.Table(rows)
}

func (b *run) otherTables(p *bench.Page) {
	rows := [][]string{{"", "", "p50 ms", "p99 ms", "longest ms"}}
	for _, f := range b.report.Of(mDurable) {
		rows = append(rows, []string{f.Measure, f.Of, f.Cell("p50_ms"), f.Cell("p99_ms"), f.Cell("max_ms")})
	}
	if len(rows) > 1 {
		p.Printf("## Durable blobs of 64 KiB\n\n%d in a row on one connection, POST and PUT together. What a disk needs for a file alone (write, fsync, rename, fsync of the directory) is this program's.\n\n", b.smallBlobs)
		p.Table(rows)
	}
	rows = [][]string{{"", "HEAD p50 ms", "p99 ms", "longest ms", "PUT p50 ms", "p99 ms", "longest ms"}}
	for _, f := range b.report.Of(mQuiet, mDeleting, mCollecting) {
		rows = append(rows, []string{f.Measure, f.Cell("head_p50_ms"), f.Cell("head_p99_ms"), f.Cell("head_max_ms"), f.Cell("put_p50_ms"), f.Cell("put_p99_ms"), f.Cell("put_max_ms")})
	}
	if len(rows) > 1 {
		p.Printf("## A collection, seen from another repository\n\n%d images of another repository are deleted with 8 connections, and then collected, with a lease of a second. Meanwhile one client asks for a manifest and writes it again, in turn and with a rest of 4 ms; quiet is the same for as long afterwards. Longest is the median of the rounds' longest.\n\n", b.images)
		p.Table(rows)
	}
}
