package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process and its children have used.
type Usage struct {
	CPU       time.Duration // of all threads, those that have ended as well
	RSS, Peak int64         // bytes resident, now and at most since ForgetPeak; the children's added
}

// UsageOf reads what a process and its children, as nginx has, have used so
// far. CPU time is the scheduler's own account, in nanoseconds; that of
// children which have ended is not in it.
func UsageOf(pid int) (u Usage, err error) {
	for _, pid := range Family(pid) {
		cpu, err := cpuOf(pid)
		if err != nil {
			return Usage{}, err
		}
		u.CPU += cpu
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return Usage{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
		}
		for line := range strings.Lines(string(status)) {
			var kib int64
			if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
				u.RSS += kib << 10
			}
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
				u.Peak += kib << 10
			}
		}
	}
	return u, nil
}

// cpuOf reads the clock that counts a process's CPU time. The ticks of
// /proc/<pid>/stat are of 10 ms, and the nanoseconds of its threads' schedstat
// leave out those threads that have ended.
func cpuOf(pid int) (time.Duration, error) {
	const ofScheduler = 2 // CPUCLOCK_SCHED of <linux/posix-timers.h>
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofScheduler), &t); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// Family is a process and its children.
func Family(pid int) []int {
	family := []int{pid}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			family = append(family, child)
		}
	}
	return family
}

// ForgetPeak has Usage.Peak be the peak of what follows.
func ForgetPeak(pid int) error {
	for _, pid := range Family(pid) {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil { // proc(5)
			return fmt.Errorf("resetting the peak memory: %w", err)
		}
	}
	return nil
}

// OwnCPU is what this process has used.
func OwnCPU() (time.Duration, error) { return rusage(syscall.RUSAGE_SELF) }

// ThreadCPU is what this thread has used, for goroutines that are locked to
// theirs.
func ThreadCPU() (time.Duration, error) {
	const thread = 1 // RUSAGE_THREAD of getrusage(2), for which package syscall has no name
	return rusage(thread)
}

func rusage(who int) (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// MiB is a number of bytes in units of 2^20.
func MiB(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// KiB is a number of bytes in units of 2^10.
func KiB(bytes int64) float64 { return float64(bytes) / (1 << 10) }

// Measure runs work and returns what the process used meanwhile, as wall_s,
// cpu_s, rss_before_mib and rss_peak_mib.
func (p *Process) Measure(work func() error) (Sample, error) {
	if err := ForgetPeak(p.PID()); err != nil {
		return nil, err
	}
	before, err := p.Usage()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return nil, err
	}
	wall := time.Since(began)
	after, err := p.Usage()
	if err != nil {
		return nil, err
	}
	return Sample{
		"wall_s": wall.Seconds(), "cpu_s": (after.CPU - before.CPU).Seconds(),
		"rss_before_mib": MiB(before.RSS), "rss_peak_mib": MiB(after.Peak),
	}, nil
}
