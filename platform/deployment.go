package platform

import (
	"slices"
	"time"
)

// Status is the state of a deployment.
type Status string

// The states. Pending, Building and Starting are unfinished.
const (
	Pending  Status = "pending"  // waits for the builder
	Building Status = "building" // an image is built or pulled
	Starting Status = "starting" // replicas start and are probed
	Healthy  Status = "healthy"  // the active release
	Inactive Status = "inactive" // was active, was replaced
	Failed   Status = "failed"
	Canceled Status = "canceled"
	Stopped  Status = "stopped" // the active release of a stopped service
)

var transitions = map[Status][]Status{
	Pending:  {Building, Starting, Failed, Canceled},
	Building: {Starting, Failed, Canceled},
	Starting: {Healthy, Failed, Canceled},
	Healthy:  {Inactive, Stopped},
	Stopped:  {Healthy, Inactive},
}

// Can tells whether a deployment may go from s to next.
func (s Status) Can(next Status) bool { return slices.Contains(transitions[s], next) }

// Unfinished tells whether work is still to be done.
func (s Status) Unfinished() bool { return s == Pending || s == Building || s == Starting }

// Triggers of a deployment.
const (
	TriggerAPI      = "api"
	TriggerPush     = "push"
	TriggerWebhook  = "webhook"
	TriggerRollback = "rollback"
	TriggerConfig   = "config"
)

// Codes of DeploymentError. Codes of build and pull failures come from the
// runtime and are listed here too.
const (
	CodeSuperseded        = "superseded"           // a newer deployment took its place
	CodeCanceled          = "canceled"             // by a person
	CodeBuildFailed       = "build_failed"         // a step of the Dockerfile failed
	CodeDockerfileInvalid = "dockerfile_invalid"   // it could not be parsed
	CodeDockerfileMissing = "dockerfile_not_found" // no such file in the context
	CodeContextMissing    = "context_not_found"    // no such directory in the upload
	CodeBuildTimeout      = "build_timeout"
	CodeImageNotFound     = "image_not_found" // no such repository, tag or digest
	CodePullDenied        = "pull_denied"     // the registry wants credentials
	CodePullFailed        = "pull_failed"
	CodePullTimeout       = "pull_timeout"
	CodePushFailed        = "push_failed"        // an image could not be copied into a registry
	CodeStartFailed       = "start_failed"       // the engine could not start the container
	CodeContainerExited   = "container_exited"   // the process ended before it was ready
	CodeOutOfMemory       = "out_of_memory"      // the kernel killed it at its memory limit
	CodePortNotListening  = "port_not_listening" // nothing accepted a connection on the port
	CodeHealthCheckFailed = "health_check_failed"
	CodeDiskFull          = "disk_full"
	CodeEngineUnavailable = "engine_unavailable"
	CodeUploadMissing     = "upload_missing" // its bytes are gone
)

// Deployment is one attempt to make a release the active one.
type Deployment struct {
	ID         ID               `json:"id"`
	ServiceID  ID               `json:"service_id"`
	Number     int              `json:"number"` // 1, 2, 3… per service
	Status     Status           `json:"status"`
	Trigger    string           `json:"trigger"`
	Actor      string           `json:"actor"`
	Source     Source           `json:"-"` // as requested, resolved against the service's own
	Config     *ReleaseConfig   `json:"-"` // frozen when the deployment is created
	CreatedAt  time.Time        `json:"created_at"`
	StartedAt  *time.Time       `json:"started_at,omitempty"`
	FinishedAt *time.Time       `json:"finished_at,omitempty"`
	Phases     []Phase          `json:"phases"`
	Artifact   *Artifact        `json:"artifact,omitempty"`
	Error      *DeploymentError `json:"error,omitempty"`

	// CancelRequested is set by a person's cancel and cleared by nobody: the
	// loop that owns the work ends it, then writes Canceled.
	CancelRequested bool `json:"-"`
}

// ReleaseConfig is the effective configuration a deployment froze: the
// service's own, merged with its project's shares and all defaults.
type ReleaseConfig struct {
	RunSpec
}

// Phase is one step of a deployment's way.
type Phase struct {
	Name       string     `json:"name"` // "build", "pull", "start"
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// Artifact is the image a deployment made or found.
type Artifact struct {
	Image     string          `json:"image"`  // reference in the engine, e.g. denia/shop/web:12
	Digest    string          `json:"digest"` // what is run; "sha256:…"
	SizeBytes int64           `json:"size_bytes"`
	Source    *ArtifactSource `json:"source,omitempty"`

	// ManifestDigest names the manifest in Denia's own registry, in the
	// service's repository, that holds this image; empty while none does.
	ManifestDigest string `json:"manifest_digest,omitempty"`
}

// ArtifactSource says what the image was made from.
type ArtifactSource struct {
	Type         string `json:"type"`
	Image        string `json:"image,omitempty"`         // external_image, as requested; push, as pushed
	UploadDigest string `json:"upload_digest,omitempty"` // upload
	DeploymentID ID     `json:"deployment_id,omitempty"` // redeploy
	Commit       string `json:"commit,omitempty"`        // Git
}

// DeploymentError is why a deployment failed or was canceled: one sentence of
// cause with the next thing to do, and the evidence.
type DeploymentError struct {
	Code     string    `json:"code"`
	Message  string    `json:"message"`
	Evidence *Evidence `json:"evidence,omitempty"`
}

// Evidence is what was seen of a replica that did not get ready.
type Evidence struct {
	ExitCode  *int     `json:"exit_code,omitempty"`
	OOMKilled bool     `json:"oom_killed,omitempty"`
	LastProbe string   `json:"last_probe,omitempty"` // status or error, and latency
	LogTail   []string `json:"log_tail,omitempty"`   // at most 100 lines
}

// Freeze merges service and project into the configuration of a release.
// Later wins: shared env, shared secrets, env, secrets.
func Freeze(p Project, s Service) ReleaseConfig {
	run := s.RunSpec.WithDefaults()
	run.Env = MergeEnv(p.SharedEnv, run.Env)
	run.SecretEnv = MergeEnv(p.SharedSecretEnv, run.SecretEnv)
	run.Resources = run.Resources.Or(p.DefaultResources).Or(DefaultResources)
	return ReleaseConfig{RunSpec: run}
}

// Upload is a build context kept on disk until it is used once or expires.
type Upload struct {
	ID        ID        `json:"upload_id"`
	ServiceID ID        `json:"-"`
	SizeBytes int64     `json:"size_bytes"`
	Digest    string    `json:"digest"` // "sha256:…" of the bytes as sent
	ExpiresAt time.Time `json:"expires_at"`

	// DeploymentID is the deployment that used it, zero while none did.
	DeploymentID ID `json:"-"`
}
