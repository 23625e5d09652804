package control_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/platformtest"
)

// hubAddress is where the engine would reach Denia's own registry.
const hubAddress = "127.0.0.1:5999"

// hub is Denia's own registry, as far as the control plane sees it. The
// manifest of the image "app:1" is "sha256:manifest of app:1".
type hub struct {
	mu       sync.Mutex
	away     bool
	images   map[string]string                 // by manifest
	tags     map[platform.ID]map[string]string // to manifest, by service
	services map[string]platform.ID            // by repository
	touched  []string
	dropped  []platform.ID
	granted  map[string]string // by password: repository and actions
}

func newHub() *hub {
	return &hub{
		images: map[string]string{}, tags: map[platform.ID]map[string]string{}, services: map[string]platform.ID{}, granted: map[string]string{},
	}
}

func manifest(image string) string { return "sha256:manifest of " + image }

// knows tells the hub which service's repository that is.
func (h *hub) knows(repository string, service platform.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.services[repository] = service
}

func (h *hub) setAway(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

// store keeps what was pushed under a reference.
func (h *hub) store(auth *platform.RegistryAuth, reference, image string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := strings.TrimPrefix(reference, hubAddress+"/")
	name, tag, _ := strings.Cut(name, ":")
	if auth == nil || h.granted[auth.Password] != name+" pull,push" {
		return "denied"
	}
	h.put(h.services[name], tag, image)
	return manifest(image)
}

// put stores an image under a tag. h.mu must be held.
func (h *hub) put(service platform.ID, tag, image string) {
	h.images[manifest(image)] = image
	if h.tags[service] == nil {
		h.tags[service] = map[string]string{}
	}
	h.tags[service][tag] = manifest(image)
}

func (h *hub) image(auth *platform.RegistryAuth, manifest string) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if auth == nil || !strings.HasSuffix(h.granted[auth.Password], " pull") {
		return "", false
	}
	image, there := h.images[manifest]
	return image, there
}

func (h *hub) Address() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away {
		return ""
	}
	return hubAddress
}

func (h *hub) Credentials(name, actions string, _ time.Duration) (username, password string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	password = "password for " + name + " " + actions
	h.granted[password] = name + " " + actions
	return "denia", password
}

func (h *hub) Touch(_ context.Context, _ platform.ID, digest string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.touched = append(h.touched, digest)
	_, there := h.images[digest]
	return there, nil
}

func (h *hub) Holds(_ context.Context, _ platform.ID, digest string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, there := h.images[digest]
	return there, nil
}

func (h *hub) Tagged(_ context.Context, service platform.ID, tag string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tags[service][tag], nil
}

func (h *hub) Tags(_ context.Context, service platform.ID) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.tags[service])), nil
}

func (h *hub) Untag(_ context.Context, service platform.ID, tag string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tags[service], tag)
	return nil
}

func (h *hub) MakeRoom(int64) {}

func (h *hub) Drop(_ context.Context, service platform.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped = append(h.dropped, service)
	delete(h.tags, service)
	return nil
}

// forget is what the collector does.
func (h *hub) forget(manifest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.images, manifest)
}

func (h *hub) tagsOf(service platform.ID) []string {
	tags, _ := h.Tags(context.Background(), service)
	return tags
}

func (h *hub) wasTouched(digest string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.touched, digest)
}

func (h *hub) wasDropped(service platform.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.dropped, service)
}

// push stores an image in the service's repository, as a client would, and
// tells the Plane.
func (w *world) push(service platform.ID, tag, image string) (platform.Deployment, bool) {
	w.t.Helper()
	w.hub.mu.Lock()
	w.hub.put(service, tag, image)
	w.hub.mu.Unlock()
	d, made, err := w.Push(w.t.Context(), control.PushEvent{Service: service, Tag: tag, Digest: manifest(image), Actor: "pusher"})
	check(w.t, err)
	return d, made
}

// copied waits until the release's image is in the registry.
func (w *world) copied(id platform.ID) (d platform.Deployment) {
	w.t.Helper()
	w.await("the release is copied", func() bool {
		d = w.deployment(id)
		return d.Artifact != nil && d.Artifact.ManifestDigest != ""
	})
	return d
}

// prune takes an image from the engine until it is pulled again, as docker
// system prune does.
func (w *world) prune(image string) {
	w.images.lose(digest(image))
	w.engine.Script(digest(image), platformtest.Behavior{Missing: true})
	w.images.mu.Lock()
	defer w.images.mu.Unlock()
	w.images.pulled = func(digest string) { w.engine.Script(digest, platformtest.Behavior{}) }
}
