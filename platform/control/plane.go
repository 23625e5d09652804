// Package control is the control plane: every loop and every effect of Denia
// is decided here. It brings what is observed (containers, probes) to what is
// desired (rows in the store), level-triggered: a deployment, a changed
// configuration, a stop, a crash, an engine restart and a restart of Denia
// itself are the same loop.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
)

// Options hold what the Plane works with. All fields are required unless a
// default is named.
type Options struct {
	Store   *store.Store
	Runtime platform.Runtime
	Images  platform.Images
	Ingress *ingress.Ingress
	Logs    *telemetry.Logs
	Log     *slog.Logger

	// Registry is Denia's own. It is asked from Start on.
	Registry Registry

	DataDir    string // uploads/ and builds/ live below it
	BaseDomain string // default "localhost"

	// ControlDomain is the host of the API as it is now; default: none.
	ControlDomain func() string

	// Names hears which hosts may have a certificate, at the start and whenever
	// that changes, before the ingress routes what is new. It is called by one
	// goroutine at a time, must be quick, must not change what it is given, and
	// must not call the Plane. nil: nobody hears.
	Names func(Names)

	Domains DomainOptions

	Node string // who holds the lease; the same after a restart

	Unpack       func(ctx context.Context, archive, dir string) error
	BuildWorkers int           // default 1
	BuildTimeout time.Duration // default 30 min
	PullTimeout  time.Duration // default 15 min
	DiskReserve  int64         // bytes a build leaves free on the data directory's disk; default 256 MiB
	KeepReleases int           // images of how many healthy releases a service keeps; default 5
}

func (o *Options) defaults() {
	if o.BaseDomain == "" {
		o.BaseDomain = "localhost"
	}
	if o.ControlDomain == nil {
		o.ControlDomain = func() string { return "" }
	}
	if o.Domains.Recheck == 0 {
		o.Domains.Recheck = 24 * time.Hour
	}
	if o.BuildWorkers == 0 {
		o.BuildWorkers = 1
	}
	if o.BuildTimeout == 0 {
		o.BuildTimeout = 30 * time.Minute
	}
	if o.PullTimeout == 0 {
		o.PullTimeout = 15 * time.Minute
	}
	if o.DiskReserve == 0 {
		o.DiskReserve = 256 << 20
	}
	if o.KeepReleases == 0 {
		o.KeepReleases = 5
	}
}

const (
	tick     = 10 * time.Second // replicas are listed at least this often
	rest     = time.Minute      // a supervisor looks at least this often
	leaseTTL = 15 * time.Second
	lease    = "loops"
)

// Plane owns every loop of the control plane. Its methods may be called
// concurrently, between Start and Close.
type Plane struct {
	Options
	collector *telemetry.Collector
	topics    topics

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	drainOnce sync.Once
	draining  chan struct{}

	buildKick chan struct{}

	// routesMu is held while what decides about routes and challenges is
	// written and they follow: changes reach memory in the order of their rows.
	routesMu sync.Mutex
	changes  uint64 // so far
	hosts    hosts
	claims   *claims

	prover *prover
	checks *gate // those that are asked for

	// orders is held while an order of a person's is read, judged and
	// recorded: a deployment must not freeze a configuration that a change
	// beside it has just replaced. It is taken before any other lock.
	orders sync.Mutex

	mu          sync.Mutex
	term        *term // nil while another node has the lease
	supervisors map[platform.ID]*supervisor
	builds      map[platform.ID]context.CancelCauseFunc // by deployment

	copies *copies
}

// term is a time during which this node has the lease. All that acts runs
// under its ctx and is counted in its wg.
type term struct {
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup
}

// New makes a Plane. It starts nothing.
func New(o Options) *Plane {
	o.defaults()
	ctx, cancel := context.WithCancel(context.Background())
	p := &Plane{
		Options: o, ctx: ctx, cancel: cancel,
		draining:    make(chan struct{}),
		buildKick:   make(chan struct{}, 1),
		supervisors: map[platform.ID]*supervisor{},
		builds:      map[platform.ID]context.CancelCauseFunc{},
		copies:      newCopies(),
		claims:      newClaims(),
		prover:      newProver(o.Domains),
		checks:      newGate(),
	}
	p.collector = telemetry.NewCollector(o.Logs, p.openReplicaLog, o.Log)
	return p
}

