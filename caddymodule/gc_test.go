package caddymodule

import (
	"math"
	"testing"
)

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
