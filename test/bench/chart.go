package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Chart is a chart of horizontal bars in groups.
type Chart struct {
	Title  string
	Groups []Group
}

// Group is some bars under a name.
type Group struct {
	Name string
	Bars []Bar
}

// Bar is a figure with a name: as long as the median, with a line from the
// lowest to the highest. Ours are coloured. A limit other than 0 is marked.
type Bar struct {
	Name string
	Figure
	Ours  bool
	Limit float64
}

// SVG draws the chart; empty when there is nothing to draw.
func (c Chart) SVG() string {
	const (
		width, left, right = 760, 170, 110
		rowHeight, gap     = 18, 26
	)
	most, height := 0.0, 40
	for _, g := range c.Groups {
		height += gap + rowHeight*len(g.Bars)
		for _, b := range g.Bars {
			most = max(most, b.High, b.Limit)
		}
	}
	if most == 0 || math.IsNaN(most) || math.IsInf(most, 0) {
		return ""
	}
	x := func(v float64) float64 { return left + v/most*(width-left-right) }
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#222">`+"\n", width, height+10)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	fmt.Fprintf(&s, `<text x="10" y="22" font-size="15">%s</text>`+"\n", html.EscapeString(c.Title))
	y := 40
	for _, g := range c.Groups {
		fmt.Fprintf(&s, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y+16, html.EscapeString(g.Name))
		y += gap
		for _, b := range g.Bars {
			colour := "#b8c0cc"
			if b.Ours {
				colour = "#2b7de9"
			}
			middle := float64(y) + rowHeight/2
			fmt.Fprintf(&s, `<text x="%d" y="%.0f" text-anchor="end">%s</text>`, left-8, middle+4, html.EscapeString(b.Name))
			fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+2, x(b.Median)-left, rowHeight-4, colour)
			fmt.Fprintf(&s, `<path d="M%.1f %.1fH%.1f" stroke="#222"/>`, x(b.Low), middle, x(b.High))
			if b.Limit != 0 {
				fmt.Fprintf(&s, `<path d="M%.1f %dv%d" stroke="#d0342c" stroke-width="2"/>`, x(b.Limit), y, rowHeight)
			}
			fmt.Fprintf(&s, `<text x="%.1f" y="%.0f">%s</text>`+"\n", max(x(b.High), x(b.Limit))+6, middle+4, html.EscapeString(Number(b.Median)))
			y += rowHeight
		}
	}
	s.WriteString("</svg>\n")
	return s.String()
}
