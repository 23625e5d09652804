package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
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

// usage is what a proxy has used, its children included.
type usage struct {
	cpu  time.Duration
	peak int64 // bytes resident, the children's added
}

// usage reads the scheduler's account of every thread, in nanoseconds.
func (p *proxy) usage() (u usage, err error) {
	for _, pid := range p.family() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return usage{}, fmt.Errorf("%s has ended: %w\n%s", p.name, err, p.log)
		}
		for line := range strings.SplitSeq(string(status), "\n") {
			var n int64
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

// forgetPeak has VmHWM be the peak of what follows (proc(5)).
func (p *proxy) forgetPeak() error {
	for _, pid := range p.family() {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return fmt.Errorf("resetting the peak memory: %w", err)
		}
	}
	return nil
}

// family is the process and its children, as nginx has.
func (p *proxy) family() []int {
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

// report is what a run came to, as ingress.json has it.
type report struct {
	At       time.Time   `json:"at"`
	Minutes  float64     `json:"minutes"`
	Machine  machine     `json:"machine"`
	Rounds   int         `json:"rounds"`
	Seconds  int         `json:"seconds"`
	Results  []*result   `json:"results"`
	Targets  []target    `json:"targets"`
	Versions [][2]string `json:"versions"`
}

// machine describes where it ran. It says nothing about whose machine it is.
type machine struct {
	CPUs      int        `json:"cpus"`
	Model     string     `json:"cpu_model"`
	MemoryGiB float64    `json:"memory_gib"`
	Kernel    string     `json:"kernel"`
	Go        string     `json:"go"`
	Load      [2]float64 `json:"load_before_and_after"` // average of a minute
}

// result is one proxy under one kind of load.
type result struct {
	Scenario string   `json:"scenario"`
	Proxy    string   `json:"proxy"`
	Median   sample   `json:"median"`
	Rounds   []sample `json:"rounds"`
}

// target is one promise of the project's, and what became of it.
type target struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured"`
	Limit    float64 `json:"limit"`
	Unit     string  `json:"unit"`
	Met      bool    `json:"met"`
}

func newReport(ctx context.Context, o options) *report {
	r := &report{
		At: time.Now().UTC().Truncate(time.Second), Rounds: o.rounds, Seconds: o.seconds,
		Machine: machine{
			CPUs: runtime.NumCPU(), Go: runtime.Version(),
			Kernel: strings.TrimSpace(read1("/proc/sys/kernel/osrelease")),
			Load:   [2]float64{load()},
		},
	}
	for line := range strings.Lines(read1("/proc/cpuinfo")) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			r.Machine.Model = strings.TrimSpace(value)
		}
	}
	var kib float64
	if _, err := fmt.Sscanf(read1("/proc/meminfo"), "MemTotal: %f kB", &kib); err == nil {
		r.Machine.MemoryGiB = math.Round(kib/(1<<20)*10) / 10
	}
	for _, name := range []string{"nginx", "haproxy", "wrk", "nghttp2-client"} {
		if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", name).Output(); err == nil {
			r.Versions = append(r.Versions, [2]string{name, string(out)})
		}
	}
	return r
}

// read1 returns a file of /proc, empty where there is none.
func read1(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

func load() (average float64) {
	_, _ = fmt.Sscan(read1("/proc/loadavg"), &average)
	return average
}

func (r *report) add(scenario, proxy string, s sample) {
	found := r.find(scenario, proxy)
	if found == nil {
		found = &result{Scenario: scenario, Proxy: proxy}
		r.Results = append(r.Results, found)
	}
	found.Rounds = append(found.Rounds, s)
	found.Median = sample{}
	for key := range s {
		var values []float64
		for _, round := range found.Rounds {
			values = append(values, round[key])
		}
		slices.Sort(values)
		found.Median[key] = (values[(len(values)-1)/2] + values[len(values)/2]) / 2
	}
}

func (r *report) find(scenario, proxy string) *result {
	for _, found := range r.Results {
		if found.Scenario == scenario && found.Proxy == proxy {
			return found
		}
	}
	return nil
}

// value is a median, NaN where it was not measured.
func (r *report) value(scenario, proxy, key string) float64 {
	if found := r.find(scenario, proxy); found != nil {
		if v, ok := found.Median[key]; ok {
			return v
		}
	}
	return math.NaN()
}

// judge compares with what the project promises. What was not measured has no
// line.
func (r *report) judge() {
	r.Targets = nil
	check := func(name string, measured, limit float64, unit string) {
		if !math.IsNaN(measured) {
			r.Targets = append(r.Targets, target{name, measured, limit, unit, measured <= limit})
		}
	}
	const cpu = "cpu_ms_per_1k"
	for _, promise := range []struct {
		scenario, peer string
		limit          float64
	}{
		{"200 B", "caddy", 0.45},
		{"64 KiB", "caddy", 0.6},
		{"1 MiB", "caddy", 0.88},
		{"200 B, TLS", "caddy", 0.47},
		{"200 B, HTTP/2", "caddy", 0.54},
		{"200 B", "caddy, access log", 0.38},
	} {
		check("CPU, "+promise.scenario+", of "+promise.peer, r.value(promise.scenario, "denia", cpu)/r.value(promise.scenario, promise.peer, cpu), promise.limit, "x")
	}
	check("peak memory with 256 connections", r.value("200 B, 256 connections", "denia", "rss_peak_mib"), 120, "MiB")
}

// write writes ingress.json and ingress.md.
func (r *report) write(dir string) error {
	r.Machine.Load[1] = load()
	r.Minutes = math.Round(time.Since(r.At).Minutes()*10) / 10
	r.judge()
	for _, result := range r.Results {
		for key, value := range result.Median {
			result.Median[key] = significant(value)
		}
		for _, s := range result.Rounds {
			for key, value := range s {
				s[key] = significant(value)
			}
		}
	}
	for i := range r.Targets {
		r.Targets[i].Measured = significant(r.Targets[i].Measured)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(r); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ingress.json"), text.Bytes(), 0o644); err != nil {
		return err
	}
	page := r.markdown()
	fmt.Print(page)
	return os.WriteFile(filepath.Join(dir, "ingress.md"), []byte(page), 0o644)
}

// significant keeps four digits.
func significant(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
