package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// The clients people have push and pull an image of ten layers and an index
// of two platforms, and everything arrives whole.
func TestClients(t *testing.T) {
	crane := tool(t, "crane")
	s := start(t)
	s.project("team", "docker", "copied", "crane", "skopeo", "ctr")
	user := s.account("dev", "team", "operator")
	image := layered(t, "amd64", 10, 128<<10)
	index := platforms(t)
	source := layoutOf(t, image, index)

	// pulled compares a layout that a client wrote.
	pulled := func(t *testing.T, dir string, want v1.Hash) {
		t.Helper()
		index, err := layout.ImageIndexFromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest != want {
			t.Errorf("%s holds %v, want %s", dir, manifest.Manifests, want)
		}
	}

	t.Run("docker", func(t *testing.T) { dockerPushesAndPulls(t, user, image) })

	t.Run("crane", func(t *testing.T) {
		ref, list, back := s.registryHost()+"/team/crane:image", s.registryHost()+"/team/crane:list", t.TempDir()
		p := program{t, []string{"DOCKER_CONFIG=" + t.TempDir()}}
		p.run(user.password, crane, "auth", "login", s.registryHost(), "--username", user.name, "--password-stdin")
		p.run("", crane, "push", source["image"], ref)
		p.run("", crane, "push", "--index", source["crane"], list)
		if got, want := user.whole("team/crane:image"), hashOf(t, image); got != want {
			t.Errorf("the image is %s, want %s", got, want)
		}
		if got, want := user.whole("team/crane:list"), hashOf(t, index); got != want {
			t.Errorf("the index is %s, want %s", got, want)
		}
		p.run("", crane, "validate", "--remote", ref)
		p.run("", crane, "validate", "--remote", list)
		p.run("", crane, "pull", "--format=oci", ref, back+"/image")
		pulled(t, back+"/image", hashOf(t, image))
		p.run("", crane, "pull", "--format=oci", list, back+"/index")
		pulled(t, back+"/index", hashOf(t, index))
		if got := strings.Fields(p.run("", crane, "ls", s.registryHost()+"/team/crane")); strings.Join(got, " ") != "image list" {
			t.Errorf("crane ls prints %q", got)
		}
		p.run("", crane, "copy", list, s.registryHost()+"/team/copied:list")
		if got, want := user.whole("team/copied:list"), hashOf(t, index); got != want {
			t.Errorf("the copy is %s, want %s", got, want)
		}
		p.run("", crane, "delete", list)
	})

	t.Run("skopeo", func(t *testing.T) {
		auth, back := filepath.Join(t.TempDir(), "auth.json"), t.TempDir()
		p := program{t, nil}
		p.run(user.password, "skopeo", "login", "--tls-verify=false", "--authfile", auth, "--username", user.name, "--password-stdin", s.registryHost())
		for _, name := range []string{"image", "index"} {
			ref := "docker://" + s.registryHost() + "/team/skopeo:" + name
			p.run("", "skopeo", "copy", "--insecure-policy", "--all", "--authfile", auth, "--dest-tls-verify=false", "oci:"+source[name], ref)
			// An index it writes in its own words.
			got := user.whole("team/skopeo:" + name)
			if want := hashOf(t, image); name == "image" && got != want {
				t.Errorf("the image is %s, want %s", got, want)
			}
			p.run("", "skopeo", "copy", "--insecure-policy", "--all", "--authfile", auth, "--src-tls-verify=false", ref, "oci:"+back+"/"+name)
			pulled(t, back+"/"+name, got)
		}
		if out := p.run("", "skopeo", "list-tags", "--tls-verify=false", "--authfile", auth, "docker://"+s.registryHost()+"/team/skopeo"); !strings.Contains(out, `"index"`) {
			t.Errorf("skopeo list-tags prints %s", out)
		}
		p.run("", "skopeo", "delete", "--tls-verify=false", "--authfile", auth, "docker://"+s.registryHost()+"/team/skopeo:image")
	})

	t.Run("containerd", func(t *testing.T) {
		p := program{t, nil}
		from, to := containerd(t), containerd(t)
		login := []string{"--plain-http", "--user", user.name + ":" + user.password}
		for name, want := range map[string]v1.Hash{"image": hashOf(t, image), "index": hashOf(t, index)} {
			ref := s.registryHost() + "/team/ctr:" + name
			p.run("", append(from, "images", "import", "--all-platforms", "--no-unpack", archived(t, source[name]))...)
			ctrPushes(t, slices.Concat(from, []string{"images", "push"}, login, []string{ref, loadedAs + name}))
			if got := user.whole("team/ctr:" + name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
			p.run("", slices.Concat(to, []string{"images", "pull", "--all-platforms", "--snapshotter", "native"}, login, []string{ref})...)
			if out := p.run("", append(to, "images", "ls", "name=="+ref)...); !strings.Contains(out, want.String()) {
				t.Errorf("pulled %s instead of %s", out, want)
			}
			if out := p.run("", append(to, "images", "check", "--snapshotter", "native", "name=="+ref)...); !strings.Contains(out, " complete ") {
				t.Errorf("what was pulled is not whole: %s", out)
			}
		}
	})
}

func dockerPushesAndPulls(t *testing.T, user account, image v1.Image) {
	docker := user.docker(t)
	id := func(ref name.Reference) string {
		t.Helper()
		return strings.TrimSpace(docker.run("", "docker", "image", "inspect", "--format", "{{.Id}}", ref.String()))
	}
	ref := user.reference("team/docker:image")
	docker.load(ref, image)
	want := id(ref)
	pushed := docker.run("", "docker", "push", ref.String())
	if d := user.whole("team/docker:image"); !strings.Contains(pushed, d.String()) {
		t.Errorf("docker push prints no digest %s: %s", d, pushed)
	}
	docker.run("", "docker", "rmi", ref.String())
	docker.run("", "docker", "pull", ref.String())
	if got := id(ref); got != want {
		t.Errorf("the image came back as %s, was %s", got, want)
	}

	// Into another repository nothing is sent again.
	copied := user.reference("team/copied:image")
	docker.run("", "docker", "tag", ref.String(), copied.String())
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", copied.String()).Run() })
	if out := docker.run("", "docker", "push", copied.String()); strings.Count(out, "Mounted from") != 10 {
		t.Errorf("ten layers should be mounted: %s", out)
	}
	user.whole("team/copied:image")

	other := user.reference("team/docker:s390x")
	docker.load(other, layered(t, "s390x", 2, 64<<10))
	docker.run("", "docker", "push", other.String())
	list := user.reference("team/docker:list")
	docker.run("", "docker", "manifest", "create", "--insecure", list.String(), ref.String(), other.String())
	docker.run("", "docker", "manifest", "annotate", "--os", "linux", "--arch", "s390x", list.String(), other.String())
	pushed = docker.run("", "docker", "manifest", "push", "--insecure", list.String())
	if d := user.whole("team/docker:list"); !strings.Contains(pushed, d.String()) {
		t.Errorf("docker manifest push prints no digest %s: %s", d, pushed)
	}
	if out := docker.run("", "docker", "manifest", "inspect", "--insecure", list.String()); !strings.Contains(out, "s390x") {
		t.Errorf("docker manifest inspect prints %s", out)
	}
	docker.run("", "docker", "rmi", other.String(), ref.String(), copied.String())
	docker.run("", "docker", "pull", "--platform", "linux/s390x", list.String())
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", list.String()).Run() })
}

// loadedAs begins the names by which containerd imports layouts.
const loadedAs = "example.test/loaded:"

// layoutOf writes OCI layouts: of the image, of the index, and the index as the
// layout's own for crane.
func layoutOf(t testing.TB, image v1.Image, index v1.ImageIndex) map[string]string {
	t.Helper()
	dirs := map[string]string{"image": t.TempDir(), "index": t.TempDir(), "crane": t.TempDir()}
	named := func(name string) layout.Option {
		return layout.WithAnnotations(map[string]string{"io.containerd.image.name": loadedAs + name})
	}
	path, err := layout.Write(dirs["image"], empty.Index)
	if err == nil {
		err = path.AppendImage(image, named("image"))
	}
	if err == nil {
		path, err = layout.Write(dirs["index"], empty.Index)
	}
	if err == nil {
		err = path.AppendIndex(index, named("index"))
	}
	if err == nil {
		_, err = layout.Write(dirs["crane"], index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// archived is a layout in one file.
func archived(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layout.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := tar.NewWriter(file)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// ctrPushes runs a push of ctr. One in a hundred loses the blob it is reading
// from its own daemon, whatever the registry (containerd/containerd#5734); that
// is tried again.
func ctrPushes(t testing.TB, args []string) {
	t.Helper()
	for attempt := 1; ; attempt++ {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err == nil {
			return
		}
		if attempt == 5 || !strings.Contains(string(out), "failed to copy: rpc error: code = Internal desc = unexpected EOF") {
			t.Fatalf("ctr images push: %v\n%s", err, tail(string(out), 3000))
		}
	}
}

// containerd runs one of the test's own, and returns the beginning of its
// client's command line.
func containerd(t testing.TB) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctr") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config, socket := filepath.Join(dir, "config.toml"), filepath.Join(dir, "sock")
	err = os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`, dir+"/root", dir+"/state", socket, socket+".ttrpc"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	daemon := exec.Command("containerd", "--config", config)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("containerd's log:\n%s", tail(log.String(), 2000))
		}
	})
	ctr := []string{"ctr", "--address", socket}
	var out []byte
	if !poll(t.Context(), soon, 30*time.Second, func() bool {
		out, err = exec.Command("ctr", "--address", socket, "version").CombinedOutput()
		return err == nil
	}) {
		t.Fatalf("containerd does not answer: %v %s\n%s", err, out, log)
	}
	return ctr
}
