package api

import (
	"github.com/denia-paas/denia/platform"
)

// service is a service as it is written and read. What is read can be written
// back: read-only fields are passed over, "***" keeps what is stored.
type service struct {
	ProjectID     string         `json:"project_id" required:"false" doc:"The project, by id or name; default \"default\". A service cannot move."`
	Name          string         `json:"name" doc:"DNS label, unique in the project."`
	Source        *serviceSource `json:"source" required:"false" doc:"Where its image comes from; null until the first deployment."`
	Port          int            `json:"port" required:"false" default:"8080" minimum:"1" maximum:"65535" doc:"Where it listens; injected as PORT."`
	Protocol      string         `json:"protocol" required:"false" default:"http" enum:"http,h2c" doc:"What it speaks."`
	Command       []string       `json:"command" required:"false" doc:"Instead of the image's CMD."`
	Entrypoint    []string       `json:"entrypoint" required:"false" doc:"Instead of the image's ENTRYPOINT."`
	User          string         `json:"user" required:"false" doc:"Instead of the image's USER: name or id, with :group if need be."`
	Env           platform.Env   `json:"env" required:"false" doc:"Environment. Values read \"***\" for a Viewer."`
	SecretEnv     platform.Env   `json:"secret_env" required:"false" doc:"Environment, sealed at rest; values read \"***\" for everyone. Writing \"***\" keeps the value."`
	HealthCheck   *healthCheck   `json:"health_check" required:"false" doc:"When a replica is ready."`
	Resources     resources      `json:"resources" required:"false" doc:"Bounds of one replica."`
	Scale         *scale         `json:"scale" required:"false" doc:"How many replicas."`
	Volumes       []volume       `json:"volumes" required:"false" doc:"Named volumes of the service."`
	StopGraceS    *int           `json:"stop_grace_s" required:"false" doc:"Seconds from SIGTERM to SIGKILL; default 10."`
	DrainTimeoutS *int           `json:"drain_timeout_s" required:"false" doc:"Seconds a replaced replica may take to finish its requests; default 30."`
	AutoRollback  *autoRollback  `json:"auto_rollback" required:"false" doc:"Guards a new release; null: not guarded."`
	TLS           string         `json:"tls" required:"false" default:"auto" enum:"auto,off"`
	FollowTag     string         `json:"follow_tag" required:"false" default:"latest" doc:"A manifest pushed to the service's repository under this tag is deployed."`

	ID                 platform.ID  `json:"id" readOnly:"true"`
	URL                string       `json:"url" readOnly:"true" doc:"Where it is reached."`
	State              string       `json:"state" readOnly:"true" enum:"new,deploying,running,degraded,unavailable,stopped,failed" doc:"As observed."`
	ActiveDeploymentID *platform.ID `json:"active_deployment_id" readOnly:"true"`
	Replicas           replicas     `json:"replicas" readOnly:"true" doc:"Of the active release."`
	CreatedAt          *timestamp   `json:"created_at" readOnly:"true"`
	UpdatedAt          *timestamp   `json:"updated_at" readOnly:"true"`
}

type replicas struct {
	Ready   int `json:"ready"`
	Desired int `json:"desired"`
}

type healthCheck struct {
	Type         string `json:"type,omitempty" default:"http" enum:"http,tcp,none"`
	Path         string `json:"path,omitempty" default:"/"`
	Status       string `json:"status,omitempty" default:"200-399" doc:"Good statuses, e.g. 200-399 or 200,204."`
	IntervalS    int    `json:"interval_s,omitempty" default:"10"`
	TimeoutS     int    `json:"timeout_s,omitempty" default:"3"`
	StartPeriodS int    `json:"start_period_s,omitempty" default:"60" doc:"How long a new replica may take to its first good answer."`
}

type scale struct {
	Min               *int `json:"min" required:"false" doc:"Default 1."`
	Max               *int `json:"max" required:"false" doc:"Default: min."`
	TargetConcurrency int  `json:"target_concurrency,omitempty"`
	TargetCPUPct      int  `json:"target_cpu_pct,omitempty"`
	IdleTimeoutS      int  `json:"idle_timeout_s,omitempty"`
}

type volume struct {
	Name     string `json:"name" doc:"DNS label."`
	Path     string `json:"path" doc:"Absolute path in the container."`
	ReadOnly bool   `json:"read_only,omitempty"`
}

type autoRollback struct {
	WindowS     int     `json:"window_s" doc:"How long a release is watched."`
	MaxErrorPct float64 `json:"max_error_pct" doc:"The share of failed requests that is too many."`
}

type buildOptions struct {
	Args    platform.Env `json:"args,omitempty" doc:"Build arguments. Values read \"***\" for a Viewer."`
	Target  string       `json:"target,omitempty" doc:"The stage to build."`
	Secrets platform.Env `json:"secrets,omitempty" doc:"For RUN --mount=type=secret; sealed at rest, values read \"***\" for everyone."`
}

type serviceSource struct {
	Type       string        `json:"type" enum:"upload,external_image"`
	Dockerfile string        `json:"dockerfile,omitempty" doc:"upload: default Dockerfile, relative to context."`
	Context    string        `json:"context,omitempty" doc:"upload: directory in the upload; default its root."`
	Image      string        `json:"image,omitempty" doc:"external_image: a reference, by tag or digest."`
	Build      *buildOptions `json:"build,omitempty" doc:"upload: how to build."`
}

