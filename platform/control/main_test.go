package control_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/leak"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/platformtest"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("16") // they wait more than they work
	}
	if err := makeBlank(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	leak.Main(m)
}

// blank is a database without rows: to migrate one for each test takes longer
// than most of them.
var blank []byte

func makeBlank() error {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "denia.db")
	s, err := store.Open(context.Background(), "sqlite:"+path, store.Options{Log: slog.New(slog.DiscardHandler), Seal: reverse, Unseal: reverse})
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	blank, err = os.ReadFile(path)
	return err
}

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// world is a Plane over a real store, real logs and a real ingress. The engine
// is a script, its replicas are servers on the loopback interface.
type world struct {
	*control.Plane
	t       *testing.T
	store   *store.Store
	engine  *platformtest.Fake
	images  *images
	hub     *hub
	journal *journal
	options control.Options
	server  *httptest.Server
	client  *http.Client

	mu      sync.Mutex
	ingress *ingress.Ingress
}

// newWorld makes a world whose Plane has not been started. change may adjust
// the options.
func newWorld(t *testing.T, change ...func(*control.Options)) *world {
	t.Helper()
	t.Parallel()
	w := &world{t: t, engine: platformtest.NewFake(), images: newImages(), hub: newHub(), journal: &journal{}}
	w.images.hub = w.hub
	log := slog.New(slog.NewTextHandler(w.journal, &slog.HandlerOptions{Level: slog.LevelDebug}))
	dir := scratch(t)
	check(t, os.WriteFile(filepath.Join(dir, "denia.db"), blank, 0o600))
	var err error
	w.store, err = store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "denia.db"), store.Options{Log: log, Seal: reverse, Unseal: reverse})
	check(t, err)
	w.options = control.Options{
		Store: w.store, Runtime: w.engine, Images: w.images, Registry: w.hub, Log: log, DataDir: dir, Node: "node-1", DiskReserve: 1,
		Unpack: unpack,
	}
	for _, c := range change {
		c(&w.options)
	}
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		in := w.ingress
		w.mu.Unlock()
		in.ServeHTTP(rw, r)
	}))
	w.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	w.boot()
	t.Cleanup(func() {
		w.shut()
		w.client.CloseIdleConnections()
		w.server.Close()
		w.engine.Close()
		check(t, w.store.Close())
		w.journal.review(t)
	})
	return w
}

// scratch is a directory in memory where there is such a thing: a test that
// waits for the disk at each commit is ten times as long, and no better.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "control")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

// start makes a world with a Plane at work.
func start(t *testing.T, change ...func(*control.Options)) *world {
	t.Helper()
	w := newWorld(t, change...)
	check(t, w.Start(t.Context()))
	return w
}

// boot makes what a process of Denia holds in memory.
func (w *world) boot() {
	w.t.Helper()
	logs, err := telemetry.OpenLogs(filepath.Join(w.options.DataDir, "logs"), telemetry.LogOptions{})
	check(w.t, err)
	in := ingress.New(ingress.Options{Log: w.options.Log})
	w.mu.Lock()
	w.ingress = in
	w.mu.Unlock()
	w.options.Logs, w.options.Ingress = logs, in
	w.Plane = control.New(w.options)
}

// shut ends the process: what runs goes on running.
func (w *world) shut() {
	w.t.Helper()
	check(w.t, w.Close())
	w.options.Ingress.Close()
	check(w.t, w.options.Logs.Close())
}

// restart is the end of the process and the start of the next.
func (w *world) restart() {
	w.t.Helper()
	w.shut()
	w.boot()
	check(w.t, w.Start(w.t.Context()))
}

// spec is a service that is probed often and gives up soon.
func spec(name string) platform.ServiceSpec {
	drain := 30
	return platform.ServiceSpec{Name: name, RunSpec: platform.RunSpec{
		DrainTimeoutS: &drain,
		HealthCheck:   &platform.HealthCheck{Type: platform.HealthHTTP, IntervalS: 1, StartPeriodS: 20},
	}}
}

func (w *world) service(spec platform.ServiceSpec) platform.Service {
	w.t.Helper()
	project, err := w.store.ProjectByName(w.t.Context(), platform.DefaultProject)
	check(w.t, err)
	service, err := w.store.CreateService(w.t.Context(), project.ID, spec.WithDefaults())
	check(w.t, err)
	w.Kick(service.ID)
	return service
}

// update changes a service as the API does.
func (w *world) update(id platform.ID, change func(*platform.ServiceSpec)) (platform.Deployment, bool) {
	w.t.Helper()
	service, err := w.store.Service(w.t.Context(), id)
	check(w.t, err)
	change(&service.ServiceSpec)
	_, err = w.store.UpdateService(w.t.Context(), id, service.ServiceSpec, 0)
	check(w.t, err)
	d, made, err := w.Apply(w.t.Context(), id, "tester")
	check(w.t, err)
	return d, made
}

func (w *world) deploy(id platform.ID, image string) platform.Deployment {
	w.t.Helper()
	return w.deployFrom(id, platform.Source{Type: platform.SourceExternalImage, Image: image})
}

func (w *world) deployFrom(id platform.ID, source platform.Source) platform.Deployment {
	w.t.Helper()
	d, err := w.Deploy(w.t.Context(), platform.DeployRequest{ServiceID: id, Source: &source, Trigger: platform.TriggerAPI, Actor: "tester"})
	check(w.t, err)
	return d
}

