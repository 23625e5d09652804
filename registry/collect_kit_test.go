package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// yardLease is the lease of a yard's registry, unless a test wants another.
const yardLease = time.Hour

// yard is a registry on a real store and a real disk, with a clock that can be
// moved and a hook at every failpoint. Everybody may do everything; the key of
// a repository is its name.
type yard struct {
	*registry.Registry
	dir   string
	store *store.Store
	disk  *registry.Disk
	wrap  func(registry.Storage) registry.Storage // what the registry gets instead of disk; nil: disk
	log   *yardLog

	ahead atomic.Int64                 // of the clock, nanoseconds
	hook  atomic.Pointer[func(string)] // called at failpoints

	mu   sync.Mutex
	kept map[digest.Digest]bool // what Config.Keep wants

	behind *sql.DB // the same database, to look behind the Store's back
}

func openYard(t testing.TB, o registry.Options) *yard {
	t.Helper()
	y := &yard{dir: t.TempDir(), kept: map[digest.Digest]bool{}}
	if err := y.open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := y.close(); err != nil {
			t.Error(err)
		}
	})
	return y
}

// open opens, or opens again, what is in y.dir.
func (y *yard) open(ctx context.Context, o registry.Options) error {
	y.log = &yardLog{}
	log := slog.New(slog.NewTextHandler(y.log, nil))
	asIs := func(b []byte) ([]byte, error) { return b, nil }
	var err error
	database := filepath.Join(y.dir, "denia.db")
	y.store, err = store.Open(ctx, "sqlite:"+database, store.Options{Log: log, Seal: asIs, Unseal: asIs})
	if err != nil {
		return err
	}
	if y.behind, err = sql.Open("sqlite", "file:"+database+"?_pragma=busy_timeout(10000)"); err != nil {
		return err
	}
	if y.disk, err = registry.NewDisk(filepath.Join(y.dir, "registry")); err != nil {
		return err
	}
	if o.Lease == 0 {
		o.Lease = yardLease
	}
	if o.ScrubBytes == 0 {
		o.ScrubBytes = -1
	}
	o.Now, o.Failpoint = y.now, y.step
	storage := registry.Storage(y.disk)
	if y.wrap != nil {
		storage = y.wrap(y.disk)
	}
	y.Registry, err = registry.Open(ctx, registry.Config{
		Storage:      storage,
		Metadata:     y.store.Registry(),
		Log:          log,
		Authenticate: func(*http.Request, string, string) (string, error) { return "somebody", nil },
		Authorize: func(_ context.Context, _, name string) (registry.Grant, error) {
			return registry.Grant{Repo: name, Pull: true, Push: true, Delete: true}, nil
		},
		OnPush:   func(context.Context, registry.Push) error { return nil },
		OnDelete: func(context.Context, registry.Deletion) error { return nil },
		Reserved: func(string) bool { return false },
		Keep: func(_ context.Context, _ string, d digest.Digest) (bool, error) {
			y.mu.Lock()
			defer y.mu.Unlock()
			return y.kept[d], nil
		},
		TokenKey: make([]byte, 32),
		Options:  o,
	})
	return err
}

func (y *yard) close() error {
	return errors.Join(y.behind.Close(), y.Close(), y.store.Close())
}

func (y *yard) reopen(t testing.TB, o registry.Options) {
	t.Helper()
	if err := errors.Join(y.close(), y.open(t.Context(), o)); err != nil {
		t.Fatal(err)
	}
}

func (y *yard) now() time.Time { return time.Now().Add(time.Duration(y.ahead.Load())) }

// later lets time pass.
func (y *yard) later(d time.Duration) { y.ahead.Add(int64(d)) }

func (y *yard) step(name string) {
	if hook := y.hook.Load(); hook != nil {
		(*hook)(name)
	}
}

// onStep sets what is called at failpoints from now on.
func (y *yard) onStep(hook func(step string)) {
	if hook == nil {
		y.hook.Store(nil)
		return
	}
	y.hook.Store(&hook)
}

func (y *yard) keep(d digest.Digest, needed bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.kept[d] = needed
}

// client talks to the registry without a network in between.
func (y *yard) client() *pusher {
	return &pusher{&http.Client{Transport: inProcess{y.Registry}}, "http://registry"}
}

