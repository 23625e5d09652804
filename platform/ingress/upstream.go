package ingress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/denia-paas/denia/platform"
)

// condition is what is known of a target's health.
type condition int

const (
	starting condition = iota // no good probe yet
	ready                     // passes its probes
	failing                   // was ready, fails its probes, but accepts connections
	down                      // was ready, does not accept connections
)

// after is the condition that follows on a probe, or on a refused connection:
// ok tells that it went well, refused that there was no connection, misses how
// many in a row went wrong.
//
// One bad answer does not take a ready target out, a refused connection does:
// requests would not get there either. From down only a good probe leads
// back, as the replica has most likely been started anew.
func (c condition) after(ok, refused bool, misses int) condition {
	switch {
	case ok:
		return ready
	case c == starting || c == down:
		return c
	case refused:
		return down
	case c == ready && misses < 2:
		return ready
	}
	return failing
}

// drainBit is set in an upstream's load once it takes no more requests.
const drainBit = 1 << 62

// upstream is a target, and everything that is connected to it. A goroutine of
// its own probes it and then bounds its drain.
type upstream struct {
	target    Target // with Presumed unset
	pool      *pool
	transport *http.Transport
	dialer    net.Dialer

	// load is the number of requests in flight, and drainBit. Both stand in
	// one word so that no request can be claimed after draining began: the
	// claim that adds itself sees the bit, or whoever sets the bit sees the
	// claim.
	load atomic.Int64

	failures     atomic.Int32 // requests in a row that it took and gave no proper answer to
	ejectedUntil atomic.Int64 // nanoseconds since begun; see ejected

	ctx       context.Context // ends dials and probes
	cancel    context.CancelFunc
	kick      chan struct{}      // size 1: probe soon
	drainFor  chan time.Duration // size 1: draining began
	lastProbe atomic.Pointer[Probe]
	answers   singleflight.Group // health checks besides the prober's, one at a time

	// The pool's mu guards these.
	serving   bool
	condition condition
	misses    int

	ended atomic.Bool
	conns sync.Map // of *conn
	idle  idleConns

	mu      sync.Mutex // guards streams
	streams map[*stream]struct{}
}

// stream is something in flight that closing connections alone does not end,
// or that must end when the process goes down.
type stream struct {
	end     func() // called with the upstream's mu held
	endless bool   // ends with the process only, so Drain ends it
}

func newUpstream(p *pool, t Target) *upstream {
	u := &upstream{
		pool:     p,
		dialer:   net.Dialer{Timeout: p.in.options.DialTimeout},
		kick:     make(chan struct{}, 1),
		drainFor: make(chan time.Duration, 1),
		streams:  map[*stream]struct{}{},
	}
	if t.Presumed || t.Health.Type == platform.HealthNone {
		u.condition = ready
	}
	t.Presumed = false
	u.target = t
	u.ctx, u.cancel = context.WithCancel(p.in.ctx)
	u.transport = u.newTransport()
	return u
}

