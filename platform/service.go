package platform

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Service protocols between the ingress and a replica.
const (
	ProtocolHTTP = "http" // HTTP/1.1
	ProtocolH2C  = "h2c"  // HTTP/2 without TLS, prior knowledge (RFC 9113 §3.3)
)

// Health check types.
const (
	HealthHTTP = "http" // GET Path answers with a status in Status
	HealthTCP  = "tcp"  // the port accepts a connection
	HealthNone = "none" // running is enough
)

// HealthCheck says when a replica is ready. Probes come from the ingress's own
// dialer; nothing is needed inside the image. Times are whole seconds.
type HealthCheck struct {
	Type         string `json:"type,omitempty"`
	Path         string `json:"path,omitempty"`
	Status       string `json:"status,omitempty"` // "200-399", "200,204,300-399"
	IntervalS    int    `json:"interval_s,omitempty"`
	TimeoutS     int    `json:"timeout_s,omitempty"`
	StartPeriodS int    `json:"start_period_s,omitempty"` // how long a new replica may take to its first good probe
}

// Scale bounds the number of replicas.
type Scale struct {
	Min               int `json:"min"`
	Max               int `json:"max"`
	TargetConcurrency int `json:"target_concurrency,omitempty"`
	TargetCPUPct      int `json:"target_cpu_pct,omitempty"`
	IdleTimeoutS      int `json:"idle_timeout_s,omitempty"`
}

// Volume is a named volume of a service, mounted at an absolute path.
type Volume struct {
	Name     string `json:"name"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// AutoRollback is kept with the service for guarded releases.
type AutoRollback struct {
	WindowS     int     `json:"window_s"`
	MaxErrorPct float64 `json:"max_error_pct"`
}

// RunSpec is the part of a service that decides what runs. A deployment
// freezes it, merged with its project's shares, into a release.
type RunSpec struct {
	Port          int          `json:"port,omitempty"`     // default 8080; injected as PORT
	Protocol      string       `json:"protocol,omitempty"` // default "http"
	Command       []string     `json:"command,omitempty"`
	Entrypoint    []string     `json:"entrypoint,omitempty"`
	User          string       `json:"user,omitempty"`
	Env           Env          `json:"env,omitempty"`
	SecretEnv     Env          `json:"secret_env,omitempty"` // plain in memory, sealed in the store
	HealthCheck   *HealthCheck `json:"health_check,omitempty"`
	Resources     Resources    `json:"resources,omitempty"`
	Volumes       []Volume     `json:"volumes,omitempty"`
	StopGraceS    *int         `json:"stop_grace_s,omitempty"`    // SIGTERM to SIGKILL; default 10
	DrainTimeoutS *int         `json:"drain_timeout_s,omitempty"` // default 30
}

// ServiceSpec is what a user may write of a service.
type ServiceSpec struct {
	Name   string  `json:"name"`
	Source *Source `json:"source,omitempty"`
	RunSpec
	Scale        *Scale        `json:"scale,omitempty"`
	AutoRollback *AutoRollback `json:"auto_rollback,omitempty"`
	TLS          string        `json:"tls,omitempty"` // "auto" (default) or "off"

	// FollowTag is the tag that deploys the service when a manifest is pushed
	// to its repository under it; default DefaultFollowTag.
	FollowTag string `json:"follow_tag,omitempty"`
}

// Service is an application: one source, one host, some replicas.
type Service struct {
	ServiceSpec
	ID                 ID        `json:"id"`
	ProjectID          ID        `json:"project_id"`
	Stopped            bool      `json:"-"` // desired state, set by stop and start
	ActiveDeploymentID ID        `json:"active_deployment_id,omitempty"`
	Version            int64     `json:"-"` // grows with each write; the API's ETag
	CreatedAt          time.Time `json:"created_at"`
	UpdatedAt          time.Time `json:"updated_at"`
}

// States of a service, derived from what is observed; never stored.
const (
	ServiceNew         = "new"         // never deployed
	ServiceDeploying   = "deploying"   // first release on its way
	ServiceRunning     = "running"     // every desired replica is ready
	ServiceDegraded    = "degraded"    // some are
	ServiceUnavailable = "unavailable" // none is
	ServiceStopped     = "stopped"
	ServiceFailed      = "failed" // no release to run and the last deployment failed
)

// ServiceStatus is what is observed of a service now.
type ServiceStatus struct {
	State    string   `json:"state"`
	Replicas Replicas `json:"replicas"`
}

// Replicas counts those of the active release.
type Replicas struct {
	Ready   int `json:"ready"`
	Desired int `json:"desired"`
}

// Defaults of RunSpec.
const (
	DefaultPort          = 8080
	DefaultStopGraceS    = 10
	DefaultDrainTimeoutS = 30
)

// WithDefaults fills every field that was left out.
func (s ServiceSpec) WithDefaults() ServiceSpec {
	s.RunSpec = s.RunSpec.WithDefaults()
	if s.Scale == nil {
		s.Scale = &Scale{Min: 1, Max: 1}
	}
	if s.TLS == "" {
		s.TLS = "auto"
	}
	if s.FollowTag == "" {
		s.FollowTag = DefaultFollowTag
	}
	return s
}

// WithDefaults fills every field that was left out, Resources apart: those
// inherit from the project when a release is frozen.
func (r RunSpec) WithDefaults() RunSpec {
	if r.Port == 0 {
		r.Port = DefaultPort
	}
	if r.Protocol == "" {
		r.Protocol = ProtocolHTTP
	}
	check := HealthCheck{}
	if r.HealthCheck != nil {
		check = *r.HealthCheck
	}
	check = check.withDefaults()
	r.HealthCheck = &check
	if r.StopGraceS == nil {
		grace := DefaultStopGraceS
		r.StopGraceS = &grace
	}
	if r.DrainTimeoutS == nil {
		drain := DefaultDrainTimeoutS
		r.DrainTimeoutS = &drain
	}
	return r
}

func (h HealthCheck) withDefaults() HealthCheck {
	if h.Type == "" {
		h.Type = HealthHTTP
	}
	if h.Path == "" {
		h.Path = "/"
	}
	if h.Status == "" {
		h.Status = "200-399"
	}
	if h.IntervalS == 0 {
		h.IntervalS = 10
	}
	if h.TimeoutS == 0 {
		h.TimeoutS = 3
	}
	if h.StartPeriodS == 0 {
		h.StartPeriodS = 60
	}
	return h
}

// StatusRange is an inclusive range of HTTP status codes.
type StatusRange struct{ From, To int }

// ParseStatus reads "200-399" or "200,204,300-399".
func ParseStatus(s string) ([]StatusRange, error) {
	var ranges []StatusRange
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(low)
		if err != nil {
			return nil, fmt.Errorf("%q is no status code", part)
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(high); err != nil {
				return nil, fmt.Errorf("%q is no range of status codes", part)
			}
		}
		if from < 100 || to > 599 || from > to {
			return nil, fmt.Errorf("%q is not within 100-599", part)
		}
		ranges = append(ranges, StatusRange{from, to})
	}
	return ranges, nil
}

var userPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$`)

