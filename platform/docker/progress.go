package docker

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/docker/go-units"
	bk "github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

// buildProgress writes what BuildKit tells as plain lines: each step's name
// when it begins, its output as it comes, and how it ended.
//
//	[2/3] RUN make
//	cc -o app app.c
//	[2/3] done in 1.2s
//	[3/3] COPY --from=0 /app / CACHED
type buildProgress struct {
	log     io.Writer
	steps   map[digest.Digest]*buildStep
	current digest.Digest // whose name was written last
	pulls   map[string]layer
	next    time.Time // when bytes may be reported again

	failed *failedStep
}

type buildStep struct {
	name     string
	internal bool // of no interest unless it fails
	started  bool
	finished bool
	diskFull bool   // its output says so
	partial  []byte // output after the last line break
}

// failedStep is the first step that failed.
type failedStep struct {
	name     string
	err      string
	diskFull bool
}

func newBuildProgress(log io.Writer) *buildProgress {
	return &buildProgress{
		log: log, steps: map[digest.Digest]*buildStep{}, pulls: map[string]layer{},
		next: time.Now().Add(progressInterval),
	}
}

func (p *buildProgress) add(status *bk.SolveStatus) {
	for _, v := range status.Vertexes {
		p.step(v)
	}
	for _, s := range status.Statuses {
		p.transfer(s)
	}
	for _, l := range status.Logs {
		if s := p.steps[l.Vertex]; s != nil {
			p.output(l.Vertex, s, l.Data)
		}
	}
	// A step's last output and its end may come in one message.
	for _, v := range status.Vertexes {
		p.finish(v)
	}
	for _, w := range status.Warnings {
		line := ""
		if len(w.Range) > 0 && w.Range[0].Start != nil {
			line = fmt.Sprintf(" (line %d)", w.Range[0].Start.Line)
		}
		fmt.Fprintf(p.log, "warning: %s%s\n", w.Short, line)
	}
}

// end writes what output is left without a line break.
func (p *buildProgress) end() {
	for d, s := range p.steps {
		p.flush(d, s)
	}
}

var stepTag = regexp.MustCompile(`^\[[^\]]*\]`)

// step writes the name of a step that has begun.
func (p *buildProgress) step(v *bk.Vertex) {
	s := p.steps[v.Digest]
	if s == nil {
		name := oneLine(v.Name)
		s = &buildStep{name: name, internal: strings.HasPrefix(name, "[internal]")}
		p.steps[v.Digest] = s
	}
	if v.Started == nil || s.started {
		return
	}
	s.started = true
	if !s.internal && !v.Cached {
		p.current = v.Digest
		fmt.Fprintln(p.log, s.name)
	}
}

// finish writes how a step ended.
func (p *buildProgress) finish(v *bk.Vertex) {
	s := p.steps[v.Digest]
	if v.Completed == nil || s.finished {
		return
	}
	s.finished = true
	p.flush(v.Digest, s)
	tag := stepTag.FindString(s.name)
	if tag == "" {
		tag = s.name
	}
	switch {
	case v.Error != "":
		if strings.Contains(v.Error, "context canceled") {
			return
		}
		if p.failed == nil {
			p.failed = &failedStep{name: s.name, err: v.Error, diskFull: s.diskFull}
		}
		fmt.Fprintf(p.log, "%s ERROR: %s\n", tag, oneLine(v.Error))
	case s.internal:
	case v.Cached:
		fmt.Fprintf(p.log, "%s CACHED\n", s.name)
	case v.Started != nil:
		fmt.Fprintf(p.log, "%s done in %.1fs\n", tag, v.Completed.Sub(*v.Started).Seconds())
	}
}

// output writes the complete lines of a step's output.
func (p *buildProgress) output(d digest.Digest, s *buildStep, data []byte) {
	s.partial = append(s.partial, data...)
	for {
		line, rest, found := bytes.Cut(s.partial, []byte("\n"))
		if !found {
			break
		}
		p.line(d, s, line)
		s.partial = rest
	}
	if len(s.partial) > maxLine {
		p.flush(d, s)
	}
}

func (p *buildProgress) flush(d digest.Digest, s *buildStep) {
	if len(s.partial) > 0 {
		p.line(d, s, s.partial)
		s.partial = nil
	}
}

func (p *buildProgress) line(d digest.Digest, s *buildStep, line []byte) {
	if p.current != d && !s.internal {
		// Steps that run side by side take turns.
		p.current = d
		fmt.Fprintf(p.log, "%s (continued)\n", s.name)
	}
	s.diskFull = s.diskFull || diskFull(strings.ToLower(string(line)))
	// Of a progress bar that draws over itself the last state is left.
	line = bytes.TrimRight(line, "\r")
	line = line[bytes.LastIndexByte(line, '\r')+1:]
	fmt.Fprintf(p.log, "%s\n", strings.ToValidUTF8(string(line), "\uFFFD"))
}

// transfer reports now and then how much of the base images has come.
func (p *buildProgress) transfer(s *bk.VertexStatus) {
	if s.Total == 0 || !strings.Contains(s.ID, "sha256:") {
		return
	}
	p.pulls[s.ID] = layer{s.Current, s.Total}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(progressInterval)
	var sum layer
	for _, l := range p.pulls {
		sum.current += l.current
		sum.total += l.total
	}
	fmt.Fprintf(p.log, "downloaded %s of %s\n", units.HumanSize(float64(sum.current)), units.HumanSize(float64(sum.total)))
}

// oneLine makes a name fit for a line of a log.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
	const most = 300
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}
