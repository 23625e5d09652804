// Package ingress forwards HTTP requests to the replicas of services.
//
// A route table finds the service of a host; the service's pool gives the
// replica with the fewest requests in flight. While no replica is ready,
// requests wait. The ingress probes replicas with its own dialer, takes them
// out of service without failing a request, and knows neither a store nor a
// container engine: what it should do is told to it by Configure and
// SetRoutes, what it sees is told by Status and PoolSpec.Notify.
//
// A request is sent to another replica, or again, when nothing of it can have
// reached the first; when its method is idempotent or it has an
// Idempotency-Key, and no byte of an answer came; and when the replica died
// with part of the request unread. All others that break get 502: they may have
// taken effect. Bodies of known length up to MaxReplayBody are held in memory
// for this, longer ones are streamed and can be sent once only.
//
// A replica that fails its probes twice in a row gets no requests while another
// is ready. When none is, those that at least accept connections are used;
// when there is none of these either, requests wait.
//
// On the way of a request there is no lock that two services share.
package ingress

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Ingress is the way in to all services. Its methods may be called
// concurrently.
type Ingress struct {
	options Options
	hosts   atomic.Pointer[table]

	// ctx ends with Close, drain is closed by Drain.
	ctx       context.Context
	cancel    context.CancelFunc
	drain     chan struct{}
	drainOnce sync.Once
	tasks     sync.WaitGroup // every goroutine of the Ingress's own

	mu     sync.Mutex // before a pool's mu
	closed bool
	pools  map[platform.ID]*pool

	recording // of access entries

	news   chan struct{} // wakes the notifier
	newsMu sync.Mutex
	newsOf map[*pool]struct{}
}

// New makes an Ingress without routes and pools. It starts goroutines that
// Close ends.
func New(o Options) *Ingress {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Client == nil {
		o.Client = func(r *http.Request) (string, bool) { return peer(r), false }
	}
	if o.WaitTimeout == 0 {
		o.WaitTimeout = 30 * time.Second
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 1000
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 2 * time.Second
	}
	in := &Ingress{
		options:   o,
		drain:     make(chan struct{}),
		recording: recording{fresh: make(chan struct{}, 1), hurry: make(chan struct{}, 1)},
		pools:     map[platform.ID]*pool{},
		news:      make(chan struct{}, 1),
		newsOf:    map[*pool]struct{}{},
	}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	in.hosts.Store(&table{})
	in.tasks.Go(in.notify)
	if o.Record != nil {
		in.tasks.Go(in.record)
	}
	return in
}

// peer is the address the request's connection comes from, without its port.
func peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// SetRoutes replaces the whole route table in one atomic step. Of two routes
// for one host the first counts. A route may name a service that Configure
// has not seen yet: its requests wait.
func (in *Ingress) SetRoutes(routes []Route) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	d := draftOf(&table{})
	for _, p := range in.pools {
		p.routes = 0
	}
	first := map[*pool]string{}
	for _, route := range routes {
		key := keyOf(route.Host)
		if key == "" || d.get(key) != nil {
			continue
		}
		p := in.pool(route.ServiceID)
		d.put(key, p)
		if p.routes++; p.routes == 1 {
			first[p] = hostOf(key)
		}
	}
	for id, p := range in.pools {
		p.setHost(first[p])
		if p.unused() {
			delete(in.pools, id)
		}
	}
	in.hosts.Store(d.table())
}

// Change routes the hosts of set, and takes the routes of the hosts in remove
// away, in one atomic step: no request sees a part of it. All other routes stay
// as they are. A host in both is routed; of two routes for one host the first
// counts. It is cheap however many hosts there are.
func (in *Ingress) Change(set []Route, remove []string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	d := draftOf(in.hosts.Load())
	touched := map[*pool]string{} // with a key that it got
	route := func(key string, p *pool) {
		before := d.put(key, p)
		if before == p {
			return
		}
		if before != nil {
			before.routes--
			if _, known := touched[before]; !known {
				touched[before] = ""
			}
		}
		if p != nil {
			p.routes++
			touched[p] = key
		}
	}
	for _, host := range remove {
		if key := keyOf(host); key != "" {
			route(key, nil)
		}
	}
	for _, r := range slices.Backward(set) {
		if key := keyOf(r.Host); key != "" {
			route(key, in.pool(r.ServiceID))
		}
	}
	in.hosts.Store(d.table())
	for p, key := range touched {
		in.rename(p, key)
		if p.unused() {
			delete(in.pools, p.service)
		}
	}
}

