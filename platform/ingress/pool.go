package ingress

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/denia-paas/denia/platform"
)

// pool holds the targets of one service.
type pool struct {
	in      *Ingress
	service platform.ID
	view    atomic.Pointer[view] // what requests see
	waiting atomic.Int64
	entries atomic.Pointer[recorder] // nil before the first request
	routes  int                      // hosts that are routed here; guarded by in.mu

	mu        sync.Mutex // before an upstream's mu
	spec      standing   // as last configured
	holds     int
	host      string // one that is routed here, "" for none
	known     bool   // has been configured
	removed   bool
	closed    bool
	upstreams []*upstream // all, draining ones included
}

// standing is what a PoolSpec says beside its targets. There may be a pool for
// each of very many hosts, so it holds no more than that.
type standing struct {
	Name, Project       string
	Stopped, Undeployed bool
	DrainTimeout        time.Duration
	Notify              func()
}

// view is what requests see of a pool. It is immutable; changed is closed when
// a newer one has taken its place.
type view struct {
	name       string
	removed    bool
	stopped    bool
	undeployed bool
	targets    []*upstream // that may be given a request
	changed    chan struct{}
}

func newPool(in *Ingress, service platform.ID) *pool {
	p := &pool{in: in, service: service}
	p.view.Store(&view{changed: make(chan struct{})})
	return p
}

// patience bounds how long one request waits, over all its attempts.
type patience struct {
	total    time.Duration
	deadline time.Time // zero until it first had to wait
	waited   time.Duration
	cold     bool // waited until a target was there
}

func (w *patience) left() time.Duration {
	now := time.Now()
	if w.deadline.IsZero() {
		w.deadline = now.Add(w.total)
	}
	return w.deadline.Sub(now)
}

// since adds to what was waited.
func (w *patience) since(began time.Time) { w.waited += time.Since(began) }

// acquire claims the target with the fewest requests in flight; if there is
// one other than avoid, not avoid. Whoever gets a target must release it. With
// no target it waits for one; the refusal says why there was none in the end.
func (p *pool) acquire(ctx context.Context, wait *patience, avoid *upstream) (*upstream, *refusal) {
	v := p.view.Load()
	for {
		if u := v.pick(avoid); u != nil {
			if u.claim() {
				return u, nil
			}
			// Draining began after v was loaded, so there is a newer view,
			// which does not hold u.
			v = p.view.Load()
			continue
		}
		if refused := v.refusal(); refused != nil {
			return nil, refused
		}
		if refused := p.wait(ctx, v, wait); refused != nil {
			return nil, refused
		}
		v = p.view.Load()
	}
}

// wait returns nil once v is outdated.
func (p *pool) wait(ctx context.Context, v *view, wait *patience) *refusal {
	left := wait.left()
	if left <= 0 {
		return refuseTimeout(v.name, wait.total)
	}
	if n := p.waiting.Add(1); n > int64(p.in.options.MaxWaiting) {
		p.waiting.Add(-1)
		return refuseCrowd(v.name, p.in.options.MaxWaiting)
	}
	defer p.waiting.Add(-1)
	defer wait.since(time.Now())
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-v.changed:
		wait.cold = true
		return nil
	case <-timer.C:
		return refuseTimeout(v.name, wait.total)
	case <-ctx.Done():
		return refuseGone
	case <-p.in.drain:
		return refuseShutdown
	}
}

