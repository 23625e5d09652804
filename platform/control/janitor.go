package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

const (
	auditKept = 365 * 24 * time.Hour
	replyKept = 24 * time.Hour // idempotency keys
)

// janitor removes what no row explains: at the start, each minute and, the slow
// things, each hour. It touches only what carries Denia's own labels or lies in
// its own directories.
func (p *Plane) janitor(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for minute := 0; ; minute++ {
		p.sweep(ctx, "replicas and networks", p.sweepRuntime)
		p.sweep(ctx, "uploads", p.sweepUploads)
		if minute%60 == 0 {
			p.sweep(ctx, "files", p.sweepFiles)
			p.sweep(ctx, "images", p.sweepImages)
			p.sweep(ctx, "release copies", p.wantCopies)
			p.sweep(ctx, "rows", p.sweepRows)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *Plane) sweep(ctx context.Context, what string, run func(context.Context) error) {
	if err := run(ctx); err != nil {
		p.logFailure("sweeping "+what, err)
	}
}

// sweepRuntime gives each service a supervisor, those too that exist only in
// the runtime: it removes them. Networks without a project or without services
// go.
func (p *Plane) sweepRuntime(ctx context.Context) error {
	projects, err := p.Runtime.Projects(ctx)
	if err != nil {
		return fmt.Errorf("listing projects: %w", err)
	}
	replicas, err := p.Runtime.Replicas(ctx, "")
	if err != nil {
		return fmt.Errorf("listing replicas: %w", err)
	}
	for _, r := range replicas {
		p.supervise(r.ServiceID)
	}
	// Rows are read after the runtime: a service made in between is not
	// mistaken for a leftover.
	refs, err := p.Store.AllServices(ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	used := map[platform.ID]bool{}
	for _, ref := range refs {
		used[ref.ProjectID] = true
		p.supervise(ref.ID)
	}
	for _, project := range projects {
		if used[project] {
			continue
		}
		if err := p.Runtime.RemoveProject(ctx, project); err != nil && platform.KindOf(err) != platform.Conflict {
			return fmt.Errorf("removing the network of project %s: %w", project, err)
		}
	}
	return nil
}

// sweepUploads removes uploads that expired or whose deployment has ended, and
// files without a row.
func (p *Plane) sweepUploads(ctx context.Context) error {
	expired, err := p.Store.ExpiredUploads(ctx, time.Now())
	if err != nil {
		return fmt.Errorf("reading expired uploads: %w", err)
	}
	for _, u := range expired {
		if err := p.dropUpload(ctx, platform.Deployment{Source: platform.Source{UploadID: u.ID}}); err != nil {
			return err
		}
	}
	return nil
}

// sweepFiles removes files of uploads, builds and logs that no row explains.
func (p *Plane) sweepFiles(ctx context.Context) error {
	// An upload being received has no row yet: young files are left alone.
	if err := p.sweepUploadFiles(ctx, 2*time.Hour); err != nil {
		return err
	}
	builds, err := os.ReadDir(p.buildsDir())
	if err != nil {
		return fmt.Errorf("listing builds: %w", err)
	}
	for _, entry := range builds {
		if err := p.dropBuild(platform.ID(entry.Name())); err != nil {
			return fmt.Errorf("removing a build directory: %w", err)
		}
	}
	return p.sweepLogs(ctx)
}

// sweepUploadFiles removes the files of uploads that have no row and are that
// old. Files are listed before the rows are read.
func (p *Plane) sweepUploadFiles(ctx context.Context, age time.Duration) error {
	uploads, err := os.ReadDir(p.uploadsDir())
	if err != nil {
		return fmt.Errorf("listing uploads: %w", err)
	}
	ids, err := p.Store.UploadIDs(ctx)
	if err != nil {
		return fmt.Errorf("reading uploads: %w", err)
	}
	known := map[string]bool{}
	for _, id := range ids {
		known[string(id)] = true
	}
	for _, entry := range uploads {
		info, err := entry.Info()
		if err != nil || known[entry.Name()] || time.Since(info.ModTime()) < age {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.uploadsDir(), entry.Name())); err != nil {
			return fmt.Errorf("removing an upload: %w", err)
		}
	}
	return nil
}

// dropBuild removes a build directory nobody works in. It owns the deployment
// meanwhile: a build that begins now waits rather than lose its files.
func (p *Plane) dropBuild(id platform.ID) error {
	if !p.occupy(id) {
		return nil
	}
	defer p.kickBuilder()
	defer p.release(id)
	return os.RemoveAll(filepath.Join(p.buildsDir(), string(id)))
}

func (p *Plane) sweepLogs(ctx context.Context) error {
	keys, err := p.Logs.Keys("")
	if err != nil {
		return fmt.Errorf("listing logs: %w", err)
	}
	for _, key := range keys {
		kind, id, _ := strings.Cut(key, "/")
		var err error
		switch kind {
		case "services", "requests":
			_, err = p.Store.Service(ctx, platform.ID(id))
		case "deployments":
			_, err = p.Store.Deployment(ctx, platform.ID(id))
		}
		if platform.KindOf(err) != platform.NotFound {
			continue
		}
		if err := p.Logs.Remove(key); err != nil {
			return fmt.Errorf("removing a log: %w", err)
		}
	}
	return nil
}

// sweepImages takes away the tags that no release within retention explains,
// in the engine and in Denia's own registry, where the manifest is collected
// once nothing else needs it. What is active or unfinished is always kept. Tags are listed before the rows
// are read: one made in between is not mistaken for a leftover.
func (p *Plane) sweepImages(ctx context.Context) error {
	tags, err := p.Images.Tags(ctx)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	refs, err := p.Store.AllServices(ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	keep := map[string]bool{}
	var errs []error
	for _, ref := range refs {
		copied, err := p.Registry.Tags(ctx, ref.ID)
		if err != nil {
			return fmt.Errorf("listing the copies of releases: %w", err)
		}
		if err := p.keepTags(ctx, ref, keep); err != nil {
			return err
		}
		for _, tag := range copied {
			n, ours := platform.ParseReleaseTag(tag)
			if !ours || keep[imageTag(ref.ProjectName, ref.Name, n)] {
				continue
			}
			if err := p.Registry.Untag(ctx, ref.ID, tag); err != nil {
				errs = append(errs, fmt.Errorf("removing the copy of release %d of %s: %w", n, ref.Name, err))
			}
		}
	}
	for _, tag := range tags {
		if keep[tag] {
			continue
		}
		if err := p.Images.Remove(ctx, tag); err != nil && platform.KindOf(err) != platform.Conflict {
			errs = append(errs, fmt.Errorf("removing image %s: %w", tag, err))
		}
	}
	return errors.Join(errs...)
}

// keepTags adds the tags that a service still needs.
func (p *Plane) keepTags(ctx context.Context, ref store.ServiceRef, keep map[string]bool) error {
	kept, err := p.kept(ctx, ref.ID, ref.ActiveDeploymentID)
	if err != nil {
		return err
	}
	for _, d := range kept {
		keep[imageTag(ref.ProjectName, ref.Name, d.Number)] = true
		if d.Artifact != nil {
			keep[d.Artifact.Image] = true
		}
	}
	return nil
}

// sweepRows forgets what has had its time.
func (p *Plane) sweepRows(ctx context.Context) error {
	now := time.Now()
	if err := p.Store.DeleteExpiredTokens(ctx, now); err != nil {
		return fmt.Errorf("deleting expired tokens: %w", err)
	}
	if err := p.Store.TrimIdempotency(ctx, now.Add(-replyKept)); err != nil {
		return fmt.Errorf("trimming stored replies: %w", err)
	}
	if err := p.Store.TrimAudit(ctx, now.Add(-auditKept)); err != nil {
		return fmt.Errorf("trimming the audit: %w", err)
	}
	return nil
}
