package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/secret"
)

var (
	errCanceled = errors.New("canceled")
	errTimeout  = errors.New("deadline exceeded")
)

func (p *Plane) kickBuilder() {
	select {
	case p.buildKick <- struct{}{}:
	default:
	}
}

// buildLoop takes pending deployments that need an image, oldest first. Rows
// found building at the start are of a process that died: they are built
// again.
func (p *Plane) buildLoop(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		for ctx.Err() == nil {
			d, ok := p.nextBuild(ctx)
			if !ok {
				break
			}
			p.kickBuilder()
			p.build(ctx, d)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.buildKick:
		case <-ticker.C:
		}
	}
}

// nextBuild returns a building row nobody works on, else claims a pending one.
func (p *Plane) nextBuild(ctx context.Context) (platform.Deployment, bool) {
	unfinished, err := p.Store.Unfinished(ctx)
	if err != nil {
		p.logFailure("reading unfinished deployments", err)
		return platform.Deployment{}, false
	}
	for _, d := range unfinished {
		if d.Status == platform.Building && p.occupy(d.ID) {
			return d, true
		}
	}
	d, ok, err := p.Store.ClaimBuild(ctx)
	if err != nil {
		p.logFailure("claiming a build", err)
		return platform.Deployment{}, false
	}
	if !ok {
		return platform.Deployment{}, false
	}
	return d, p.occupy(d.ID)
}

// occupy marks the deployment as worked on by this process; false if it is
// already. The placeholder is replaced by the build's own cancel.
func (p *Plane) occupy(id platform.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.builds[id]; taken {
		return false
	}
	p.builds[id] = func(error) {}
	return true
}

func (p *Plane) release(id platform.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.builds, id)
}

// logFailure logs what an operator should know; that something was ended is no
// failure.
func (p *Plane) logFailure(doing string, err error) {
	if p.ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		p.Log.Error(doing+" failed", "error", err)
	}
}

// build makes or fetches the image of one deployment and hands it on as
// starting. Whatever goes wrong ends in failed or canceled, unless the term
// ends: then the row stays building and is built again.
func (p *Plane) build(term context.Context, d platform.Deployment) {
	ctx, cancel := context.WithCancelCause(term)
	p.mu.Lock()
	p.builds[d.ID] = cancel
	p.mu.Unlock()
	defer func() {
		cancel(nil)
		p.release(d.ID)
		p.wake(d.ServiceID)
		p.topics.publish(d.ID)
		p.kickBuilder()
	}()
	// Between the claim and the lines above a cancel may have come, or another
	// worker may have finished it.
	row, err := p.Store.Deployment(ctx, d.ID)
	if err != nil {
		if !p.movedOn("reading the deployment to build", err) {
			sleep(term, time.Second)
		}
		return
	}
	if d = row; d.Status != platform.Building {
		return
	}
	if d.CancelRequested {
		cancel(errCanceled)
	}

	name, limit := "build", p.BuildTimeout
	if d.Source.Type != platform.SourceUpload {
		name, limit = "pull", p.PullTimeout
	}
	d.Phases = []platform.Phase{{Name: name, StartedAt: time.Now().UTC()}}
	if err := p.Store.SavePhases(term, d.ID, d.Phases); err != nil {
		p.movedOn("saving phases", err)
	}
	p.topics.publish(d.ID, d.ServiceID)
	ctx, stop := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer stop()

	artifact, err := p.image(ctx, d)
	if term.Err() != nil {
		return
	}
	var settled bool
	switch cause := context.Cause(ctx); {
	case err == nil:
		settled = p.imageReady(term, d, artifact)
	case errors.Is(cause, errCanceled):
		settled = p.end(term, d, platform.Building, platform.Canceled, &platform.DeploymentError{Code: platform.CodeCanceled, Message: "The deployment was canceled."})
	case errors.Is(cause, errTimeout):
		code := platform.CodeBuildTimeout
		if name == "pull" {
			code = platform.CodePullTimeout
		}
		settled = p.end(term, d, platform.Building, platform.Failed, &platform.DeploymentError{Code: code, Message: fmt.Sprintf(
			"The %s was ended after %s, its time limit. See the last lines of the log for what it was waiting for.", name, limit), Evidence: p.logTail(d.ID)})
	default:
		settled = p.end(term, d, platform.Building, platform.Failed, buildError(err, p.logTail(d.ID)))
		if platform.KindOf(err) == platform.Internal {
			p.Log.Error("a build failed for an internal reason", "deployment", d.ID, "error", err)
		}
	}
	if !settled {
		sleep(term, time.Second) // it will be built again
	}
}