// running makes a service with a healthy first release of the image.
func (w *world) running(spec platform.ServiceSpec, image string) (platform.Service, platform.Deployment) {
	w.t.Helper()
	service := w.service(spec)
	d := w.become(w.deploy(service.ID, image).ID, platform.Healthy)
	w.state(service.ID, platform.ServiceRunning)
	return w.reread(service.ID), d
}

func (w *world) reread(id platform.ID) platform.Service {
	w.t.Helper()
	service, err := w.store.Service(w.t.Context(), id)
	check(w.t, err)
	return service
}

func (w *world) deployment(id platform.ID) platform.Deployment {
	w.t.Helper()
	d, err := w.store.Deployment(w.t.Context(), id)
	check(w.t, err)
	return d
}

// become waits until the deployment has the status. One that is finished and
// has another will never have it.
func (w *world) become(id platform.ID, status platform.Status) (d platform.Deployment) {
	w.t.Helper()
	w.await(fmt.Sprintf("the deployment is %s", status), func() bool {
		d = w.deployment(id)
		if d.Status != status && (d.Status == platform.Failed || d.Status == platform.Canceled) {
			w.t.Fatalf("the deployment is %s, not %s: %+v", d.Status, status, d.Error)
		}
		return d.Status == status
	})
	return d
}

func (w *world) state(id platform.ID, state string) {
	w.t.Helper()
	w.await("the service is "+state, func() bool { return w.Status(id).State == state })
}

// replicas lists the labels of a service's running replicas.
func (w *world) replicas(id platform.ID) []string {
	w.t.Helper()
	labels := []string{}
	for _, r := range w.observed(id) {
		if r.State == platform.ReplicaRunning {
			labels = append(labels, r.Label)
		}
	}
	return labels
}

func (w *world) observed(id platform.ID) []platform.Replica {
	w.t.Helper()
	list, err := w.engine.Replicas(context.Background(), id)
	check(w.t, err)
	return list
}

// runs waits until exactly these replicas run, and none else exists.
func (w *world) runs(id platform.ID, labels ...string) {
	w.t.Helper()
	w.await(fmt.Sprintf("replicas %v run", labels), func() bool {
		return len(w.observed(id)) == len(labels) && slices.Equal(w.replicas(id), labels)
	})
}

// await looks after each change that is published, and for what is not now and
// then: looking costs more than most of what is looked at.
func (w *world) await(what string, met func() bool) {
	w.t.Helper()
	changed, unsubscribe := w.Subscribe("")
	defer unsubscribe()
	ticker := time.NewTicker(60 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); !met(); {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain: %s", what)
		}
		select {
		case <-changed:
		case <-ticker.C:
		}
	}
}

// get sends a request to a service through the ingress.
func (w *world) get(service string) (status int, body string) {
	w.t.Helper()
	status, body, err := w.try(service)
	check(w.t, err)
	return status, body
}

func (w *world) try(service string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, w.server.URL, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = service + ".localhost"
	res, err := w.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// serves waits until a replica answers: a release is promoted in the database
// first, and in the ingress at once after that.
func (w *world) serves(service, label string) {
	w.t.Helper()
	w.await(service+" is served by replica "+label, func() bool {
		status, body := w.get(service)
		return status == http.StatusOK && body == label
	})
}

// log returns a stored log as one text.
func (w *world) log(key string) string {
	w.t.Helper()
	lines, err := w.options.Logs.Read(key, telemetry.Query{})
	check(w.t, err)
	var text strings.Builder
	for _, line := range lines {
		text.WriteString(line.Line + "\n")
	}
	return text.String()
}

// story returns the log of a deployment once it is complete.
func (w *world) story(id platform.ID) string {
	w.t.Helper()
	follower, err := w.options.Logs.Follow(w.t.Context(), "deployments/"+string(id), "", telemetry.Query{})
	check(w.t, err)
	defer follower.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var text strings.Builder
	for {
		_, line, err := follower.Next(ctx)
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		check(w.t, err)
		text.WriteString(line.Line + "\n")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func reverse(b []byte) ([]byte, error) {
	turned := slices.Clone(b)
	slices.Reverse(turned)
	return turned, nil
}

// gate is closed until a test opens it, at the latest when it ends.
func gate(t *testing.T) (closed <-chan struct{}, open func()) {
	c := make(chan struct{})
	open = sync.OnceFunc(func() { close(c) })
	t.Cleanup(open)
	return c, open
}

func digest(image string) string { return "sha256:" + image }

// journal keeps what is logged. An error in it fails the test unless it was
// expected: every one is somebody's page at night.
type journal struct {
	mu       sync.Mutex
	lines    []string
	expected []string
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(p))
	return len(p), nil
}

func (j *journal) expect(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.expected = append(j.expected, text)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "")
}

func (j *journal) review(t *testing.T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		expected := slices.ContainsFunc(j.expected, func(text string) bool { return strings.Contains(line, text) })
		if strings.Contains(line, "level=ERROR") && !expected {
			t.Errorf("an error was logged: %s", line)
		}
	}
	if t.Failed() {
		t.Logf("the log:\n%s", strings.Join(j.lines, ""))
	}
}
