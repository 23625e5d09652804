package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	dockerbuild "github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/docker"
	"github.com/denia-paas/denia/platform/platformtest"
)

// The images every test may use, made once by TestMain with the package under
// test. There is no registry to take any from.
var (
	appImage platform.Artifact // FROM scratch, the static test program as entrypoint
	busybox  string            // reference of a base with a shell
	engine   *client.Client    // to look at the engine past the package
	run      = "t" + strings.ToLower(rand.Text()[:8])
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("4") // they wait for the engine, which has no more than thirty networks to give
	}
	fatal := func(doing string, err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\nThese tests need a Docker Engine at DOCKER_HOST or %s.\n", doing, err, client.DefaultDockerHost)
		return 1
	}
	var err error
	engine, err = client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return fatal("configuring the client", err)
	}
	defer engine.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if _, err := engine.Ping(ctx); err != nil {
		return fatal("reaching the engine", err)
	}
	dir, err := os.MkdirTemp("", "denia-docker-test-")
	if err != nil {
		return fatal("making a directory", err)
	}
	defer os.RemoveAll(dir)
	e, err := docker.Open(ctx, docker.Options{Instance: run})
	if err != nil {
		return fatal("opening", err)
	}
	defer e.Close()
	defer removeImages()
	before, err := buildCache(ctx)
	if err != nil {
		return fatal("listing the build cache", err)
	}
	defer removeBuildCache(before)

	compile := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "app"), "./testdata/app")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		return fatal("building the test program: "+string(out), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY app /app\nENTRYPOINT [\"/app\"]\n"), 0o600); err != nil {
		return fatal("writing a Dockerfile", err)
	}
	var log bytes.Buffer
	appImage, err = e.Build(ctx, platform.Build{ContextDir: dir, Tag: "denia/" + run + "/app:1"}, &log)
	if err != nil {
		return fatal("building the test image:\n"+log.String(), err)
	}

	base := filepath.Join(dir, "base")
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fatal("reading the static busybox (package busybox-static)", err)
	}
	if err := os.MkdirAll(filepath.Join(base, "bin"), 0o755); err != nil {
		return fatal("making a directory", err)
	}
	if err := os.WriteFile(filepath.Join(base, "bin", "busybox"), shell, 0o755); err != nil {
		return fatal("writing busybox", err)
	}
	dockerfile := "FROM scratch\nCOPY bin /bin\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nCMD [\"/bin/sh\"]\n"
	if err := os.WriteFile(filepath.Join(base, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return fatal("writing a Dockerfile", err)
	}
	shellImage, err := e.Build(ctx, platform.Build{ContextDir: base, Tag: "denia/" + run + "/busybox:1"}, &log)
	if err != nil {
		return fatal("building the base image:\n"+log.String(), err)
	}
	busybox = run + "-busybox:1"
	if err := engine.ImageTag(ctx, shellImage.Digest, busybox); err != nil {
		return fatal("tagging the base image", err)
	}
	code := m.Run()
	if err := e.Close(); err != nil {
		return fatal("closing", err)
	}
	if left := goroutines(); left != "" {
		fmt.Fprintln(os.Stderr, "goroutines are left:\n"+left)
		return 1
	}
	return code
}

// goroutines waits for goroutines of the package and of its clients to end,
// and returns those that do not.
func goroutines() (left string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		engine.Close() // idle connections have goroutines too
		left = ""
		buf := make([]byte, 1<<20)
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if owners.MatchString(stack) {
				left += stack + "\n\n"
			}
		}
		if left == "" {
			return ""
		}
		<-tick.C
	}
	return left
}

var owners = regexp.MustCompile(`denia/platform/docker\.|moby/buildkit|docker/docker/client|google.golang.org/grpc`)

