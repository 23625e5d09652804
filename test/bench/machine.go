package bench

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"syscall"
)

// Machine describes where a run was. It says nothing about whose machine it is.
type Machine struct {
	CPUs       int        `json:"cpus"`
	Model      string     `json:"cpu_model"`
	SHA        bool       `json:"sha_extensions"`
	MemoryGiB  float64    `json:"memory_gib"`
	Kernel     string     `json:"kernel"`
	Filesystem string     `json:"filesystem"`
	Go         string     `json:"go"`
	Load       [2]float64 `json:"load_before_and_after"` // average of a minute
}

func thisMachine(dir string) Machine {
	m := Machine{
		CPUs: runtime.NumCPU(), Go: runtime.Version(), Filesystem: filesystem(dir),
		Kernel: strings.TrimSpace(read("/proc/sys/kernel/osrelease")), Load: [2]float64{load()},
	}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "model name":
			m.Model = value
		case "flags", "Features":
			m.SHA = strings.Contains(" "+value+" ", " sha_ni ") || strings.Contains(" "+value+" ", " sha2 ")
		}
	}
	var kib float64
	if _, err := fmt.Sscanf(read("/proc/meminfo"), "MemTotal: %f kB", &kib); err == nil {
		m.MemoryGiB = math.Round(kib/(1<<20)*10) / 10
	}
	return m
}

// read returns a file of /proc, empty where there is none.
func read(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

func load() (average float64) {
	_, _ = fmt.Sscan(read("/proc/loadavg"), &average)
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
