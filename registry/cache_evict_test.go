package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// pull has the cache fetch an image of two blobs of n bytes.
func (w *cacheWorld) pull(tag string, n int, shared ...[]byte) (manifest digest.Digest, layer digest.Digest) {
	w.t.Helper()
	_, config := w.up.blob(n)
	layer, content := w.up.blob(n)
	manifest, _ = w.up.manifest(tag, append([][]byte{config, content}, shared...)...)
	w.get("p/up/img/manifests/" + tag)
	for _, b := range append([][]byte{config, content}, shared...) {
		d := digest.FromBytes(b)
		w.get("p/up/img/blobs/" + d.String())
		w.eventually("the blob is linked", func() bool {
			_, found, err := w.metadata.Blob(w.t.Context(), w.key("p/up/img"), d)
			return found && err == nil
		})
	}
	return manifest, layer
}

func (w *cacheWorld) has(d digest.Digest) bool {
	w.t.Helper()
	_, found, err := w.metadata.Manifest(w.t.Context(), w.key("p/up/img"), d)
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

func TestCacheGivesUpTheLeastRecentlyUsed(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.CacheBytes = 112_000 })
	_, shared := w.up.blob(10_000)
	var images []digest.Digest
	for i := range 4 {
		m, _ := w.pull(fmt.Sprint("v", i), 10_000, shared)
		images = append(images, m)
		w.pass(2 * time.Hour)
	}
	// 90,000 bytes of blobs, and manifests: all fits.
	if s := w.status(); s.TotalBytes < 90_000+4*3*512 || s.TotalBytes > 100_000 || s.Entries != 4 || s.OldestEntryAge != 8*time.Hour {
		t.Fatalf("status %+v", s)
	}
	w.up.answering(http.StatusInternalServerError)
	w.get("p/up/img/manifests/" + images[0].String()) // used again
	w.up.misbehave(nil)
	last, _ := w.pull("v4", 10_000, shared)
	w.eventually("the cache is within its budget", func() bool { return w.status().TotalBytes <= 112_000 })

	want := []bool{true, false, true, true}
	for i, m := range images {
		if w.has(m) != want[i] {
			t.Errorf("image %d is there: %t", i, w.has(m))
		}
	}
	if !w.has(last) {
		t.Error("what was just fetched is gone")
	}
	w.eventually("the collection is over", func() bool { return w.status().LastCollection != nil })
	s := w.status()
	if s.LastCollection.Manifests != 1 || s.LastCollection.Bytes < 20_000+3*512 || s.LastCollection.Bytes > 23_000 || s.LastCollection.Err != nil {
		t.Errorf("last collection %+v", s.LastCollection)
	}
	// What was given up can be had again.
	w.get("p/up/img/manifests/v1")
}

func TestCacheKeepsWhatIsNeededElsewhere(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.CacheBytes = 4000 })
	_, config := w.up.blob(3000)
	d, _ := w.up.manifest("kept", config)
	w.mu.Lock()
	w.kept[d] = true
	w.mu.Unlock()
	w.get("p/up/img/manifests/kept")
	w.get("p/up/img/blobs/" + digest.FromBytes(config).String())
	w.pass(3 * time.Hour)
	_, config = w.up.blob(3001)
	other, _ := w.up.manifest("other", config)
	w.get("p/up/img/manifests/other")
	w.get("p/up/img/blobs/" + digest.FromBytes(config).String())

	// The bytes go too.
	w.eventually("only what a release needs is on disk", func() bool {
		w.pass(3 * time.Hour)
		if _, err := w.g.CacheCollect(t.Context()); err != nil && !errors.Is(err, registry.ErrCollecting) {
			t.Fatal(err)
		}
		if _, err := w.g.Collect(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		return len(w.left()) == 1
	})
	if !w.has(d) {
		t.Error("what a release needs is gone")
	}
	if w.has(other) {
		t.Error("what nobody needs is there")
	}
}

// What is in use now is given up only when the budget is exceeded by far.
func TestCacheSparesWhatIsInUse(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.CacheBytes = 100_000 })
	first, _ := w.pull("v1", 55_000)
	if _, err := w.g.CacheCollect(t.Context()); err != nil && !errors.Is(err, registry.ErrCollecting) {
		t.Fatal(err)
	}
	if !w.has(first) {
		t.Error("given up though the budget is exceeded by a tenth only")
	}
	w.pass(time.Minute)
	second, _ := w.pull("v2", 20_000)
	w.eventually("the cache is within its budget", func() bool { return w.status().TotalBytes <= 100_000 })
	if w.has(first) || !w.has(second) {
		t.Errorf("first: %t, second: %t", w.has(first), w.has(second))
	}
}