func (p *Plane) openReplicaLog(ctx context.Context, replica string, since time.Time) (platform.LogReader, error) {
	return p.Runtime.Logs(ctx, replica, platform.LogOptions{Since: since, Follow: true})
}

// Start fills the route table, so that requests are held rather than refused
// from the first moment on, and starts the loops. It fails when the store
// cannot be read or the data directory cannot be written; the engine may be
// down.
func (p *Plane) Start(ctx context.Context) error {
	for _, dir := range []string{p.uploadsDir(), p.buildsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	// No upload can be under way yet: what no row explains is a leftover.
	if err := p.sweepUploadFiles(ctx, 0); err != nil {
		return err
	}
	if err := p.rereadRoutes(ctx); err != nil {
		return err
	}
	held, err := p.Store.AcquireLease(ctx, lease, p.Node, leaseTTL, time.Now())
	if err != nil {
		return fmt.Errorf("acquiring the lease: %w", err)
	}
	if held {
		p.lead(ctx)
	}
	p.wg.Go(p.keepLease)
	p.wg.Go(p.followRows)
	return nil
}

// keepLease renews the lease and, on a follower, waits for it. A leader that
// cannot renew goes on acting until the lease has run out for others.
func (p *Plane) keepLease() {
	defer p.follow()
	renewed := time.Now()
	ticker := time.NewTicker(leaseTTL / 3)
	defer ticker.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		ctx, cancel := context.WithTimeout(p.ctx, leaseTTL/3)
		held, err := p.Store.AcquireLease(ctx, lease, p.Node, leaseTTL, now)
		cancel()
		switch {
		case err != nil:
			p.logFailure("renewing the lease", err)
			if now.Sub(renewed) >= leaseTTL*2/3 {
				p.follow()
			}
		case held:
			renewed = now
			p.lead(p.ctx)
		default:
			p.follow()
		}
	}
}

// lead starts the loops unless they run.
func (p *Plane) lead(ctx context.Context) {
	p.mu.Lock()
	if p.term != nil || p.ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	t := &term{}
	t.ctx, t.end = context.WithCancel(p.ctx)
	p.term = t
	p.mu.Unlock()

	refs, err := p.Store.AllServices(ctx)
	if err != nil {
		p.logFailure("reading the services", err) // the janitor reads them again
	}
	for _, ref := range refs {
		p.supervise(ref.ID)
	}
	t.wg.Go(func() { p.watch(t.ctx) })
	t.wg.Go(func() { p.observe(t.ctx) })
	t.wg.Go(func() { p.janitor(t.ctx) })
	t.wg.Go(func() { p.copyLoop(t.ctx) })
	t.wg.Go(func() { p.recheckLoop(t.ctx) })
	for range p.BuildWorkers {
		t.wg.Go(func() { p.buildLoop(t.ctx) })
	}
}

// follow ends the loops if they run, and waits for them. What runs, and how
// the ingress is configured, stays.
func (p *Plane) follow() {
	p.mu.Lock()
	t := p.term
	p.term = nil
	p.mu.Unlock()
	if t == nil {
		return
	}
	if p.ctx.Err() == nil {
		p.Log.Warn("the lease is lost; leaving the work to its holder")
	}
	t.end()
	t.wg.Wait()
	p.mu.Lock()
	clear(p.supervisors)
	p.mu.Unlock()
}

// Drain tells everything that lasts (log streams, waiting clients) that the
// process is about to end.
func (p *Plane) Drain() { p.drainOnce.Do(func() { close(p.draining) }) }

// Draining is closed when the process is about to end.
func (p *Plane) Draining() <-chan struct{} { return p.draining }

// Close ends every loop and waits for it. Running containers are left alone;
// unfinished deployments are taken up again at the next start.
func (p *Plane) Close() error {
	p.Drain()
	p.mu.Lock() // whoever has it has started what Wait waits for
	p.cancel()
	p.mu.Unlock()
	p.wg.Wait()
	p.follow() // where Start had begun and failed
	p.collector.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.Store.ReleaseLease(ctx, lease, p.Node); err != nil {
		return fmt.Errorf("releasing the lease: %w", err)
	}
	return nil
}