// rename sees to it that the host p is known by is routed to it. got is a key
// that may be. in.mu must be held.
func (in *Ingress) rename(p *pool, got string) {
	t := in.hosts.Load()
	switch {
	case p.routes == 0:
		p.setHost("")
	case t.get(keyOf(p.routedHost())) == p:
	case t.get(got) == p:
		p.setHost(hostOf(got))
	default:
		p.setHost(hostOf(t.anyOf(p)))
	}
}

// Has tells whether there is a route for host, given as in a Host header.
func (in *Ingress) Has(host string) bool {
	return in.hosts.Load().lookup(host) != nil
}

// Configure makes the pool of a service what spec says. It may be repeated.
// New targets start being probed, changed lists take effect in one atomic
// step, in which a ready candidate is a ready serving target; targets that are
// in neither list get no further request from the moment Configure returns,
// and drain.
func (in *Ingress) Configure(spec PoolSpec) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	in.pool(spec.ServiceID).configure(spec)
}

// Hold has requests for a service wait for a ready replica where they were
// refused, because it was stopped or had no release: one is on its way. The
// next Configure that knows of it, see PoolSpec.Holds, decides anew.
func (in *Ingress) Hold(service platform.ID) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if p := in.pools[service]; p != nil {
		p.hold()
	}
}

// Holds is how often Hold was called for a service. Ask before reading what a
// PoolSpec is made from.
func (in *Ingress) Holds(service platform.ID) int {
	in.mu.Lock()
	p := in.pools[service]
	in.mu.Unlock()
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holds
}

// Remove takes the pool of a service away. Its targets drain as the last
// Configure said; requests for hosts that are still routed to it get 404. When
// it returns Options.Record is not called for the service any more.
func (in *Ingress) Remove(service platform.ID) {
	in.mu.Lock()
	p := in.pools[service]
	if p == nil {
		in.mu.Unlock()
		return
	}
	p.remove()
	if p.unused() {
		delete(in.pools, service)
	}
	in.mu.Unlock()
	p.recorder().close() // after in.mu is free: it may wait for a disk
}

// Status reports on the pool of a service; the zero PoolStatus when there is
// none.
func (in *Ingress) Status(service platform.ID) PoolStatus {
	in.mu.Lock()
	p := in.pools[service]
	in.mu.Unlock()
	if p == nil {
		return PoolStatus{}
	}
	return p.status()
}

// Drain says that the process is going down: WebSockets and event streams are
// ended, as they would never end by themselves, and requests that wait for a
// replica are answered. All other requests go on.
func (in *Ingress) Drain() {
	in.drainOnce.Do(func() { close(in.drain) })
	for _, p := range in.snapshot() {
		for _, u := range p.list() {
			u.endStreams()
		}
	}
}

// Close cuts what is in flight, ends all probes and waits for the goroutines
// of the Ingress. Requests in ServeHTTP belong to the HTTP server: they end
// soon after, but Close does not wait for them.
func (in *Ingress) Close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.drainOnce.Do(func() { close(in.drain) })
	in.cancel()
	for _, p := range in.snapshot() {
		p.close()
	}
	in.tasks.Wait()
	if in.options.Record != nil {
		in.recordAll()
	}
}

func (in *Ingress) snapshot() []*pool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Collect(maps.Values(in.pools))
}

// pool returns the pool of a service, a new one if need be. in.mu must be held.
func (in *Ingress) pool(service platform.ID) *pool {
	p := in.pools[service]
	if p == nil {
		p = newPool(in, service)
		in.pools[service] = p
	}
	return p
}

// forget drops a removed pool once nothing is left of it. No lock must be held.
func (in *Ingress) forget(p *pool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.pools[p.service] == p && p.unused() {
		delete(in.pools, p.service)
	}
}

// tell has the pool's Notify called soon.
func (in *Ingress) tell(p *pool) {
	in.newsMu.Lock()
	in.newsOf[p] = struct{}{}
	in.newsMu.Unlock()
	select {
	case in.news <- struct{}{}:
	default:
	}
}

func (in *Ingress) notify() {
	for {
		select {
		case <-in.ctx.Done():
			return
		case <-in.news:
		}
		in.newsMu.Lock()
		pools := in.newsOf
		in.newsOf = map[*pool]struct{}{}
		in.newsMu.Unlock()
		for p := range pools {
			if hear := p.listener(); hear != nil {
				hear()
			}
		}
	}
}

func (in *Ingress) isDraining() bool {
	select {
	case <-in.drain:
		return true
	default:
		return false
	}
}
