package main

import (
	"fmt"
	"strings"

	"github.com/denia-paas/denia/test/bench"
)

// Names of what is measured, and of whom; the report looks for them.
const (
	mIdle       = "idle"
	mHash       = "sha256 alone"
	mPush       = "push, POST+PUT"
	mStream     = "push, POST+PATCH+PUT"
	mParallel   = "push, 4 at once"
	mGet        = "GET blob"
	mTrace      = "bytes of one GET by system call"
	mDurable    = "push of 64 KiB"
	mImagePush  = "image of ten layers, push"
	mImagePull  = "image of ten layers, pull"
	mHead       = "HEAD by tag"
	mGetTag     = "GET by tag"
	mHeadMany   = "HEAD by tag, one of many"
	mHeadTurn   = "HEAD by tag, many in turn"
	mQuiet      = "neighbour, quiet"
	mDeleting   = "neighbour, during the deletes"
	mCollecting = "neighbour, during the collection"

	deniaName    = "denia"
	nginxName    = "nginx"
	corkedName   = "nginx, tcp_nopush"
	fileServer   = "caddy file_server"
	smallestName = "smallest handler"
	thisProgram  = "this program"
)

// settings are what a run was told, as registry.json has it.
type settings struct {
	Rounds      int     `json:"rounds"`
	Size        int64   `json:"large_blob_bytes"`
	Transfers   int     `json:"transfers_of_a_get"`
	Seconds     float64 `json:"seconds_of_small_requests"`
	Connections int     `json:"connections"`
	Tags        int     `json:"tags_of_many"`
	Images      int     `json:"images_collected"`
	SmallBlobs  int     `json:"small_blobs"`
}

func (o options) settings() settings {
	return settings{o.rounds, o.size, transfers, o.seconds, connections, o.tags, o.images, o.smallBlobs}
}

// judge compares with what the project promises.
func (b *run) judge() {
	const (
		cpu  = "cpu_s_per_gib"
		both = "both_cpu_s_per_gib"
		rate = "req_per_s"
	)
	r := b.report
	ours := func(measure, key string) bench.Series { return r.Series(measure, deniaName, key) }
	for _, measure := range []string{mPush, mStream} {
		r.Check(measure+": CPU, of SHA-256 alone", ours(measure, cpu).Over(r.Series(mHash, thisProgram, cpu)), bench.AtMost(2), "x")
	}
	for _, measure := range []string{mPush, mStream} {
		r.Check(measure+": CPU, of the smallest handler's", ours(measure, cpu).Over(r.Series(measure, smallestName, cpu)), bench.AtMost(1.1), "x")
	}
	r.Check("GET of a large blob: CPU, of nginx's", ours(mGet, cpu).Over(r.Series(mGet, nginxName, cpu)), bench.AtMost(1.1), "x")
	r.Check("GET of a large blob: CPU of server and client, of that with nginx", ours(mGet, both).Over(r.Series(mGet, nginxName, both)), bench.AtMost(1.1), "x")
	r.Check("GET of a large blob: share sent by sendfile", ours(mTrace, "sendfile_mib").Each(func(v float64) float64 { return 100 * v / bench.MiB(b.size) }), bench.AtLeast(99), "%")
	r.Check("HEAD by tag: requests a second, of Caddy's file_server's", ours(mHead, rate).Over(r.Series(mHead, fileServer, rate)), bench.AtLeast(0.7), "x")
	r.Check(fmt.Sprintf("HEAD by tag with %d tags: requests a second, of those with one", b.tags), ours(mHeadMany, rate).Over(ours(mHead, rate)), bench.AtLeast(0.95), "x")
	r.Check("durable blob of 64 KiB", ours(mDurable, "p50_ms"), bench.AtMost(3), "ms")
	idle := ours(mIdle, "rss_mib").Figure().Median
	for _, measure := range []string{mPush, mStream, mParallel, mGet, mImagePush, mImagePull, mHead, mHeadTurn, mGetTag, mDurable} {
		r.Check("peak memory above idle, "+measure, ours(measure, "rss_peak_mib").Each(func(v float64) float64 { return v - idle }), bench.AtMost(32), "MiB")
	}
	for _, probe := range []string{"head_", "put_"} {
		r.Check("longest "+strings.ToUpper(strings.TrimSuffix(probe, "_"))+" of another repository during a collection, above without",
			ours(mCollecting, probe+"max_ms").Minus(ours(mQuiet, probe+"max_ms")), bench.AtMost(10), "ms")
	}
}

// write writes registry.json and registry.md.
func (b *run) write() error {
	b.judge()
	b.report.Ended()
	return b.report.Write(b.out, "registry", b.page(), "")
}
