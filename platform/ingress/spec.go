package ingress

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Options configure an Ingress. The zero value works.
type Options struct {
	// Log takes what an operator should know. Default: slog.Default().
	Log *slog.Logger

	// Client tells who sent a request: the client's address, and whether the
	// peer is a proxy whose X-Forwarded-* headers are believed. Default: the
	// peer's address, never trusted.
	Client func(*http.Request) (ip string, trusted bool)

	// WaitTimeout bounds how long one request waits, in all, for a ready
	// replica. Default: 30s.
	WaitTimeout time.Duration

	// MaxWaiting bounds how many requests of one service wait at a time.
	// Default: 1000.
	MaxWaiting int

	// DialTimeout bounds how long a replica may take to accept a connection.
	// Default: 2s.
	DialTimeout time.Duration
}

// Route sends the requests for a host to a service. Host is taken without
// regard to case, port and trailing dot.
type Route struct {
	Host      string
	ServiceID platform.ID
}

// PoolSpec is what a service's pool should be.
type PoolSpec struct {
	ServiceID platform.ID
	Name      string // of the service, for the pages people see

	// Stopped and Undeployed answer requests with 503 at once, where they
	// would otherwise wait for a ready replica: the service was stopped, or
	// has no release yet.
	Stopped    bool
	Undeployed bool

	// DrainTimeout is how long the requests in flight on a target that is
	// taken away may still run; then they are cut. 0 cuts at once.
	DrainTimeout time.Duration

	// Serving targets get requests. Candidates are probed, and get none.
	Serving, Candidates []Target

	// Gone names replicas that are dead. Those of them that are in neither
	// list are cut instead of drained: dials to them end at once, and so do
	// the requests that wait for an answer of theirs.
	Gone []string

	// Notify is called, from a goroutine of the Ingress's own and never under
	// a lock, after a target's readiness changed or a draining target went
	// away. Calls are coalesced. It must not block.
	Notify func()
}

// Target is a replica to send requests to. Two targets with the same ID and
// any other difference but Presumed are different targets.
type Target struct {
	ID        string // of the replica
	ReleaseID platform.ID
	Addr      string // host:port
	Protocol  string // platform.ProtocolHTTP (default) or ProtocolH2C
	Health    platform.HealthCheck

	// Presumed makes the target ready until a probe says otherwise, for
	// replicas that are known to have been serving.
	Presumed bool
}

// PoolStatus is what is observed of a pool now.
type PoolStatus struct {
	Waiting int // requests that wait for a ready replica
	Targets []TargetStatus
}

// TargetStatus is what is observed of a target. A draining one disappears when
// its last request has ended or was cut.
type TargetStatus struct {
	ID        string
	ReleaseID platform.ID
	Addr      string
	Ready     bool
	Serving   bool
	Draining  bool
	InFlight  int
	LastProbe Probe // zero before the first
}

// Probe is the outcome of one health check.
type Probe struct {
	At     time.Time
	OK     bool
	Status int    // the HTTP status, 0 when there was no answer
	Err    string // why it failed, empty when OK

	// Connected tells that the replica accepted the connection, whatever came
	// of it.
	Connected bool
	Latency   time.Duration
}
