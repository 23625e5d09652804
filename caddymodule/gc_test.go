package caddymodule

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestHeadroomDoesNotGrowWithTheHeap(t *testing.T) {
	for _, c := range []struct {
		alive uint64
		want  int
	}{
		{0, mostPercent},
		{headroom / 8, mostPercent},
		{headroom / 2, 200},
		{headroom * 2 / 3, 150},
		{headroom * 10, leastPercent},
	} {
		if got := percentFor(c.alive); got != c.want {
			t.Errorf("%d bytes alive: %d %%, want %d %%", c.alive, got, c.want)
		}
	}
}

func TestPacerFollowsTheCollector(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(leastPercent - 1))
	new(pacer).next()
	alive := make([]byte, 2*headroom)
	percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	for range 10000 {
		runtime.GC()
		runtime.Gosched()
		if metrics.Read(percent); percent[0].Value.Uint64() == leastPercent {
			break
		}
	}
	if got := percent[0].Value.Uint64(); got != leastPercent {
		t.Errorf("%d %% with %d bytes alive, want %d %%", got, len(alive), leastPercent)
	}
	runtime.KeepAlive(alive)
}

func TestMemoryLimitLeavesRoomForApplications(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name                  string
		current, machine, use int64
	}{
		{"Caddy's, of the machine", 24 * gib / 10 * 9, 24 * gib, 6 * gib},
		{"Caddy's, of a control group", gib / 10 * 9, 24 * gib, gib / 10 * 9},
		{"none yet", math.MaxInt64, 4 * gib, gib},
		{"a small machine", gib / 2 / 10 * 9, gib / 2, leastMemoryLimit},
		{"nobody knows", math.MaxInt64, 0, math.MaxInt64},
	} {
		if got := memoryLimit(c.current, c.machine); got != c.use {
			t.Errorf("%s: %d, want %d", c.name, got, c.use)
		}
	}
}
