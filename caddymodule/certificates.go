package caddymodule

import (
	"container/heap"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
)

const (
	maxAttempts = 16                    // handshakes under way at a time
	pace        = 50 * time.Millisecond // between the beginnings of two
	patience    = 2 * time.Minute       // for one

	warmth  = 6 * time.Hour    // a certificate is looked at this often, even if nothing is to be done
	visited = 10 * time.Second // after a visitor's handshake: what has come of it?
	longest = time.Hour        // a name that waits is looked at this often: another node may have its certificate
	memory  = 24 * time.Hour   // the failure of a name that nobody asks for any more is forgotten
)

// certificates gets and keeps the certificates of Denia's names, by doing for
// each from time to time what a visitor does: a handshake, in memory, through
// the newest of Caddy's configurations. Caddy then does its usual work. Alone,
// it would do it for the first visitor of a domain only, while that one waits,
// and would let certificates expire that nobody visits.
//
// Caddy tells about its work by events: from them comes what an owner reads of
// a failure, and by them orders are held back, see obtaining.
type certificates struct {
	log   *slog.Logger
	names atomic.Pointer[names]
	view  atomic.Pointer[automation]

	secure    secured
	strangers strangers // c.mu guards it

	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}

	mu            sync.Mutex
	given         control.Names
	controlDomain string
	entries       map[string]*entry
	queue         queue
	orders        *orders
	outage        authorityOutage
	running       int
}

// automation is how one of Caddy's configurations gets certificates; tlsView has
// the real one.
type automation interface {
	onDemand(name string) bool
	decided() bool
	issues(name string) bool
	isFree(name string) bool
	renewalRatio(name string) float64
	handshake(ctx context.Context, name string) (*x509.Certificate, error)
}

func newCertificates(c Certificates, controlDomain string, log *slog.Logger) *certificates {
	m := &certificates{
		log: log, wake: make(chan struct{}, 1), controlDomain: controlDomain,
		entries: map[string]*entry{}, orders: newOrders(c),
	}
	m.names.Store(&names{})
	m.rebuild()
	return m
}

// start begins to look after the certificates. What has to be there before is a
// configuration: see useView.
func (c *certificates) start() {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.run(ctx) })
}

// close ends all handshakes under way and waits for them.
func (c *certificates) close() {
	if c.cancel != nil {
		c.cancel()
	}
	c.wg.Wait()
}

// useView takes over a configuration that has started: only then authorities
// reach the listeners.
func (c *certificates) useView(view automation) {
	c.view.Store(&view)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, e := range c.entries {
		if e.seen && e.leaf.notAfter.IsZero() && !e.absent { // perhaps the last configuration could not
			c.reschedule(e, now)
		}
	}
	c.nudge()
}

// automation is the newest configuration's; nil before one has started, and
// without TLS.
func (c *certificates) automation() automation {
	if view := c.view.Load(); view != nil {
		return *view
	}
	return nil
}

// useNames takes over the names that may have a certificate.
func (c *certificates) useNames(given control.Names) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given = given
	c.rebuild()
}

// useControlDomain takes over the control domain; it may be empty.
func (c *certificates) useControlDomain(domain string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.controlDomain != domain {
		c.controlDomain = domain
		c.rebuild()
	}
}

// rebuild is called with c.mu held, as are all that follow but the handshakes.
func (c *certificates) rebuild() {
	last := c.names.Load()
	next := &names{domains: c.given.Domains, services: c.given.Services, control: c.controlDomain}
	c.names.Store(next)
	// Many that come at once, as at the start, are looked at one after another,
	// and one that comes meanwhile goes first.
	due := time.Now()
	wildcards := false
	for _, name := range changes(last, next) {
		if c.settle(name, due) {
			due = due.Add(pace)
		}
		wildcards = wildcards || platform.IsWildcard(name)
	}
	if wildcards {
		for name, e := range c.entries {
			if e.kind == childName {
				c.settle(name, due)
			}
		}
	}
}

