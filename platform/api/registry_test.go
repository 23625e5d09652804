package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// fakeRegistry answers what it was told to.
type fakeRegistry struct {
	mu     sync.Mutex
	repos  []oci.Repository
	status registry.Status
	cache  registry.CacheStatus
	run    registry.Collection
	err    error
	hold   chan struct{} // Collect waits for it, or for the end of its context
	ended  error         // how it waited
}

func (f *fakeRegistry) Repositories(_ context.Context, keys []string) (found []oci.Repository, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.repos {
		if slices.ContainsFunc(keys, func(key string) bool { return r.Key == key || strings.HasPrefix(r.Key, key+"/") }) {
			found = append(found, r)
		}
	}
	return found, f.err
}

func (f *fakeRegistry) Status(context.Context) (registry.Status, error) { return f.status, f.err }
func (f *fakeRegistry) CacheStatus(context.Context) (registry.CacheStatus, error) {
	return f.cache, f.err
}

func (f *fakeRegistry) Collect(ctx context.Context, dryRun bool) (registry.Collection, error) {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			f.ended = ctx.Err()
			return registry.Collection{}, ctx.Err()
		}
	}
	run := f.run
	run.DryRun = dryRun
	return run, f.err
}

func (f *fakeRegistry) CacheCollect(context.Context) (registry.CacheCollection, error) {
	if f.err != nil {
		return registry.CacheCollection{}, f.err
	}
	return registry.CacheCollection{StartedAt: f.run.StartedAt, FinishedAt: f.run.FinishedAt, Manifests: 2, Bytes: 30, Left: 4}, nil
}

func TestRepositoriesAreThoseOfServicesTheCallerSees(t *testing.T) {
	e := newEnv(t)
	shop, blog := e.project("shop"), e.project("blog")
	web, empty, other := e.service(shop, "web"), e.service(shop, "empty"), e.service(blog, "web")
	pushed := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	e.hub.repos = []oci.Repository{
		{Key: platform.RepositoryKey(web.ID), SizeBytes: 100, Tags: []oci.Tag{{
			Name: "latest", Digest: digest.FromString("a"), SizeBytes: 90, PushedAt: pushed, Platforms: []string{"linux/amd64"},
		}}},
		{Key: platform.RepositoryKey(web.ID) + "/cache", SizeBytes: 7},
		{Key: platform.RepositoryKey(other.ID), SizeBytes: 1},
	}
	viewer := e.token(e.member(shop, "vera", platform.RoleViewer))
	list := e.do(viewer, "GET", "/v1/registry/repositories", nil).want(200)
	want := fmt.Sprintf(`[{"project_id":%q,"service_id":%q,"repository":"shop/web","size_bytes":100,"tags":[{"tag":"latest","digest":%q,"size_bytes":90,"pushed_at":"2026-05-01T12:00:00.000Z","platforms":["linux/amd64"]}]},`+
		`{"project_id":%q,"service_id":%q,"repository":"shop/web/cache","size_bytes":7,"tags":[]}]`,
		shop.ID, web.ID, digest.FromString("a"), shop.ID, web.ID)
	if got := strings.TrimSpace(string(list.body)); got != want {
		t.Errorf("a viewer sees %s\nwant %s", got, want)
	}
	if got := e.do(e.super(), "GET", "/v1/registry/repositories", nil).want(200).field(); len(got.([]any)) != 3 {
		t.Errorf("a super-admin sees %v", got)
	}
	e.do(viewer, "GET", "/v1/registry/repositories?project_id=blog", nil).want(404)
	if got := e.do(e.super(), "GET", "/v1/registry/repositories?project_id=blog", nil).want(200).str(0, "repository"); got != "blog/web" {
		t.Errorf("of the project blog: %s", got)
	}

	// Page by page the same, though the first service has none.
	var all []string
	for next := "/v1/registry/repositories?limit=1"; next != ""; {
		page := e.do(e.super(), "GET", next, nil).want(200)
		for i := range page.field().([]any) {
			all = append(all, page.str(i, "service_id"))
		}
		link := page.header.Get("Link")
		next, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
	}
	slices.Sort(all)
	if want := []string{string(web.ID), string(web.ID), string(other.ID)}; !slices.Equal(all, want) {
		t.Errorf("in pages: %v, want %v; %s has none", all, want, empty.ID)
	}
}

