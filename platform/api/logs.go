package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2/negotiation"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

const (
	defaultTail = 200
	maxTail     = 10_000

	// concurrentLogReads bounds memory: a log may be as large as its cap.
	concurrentLogReads = 4

	// settleAfter is how long the log of a finished deployment may still grow:
	// its end is marked by whoever finished it, unless that crashed in between.
	settleAfter = 3 * time.Second
)

type logLine struct {
	TS      timestamp `json:"ts"`
	Stream  string    `json:"stream" enum:"stdout,stderr,system"`
	Replica string    `json:"replica" doc:"<release number>.<index>; empty in a build."`
	Line    string    `json:"line"`
}

func lineView(l platform.LogLine) logLine {
	return logLine{timestamp{l.TS}, l.Stream, l.Replica, l.Line}
}

// logQuery reads the query parameters of the log routes. until and grep are
// for stored logs only.
func logQuery(q url.Values, stored bool) (telemetry.Query, error) {
	query := telemetry.Query{Tail: defaultTail, Replica: q.Get("replica"), Stream: q.Get("stream")}
	var err error
	if query.Since, err = timeParam(q, "since"); err != nil {
		return query, err
	}
	if !query.Since.IsZero() {
		query.Tail = 0
	}
	if tail := q.Get("tail"); tail != "" {
		n, err := strconv.Atoi(tail)
		switch {
		case tail == "all":
			query.Tail = 0
		case err != nil || n < 0 || n > maxTail:
			return query, platform.InvalidField("tail", "out_of_range", "must be 0 to %d, or all", maxTail)
		case n == 0:
			query.Tail = -1
		default:
			query.Tail = n
		}
	}
	switch query.Stream {
	case "", platform.StreamStdout, platform.StreamStderr, platform.StreamSystem:
	default:
		return query, platform.InvalidField("stream", "not_one_of", "must be stdout, stderr or system")
	}
	if !stored {
		return query, nil
	}
	if query.Tail == 0 {
		query.Tail = maxTail
	}
	query.Grep = q.Get("grep")
	query.Until, err = timeParam(q, "until")
	return query, err
}

// timeParam reads a time, or a duration that counts back from now.
func timeParam(q url.Values, name string) (time.Time, error) {
	value := q.Get(name)
	if value == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, value); err == nil && t.Year() >= 1970 && t.Year() < 2262 { // what int64 nanoseconds hold
		return t, nil
	}
	if d, err := time.ParseDuration(value); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	return time.Time{}, platform.InvalidField(name, "bad_value", "must be an RFC 3339 time such as 2026-01-02T15:04:05Z, or a duration back from now such as 10m")
}

func serviceLogKey(id platform.ID) string    { return "services/" + string(id) }
func deploymentLogKey(id platform.ID) string { return "deployments/" + string(id) }

// serviceLogs answers stored lines, as JSON or as plain text.
func (a *API) serviceLogs(w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	query, err := logQuery(r.URL.Query(), true)
	if err != nil {
		fail(w, r, err)
		return
	}
	// What is asked for is in memory until the client has taken it.
	select {
	case a.logReads <- struct{}{}:
		defer func() { <-a.logReads }()
	case <-r.Context().Done():
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stallAfter)) // not every writer has deadlines
	var lines []platform.LogLine
	if query.Tail > 0 {
		if lines, err = a.Logs.Read(serviceLogKey(c.service.ID), query); err != nil {
			fail(w, r, fmt.Errorf("reading the log of service %s: %w", c.service.ID, err))
			return
		}
	}
	if negotiation.SelectQValueFast(r.Header.Get("Accept"), []string{"application/json", "text/plain"}) == "text/plain" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusOK)
		for _, l := range lines {
			if _, err := fmt.Fprintf(w, "%s %s %s %s\n", l.TS.UTC().Format(timestampLayout), orDash(l.Replica), l.Stream, l.Line); err != nil {
				return
			}
		}
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if err := writeLines(w, lines); err != nil {
		a.Log.Debug("sending a log failed", "error", err)
	}
}

// writeLines writes a JSON array line by line: a log may be large, and is in
// memory once already.
func writeLines(w io.Writer, lines []platform.LogLine) error {
	out := bufio.NewWriter(w)
	separator := "["
	for _, l := range lines {
		out.WriteString(separator)
		if err := writeJSON(out, lineView(l)); err != nil {
			return err
		}
		separator = ","
	}
	if len(lines) == 0 {
		out.WriteString(separator)
	}
	out.WriteString("]\n") // bufio keeps the first error for Flush
	return out.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// entry is one line from a followed log, or how it ended.
type entry struct {
	cursor telemetry.Cursor
	line   platform.LogLine
	err    error
}

// follow reads a log into the returned channel from a goroutine of its own,
// so that the writer can wait for other things too. stop ends it and waits.
func (a *API) follow(ctx context.Context, after telemetry.Cursor, open func(context.Context, telemetry.Cursor) (*telemetry.Follower, error)) (<-chan entry, func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	follower, err := open(ctx, after)
	if platform.CodeOf(err) == "bad_cursor" {
		// An id nobody was given. A client that repeats it would never get on.
		follower, err = open(ctx, "")
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	entries, done := make(chan entry, 64), make(chan struct{})
	go func() {
		defer close(done)
		for {
			var e entry
			e.cursor, e.line, e.err = follower.Next(ctx)
			select {
			case entries <- e:
			case <-ctx.Done():
				return
			}
			if e.err != nil {
				return
			}
		}
	}()
	return entries, func() {
		cancel()
		<-done
		if err := follower.Close(); err != nil {
			a.Log.Warn("closing a log failed", "error", err)
		}
	}, nil
}

// followLog is follow for the log of key.
func (a *API) followLog(ctx context.Context, key string, after telemetry.Cursor, q telemetry.Query) (<-chan entry, func(), error) {
	return a.follow(ctx, after, func(ctx context.Context, after telemetry.Cursor) (*telemetry.Follower, error) {
		return a.Logs.Follow(ctx, key, after, q)
	})
}

// relay has send add each entry to out, until they or ctx end.
func relay(ctx context.Context, out *sse, entries <-chan entry, send func(entry) error) error {
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			if err := out.comment(); err != nil {
				return err
			}
		case e := <-entries:
			if e.err != nil {
				return ended(e.err)
			}
			if err := send(e); err != nil {
				return err
			}
			if len(entries) > 0 {
				continue
			}
			if err := out.flush(); err != nil {
				return err
			}
		}
	}
}

