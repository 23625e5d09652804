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

	// Record takes access entries of a service, as the lines of text that
	// platform.AppendAccess makes. It is called at the latest half a second
	// after an entry came, with at most 32 KiB, for one service at a time and
	// in order, and may use the text until it returns. It may be slow, and may
	// fail, which takes nothing: what waits is kept in memory, the newest about
	// thousand entries of each service. nil: none are made.
	Record func(service platform.ID, entries []byte) error

	// Endless is called when a request's body has become one that goes on, and
	// pauses, for as long as both sides like, while the server may still have
	// timeouts for what a body usually is. nil: it has none.
	Endless func(*http.Request)

	// Whole is called when what is written to the client next, by one write or by
	// none, is all of the answer, and what it returns, unless nil, after that. It
	// is not called for every such answer. nil: that is of no interest.
	Whole func(*http.Request) (written func())

	// TransportOnly has net/http's transport carry the plain requests as well,
	// which costs about twice as much. It is there to compare the two.
	TransportOnly bool
}

// Route sends the requests for a host to a service. Host is taken without
// regard to case, port and trailing dot. "*.example.com" stands for every host
// with one label before that, unless the host has a route of its own.
type Route struct {
	Host      string
	ServiceID platform.ID
}

// PoolSpec is what a service's pool should be.
type PoolSpec struct {
	ServiceID platform.ID
	Name      string // of the service, for the pages people see
	Project   string // the project's name, for Traffic

	// Stopped and Undeployed answer requests with 503 at once, where they
	// would otherwise wait for a ready replica: the service was stopped, or
	// has no release yet.
	Stopped    bool
	Undeployed bool

	// Holds is what Ingress.Holds said before it was decided that the service
	// is Stopped or Undeployed. Where there was a Hold since, it is neither.
	Holds int

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
	Label     string // what people call it, "<release number>.<index>"; empty: its ID
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
