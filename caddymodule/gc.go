package caddymodule

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// headroom is what may be allocated from one collection to the next. What
	// is alive is little, some 10 to 20 MiB, and nearly all that a request
	// allocates dies with it, so this says how often the collector runs for a
	// number of requests. Of a percentage, many connections would make more.
	headroom = 14 << 20

	// leastPercent is for heaps in which more than that is alive, whose
	// collections cost more.
	leastPercent, mostPercent = 100, 400

	// leastMemoryLimit is room enough for everything but a leak.
	leastMemoryLimit = 256 << 20
)

var tuneMemoryOnce sync.Once

// tuneMemory has the garbage collector trade memory for CPU time, unless the
// environment (GOGC, GOMEMLIMIT) says what it should do.
func tuneMemory() {
	tuneMemoryOnce.Do(func() {
		if os.Getenv("GOGC") == "" {
			new(pacer).next()
		}
		if os.Getenv("GOMEMLIMIT") == "" {
			debug.SetMemoryLimit(memoryLimit(debug.SetMemoryLimit(-1), machineMemory()))
		}
	})
}

// pacer keeps the collector's percentage at what headroom comes to.
type pacer struct {
	samples [3]metrics.Sample
	percent int
}

// next sets the percentage after a collection, and has itself called after the
// one that follows: its object is garbage by then.
func (p *pacer) next() {
	for i, name := range [...]string{"/gc/heap/live:bytes", "/gc/scan/stack:bytes", "/gc/scan/globals:bytes"} {
		p.samples[i].Name = name
	}
	metrics.Read(p.samples[:])
	var alive uint64
	for i := range p.samples {
		if p.samples[i].Value.Kind() == metrics.KindUint64 {
			alive += p.samples[i].Value.Uint64()
		}
	}
	// To change it stops the world for a moment.
	if percent := percentFor(alive); percent*10 < p.percent*9 || percent*9 > p.percent*10 {
		p.percent = percent
		debug.SetGCPercent(percent)
	}
	runtime.SetFinalizer(&pacerMark{p}, func(mark *pacerMark) { mark.pacer.next() })
}

type pacerMark struct{ pacer *pacer }

// percentFor is what the collector has to be told where so much is alive, in
// bytes, as it counts: the heap, stacks and globals.
func percentFor(alive uint64) int {
	return int(min(max(headroom*100/max(alive, 1), leastPercent), mostPercent))
}

// memoryLimit is from where on the collector runs more often. current is the
// limit so far: Caddy sets nine tenths of what its control group may use, or
// of the machine. Where it is the machine's memory, applications have to live
// in it as well: a large heap must not double at their expense.
func memoryLimit(current, machine int64) int64 {
	if machine <= 0 || current < machine/100*85 {
		return current
	}
	return max(machine/4, leastMemoryLimit)
}

var shedOnce sync.Once

// shedStartup gives the memory back that only starting took.
func shedStartup() { shedOnce.Do(debug.FreeOSMemory) }