func buildError(err error, evidence *platform.Evidence) *platform.DeploymentError {
	if e, ok := errors.AsType[*platform.Error](err); ok {
		return &platform.DeploymentError{Code: e.Code, Message: e.Message, Evidence: evidence}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return &platform.DeploymentError{Code: platform.CodeDiskFull, Message: "The disk is full. Free space on the data directory's disk and deploy again.", Evidence: evidence}
	}
	return &platform.DeploymentError{Code: platform.CodeBuildFailed, Message: "The image could not be made for an internal reason; the server's log has it under this deployment's id.", Evidence: evidence}
}

// logTail is the evidence of a failed build: its own last lines.
func (p *Plane) logTail(id platform.ID) *platform.Evidence {
	lines := p.readTail(deploymentLog(id), "")
	if len(lines) == 0 {
		return nil
	}
	return &platform.Evidence{LogTail: texts(lines)}
}

// imageReady hands the deployment on. False: it could not be recorded.
func (p *Plane) imageReady(ctx context.Context, d platform.Deployment, artifact platform.Artifact) bool {
	now := time.Now().UTC()
	_, err := p.Store.Advance(ctx, d.ID, platform.Building, platform.Starting, func(row *platform.Deployment) {
		row.Artifact = &artifact
		row.Phases = append(endPhases(d.Phases, now), platform.Phase{Name: "start", StartedAt: now})
	})
	if err != nil {
		return p.movedOn("recording the image", err)
	}
	p.say(d.ID, "image %s ready (%s, %s)", artifact.Image, short(artifact.Digest), megabytes(artifact.SizeBytes))
	if err := p.dropUpload(ctx, d); err != nil {
		p.logFailure("dropping an upload", err)
	}
	return true
}

// movedOn tells whether a change failed because the deployment is in another
// state by now, or was deleted with its service.
func (p *Plane) movedOn(doing string, err error) bool {
	if kind := platform.KindOf(err); kind == platform.NotFound || kind == platform.Conflict {
		return true
	}
	p.logFailure(doing, err)
	return false
}

// image builds or pulls, writing progress into the deployment's log.
func (p *Plane) image(ctx context.Context, d platform.Deployment) (platform.Artifact, error) {
	service, err := p.Store.Service(ctx, d.ServiceID)
	if err != nil {
		return platform.Artifact{}, err
	}
	project, err := p.Store.Project(ctx, service.ProjectID)
	if err != nil {
		return platform.Artifact{}, err
	}
	if err := p.CheckReserve(); err != nil {
		return platform.Artifact{}, err
	}
	log := p.Logs.Writer(deploymentLog(d.ID), platform.StreamStdout, p.redactor(d).String)
	defer log.Close()
	tag := imageTag(project.Name, service.Name, d.Number)

	switch d.Source.Type {
	case platform.SourceExternalImage:
		p.say(d.ID, "pulling %s", d.Source.Image)
		artifact, err := p.pullExternal(ctx, project, d.Source.Image, tag, log)
		artifact.Source = &platform.ArtifactSource{Type: d.Source.Type, Image: d.Source.Image}
		return artifact, err
	case platform.SourcePush:
		p.say(d.ID, "pulling what was pushed, %s", d.Source.Image)
		artifact, err := p.pullOwn(ctx, service.ID, d.Source.Digest, tag, log)
		artifact.Source = &platform.ArtifactSource{Type: d.Source.Type, Image: d.Source.Image}
		return artifact, err
	}

	upload, err := p.Store.Upload(ctx, d.Source.UploadID)
	if err != nil {
		return platform.Artifact{}, platform.Wrap(err, platform.Invalid, platform.CodeUploadMissing, "The uploaded build context is gone. Upload it again and deploy that.")
	}
	dir := filepath.Join(p.buildsDir(), string(d.ID))
	if err := os.RemoveAll(dir); err != nil {
		return platform.Artifact{}, fmt.Errorf("clearing the build directory: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			p.Log.Error("removing a build directory failed", "deployment", d.ID, "error", err)
		}
	}()
	p.say(d.ID, "unpacking the build context (%s)", megabytes(upload.SizeBytes))
	if err := p.Unpack(ctx, p.UploadPath(upload.ID), dir); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = platform.Wrap(err, platform.Invalid, platform.CodeUploadMissing, "The uploaded build context is gone. Upload it again and deploy that.")
		}
		return platform.Artifact{}, err
	}
	contextDir, err := inside(dir, d.Source.Context)
	if err != nil {
		return platform.Artifact{}, err
	}
	build := platform.Build{ContextDir: contextDir, Dockerfile: d.Source.Dockerfile, Tag: tag, Scope: project.ID}
	if build.Dockerfile == "" {
		build.Dockerfile = "Dockerfile"
	}
	if o := d.Source.Build; o != nil {
		build.Args, build.Target, build.Secrets = o.Args, o.Target, o.Secrets
	}
	p.say(d.ID, "building %s", build.Dockerfile)
	artifact, err := p.Images.Build(ctx, build, log)
	artifact.Source = &platform.ArtifactSource{Type: d.Source.Type, UploadDigest: upload.Digest}
	return artifact, err
}

