package control

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

// DomainOptions say how claims to host names are proven. The zero value works.
type DomainOptions struct {
	// AllowPrivate lets host names lead to private, loopback and link-local
	// addresses: whoever may attach domains can then have Denia send a GET to
	// any host it reaches.
	AllowPrivate bool

	// Resolver is the DNS server to ask, as ip:port. Default: the system's.
	Resolver string

	// Recheck is how often a verified domain is checked again. Default: 24h.
	Recheck time.Duration

	// ChallengePort is where hosts are asked for the challenge. Default: 80.
	ChallengePort int

	// Reached hears of each check that found a verified host name to lead to
	// where its challenge is answered, whether it was asked for or is the one of
	// each day, after Names has heard of the name. It must be quick, and must not
	// call the Plane. nil: nobody hears.
	Reached func(hostname string)
}

const (
	mostDomains = 100 // of a service

	// Checks asked for: of one project's domains, of all, and how long one of
	// them waits for its turn. Each lasts as long as the two proofs.
	checksOfProject = 4
	checksAtATime   = 64
	checkPatience   = 15 * time.Second

	recheckWorkers = 8
	recheckBatch   = 64

	settleTimeout = 10 * time.Second
)

// AttachDomain records the service's claim to a host name, as a person writes
// it. Its challenge is answered when AttachDomain returns; it proves nothing
// yet, and stands in nobody's way. The errors are those of
// platform.ParseHostname and store.CreateDomain, and Conflict
// "hostname_reserved" for host names that are Denia's own.
func (p *Plane) AttachDomain(ctx context.Context, service platform.ID, hostname string) (platform.Domain, error) {
	hostname, err := platform.ParseHostname(hostname)
	if err != nil {
		return platform.Domain{}, err
	}
	if err := p.checkReserved(hostname); err != nil {
		return platform.Domain{}, err
	}
	// Else a reading of all rows that began before could forget the claim.
	defer p.changeRoutes()()
	d, err := p.Store.CreateDomain(ctx, service, hostname, newToken(), mostDomains)
	if err != nil {
		return platform.Domain{}, err
	}
	p.claims.add(d.Hostname, d.Token, service)
	return d, nil
}

// newToken makes a token nobody can guess, good for a path and for a TXT record.
func newToken() string { return strings.ToLower(rand.Text()) }

// VerifyDomain looks for the proof of a claim now. The status of what it
// returns tells the outcome: verified, and then the host is routed already; or
// failed, with the reason. One that was verified stays so when its proof is not
// found; that it is checked again each day decides.
func (p *Plane) VerifyDomain(ctx context.Context, service, id platform.ID) (platform.Domain, error) {
	d, err := p.Store.Domain(ctx, service, id)
	if err != nil {
		return d, err
	}
	leave, err := p.checks.enter(ctx, p.projectOf(service))
	if err != nil {
		return d, err
	}
	defer leave()
	return p.checkDomain(ctx, d)
}

// DetachDomain removes a service's domain. Its host is not routed any more when
// DetachDomain returns.
func (p *Plane) DetachDomain(ctx context.Context, service, id platform.ID) error {
	defer p.changeRoutes()()
	d, err := p.Store.DeleteDomain(ctx, service, id)
	if err != nil {
		return err
	}
	p.claims.remove(d.Token)
	p.unrouteDomain(d.Hostname, d.ServiceID)
	return nil
}

