package bench

import (
	"fmt"
	"strings"
)

// Page is Markdown in the making.
type Page struct{ strings.Builder }

// Printf writes text.
func (p *Page) Printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

// Table writes a table with the columns' names in the first row. One without
// any other is left out.
func (p *Page) Table(rows [][]string) {
	if len(rows) < 2 {
		return
	}
	for i, row := range rows {
		p.Printf("| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			p.Printf("|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	p.Printf("\n")
}

// Begin writes how the page came about: by which command and how, on what
// machine, and beside which packages.
func (p *Page) Begin(r *Report, title, command, file, how string) {
	m := r.Machine
	sha := "without SHA extensions"
	if m.SHA {
		sha = "with SHA extensions"
	}
	p.Printf("# %s\n\nWritten by `%s` on %s, in %.0f minutes; every round is in [%s](%s). %s\n\n", title, command, r.At.Format("2006-01-02"), r.Minutes, file, file, how)
	p.Printf("Every figure is the median of the rounds, with the lowest and the highest in brackets. The rounds' order turns: every second one goes backwards. A ratio is the median of the ratios within each round. CPU is the server's own, by the scheduler's account, in nanoseconds and with all threads. Requests a second and latencies depend on what else the machine does, and compare only within this run.\n\n")
	p.Printf("Machine: %d CPUs (%s, %s), %.0f GiB, Linux %s, %s, %s; load %.1f before and %.1f after.", m.CPUs, m.Model, sha, m.MemoryGiB, m.Kernel, m.Filesystem, m.Go, m.Load[0], m.Load[1])
	for i, v := range r.Versions {
		separator := ", "
		if i == 0 {
			separator = " From Debian: "
		}
		p.Printf("%s%s %s", separator, v[0], v[1])
	}
	p.Printf(".\n\n")
}

// Targets writes what became of the promises.
func (p *Page) Targets(r *Report) {
	if len(r.Targets) == 0 {
		return
	}
	rows := [][]string{{"promise", "measured", "limit", ""}}
	for _, t := range r.Targets {
		met := "pass"
		if !t.Met {
			met = "**fail**"
		}
		with := func(text string) string { return strings.TrimSpace(text + " " + t.Unit) }
		rows = append(rows, []string{t.Name, with(Figure{t.Measured, t.Spread[0], t.Spread[1]}.String()), with(t.Sign + " " + Number(t.Limit)), met})
	}
	p.Printf("## Promises\n\n")
	p.Table(rows)
}
