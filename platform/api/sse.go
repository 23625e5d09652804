package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	keepAlive          = 15 * time.Second // a comment is sent so often
	maxStreamsPerToken = 50
	maxStreams         = 1000

	recheckEvery = 2 * time.Second // a revoked principal's stream ends after this
	stallAfter   = time.Minute     // a client that takes nothing for so long is cut; it can resume
)

// sse writes Server-Sent Events. Only its handler's goroutine writes.
type sse struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buf     bytes.Buffer
}

// event adds one event to what Flush sends.
func (s *sse) event(id, name string, data any) error {
	s.buf.WriteString("id: " + id + "\nevent: " + name + "\ndata: ")
	if err := writeJSON(&s.buf, data); err != nil { // ends with the line break
		return err
	}
	s.buf.WriteByte('\n')
	if s.buf.Len() > 64<<10 {
		return s.flush()
	}
	return nil
}

func (s *sse) comment() error {
	s.buf.WriteString(": keep-alive\n\n")
	return s.flush()
}

// flush sends what was added. Timeouts measure stalled time: each flush has
// its own.
func (s *sse) flush() error {
	if s.buf.Len() == 0 {
		return nil
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(stallAfter)) // not every writer has deadlines
	if _, err := s.buf.WriteTo(s.w); err != nil {
		return err
	}
	return s.control.Flush()
}

// stream answers with an event stream written by run. run's context ends when
// the client goes away, the process drains, or the caller loses the right to
// what the route serves; a write that blocks ends then too.
func (a *API) stream(w http.ResponseWriter, r *http.Request, run func(context.Context, *sse) error) {
	end, err := a.beginStream(callFrom(r.Context()).identity().Principal)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer end()

	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	// The status goes first: under an access log, Flush alone sends nothing.
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	_ = control.SetReadDeadline(time.Time{}) // not every writer has deadlines
	if err := control.Flush(); err != nil {
		a.Log.Debug("flushing a stream's header failed", "error", err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		a.watchStream(ctx, callFrom(ctx))
		cancel()
		_ = control.SetWriteDeadline(time.Unix(1, 0)) // unblocks a write to a client that takes nothing
	})
	err = run(ctx, &sse{w: w, control: control})
	cancel()
	watching.Wait()
	// What the connection is used for next must not meet our deadline.
	_ = control.SetWriteDeadline(time.Time{})
	if err != nil && !errors.Is(err, context.Canceled) {
		a.Log.Debug("a stream ended early", "request_id", callFrom(r.Context()).id, "error", err)
	}
}

// beginStream counts a stream in, and returns what counts it out.
func (a *API) beginStream(p platform.Principal) (end func(), err error) {
	who := p.TokenID // zero for the admin token, which is one principal too
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, platform.Errorf(platform.Unavailable, "draining", "Denia is shutting down: connect again in a moment")
	case a.open[who] >= maxStreamsPerToken || a.opened >= maxStreams:
		return nil, platform.Errorf(platform.RateLimited, "too_many_streams",
			"there may be %d streams open at a time per token and %d in all: close some first", maxStreamsPerToken, maxStreams)
	}
	a.streams.Add(1)
	a.open[who]++
	a.opened++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.opened--
		if a.open[who]--; a.open[who] == 0 {
			delete(a.open, who)
		}
		a.streams.Done()
	}, nil
}

// watchStream returns when the stream has to end.
func (a *API) watchStream(ctx context.Context, c *call) {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.closing:
			return
		case <-a.Plane.Draining():
			return
		case <-ticker.C:
			if err := a.recheck(ctx, c); err != nil {
				return
			}
		}
	}
}

// recheck tells whether the caller may still have what the stream serves. A
// store that cannot be read for a moment ends no stream.
func (a *API) recheck(ctx context.Context, c *call) error {
	fresh := &call{id: c.id, ip: c.ip, log: c.log, request: c.request, route: c.route, header: http.Header{}}
	who, err := a.authenticate(ctx, fresh)
	if err == nil {
		err = a.authorize(ctx, fresh, who)
	}
	switch platform.KindOf(err) {
	case platform.Unauthenticated, platform.Forbidden, platform.NotFound:
		return err
	}
	if err == nil {
		c.who.Store(who)
	}
	return nil
}

// lastEventID is where a client that comes back wants to go on.
func lastEventID(r *http.Request) string {
	id := r.Header.Get("Last-Event-ID")
	if len(id) > 512 || strings.ContainsAny(id, "\r\n\x00") {
		return ""
	}
	return id
}
