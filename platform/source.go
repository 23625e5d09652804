package platform

import (
	"path"
	"regexp"
	"strings"
)

// Source types.
const (
	SourceUpload        = "upload"
	SourceExternalImage = "external_image"
	SourceRedeploy      = "redeploy" // in a deployment request only
	SourcePush          = "push"     // made by Denia when an image is pushed, never asked for
)

// Source says where a service's image comes from. Which fields count depends
// on Type.
type Source struct {
	Type string `json:"type"`

	Dockerfile string `json:"dockerfile,omitempty"` // upload; default "Dockerfile", relative to Context
	Context    string `json:"context,omitempty"`    // upload; default "."
	UploadID   ID     `json:"upload_id,omitempty"`  // upload; in a deployment request only

	Image string `json:"image,omitempty"` // external_image; push: <project>/<service>@<digest>, as it was called then

	Digest string `json:"digest,omitempty"` // push: the manifest in Denia's own registry

	DeploymentID ID `json:"deployment_id,omitempty"` // redeploy

	Build *BuildOptions `json:"build,omitempty"` // upload
}

// BuildOptions are handed to the image build.
type BuildOptions struct {
	Args    Env    `json:"args,omitempty"`
	Target  string `json:"target,omitempty"`
	Secrets Env    `json:"secrets,omitempty"` // plain in memory, sealed in the store
}

// imageShape is the shape of an image reference: host, path, tag, digest. The
// runtime parses it in full.
var imageShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,511}$`)

func (s Source) validate(at string, f *fields) {
	switch s.Type {
	case SourceUpload:
		for field, p := range map[string]string{".dockerfile": s.Dockerfile, ".context": s.Context} {
			if p != "" && (path.IsAbs(p) || strings.ContainsRune(p, 0) || path.Clean("/"+p) != "/"+path.Clean(p) && path.Clean(p) != ".") {
				f.add(at+field, "bad_path", "must be a relative path inside the upload")
			}
		}
		if s.Image != "" || s.DeploymentID != "" {
			f.add(at, "unexpected_field", "an upload has neither image nor deployment_id")
		}
	case SourceExternalImage:
		if !imageShape.MatchString(s.Image) {
			f.add(at+".image", "bad_reference", "must be an image reference such as host/name:tag or host/name@sha256:…")
		}
		if s.UploadID != "" || s.DeploymentID != "" || s.Build != nil || s.Dockerfile != "" || s.Context != "" {
			f.add(at, "unexpected_field", "an external_image has image and nothing else")
		}
	case SourceRedeploy:
		if s.DeploymentID == "" {
			f.add(at+".deployment_id", "required", "must name the deployment to roll back to")
		}
	case "":
		f.add(at+".type", "required", "must be upload or external_image")
	default:
		f.add(at+".type", "not_one_of", "must be upload or external_image")
	}
	if s.Build != nil {
		s.Build.Args.validate(at+".build.args", f)
		s.Build.Secrets.validate(at+".build.secrets", f)
		if len(s.Build.Target) > 128 {
			f.add(at+".build.target", "too_long", "must be at most 128 bytes")
		}
	}
}

// ValidateServiceSource checks a source that is kept with a service: it may
// name neither an upload nor another deployment.
func (s Source) ValidateServiceSource() error {
	var f fields
	s.validate("source", &f)
	if s.Type == SourceRedeploy {
		f.add("source.type", "not_one_of", "must be upload or external_image; redeploy belongs in a deployment request")
	}
	if s.UploadID != "" {
		f.add("source.upload_id", "unexpected_field", "belongs in a deployment request, uploads are used once")
	}
	return f.err()
}

// ValidateDeploymentSource checks the source of a deployment request.
func (s Source) ValidateDeploymentSource() error {
	var f fields
	s.validate("source", &f)
	if s.Type == SourceUpload && s.UploadID == "" {
		f.add("source.upload_id", "required", "POST a build context to /v1/services/{id}/uploads first and give its upload_id here")
	}
	return f.err()
}