// collect runs the collector until it finds nothing more to do.
func (y *yard) collect(t testing.TB) (all registry.Collection) {
	t.Helper()
	for {
		run, err := y.Collect(context.Background(), false)
		if err != nil {
			t.Fatalf("collecting: %v", err)
		}
		all.Scanned += run.Scanned
		all.Manifests += run.Manifests
		all.Links += run.Links
		all.Blobs += run.Blobs
		all.Uploads += run.Uploads
		all.Bytes += run.Bytes
		if run.Scanned == 0 {
			return all
		}
	}
}

// yardLog keeps what was logged.
type yardLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *yardLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *yardLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// inProcess serves requests by calling the handler.
type inProcess struct{ http.Handler }

func (d inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	r = r.Clone(r.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	if r.Body != http.NoBody && r.ContentLength == 0 {
		r.ContentLength = -1 // as it arrives over a network
	}
	r.RequestURI, r.Host = r.URL.RequestURI(), r.URL.Host
	d.ServeHTTP(w, r)
	return w.Result(), nil
}

// pusher is a client of a registry.
type pusher struct {
	http *http.Client
	base string
}

// pushAnswer is what the registry said.
type pushAnswer struct {
	status int
	header http.Header
	body   []byte
}

func (a pushAnswer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// do sends a request, and fails only when there was no answer, or not all.
func (p *pusher) do(method, path string, body []byte, header ...string) (pushAnswer, error) {
	url := path
	if strings.HasPrefix(path, "/") {
		url = p.base + path
	}
	r, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return pushAnswer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := p.http.Do(r)
	if err != nil {
		return pushAnswer{}, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return pushAnswer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return pushAnswer{resp.StatusCode, resp.Header, content}, nil
}

// pushError is an answer that a test did not want.
type pushError struct {
	what string
	pushAnswer
}

func (u *pushError) Error() string { return u.what + ": " + u.String() }

// want sends a request and fails unless it is answered with one of these.
func (p *pusher) want(method, path string, body []byte, statuses ...int) (pushAnswer, error) {
	contentType := imageType
	if bytes.Contains(body, []byte(indexType)) {
		contentType = indexType
	}
	a, err := p.do(method, path, body, "Content-Type", contentType)
	if err != nil {
		return a, err
	}
	for _, status := range statuses {
		if a.status == status {
			return a, nil
		}
	}
	return a, &pushError{method + " " + path, a}
}

// has asks for a blob.
func (p *pusher) has(repo string, d digest.Digest) (bool, error) {
	a, err := p.want(http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), nil, http.StatusOK, http.StatusNotFound)
	return a.status == http.StatusOK, err
}

// begin starts an upload and returns where to go on with it.
func (p *pusher) begin(repo string) (location string, err error) {
	a, err := p.want(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", nil, http.StatusAccepted)
	return a.header.Get("Location"), err
}

// send uploads a blob, whether it is there or not.
func (p *pusher) send(repo string, blob []byte) error {
	location, err := p.begin(repo)
	if err != nil {
		return err
	}
	a, err := p.want(http.MethodPatch, location, blob, http.StatusAccepted)
	if err != nil {
		return err
	}
	_, err = p.want(http.MethodPut, atDigest(a.header.Get("Location"), digest.FromBytes(blob)), nil, http.StatusCreated)
	return err
}

func atDigest(location string, d digest.Digest) string {
	if strings.Contains(location, "?") {
		return location + "&digest=" + d.String()
	}
	return location + "?digest=" + d.String()
}

// offer uploads a blob unless it is there.
func (p *pusher) offer(repo string, blob []byte) error {
	there, err := p.has(repo, digest.FromBytes(blob))
	if err != nil || there {
		return err
	}
	return p.send(repo, blob)
}

// mount takes a blob from another repository, or uploads it.
func (p *pusher) mount(from, repo string, blob []byte) error {
	d := digest.FromBytes(blob)
	a, err := p.want(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?mount="+d.String()+"&from="+from, nil, http.StatusCreated, http.StatusAccepted)
	if err != nil || a.status == http.StatusCreated {
		return err
	}
	_, err = p.want(http.MethodPut, atDigest(a.header.Get("Location"), d), blob, http.StatusCreated)
	return err
}

// put stores a manifest under a tag or its digest.
func (p *pusher) put(repo, reference string, manifest []byte) error {
	_, err := p.want(http.MethodPut, "/v2/"+repo+"/manifests/"+reference, manifest, http.StatusCreated)
	return err
}

// push pushes an image as clients do: what is not there, then the manifest.
func (p *pusher) push(repo, reference string, i testImage) error {
	for _, blob := range i.blobs {
		if err := p.offer(repo, blob); err != nil {
			return err
		}
	}
	return p.put(repo, reference, i.manifest)
}

// remove deletes a tag or a manifest; one that is not there is no failure.
func (p *pusher) remove(repo, reference string) error {
	_, err := p.want(http.MethodDelete, "/v2/"+repo+"/manifests/"+reference, nil, http.StatusAccepted, http.StatusNotFound)
	return err
}

// pull fetches a manifest and all it needs, checks every byte, and returns the
// manifest.
func (p *pusher) pull(repo, reference string) ([]byte, error) {
	a, err := p.want(http.MethodGet, "/v2/"+repo+"/manifests/"+reference, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	if d := digest.FromBytes(a.body); a.header.Get("Docker-Content-Digest") != d.String() {
		return nil, fmt.Errorf("manifest %s of %s says it is %s and is %s", reference, repo, a.header.Get("Docker-Content-Digest"), d)
	}
	var m struct {
		Config    *struct{ Digest digest.Digest }
		Layers    []struct{ Digest digest.Digest }
		Manifests []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(a.body, &m); err != nil {
		return nil, err
	}
	for _, child := range m.Manifests {
		if _, err := p.pull(repo, child.Digest.String()); err != nil {
			return nil, err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, layerOf := range m.Layers {
		blob, err := p.want(http.MethodGet, "/v2/"+repo+"/blobs/"+layerOf.Digest.String(), nil, http.StatusOK)
		if err != nil {
			return nil, err
		}
		if d := digest.FromBytes(blob.body); d != layerOf.Digest {
			return nil, fmt.Errorf("blob %s of %s is %s", layerOf.Digest, repo, d)
		}
	}
	return a.body, nil
}

// testImage is a manifest with what it needs.
type testImage struct {
	manifest []byte
	blobs    [][]byte // in the order they are pushed, the config last
}

func (i testImage) digest() digest.Digest { return digest.FromBytes(i.manifest) }

// testDescriptor is what manifests say of their children.
type testDescriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int           `json:"size"`
}

func describeContent(mediaType string, content []byte) testDescriptor {
	return testDescriptor{mediaType, digest.FromBytes(content), len(content)}
}

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	indexType = "application/vnd.oci.image.index.v1+json"
)

// buildImage makes an image of layers, with a config of that name.
func buildImage(name string, layers ...[]byte) testImage { return buildReferrer(name, nil, layers...) }

// buildReferrer makes an image that refers to a subject.
func buildReferrer(name string, subject *testImage, layers ...[]byte) testImage {
	config := []byte(`{"name":"` + name + `"}`)
	manifest := map[string]any{
		"schemaVersion": 2,
		"mediaType":     imageType,
		"config":        describeContent("application/vnd.oci.image.config.v1+json", config),
	}
	list := []testDescriptor{}
	for _, layerOf := range layers {
		list = append(list, describeContent("application/vnd.oci.image.layer.v1.tar", layerOf))
	}
	manifest["layers"] = list
	if subject != nil {
		manifest["subject"] = describeContent(imageType, subject.manifest)
	}
	return testImage{mustMarshal(manifest), append(slices.Clone(layers), config)}
}

// buildIndex makes an index of images; its blobs are theirs.
func buildIndex(images ...testImage) testImage {
	var index testImage
	list := []testDescriptor{}
	for _, i := range images {
		list = append(list, describeContent(imageType, i.manifest))
		index.blobs = append(index.blobs, i.blobs...)
	}
	index.manifest = mustMarshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": list})
	return index
}

func mustMarshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // of maps and strings
	}
	return text
}

// layerOf makes n bytes that nobody else has, the same for the same name.
func layerOf(name string, n int) []byte {
	sum := sha256.Sum256([]byte(name))
	return bytes.Repeat(sum[:], n/len(sum)+1)[:n]
}

// check fails the test unless the store is sound: what is live has its bytes,
// what is linked is there, what a manifest needs is linked, and what nothing
// needs will be looked at. At rest there is nothing half-way either.
func (y *yard) check(t testing.TB, atRest bool) {
	t.Helper()
	ctx := context.Background()
	metadata := y.store.Registry()
	known := map[digest.Digest]bool{}
	for after := digest.Digest(""); ; {
		page, err := metadata.Blobs(ctx, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, blob := range page {
			after = blob.Digest
			known[blob.Digest] = true
			switch blob.State {
			case oci.Live:
				y.checkContent(t, blob)
			case oci.Condemned:
				if atRest {
					t.Errorf("%s is condemned, and nobody deletes it", blob.Digest)
				}
			}
		}
	}
	err := y.disk.Walk(ctx, func(d digest.Digest) error {
		if atRest && !known[d] {
			t.Errorf("the file of %s has no row", d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if atRest {
		if names, err := os.ReadDir(filepath.Join(y.dir, "registry", "trash")); err != nil || len(names) > 0 {
			t.Errorf("in the trash: %v %v", names, err)
		}
	}
	for what, query := range map[string]string{
		"links to blobs that are not there": `SELECT COUNT(*) FROM registry_links l
			LEFT JOIN registry_blobs b ON b.digest = l.digest WHERE b.state IS NULL OR b.state = 'condemned'`,
		"edges to what is not there": `SELECT COUNT(*) FROM registry_edges e
			WHERE NOT EXISTS (SELECT 1 FROM registry_links l WHERE l.repo = e.repo AND l.digest = e.child)
			AND NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = e.repo AND m.digest = e.child)`,
		"edges of manifests that are not there": `SELECT COUNT(*) FROM registry_edges e
			WHERE NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = e.repo AND m.digest = e.parent)`,
		"tags of manifests that are not there": `SELECT COUNT(*) FROM registry_tags t
			WHERE NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = t.repo AND m.digest = t.digest)`,
		"links nobody needs and nobody will look at": `SELECT COUNT(*) FROM registry_links l
			WHERE NOT EXISTS (SELECT 1 FROM registry_edges e WHERE e.repo = l.repo AND e.child = l.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'link' AND r.repo = l.repo AND r.digest = l.digest)`,
		"blobs without a link that nobody will look at": `SELECT COUNT(*) FROM registry_blobs b WHERE b.state <> 'condemned'
			AND NOT EXISTS (SELECT 1 FROM registry_links l WHERE l.digest = b.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'blob' AND r.digest = b.digest)`,
		"manifests nobody needs and nobody will look at": `SELECT COUNT(*) FROM registry_manifests m
			WHERE NOT EXISTS (SELECT 1 FROM registry_tags t WHERE t.repo = m.repo AND t.digest = m.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_edges e WHERE e.repo = m.repo AND e.child = m.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_manifests s WHERE s.repo = m.repo AND s.digest = m.subject)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'manifest' AND r.repo = m.repo AND r.digest = m.digest)`,
	} {
		if n := y.count(t, query); n > 0 {
			t.Errorf("%d %s", n, what)
		}
	}
}

func (y *yard) checkContent(t testing.TB, blob oci.Blob) {
	t.Helper()
	content, err := y.disk.Open(context.Background(), blob.Digest)
	if err != nil {
		t.Errorf("%s is live: %v", blob.Digest, err)
		return
	}
	defer content.Close()
	verifier := blob.Digest.Verifier()
	n, err := io.Copy(verifier, content)
	if err != nil || n != blob.Size || !verifier.Verified() {
		t.Errorf("%s is live and its file is not its %d bytes: %d, %v", blob.Digest, blob.Size, n, err)
	}
}

// checkEmpty fails the test unless nothing is left of anything.
func (y *yard) checkEmpty(t testing.TB) {
	t.Helper()
	for _, table := range []string{"blobs", "links", "manifests", "tags", "edges", "reviews"} {
		if n := y.count(t, "SELECT COUNT(*) FROM registry_"+table); n != 0 {
			t.Errorf("%d rows are left in registry_%s", n, table)
		}
	}
	for _, dir := range []string{"blobs", "trash", "uploads"} {
		err := filepath.WalkDir(filepath.Join(y.dir, "registry", dir), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				t.Errorf("%s is left", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func (y *yard) count(t testing.TB, query string) (n int) {
	t.Helper()
	if err := y.behind.QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// mustDo fails the test at once.
func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
