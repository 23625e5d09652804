package api

import (
	"context"
	"errors"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// Registry is what the API asks of the hosted registry. Methods are called
// concurrently.
type Registry interface {
	// Repositories lists the repositories with one of the keys, or below one
	// of them, by key; see platform.RepositoryKey.
	Repositories(ctx context.Context, keys []string) ([]oci.Repository, error)

	// Status counts what the registry holds, CacheStatus what its cache does.
	Status(ctx context.Context) (registry.Status, error)
	CacheStatus(ctx context.Context) (registry.CacheStatus, error)

	// Collect deletes what nobody needs, or with dryRun tells what that would
	// be; CacheCollect gives up what was used least lately. One run of each at
	// a time: registry.ErrCollecting.
	Collect(ctx context.Context, dryRun bool) (registry.Collection, error)
	CacheCollect(ctx context.Context) (registry.CacheCollection, error)
}

type repository struct {
	ProjectID  platform.ID     `json:"project_id"`
	ServiceID  platform.ID     `json:"service_id"`
	Repository string          `json:"repository" doc:"<project>/<service>, and what is below it."`
	SizeBytes  int64           `json:"size_bytes" doc:"Of all it needs, each blob once."`
	Tags       []repositoryTag `json:"tags"`
}

type repositoryTag struct {
	Tag       string    `json:"tag"`
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"size_bytes" doc:"Of the manifest and all it needs, each blob once."`
	PushedAt  timestamp `json:"pushed_at"`
	Platforms []string  `json:"platforms" doc:"As far as the manifest says, e.g. linux/amd64."`
}

// listRepositories goes by services: that is what a caller may see or not.
func (a *API) listRepositories(ctx context.Context, in *servicesInput) (*listing[repository], error) {
	c := callFrom(ctx)
	filter, err := a.servicesSeen(ctx, c, in.ProjectID)
	if err != nil {
		return nil, err
	}
	page := in.page()
	for {
		services, next, err := a.Store.Services(ctx, filter, page)
		if err != nil {
			return nil, err
		}
		found, err := a.repositoriesOf(ctx, services)
		if err != nil {
			return nil, err
		}
		// Most services have none: no page is empty but the last.
		if len(found) > 0 || next == "" {
			return listed(c, found, next, func(r repository) repository { return r }), nil
		}
		page.Cursor = next
	}
}

// repositoriesOf lists the repositories of the services, in their order.
func (a *API) repositoriesOf(ctx context.Context, services []platform.Service) ([]repository, error) {
	if len(services) == 0 {
		return nil, nil
	}
	keys := make([]string, len(services))
	for i, s := range services {
		keys[i] = platform.RepositoryKey(s.ID)
	}
	rows, err := a.Registry.Repositories(ctx, keys)
	if err != nil {
		return nil, err
	}
	of := map[platform.ID][]oci.Repository{}
	for _, row := range rows {
		if service, _, ok := platform.ParseRepositoryKey(row.Key); ok {
			of[service] = append(of[service], row)
		}
	}
	names, err := a.projectNames(ctx, services)
	if err != nil {
		return nil, err
	}
	var found []repository
	for _, s := range services {
		for _, row := range of[s.ID] {
			r := repository{
				ProjectID: s.ProjectID, ServiceID: s.ID, Repository: names[s.ProjectID] + "/" + s.Name,
				SizeBytes: row.SizeBytes, Tags: make([]repositoryTag, len(row.Tags)),
			}
			if _, below, _ := platform.ParseRepositoryKey(row.Key); below != "" {
				r.Repository += "/" + below
			}
			for i, t := range row.Tags {
				r.Tags[i] = repositoryTag{t.Name, t.Digest.String(), t.SizeBytes, timestamp{t.PushedAt}, emptyNotNull(t.Platforms)}
			}
			found = append(found, r)
		}
	}
	return found, nil
}

type registryStatus struct {
	Repositories      int                 `json:"repositories"`
	Manifests         int                 `json:"manifests"`
	Blobs             int                 `json:"blobs"`
	LogicalBytes      int64               `json:"logical_bytes" doc:"Each blob once for every repository that has it."`
	PhysicalBytes     int64               `json:"physical_bytes" doc:"Each blob once."`
	UploadsInProgress int                 `json:"uploads_in_progress"`
	Disk              nodeDisk            `json:"disk" doc:"Where the blobs are."`
	GCRunning         bool                `json:"gc_running"`
	LastGC            *registryCollection `json:"last_gc" doc:"The last run that found something to do, or was asked for; null: none since Denia started."`
}

type registryCollection struct {
	StartedAt        timestamp  `json:"started_at"`
	FinishedAt       *timestamp `json:"finished_at" nullable:"true" doc:"null: it goes on; GET /v1/registry/status tells the end."`
	DryRun           bool       `json:"dry_run" doc:"Nothing was deleted: the figures are what would be."`
	Scanned          int        `json:"scanned" doc:"Manifests, links and blobs that were looked at."`
	DeletedManifests int        `json:"deleted_manifests"`
	DeletedBlobs     int        `json:"deleted_blobs"`
	DeletedUploads   int        `json:"deleted_uploads" doc:"Nobody wrote to them any more."`
	DeletedBytes     int64      `json:"deleted_bytes" doc:"Freed on disk."`
	Error            *string    `json:"error" doc:"null when all went well."`
}

func collectionView(run registry.Collection) registryCollection {
	return registryCollection{
		StartedAt: timestamp{run.StartedAt}, FinishedAt: finished(run.FinishedAt), DryRun: run.DryRun, Scanned: run.Scanned,
		DeletedManifests: run.Manifests, DeletedBlobs: run.Blobs, DeletedUploads: run.Uploads, DeletedBytes: run.Bytes, Error: trouble(run.Err),
	}
}

func finished(at time.Time) *timestamp {
	if at.IsZero() {
		return nil
	}
	return &timestamp{at}
}

// trouble says of a run that something failed. What it was may name paths and
// hosts: that is for the log.
func trouble(err error) *string {
	if err == nil {
		return nil
	}
	text := "something failed and is tried again; Denia's log says what"
	return &text
}

func (a *API) registryStatus(ctx context.Context, _ *nothing) (*object[registryStatus], error) {
	s, err := a.Registry.Status(ctx)
	if err != nil {
		return nil, err
	}
	v := registryStatus{
		Repositories: s.Repositories, Manifests: s.Manifests, Blobs: s.Blobs, LogicalBytes: s.LogicalBytes, PhysicalBytes: s.PhysicalBytes,
		UploadsInProgress: s.Uploads, Disk: a.disk(ctx), GCRunning: s.Collecting != nil,
	}
	if s.LastCollection != nil {
		last := collectionView(*s.LastCollection)
		v.LastGC = &last
	}
	return &object[registryStatus]{Body: v}, nil
}

type collectInput struct {
	DryRun bool `query:"dry_run" doc:"Only tell what would be deleted."`
}

// collectRegistry has the registry collected. It answers with the whole run
// when that is soon over, else with its beginning.
func (a *API) collectRegistry(ctx context.Context, in *collectInput) (*object[registryCollection], error) {
	return run(a, ctx, func(ctx context.Context) (registryCollection, error) {
		run, err := a.Registry.Collect(ctx, in.DryRun)
		if !run.StartedAt.IsZero() {
			err = nil // the run tells
		}
		return collectionView(run), err
	}, func(began time.Time) registryCollection {
		return registryCollection{StartedAt: timestamp{began}, DryRun: in.DryRun}
	})
}

type cacheStatus struct {
	Entries         int              `json:"entries" doc:"Manifests."`
	TotalBytes      int64            `json:"total_bytes" doc:"Each blob once."`
	Hits            int64            `json:"hits" doc:"Answered from what was there, since Denia started."`
	Misses          int64            `json:"misses" doc:"Fetched from the other registry."`
	BytesSaved      int64            `json:"bytes_saved" doc:"Not fetched, thanks to hits."`
	OldestEntryAgeS int64            `json:"oldest_entry_age_s" doc:"How long ago what was used least lately was used."`
	LastGC          *cacheCollection `json:"last_gc" doc:"null: none since Denia started."`
}

type cacheCollection struct {
	StartedAt      timestamp  `json:"started_at"`
	FinishedAt     *timestamp `json:"finished_at" nullable:"true" doc:"null: it goes on; GET /v1/oci/cache/status tells the end."`
	DeletedEntries int        `json:"deleted_entries"`
	DeletedBytes   int64      `json:"deleted_bytes" doc:"Of blobs nothing in the cache needs any more; the registry's collection frees them."`
	LeftBytes      int64      `json:"left_bytes"`
	Error          *string    `json:"error" doc:"null when all went well."`
}

func cacheCollectionView(run registry.CacheCollection) cacheCollection {
	return cacheCollection{timestamp{run.StartedAt}, finished(run.FinishedAt), run.Manifests, run.Bytes, run.Left, trouble(run.Err)}
}

func (a *API) cacheStatus(ctx context.Context, _ *nothing) (*object[cacheStatus], error) {
	s, err := a.Registry.CacheStatus(ctx)
	if err != nil {
		return nil, err
	}
	v := cacheStatus{
		Entries: s.Entries, TotalBytes: s.TotalBytes, Hits: s.Hits, Misses: s.Misses, BytesSaved: s.BytesSaved,
		OldestEntryAgeS: int64(s.OldestEntryAge.Seconds()),
	}
	if s.LastCollection != nil {
		last := cacheCollectionView(*s.LastCollection)
		v.LastGC = &last
	}
	return &object[cacheStatus]{Body: v}, nil
}

// collectCache has the cache brought below its budget; see collectRegistry.
func (a *API) collectCache(ctx context.Context, _ *nothing) (*object[cacheCollection], error) {
	return run(a, ctx, func(ctx context.Context) (cacheCollection, error) {
		run, err := a.Registry.CacheCollect(ctx)
		if !run.StartedAt.IsZero() {
			err = nil // the run tells
		}
		return cacheCollectionView(run), err
	}, func(began time.Time) cacheCollection {
		return cacheCollection{StartedAt: timestamp{began}}
	})
}

// runPatience is how long a client waits for the end of a run.
const runPatience = 10 * time.Second

// run starts work that goes on when the client leaves, and ends with the API.
// It returns what came of it, or after runPatience that it began.
func run[T any](a *API, ctx context.Context, work func(context.Context) (T, error), began func(time.Time) T) (*object[T], error) {
	type result struct {
		out T
		err error
	}
	start, done := time.Now(), make(chan result, 1)
	if !a.beside(ctx, func(ctx context.Context) {
		out, err := work(ctx)
		done <- result{out, err}
	}) {
		return nil, platform.Errorf(platform.Unavailable, "draining", "Denia is shutting down: try again in a moment")
	}
	timer := time.NewTimer(runPatience)
	defer timer.Stop()
	select {
	case r := <-done:
		if errors.Is(r.err, registry.ErrCollecting) {
			return nil, platform.Errorf(platform.Conflict, "gc_running", "a run is under way: wait for its end, which the status tells")
		}
		return &object[T]{Body: r.out}, r.err
	case <-timer.C:
		return &object[T]{Body: began(start)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// beside runs work beside the request: its context ends with the API, which
// waits for it, and not with the request. False: the API is closed.
func (a *API) beside(ctx context.Context, work func(context.Context)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a.streams.Go(func() {
		select {
		case <-a.closing:
			cancel()
		case <-ctx.Done():
		}
	})
	a.streams.Go(func() {
		defer cancel()
		work(ctx)
	})
	return true
}