// inside resolves a sub-directory of an unpacked context, links included, and
// refuses one that is not there or leads out.
func inside(dir, sub string) (string, error) {
	missing := platform.Errorf(platform.Invalid, platform.CodeContextMissing, "There is no directory %q in the upload: set source.context to one, or leave it out.", sub)
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("resolving the build directory: %w", err)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(root, filepath.FromSlash(sub)))
	if err != nil {
		return "", missing
	}
	if path != root && !strings.HasPrefix(path, root+string(filepath.Separator)) {
		return "", missing
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return "", missing
	}
	return path, nil
}

// redactor hides the deployment's secrets in everything that is logged.
func (p *Plane) redactor(d platform.Deployment) *secret.Redactor {
	var values []string
	if d.Source.Build != nil {
		for _, v := range d.Source.Build.Secrets {
			values = append(values, v)
		}
	}
	if d.Config != nil {
		for _, v := range d.Config.SecretEnv {
			values = append(values, v)
		}
	}
	return secret.NewRedactor(values)
}

// CheckReserve refuses work that would fill the data directory's disk, with
// disk_full and the numbers, and has the registry's cache make room for the
// next.
func (p *Plane) CheckReserve() error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(p.DataDir, &fs); err != nil {
		return fmt.Errorf("reading the free space: %w", err)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	if free < p.DiskReserve {
		p.Registry.MakeRoom(p.DiskReserve - free)
		return platform.Errorf(platform.Unavailable, platform.CodeDiskFull,
			"The data directory's disk has %s free and keeps a reserve of %s. Free space there and try again.", megabytes(free), megabytes(p.DiskReserve))
	}
	return nil
}

// dropUpload removes the bytes of a used upload, then its row.
func (p *Plane) dropUpload(ctx context.Context, d platform.Deployment) error {
	if d.Source.UploadID == "" {
		return nil
	}
	if err := os.Remove(p.UploadPath(d.Source.UploadID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the upload: %w", err)
	}
	return p.Store.DeleteUpload(ctx, d.Source.UploadID)
}

// end finishes a deployment without success. False: it could not be recorded.
func (p *Plane) end(ctx context.Context, d platform.Deployment, from, to platform.Status, cause *platform.DeploymentError) bool {
	redact := p.redactor(d)
	cause.Message = sentence(redact.String(cause.Message))
	if cause.Evidence != nil {
		for i, line := range cause.Evidence.LogTail {
			cause.Evidence.LogTail[i] = redact.String(line)
		}
		cause.Evidence.LastProbe = redact.String(cause.Evidence.LastProbe)
	}
	now := time.Now().UTC()
	_, err := p.Store.Advance(ctx, d.ID, from, to, func(row *platform.Deployment) {
		row.Error = cause
		row.Phases = endPhases(row.Phases, now)
	})
	if err != nil {
		return p.movedOn("ending a deployment", err)
	}
	p.say(d.ID, "%s: %s", to, cause.Message)
	p.finishLog(d.ID)
	if err := p.dropUpload(ctx, d); err != nil {
		p.logFailure("dropping an upload", err)
	}
	p.topics.publish(d.ID, d.ServiceID)
	p.kickBuilder()
	return true
}

// sentence makes a message begin and end as one: some come from below, where
// they are fragments.
func sentence(message string) string {
	first, size := utf8.DecodeRuneInString(message)
	message = string(unicode.ToUpper(first)) + message[size:]
	if !strings.HasSuffix(message, ".") {
		message += "."
	}
	return message
}

func endPhases(phases []platform.Phase, now time.Time) []platform.Phase {
	ended := slices.Clone(phases)
	for i := range ended {
		if ended[i].FinishedAt == nil {
			ended[i].FinishedAt = &now
		}
	}
	return ended
}

func imageTag(project, service string, number int) string {
	return fmt.Sprintf("denia/%s/%s:%d", project, service, number)
}

func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19]
	}
	return digest
}

func megabytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
