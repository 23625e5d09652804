package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	// A replica that is not ready is probed often at first: what a deployment
	// or a crash costs is the time until it is seen to be ready.
	probeFast     = 25 * time.Millisecond
	probeFastFor  = 2 * time.Second
	probeSlowStep = time.Second

	// A ready replica whose connections end is probed at once, but applications
	// that close each connection must not be flooded with probes.
	probeGap = time.Second

	maxProbeBody     = 64 << 10 // headers and all
	maxInformational = 8        // 1xx answers before the one that counts
)

// checker does one target's health checks.
type checker struct {
	u        *upstream
	kind     string
	path     *url.URL
	statuses []platform.StatusRange
	timeout  time.Duration
	broken   error // why no check can succeed
}

func newChecker(u *upstream) *checker {
	h := u.target.Health
	c := &checker{u: u, kind: h.Type, timeout: time.Duration(h.TimeoutS) * time.Second}
	if c.timeout <= 0 {
		c.timeout = 3 * time.Second
	}
	if c.kind != "" && c.kind != platform.HealthHTTP {
		return c
	}
	path, status := h.Path, h.Status
	if path == "" {
		path = "/"
	}
	if status == "" {
		status = "200-399"
	}
	if c.path, c.broken = url.ParseRequestURI(path); c.broken == nil {
		c.path.Scheme, c.path.Host = "http", u.target.Addr
		c.statuses, c.broken = platform.ParseStatus(status)
	}
	return c
}

// check does one check. refused tells that there was no connection.
func (c *checker) check(ctx context.Context) (p Probe, refused bool) {
	p.At = time.Now()
	err := c.broken
	if err == nil {
		timed, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		if c.path != nil {
			p.Status, err = c.get(timed)
		} else {
			err = c.connect()
		}
		if timed.Err() == context.DeadlineExceeded && err != nil {
			err = fmt.Errorf("no answer within %v", c.timeout)
		}
	}
	p.Latency = time.Since(p.At)
	if err != nil {
		p.Err = err.Error()
		_, refused = errors.AsType[*dialError](err)
		p.Connected = !refused
		return p, refused
	}
	p.OK, p.Connected = true, true
	return p, false
}

func (c *checker) get(ctx context.Context) (status int, err error) {
	req := (&http.Request{
		Method: http.MethodGet,
		URL:    c.path,
		Host:   c.u.pool.probeHost(),
		Header: http.Header{"User-Agent": {"Denia-Health/1"}, "Accept": {"*/*"}},
	}).WithContext(ctx)
	status, err = c.ask(req)
	if err != nil {
		return 0, err
	}
	for _, r := range c.statuses {
		if r.From <= status && status <= r.To {
			return status, nil
		}
	}
	return status, fmt.Errorf("GET %s answered %d", c.path.RequestURI(), status)
}

// ask sends the request and returns the answer's status. HTTP/1 goes over a
// connection of its own, in this goroutine: probes are most of what an idle
// Denia does, and a transport costs several times as much.
func (c *checker) ask(req *http.Request) (status int, err error) {
	if c.u.target.Protocol == platform.ProtocolH2C {
		res, err := c.u.transport.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		// Read to its end the connection can be used again; how it ends does
		// not matter once the status is there.
		_, _ = io.CopyN(io.Discard, res.Body, maxProbeBody)
		return res.StatusCode, nil
	}
	conn, err := c.u.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(req.Context(), func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	req.Close = true
	if err := req.Write(conn); err != nil {
		return 0, err
	}
	reader := bufio.NewReaderSize(io.LimitReader(conn, maxProbeBody), 4<<10)
	for range maxInformational {
		res, err := http.ReadResponse(reader, req)
		if err != nil {
			return 0, err
		}
		status := res.StatusCode
		_ = res.Body.Close() // the connection goes with it
		if status >= http.StatusOK {
			return status, nil
		}
	}
	return 0, errors.New("nothing but informational answers")
}

func (c *checker) connect() error {
	conn, err := c.u.dial()
	if err != nil {
		return err
	}
	return conn.Close()
}

// probe checks u until it drains, and says how long that may take; or until it
// has ended.
func (u *upstream) probe() (timeout time.Duration, draining bool) {
	c := newChecker(u)
	interval := time.Duration(u.target.Health.IntervalS) * time.Second
	if interval <= 0 {
		interval = 10 * time.Second
	}
	schedule := schedule{interval: interval, never: c.kind == platform.HealthNone}
	timer := time.NewTimer(0)
	defer timer.Stop()
	kicked := false
	for {
		now := time.Now()
		timer.Reset(schedule.delay(u.isReady(), kicked, now))
		select {
		case <-u.ctx.Done():
			return 0, false
		case timeout = <-u.drainFor:
			return timeout, true
		case <-u.kick:
			kicked = true
			continue
		case <-timer.C:
		}
		kicked = false
		outcome, refused := c.check(u.ctx)
		schedule.last = outcome.At
		select {
		case <-u.kick: // the probe's own connection, as likely as not
		default:
		}
		if u.ctx.Err() == nil {
			u.pool.probed(u, outcome, refused)
		}
	}
}

func (u *upstream) isReady() bool {
	u.pool.mu.Lock()
	defer u.pool.mu.Unlock()
	return u.condition == ready
}

// schedule says when the next probe is due.
type schedule struct {
	interval time.Duration
	never    bool      // a ready target is not probed
	last     time.Time // of the last probe, zero before the first
	since    time.Time // since when the target is not ready, zero while it is
}

// delay is how long from now the next probe is due. kicked asks for one soon.
func (s *schedule) delay(isReady, kicked bool, now time.Time) time.Duration {
	if isReady {
		s.since = time.Time{}
		switch {
		case s.never:
			return 1<<63 - 1
		case s.last.IsZero():
			return 0
		case kicked:
			return s.last.Add(min(probeGap, s.interval)).Sub(now)
		}
		// A tenth of chance, so that a fleet's probes do not fall together.
		return s.last.Add(s.interval - rand.N(s.interval/10)).Sub(now)
	}
	if s.since.IsZero() {
		s.since = now
		return 0
	}
	if now.Sub(s.since) < probeFastFor {
		return s.last.Add(probeFast).Sub(now)
	}
	// The pauses grow with the time it already takes.
	pause := min(now.Sub(s.since)/20, probeSlowStep, s.interval)
	return s.last.Add(pause).Sub(now)
}