func (s *serviceSource) source() *platform.Source {
	if s == nil {
		return nil
	}
	return &platform.Source{
		Type: s.Type, Dockerfile: s.Dockerfile, Context: s.Context, Image: s.Image,
		Build: (*platform.BuildOptions)(s.Build),
	}
}

func sourceView(s *platform.Source, role platform.Role) *serviceSource {
	if s == nil {
		return nil
	}
	v := &serviceSource{Type: s.Type, Dockerfile: s.Dockerfile, Context: s.Context, Image: s.Image}
	if s.Build != nil {
		v.Build = &buildOptions{Args: s.Build.Args, Target: s.Build.Target, Secrets: s.Build.Secrets.Redact()}
		if !role.Covers(platform.RoleOperator) {
			v.Build.Args = v.Build.Args.Redact()
		}
	}
	return v
}

// restoreSource puts stored values back where a source says "***".
func restoreSource(s, stored *platform.Source) {
	if s == nil || s.Build == nil || stored == nil || stored.Build == nil {
		return
	}
	build := *s.Build
	build.Args = build.Args.Restore(stored.Build.Args)
	build.Secrets = build.Secrets.Restore(stored.Build.Secrets)
	s.Build = &build
}

func (s *scale) scale() *platform.Scale {
	if s == nil {
		return nil
	}
	out := platform.Scale{Min: 1, TargetConcurrency: s.TargetConcurrency, TargetCPUPct: s.TargetCPUPct, IdleTimeoutS: s.IdleTimeoutS}
	if s.Min != nil {
		out.Min = *s.Min
	}
	out.Max = max(1, out.Min)
	if s.Max != nil {
		out.Max = *s.Max
	}
	return &out
}

// spec is what s writes, completed with the defaults. stored is what it is
// written over, zero for a new service.
func (s service) spec(stored platform.Service) (platform.ServiceSpec, error) {
	spec := platform.ServiceSpec{
		Name: s.Name, Source: s.Source.source(), Scale: s.Scale.scale(),
		AutoRollback: (*platform.AutoRollback)(s.AutoRollback), TLS: s.TLS, FollowTag: s.FollowTag,
		RunSpec: platform.RunSpec{
			Port: s.Port, Protocol: s.Protocol, Command: s.Command, Entrypoint: s.Entrypoint, User: s.User,
			Env: s.Env.Restore(stored.Env), SecretEnv: s.SecretEnv.Restore(stored.SecretEnv),
			HealthCheck: (*platform.HealthCheck)(s.HealthCheck), Resources: platform.Resources(s.Resources),
			StopGraceS: s.StopGraceS, DrainTimeoutS: s.DrainTimeoutS,
		},
	}
	for _, v := range s.Volumes {
		spec.Volumes = append(spec.Volumes, platform.Volume(v))
	}
	restoreSource(spec.Source, stored.Source)
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	if spec.Source != nil {
		if err := spec.Source.ValidateServiceSource(); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// serviceView shows a service to a caller with that role in its project.
func (a *API) serviceView(c *call, s platform.Service, projectName string, role platform.Role) service {
	spec := s.WithDefaults()
	v := service{
		ProjectID: string(s.ProjectID), Name: s.Name, Source: sourceView(s.Source, role),
		Port: spec.Port, Protocol: spec.Protocol, Command: emptyNotNull(spec.Command), Entrypoint: emptyNotNull(spec.Entrypoint), User: spec.User,
		Env: orEmpty(spec.Env), SecretEnv: orEmpty(spec.SecretEnv.Redact()),
		HealthCheck: (*healthCheck)(spec.HealthCheck), Resources: resources(spec.Resources),
		Scale: &scale{
			Min: &spec.Scale.Min, Max: &spec.Scale.Max, TargetConcurrency: spec.Scale.TargetConcurrency,
			TargetCPUPct: spec.Scale.TargetCPUPct, IdleTimeoutS: spec.Scale.IdleTimeoutS,
		},
		Volumes: []volume{}, StopGraceS: spec.StopGraceS, DrainTimeoutS: spec.DrainTimeoutS,
		AutoRollback: (*autoRollback)(spec.AutoRollback), TLS: spec.TLS, FollowTag: spec.FollowTag,
		ID: s.ID, CreatedAt: &timestamp{s.CreatedAt}, UpdatedAt: &timestamp{s.UpdatedAt},
	}
	for _, one := range spec.Volumes {
		v.Volumes = append(v.Volumes, volume(one))
	}
	if !role.Covers(platform.RoleOperator) {
		v.Env = v.Env.Redact()
	}
	if s.ActiveDeploymentID != "" {
		v.ActiveDeploymentID = &s.ActiveDeploymentID
	}
	if label, err := platform.HostLabel(s.Name, projectName); err == nil {
		v.URL = a.publicURL(c, label, spec.TLS)
	}
	status := a.Plane.Status(s.ID)
	v.State, v.Replicas = status.State, replicas(status.Replicas)
	return v
}

func emptyNotNull(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