// supervise makes sure that the service has a supervisor, and returns it; nil
// when this node does not lead or is closing.
func (p *Plane) supervise(id platform.ID) *supervisor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term == nil || p.ctx.Err() != nil {
		return nil
	}
	s := p.supervisors[id]
	if s == nil {
		s = newSupervisor(p.term.ctx, p, id)
		p.supervisors[id] = s
		p.term.wg.Go(s.run)
	}
	return s
}

// forget ends the bookkeeping of a supervisor whose service is gone.
func (p *Plane) forget(s *supervisor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.supervisors, s.id)
}

// Kick says that something about the services has changed: they were created,
// renamed, deleted, or have work to do. The route table shows it before Kick
// returns; everything else follows.
func (p *Plane) Kick(ids ...platform.ID) {
	if err := p.rebuildRoutes(p.ctx); err != nil && p.ctx.Err() == nil {
		p.Log.Error("rebuilding the routes failed", "error", err)
	}
	for _, id := range ids {
		p.wake(id)
	}
}

func (p *Plane) wake(id platform.ID) {
	if s := p.supervise(id); s != nil {
		s.wake()
	}
	p.topics.publish(id)
}

// watch turns the runtime's events into kicks, and lists again whenever the
// stream of events broke: engines keep few of them.
func (p *Plane) watch(ctx context.Context) {
	away := false
	for ctx.Err() == nil {
		events, err := p.Runtime.Watch(ctx)
		if err != nil {
			if !away && ctx.Err() == nil {
				p.Log.Warn("watching the engine failed; trying again each second", "error", err)
			}
			away = true
			sleep(ctx, time.Second)
			continue
		}
		if away {
			p.Log.Info("the engine is back")
			away = false
		}
		p.wakeAll()
		for event := range events {
			p.mu.Lock()
			s := p.supervisors[event.ServiceID]
			p.mu.Unlock()
			if s != nil {
				s.wake()
			}
		}
		p.wakeAll()
		sleep(ctx, 200*time.Millisecond)
	}
}

// observe lists all replicas at every tick, once for all services, and wakes
// the supervisors whose replicas are not as they last saw them: events may have
// been missed.
func (p *Plane) observe(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		replicas, err := p.Runtime.Replicas(ctx, "")
		if err != nil {
			continue // watch notices too, and wakes all when the engine is back
		}
		of := map[platform.ID][]platform.Replica{}
		for _, r := range replicas {
			of[r.ServiceID] = append(of[r.ServiceID], r)
		}
		p.mu.Lock()
		for id, s := range p.supervisors {
			if !s.hasSeen(of[id]) {
				s.wake()
			}
		}
		p.mu.Unlock()
	}
}

func (p *Plane) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.supervisors {
		s.wake()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Status tells what is observed of the service.
func (p *Plane) Status(id platform.ID) platform.ServiceStatus {
	p.mu.Lock()
	s := p.supervisors[id]
	p.mu.Unlock()
	if s == nil {
		return platform.ServiceStatus{State: platform.ServiceNew}
	}
	return s.status()
}

// Subscribe returns a channel that receives when the state of the service, the
// deployment, or anything at all for the zero ID, may have changed. Changes
// are folded: read the state after each receive. Call the func when done.
func (p *Plane) Subscribe(id platform.ID) (<-chan struct{}, func()) { return p.topics.subscribe(id) }

// UploadPath is where the bytes of an upload lie.
func (p *Plane) UploadPath(id platform.ID) string { return filepath.Join(p.uploadsDir(), string(id)) }

func (p *Plane) uploadsDir() string { return filepath.Join(p.DataDir, "uploads") }
func (p *Plane) buildsDir() string  { return filepath.Join(p.DataDir, "builds") }

func deploymentLog(id platform.ID) string { return "deployments/" + string(id) }
func serviceLog(id platform.ID) string    { return "services/" + string(id) }

// say writes one line of Denia's own into a deployment's log, unless that is
// finished: whoever finished it had the last word.
func (p *Plane) say(id platform.ID, format string, args ...any) {
	line := platform.LogLine{TS: time.Now().UTC(), Stream: platform.StreamSystem, Line: fmt.Sprintf(format, args...)}
	if err := p.Logs.Append(deploymentLog(id), line); err != nil && platform.KindOf(err) != platform.Conflict {
		p.Log.Error("writing the deployment log failed", "deployment", id, "error", err)
	}
}
