package api

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

type deployment struct {
	ID         platform.ID      `json:"id"`
	ServiceID  platform.ID      `json:"service_id"`
	Number     int              `json:"number" doc:"1, 2, 3… per service."`
	Status     string           `json:"status" enum:"pending,building,starting,healthy,inactive,failed,canceled,stopped"`
	Trigger    string           `json:"trigger" enum:"api,push,webhook,rollback,config,autoscale"`
	Actor      string           `json:"actor" doc:"Who asked for it."`
	CreatedAt  timestamp        `json:"created_at"`
	StartedAt  *timestamp       `json:"started_at" nullable:"true"`
	FinishedAt *timestamp       `json:"finished_at" nullable:"true"`
	Phases     []phase          `json:"phases"`
	Artifact   *artifact        `json:"artifact" doc:"The image; null until it is there."`
	Error      *deploymentError `json:"error" doc:"Why it failed or was canceled; null otherwise."`
}

type phase struct {
	Name       string     `json:"name" doc:"build, pull or start."`
	StartedAt  timestamp  `json:"started_at"`
	FinishedAt *timestamp `json:"finished_at" nullable:"true"`
}

type artifact struct {
	Image     string          `json:"image"`
	Digest    string          `json:"digest" doc:"What is run."`
	SizeBytes int64           `json:"size_bytes"`
	Source    *artifactSource `json:"source" doc:"What it was made from."`

	ManifestDigest string `json:"manifest_digest,omitempty" doc:"The manifest in the service's own repository that holds it: as pushed, or a copy made once the release was healthy."`
}

type artifactSource struct {
	Type         string      `json:"type"`
	Image        string      `json:"image,omitempty" doc:"external_image: as requested; push: as pushed."`
	UploadDigest string      `json:"upload_digest,omitempty" doc:"upload: of the bytes as sent."`
	DeploymentID platform.ID `json:"deployment_id,omitempty" doc:"redeploy: the one rolled back to."`
	Commit       string      `json:"commit,omitempty" doc:"git: the commit."`
}

type deploymentError struct {
	Code     string    `json:"code"`
	Message  string    `json:"message" doc:"The cause, and what to do next."`
	Evidence *evidence `json:"evidence,omitempty" doc:"What was seen of the replica."`
}

type evidence struct {
	ExitCode  *int     `json:"exit_code,omitempty"`
	OOMKilled bool     `json:"oom_killed,omitempty" doc:"The kernel killed it at its memory limit."`
	LastProbe string   `json:"last_probe,omitempty" doc:"Status or error, and latency."`
	LogTail   []string `json:"log_tail,omitempty" doc:"Its last lines, at most 100; for Operators, as all logs."`
}

// deploymentView shows a deployment to a caller with that role in its project.
func deploymentView(d platform.Deployment, role platform.Role) deployment {
	v := deployment{
		ID: d.ID, ServiceID: d.ServiceID, Number: d.Number, Status: string(d.Status), Trigger: d.Trigger, Actor: d.Actor,
		CreatedAt: timestamp{d.CreatedAt}, StartedAt: timestampOf(d.StartedAt), FinishedAt: timestampOf(d.FinishedAt),
		Phases: make([]phase, len(d.Phases)),
	}
	for i, p := range d.Phases {
		v.Phases[i] = phase{p.Name, timestamp{p.StartedAt}, timestampOf(p.FinishedAt)}
	}
	if art := d.Artifact; art != nil {
		v.Artifact = &artifact{art.Image, art.Digest, art.SizeBytes, (*artifactSource)(art.Source), art.ManifestDigest}
	}
	if e := d.Error; e != nil {
		v.Error = &deploymentError{Code: e.Code, Message: e.Message}
		if e.Evidence != nil {
			seen := evidence(*e.Evidence)
			if !role.Covers(platform.RoleOperator) {
				seen.LogTail = nil
			}
			v.Error.Evidence = &seen
		}
	}
	return v
}

