package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// report is what a run came to, as registry.json has it.
type report struct {
	At       time.Time   `json:"at"`
	Minutes  float64     `json:"minutes"`
	Machine  machine     `json:"machine"`
	Settings settings    `json:"settings"`
	Results  []*result   `json:"results"`
	Targets  []target    `json:"targets"`
	Versions [][2]string `json:"versions"`
}

// machine describes where it ran. It says nothing about whose machine it is.
type machine struct {
	CPUs       int        `json:"cpus"`
	Model      string     `json:"cpu_model"`
	SHA        bool       `json:"sha_extensions"`
	MemoryGiB  float64    `json:"memory_gib"`
	Kernel     string     `json:"kernel"`
	Filesystem string     `json:"filesystem"`
	Go         string     `json:"go"`
	Load       [2]float64 `json:"load_before_and_after"` // average of a minute
}

type settings struct {
	Rounds      int     `json:"rounds"`
	Size        int64   `json:"large_blob_bytes"`
	Seconds     float64 `json:"seconds_of_small_requests"`
	Connections int     `json:"connections"`
	Tags        int     `json:"tags_of_many"`
	Images      int     `json:"images_collected"`
	SmallBlobs  int     `json:"small_blobs"`
}

// result is one measurement of one server.
type result struct {
	Measure string   `json:"measure"`
	Of      string   `json:"of"`
	Median  sample   `json:"median"`
	Rounds  []sample `json:"rounds"`
}

// target is one promise of the project's, and what became of it.
type target struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured"`
	Limit    float64 `json:"limit"`
	AtLeast  bool    `json:"at_least"` // the limit is a lower one
	Unit     string  `json:"unit"`
	Met      bool    `json:"met"`
}