// checkDomain looks for the proof of a claim and does what follows from it:
// rows first, then routes, before it returns.
func (p *Plane) checkDomain(ctx context.Context, d platform.Domain) (platform.Domain, error) {
	check := platform.DomainCheck{Reserved: p.checkReserved(d.Hostname) != nil}
	if !check.Reserved {
		check = p.prover.look(ctx, d.Hostname, d.Token)
		if err := context.Cause(ctx); err != nil {
			return d, fmt.Errorf("checking %s: %w", d.Hostname, err) // it was cut short, and says nothing
		}
	}
	check.At = time.Now()
	check.Interval = time.Duration(float64(p.Domains.Recheck) * (0.9 + 0.2*mathrand.Float64()))
	// From here on the caller's patience does not count: a row that says
	// verified must be routed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()

	defer p.changeRoutes()()
	now, lost, err := p.Store.JudgeDomain(ctx, d.ID, check)
	if err != nil {
		return d, err
	}
	if now.Status == platform.DomainVerified {
		if err := p.meetService(ctx, now.ServiceID); err != nil {
			return d, err
		}
		p.routeDomain(now.Hostname, now.ServiceID)
		if check.HTTP && p.Domains.Reached != nil {
			p.Domains.Reached(now.Hostname)
		}
	} else {
		p.unrouteDomain(now.Hostname, now.ServiceID)
	}
	for _, loser := range lost {
		p.Log.Warn("a domain went to another service, which has proven it by DNS", "hostname", loser.Hostname, "from", loser.ServiceID, "to", now.ServiceID)
		p.topics.publish(loser.ServiceID)
	}
	if now.Status != d.Status {
		switch {
		case now.Status == platform.DomainVerified:
			p.Log.Info("a domain is verified", "hostname", now.Hostname, "service", now.ServiceID)
		case d.Status == platform.DomainVerified:
			p.Log.Warn("a domain is not proven any more and not routed", "hostname", now.Hostname, "service", now.ServiceID, "code", now.LastError.Code, "reason", now.LastError.Message)
		}
		p.topics.publish(now.ServiceID)
	}
	return now, nil
}

// recheckLoop checks verified domains again when that is due. What is due is in
// the rows, so nothing is forgotten over a restart.
func (p *Plane) recheckLoop(ctx context.Context) {
	pause := min(max(p.Domains.Recheck/100, 10*time.Millisecond), time.Minute)
	for {
		// First of all for the listeners: while nobody answers challenges, all
		// checks would fail.
		sleep(ctx, pause)
		if ctx.Err() != nil {
			return
		}
		p.sweep(ctx, "domains", p.recheckDomains)
	}
}

// recheckDomains checks all domains that are due, few at a time.
func (p *Plane) recheckDomains(ctx context.Context) error {
	for {
		now := time.Now()
		due, err := p.Store.DueDomains(ctx, now, now.Add(2*p.Domains.Recheck), recheckBatch)
		if err != nil {
			return fmt.Errorf("reading the domains that are due: %w", err)
		}
		queue := make(chan platform.Domain)
		failed := make(chan error, len(due))
		var workers sync.WaitGroup
		for range min(recheckWorkers, len(due)) {
			workers.Go(func() {
				for d := range queue {
					if _, err := p.checkDomain(ctx, d); err != nil && platform.KindOf(err) != platform.NotFound {
						failed <- err
					}
				}
			})
		}
		for _, d := range due {
			queue <- d
		}
		close(queue)
		workers.Wait()
		select {
		case err := <-failed:
			return err
		default:
		}
		if len(due) < recheckBatch {
			return nil
		}
	}
}

func (p *Plane) projectOf(service platform.ID) platform.ID {
	p.routesMu.Lock()
	defer p.routesMu.Unlock()
	return p.hosts.byID[service].ProjectID
}

// gate bounds how many checks run at a time, in all and for each project: one
// whose hosts answer slowly makes nobody else wait. Safe for concurrent use.
type gate struct {
	all chan struct{}
	mu  sync.Mutex
	of  map[platform.ID]*turnstile
}

type turnstile struct {
	slots chan struct{}
	users int // that are inside or wait; guarded by gate.mu
}

func newGate() *gate {
	return &gate{all: make(chan struct{}, checksAtATime), of: map[platform.ID]*turnstile{}}
}

// enter waits for a turn; whoever got one must leave.
func (g *gate) enter(ctx context.Context, project platform.ID) (leave func(), err error) {
	g.mu.Lock()
	t := g.of[project]
	if t == nil {
		t = &turnstile{slots: make(chan struct{}, checksOfProject)}
		g.of[project] = t
	}
	t.users++
	g.mu.Unlock()
	turnAway := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(g.of, project)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	for i, slots := range []chan struct{}{t.slots, g.all} {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			if i == 1 {
				<-t.slots
			}
			turnAway()
			return nil, platform.Errorf(platform.Unavailable, "verifications_busy", "too many domains are being verified at this moment: try again in some seconds")
		}
	}
	return func() {
		<-g.all
		<-t.slots
		turnAway()
	}, nil
}