// settle waits until it is known what became of u, which broke a request off:
// until it answers a health check, or there are other targets. A process that
// is being killed accepts connections to its end, and would take every repeat
// with it. Where there is another target it returns at once.
func (p *pool) settle(ctx context.Context, u *upstream, wait *patience) {
	v := p.view.Load()
	if v.pick(u) != u {
		return
	}
	defer wait.since(time.Now())
	enough := time.NewTimer(min(wait.left(), settleFor))
	defer enough.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	if newChecker(u).path == nil {
		pause.Reset(dyingFor) // a connection alone says little: give it time
	}
	for {
		var answers <-chan singleflight.Result
		select {
		case <-pause.C:
			answers = u.answers.DoChan("", func() (any, error) {
				outcome, _ := newChecker(u).check(u.ctx)
				return outcome.OK, nil
			})
		case <-v.changed:
			return
		case <-enough.C:
			return
		case <-ctx.Done():
			return
		}
		select {
		case result := <-answers:
			if result.Val == true {
				return
			}
			pause.Reset(dyingFor)
		case <-v.changed:
			return
		case <-enough.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// pick returns the target with the least load, nil when there is none. It
// starts at a random one: ties must not all go to the first. One that breaks
// requests is taken only where there is no other.
func (v *view) pick(avoid *upstream) *upstream {
	n := len(v.targets)
	if n == 0 {
		return nil
	}
	if n == 1 {
		return v.targets[0]
	}
	var best *upstream
	var least int64
	var worst bool // best is ejected
	at := rand.IntN(n)
	for range n {
		u := v.targets[at]
		if at++; at == n {
			at = 0
		}
		if u == avoid {
			continue
		}
		load, ejected := u.inFlight(), u.ejected()
		if best == nil || worst && !ejected || worst == ejected && load < least {
			best, least, worst = u, load, ejected
		}
	}
	return best
}

// refusal says why requests are not even to wait, nil when they are.
func (v *view) refusal() *refusal {
	switch {
	case v.removed:
		return refuseUnknown
	case v.stopped:
		return refuseStopped(v.name)
	case v.undeployed:
		return refuseUndeployed(v.name)
	}
	return nil
}

func (p *pool) configure(spec PoolSpec) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.known, p.removed = true, false
	if r := p.entries.Load(); r != nil {
		r.reopen()
	}
	if spec.Holds < p.holds { // decided before the last Hold
		spec.Stopped, spec.Undeployed = false, false
	}
	p.spec = standing{spec.Name, spec.Project, spec.Stopped, spec.Undeployed, spec.DrainTimeout, spec.Notify}

	wanted := make(map[*upstream]bool, len(spec.Serving)+len(spec.Candidates))
	for _, u := range p.upstreams {
		u.serving = false
	}
	adopt := func(t Target, serving bool) {
		u := p.find(t)
		if u == nil {
			u = newUpstream(p, t)
			p.upstreams = append(p.upstreams, u)
			p.in.tasks.Go(u.run)
		}
		u.serving = u.serving || serving
		wanted[u] = true
	}
	for _, t := range spec.Serving {
		adopt(t, true)
	}
	for _, t := range spec.Candidates {
		adopt(t, false)
	}
	// The view goes first: a request that finds its claim refused must find
	// a view without that target.
	p.publish()
	for _, u := range slices.Clone(p.upstreams) {
		if wanted[u] {
			continue
		}
		if slices.Contains(spec.Gone, u.target.ID) {
			p.finish(u)
		} else {
			p.drain(u)
		}
	}
}

func (p *pool) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds++
	if p.spec.Stopped || p.spec.Undeployed {
		p.spec.Stopped, p.spec.Undeployed = false, false
		p.publish()
	}
}

// find returns the upstream that is t and not draining. p.mu must be held.
func (p *pool) find(t Target) *upstream {
	t.Presumed = false
	for _, u := range p.upstreams {
		if u.target == t && !u.draining() {
			return u
		}
	}
	return nil
}

// publish gives requests a fresh view. p.mu must be held.
//
// When no target passes its probes, those that at least accept connections
// are used: a health check that fails everywhere, say because a database is
// down, must not turn a part that works into an outage of the whole.
func (p *pool) publish() {
	next := &view{
		name:       p.spec.Name,
		removed:    p.removed,
		stopped:    p.spec.Stopped,
		undeployed: p.spec.Undeployed,
		changed:    make(chan struct{}),
	}
	if !p.removed && !p.closed {
		next.targets = p.serving(ready)
		if len(next.targets) == 0 {
			next.targets = p.serving(failing)
		}
	}
	close(p.view.Swap(next).changed)
}

// serving returns the serving targets in condition c. p.mu must be held.
func (p *pool) serving(c condition) []*upstream {
	var found []*upstream
	for _, u := range p.upstreams {
		if u.serving && u.condition == c && !u.draining() {
			found = append(found, u)
		}
	}
	return found
}

// drain lets u finish what it has in flight. A fresh view without u must have
// been published. p.mu must be held.
func (p *pool) drain(u *upstream) {
	if u.draining() {
		return
	}
	u.serving = false
	idle := u.startDraining(p.spec.DrainTimeout)
	if idle || p.spec.DrainTimeout <= 0 {
		p.finish(u)
	}
}

// finish ends u for good and cuts what is still in flight on it. p.mu must be
// held.
func (p *pool) finish(u *upstream) {
	at := slices.Index(p.upstreams, u)
	if at < 0 {
		return
	}
	p.upstreams = slices.Delete(p.upstreams, at, at+1)
	u.startDraining(0)
	u.end()
	p.in.tell(p)
}

// drained is called when u is draining and has nothing in flight, or no more
// time.
func (p *pool) drained(u *upstream) {
	p.mu.Lock()
	p.finish(u)
	p.mu.Unlock()
	p.in.forget(p)
}

// probed takes the outcome of a probe.
func (p *pool) probed(u *upstream, outcome Probe, refused bool) {
	u.lastProbe.Store(&outcome)
	p.mu.Lock()
	defer p.mu.Unlock()
	if outcome.OK {
		u.misses = 0
	} else {
		u.misses++
	}
	p.become(u, u.condition.after(outcome.OK, refused, u.misses), outcome.Err)
}

// refused is called when u did not accept a connection: no request can be sent
// there until a probe succeeds.
func (p *pool) refused(u *upstream, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.become(u, u.condition.after(false, true, 0), err.Error())
}

// become moves u to condition c. p.mu must be held.
func (p *pool) become(u *upstream, c condition, why string) {
	if u.condition == c {
		return
	}
	was := u.condition
	u.condition = c
	u.wake()
	if u.serving {
		p.publish()
	}
	if (was == ready) != (c == ready) && !u.draining() {
		if c == ready {
			p.in.options.Log.Debug("replica is ready", "service", p.spec.Name, "replica", u.target.ID)
		} else {
			p.in.options.Log.Warn("replica is not ready any more", "service", p.spec.Name, "replica", u.target.ID, "error", why)
		}
		p.in.tell(p)
	}
}

func (p *pool) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = true
	p.publish()
	for _, u := range slices.Clone(p.upstreams) {
		p.drain(u)
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.publish()
	for _, u := range slices.Clone(p.upstreams) {
		p.finish(u)
	}
}

// unused tells whether the pool can be forgotten: it is not routed, and was
// removed or never configured.
func (p *pool) unused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host == "" && len(p.upstreams) == 0 && (p.removed || !p.known)
}

func (p *pool) name() string { return p.view.Load().name }

func (p *pool) setHost(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.host = host
}

func (p *pool) routedHost() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host
}

// probeHost is the Host header of probes: what clients send, as applications
// may refuse others.
func (p *pool) probeHost() string {
	host := p.routedHost()
	if host == "" || platform.IsWildcard(host) {
		return "localhost"
	}
	return host
}

func (p *pool) listener() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spec.Notify
}

func (p *pool) list() []*upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.upstreams)
}

func (p *pool) status() PoolStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PoolStatus{Waiting: int(p.waiting.Load()), Targets: make([]TargetStatus, 0, len(p.upstreams))}
	for _, u := range p.upstreams {
		t := TargetStatus{
			ID: u.target.ID, ReleaseID: u.target.ReleaseID, Addr: u.target.Addr,
			Ready:    u.condition == ready && !u.draining(),
			Serving:  u.serving,
			Draining: u.draining(),
			InFlight: int(u.inFlight()),
		}
		if last := u.lastProbe.Load(); last != nil {
			t.LastProbe = *last
		}
		s.Targets = append(s.Targets, t)
	}
	return s
}
