package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

// scene is what one order is played on: repository a holds an image with a
// layer, whose tag was deleted and whose leases are over, so that the collector
// is about to delete all of it. A second image with that layer is tagged in the
// repository other.
type scene struct {
	*pusher
	name     string // unique, and so is all content
	a, b     string
	other    string
	layer    []byte
	old      testImage // in a, untagged
	second   testImage // in other, tagged second
	tolerant bool      // leases run out at once: a push may have to be repeated
}

func (s *scene) image(name string) testImage { return buildImage(s.name+name, s.layer) }

// refused tells whether a manifest was refused for what it needs.
func refused(err error) bool {
	var failed *pushError
	return errors.As(err, &failed) && failed.status == http.StatusBadRequest
}

// settle forgives what must not happen while leases last.
func (s *scene) settle(err error) error {
	if s.tolerant && refused(err) {
		return nil
	}
	return err
}

// deeds are what users do while the collector is at work. They fail when a
// promise is broken: what was answered with 200 or 201 has to be there.
var deeds = []struct {
	name string
	idle bool // it stores nothing
	do   func(s *scene) error
}{
	{"push the same digest", false, func(s *scene) error {
		i := s.image("new")
		for _, blob := range i.blobs {
			if err := s.send(s.a, blob); err != nil {
				return err
			}
		}
		return s.settle(s.put(s.a, "new", i.manifest))
	}},
	{"push what HEAD says is missing", false, func(s *scene) error {
		return s.settle(s.push(s.a, "new", s.image("new")))
	}},
	{"mount", false, func(s *scene) error {
		i := s.image("mounted")
		for _, blob := range i.blobs {
			if err := s.mount(s.a, s.b, blob); err != nil {
				return err
			}
		}
		return s.settle(s.put(s.b, "mounted", i.manifest))
	}},
	{"push the collected image again", false, func(s *scene) error {
		return s.settle(s.push(s.a, "again", s.old))
	}},
	{"delete a tag", true, func(s *scene) error { return s.remove(s.other, "second") }},
	{"delete a manifest", true, func(s *scene) error { return s.remove(s.other, s.second.digest().String()) }},
	{"delete a blob", true, func(s *scene) error {
		_, err := s.want(http.MethodDelete, "/v2/"+s.a+"/blobs/"+digest.FromBytes(s.layer).String(), nil,
			http.StatusAccepted, http.StatusNotFound, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusConflict)
		return err
	}},
	{"retag", false, func(s *scene) error { return s.settle(s.push(s.other, "second", s.image("third"))) }},
	{"push an index", false, func(s *scene) error {
		index := buildIndex(s.old, s.image("arm"))
		for _, i := range []testImage{s.old, s.image("arm")} {
			there, err := s.want(http.MethodHead, "/v2/"+s.a+"/manifests/"+i.digest().String(), nil, http.StatusOK, http.StatusNotFound)
			if err != nil {
				return err
			}
			if there.status == http.StatusOK {
				continue
			}
			if err := s.push(s.a, i.digest().String(), i); err != nil {
				return s.settle(err)
			}
		}
		return s.settle(s.put(s.a, "index", index.manifest))
	}},
	{"push a referrer, then its subject", false, func(s *scene) error {
		subject := s.image("subject")
		referrer := buildReferrer(s.name+"referrer", &subject, s.layer)
		if err := s.push(s.a, referrer.digest().String(), referrer); err != nil {
			return s.settle(err)
		}
		if err := s.push(s.a, "subject", subject); err != nil {
			return s.settle(err)
		}
		if s.tolerant {
			return nil
		}
		_, err := s.pull(s.a, referrer.digest().String())
		return err
	}},
	{"cancel an upload", true, func(s *scene) error {
		location, err := s.begin(s.a)
		if err != nil {
			return err
		}
		a, err := s.want(http.MethodPatch, location, s.layer, http.StatusAccepted)
		if err != nil {
			return err
		}
		_, err = s.want(http.MethodDelete, a.header.Get("Location"), nil, http.StatusNoContent)
		return err
	}},
	{"pull", true, func(s *scene) error {
		a, err := s.want(http.MethodHead, "/v2/"+s.a+"/manifests/"+s.old.digest().String(), nil, http.StatusOK, http.StatusNotFound)
		if err != nil || a.status == http.StatusNotFound || s.tolerant {
			return err
		}
		_, err = s.pull(s.a, s.old.digest().String())
		return err
	}},
}

// Where the collector and a push can be stopped.
var (
	collectorSteps = []string{"gc.manifest", "gc.unlinked", "gc.condemned", "gc.locked", "gc.trashed", "gc.forgotten", "gc.emptied"}
	pushSteps      = []string{"upload.synced", "upload.locked", "upload.renamed", "upload.txn", "manifest.txn", "manifest.pushed"}
)

