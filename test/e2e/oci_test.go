package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// account is somebody who uses the registry.
type account struct {
	s              *server
	name, password string
}

// owner shows the admin token as a password.
func (s *server) owner() account { return account{s, "admin", s.token} }

// account makes a user with a role in a project; no role is no member.
func (s *server) account(user, project, role string) account {
	s.t.Helper()
	a := account{s, user, "the password of " + user}
	s.expect(http.StatusCreated, "POST", "/v1/users", object{"username": a.name, "password": a.password}, nil)
	if role != "" {
		s.expect(http.StatusCreated, "POST", "/v1/projects/"+project+"/members", object{"user_name": user, "role": role}, nil)
	}
	return a
}

// project makes a project with services.
func (s *server) project(project string, services ...string) {
	s.t.Helper()
	s.expect(http.StatusCreated, "POST", "/v1/projects", object{"name": project}, nil)
	for _, service := range services {
		s.service(service, object{"project_id": project})
	}
}

// registryHost is what clients call Denia.
func (s *server) registryHost() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// answer is what /v2 answered.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// code is the first error's, "" where the body is not the specification's.
func (a answer) code() string {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if a.header.Get("Content-Type") != "application/json" || json.Unmarshal(a.body, &body) != nil || len(body.Errors) == 0 || body.Errors[0].Message == "" {
		return ""
	}
	return body.Errors[0].Code
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s", a.status, tail(strings.TrimSpace(string(a.body)), 300))
}

// request makes a request for a path under /v2/ with Basic credentials; header
// lines are "Name: value", and one for Authorization replaces the credentials.
func (a account) request(method, path string, body io.Reader, header ...string) *http.Request {
	a.s.t.Helper()
	request, err := http.NewRequest(method, a.s.url("/v2/"+path), body)
	if err != nil {
		a.s.t.Fatal(err)
	}
	if a.name != "" {
		request.SetBasicAuth(a.name, a.password)
	}
	for _, line := range header {
		key, value, _ := strings.Cut(line, ": ")
		request.Header.Set(key, value)
	}
	return request
}

func (a account) do(method, path string, body io.Reader, header ...string) answer {
	a.s.t.Helper()
	got, err := a.try(a.request(method, path, body, header...))
	if err != nil {
		a.s.t.Fatalf("%s /v2/%s: %v", method, path, err)
	}
	return got
}

func (a account) try(request *http.Request) (answer, error) {
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	return answer{reply.StatusCode, reply.Header, text}, err
}

// expect is do that fails the test on another status.
func (a account) expect(status int, method, path string, body io.Reader, header ...string) answer {
	a.s.t.Helper()
	got := a.do(method, path, body, header...)
	if got.status != status {
		a.s.t.Fatalf("%s /v2/%s: %s, want %d", method, path, got, status)
	}
	return got
}

// begin starts an upload and returns its path under /v2/.
func (a account) begin(repo string) string {
	a.s.t.Helper()
	return a.next(a.expect(http.StatusAccepted, "POST", repo+"/blobs/uploads/", nil))
}

// next is where an upload goes on.
func (a account) next(got answer) string {
	a.s.t.Helper()
	path, ok := strings.CutPrefix(got.header.Get("Location"), "/v2/")
	if !ok {
		a.s.t.Fatalf("%s has Location %q, want a path under /v2/", got, got.header.Get("Location"))
	}
	return path
}

// withDigest is the path at which an upload is finished.
func withDigest(upload string, d digest.Digest) string {
	separator := "?"
	if strings.Contains(upload, "?") {
		separator = "&"
	}
	return upload + separator + "digest=" + d.String()
}

// blob pushes a blob.
func (a account) blob(repo string, content []byte) digest.Digest {
	a.s.t.Helper()
	d := digest.FromBytes(content)
	a.expect(http.StatusCreated, "PUT", withDigest(a.begin(repo), d), bytes.NewReader(content))
	return d
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// manifest is one of blobs that are there: an empty config, and a layer.
func manifest(layer []byte, annotation string) []byte {
	text, _ := json.Marshal(object{
		"schemaVersion": 2, "mediaType": manifestType,
		"config":      object{"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest.FromString("{}"), "size": 2},
		"layers":      []object{{"mediaType": "application/octet-stream", "digest": digest.FromBytes(layer), "size": len(layer)}},
		"annotations": object{"test": annotation},
	})
	return text
}

// repositoryOf is one of the client library's own.
func (a account) reference(ref string) name.Reference {
	a.s.t.Helper()
	parsed, err := name.ParseReference(a.s.registryHost() + "/" + ref)
	if err != nil {
		a.s.t.Fatal(err)
	}
	return parsed
}

func (a account) auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: a.name, Password: a.password})
}

// push writes an image with Go's client library.
func (a account) push(ref string, image v1.Image) v1.Hash {
	a.s.t.Helper()
	if err := remote.Write(a.reference(ref), image, a.auth()); err != nil {
		a.s.t.Fatalf("pushing %s: %v", ref, err)
	}
	return hashOf(a.s.t, image)
}

