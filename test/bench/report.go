package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Report is what a run came to.
type Report struct {
	At       time.Time   `json:"at"`
	Minutes  float64     `json:"minutes"`
	Machine  Machine     `json:"machine"`
	Versions [][2]string `json:"versions"` // of Debian's packages
	Settings any         `json:"settings"`
	Targets  []Target    `json:"targets"`
	Results  []*Result   `json:"results"`
}

// Result is one measurement of one server.
type Result struct {
	Measure string                `json:"measure"`
	Of      string                `json:"of"`
	Median  Sample                `json:"median"`
	Spread  map[string][2]float64 `json:"spread"` // lowest and highest
	Rounds  []Sample              `json:"rounds"`
}

// Target is one promise of the project's, and what became of it. The median is
// what is judged.
type Target struct {
	Name     string     `json:"name"`
	Measured float64    `json:"measured"`
	Spread   [2]float64 `json:"spread"`
	Bound
	Unit string `json:"unit"`
	Met  bool   `json:"met"`
}

// Bound is what a promise says of a value.
type Bound struct {
	Sign  string  `json:"bound"` // ≤, < or ≥
	Limit float64 `json:"limit"`
}

// AtMost is the bound of what must not be more.
func AtMost(limit float64) Bound { return Bound{"≤", limit} }

// Below is the bound of what must be less.
func Below(limit float64) Bound { return Bound{"<", limit} }

// AtLeast is the bound of what must not be less.
func AtLeast(limit float64) Bound { return Bound{"≥", limit} }

func (b Bound) holds(v float64) bool {
	switch b.Sign {
	case "≥":
		return v >= b.Limit
	case "<":
		return v < b.Limit
	}
	return v <= b.Limit
}

// NewReport begins the report of a run that keeps its files in dir. settings
// are encoded as they are; packages are those of Debian's whose versions matter.
func NewReport(ctx context.Context, dir string, settings any, packages ...string) *Report {
	r := &Report{At: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(dir), Settings: settings, Targets: []Target{}}
	for _, name := range packages {
		if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", name).Output(); err == nil {
			r.Versions = append(r.Versions, [2]string{name, string(out)})
		}
	}
	return r
}

// Add adds a round of a measurement.
func (r *Report) Add(measure, of string, s Sample) {
	found := r.find(measure, of)
	if found == nil {
		found = &Result{Measure: measure, Of: of}
		r.Results = append(r.Results, found)
	}
	found.Rounds = append(found.Rounds, s)
}

func (r *Report) find(measure, of string) *Result {
	for _, found := range r.Results {
		if found.Measure == measure && found.Of == of {
			return found
		}
	}
	return nil
}

// Series is one value of a measurement in all rounds that have it; empty where
// it was not measured.
func (r *Report) Series(measure, of, key string) Series {
	if found := r.find(measure, of); found != nil {
		return found.Series(key)
	}
	return nil
}

// Of returns the results of some measurements, in their order.
func (r *Report) Of(measures ...string) (found []*Result) {
	for _, measure := range measures {
		for _, result := range r.Results {
			if result.Measure == measure {
				found = append(found, result)
			}
		}
	}
	return found
}

// Series is one value in all rounds that have it.
func (r *Result) Series(key string) (s Series) {
	for _, round := range r.Rounds {
		if v, ok := round[key]; ok {
			s = append(s, v)
		}
	}
	return s
}

// Cell is one value as a table has it: its median and its spread.
func (r *Result) Cell(key string) string { return r.Series(key).Figure().String() }

// Check compares the median of a series with a promise. What was not measured
// has no line.
func (r *Report) Check(name string, s Series, bound Bound, unit string) {
	if len(s) == 0 {
		return
	}
	f := s.Figure()
	r.Targets = append(r.Targets, Target{
		Name: name, Measured: significant(f.Median), Spread: [2]float64{significant(f.Low), significant(f.High)},
		Bound: bound, Unit: unit, Met: bound.holds(f.Median),
	})
}

// Ended says that everything is measured: what comes later is not in the run's
// duration, nor in the machine's load.
func (r *Report) Ended() {
	r.Machine.Load[1] = load()
	r.Minutes = math.Round(time.Since(r.At).Minutes()*10) / 10
	for _, result := range r.Results {
		result.Median, result.Spread = Sample{}, map[string][2]float64{}
		for _, round := range result.Rounds {
			for key := range round {
				f := result.Series(key).Figure()
				result.Median[key] = significant(f.Median)
				result.Spread[key] = [2]float64{significant(f.Low), significant(f.High)}
			}
		}
	}
}

// Write writes <name>.json, the page as <name>.md, which it prints as well, and
// a chart as <name>.svg unless that is empty.
func (r *Report) Write(dir, name, page, chart string) error {
	for _, result := range r.Results {
		for _, s := range result.Rounds {
			for key, value := range s {
				s[key] = significant(value)
			}
		}
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(r); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Print(page)
	for kind, content := range map[string]string{".json": text.String(), ".md": page, ".svg": chart} {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name+kind), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
