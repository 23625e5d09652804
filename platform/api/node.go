package api

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

type healthBody struct {
	Status string `json:"status" enum:"ok"`
}

func (a *API) health(context.Context, *nothing) (*object[healthBody], error) {
	return &object[healthBody]{Body: healthBody{"ok"}}, nil
}

// Docker is what GET /v1/node tells about the engine.
type Docker struct {
	Version     string `json:"version"`
	Containers  int    `json:"containers"`
	ImagesBytes int64  `json:"images_bytes"`
	Error       string `json:"error,omitempty" doc:"Why the engine could not be asked."`
}

// IngressRoute is one row of GET /v1/ingress/routes.
type IngressRoute struct {
	Host      string          `json:"host"`
	ServiceID platform.ID     `json:"service_id"`
	Waiting   int             `json:"waiting" doc:"Requests that wait for a ready replica."`
	Targets   []IngressTarget `json:"targets"`
}

// IngressTarget is a replica as the ingress sees it.
type IngressTarget struct {
	ID        string      `json:"id"`
	ReleaseID platform.ID `json:"release_id" doc:"The deployment it belongs to."`
	Addr      string      `json:"addr"`
	Ready     bool        `json:"ready" doc:"It answered its last health check."`
	Serving   bool        `json:"serving" doc:"It belongs to the active release."`
	Draining  bool        `json:"draining" doc:"It gets no new requests."`
	InFlight  int         `json:"in_flight"`
}

type node struct {
	Version       string     `json:"version"`
	InstanceID    string     `json:"instance_id" doc:"The value of the label denia.instance on what Denia makes in the engine."`
	Hostname      string     `json:"hostname"`
	ControlDomain string     `json:"control_domain"`
	BaseDomain    string     `json:"base_domain"`
	OS            string     `json:"os"`
	Kernel        string     `json:"kernel"`
	CPUs          int        `json:"cpus"`
	CPUPct        float64    `json:"cpu_pct" doc:"Of all cores together, since somebody last asked."`
	Load          [3]float64 `json:"load" doc:"Over 1, 5 and 15 minutes."`
	Memory        nodeMemory `json:"memory"`
	Disk          nodeDisk   `json:"disk" doc:"Where Denia keeps its data."`
	Docker        *Docker    `json:"docker,omitempty"`
	UptimeS       int64      `json:"uptime_s" doc:"Of Denia."`
	Nodes         []nodeName `json:"nodes"`
}

type nodeMemory struct {
	TotalBytes     int64 `json:"total_bytes"`
	AvailableBytes int64 `json:"available_bytes"`
}

type nodeDisk struct {
	Path           string `json:"path"`
	TotalBytes     int64  `json:"total_bytes"`
	AvailableBytes int64  `json:"available_bytes"`
}

type nodeName struct {
	Hostname string `json:"hostname"`
	State    string `json:"state" enum:"ready"`
}

// node tells what can be known cheaply. A figure the host does not give is 0.
func (a *API) node(ctx context.Context, _ *nothing) (*object[node], error) {
	hostname, err := os.Hostname()
	if err != nil {
		a.Log.WarnContext(ctx, "reading the host name failed", "error", err)
	}
	n := node{
		Version: a.Version, InstanceID: a.Store.InstanceID(), Hostname: hostname, ControlDomain: a.controlDomain(), BaseDomain: a.BaseDomain,
		OS: runtime.GOOS, Kernel: strings.TrimSpace(proc("sys/kernel/osrelease")), CPUs: runtime.NumCPU(),
		CPUPct: a.cpu.percent(), Load: parseLoad(proc("loadavg")), Memory: parseMemory(proc("meminfo")),
		Disk: a.disk(ctx), UptimeS: int64(time.Since(a.started).Seconds()),
		Nodes: []nodeName{{hostname, "ready"}},
	}
	if a.Docker != nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		docker, err := a.Docker(ctx)
		if err != nil {
			a.Log.WarnContext(ctx, "asking the engine failed", "error", err)
			docker = Docker{Error: "the engine does not answer"}
		}
		n.Docker = &docker
	}
	return &object[node]{Body: n}, nil
}

// disk is the disk of the data directory.
func (a *API) disk(ctx context.Context) nodeDisk {
	disk := nodeDisk{Path: a.DataDir}
	if a.DataDir == "" {
		return disk
	}
	var err error
	if disk.TotalBytes, disk.AvailableBytes, err = diskUsage(a.DataDir); err != nil {
		a.Log.WarnContext(ctx, "reading the disk usage failed", "error", err)
	}
	return disk
}

func (a *API) controlDomain() string {
	if a.ControlDomain == nil {
		return ""
	}
	return a.ControlDomain()
}

func (a *API) ingressRoutes(context.Context, *nothing) (*listing[IngressRoute], error) {
	out := &listing[IngressRoute]{Body: []IngressRoute{}}
	if a.Routes != nil {
		out.Body = append(out.Body, a.Routes()...)
	}
	for i := range out.Body {
		if out.Body[i].Targets == nil {
			out.Body[i].Targets = []IngressTarget{}
		}
	}
	return out, nil
}

// proc reads a file of procfs; where there is none, nothing.
func proc(name string) string {
	content, err := os.ReadFile("/proc/" + name)
	if err != nil {
		return ""
	}
	return string(content)
}

func parseLoad(text string) (load [3]float64) {
	for i, word := range strings.Fields(text) {
		if i == len(load) {
			break
		}
		load[i], _ = strconv.ParseFloat(word, 64) // 0 for what is no number
	}
	return load
}

func parseMemory(text string) (m nodeMemory) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(words[1], 10, 64) // 0 for what is no number
		switch words[0] {
		case "MemTotal:":
			m.TotalBytes = kib << 10
		case "MemAvailable:":
			m.AvailableBytes = kib << 10
		}
	}
	return m
}

// cpuMeter gives the share of busy time between two questions. Safe for
// concurrent use.
type cpuMeter struct {
	mu          sync.Mutex
	at          time.Time
	busy, total float64
	pct         float64
}

// percent answers the last result again within a second: the shorter the
// interval, the wilder the figure. The first answer is the mean since boot.
func (m *cpuMeter) percent() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < time.Second {
		return m.pct
	}
	busy, total := parseCPU(proc("stat"))
	if total > m.total {
		m.pct = 100 * (busy - m.busy) / (total - m.total)
	}
	m.at, m.busy, m.total = time.Now(), busy, total
	return m.pct
}

// parseCPU reads the first line of /proc/stat; see proc_stat(5).
func parseCPU(text string) (busy, total float64) {
	line, _, _ := strings.Cut(text, "\n")
	for i, word := range strings.Fields(line) {
		if i == 0 || i > 8 { // guest time is contained in user time
			continue
		}
		n, _ := strconv.ParseFloat(word, 64) // 0 for what is no number
		total += n
		if i != 4 && i != 5 { // idle, iowait
			busy += n
		}
	}
	return busy, total
}