func newReport(ctx context.Context, o options, dir string) *report {
	r := &report{
		At:       time.Now().UTC().Truncate(time.Second),
		Settings: settings{o.rounds, o.size, o.seconds, connections, o.tags, o.images, o.smallBlobs},
		Machine: machine{
			CPUs: runtime.NumCPU(), Go: runtime.Version(),
			Kernel:     strings.TrimSpace(read1("/proc/sys/kernel/osrelease")),
			Filesystem: filesystem(dir),
			Load:       [2]float64{load()},
		},
	}
	for line := range strings.Lines(read1("/proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "model name":
			r.Machine.Model = value
		case "flags", "Features":
			r.Machine.SHA = strings.Contains(" "+value+" ", " sha_ni ") || strings.Contains(" "+value+" ", " sha2 ")
		}
	}
	var kib float64
	if _, err := fmt.Sscanf(read1("/proc/meminfo"), "MemTotal: %f kB", &kib); err == nil {
		r.Machine.MemoryGiB = math.Round(kib/(1<<20)*10) / 10
	}
	for _, name := range []string{"docker-registry", "nginx"} {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err == nil {
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

func filesystem(dir string) string {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return "unknown"
	}
	switch s.Type { // statfs(2)
	case 0xef53:
		return "ext4"
	case 0x58465342:
		return "xfs"
	case 0x9123683e:
		return "btrfs"
	case 0x01021994:
		return "tmpfs"
	case 0x794c7630:
		return "overlayfs"
	case 0x2fc12fc1:
		return "zfs"
	}
	return fmt.Sprintf("%#x", s.Type)
}

func (r *report) add(measure, of string, s sample) {
	found := r.find(measure, of)
	if found == nil {
		found = &result{Measure: measure, Of: of}
		r.Results = append(r.Results, found)
	}
	found.Rounds = append(found.Rounds, s)
	found.Median = sample{}
	for key := range s {
		found.Median[key] = found.over(key, median)
	}
}

// over applies a function to one value of all rounds.
func (r *result) over(key string, f func([]float64) float64) float64 {
	var values []float64
	for _, s := range r.Rounds {
		if v, ok := s[key]; ok {
			values = append(values, v)
		}
	}
	return f(values)
}

func (r *report) find(measure, of string) *result {
	for _, found := range r.Results {
		if found.Measure == measure && found.Of == of {
			return found
		}
	}
	return nil
}

// value is a median, NaN where it was not measured.
func (r *report) value(measure, of, key string) float64 {
	if found := r.find(measure, of); found != nil {
		if v, ok := found.Median[key]; ok {
			return v
		}
	}
	return math.NaN()
}

// judge compares with what the project promises. What was not measured has no
// line.
func (r *report) judge() {
	const (
		denia = "denia"
		both  = "both_cpu_s_per_gib"
	)
	r.Targets = nil
	check := func(name string, measured, limit float64, atLeast bool, unit string) {
		if math.IsNaN(measured) {
			return
		}
		met := measured <= limit
		if atLeast {
			met = measured >= limit
		}
		r.Targets = append(r.Targets, target{name, measured, limit, atLeast, unit, met})
	}
	hash := r.value(mHash, thisProgram, "cpu_s_per_gib")
	for _, measure := range []string{mPush, mStream} {
		check(measure+": CPU, of SHA-256 alone", r.value(measure, denia, "cpu_s_per_gib")/hash, 2, false, "x")
	}
	for _, measure := range []string{mPush, mStream} {
		check(measure+": CPU, of the smallest handler's", r.value(measure, denia, "cpu_s_per_gib")/r.value(measure, smallestName, "cpu_s_per_gib"), 1.1, false, "x")
	}
	// Over loopback the kernel does the network's work of both ends for whoever
	// happens to run, and books it there: only their sum is the same each time.
	check("GET of a large blob: CPU of server and client, of that with nginx", r.value(mGet, denia, both)/r.value(mGet, "nginx", both), 1.1, false, "x")
	check("GET of a large blob: bytes sent by sendfile", 100*r.value(mTrace, denia, "sendfile_mib")/mib(r.Settings.Size), 99, true, "%")
	few := r.value(mHead, denia, "req_per_s")
	check("HEAD by tag: requests a second, of Caddy's file_server's", few/r.value(mHead, fileServer, "req_per_s"), 0.7, true, "x")
	check(fmt.Sprintf("HEAD by tag with %d tags: requests a second, of those with one", r.Settings.Tags), r.value(mHeadMany, denia, "req_per_s")/few, 0.9, true, "x")
	check("durable blob of 64 KiB", r.value(mDurable, denia, "p50_ms"), 3, false, "ms")
	idle := r.value("idle", denia, "rss_mib")
	for _, measure := range []string{mPush, mStream, mParallel, mGet, mImagePush, mImagePull, mHead, mGetTag, mHeadTurn} {
		check("peak memory above idle, "+measure, r.value(measure, denia, "rss_peak_mib")-idle, 32, false, "MiB")
	}
	for _, probe := range []string{"head_", "put_"} {
		check("longest "+strings.ToUpper(strings.TrimSuffix(probe, "_"))+" of another repository during a collection, above without",
			r.value(mCollecting, denia, probe+"max_ms")-r.value(mQuiet, denia, probe+"max_ms"), 10, false, "ms")
	}
}

// write writes registry.json and registry.md.
func (r *report) write(dir string) error {
	r.Machine.Load[1] = load()
	r.Minutes = math.Round(time.Since(r.At).Minutes()*10) / 10
	r.judge()
	for _, result := range r.Results {
		result.Median.round()
		for _, s := range result.Rounds {
			s.round()
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
	if err := os.WriteFile(filepath.Join(dir, "registry.json"), text.Bytes(), 0o644); err != nil {
		return err
	}
	page := r.markdown()
	fmt.Print(page)
	return os.WriteFile(filepath.Join(dir, "registry.md"), []byte(page), 0o644)
}

func (s sample) round() {
	for key, value := range s {
		s[key] = significant(value)
	}
}

// significant keeps four digits.
func significant(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
