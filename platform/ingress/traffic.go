package ingress

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

// DurationBounds are the upper bounds, in seconds, of the buckets in which
// durations of requests are counted.
var DurationBounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

var bounds = func() (b [len(DurationBounds)]time.Duration) {
	for i, seconds := range DurationBounds {
		b[i] = time.Duration(seconds * float64(time.Second))
	}
	return b
}()

const (
	// maxReleases bounds the counts of one service: of releases that are gone,
	// those that had requests last are kept.
	maxReleases = 8
	// keepReleases is how long the counts of a release that is gone are kept,
	// for whoever comes by to read them.
	keepReleases = 10 * time.Minute
)

// Traffic is what went through the Ingress to one service.
type Traffic struct {
	ServiceID     platform.ID
	Project, Name string
	Waiting       int // requests that wait for a ready replica now
	Releases      []ReleaseTraffic
}

// ReleaseTraffic is what went to one release. What Denia answered without
// having tried any stands under the empty ReleaseID.
type ReleaseTraffic struct {
	ReleaseID platform.ID
	Number    string // the release's, from the labels of its replicas
	InFlight  int
	Totals
}

// Totals count since the release's first request; a release that is gone for a
// while, and comes back, begins anew.
type Totals struct {
	Requests   [6]uint64 // by the status's first digit; 0 is any other
	Durations  [len(DurationBounds) + 1]uint64
	Seconds    float64 // the sum of the durations counted
	BytesIn    uint64
	BytesOut   uint64
	Retries    uint64
	ColdStarts uint64
}

// counts are the Totals of a release as they grow. The recorder's mu guards
// them.
type counts struct {
	release platform.ID
	number  string
	last    time.Time
	took    time.Duration
	Totals
}

// of returns the counts of u's release. r.mu must be held.
func (r *recorder) of(u *upstream) *counts {
	var release platform.ID
	if u != nil {
		release = u.target.ReleaseID
	}
	for _, c := range r.counts {
		if c.release == release {
			return c
		}
	}
	if len(r.counts) >= maxReleases {
		oldest := slices.MinFunc(r.counts, func(a, b *counts) int { return a.last.Compare(b.last) })
		r.counts = slices.DeleteFunc(r.counts, func(c *counts) bool { return c == oldest })
	}
	c := &counts{release: release}
	if u != nil {
		c.number = u.target.number()
	}
	r.counts = append(r.counts, c)
	return c
}

// number is that of the target's release.
func (t *Target) number() string {
	number, _, _ := strings.Cut(t.Label, ".")
	return cmp.Or(number, string(t.ReleaseID))
}

func (c *counts) add(x *exchange, e *platform.AccessEntry) {
	c.last = e.TS
	class := e.Status / 100
	if class < 1 || class > 5 {
		class = 0
	}
	c.Requests[class]++
	if !x.endless {
		bucket := 0
		for bucket < len(bounds) && e.Duration > bounds[bucket] {
			bucket++
		}
		c.Durations[bucket]++
		c.took += e.Duration
	}
	c.BytesIn += uint64(e.BytesIn)
	c.BytesOut += uint64(e.BytesOut)
	if x.tries > 1 {
		c.Retries += uint64(x.tries - 1)
	}
	if e.ColdStart {
		c.ColdStarts++
	}
}

// Traffic reports on all services that had requests, or have any now. Releases
// that are gone, and had none for ten minutes, are left out.
func (in *Ingress) Traffic() []Traffic {
	var all []Traffic
	for _, p := range in.snapshot() {
		if t := p.traffic(); t.Waiting > 0 || len(t.Releases) > 0 {
			all = append(all, t)
		}
	}
	return all
}

func (p *pool) traffic() Traffic {
	type live struct {
		number   string
		inFlight int
	}
	there := map[platform.ID]live{}
	p.mu.Lock()
	if p.removed {
		p.mu.Unlock()
		return Traffic{}
	}
	t := Traffic{ServiceID: p.service, Project: p.spec.Project, Name: p.spec.Name, Waiting: int(p.waiting.Load())}
	for _, u := range p.upstreams {
		release := u.target.ReleaseID
		there[release] = live{u.target.number(), there[release].inFlight + int(u.inFlight())}
	}
	p.mu.Unlock()
	if r := p.entries.Load(); r != nil {
		now := time.Now()
		r.mu.Lock()
		r.counts = slices.DeleteFunc(r.counts, func(c *counts) bool {
			_, stays := there[c.release]
			return !stays && now.Sub(c.last) > keepReleases
		})
		for _, c := range r.counts {
			totals := c.Totals
			totals.Seconds = c.took.Seconds()
			t.Releases = append(t.Releases, ReleaseTraffic{ReleaseID: c.release, Number: c.number, InFlight: there[c.release].inFlight, Totals: totals})
			delete(there, c.release)
		}
		r.mu.Unlock()
	}
	for release, live := range there {
		if live.inFlight > 0 { // and none has ended yet
			t.Releases = append(t.Releases, ReleaseTraffic{ReleaseID: release, Number: live.number, InFlight: live.inFlight})
		}
	}
	return t
}

// Lost is how many access entries were not kept, because Options.Record did
// not take them in time.
func (in *Ingress) Lost() uint64 { return in.lost.Load() }

// Strangers is how many requests came for hosts that no service has.
func (in *Ingress) Strangers() uint64 { return in.unknown.Load() }