func TestRegistryStatusAndCollection(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	began := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	first := e.do(token, "GET", "/v1/registry/status", nil).want(200)
	if first.field("last_gc") != nil || first.field("disk", "total_bytes").(float64) == 0 {
		t.Errorf("at first it is %s", first.body)
	}
	last := registry.Collection{StartedAt: began, FinishedAt: began.Add(time.Second), Scanned: 9, Blobs: 2, Bytes: 300, Err: errors.New("/data/registry/ab: permission denied")}
	e.hub.status = registry.Status{
		Totals:  oci.Totals{Repositories: 1, Manifests: 2, Blobs: 3, LogicalBytes: 50, PhysicalBytes: 40},
		Uploads: 4, Collecting: &registry.Collection{}, LastCollection: &last,
	}
	status := e.do(token, "GET", "/v1/registry/status", nil).want(200)
	for field, want := range map[string]any{
		"repositories": 1., "manifests": 2., "blobs": 3., "logical_bytes": 50., "physical_bytes": 40., "uploads_in_progress": 4., "gc_running": true,
	} {
		if got := status.field(field); got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	if status.field("last_gc", "deleted_bytes") != 300. || status.str("last_gc", "started_at") != "2026-05-01T12:00:00.000Z" ||
		status.str("last_gc", "error") == "" || strings.Contains(string(status.body), "/data/registry") {
		t.Errorf("the last collection is %s", status.body)
	}

	e.hub.run = last
	e.hub.run.Err = nil
	if run := e.do(token, "POST", "/v1/registry/gc?dry_run=true", nil).want(202); run.field("dry_run") != true || run.field("deleted_blobs") != 2. || run.field("error") != nil {
		t.Errorf("a dry run answers %s", run.body)
	}
	if run := e.do(token, "POST", "/v1/registry/gc", nil).want(202); run.field("dry_run") != false || run.field("finished_at") == nil {
		t.Errorf("a run answers %s", run.body)
	}
	if run := e.do(token, "POST", "/v1/oci/cache/gc", nil).want(202); run.field("deleted_entries") != 2. || run.field("left_bytes") != 4. {
		t.Errorf("a run of the cache answers %s", run.body)
	}
	e.hub.cache = registry.CacheStatus{Entries: 1, TotalBytes: 2, Hits: 3, Misses: 4, BytesSaved: 5, OldestEntryAge: 90 * time.Second, LastCollection: &registry.CacheCollection{StartedAt: began}}
	cache := e.do(token, "GET", "/v1/oci/cache/status", nil).want(200)
	for field, want := range map[string]any{"entries": 1., "total_bytes": 2., "hits": 3., "misses": 4., "bytes_saved": 5., "oldest_entry_age_s": 90.} {
		if got := cache.field(field); got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	if cache.field("last_gc", "finished_at") != nil {
		t.Errorf("the cache's last collection: %s", cache.body)
	}

	e.hub.run, e.hub.err = registry.Collection{}, registry.ErrCollecting
	e.do(token, "POST", "/v1/registry/gc", nil).want(409, "gc_running")
	e.do(token, "POST", "/v1/oci/cache/gc", nil).want(409, "gc_running")
	e.hub.err = errors.New("the database at 10.0.0.1 is gone")
	if refused := e.do(token, "POST", "/v1/registry/gc", nil).want(500, "internal"); strings.Contains(string(refused.body), "10.0.0.1") {
		t.Errorf("the client is told %s", refused.body)
	}
}

// A run that was begun is not the client's to end; it ends with the API.
func TestCollectionOutlivesItsClient(t *testing.T) {
	e := newEnv(t)
	e.hub.hold = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	r := request(e.super(), "POST", "/v1/registry/gc", nil).WithContext(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		e.api.ServeHTTP(discardWriter{http.Header{}}, r)
	}()
	cancel()
	<-gone
	e.api.Close()
	if e.hub.ended != nil && !errors.Is(e.hub.ended, context.Canceled) {
		t.Errorf("it ended with %v", e.hub.ended)
	}
	e.do(e.super(), "POST", "/v1/registry/gc", nil).want(503, "draining")
}

type discardWriter struct{ header http.Header }

func (w discardWriter) Header() http.Header         { return w.header }
func (w discardWriter) WriteHeader(int)             {}
func (w discardWriter) Write(p []byte) (int, error) { return len(p), nil }