// settle does for a name what follows from whether it may have a certificate
// now, and why. It tells whether the name is a new one that is looked at when
// due.
func (c *certificates) settle(name string, due time.Time) bool {
	k, ok := c.names.Load().find(name)
	e := c.entries[name]
	switch {
	case !ok:
		c.forbid(name)
	case e == nil:
		if !k.lazy() {
			c.reschedule(c.add(name, k), due)
			return true
		}
	case e.gone || e.kind != k:
		e.kind, e.gone = k, false
		c.note(e)
		if k.lazy() && e.absent {
			c.plan(e, due)
		} else {
			c.reschedule(e, later(due, e.retry))
		}
	}
	return false
}

// changes lists the names that may have a certificate now and could not before,
// or the other way round, and those that may for another reason.
func changes(last, next *names) []string {
	changed := differing(last.domains, next.domains, func(d platform.DomainName) string { return d.Hostname },
		func(a, b platform.DomainName) bool { return (a.TLS == "off") == (b.TLS == "off") })
	same := func(a, b string) bool { return a == b }
	itself := func(name string) string { return name }
	changed = append(changed, differing(last.services, next.services, itself, same)...)
	return append(changed, differing(single(last.control), single(next.control), itself, same)...)
}

// differing lists the names that are in one of two lists, which are in order, or
// are not the same in both.
func differing[T any](before, after []T, name func(T) string, same func(a, b T) bool) (names []string) {
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && name(before[0]) < name(after[0]):
			names, before = append(names, name(before[0])), before[1:]
		case len(before) == 0 || name(after[0]) < name(before[0]):
			names, after = append(names, name(after[0])), after[1:]
		default:
			if !same(before[0], after[0]) {
				names = append(names, name(after[0]))
			}
			before, after = before[1:], after[1:]
		}
	}
	return names
}

