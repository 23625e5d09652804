package caddymodule

import (
	"os"
	"runtime/debug"
	"sync"
)

const (
	// gcPercent has the collector run half as often as by default. What is
	// alive is little, a few tens of MiB, and most of what a request allocates
	// dies with it. 400 would halve that once more, for 40 MiB under load.
	gcPercent = 200

	// leastMemoryLimit is room enough for everything but a leak.
	leastMemoryLimit = 256 << 20
)

var tuneMemoryOnce sync.Once

// tuneMemory has the garbage collector trade memory for CPU time, unless the
// environment (GOGC, GOMEMLIMIT) says what it should do.
func tuneMemory() {
	tuneMemoryOnce.Do(func() {
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		if os.Getenv("GOMEMLIMIT") == "" {
			debug.SetMemoryLimit(memoryLimit(debug.SetMemoryLimit(-1), machineMemory()))
		}
	})
}

// memoryLimit is from where on the collector runs more often. current is the
// limit so far: Caddy sets nine tenths of what its control group may use, or
// of the machine. Where it is the machine's memory, applications have to live
// in it as well: a large heap must not grow by gcPercent at their expense.
func memoryLimit(current, machine int64) int64 {
	if machine <= 0 || current < machine/100*85 {
		return current
	}
	return max(machine/4, leastMemoryLimit)
}

var shedOnce sync.Once

// shedStartup gives the memory back that only starting took.
func shedStartup() { shedOnce.Do(debug.FreeOSMemory) }
