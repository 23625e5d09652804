package control

import (
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

// janitor removes what no row explains: at the start, each minute and, the
// slow things, each hour. It touches only what carries Denia's own labels or
// lies in its own directories.
func (p *Plane) janitor() {
	defer p.wg.Done()
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for minute := 0; ; minute++ {
		p.sweep("replicas and networks", p.sweepRuntime)
		p.sweep("uploads", p.sweepUploads)
		if minute%60 == 0 {
			p.sweep("files", p.sweepFiles)
			p.sweep("images", p.sweepImages)
			p.sweep("rows", p.sweepRows)
		}
		select {
		case <-p.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *Plane) sweep(what string, run func() error) {
	if err := run(); err != nil {
		p.logFailure("sweeping "+what, err)
	}
}

// sweepRuntime gives each service that exists only in the runtime a
// supervisor, which removes it, and removes networks without a project or
// without services.
func (p *Plane) sweepRuntime() error {
	projects, err := p.Runtime.Projects(p.ctx)
	if err != nil {
		return fmt.Errorf("listing projects: %w", err)
	}
	replicas, err := p.Runtime.Replicas(p.ctx, "")
	if err != nil {
		return fmt.Errorf("listing replicas: %w", err)
	}
	for _, r := range replicas {
		p.supervise(r.ServiceID)
	}
	// Rows are read after the runtime: a service made in between is not
	// mistaken for a leftover.
	refs, err := p.Store.AllServices(p.ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	used := map[platform.ID]bool{}
	for _, ref := range refs {
		used[ref.ProjectID] = true
	}
	for _, project := range projects {
		if used[project] {
			continue
		}
		if err := p.Runtime.RemoveProject(p.ctx, project); err != nil && platform.KindOf(err) != platform.Conflict {
			return fmt.Errorf("removing the network of project %s: %w", project, err)
		}
	}
	return nil
}

// sweepUploads removes uploads that expired or whose deployment has ended, and
// files without a row.
func (p *Plane) sweepUploads() error {
	expired, err := p.Store.ExpiredUploads(p.ctx, time.Now())
	if err != nil {
		return fmt.Errorf("reading expired uploads: %w", err)
	}
	for _, u := range expired {
		if err := p.dropUpload(platform.Deployment{Source: platform.Source{UploadID: u.ID}}); err != nil {
			return err
		}
	}
	return nil
}

// sweepFiles removes files of uploads, builds and logs that no row explains.
// Files are listed before the rows are read; an upload being received has no
// row yet, so young files are left alone.
func (p *Plane) sweepFiles() error {
	uploads, err := os.ReadDir(p.uploadsDir())
	if err != nil {
		return fmt.Errorf("listing uploads: %w", err)
	}
	builds, err := os.ReadDir(p.buildsDir())
	if err != nil {
		return fmt.Errorf("listing builds: %w", err)
	}
	ids, err := p.Store.UploadIDs(p.ctx)
	if err != nil {
		return fmt.Errorf("reading uploads: %w", err)
	}
	known := map[string]bool{}
	for _, id := range ids {
		known[string(id)] = true
	}
	for _, entry := range uploads {
		info, err := entry.Info()
		if err != nil || known[entry.Name()] || time.Since(info.ModTime()) < 2*time.Hour {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.uploadsDir(), entry.Name())); err != nil {
			return fmt.Errorf("removing an upload: %w", err)
		}
	}
	for _, entry := range builds {
		p.mu.Lock()
		_, busy := p.builds[platform.ID(entry.Name())]
		p.mu.Unlock()
		if busy {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.buildsDir(), entry.Name())); err != nil {
			return fmt.Errorf("removing a build directory: %w", err)
		}
	}
	return p.sweepLogs()
}

func (p *Plane) sweepLogs() error {
	keys, err := p.Logs.Keys("")
	if err != nil {
		return fmt.Errorf("listing logs: %w", err)
	}
	for _, key := range keys {
		kind, id, _ := strings.Cut(key, "/")
		var err error
		switch kind {
		case "services":
			_, err = p.Store.Service(p.ctx, platform.ID(id))
		case "deployments":
			_, err = p.Store.Deployment(p.ctx, platform.ID(id))
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

// sweepImages takes away the tags that no release within retention explains.
// What is active or unfinished is always kept. Tags are listed before the rows
// are read: one made in between is not mistaken for a leftover.
func (p *Plane) sweepImages() error {
	tags, err := p.Images.Tags(p.ctx)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	refs, err := p.Store.AllServices(p.ctx)
	if err != nil {
		return fmt.Errorf("reading the services: %w", err)
	}
	keep := map[string]bool{}
	for _, ref := range refs {
		if err := p.keepTags(ref, keep); err != nil {
			return err
		}
	}
	for _, tag := range tags {
		if keep[tag] {
			continue
		}
		if err := p.Images.Remove(p.ctx, tag); err != nil && platform.KindOf(err) != platform.Conflict {
			return fmt.Errorf("removing image %s: %w", tag, err)
		}
	}
	return nil
}

// keepTags adds the tags that a service still needs.
func (p *Plane) keepTags(ref store.ServiceRef, keep map[string]bool) error {
	kept, err := p.Store.HealthyHistory(p.ctx, ref.ID, p.KeepReleases)
	if err != nil {
		return fmt.Errorf("reading past releases: %w", err)
	}
	unfinished, err := p.Store.UnfinishedOf(p.ctx, ref.ID)
	if err != nil {
		return fmt.Errorf("reading unfinished deployments: %w", err)
	}
	kept = append(kept, unfinished...)
	if ref.ActiveDeploymentID != "" {
		active, err := p.Store.Deployment(p.ctx, ref.ActiveDeploymentID)
		if err != nil {
			return fmt.Errorf("reading the active deployment: %w", err)
		}
		kept = append(kept, active)
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
func (p *Plane) sweepRows() error {
	now := time.Now()
	if err := p.Store.DeleteExpiredTokens(p.ctx, now); err != nil {
		return fmt.Errorf("deleting expired tokens: %w", err)
	}
	if err := p.Store.TrimIdempotency(p.ctx, now.Add(-replyKept)); err != nil {
		return fmt.Errorf("trimming stored replies: %w", err)
	}
	if err := p.Store.TrimAudit(p.ctx, now.Add(-auditKept)); err != nil {
		return fmt.Errorf("trimming the audit: %w", err)
	}
	return nil
}
