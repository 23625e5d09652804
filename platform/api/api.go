// Package api serves /healthz and /v1 over HTTP: one route table from which the
// router, the authorisation, the audit and the OpenAPI document are driven.
//
// Every request passes the same gates in the same order: rate limit, identity,
// scope and role, body, idempotency, operation, audit. Handlers hold only what
// is particular to their operation.
package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
)

// Plane is what the API asks of the control plane. Methods are called
// concurrently. Errors are *platform.Error where the caller can do something
// about them.
type Plane interface {
	// Deploy creates a deployment and returns it without waiting for it.
	Deploy(ctx context.Context, r platform.DeployRequest) (platform.Deployment, error)
	// Apply rolls the active release over to the service's configuration as it
	// is now; false when there is no active release.
	Apply(ctx context.Context, service platform.ID, actor string) (platform.Deployment, bool, error)
	// ApplyProject does so for every service of the project whose effective
	// configuration has changed.
	ApplyProject(ctx context.Context, project platform.ID, actor string) error
	// Restart replaces the replicas of the active release, as a deployment.
	Restart(ctx context.Context, service platform.ID, actor string) (platform.Deployment, error)
	// SetStopped sets the desired state; stopping cancels what is unfinished.
	SetStopped(ctx context.Context, service platform.ID, stopped bool, actor string) error
	// Cancel ends a deployment that has not finished.
	Cancel(ctx context.Context, deployment platform.ID, actor string) (platform.Deployment, error)
	// DeleteService removes the service and everything it has; its volumes
	// only when asked to.
	DeleteService(ctx context.Context, id platform.ID, volumes bool) error
	// Kick tells that the services were created or changed; routes show it when
	// Kick returns.
	Kick(services ...platform.ID)
	// AttachDomain records the service's claim to a host name, as a person
	// writes it; its challenge is answered when AttachDomain returns.
	AttachDomain(ctx context.Context, service platform.ID, hostname string) (platform.Domain, error)
	// VerifyDomain looks for a claim's proof; a verified domain is routed when
	// VerifyDomain returns.
	VerifyDomain(ctx context.Context, service, domain platform.ID) (platform.Domain, error)
	// DetachDomain removes a domain; it is not routed when DetachDomain returns.
	DetachDomain(ctx context.Context, service, domain platform.ID) error
	// Challenge tells, from memory, whether the token is that of a claim to
	// host, given as in a Host header.
	Challenge(host, token string) bool
	// Status tells what is observed of the service now.
	Status(service platform.ID) platform.ServiceStatus
	// Subscribe returns a channel that receives when the state of the service
	// or deployment, or of anything for the zero ID, may have changed, and the
	// func that ends the subscription.
	Subscribe(id platform.ID) (<-chan struct{}, func())
	// CheckReserve refuses what would fill the disk, with disk_full.
	CheckReserve() error
	// Draining is closed when the process is about to end.
	Draining() <-chan struct{}
}

// Options are what an API works with. All fields are required unless it is
// said what their zero value means.
type Options struct {
	Store    *store.Store
	Plane    Plane
	Registry Registry
	Logs     *telemetry.Logs
	Log      *slog.Logger

	// Requests has the access entries of services. nil: those in Logs.
	Requests *telemetry.Requests

	UploadsDir   string        // where an upload's bytes lie, under its id; exists already
	UploadLimits source.Limits // zero fields: source.DefaultLimits

	AdminToken    string        // empty: no admin token is accepted
	BaseDomain    string        // empty: "localhost"
	ControlDomain func() string // as it is now, for GET /v1/node; nil: none
	DataDir       string        // the disk reported by GET /v1/node
	Version       string        // Denia's version, for GET /v1/node

	// Client tells who is at the other end, behind trusted proxies; trusted
	// says whether the peer itself is such a proxy, so that its
	// X-Forwarded-Proto counts. nil: the peer's address, nobody is trusted.
	Client func(*http.Request) (ip string, trusted bool)

	// PublicURL gives the address at which a service with this host label is
	// reached. nil: the scheme and port through which the API is being called.
	PublicURL func(r *http.Request, hostLabel string) string

	// Docker tells about the engine, for GET /v1/node; it gets 2 s. nil: the
	// field is left out.
	Docker func(context.Context) (Docker, error)

	// Certificate tells about the certificate for a verified host name; from
	// memory. nil: there is none.
	Certificate func(hostname string) platform.CertificateState

	// ChallengePort is where host names are asked for their challenge. 0: 80.
	ChallengePort int

	// Routes gives the ingress's table for GET /v1/ingress/routes. nil: empty.
	Routes func() []IngressRoute
}

// API answers /healthz and everything under /v1. It is safe for concurrent use.
type API struct {
	Options
	adminHash [sha256.Size]byte
	started   time.Time
	mux       *http.ServeMux
	openapi   []byte

	logins    *limiter // login and bootstrap, by address
	names     *limiter // logins, by user name
	calls     *limiter // everything else, by token
	strangers *limiter // calls without a valid token, by address
	hashing   chan struct{}
	passwords *passwords
	events    *eventLog
	cpu       cpuMeter

	closing chan struct{}
	mu      sync.Mutex // guards closed, open, opened and streams.Add
	closed  bool
	streams sync.WaitGroup      // and whatever else goes on beside requests
	open    map[platform.ID]int // streams by token
	opened  int

	logReads chan struct{} // stored logs being read and sent
}

// New makes an API. It starts no goroutine.
func New(o Options) (*API, error) {
	if o.Store == nil || o.Plane == nil || o.Registry == nil || o.Logs == nil || o.Log == nil || o.UploadsDir == "" {
		return nil, errors.New("api: Store, Plane, Registry, Logs, Log and UploadsDir are required")
	}
	if o.Requests == nil {
		o.Requests = telemetry.NewRequests(o.Logs, nil)
	}
	if o.BaseDomain == "" {
		o.BaseDomain = "localhost"
	}
	if o.Client == nil {
		o.Client = peer
	}
	a := &API{
		Options:   o,
		adminHash: sha256.Sum256([]byte(o.AdminToken)),
		started:   time.Now(),
		logins:    newLimiter(5, time.Minute),
		names:     newLimiter(10, time.Minute),
		calls:     newLimiter(600, time.Minute),
		strangers: newLimiter(600, time.Minute),
		hashing:   make(chan struct{}, concurrentHashes),
		passwords: newPasswords(),
		events:    newEventLog(),
		closing:   make(chan struct{}),
		open:      map[platform.ID]int{},
		logReads:  make(chan struct{}, concurrentLogReads),
	}
	mux, doc, err := a.router()
	if err != nil {
		return nil, err
	}
	a.mux, a.openapi = mux, doc
	return a, nil
}

// Close ends the open streams, and collections that were asked for, and waits
// for them. Other requests are
// left to the server that owns them.
func (a *API) Close() {
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		close(a.closing)
	}
	a.mu.Unlock()
	a.streams.Wait()
}
