package docker_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/docker"
	"github.com/denia-paas/denia/platform/platformtest"
)

func inspect(t testing.TB, id string) container.InspectResponse {
	t.Helper()
	c, err := engine.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// logText is what a replica wrote, up to now.
func logText(t testing.TB, e *docker.Engine, id string) string {
	t.Helper()
	reader, err := e.Logs(t.Context(), id, platform.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var lines []string
	for {
		line, err := reader.Next()
		if err == io.EOF {
			return strings.Join(lines, "\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line.Line)
	}
}

func TestReplicaIsDialledWithItsEnvironment(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "serve")
	w.Config.Port = 3000
	w.Config.Env = platform.Env{"A": "from env", "B": "from env", "PORT": "1"}
	w.Config.SecretEnv = platform.Env{"B": "hunter2"}
	ensure(t, e, w)
	r := only(t, e, w)
	var body string
	eventually(t, "the replica answers", func() bool {
		resp, err := http.Get("http://" + r.Addr)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		body = string(text)
		return err == nil
	})
	for _, want := range []string{"A=from env", "B=hunter2", "PORT=3000"} {
		if !slices.Contains(strings.Split(strings.TrimSpace(body), "\n"), want) {
			t.Errorf("the replica's environment has no %q:\n%s", want, body)
		}
	}
	c := inspect(t, r.ID)
	if labels := fmt.Sprint(c.Config.Labels); strings.Contains(labels, "hunter2") {
		t.Errorf("the labels hold a secret: %s", labels)
	}
	if len(c.NetworkSettings.Ports) > 0 || len(c.HostConfig.PortBindings) > 0 {
		t.Errorf("ports are published: %+v", c.NetworkSettings.Ports)
	}
	if want := "/denia-shop-web-1-0-"; !strings.HasPrefix(c.Name, want) {
		t.Errorf("the container is called %s, want %s…", c.Name, want)
	}
}

func TestReplicaIsBounded(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "proc")
	w.Config.User = "1234"
	w.Config.Resources = platform.Resources{CPUMillis: 250, MemoryBytes: 32 << 20, PIDs: 20}
	ensure(t, e, w)
	r := finished(t, e, w)
	host := inspect(t, r.ID).HostConfig
	if host.NanoCPUs != 250_000_000 || host.Memory != 32<<20 || host.MemorySwap != 32<<20 || host.PidsLimit == nil || *host.PidsLimit != 20 {
		t.Errorf("limits: %+v", host.Resources)
	}
	if host.RestartPolicy.Name != "no" && host.RestartPolicy.Name != "" {
		t.Errorf("the engine restarts by itself: %+v", host.RestartPolicy)
	}
	if host.LogConfig.Config["max-size"] == "" || host.LogConfig.Config["max-file"] == "" {
		t.Errorf("the log is unbounded: %+v", host.LogConfig)
	}
	// The bounding set is what even a set-uid program could get: kill, chown
	// and the like, 0x4eb here; the engine's default is 0xa80425fb.
	out := logText(t, e, r.ID)
	for _, want := range []string{"NoNewPrivs:\t1", "CapBnd:\t00000000000004eb", "CapEff:\t0000000000000000", "uid 1234"} {
		if !strings.Contains(out, want) {
			t.Errorf("the process has no %q:\n%s", want, out)
		}
	}
}

func TestMoreCPUThanThereIsLimitsNothing(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "serve")
	w.Config.Resources.CPUMillis = 1_000_000
	ensure(t, e, w)
	if r := only(t, e, w); r.State != platform.ReplicaRunning {
		t.Errorf("the replica is %+v", r)
	}
}

func TestStartFailuresSayWhy(t *testing.T) {
	t.Parallel()
	e := open(t)
	for number, c := range []struct {
		name   string
		change func(*platform.Workload)
		want   string
	}{
		{"no such program", func(w *platform.Workload) { w.Config.Entrypoint = []string{"frobnicate"} }, "frobnicate"},
		{"not executable", func(w *platform.Workload) { w.Config.Entrypoint = []string{"/etc"} }, "/etc"},
		{"no such user", func(w *platform.Workload) { w.Config.User = "nobody-here" }, "nobody-here"},
	} {
		w := app(number+1, "serve")
		c.change(&w)
		m := wantCode(t, e.Ensure(t.Context(), w), platform.CodeStartFailed)
		if !strings.Contains(m, c.want) || strings.Contains(m, "OCI runtime") || strings.Contains(m, "daemon") || strings.Contains(m, ".go:") {
			t.Errorf("%s: %q", c.name, m)
		}
		for _, r := range replicas(t, e, w) {
			if r.ReleaseID == w.ID && (r.State != platform.ReplicaCreated || !strings.Contains(r.Error, c.want)) {
				t.Errorf("%s leaves %+v", c.name, r)
			}
		}
	}
}

func replicas(t testing.TB, e *docker.Engine, w platform.Workload) []platform.Replica {
	t.Helper()
	all, err := e.Replicas(t.Context(), w.ServiceID)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// serving waits until every replica of the service has begun its work.
func serving(t testing.TB, e *docker.Engine, w platform.Workload) {
	t.Helper()
	for _, r := range replicas(t, e, w) {
		eventually(t, "the replica serves", func() bool { return logText(t, e, r.ID) == "serving" })
	}
}

// Not beside the others, as it is timed.
func TestStopIsGracefulAndBounded(t *testing.T) {
	e := open(t)
	w := app(1, "serve")
	grace := 20
	w.Config.StopGraceS = &grace
	ensure(t, e, w)
	serving(t, e, w)
	reader, err := e.Logs(t.Context(), only(t, e, w).ID, platform.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	last := make(chan string, 1)
	go func() {
		var line platform.LogLine
		for {
			next, err := reader.Next()
			if err != nil {
				last <- line.Line
				return
			}
			line = next
		}
	}()
	w.Replicas = 0
	ensure(t, e, w)
	if got := <-last; got != "stopped" {
		t.Errorf("the replica's last word is %q: it was not let finish", got)
	}

	stubborn := app(2, "stubborn")
	grace = 1
	stubborn.Config.StopGraceS = &grace
	stubborn.Replicas = 4
	ensure(t, e, stubborn)
	serving(t, e, stubborn)
	began := time.Now()
	ensure(t, e, platform.Workload{ID: stubborn.ID, ServiceID: stubborn.ServiceID})
	if took := time.Since(began); took < time.Second || took > 8*time.Second {
		t.Errorf("four replicas that ignore SIGTERM took %v; the grace is 1 s and they stop side by side", took)
	}
	if left := replicas(t, e, stubborn); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
	patient := app(3, "stubborn")
	long, none := 600, 0
	patient.Config.StopGraceS = &long
	ensure(t, e, patient)
	serving(t, e, patient)
	patient.Replicas, patient.Config.StopGraceS = 0, &none
	ensure(t, e, patient)
}

func TestNetworkIsTheProjects(t *testing.T) {
	t.Parallel()
	e := open(t)
	web, client := app(1, "serve"), platformtest.Workload("shop", "client", 1)
	stranger := platformtest.Workload("blog", "client", 1)
	for _, w := range []*platform.Workload{&client, &stranger} {
		w.Image, w.Digest = appImage.Image, appImage.Digest
		w.Config.Command = []string{"get", "http://web:8080/"}
	}
	ensure(t, e, web)
	addr := only(t, e, web).Addr
	eventually(t, "the replica answers", func() bool {
		resp, err := http.Get("http://" + addr)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	ensure(t, e, client)
	if r := finished(t, e, client); r.ExitCode != 0 {
		t.Errorf("a service of the project does not reach it by name: %s", logText(t, e, r.ID))
	}
	ensure(t, e, stranger)
	if r := finished(t, e, stranger); r.ExitCode == 0 {
		t.Error("a service of another project reaches it by name")
	}
}

func TestNetworkIsMadeOnce(t *testing.T) {
	t.Parallel()
	// Two Engines of one instance: nothing in this process keeps them apart.
	a, instance := openNamed(t)
	b, err := docker.Open(t.Context(), docker.Options{Instance: instance})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			w := platformtest.Workload("shop", fmt.Sprint("service", i), 1)
			w.Image, w.Digest, w.Config.Command = appImage.Image, appImage.Digest, []string{"serve"}
			if err := []*docker.Engine{a, b}[i%2].Ensure(t.Context(), w); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	all, err := a.Replicas(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	networks := map[string]bool{}
	for _, r := range all {
		for _, n := range inspect(t, r.ID).NetworkSettings.Networks {
			networks[n.NetworkID] = true
		}
		if r.State != platform.ReplicaRunning || r.Addr == "" {
			t.Errorf("replica %+v", r)
		}
	}
	if len(all) != 6 || len(networks) != 1 {
		t.Errorf("%d replicas in the networks %v", len(all), networks)
	}
}

func TestNetworkRemovedBehindItsBackIsMadeAgain(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "exit", "0")
	ensure(t, e, w)
	name := inspect(t, finished(t, e, w).ID).HostConfig.NetworkMode
	if err := engine.NetworkRemove(t.Context(), string(name)); err != nil {
		t.Fatal(err)
	}
	other := platformtest.Workload("shop", "other", 1)
	other.Image, other.Digest, other.Config.Command = appImage.Image, appImage.Digest, []string{"serve"}
	ensure(t, e, other)
	if r := only(t, e, other); r.Addr == "" {
		t.Errorf("a new replica has no address: %+v", r)
	}
	// Gone once more, and made by somebody else under another id: the exited
	// replica still refers to the first.
	ensure(t, e, platform.Workload{ID: other.ID, ServiceID: other.ServiceID})
	if err := engine.NetworkRemove(t.Context(), string(name)); err != nil {
		t.Fatal(err)
	}
	before := only(t, e, w)
	ensure(t, e, w)
	eventually(t, "the exited replica runs again", func() bool {
		r := only(t, e, w)
		return r.State == platform.ReplicaExited && r.StartedAt.After(before.StartedAt)
	})
}

// create makes a container as an interrupted Ensure would have left it.
func create(t testing.TB, like container.InspectResponse, labels map[string]string) string {
	t.Helper()
	config := *like.Config
	config.Labels = labels
	made, err := engine.ContainerCreate(t.Context(), &config, like.HostConfig,
		&network.NetworkingConfig{}, nil, strings.TrimPrefix(like.Name, "/"))
	if err != nil {
		t.Fatal(err)
	}
	return made.ID
}

func TestEnsureTakesUpWhatWasCutShort(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "serve")
	ensure(t, e, w)
	model := inspect(t, only(t, e, w).ID)
	remove := func() {
		t.Helper()
		if err := engine.ContainerRemove(t.Context(), only(t, e, w).ID, container.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("created, not started", func(t *testing.T) {
		remove()
		id := create(t, model, model.Config.Labels)
		ensure(t, e, w)
		if r := only(t, e, w); r.ID != id || r.State != platform.ReplicaRunning {
			t.Errorf("the created container %s became %+v", id, r)
		}
	})
	t.Run("killed", func(t *testing.T) {
		r := only(t, e, w)
		if err := engine.ContainerKill(t.Context(), r.ID, "KILL"); err != nil {
			t.Fatal(err)
		}
		if r = finished(t, e, w); r.ExitCode != 137 || r.OOMKilled {
			t.Errorf("a killed replica: %+v", r)
		}
		ensure(t, e, w)
		if again := only(t, e, w); again.ID != r.ID || again.State != platform.ReplicaRunning || again.Addr == "" {
			t.Errorf("a killed replica became %+v", again)
		}
	})
	t.Run("paused", func(t *testing.T) {
		if err := engine.ContainerPause(t.Context(), only(t, e, w).ID); err != nil {
			t.Fatal(err)
		}
		ensure(t, e, w)
		if c := inspect(t, only(t, e, w).ID); c.State.Paused {
			t.Error("the replica is still paused")
		}
	})
	t.Run("name taken by somebody else", func(t *testing.T) {
		remove()
		id := create(t, model, map[string]string{"made": "by hand"})
		defer engine.ContainerRemove(context.WithoutCancel(t.Context()), id, container.RemoveOptions{Force: true})
		if m := wantCode(t, e.Ensure(t.Context(), w), platform.CodeStartFailed); !strings.Contains(m, strings.Trim(model.Name, "/")) {
			t.Errorf("the message does not name the container: %s", m)
		}
	})
	ensure(t, e, w)
	t.Run("two of one index", func(t *testing.T) {
		first := only(t, e, w)
		base := *model.ContainerJSONBase
		base.Name += "-twin"
		twin := model
		twin.ContainerJSONBase = &base
		create(t, twin, model.Config.Labels)
		ensure(t, e, w)
		if r := only(t, e, w); r.ID != first.ID {
			t.Errorf("of a running replica and a created one, %+v was kept", r)
		}
	})
	t.Run("another process", func(t *testing.T) {
		first := only(t, e, w)
		successor, err := docker.Open(t.Context(), docker.Options{Instance: model.Config.Labels["denia.instance"]})
		if err != nil {
			t.Fatal(err)
		}
		defer successor.Close()
		ensure(t, successor, w)
		if r := only(t, successor, w); r != first {
			t.Errorf("a restarted Denia sees %+v, want %+v", r, first)
		}
	})
}

func TestInstancesDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	a, b := open(t), open(t)
	w := app(1, "serve")
	w.Config.Volumes = []platform.Volume{{Name: "data", Path: "/data"}}
	ensure(t, a, w)
	if got := replicas(t, b, w); len(got) != 0 {
		t.Errorf("another instance sees %+v", got)
	}
	ensure(t, b, platform.Workload{ID: w.ID, ServiceID: w.ServiceID})
	if projects, err := b.Projects(t.Context()); err != nil || len(projects) != 0 {
		t.Errorf("another instance holds %v, %v", projects, err)
	}
	if err := b.RemoveProject(t.Context(), w.ProjectID); err != nil {
		t.Error(err)
	}
	if err := b.RemoveVolumes(t.Context(), w.ServiceID, []string{"data"}); platform.KindOf(err) != platform.Conflict {
		t.Errorf("removing another instance's volume: %v", err)
	}
	r := only(t, a, w)
	if _, err := b.Logs(t.Context(), r.ID, platform.LogOptions{}); platform.KindOf(err) != platform.NotFound {
		t.Errorf("reading another instance's output: %v", err)
	}
	ensure(t, b, w) // the same names side by side
	if again := only(t, a, w); again != r {
		t.Errorf("the replica became %+v", again)
	}
}

// Not beside the others: a volume is named by its service, which they share.
func TestVolumesStayUntilRemovedByName(t *testing.T) {
	e := open(t)
	volumes := []platform.Volume{{Name: "data", Path: "/data"}}
	run := func(number int, args ...string) platform.Replica {
		w := app(number, args...)
		w.Config.Volumes = volumes
		ensure(t, e, w)
		r := finished(t, e, w)
		out := logText(t, e, r.ID)
		if err := e.RemoveVolumes(t.Context(), w.ServiceID, []string{"data"}); platform.KindOf(err) != platform.Conflict {
			t.Errorf("removing a mounted volume: %v", err)
		}
		w.Replicas = 0
		ensure(t, e, w)
		r.Error = out
		return r
	}
	if r := run(1, "write", "/data/file"); r.ExitCode != 0 {
		t.Fatalf("writing: %s", r.Error)
	}
	if r := run(2, "read", "/data/file"); r.Error != "kept" {
		t.Errorf("the next release reads %q", r.Error)
	}
	volumes[0].ReadOnly = true
	if r := run(3, "write", "/data/file"); r.ExitCode == 0 {
		t.Error("a read-only volume was written to")
	}
	if err := e.RemoveVolumes(t.Context(), app(1).ServiceID, []string{"data", "other"}); err != nil {
		t.Fatal(err)
	}
	volumes[0].ReadOnly = false
	if r := run(4, "read", "/data/file"); r.ExitCode == 0 {
		t.Errorf("a removed volume still holds %q", r.Error)
	}
}

func TestEngineDown(t *testing.T) {
	t.Parallel()
	e, err := docker.Open(t.Context(), docker.Options{Host: "unix:///nonexistent/docker.sock", Instance: "down"})
	if err != nil {
		t.Fatalf("opening must not fail: %v", err)
	}
	defer e.Close()
	ctx := t.Context()
	_, ping := e.Ping(ctx)
	_, list := e.Replicas(ctx, "")
	_, watch := e.Watch(ctx)
	_, logs := e.Logs(ctx, "x", platform.LogOptions{})
	_, projects := e.Projects(ctx)
	_, build := e.Build(ctx, platform.Build{ContextDir: buildContext(t, map[string]string{"Dockerfile": "FROM scratch\n"}), Tag: "denia/x/y:1"}, io.Discard)
	_, pull := e.Pull(ctx, platform.Pull{Reference: "busybox", Tag: "denia/x/y:1"}, io.Discard)
	_, tag := e.Tag(ctx, "sha256:0", "denia/x/y:1")
	_, tags := e.Tags(ctx)
	for name, err := range map[string]error{
		"Ping": ping, "Replicas": list, "Watch": watch, "Logs": logs, "Projects": projects, "Build": build, "Pull": pull, "Tag": tag, "Tags": tags,
		"Ensure": e.Ensure(ctx, app(1, "serve")), "RemoveProject": e.RemoveProject(ctx, "x"),
		"RemoveVolumes": e.RemoveVolumes(ctx, "x", []string{"y"}), "Remove": e.Remove(ctx, "denia/x/y:1"),
	} {
		if platform.KindOf(err) != platform.Unavailable || platform.CodeOf(err) != platform.CodeEngineUnavailable ||
			!strings.Contains(message(err), "unix:///nonexistent/docker.sock") || !strings.Contains(message(err), "docker_host") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	info, err := open(t).Ping(t.Context())
	if err != nil || info.Version == "" || info.APIVersion == "" || info.Host == "" || info.OS != "linux" {
		t.Errorf("Ping: %+v, %v", info, err)
	}
}

// A replica that somebody paused, or cut off from its network, is not said to
// run, and Ensure mends it.
func TestPausedAndCutOffReplicasAreMended(t *testing.T) {
	t.Parallel()
	e := open(t)
	w := app(1, "serve")
	ensure(t, e, w)
	r := only(t, e, w)

	if err := engine.ContainerPause(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if got := only(t, e, w); got.State != platform.ReplicaBroken {
		t.Errorf("paused it is %s", got.State)
	}
	ensure(t, e, w)
	if got := only(t, e, w); got.State != platform.ReplicaRunning || got.ID != r.ID {
		t.Errorf("after Ensure it is %+v", got)
	}

	for name := range inspect(t, r.ID).NetworkSettings.Networks {
		if err := engine.NetworkDisconnect(t.Context(), name, r.ID, true); err != nil {
			t.Fatal(err)
		}
		if err := engine.NetworkRemove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if got := only(t, e, w); got.State != platform.ReplicaBroken || got.Addr != "" {
		t.Errorf("cut off it is %+v", got)
	}
	ensure(t, e, w)
	if got := only(t, e, w); got.State != platform.ReplicaRunning || got.Addr == "" {
		t.Errorf("after Ensure it is %+v", got)
	}
}