// buildCache lists the records in the engine's build cache.
func buildCache(ctx context.Context) (map[string]bool, error) {
	usage, err := engine.DiskUsage(ctx, types.DiskUsageOptions{Types: []types.DiskUsageObject{types.BuildCacheObject}})
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, record := range usage.BuildCache {
		ids[record.ID] = true
	}
	return ids, nil
}

// removeBuildCache removes what came into the build cache since before.
func removeBuildCache(before map[string]bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now, err := buildCache(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "listing the build cache:", err)
	}
	for id := range now {
		if !before[id] {
			_, _ = engine.BuildCachePrune(ctx, dockerbuild.CachePruneOptions{All: true, Filters: filters.NewArgs(filters.Arg("id", id))})
		}
	}
}

// removeImages removes every tag this run gave.
func removeImages() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	images, err := engine.ImageList(ctx, image.ListOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "listing images:", err)
	}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if strings.Contains(tag, run) {
				if _, err := engine.ImageRemove(ctx, tag, image.RemoveOptions{PruneChildren: true}); err != nil {
					fmt.Fprintln(os.Stderr, "removing image:", err)
				}
			}
		}
	}
}

// open opens an Engine with an instance of its own, and removes at the test's
// end what that made.
func open(t testing.TB) *docker.Engine {
	e, _ := openNamed(t)
	return e
}

func openNamed(t testing.TB) (*docker.Engine, string) {
	t.Helper()
	instance := run + "-" + strings.ToLower(rand.Text()[:8])
	e, err := docker.Open(t.Context(), docker.Options{
		Instance: instance,
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		clear(t, instance)
	})
	return e, instance
}

// clear removes what an instance left in the engine.
func clear(t testing.TB, instance string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ours := filters.NewArgs(filters.Arg("label", "denia.instance="+instance))
	containers, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil {
		t.Error(err)
	}
	for _, c := range containers {
		if err := engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			t.Error(err)
		}
	}
	networks, err := engine.NetworkList(ctx, network.ListOptions{Filters: ours})
	if err != nil {
		t.Error(err)
	}
	for _, n := range networks {
		if err := engine.NetworkRemove(ctx, n.ID); err != nil {
			t.Error(err)
		}
	}
	volumes, err := engine.VolumeList(ctx, volume.ListOptions{Filters: ours})
	if err != nil {
		t.Error(err)
	}
	for _, v := range volumes.Volumes {
		if err := engine.VolumeRemove(ctx, v.Name, true); err != nil {
			t.Error(err)
		}
	}
}

// app is a workload that runs the test program with the arguments.
func app(number int, args ...string) platform.Workload {
	w := platformtest.Workload("shop", "web", number)
	w.Image, w.Digest = appImage.Image, appImage.Digest
	w.Config.Command = args
	return w
}

func ensure(t testing.TB, e *docker.Engine, w platform.Workload) {
	t.Helper()
	if err := e.Ensure(t.Context(), w); err != nil {
		t.Fatalf("Ensure: %v", err)
	}
}

// only is the only replica of the workload's service.
func only(t testing.TB, e *docker.Engine, w platform.Workload) platform.Replica {
	t.Helper()
	replicas, err := e.Replicas(t.Context(), w.ServiceID)
	if err != nil {
		t.Fatal(err)
	}
	if len(replicas) != 1 {
		t.Fatalf("%d replicas, want 1: %+v", len(replicas), replicas)
	}
	return replicas[0]
}

// finished waits until the only replica of the workload's service has exited.
func finished(t testing.TB, e *docker.Engine, w platform.Workload) platform.Replica {
	t.Helper()
	var r platform.Replica
	eventually(t, "the replica exits", func() bool {
		r = only(t, e, w)
		return r.State == platform.ReplicaExited
	})
	return r
}

func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !met(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// wantCode checks an error's code and returns its message for the user.
func wantCode(t testing.TB, err error, code string) string {
	t.Helper()
	if err == nil || platform.CodeOf(err) != code {
		t.Fatalf("failed with %v (%s), want %s", err, platform.CodeOf(err), code)
	}
	return message(err)
}
