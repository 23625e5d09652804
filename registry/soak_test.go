package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/registry"
)

const (
	// soakEnv says how long the soak lasts, as "60s".
	soakEnv     = "DENIA_SOAK"
	soakDefault = 15 * time.Second

	soakPushers  = 8
	soakDeleters = 3
	soakLease    = 400 * time.Millisecond
	soakCollect  = 50 * time.Millisecond
)

// soak is many users at once. What each may expect: a blob that was answered
// with 200 or 201 can be used for three quarters of a lease; an image that was
// acknowledged can be pulled for as long, and while it has its tag.
type soak struct {
	t      *testing.T
	base   string
	pushed chan soakImage // for the deleters
	stop   chan struct{}

	pushes, pulls, late, deletes atomic.Int64
}

// soakImage is an image under a tag.
type soakImage struct {
	repo, tag string
	testImage
	unique bool // nobody else pushes it
}

func TestSoak(t *testing.T) {
	lasts := soakDefault
	if text := os.Getenv(soakEnv); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		mustDo(t, err)
	}
	y := openYard(t, registry.Options{Lease: soakLease})
	server := httptest.NewServer(y.Registry)
	defer server.Close()
	y.Start()
	s := &soak{t: t, base: server.URL, pushed: make(chan soakImage, 64), stop: make(chan struct{})}

	var pushers, deleters, collector sync.WaitGroup
	for n := range soakPushers {
		pushers.Go(func() { s.push(n) })
	}
	for n := range soakDeleters {
		deleters.Go(func() { s.delete(n) })
	}
	var freed atomic.Int64
	ended := make(chan struct{})
	collector.Go(func() {
		tick := time.NewTicker(soakCollect)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			run, err := y.Collect(t.Context(), false)
			if err != nil {
				t.Errorf("collecting: %v", err)
			}
			freed.Add(run.Bytes)
		}
	})
	timer := time.NewTimer(lasts)
	defer timer.Stop()
	<-timer.C
	close(s.stop)
	pushers.Wait()
	close(s.pushed)
	deleters.Wait()
	close(ended)
	collector.Wait()
	server.Close()

	t.Logf("%d images pushed, %d pulled, %d deleted, %d pushes outlived their leases", s.pushes.Load(), s.pulls.Load(), s.deletes.Load(), s.late.Load())
	if s.pushes.Load() == 0 || freed.Load() == 0 {
		t.Errorf("%d pushes, %d bytes freed: nothing was tested", s.pushes.Load(), freed.Load())
	}
	y.later(48 * time.Hour)
	y.collect(t)
	y.check(t, true)
	y.checkEmpty(t)
	if strings.Contains(y.log.String(), "level=ERROR") {
		t.Errorf("the registry logged errors:\n%s", y.log)
	}
}

// user is a client with connections of its own.
func (s *soak) user() (p *pusher, leave func()) {
	transport := &http.Transport{}
	return &pusher{&http.Client{Transport: transport}, s.base}, transport.CloseIdleConnections
}

func (s *soak) over() bool {
	select {
	case <-s.stop:
		return true
	default:
		return s.t.Failed()
	}
}

// push pushes images that share layers, which change as time goes by, so that
// what is collected is pushed again and again.
func (s *soak) push(n int) {
	p, leave := s.user()
	defer leave()
	random := rand.New(rand.NewPCG(uint64(n), 1))
	repos := []string{"soak/a", "soak/b", "soak/c"}
	for round := 0; !s.over(); round++ {
		repo := repos[random.IntN(len(repos))]
		var layers [][]byte
		for range 1 + random.IntN(3) {
			name := fmt.Sprintf("layer %d of %d", random.IntN(16), time.Now().Unix()/2%3)
			layers = append(layers, layerOf(name, 1+random.IntN(2)*40_000))
		}
		i := soakImage{repo: repo, tag: fmt.Sprintf("t%d-%d", n, round), unique: random.IntN(2) == 0}
		name := "shared"
		if i.unique {
			name = i.tag
		}
		i.testImage = buildImage(name, layers...)
		if err := s.pushOne(p, i, repos[random.IntN(len(repos))], random); err != nil {
			s.t.Errorf("pushing %s:%s: %v", i.repo, i.tag, err)
			return
		}
		s.pushed <- i
	}
}

// pushOne pushes an image and pulls it.
func (s *soak) pushOne(p *pusher, i soakImage, other string, random *rand.Rand) error {
	promised, err := s.store(p, i, other, random)
	if err != nil || random.IntN(4) > 0 {
		return errors.Join(err, s.pull(p, i, i.tag))
	}
	// By its digest it can be pulled for a while even without the tag.
	if err := p.remove(i.repo, i.tag); err != nil {
		return err
	}
	if err := s.pull(p, i, i.digest().String()); err != nil && (!notFound(err) || time.Now().Before(promised)) {
		return err
	}
	_, err = s.store(p, i, other, random)
	return err
}

// store pushes until it is acknowledged, and tells until when the image can be
// pulled whatever happens to its tag.
func (s *soak) store(p *pusher, i soakImage, other string, random *rand.Rand) (promised time.Time, err error) {
	for {
		promised = time.Now().Add(soakLease * 3 / 4)
		for _, blob := range i.blobs {
			switch random.IntN(5) {
			case 0:
				err = p.send(i.repo, blob)
			case 1:
				err = p.mount(other, i.repo, blob)
			default:
				err = p.offer(i.repo, blob)
			}
			if err != nil {
				return promised, err
			}
		}
		began := time.Now()
		err := p.put(i.repo, i.tag, i.manifest)
		switch {
		case refused(err) && time.Now().After(promised) && strings.Contains(err.Error(), "MANIFEST_BLOB_UNKNOWN"):
			s.late.Add(1)
		case err != nil:
			return promised, err
		default:
			s.pushes.Add(1)
			return began.Add(soakLease * 3 / 4), nil
		}
	}
}

func (s *soak) pull(p *pusher, i soakImage, reference string) error {
	content, err := p.pull(i.repo, reference)
	if err != nil {
		return err
	}
	if !bytes.Equal(content, i.manifest) {
		return errors.New("another manifest was pulled")
	}
	s.pulls.Add(1)
	return nil
}

// delete removes what was pushed, after a last pull.
func (s *soak) delete(n int) {
	p, leave := s.user()
	defer leave()
	random := rand.New(rand.NewPCG(uint64(n), 2))
	for i := range s.pushed {
		if s.t.Failed() {
			continue
		}
		if err := s.pull(p, i, i.tag); err != nil {
			s.t.Errorf("pulling %s:%s, which has its tag: %v", i.repo, i.tag, err)
			continue
		}
		reference := i.tag
		if i.unique && random.IntN(2) == 0 {
			reference = i.digest().String()
		}
		if err := p.remove(i.repo, reference); err != nil {
			s.t.Errorf("deleting %s:%s: %v", i.repo, reference, err)
		}
		s.deletes.Add(1)
	}
}
