package platform

import (
	"context"
	"io"
	"time"
)

// Runtime runs workloads. The Docker Engine is one; a scriptable fake stands
// in for it in tests of the loops. All methods may be called concurrently; for
// one workload only its supervisor calls Ensure.
type Runtime interface {
	// Ensure makes exactly w.Replicas replicas of release w.ID exist and run,
	// with indices 0 to w.Replicas-1, and removes the others of that release;
	// 0 replicas removes all, gracefully (SIGTERM, StopGraceS, SIGKILL), and
	// needs no field but ID and ServiceID; Config.StopGraceS, when set,
	// overrides the grace the replicas were made with. A replica that is there and running
	// is left alone, one that has exited is started again. It returns when the
	// engine has done it, not when the replicas are ready, and is safe to
	// repeat after any failure. Errors carry CodeStartFailed, CodeDiskFull,
	// CodeImageNotFound or CodeEngineUnavailable.
	Ensure(ctx context.Context, w Workload) error

	// Replicas lists what exists of a service, of all services for the zero
	// ID, exited replicas included, ordered by release and index.
	Replicas(ctx context.Context, service ID) ([]Replica, error)

	// Logs opens the output of a replica from opt.Since on. The reader ends
	// with io.EOF when the output does: at the replica's exit with
	// opt.Follow, at the last line there is without.
	Logs(ctx context.Context, replica string, opt LogOptions) (LogReader, error)

	// Watch tells that something happened to a service's replicas. Events are
	// hints: they may be missing or doubled, and the channel closes when the
	// engine goes away or ctx ends; then Watch again, and list.
	Watch(ctx context.Context) (<-chan Event, error)

	// Projects lists the projects of which the runtime holds anything, a
	// network or a replica. RemoveProject removes the project's network; it
	// fails with Conflict while replicas are attached, and not when there is
	// none.
	Projects(ctx context.Context) ([]ID, error)
	RemoveProject(ctx context.Context, project ID) error

	// RemoveVolumes removes the named volumes of a service; names that do not
	// exist are passed over. Nothing else ever removes a volume.
	RemoveVolumes(ctx context.Context, service ID, names []string) error
}

// Images builds and fetches images. Methods may be called concurrently; each
// ends its work, processes included, before it returns after ctx ended. log
// receives progress as text lines while it happens and is never closed.
type Images interface {
	// Build builds an image and tags it b.Tag. Errors carry CodeBuildFailed,
	// CodeDockerfileInvalid, CodeDockerfileMissing, CodeDiskFull or
	// CodeEngineUnavailable.
	Build(ctx context.Context, b Build, log io.Writer) (Artifact, error)

	// Pull fetches p.Reference and tags it p.Tag; no other name of it stays
	// behind that was not there before. Errors carry CodeImageNotFound,
	// CodePullDenied, CodePullFailed, CodeDiskFull or CodeEngineUnavailable.
	Pull(ctx context.Context, p Pull, log io.Writer) (Artifact, error)

	// Push sends an image to a registry and returns the digest of the manifest
	// that names it there. It leaves no further name of the image behind.
	// Errors carry CodeImageNotFound when the engine does not have the image,
	// CodePullDenied when the registry does not take it from these
	// credentials, CodePushFailed, CodeDiskFull or CodeEngineUnavailable.
	Push(ctx context.Context, p Push, log io.Writer) (manifest string, err error)

	// Tag gives the image with that digest a further tag; CodeImageNotFound
	// when the engine no longer has it.
	Tag(ctx context.Context, digest, tag string) (Artifact, error)

	// Tags lists the tags Denia gave ("denia/…"); Remove takes one away, and
	// the image with its last. A tag that does not exist is no error.
	Tags(ctx context.Context) ([]string, error)
	Remove(ctx context.Context, tag string) error
}

// Workload is a release to run, and how many replicas of it.
type Workload struct {
	ID          ID // the release: the deployment that froze it
	ServiceID   ID
	ProjectID   ID
	ServiceName string // resolves inside the project's network
	ProjectName string
	Number      int
	Replicas    int
	Image       string // tag, for people
	Digest      string // what is run
	Config      ReleaseConfig
}

// Replica states.
const (
	ReplicaCreated = "created" // exists, never started
	ReplicaRunning = "running"
	ReplicaExited  = "exited"
	ReplicaBroken  = "broken" // runs but cannot serve: paused, or cut off from its network; Ensure mends it
)

// Replica is one running, or once running, instance of a release.
type Replica struct {
	ID         string // the runtime's own id
	ServiceID  ID
	ProjectID  ID
	ReleaseID  ID
	Index      int
	Label      string // "<release number>.<index>", as in LogLine.Replica
	State      string
	Addr       string // host:port the ingress dials; empty unless running
	ExitCode   int    // when exited
	OOMKilled  bool
	Error      string // the engine's own word on a failed start
	StartedAt  time.Time
	FinishedAt time.Time
}

// Event tells that a replica of the service started, died or went away.
type Event struct {
	ServiceID ID
	ReleaseID ID
	ReplicaID string
}

// LogOptions bound Logs. Since is inclusive: a caller that resumes drops what
// it already has.
type LogOptions struct {
	Since  time.Time
	Follow bool
}

// Log streams.
const (
	StreamStdout = "stdout"
	StreamStderr = "stderr"
	StreamSystem = "system" // Denia's own word
)

// LogLine is one line of output.
type LogLine struct {
	TS      time.Time `json:"ts"`
	Stream  string    `json:"stream"`
	Replica string    `json:"replica,omitempty"` // "<release number>.<index>"
	Line    string    `json:"line"`              // without its line break; valid UTF-8
}

// LogReader gives lines in order. Next blocks; Close ends it from another
// goroutine.
type LogReader interface {
	Next() (LogLine, error)
	Close() error
}

// Build is one image build.
type Build struct {
	ContextDir string // an unpacked build context, trusted to hold no link out of it
	Dockerfile string // relative to ContextDir
	Args       Env
	Target     string
	Secrets    Env // available to RUN --mount=type=secret,id=KEY

	// Scope is the project: builds of different scopes share neither the
	// results of steps nor cache mounts.
	Scope ID
	Tag   string // e.g. denia/shop/web:12
}

// Pull is one image to fetch.
type Pull struct {
	Reference string // host/name:tag or host/name@digest
	Tag       string // e.g. denia/shop/web:12
	Auth      *RegistryAuth

	// Name is what log and errors call the image; Reference when it is empty.
	Name string
}

// Push is one image to send.
type Push struct {
	Image     string // tag or digest in the engine
	Reference string // host/name:tag
	Auth      *RegistryAuth
}

// RegistryAuth is what a registry is shown; nil: nothing. It does not print.
type RegistryAuth struct {
	Username string `json:"username"`
	Password string `json:"-"`
}

// String and GoString keep the password out of logs and errors.
func (a RegistryAuth) String() string   { return a.Username + ":" + Redacted }
func (a RegistryAuth) GoString() string { return a.String() }
