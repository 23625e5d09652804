package e2e

import (
	"bytes"
	crand "crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// noise is n random bytes, always the same.
func noise(n int, seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 0))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(random.Uint32())
	}
	return out
}

func (s *server) deployments(service string) []object {
	s.t.Helper()
	var list []object
	s.expect(http.StatusOK, "GET", "/v1/services/"+service+"/deployments", nil, &list)
	return list
}

// A push is the deploy.
func TestPushDeploys(t *testing.T) {
	s := start(t)
	id := s.service("app", nil)
	dev := s.account("dev", "default", "operator")
	docker := dev.docker(t)
	latest, other := dev.reference("default/app:latest"), dev.reference("default/app:other")

	docker.load(latest, appImage(t, "one"))
	docker.run("", "docker", "push", latest.String())
	list := s.deployments(id)
	if len(list) != 1 || list[0].str("trigger") != "push" || list[0].str("actor") != "dev" {
		t.Fatalf("docker push made the deployments %v, want one by a push of dev", list)
	}
	s.healthy(list[0].str("id"))
	s.answers("app.localhost", "one")
	t.Logf("docker push: the container was created %s after the manifest was accepted", s.createdAfter(list[0]))

	// What is no new version for the service deploys nothing: the same again,
	// another tag, a repository below the service's.
	docker.run("", "docker", "push", latest.String())
	docker.load(other, appImage(t, "other"))
	docker.run("", "docker", "push", other.String())
	dev.push("default/app/below:latest", appImage(t, "below"))
	if list := s.deployments(id); len(list) != 1 {
		t.Errorf("there are %d deployments, want still one: %v", len(list), list)
	}
	s.answers("app.localhost", "one")

	second := appImage(t, "two")
	if err := remote.Write(dev.reference("default/app:v2"), second, dev.auth()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := remote.Tag(dev.reference("default/app:latest").Context().Tag("latest"), second, dev.auth()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	list = s.deployments(id)
	if len(list) != 2 {
		t.Fatalf("there are %d deployments, want two", len(list))
	}
	if got, want := s.healthy(list[0].str("id")).str("artifact.manifest_digest"), hashOf(t, second).String(); got != want {
		t.Errorf("the deployment is of %q, want %s", got, want)
	}
	s.answers("app.localhost", "two")
	t.Logf("second push: the manifest was accepted in %s, its container created %s after that", took.Round(time.Millisecond), s.createdAfter(list[0]))

	// A release that runs is not deleted from under it.
	if got := dev.do("DELETE", "default/app/manifests/"+hashOf(t, second).String(), nil); got.status != http.StatusForbidden || got.code() != "DENIED" {
		t.Errorf("deleting the manifest of the active release: %s", got)
	}
	// Whose tag is followed is the service's to say.
	s.expect(http.StatusOK, "PUT", "/v1/services/"+id, object{"name": "app", "follow_tag": "stable"}, nil)
	dev.push("default/app:latest", appImage(t, "three"))
	if status, text := s.get("app.localhost", "/"); status != http.StatusOK || text != "two" {
		t.Errorf("after a push of a tag that is not followed: %d %q", status, text)
	}
	dev.push("default/app:stable", appImage(t, "stable"))
	s.healthy(s.deployments(id)[0].str("id"))
	s.answers("app.localhost", "stable")
}

// createdAfter is how long after a deployment its container was created.
func (s *server) createdAfter(deployment object) time.Duration {
	s.t.Helper()
	made, err := time.Parse(time.RFC3339Nano, deployment.str("created_at"))
	if err != nil {
		s.t.Fatal(err)
	}
	found := s.docker("ps", "-aq", "--filter", s.label(), "--filter", "label=denia.number="+deployment.str("number"))
	if len(found) != 1 {
		s.t.Fatalf("deployment %s has the containers %v", deployment.str("number"), found)
	}
	created, err := time.Parse(time.RFC3339Nano, s.docker("inspect", "--format", "{{.Created}}", found[0])[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return created.Sub(made).Round(time.Millisecond)
}

// A release that was built is copied into the registry: what `docker system
// prune -a` leaves is enough to roll back.
func TestRollBackAfterPrune(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.service("app", nil)
	message := "one " + crand.Text() // an image nobody else has
	first := s.deployFiles(id, appContext(message))
	s.healthy(first)
	s.healthy(s.deployFiles(id, appContext("two "+message)))
	began := time.Now()
	s.eventually(30*time.Second, "both releases are copied", func() bool {
		tags := string(s.owner().do("GET", "default/app/tags/list", nil).body)
		return strings.Contains(tags, `"release-1"`) && strings.Contains(tags, `"release-2"`)
	})
	t.Logf("copied %s after the second was healthy", time.Since(began).Round(time.Millisecond))
	s.owner().whole("default/app:release-1")
	s.eventually(waitForRemoval, "the first release's container is removed", func() bool { return len(s.containers()) == 1 })

	if removed := s.prune(); removed != 1 {
		t.Fatalf("removed %d images, want the first release's", removed)
	}
	s.healthy(s.deploy(id, object{"type": "redeploy", "deployment_id": first}))
	s.answers("app.localhost", message)
}

// prune removes the images of this Denia that no container uses, as `docker
// system prune -a` does with everybody's.
func (s *server) prune() (removed int) {
	s.t.Helper()
	used := map[string]bool{}
	for _, container := range s.containers() {
		used[s.docker("inspect", "--format", "{{.Image}}", container)[0]] = true
	}
	sum := sha256.Sum256([]byte(strings.TrimPrefix(s.label(), "label=denia.instance=")))
	for _, image := range s.docker("images", "--quiet", "--no-trunc", "--filter", fmt.Sprintf("reference=denia-%x/*/*", sum[:4])) {
		if !used[image] {
			s.docker("image", "rm", "--force", image)
			removed++
		}
	}
	return removed
}

// changed has Caddy take another Caddyfile.
func (s *server) changed(change func(text string) string) {
	s.t.Helper()
	text, err := os.ReadFile(s.caddyfile())
	if err == nil {
		err = os.WriteFile(s.caddyfile(), []byte(change(string(text))), 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if out, err := s.reload(); err != nil {
		s.t.Fatalf("reload: %v %s", err, out)
	}
}

// Nothing under /v2 is compressed on its way through Caddy.
func TestRegistryIsNotCompressed(t *testing.T) {
	s := start(t)
	s.service("app", nil)
	s.changed(func(text string) string {
		return strings.Replace(text, "\tdenia\n}", "\tencode gzip {\n\t\tminimum_length 1\n\t\tmatch header Content-Type *\n\t}\n\tdenia\n}", 1)
	})
	owner := s.owner()
	image := layered(t, "amd64", 1, 64<<10)
	d := owner.push("default/app:v1", image)
	zeros := owner.blob("default/app", make([]byte, 1<<20))

	request, err := http.NewRequest("GET", s.url("/v1/openapi.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept-Encoding", "gzip")
	if got, err := owner.try(request); err != nil || got.header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("this Caddy should compress what it may: %v %v", got.header, err)
	}
	for _, c := range []struct{ method, path string }{
		{"GET", ""},
		{"GET", "token?service=" + s.registryHost() + "&scope=repository:default/app:pull"},
		{"GET", "default/app/manifests/v1"},
		{"HEAD", "default/app/manifests/" + d.String()},
		{"GET", "default/app/blobs/" + zeros.String()},
		{"HEAD", "default/app/blobs/" + zeros.String()},
		{"GET", "default/app/tags/list"},
		{"GET", "default/app/referrers/" + d.String()},
		{"GET", "default/app/manifests/missing"},
		{"GET", "nothing"},
	} {
		got := owner.do(c.method, c.path, nil, "Accept-Encoding: zstd, gzip")
		if got.header.Get("Content-Encoding") != "" || got.header.Get("Content-Length") == "" && !strings.HasPrefix(c.path, "token") {
			t.Errorf("%s /v2/%s: %d with %v", c.method, c.path, got.status, got.header)
		}
		if c.method == "GET" && got.header.Get("Content-Length") != "" && got.header.Get("Content-Length") != strconv.Itoa(len(got.body)) {
			t.Errorf("GET /v2/%s: %d bytes with %v", c.path, len(got.body), got.header)
		}
	}
	got := owner.expect(http.StatusPartialContent, "GET", "default/app/blobs/"+zeros.String(), nil, "Accept-Encoding: gzip", "Range: bytes=10-19")
	if got.header.Get("Content-Encoding") != "" || len(got.body) != 10 {
		t.Errorf("a range: %d bytes with %v", len(got.body), got.header)
	}
}

// Reloads of Caddy cut neither a push nor a pull in its middle.
func TestReloadCutsNoTransfer(t *testing.T) {
	s := start(t)
	s.service("app", nil)
	owner := s.owner()
	content := noise(24<<20, 1) // more than the kernel buffers
	first := owner.blob("default/app", content)

	reply, err := http.DefaultClient.Do(owner.request("GET", "default/app/blobs/"+first.String(), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	pulled := digest.SHA256.Digester()
	if _, err := io.CopyN(pulled.Hash(), reply.Body, 1<<20); err != nil {
		t.Fatal(err)
	}

	content[0]++
	changed := digest.FromBytes(content)
	body, feed := io.Pipe()
	upload := owner.begin("default/app")
	pushed := make(chan string, 1)
	request := owner.request("PUT", withDigest(upload, changed), body)
	request.ContentLength = int64(len(content))
	go func() {
		got, err := owner.try(request)
		if err != nil {
			pushed <- err.Error()
			return
		}
		pushed <- strconv.Itoa(got.status)
	}()
	sent := 0
	for i := range 3 {
		half := len(content) / 4
		if _, err := feed.Write(content[sent : sent+half]); err != nil {
			t.Fatal(err)
		}
		sent += half
		// Something new each time, or Caddy does nothing; and the grace period is
		// over before the rest is sent.
		s.changed(func(text string) string {
			return strings.ReplaceAll(text, "grace_period 10s", "grace_period 1ms") + fmt.Sprintf("http://nobody-%d.test:%d {\n\tbind 127.0.0.1\n}\n", i, s.port)
		})
	}
	if _, err := feed.Write(content[sent:]); err != nil {
		t.Fatal(err)
	}
	_ = feed.Close()
	if got := <-pushed; got != "201" {
		t.Errorf("the push ended with %s", got)
	}
	if _, err := io.Copy(pulled.Hash(), reply.Body); err != nil || pulled.Digest() != first {
		t.Errorf("the pull ended with %s, %v; want %s", pulled.Digest(), err, first)
	}
	if got := owner.expect(http.StatusOK, "GET", "default/app/blobs/"+changed.String(), nil); !bytes.Equal(got.body, content) {
		t.Error("what was pushed comes back otherwise")
	}
}

// A power cut in the middle of pushes: an upload in chunks goes on where its
// last answered chunk ended, and everything that was answered with 201 is
// there, whole.
func TestKilledWhilePushing(t *testing.T) {
	s := start(t)
	s.service("app", nil)
	owner := s.owner()
	chunks := noise(3<<20, 2)
	const chunk = 1 << 20
	upload := owner.next(owner.expect(http.StatusAccepted, "PATCH", owner.begin("default/app"), bytes.NewReader(chunks[:chunk]), "Content-Range: "+span(0, chunk)))

	random := rand.New(rand.NewPCG(3, uint64(amount(t, "DENIA_SEED", 1))))
	var mu sync.Mutex
	acknowledged := map[string]v1.Hash{}
	for kill := range amount(t, "DENIA_KILLS", 3) {
		// The second chunk is under way, and so are pushes of whole images.
		body, feed := io.Pipe()
		ctx := t.Context()
		request := owner.request("PATCH", upload, body, "Content-Range: "+span(chunk, 2*chunk)).WithContext(ctx)
		request.ContentLength = chunk
		var pushers sync.WaitGroup
		pushers.Go(func() { _, _ = owner.try(request) })
		if _, err := feed.Write(chunks[chunk : chunk+chunk/2]); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		for pusher := range 2 {
			pushers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-ended:
						return
					default:
					}
					ref := fmt.Sprintf("default/app:kill%d-%d-%d", kill, pusher, n)
					image := layered(t, "amd64", 2, 64<<10)
					if err := remote.Write(owner.reference(ref), image, owner.auth(), remote.WithRetryBackoff(remote.Backoff{Steps: 1})); err != nil {
						return // the moment has come
					}
					mu.Lock()
					acknowledged[ref] = hashOf(t, image)
					mu.Unlock()
				}
			})
		}
		<-time.After(time.Duration(random.Int64N(int64(time.Second)))) // the moment is what is tested, not something awaited
		s.kill()
		close(ended)
		_ = feed.CloseWithError(io.ErrClosedPipe)
		pushers.Wait()
		s.run()
		got := owner.expect(http.StatusNoContent, "GET", upload, nil)
		if at := got.header.Get("Range"); at != span(0, chunk) {
			t.Fatalf("after kill %d the upload has %q, want %q", kill, at, span(0, chunk))
		}
		upload = owner.next(got)
	}
	for ref, want := range acknowledged {
		if got := owner.whole(ref); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}
	t.Logf("%d images were acknowledged before the kills, all of them are whole", len(acknowledged))

	for at := chunk; at < len(chunks); at += chunk {
		upload = owner.next(owner.expect(http.StatusAccepted, "PATCH", upload, bytes.NewReader(chunks[at:at+chunk]), "Content-Range: "+span(at, at+chunk)))
	}
	d := digest.FromBytes(chunks)
	owner.expect(http.StatusCreated, "PUT", withDigest(upload, d), nil)
	if got := owner.expect(http.StatusOK, "GET", "default/app/blobs/"+d.String(), nil); !bytes.Equal(got.body, chunks) {
		t.Error("the blob that was resumed comes back otherwise")
	}
}

// span is a range from one byte to before another, as uploads write it.
func span(from, to int) string { return fmt.Sprintf("%d-%d", from, to-1) }
