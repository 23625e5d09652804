package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what was measured once: values by name, with the unit in it.
type sample map[string]float64

func (s sample) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, " %s=%.4g", key, s[key])
	}
	return b.String()
}

// usage is what a server has used, its children included.
type usage struct {
	cpu       time.Duration
	rss, peak int64 // bytes
}

// usage reads the scheduler's account of every thread, in nanoseconds.
func (p *process) usage() (u usage, err error) {
	for _, pid := range p.family() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return usage{}, fmt.Errorf("%s has ended: %w\n%s", p.name, err, p.log)
		}
		for line := range strings.SplitSeq(string(status), "\n") {
			var n int64
			if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &n); err == nil {
				u.rss += n << 10
			}
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &n); err == nil {
				u.peak += n << 10
			}
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil || len(threads) == 0 {
			return usage{}, fmt.Errorf("this kernel keeps no account of CPU time by thread (CONFIG_SCHED_INFO)")
		}
		for _, thread := range threads {
			var ns int64
			if text, err := os.ReadFile(thread); err == nil {
				_, _ = fmt.Sscan(string(text), &ns)
			}
			u.cpu += time.Duration(ns)
		}
	}
	return u, nil
}

// family is the process and its children, as nginx has.
func (p *process) family() []int {
	pid := p.cmd.Process.Pid
	family := []int{pid}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			family = append(family, child)
		}
	}
	return family
}

// measured runs work and returns what the server used for it.
func (p *process) measured(work func() error) (sample, error) {
	for _, pid := range p.family() {
		// From here on VmHWM is the peak of what follows (proc(5)).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return nil, fmt.Errorf("resetting the peak memory: %w", err)
		}
	}
	before, err := p.usage()
	if err != nil {
		return nil, err
	}
	client, err := ownCPU(syscall.RUSAGE_SELF)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return nil, err
	}
	wall := time.Since(began)
	after, err := p.usage()
	if err != nil {
		return nil, err
	}
	clientAfter, err := ownCPU(syscall.RUSAGE_SELF)
	if err != nil {
		return nil, err
	}
	return sample{
		"client_cpu_s":   (clientAfter - client).Seconds(),
		"wall_s":         wall.Seconds(),
		"cpu_s":          (after.cpu - before.cpu).Seconds(),
		"rss_before_mib": mib(before.rss),
		"rss_peak_mib":   mib(after.peak),
	}, nil
}

// ownCPU is what this process, or with rusageThread this thread, has used.
func ownCPU(who int) (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

const rusageThread = 1 // getrusage(2); package syscall has no name for it

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// perGiB adds rates of a transfer.
func (s sample) perGiB(bytes int64) sample {
	gib := float64(bytes) / (1 << 30)
	s["cpu_s_per_gib"] = s["cpu_s"] / gib
	s["both_cpu_s_per_gib"] = (s["cpu_s"] + s["client_cpu_s"]) / gib
	s["mb_per_s"] = float64(bytes) / 1e6 / s["wall_s"]
	return s
}

// perRequest adds rates of many small requests.
func (s sample) perRequest(n int) sample {
	s["req_per_s"] = float64(n) / s["wall_s"]
	s["cpu_us_per_req"] = 1e6 * s["cpu_s"] / float64(n)
	return s
}

// latencies adds the median, the 99th percentile and the maximum, under names
// with a prefix.
func (s sample) latencies(prefix string, all []time.Duration) sample {
	if len(all) == 0 {
		return s
	}
	slices.Sort(all)
	at := func(q float64) float64 {
		i := min(len(all)-1, int(q*float64(len(all))))
		return float64(all[i]) / float64(time.Millisecond)
	}
	s[prefix+"p50_ms"], s[prefix+"p99_ms"], s[prefix+"max_ms"] = at(0.5), at(0.99), at(1)
	return s
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
