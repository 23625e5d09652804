package platform

import (
	"regexp"
	"time"
)

// DefaultProject exists from the first start on.
const DefaultProject = "default"

// Redacted stands where a value is hidden. Written back, it keeps the stored
// value.
const Redacted = "***"

// ProjectSpec is what a user may write of a project.
type ProjectSpec struct {
	Name             string    `json:"name"`
	Description      string    `json:"description,omitempty"`
	SharedEnv        Env       `json:"shared_env,omitempty"`
	SharedSecretEnv  Env       `json:"shared_secret_env,omitempty"` // plain in memory, sealed in the store
	DefaultResources Resources `json:"default_resources,omitempty"`
	AnonymousPull    bool      `json:"anonymous_pull,omitempty"` // whether everybody may pull from its services' repositories
}

// Project groups services that share members, environment and one network.
type Project struct {
	ProjectSpec
	ID        ID        `json:"id"`
	Version   int64     `json:"-"` // grows with each write; the API's ETag
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Resources bound one replica. Zero means "inherit": the project's default,
// then Denia's.
type Resources struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty"`   // 1000 = one core
	MemoryBytes int64 `json:"memory_bytes,omitempty"` // at least 6 MiB
	PIDs        int64 `json:"pids,omitempty"`
}

// DefaultResources bound a replica when neither service nor project says
// otherwise. CPU is unbounded by default: idle cores would only go to waste.
var DefaultResources = Resources{MemoryBytes: 512 << 20, PIDs: 512}

// Or fills the zero fields of r from fallback.
func (r Resources) Or(fallback Resources) Resources {
	if r.CPUMillis == 0 {
		r.CPUMillis = fallback.CPUMillis
	}
	if r.MemoryBytes == 0 {
		r.MemoryBytes = fallback.MemoryBytes
	}
	if r.PIDs == 0 {
		r.PIDs = fallback.PIDs
	}
	return r
}

func (r Resources) validate(at string, f *fields) {
	if r.CPUMillis < 0 || r.CPUMillis > 1_000_000 {
		f.add(at+".cpu_millis", "out_of_range", "must be between 1 and 1000000 (1000 is one core), or left out")
	}
	if r.MemoryBytes != 0 && (r.MemoryBytes < 6<<20 || r.MemoryBytes > 1<<44) {
		f.add(at+".memory_bytes", "out_of_range", "must be at least 6291456 (6 MiB), or left out")
	}
	if r.PIDs != 0 && (r.PIDs < 1 || r.PIDs > 32768) {
		f.add(at+".pids", "out_of_range", "must be between 1 and 32768, or left out")
	}
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func validateLabel(field, name string, f *fields) {
	if !dnsLabel.MatchString(name) {
		f.add(field, "not_a_dns_label", "must be a DNS label: 1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-'")
	}
}

// Validate checks p and returns an *Error that names every bad field.
func (p ProjectSpec) Validate() error {
	var f fields
	validateLabel("name", p.Name, &f)
	if len(p.Description) > 1024 {
		f.add("description", "too_long", "must be at most 1024 bytes")
	}
	p.SharedEnv.validate("shared_env", &f)
	p.SharedSecretEnv.validate("shared_secret_env", &f)
	p.DefaultResources.validate("default_resources", &f)
	return f.err()
}