// interleave runs first until it reaches step, then all of second, then the
// rest of first. Where second has to wait for a lock that first holds, first
// goes on as soon as second waits. False: first never came to step.
func (y *yard) interleave(step string, first, second func()) (reached bool) {
	stopped, goOn := make(chan struct{}), make(chan struct{})
	var met atomic.Bool
	y.onStep(func(name string) {
		if name == step && met.CompareAndSwap(false, true) {
			close(stopped)
			<-goOn
		}
	})
	defer y.onStep(nil)
	firstDone, secondDone := make(chan struct{}), make(chan struct{})
	go func() { defer close(firstDone); first() }()
	select {
	case <-firstDone:
		second()
		return false
	case <-stopped:
	}
	go func() { defer close(secondDone); second() }()
	for ended := false; !ended && !y.LockAwaited(); {
		select {
		case <-secondDone:
			ended = true
		default:
			runtime.Gosched()
		}
	}
	close(goOn)
	<-firstDone
	<-secondDone
	return true
}

// set makes a scene.
func (y *yard) set(t *testing.T, name string) *scene {
	t.Helper()
	s := &scene{
		pusher: y.client(), name: name,
		a: name + "/a", b: name + "/b", other: name + "/other",
		layer: layerOf(name, 1000),
	}
	s.old, s.second = s.image("old"), s.image("second")
	mustDo(t, s.push(s.a, "old", s.old))
	mustDo(t, s.push(s.other, "second", s.second))
	mustDo(t, s.remove(s.a, "old"))
	return s
}

// strike checks that everything is sound, and that it can all be got rid of.
func (y *yard) strike(t *testing.T, s *scene) {
	t.Helper()
	y.check(t, true)
	if s.tolerant {
		y.later(2 * yardLease)
		y.collect(t)
	}
	for _, repo := range []string{s.a, s.b, s.other} {
		for _, tag := range []string{"old", "new", "again", "mounted", "second", "index", "subject"} {
			a, err := s.want(http.MethodHead, "/v2/"+repo+"/manifests/"+tag, nil, http.StatusOK, http.StatusNotFound)
			mustDo(t, err)
			if a.status == http.StatusNotFound {
				continue
			}
			if _, err := s.pull(repo, tag); err != nil {
				t.Errorf("pulling %s:%s: %v", repo, tag, err)
			}
			mustDo(t, s.remove(repo, tag))
		}
	}
	y.later(2 * yardLease)
	y.collect(t)
	y.checkEmpty(t)
}

// leases are how long the leases of a scene last.
var leases = []struct {
	name  string
	begin func(y *yard) // when the scene is set
	step  func(y *yard) // at each step
}{
	{"long", func(*yard) {}, func(*yard) {}},
	{"short", func(y *yard) { y.later(2 * yardLease) }, func(*yard) {}},
	{"none", func(y *yard) { y.later(2 * yardLease) }, func(y *yard) { y.later(2 * yardLease) }},
}

// TestCollect_EveryPairOfSteps plays each deed while the collector stands at
// each of its steps, and the collector while the deed stands at each of its.
func TestCollect_EveryPairOfSteps(t *testing.T) {
	for _, lease := range leases {
		t.Run(lease.name+" lease", func(t *testing.T) {
			t.Parallel()
			y := openYard(t, registry.Options{})
			met := map[string]int{}
			scenes := 0
			play := func(deed int, step string, collectorFirst bool) {
				scenes++
				s := y.set(t, fmt.Sprintf("s%d", scenes))
				s.tolerant = lease.name == "none"
				lease.begin(y)
				act := func() {
					lease.step(y)
					if err := deeds[deed].do(s); err != nil {
						t.Errorf("%s, at %s: %v", deeds[deed].name, step, err)
					}
					lease.step(y)
				}
				collect := func() {
					if _, err := y.Collect(t.Context(), false); err != nil {
						t.Errorf("collecting, %s at %s: %v", deeds[deed].name, step, err)
					}
				}
				first, second := act, collect
				if collectorFirst {
					first, second = collect, act
				}
				if y.interleave(step, first, second) {
					met[step]++
				}
				y.strike(t, s)
				if t.Failed() {
					t.Fatalf("the order %s, %s, collector first: %v", deeds[deed].name, step, collectorFirst)
				}
			}
			for deed := range deeds {
				if lease.name == "long" {
					play(deed, "gc.manifest", true)
					play(deed, "manifest.txn", false)
					continue
				}
				if lease.name == "none" && deeds[deed].idle {
					continue // it asks for no lease
				}
				for _, step := range collectorSteps {
					play(deed, step, true)
				}
				if lease.name == "none" || deeds[deed].idle {
					continue
				}
				for _, step := range pushSteps {
					play(deed, step, false)
				}
			}
			if lease.name != "short" {
				return
			}
			for _, step := range append(collectorSteps, pushSteps...) {
				if met[step] == 0 {
					t.Errorf("nothing ever stopped at %s", step)
				}
			}
			t.Logf("%d orders; stopped at %v", scenes, met)
		})
	}
}