// streamServiceLogs sends lines as they come, for as long as the client stays.
func (a *API) streamServiceLogs(w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	query, err := logQuery(r.URL.Query(), false)
	if err != nil {
		fail(w, r, err)
		return
	}
	// Whoever has the status misses no line from then on, so the log is followed
	// before it is sent.
	entries, stop, err := a.followLog(r.Context(), serviceLogKey(c.service.ID), telemetry.Cursor(lastEventID(r)), query)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer stop()
	a.stream(w, r, func(ctx context.Context, out *sse) error {
		return relay(ctx, out, entries, func(e entry) error {
			return out.event(string(e.cursor), "log", lineView(e.line))
		})
	})
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// deploymentEventID names a place in a deployment's stream: how far the log
// was sent, and which state.
func deploymentEventID(cursor telemetry.Cursor, state string) string {
	return state + "/" + string(cursor)
}

func parseDeploymentEventID(id string) (telemetry.Cursor, string) {
	state, cursor, _ := strings.Cut(id, "/")
	return telemetry.Cursor(cursor), state
}

// stateOf changes whenever a status event is due.
func stateOf(d platform.Deployment) string {
	return string(d.Status) + "." + strconv.Itoa(len(d.Phases))
}

// deploymentStream is the state of one client's stream.
type deploymentStream struct {
	api    *API
	out    *sse
	role   platform.Role
	id     platform.ID
	cursor telemetry.Cursor
	state  string // as last sent
}

// streamDeploymentLogs sends the log and the states of a deployment until it
// has ended; of one that has ended already, the whole log.
func (a *API) streamDeploymentLogs(w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	query, err := logQuery(r.URL.Query(), false)
	if err != nil {
		fail(w, r, err)
		return
	}
	q := r.URL.Query()
	if !c.deployment.Status.Unfinished() && q.Get("tail") == "" {
		query.Tail = 0
	}
	s := &deploymentStream{api: a, id: c.deployment.ID, role: c.identity().RoleIn(c.service.ProjectID)}
	s.cursor, s.state = parseDeploymentEventID(lastEventID(r))
	entries, stop, err := a.followLog(r.Context(), deploymentLogKey(s.id), s.cursor, query)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer stop()
	a.stream(w, r, func(ctx context.Context, out *sse) error {
		s.out = out
		return s.run(ctx, entries)
	})
}

func (s *deploymentStream) run(ctx context.Context, entries <-chan entry) error {
	changed, unsubscribe := s.api.Plane.Subscribe(s.id)
	defer unsubscribe()
	finished, err := s.sendState(ctx)
	if err != nil {
		return err
	}
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	// The tick heals a missed signal, and ends a log whose end is not marked.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			if err := s.out.comment(); err != nil {
				return err
			}
		case e := <-entries:
			switch {
			case errors.Is(e.err, io.EOF):
				entries, last = nil, time.Time{}
			case e.err != nil:
				return e.err
			default:
				last, s.cursor = time.Now(), e.cursor
				if err := s.out.event(deploymentEventID(s.cursor, s.state), "log", lineView(e.line)); err != nil {
					return err
				}
				if len(entries) > 0 {
					continue
				}
				if err := s.out.flush(); err != nil {
					return err
				}
				continue
			}
		case <-changed:
		case <-tick.C:
		}
		if !finished {
			if finished, err = s.sendState(ctx); err != nil {
				return err
			}
		}
		if finished && len(entries) == 0 && time.Since(last) > settleAfter {
			return s.done(ctx)
		}
	}
}

// sendState sends the deployment if its state is news, and tells whether it
// has finished.
func (s *deploymentStream) sendState(ctx context.Context) (finished bool, err error) {
	d, err := s.api.Store.Deployment(ctx, s.id)
	if err != nil {
		return false, err
	}
	finished = !d.Status.Unfinished()
	if state := stateOf(d); state != s.state {
		s.state = state
		if err := s.out.event(deploymentEventID(s.cursor, s.state), "status", deploymentView(d, s.role)); err != nil {
			return false, err
		}
	}
	return finished, s.out.flush()
}

type doneEvent struct {
	ID     platform.ID      `json:"id"`
	Status string           `json:"status"`
	Error  *deploymentError `json:"error"`
}

func (s *deploymentStream) done(ctx context.Context) error {
	d, err := s.api.Store.Deployment(ctx, s.id)
	if err != nil {
		return err
	}
	view := deploymentView(d, s.role)
	if err := s.out.event(deploymentEventID(s.cursor, s.state), "done", doneEvent{d.ID, view.Status, view.Error}); err != nil {
		return err
	}
	return s.out.flush()
}
