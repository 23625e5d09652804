package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// hold has the upstream answer requests for blobs only when the returned
// function is called.
func (u *faultyUpstream) hold() (open func()) {
	gate := make(chan struct{})
	u.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		select {
		case <-gate:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	open = sync.OnceFunc(func() { close(gate) })
	u.t.Cleanup(open)
	return open
}

// A project takes a few turns at a time, waits for more only so long, and holds
// up no other project.
func TestCacheDownloadsAFewAtATime(t *testing.T) {
	w := newCacheWorld(t)
	registry.SetCacheBounds(w.g, time.Minute, 100*time.Millisecond, time.Minute)
	w.grant("p/up/other", func(*registry.Grant) {})
	w.grant("q/up/img", func(*registry.Grant) {})
	var blobs []digest.Digest
	for i := range 6 {
		d, _ := w.up.blob(1000 + i)
		blobs = append(blobs, d)
	}
	open := w.up.hold()
	var all sync.WaitGroup
	get := func(name string, d digest.Digest) {
		all.Go(func() {
			if a := w.do(http.MethodGet, name+"/blobs/"+d.String()); a.status != http.StatusOK || digest.FromBytes(a.body) != d {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		})
	}
	for _, d := range blobs[:4] {
		get("p/up/img", d)
	}
	w.eventually("four are asked for", func() bool { return w.up.asked(http.MethodGet, "blobs") == 4 })
	a := w.do(http.MethodGet, "p/up/other/blobs/"+blobs[4].String())
	if a.status != http.StatusServiceUnavailable || a.code(t) != "UNAVAILABLE" || a.header.Get("Retry-After") == "" {
		t.Errorf("the fifth: %d %v %s", a.status, a.header, a.body)
	}
	get("q/up/img", blobs[5])
	w.eventually("another project's is asked for", func() bool { return w.up.asked(http.MethodGet, "blobs") == 5 })
	open()
	all.Wait()
	w.get("p/up/other/blobs/" + blobs[4].String())
}

func TestCacheBreaksOffWhatTrickles(t *testing.T) {
	w := newCacheWorld(t)
	registry.SetCacheBounds(w.g, 50*time.Millisecond, time.Minute, time.Minute)
	d, content := w.up.blob(100_000)
	w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := range content {
			if _, err := rw.Write(content[i : i+1]); err != nil {
				return true
			}
			_ = http.NewResponseController(rw).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return true
			}
		}
		return true
	})
	if a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String()); a.err == nil || len(a.body) > 1000 {
		t.Errorf("status %d and %d bytes, %v", a.status, len(a.body), a.err)
	}
	w.eventually("nothing is left", func() bool { return len(w.left()) == 0 })
}

func TestCacheBreaksOffWhatNobodyReads(t *testing.T) {
	w := newCacheWorld(t)
	registry.SetCachePatience(w.g, 5*time.Second, time.Hour)
	registry.SetCacheBounds(w.g, time.Minute, time.Minute, 20*time.Millisecond)
	d, content := w.up.blob(100_000)
	w.up.gate(d, content, 1000)
	path := "p/up/img/blobs/" + d.String()
	leaving, leave := context.WithCancel(t.Context())
	first := w.open(leaving, http.MethodGet, path)
	defer first.Body.Close()
	staying := w.open(t.Context(), http.MethodGet, path)
	leave()
	<-time.After(60 * time.Millisecond) // for it to be broken off, if that is wrong
	if len(w.left()) != 1 {
		t.Error("broken off while somebody reads")
	}
	staying.Body.Close()
	w.eventually("it is broken off", func() bool { return len(w.left()) == 0 })
	w.up.misbehave(nil)
	if a := w.get(path); !bytes.Equal(a.body, content) {
		t.Error("the next try did not get it")
	}
}

func TestCacheRefusesBlobsLargerThanItself(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.CacheBytes = 400_000 })
	large, _ := w.up.blob(4 << 20)
	if a := w.do(http.MethodGet, "p/up/img/blobs/"+large.String()); a.status != http.StatusForbidden || a.code(t) != "DENIED" {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
	_, content := w.up.blob(300_000)
	w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		n := 300_000
		if strings.HasSuffix(r.URL.Path, digest.FromBytes(content[:100_000]).String()) {
			n = 100_000
		}
		for i := 0; i < n; i += 1000 {
			_, _ = rw.Write(content[i : i+1000])
			_ = http.NewResponseController(rw).Flush()
		}
		return true
	})
	if a := w.do(http.MethodGet, "p/up/img/blobs/"+digest.FromBytes(content).String()); a.status == http.StatusOK && a.err == nil {
		t.Errorf("no length, and more than a quarter of the budget: %d bytes", len(a.body))
	}
	w.eventually("nothing is left", func() bool { return len(w.left()) == 0 })
	w.get("p/up/img/blobs/" + digest.FromBytes(content[:100_000]).String())
}