func (u *upstream) newTransport() *http.Transport {
	var protocols http.Protocols
	if u.target.Protocol == platform.ProtocolH2C {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	return &http.Transport{
		Protocols: &protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			c, err := u.dial()
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DisableCompression:    true,
		MaxIdleConnsPerHost:   maxIdle,
		IdleConnTimeout:       idleFor,
		ExpectContinueTimeout: time.Second,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// claim counts a request in. It fails when the upstream is draining.
func (u *upstream) claim() bool {
	if u.load.Add(1)&drainBit == 0 {
		return true
	}
	u.release()
	return false
}

// ejectAfter is how many requests in a row a target fails before others are
// preferred, ejectFor for how long.
const (
	ejectAfter = 3
	ejectFor   = 10 * time.Second
)

// begun is what ejections are timed from: a wall clock may be set back.
var begun = time.Now()

// failed takes note of a request that u broke off. What fails is quick, and so
// the target with the fewest requests in flight: without this, one that passes
// its probes and breaks all requests would be given most of them.
func (u *upstream) failed() {
	if u.failures.Add(1) >= ejectAfter {
		u.ejectedUntil.Store(int64(time.Since(begun) + ejectFor))
	}
}

// answered takes note of a proper answer.
func (u *upstream) answered() {
	if u.failures.Load() > 0 {
		u.failures.Store(0)
	}
}

// ejected tells whether others are to be preferred. Once its time is over, the
// next failure ejects u again, and the next answer ends it.
func (u *upstream) ejected() bool {
	return u.failures.Load() >= ejectAfter && int64(time.Since(begun)) < u.ejectedUntil.Load()
}

// release counts a claimed request out.
func (u *upstream) release() {
	if u.load.Add(-1) == drainBit {
		u.pool.drained(u)
	}
}

func (u *upstream) inFlight() int64 { return u.load.Load() &^ drainBit }
func (u *upstream) draining() bool  { return u.load.Load()&drainBit != 0 }

// startDraining refuses claims from now on and has the pool finish u after
// timeout. It tells whether nothing was in flight.
func (u *upstream) startDraining(timeout time.Duration) (idle bool) {
	before := u.load.Or(drainBit)
	if before&drainBit == 0 {
		u.drainFor <- timeout
	}
	return before&^drainBit == 0
}

// run probes u until it drains, then ends it when its time is over.
func (u *upstream) run() {
	defer u.transport.CloseIdleConnections()
	timeout, draining := u.probe()
	if !draining {
		return
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		u.pool.drained(u)
	case <-u.ctx.Done():
	}
}

// dialError says that there is no connection, so nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial opens a connection that ends with u. Errors are *dialError, and the
// target is not ready any more.
func (u *upstream) dial() (*conn, error) {
	// Not the context of a request: whoever gives up waiting says nothing
	// about the target, and the dialer's timeout is short.
	raw, err := u.dialer.DialContext(u.ctx, "tcp", u.target.Addr)
	if err != nil {
		u.pool.refused(u, err)
		return nil, &dialError{err}
	}
	c := &conn{Conn: raw, upstream: u}
	u.conns.Store(c, nil)
	if u.ended.Load() { // and end may have looked before c was there
		c.Close()
		return nil, &dialError{net.ErrClosed}
	}
	return c, nil
}

// dyingFor is how long after its first connection broke a replica that was
// killed may still seem to accept others: the kernel closes what a process had
// open one after the other, and in no order that could be relied on.
const dyingFor = 50 * time.Millisecond

// settleFor bounds how long a request waits to know what became of a replica
// that broke it off. Dying takes longest where the machine is busy.
const settleFor = 5 * time.Second

// isDead tells whether nobody listens at u, after a connection broke.
func (u *upstream) isDead() bool {
	c, err := u.dial()
	if err != nil {
		return true
	}
	defer c.Close()
	// A connection that nobody has accepted yet is reset with its listener. A
	// replica that lives waits for a request.
	_ = c.SetReadDeadline(time.Now().Add(dyingFor))
	_, err = c.Read(make([]byte, 1))
	return errors.Is(err, syscall.ECONNRESET)
}

// end closes every connection to u; what is in flight fails.
func (u *upstream) end() {
	u.cancel()
	u.ended.Store(true)
	u.idle.end()
	u.conns.Range(func(c, _ any) bool {
		c.(*conn).Close()
		return true
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := range u.streams {
		s.end()
	}
}

// endStreams ends those streams that would not end by themselves.
func (u *upstream) endStreams() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := range u.streams {
		if s.endless {
			s.end()
		}
	}
}

// register has s ended with u and, an endless one, with the process. The
// stream may be ended before register returns. Call the result when it is over.
func (u *upstream) register(s *stream) (unregister func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams[s] = struct{}{}
	if u.ended.Load() || s.endless && u.pool.in.isDraining() {
		s.end()
	}
	return func() {
		u.mu.Lock()
		delete(u.streams, s)
		u.mu.Unlock()
	}
}

// goingAway tells whether u is cut off or the process is going down, so that
// the end of a stream is Denia's doing.
func (u *upstream) goingAway() bool {
	return u.ended.Load() || u.pool.in.isDraining()
}

// wake has u probed at once.
func (u *upstream) wake() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}
