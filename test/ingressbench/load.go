package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

// wrkScript has wrk say in JSON what came of it.
const wrkScript = `done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"wall_us":%d,"errors":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
`

// load sends requests to p for a while, over as many connections as s says.
func (b *run) load(ctx context.Context, p *bench.Process, s scenario, how time.Duration) (bench.Sample, error) {
	if s.h2 {
		return b.h2load(ctx, p, s, how)
	}
	url := "http://" + p.Address + s.path
	if s.tls {
		url = "https://" + p.Secure + s.path
	}
	return wrk(ctx, b.file("report.lua"), "", url, s.connections, how, "-H", "Host: "+b.host)
}

// wrk loads a URL with wrk, and what more the script says; script is the file
// to write it into.
func wrk(ctx context.Context, script, more, url string, connections int, how time.Duration, args ...string) (bench.Sample, error) {
	if err := os.WriteFile(script, []byte(wrkScript+more), 0o600); err != nil {
		return nil, err
	}
	args = append(args, "-t2", "-c"+strconv.Itoa(connections), "-d"+strconv.Itoa(seconds(how)), "-s", script, url)
	out, err := command(ctx, "wrk", args...)
	if err != nil {
		return nil, err
	}
	var got struct {
		Requests float64 `json:"requests"`
		Wall     float64 `json:"wall_us"`
		Errors   int     `json:"errors"`
		P50      float64 `json:"p50_us"`
		P99      float64 `json:"p99_us"`
	}
	_, text, found := strings.Cut(out, "RESULT ")
	if !found {
		return nil, fmt.Errorf("wrk said nothing:\n%s", out)
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		return nil, fmt.Errorf("reading what wrk said: %w", err)
	}
	if got.Errors > 0 || got.Requests == 0 {
		return nil, fmt.Errorf("%d of %.0f requests failed:\n%s", got.Errors, got.Requests, out)
	}
	return bench.Sample{
		"requests": got.Requests, "req_per_s": got.Requests / got.Wall * 1e6,
		"p50_ms": got.P50 / 1e3, "p99_ms": got.P99 / 1e3,
	}, nil
}

// seconds are whole ones: the programs know no others.
func seconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }

var (
	h2Requests = regexp.MustCompile(`requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
	h2Rate     = regexp.MustCompile(`finished in \S+, (\S+) req/s`)
)

func (b *run) h2load(ctx context.Context, p *bench.Process, s scenario, how time.Duration) (bench.Sample, error) {
	each := b.file("h2load.log")
	defer os.Remove(each)
	out, err := command(ctx, "h2load", "-t1", "-c"+strconv.Itoa(s.connections), "-m4", "-D"+strconv.Itoa(seconds(how)),
		"--log-file="+each, "--connect-to="+p.Secure, "https://"+b.host+":"+bench.Port(p.Secure)+s.path)
	if err != nil {
		return nil, err
	}
	counts, rate := h2Requests.FindStringSubmatch(out), h2Rate.FindStringSubmatch(out)
	if counts == nil || rate == nil || counts[2] != "0" || counts[3] != "0" || counts[1] == "0" {
		return nil, fmt.Errorf("h2load:\n%s", out)
	}
	requests, err1 := strconv.ParseFloat(counts[1], 64)
	perSecond, err2 := strconv.ParseFloat(rate[1], 64)
	took, err3 := h2Latencies(each)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("reading what h2load said: %w", err)
	}
	return bench.Sample{"requests": requests, "req_per_s": perSecond}.Latencies("", took), nil
}

// h2Latencies reads h2load's log: for each request when it began, the status,
// and how many microseconds it took.
func h2Latencies(path string) (took []time.Duration, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		var at, us int64
		var status int
		if _, err := fmt.Sscan(line, &at, &status, &us); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		took = append(took, time.Duration(us)*time.Microsecond)
	}
	return took, nil
}

func command(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return string(out), nil
}
