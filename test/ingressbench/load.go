package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
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
func (b *bench) load(ctx context.Context, p *proxy, s scenario, how time.Duration) (sample, error) {
	if s.h2 {
		return b.h2load(ctx, p, s, how)
	}
	script := filepath.Join(b.dir, "report.lua")
	if err := os.WriteFile(script, []byte(wrkScript), 0o600); err != nil {
		return nil, err
	}
	url := "http://" + p.plain + s.path
	if s.tls {
		url = "https://" + p.secure + s.path
	}
	out, err := command(ctx, "wrk", "-t2", "-c"+strconv.Itoa(s.connections), "-d"+how.String(), "-s", script, "-H", "Host: "+b.host, url)
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
	return sample{
		"requests": got.Requests, "req_per_s": got.Requests / got.Wall * 1e6,
		"p50_ms": got.P50 / 1e3, "p99_ms": got.P99 / 1e3,
	}, nil
}

var (
	h2Requests = regexp.MustCompile(`requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
	h2Rate     = regexp.MustCompile(`finished in \S+, (\S+) req/s`)
	h2Mean     = regexp.MustCompile(`time for request: +\S+ +\S+ +(\S+)`)
)

func (b *bench) h2load(ctx context.Context, p *proxy, s scenario, how time.Duration) (sample, error) {
	_, port, _ := strings.Cut(p.secure, ":")
	out, err := command(ctx, "h2load", "-t1", "-c"+strconv.Itoa(s.connections), "-m4", "-D"+strconv.Itoa(int(math.Ceil(how.Seconds()))),
		"--connect-to="+p.secure, "https://"+b.host+":"+port+s.path)
	if err != nil {
		return nil, err
	}
	counts, rate, mean := h2Requests.FindStringSubmatch(out), h2Rate.FindStringSubmatch(out), h2Mean.FindStringSubmatch(out)
	if counts == nil || rate == nil || mean == nil || counts[2] != "0" || counts[3] != "0" || counts[1] == "0" {
		return nil, fmt.Errorf("h2load:\n%s", out)
	}
	requests, err1 := strconv.ParseFloat(counts[1], 64)
	perSecond, err2 := strconv.ParseFloat(rate[1], 64)
	latency, err3 := time.ParseDuration(mean[1])
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("reading what h2load said: %w", err)
	}
	return sample{"requests": requests, "req_per_s": perSecond, "mean_ms": float64(latency) / 1e6}, nil
}

func command(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return string(out), nil
}