// Validate checks s and returns an *Error that names every bad field. Call it
// after WithDefaults.
func (s ServiceSpec) Validate() error {
	var f fields
	validateLabel("name", s.Name, &f)
	if s.Source != nil {
		s.Source.validate("source", &f)
	}
	s.validateRun(&f)
	if sc := s.Scale; sc != nil {
		switch {
		case sc.Min < 1:
			f.add("scale.min", "out_of_range", "must be at least 1; use stop to run no replica")
		case sc.Min > 100:
			f.add("scale.min", "out_of_range", "must be at most 100")
		}
		if sc.Max < sc.Min || sc.Max > 100 {
			f.add("scale.max", "out_of_range", "must be between scale.min and 100")
		}
		if sc.TargetConcurrency < 0 || sc.TargetCPUPct < 0 || sc.TargetCPUPct > 100 || sc.IdleTimeoutS < 0 {
			f.add("scale", "out_of_range", "targets must not be negative, target_cpu_pct at most 100")
		}
	}
	if a := s.AutoRollback; a != nil && (a.WindowS < 1 || a.WindowS > 86400 || a.MaxErrorPct < 0 || a.MaxErrorPct > 100) {
		f.add("auto_rollback", "out_of_range", "window_s must be 1 to 86400 and max_error_pct 0 to 100")
	}
	if s.TLS != "auto" && s.TLS != "off" {
		f.add("tls", "not_one_of", "must be auto or off")
	}
	if !ociTag.MatchString(s.FollowTag) {
		f.add("follow_tag", "bad_tag", "must be a tag: 1 to 128 characters of A-Z, a-z, 0-9, '_', '.' and '-', not starting with '.' or '-'")
	} else if _, reserved := ParseReleaseTag(s.FollowTag); reserved {
		f.add("follow_tag", "reserved", "must not be one of the tags release-<number>, under which Denia keeps copies of releases")
	}
	return f.err()
}