func single(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// forbid ends what is done for a name.
func (c *certificates) forbid(name string) {
	e := c.entries[name]
	if e == nil || e.gone {
		return
	}
	if e.cancel != nil {
		e.cancel()
	}
	// Its back-off stays: detaching and attaching a domain must not be a way
	// around it.
	e.gone = true
	c.note(e)
	if !time.Now().Before(e.retry) {
		c.drop(e)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *certificates) add(name string, k kind) *entry {
	e := &entry{name: name, kind: k, index: -1}
	c.entries[name] = e
	return e
}

func (c *certificates) drop(e *entry) {
	if e.index >= 0 {
		heap.Remove(&c.queue, e.index)
	}
	if c.entries[e.name] == e {
		delete(c.entries, e.name)
		e.gone = true
		c.note(e)
	}
}

// note has those follow who need to know what e is and has.
func (c *certificates) note(e *entry) {
	c.secure.note(e)
	c.strangers.note(e)
}

// reschedule has e looked at at the time due. While it is being looked at,
// finish decides on the next time.
func (c *certificates) reschedule(e *entry, due time.Time) {
	e.due = due
	switch {
	case e.running:
	case e.index >= 0:
		heap.Fix(&c.queue, e.index)
	default:
		heap.Push(&c.queue, e)
	}
	c.nudge()
}

func (c *certificates) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run starts the handshakes that are due.
func (c *certificates) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := c.next(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-c.wake:
			if wait == pace { // the pace is kept, whoever nudges
				<-timer.C
			}
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next starts the handshake that is due first, if one is, and tells how long
// there is to wait.
func (c *certificates) next(ctx context.Context) time.Duration {
	view := c.automation()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if view == nil || len(c.queue) == 0 || c.running == maxAttempts {
		return time.Hour // a nudge comes first
	}
	e := c.queue[0]
	if wait := e.due.Sub(now); wait > 0 {
		return wait
	}
	heap.Pop(&c.queue)
	switch {
	case e.gone, e.kind.lazy() && !e.asked && !e.valid(now): // nobody waits for it
		c.drop(e)
		return 0
	case e.absent && e.kind != controlName && !view.isFree(e.name):
		if turn, because := c.turn(e.name, now); because != nil {
			c.hold(e, turn, because, now)
			return 0
		}
	}
	attempt, cancel := context.WithTimeout(ctx, patience)
	e.running, e.cancel, e.asked = true, cancel, false
	c.running++
	c.wg.Go(func() {
		defer cancel()
		started := time.Now()
		found, err := c.look(attempt, view, e.name)
		if ctx.Err() == nil {
			c.finish(view, e, started, found, err)
		}
	})
	return pace
}

var errNoPolicy = errors.New("no site with `tls { on_demand }` is there for it")

// look does the handshake for a name.
func (c *certificates) look(ctx context.Context, view automation, name string) (*x509.Certificate, error) {
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		// A certificate for the wildcard itself is the operator's to have, by
		// DNS. Asking for a name below it must not order one.
		if view.onDemand(name) {
			return nil, errNoPolicy
		}
		name = "any." + parent
	}
	found, err := view.handshake(ctx, name)
	if err != nil && !view.onDemand(name) {
		return nil, errNoPolicy
	}
	return found, err
}

// finish takes note of what has come of a handshake.
func (c *certificates) finish(view automation, e *entry, started time.Time, found *x509.Certificate, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.running--
	e.running, e.cancel, e.seen = false, nil, true
	switch {
	case e.gone:
		if other := c.entries[e.name]; now.Before(e.retry) && (other == nil || other == e) {
			c.entries[e.name] = e
			c.reschedule(e, e.retry)
		} else {
			c.drop(e)
		}
		c.nudge()
		return
	case err == nil:
		// While renewing it fails, the same one is found all the time.
		if next := newLeaf(found); next != e.leaf || !e.renewal && !now.Before(e.retry) {
			e.leaf = next
			e.succeed()
			c.note(e)
		}
		e.absent = false
		c.reschedule(e, c.nextLook(view, e, now))
		return
	case errors.Is(err, errNoPolicy):
		e.leaf, e.absent = leaf{}, false
		e.succeed()
		c.note(e)
		c.reschedule(e, now.Add(jitter(warmth)))
		return
	case e.failed.Before(started) && !now.Before(e.retry):
		// Neither has the authority refused nor was the order held back:
		// storage is away, or it took too long.
		c.fail(e, false, err, now)
	}
	c.plan(e, now)
}

// nextLook is when a certificate that is there is looked at again.
func (c *certificates) nextLook(view automation, e *entry, now time.Time) time.Time {
	if now.Before(e.retry) { // renewing it has failed
		return e.retry
	}
	left := e.leaf.notAfter.Sub(now)
	renewal := time.Duration(float64(e.leaf.notAfter.Sub(e.leaf.notBefore)) * view.renewalRatio(e.name))
	if wait := left - renewal; wait > 0 {
		// Spread over the first quarter of the time there is to renew it.
		return now.Add(min(jitter(warmth), wait+rand.N(renewal/4+1)))
	}
	return now.Add(jitter(min(max(left/10, time.Second), time.Hour)))
}

// plan schedules a name that got no certificate.
func (c *certificates) plan(e *entry, now time.Time) {
	e.asked = false // and that is the answer
	due := e.retry
	switch {
	case !e.kind.lazy() || e.valid(now):
		due = earlier(due, now.Add(jitter(longest)))
	case e.absent && e.failures > 0:
		due = due.Add(memory)
	default: // nothing was ordered, and there is little to remember
		due = due.Add(longest)
	}
	c.reschedule(e, due)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// jitter is d, give or take a quarter.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

func (c *certificates) fail(e *entry, renewal bool, err error, now time.Time) {
	e.failures++
	e.renewal = renewal
	e.err, e.failed = reason(err), now
	if verdictOf(err) == refuses {
		if e.refusals == nil {
			e.refusals = &refusals{hasty: window{limit: hastened, span: 24 * time.Hour}}
		}
		e.refusals.note(now)
	}
	e.retry = now.Add(backOff(err, e.failures))
	e.nextTry = e.retry
	c.log.Warn("no certificate", "host", e.name, "reason", e.err, "failures", e.failures, "next_try", e.nextTry)
}

// reached is told that a name leads to this Denia. What an authority has refused
// it for may be over, most of all that it led elsewhere: it is tried again before
// its back-off ends, if the authority's limits have room for that.
func (c *certificates) reached(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	e := c.entries[name]
	if e == nil || e.gone || e.refusals == nil || !e.failed.Equal(e.refusals.last[1]) {
		return
	}
	if again, ok := e.refusals.hasten(now, e.retry); ok {
		e.retry, e.nextTry = again, again
		c.reschedule(e, again)
	}
}

// turn is when a certificate may be ordered, and why not now: nil when it may.
func (c *certificates) turn(name string, now time.Time) (time.Time, error) {
	if turn := c.outage.next(now); !turn.IsZero() {
		return turn, errOutage
	}
	if turn := c.orders.next(name, now); !turn.IsZero() {
		return turn, errTurn
	}
	return time.Time{}, nil
}

// hold has e wait for its turn. A back-off that lasts is not touched: what waits
// for a turn is ordered as soon as it has come.
func (c *certificates) hold(e *entry, turn time.Time, because error, now time.Time) {
	e.absent = true
	if !now.Before(e.retry) {
		e.renewal, e.err, e.nextTry = false, because.Error(), turn
		e.retry = earlier(turn, now.Add(longest))
	}
	c.plan(e, now)
}

// obtaining is told before Caddy orders or renews a certificate. Its error
// keeps Caddy from it. It does not concern names that have a policy of their own,
// or that are not Denia's where others permit them.
//
// Refusing here, rather than when permission is asked, leaves a certificate
// that is still good in place: Caddy drops it when permission to renew it is
// denied.
func (c *certificates) obtaining(name string, renewal bool) error {
	view := c.automation()
	if view == nil || !view.onDemand(name) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[name]
	if e == nil {
		// Not every order is preceded by permission: Caddy has certificates anew
		// that were revoked, or that storage has no more.
		if _, known := c.names.Load().find(name); !known && view.decided() {
			return errNobodys
		}
		return nil
	}
	now := time.Now()
	switch {
	case e.gone:
		return errNobodys
	case now.Before(e.retry):
		return &waiting{until: e.retry, because: e.err}
	case e.kind == controlName || view.isFree(name):
		e.absent = e.absent || !renewal
		return nil
	case renewal:
		if turn := c.outage.next(now); !turn.IsZero() {
			return &waiting{until: turn, because: errOutage.Error()}
		}
		c.outage.begin(name, now)
		return nil
	}
	e.absent = true
	if turn, because := c.turn(name, now); because != nil {
		c.hold(e, turn, because, now)
		return &waiting{until: turn, because: e.err}
	}
	c.outage.begin(name, now)
	c.orders.take(name, now)
	return nil
}

// obtained is told when Caddy has a new certificate.
func (c *certificates) obtained(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[name]; e != nil {
		e.succeed()
		e.absent, e.asked = false, true
		c.reschedule(e, time.Now())
		if view := c.automation(); view != nil && !view.isFree(name) {
			c.answered()
		}
	}
}

// failure is told when a try of Caddy's has failed.
func (c *certificates) failure(name string, renewal bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[name]
	if e == nil {
		return
	}
	now := time.Now()
	if unanswered(err) {
		c.outage.failed(name, now)
	} else if _, ok := errors.AsType[acme.Problem](err); ok {
		c.answered()
	}
	c.fail(e, renewal, err, now)
	if !renewal {
		e.absent = true
	}
	if e.cancel != nil {
		e.cancel() // Caddy would try again in a minute, and keep everybody waiting
	}
	c.plan(e, now)
}
