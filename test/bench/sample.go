package bench

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Sample is what was measured once: values by name, with the unit in it.
type Sample map[string]float64

func (s Sample) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, " %s=%.4g", key, s[key])
	}
	return b.String()
}

// Latencies adds the median, the 99th percentile and the maximum, in
// milliseconds, under names with a prefix. Without any it adds nothing. It
// sorts what it gets.
func (s Sample) Latencies(prefix string, all []time.Duration) Sample {
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

// Series is one value of every round.
type Series []float64

// Over divides round by round; what only one of them has is left out.
func (s Series) Over(other Series) Series {
	return s.with(other, func(a, b float64) float64 { return a / b })
}

// Minus subtracts round by round; what only one of them has is left out.
func (s Series) Minus(other Series) Series {
	return s.with(other, func(a, b float64) float64 { return a - b })
}

func (s Series) with(other Series, f func(a, b float64) float64) (result Series) {
	for i := range min(len(s), len(other)) {
		result = append(result, f(s[i], other[i]))
	}
	return result
}

// Each applies a function to every value.
func (s Series) Each(f func(float64) float64) (result Series) {
	for _, v := range s {
		result = append(result, f(v))
	}
	return result
}

// Figure is what a series comes to; all NaN without any value.
func (s Series) Figure() Figure {
	if len(s) == 0 {
		return Figure{math.NaN(), math.NaN(), math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(s))
	return Figure{(sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2, sorted[0], sorted[len(sorted)-1]}
}

// Figure is the median of some rounds, and their spread.
type Figure struct{ Median, Low, High float64 }

// String is the median with the lowest and the highest in brackets, as far as
// they differ as written; a dash for none.
func (f Figure) String() string {
	text := Number(f.Median)
	if low, high := Number(f.Low), Number(f.High); low != high {
		text += " (" + low + "–" + high + ")"
	}
	return text
}

// Number writes a value with three digits or so, and a dash for none.
func Number(v float64) string {
	switch size := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case size >= 10_000:
		return fmt.Sprintf("%.1fk", v/1000)
	case size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	case size >= 0.1 || v == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// significant keeps four digits.
func significant(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