// scarceStorage has as much space as the test says.
type scarceStorage struct {
	registry.Storage
	free *atomic.Int64
}

func (s scarceStorage) Free(context.Context) (int64, error) { return s.free.Load(), nil }

// newScarceWorld is a cacheWorld that has plenty of space, until the test says
// otherwise.
func newScarceWorld(t *testing.T, cacheBytes int64) (*cacheWorld, *atomic.Int64) {
	free := new(atomic.Int64)
	free.Store(1 << 40)
	return newCacheWorld(t, func(c *registry.Config) {
		c.CacheBytes, c.ReserveBytes = cacheBytes, 1
		c.Storage = scarceStorage{c.Storage, free}
	}), free
}

// What an upstream only announces does not drive out what others need.
func TestCacheGivesNothingUpForMuchThatIsUnverified(t *testing.T) {
	w, free := newScarceWorld(t, 400_000)
	image, _ := w.pull("v1", 10_000)
	w.pass(3 * time.Hour)
	large, _ := w.up.blob(100_001)
	free.Store(50_000)
	if a := w.do(http.MethodGet, "p/up/img/blobs/"+large.String()); a.status != http.StatusServiceUnavailable {
		t.Errorf("the disk is full, but %d", a.status)
	}
	if err := w.g.Close(); err != nil { // waits for what was begun in the background
		t.Fatal(err)
	}
	if !w.has(image) {
		t.Error("an image was given up")
	}
}

func TestCacheGivesUpForWhatIsLittle(t *testing.T) {
	w, free := newScarceWorld(t, 400_000)
	image, _ := w.pull("v1", 10_000)
	w.pass(3 * time.Hour)
	small, _ := w.up.blob(100_000)
	free.Store(50_000)
	if a := w.do(http.MethodGet, "p/up/img/blobs/"+small.String()); a.status != http.StatusServiceUnavailable {
		t.Errorf("the disk is full, but %d", a.status)
	}
	// While it is looked for what to give up already, a request asks for no
	// more; a client that comes again does.
	w.eventually("the image is given up", func() bool {
		w.do(http.MethodGet, "p/up/img/blobs/"+small.String())
		return !w.has(image)
	})
}

// Whatever meets a full disk has the cache give up what was not used lately.
func TestCacheMakesRoom(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.CacheBytes = 400_000 })
	old, _ := w.pull("v1", 50_000)
	w.pass(3 * time.Hour)
	fresh, _ := w.pull("v2", 50_000)
	w.eventually("the older image is given up", func() bool {
		w.g.MakeRoom(1)
		return !w.has(old)
	})
	if !w.has(fresh) {
		t.Error("what was just used was given up first")
	}
}

// Manifests are bytes, too: their number is bounded by the budget, and by the
// disk.
func TestCacheCountsManifests(t *testing.T) {
	w, free := newScarceWorld(t, 20_000)
	_, config := w.up.blob(100)
	_, layer := w.up.blob(100)
	for i := range 40 {
		blobs := [][]byte{config}
		for range i {
			blobs = append(blobs, layer)
		}
		tag := fmt.Sprint("v", i)
		w.up.manifest(tag, blobs...)
		w.get("p/up/img/manifests/" + tag)
		w.pass(2 * time.Hour)
	}
	w.eventually("the cache is within its budget", func() bool {
		if _, err := w.g.CacheCollect(t.Context()); err != nil {
			return false
		}
		s := w.status()
		return s.TotalBytes <= 20_000 && s.Entries < 40
	})

	free.Store(0)
	w.up.manifest("full", config)
	if a := w.do(http.MethodGet, "p/up/img/manifests/full"); a.status != http.StatusServiceUnavailable || a.code(t) != "UNAVAILABLE" {
		t.Errorf("the disk is full, but %d", a.status)
	}
}