// whole sees that a reference holds all of an image or index, byte for byte,
// and returns its digest.
func (a account) whole(ref string) v1.Hash {
	a.s.t.Helper()
	parsed := a.reference(ref)
	repo := parsed.Context().RepositoryStr()
	got := a.expect(http.StatusOK, "GET", repo+"/manifests/"+parsed.Identifier(), nil)
	d := digest.FromBytes(got.body)
	if claimed := got.header.Get("Docker-Content-Digest"); claimed != d.String() {
		a.s.t.Errorf("%s has digest %s, the answer says %s", ref, d, claimed)
	}
	var document struct {
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	if err := json.Unmarshal(got.body, &document); err != nil {
		a.s.t.Fatalf("%s: %v", ref, err)
	}
	for _, child := range document.Manifests {
		a.whole(repo + "@" + child.Digest.String())
	}
	blobs := document.Layers
	if document.Config != nil {
		blobs = append(blobs, *document.Config)
	}
	for _, blob := range blobs {
		content := a.expect(http.StatusOK, "GET", repo+"/blobs/"+blob.Digest.String(), nil).body
		if digest.FromBytes(content).String() != blob.Digest.String() || int64(len(content)) != blob.Size {
			a.s.t.Errorf("%s: blob %s is %d bytes of %s", ref, blob.Digest, len(content), digest.FromBytes(content))
		}
	}
	h, err := v1.NewHash(d.String())
	if err != nil {
		a.s.t.Fatal(err)
	}
	return h
}

type digester interface{ Digest() (v1.Hash, error) }

func hashOf(t testing.TB, of digester) v1.Hash {
	t.Helper()
	h, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// layered is an OCI image of so many layers of random bytes.
func layered(t testing.TB, architecture string, layers int, size int64) v1.Image {
	t.Helper()
	oci := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(oci, &v1.ConfigFile{
		Architecture: architecture, OS: "linux", RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{Cmd: []string{"/none"}},
	})
	for range layers {
		var layer v1.Layer
		if err == nil {
			layer, err = random.Layer(size, types.OCILayer)
		}
		if err == nil {
			image, err = mutate.AppendLayers(image, layer)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// platforms is an OCI index for this machine and for another.
func platforms(t testing.TB) v1.ImageIndex {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range []string{runtime.GOARCH, "s390x"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: layered(t, architecture, 2, 64<<10), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
		})
	}
	return index
}

// appImage is the application with a message, as appContext builds it.
func appImage(t testing.TB, message string) v1.Image {
	t.Helper()
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{Cmd: []string{"/app"}},
	})
	for _, file := range []entry{
		{Header: tar.Header{Name: "app"}, content: string(app)},
		{Header: tar.Header{Name: "message.txt"}, content: message},
	} {
		var packed bytes.Buffer
		w := tar.NewWriter(&packed)
		file.Mode, file.Size, file.Typeflag = 0o755, int64(len(file.content)), tar.TypeReg
		if err == nil {
			err = w.WriteHeader(&file.Header)
		}
		if err == nil {
			_, err = io.WriteString(w, file.content)
		}
		if err == nil {
			err = w.Close()
		}
		var layer v1.Layer
		if err == nil {
			layer, err = tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil })
		}
		if err == nil {
			image, err = mutate.AppendLayers(image, layer)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// saved writes an image as `docker save` does.
func saved(t testing.TB, ref name.Reference, image v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, ref, image); err != nil {
		t.Fatal(err)
	}
	return path
}

// program runs programs with an environment of their own.
type program struct {
	t   testing.TB
	env []string
}

// run returns what the program printed; the test ends if it failed.
func (p program) run(input string, args ...string) string {
	p.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, tail(string(out), 3000))
	}
	return string(out)
}

// docker is Docker's client, logged in.
func (a account) docker(t testing.TB) program {
	t.Helper()
	p := program{t, []string{"DOCKER_CONFIG=" + t.TempDir()}}
	p.run(a.password, "docker", "login", "--username", a.name, "--password-stdin", a.s.registryHost())
	return p
}

// load puts an image into the engine until the test ends.
func (p program) load(ref name.Reference, image v1.Image) {
	p.t.Helper()
	p.run("", "docker", "load", "--quiet", "--input", saved(p.t, ref, image))
	p.t.Cleanup(func() { _ = exec.Command("docker", "rmi", "--force", ref.String()).Run() })
}

// tool is the path of a program of scripts/tools.
func tool(t testing.TB, name string) string {
	t.Helper()
	cmd := exec.Command("../../scripts/tools", name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/tools %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// registryFiles are the files of uploads that are no content yet.
func (s *server) registryFiles() []string {
	s.t.Helper()
	var found []string
	err := filepath.WalkDir(filepath.Join(s.data, "registry", "uploads"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, d.Name())
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// registryHolds counts what the registry has.
func (s *server) registryHolds() string {
	s.t.Helper()
	var status object
	s.expect(http.StatusOK, "GET", "/v1/registry/status", nil, &status)
	var counts []string
	for _, of := range []string{"repositories", "manifests", "blobs", "uploads_in_progress"} {
		counts = append(counts, status.str(of)+" "+of)
	}
	return strings.Join(counts, ", ")
}
