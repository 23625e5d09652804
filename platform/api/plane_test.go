package api_test

import (
	"context"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// fakePlane writes the rows a control plane would, and runs nothing.
type fakePlane struct {
	store    *store.Store
	draining chan struct{}

	mu      sync.Mutex
	applied []platform.ID
	kicked  [][]platform.ID // together
	volumes bool            // the last DeleteService asked for them
	subs    map[chan struct{}]platform.ID
	panics  bool            // Restart does
	proven  map[string]bool // hosts whose HTTP proof is found
	reserve error
	last    map[platform.ID]platform.ServiceStatus
}

func newFakePlane(s *store.Store) *fakePlane {
	return &fakePlane{store: s, draining: make(chan struct{}), subs: map[chan struct{}]platform.ID{}, proven: map[string]bool{}, last: map[platform.ID]platform.ServiceStatus{}}
}

func (p *fakePlane) Deploy(ctx context.Context, r platform.DeployRequest) (platform.Deployment, error) {
	s, err := p.store.Service(ctx, r.ServiceID)
	if err != nil {
		return platform.Deployment{}, err
	}
	from := r.Source
	if from == nil {
		if from = s.Source; from == nil {
			return platform.Deployment{}, platform.InvalidField("source", "required", "is missing")
		}
	}
	d, _, err := p.store.CreateDeployment(ctx, platform.Deployment{
		ServiceID: s.ID, Status: platform.Pending, Trigger: r.Trigger, Actor: r.Actor, Source: *from,
		Config: &platform.ReleaseConfig{RunSpec: s.RunSpec},
	})
	p.publish()
	return d, err
}

func (p *fakePlane) redeploy(ctx context.Context, id platform.ID, trigger, actor string) (platform.Deployment, error) {
	source := &platform.Source{Type: platform.SourceRedeploy}
	return p.Deploy(ctx, platform.DeployRequest{ServiceID: id, Source: source, Trigger: trigger, Actor: actor})
}

func (p *fakePlane) Apply(ctx context.Context, id platform.ID, actor string) (platform.Deployment, bool, error) {
	p.mu.Lock()
	p.applied = append(p.applied, id)
	p.mu.Unlock()
	d, err := p.redeploy(ctx, id, platform.TriggerConfig, actor)
	return d, err == nil, err
}

func (p *fakePlane) ApplyProject(_ context.Context, id platform.ID, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = append(p.applied, id)
	return nil
}

func (p *fakePlane) Restart(ctx context.Context, id platform.ID, actor string) (platform.Deployment, error) {
	if p.panics {
		panic("the fake plane was told to")
	}
	return p.redeploy(ctx, id, platform.TriggerAPI, actor)
}

func (p *fakePlane) SetStopped(ctx context.Context, id platform.ID, stopped bool, _ string) error {
	defer p.publish()
	return p.store.SetStopped(ctx, id, stopped)
}

func (p *fakePlane) Cancel(ctx context.Context, id platform.ID, _ string) (platform.Deployment, error) {
	defer p.publish()
	return p.store.RequestCancel(ctx, id)
}

func (p *fakePlane) DeleteService(ctx context.Context, id platform.ID, volumes bool) error {
	p.mu.Lock()
	p.volumes = volumes
	p.mu.Unlock()
	defer p.publish()
	return p.store.DeleteService(ctx, id)
}

func (p *fakePlane) AttachDomain(ctx context.Context, service platform.ID, hostname string) (platform.Domain, error) {
	hostname, err := platform.ParseHostname(hostname)
	if err != nil {
		return platform.Domain{}, err
	}
	if err := platform.CheckReserved(hostname, "apps.test", "denia.test"); err != nil {
		return platform.Domain{}, err
	}
	return p.store.CreateDomain(ctx, service, hostname, "token-"+string(store.NewID()), 100)
}

// VerifyDomain finds what the test has put into proofs.
func (p *fakePlane) VerifyDomain(ctx context.Context, service, id platform.ID) (platform.Domain, error) {
	d, err := p.store.Domain(ctx, service, id)
	if err != nil {
		return d, err
	}
	p.mu.Lock()
	check := platform.DomainCheck{At: time.Now(), Interval: 24 * time.Hour, HTTP: p.proven[d.Hostname]}
	p.mu.Unlock()
	if !check.HTTP {
		check.Err = &platform.DomainError{Code: platform.DomainNotFound, Message: "it has no address"}
	}
	d, _, err = p.store.JudgeDomain(ctx, id, check)
	return d, err
}

func (p *fakePlane) DetachDomain(ctx context.Context, service, id platform.ID) error {
	_, err := p.store.DeleteDomain(ctx, service, id)
	return err
}

func (p *fakePlane) Challenge(host, token string) bool {
	return token == knownToken && host != "denia.test:8080"
}

// knownToken is the token of a claim to every host but the control domain.
const knownToken = "a-token-that-is-known"

func (p *fakePlane) Kick(ids ...platform.ID) {
	p.mu.Lock()
	p.kicked = append(p.kicked, ids)
	p.mu.Unlock()
	p.publish()
}

// Status derives a state from the row, and stays what it was when that is gone.
func (p *fakePlane) Status(id platform.ID) platform.ServiceStatus {
	s, err := p.store.Service(context.Background(), id)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil:
	case s.Stopped:
		p.last[id] = platform.ServiceStatus{State: platform.ServiceStopped}
	default:
		p.last[id] = platform.ServiceStatus{State: platform.ServiceNew, Replicas: platform.Replicas{Desired: 1}}
	}
	return p.last[id]
}

func (p *fakePlane) Subscribe(id platform.ID) (<-chan struct{}, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan struct{}, 1)
	p.subs[ch] = id
	return ch, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.subs, ch)
	}
}

func (p *fakePlane) publish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ch := range p.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (p *fakePlane) Draining() <-chan struct{} { return p.draining }

func (p *fakePlane) CheckReserve() error { return p.reserve }

// took returns what was applied and kicked since the last call.
func (p *fakePlane) took() (applied []platform.ID, kicked [][]platform.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	applied, kicked = p.applied, p.kicked
	p.applied, p.kicked = nil, nil
	return applied, kicked
}