// accepted is the 202 for work that goes on as deployment d.
func (a *API) accepted(c *call, project platform.ID, d platform.Deployment) *created[deployment] {
	c.touch(project, d.ID)
	return &created[deployment]{
		Location: "/v1/deployments/" + string(d.ID),
		Body:     deploymentView(d, c.identity().RoleIn(project)),
	}
}

type deploymentSource struct {
	Type         string        `json:"type" enum:"upload,external_image,redeploy"`
	Dockerfile   string        `json:"dockerfile,omitempty" doc:"upload: default the service's, then Dockerfile."`
	Context      string        `json:"context,omitempty" doc:"upload: default the service's, then the upload's root."`
	UploadID     platform.ID   `json:"upload_id,omitempty" doc:"upload: from POST /v1/services/{id}/uploads."`
	Image        string        `json:"image,omitempty" doc:"external_image: a reference, by tag or digest."`
	DeploymentID platform.ID   `json:"deployment_id,omitempty" doc:"redeploy: the deployment to roll back to, with the configuration frozen in it."`
	Build        *buildOptions `json:"build,omitempty" doc:"upload: how to build; default the service's."`
}

type deployInput struct {
	Body struct {
		ServiceID string            `json:"service_id" doc:"The service, by id or as project:name."`
		Source    *deploymentSource `json:"source,omitempty" doc:"Instead of the service's own."`
	} `nameHint:"NewDeployment"`
}

func (a *API) createDeployment(ctx context.Context, in *deployInput) (*created[deployment], error) {
	c := callFrom(ctx)
	s, err := a.findService(ctx, in.Body.ServiceID)
	if platform.KindOf(err) == platform.NotFound {
		return nil, notThere(ofService)
	}
	if err != nil {
		return nil, err
	}
	c.touch(s.ProjectID, s.ID)
	if err := may(c.identity().Principal, s.ProjectID, platform.RoleOperator, notThere(ofService)); err != nil {
		return nil, err
	}
	request := platform.DeployRequest{ServiceID: s.ID, Trigger: platform.TriggerAPI, Actor: c.actor}
	if from := in.Body.Source; from != nil {
		request.Source = &platform.Source{
			Type: from.Type, Dockerfile: from.Dockerfile, Context: from.Context, UploadID: from.UploadID,
			Image: from.Image, DeploymentID: from.DeploymentID, Build: (*platform.BuildOptions)(from.Build),
		}
		restoreSource(request.Source, s.Source)
		if err := request.Source.ValidateDeploymentSource(); err != nil {
			return nil, err
		}
		if from.Type == platform.SourceRedeploy {
			request.Trigger = platform.TriggerRollback
		}
	}
	d, err := a.Plane.Deploy(ctx, request)
	if err != nil {
		return nil, err
	}
	return a.accepted(c, s.ProjectID, d), nil
}

type deploymentInput struct {
	ID platform.ID `path:"id" doc:"The deployment's id."`
}

func (a *API) getDeployment(ctx context.Context, _ *deploymentInput) (*object[deployment], error) {
	c := callFrom(ctx)
	v := deploymentView(c.deployment, c.identity().RoleIn(c.service.ProjectID))
	return &object[deployment]{ETag: contentTag(v), Body: v}, nil
}

type deploymentsInput struct {
	ServiceRef
	Paging
}

func (a *API) listDeployments(ctx context.Context, in *deploymentsInput) (*listing[deployment], error) {
	c := callFrom(ctx)
	rows, next, err := a.Store.Deployments(ctx, c.service.ID, in.page())
	if err != nil {
		return nil, err
	}
	role := c.identity().RoleIn(c.service.ProjectID)
	return listed(c, rows, next, func(d platform.Deployment) deployment { return deploymentView(d, role) }), nil
}

// cancelDeployment asks for the end of a deployment; its status tells when
// that is reached.
func (a *API) cancelDeployment(ctx context.Context, _ *deploymentInput) (*object[deployment], error) {
	c := callFrom(ctx)
	d, err := a.Plane.Cancel(ctx, c.deployment.ID, c.actor)
	if err != nil {
		return nil, err
	}
	return &object[deployment]{Body: deploymentView(d, c.identity().RoleIn(c.service.ProjectID))}, nil
}