func (r RunSpec) validateRun(f *fields) {
	if r.Port < 1 || r.Port > 65535 {
		f.add("port", "out_of_range", "must be between 1 and 65535")
	}
	if r.Protocol != ProtocolHTTP && r.Protocol != ProtocolH2C {
		f.add("protocol", "not_one_of", "must be http or h2c")
	}
	if r.User != "" && !userPattern.MatchString(r.User) {
		f.add("user", "bad_value", "must be a user name or id, with :group after it if need be")
	}
	for field, args := range map[string][]string{"command": r.Command, "entrypoint": r.Entrypoint} {
		total := 0
		for _, arg := range args {
			total += len(arg)
			if strings.ContainsRune(arg, 0) {
				f.add(field, "bad_value", "must not hold a NUL byte")
			}
		}
		if total > MaxEnvBytes || len(args) > 1024 {
			f.add(field, "too_large", "must be at most 1024 arguments and %d bytes", MaxEnvBytes)
		}
	}
	r.Env.validate("env", f)
	r.SecretEnv.validate("secret_env", f)
	r.Resources.validate("resources", f)
	if r.HealthCheck != nil {
		r.HealthCheck.validate("health_check", f)
	}
	seen := map[string]bool{}
	for i, v := range r.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		validateLabel(at+".name", v.Name, f)
		if !strings.HasPrefix(v.Path, "/") || path.Clean(v.Path) != v.Path || v.Path == "/" || strings.ContainsAny(v.Path, ":\x00") {
			f.add(at+".path", "bad_path", "must be a clean absolute path other than /, without ':'")
		}
		if kernel := strings.SplitN(v.Path, "/", 3)[min(1, strings.Count(v.Path, "/"))]; len(v.Path) > 1024 || slices.Contains([]string{"proc", "sys", "dev"}, kernel) {
			f.add(at+".path", "bad_path", "must be at most 1024 bytes, and not below /proc, /sys or /dev")
		}
		if seen[v.Path] || seen["name:"+v.Name] {
			f.add(at, "duplicate", "name and path must each be unique among the volumes")
		}
		seen[v.Path], seen["name:"+v.Name] = true, true
	}
	bounded := func(field string, v *int) {
		if v != nil && (*v < 0 || *v > 3600) {
			f.add(field, "out_of_range", "must be between 0 and 3600")
		}
	}
	bounded("stop_grace_s", r.StopGraceS)
	bounded("drain_timeout_s", r.DrainTimeoutS)
}

func (h HealthCheck) validate(at string, f *fields) {
	if h.Type != HealthHTTP && h.Type != HealthTCP && h.Type != HealthNone {
		f.add(at+".type", "not_one_of", "must be http, tcp or none")
	}
	if !strings.HasPrefix(h.Path, "/") || len(h.Path) > 2048 || strings.ContainsAny(h.Path, " \r\n\x00#") {
		f.add(at+".path", "bad_path", "must start with / and hold no space, line break or #")
	} else if _, err := url.ParseRequestURI(h.Path); err != nil {
		f.add(at+".path", "bad_path", "is no path of a URL: percent signs must start an escape such as %%20")
	}
	if _, err := ParseStatus(h.Status); err != nil {
		f.add(at+".status", "bad_value", "%v; write for example 200-399", err)
	}
	for _, t := range []struct {
		field  string
		value  int
		atMost int
	}{
		{".interval_s", h.IntervalS, 3600},
		{".timeout_s", h.TimeoutS, 300},
		{".start_period_s", h.StartPeriodS, 3600},
	} {
		if t.value < 1 || t.value > t.atMost {
			f.add(at+t.field, "out_of_range", "must be between 1 and %d", t.atMost)
		}
	}
}

// HostLabel is the label a service is reached under below the base domain:
// "<service>" in the project "default", "<service>-<project>" elsewhere.
// It is at most 63 bytes or an *Error: DNS allows no more (RFC 1035 §2.3.4).
func HostLabel(service, project string) (string, error) {
	label := service
	if project != DefaultProject {
		label = service + "-" + project
	}
	if len(label) > 63 {
		return "", InvalidField("name", "too_long", "the host label %q is %d characters long, DNS allows 63: shorten the service's or the project's name", label, len(label))
	}
	return label, nil
}
