package ingress_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

func TestWildcardsStandForOneLabel(t *testing.T) {
	w := newWorld(t, ingress.Options{})
	w.serve(target("a", newBackend(t, says("wild")).URL))
	w.SetRoutes([]ingress.Route{
		{Host: "*.Example.com", ServiceID: service}, {Host: "own.example.com", ServiceID: "service-2"},
		{Host: "*", ServiceID: service}, {Host: "*.", ServiceID: service}, {Host: "*bad.test", ServiceID: service}, {Host: ".bad.test", ServiceID: service}, {Host: "", ServiceID: service},
	})
	for host, found := range map[string]bool{
		"a.example.com":         true,
		"A.EXAMPLE.com:8080":    true,
		"a.example.com.":        true,
		"own.example.com":       true,
		"example.com":           false,
		"a.b.example.com":       false,
		".example.com":          false,
		".Example.com":          false,
		"..example.com":         false,
		"bad.test":              false,
		"x.bad.test":            false,
		".bad.test":             false,
		"com":                   false,
		"":                      false,
		".":                     false,
		"a.example.com.example": false,
	} {
		if got := w.Has(host); got != found {
			t.Errorf("Has(%q) = %v, want %v", host, got, found)
		}
	}
	ask := func(host string) answer {
		r := w.request("GET", "/", nil)
		r.Host = host
		return w.do(r)
	}
	if a := ask("any.example.com"); a.body != "wild" {
		t.Errorf("any.example.com answers %d %s", a.StatusCode, a.body)
	}
	w.Change(nil, []string{"own.example.com"})
	if a := ask("own.example.com"); a.body != "wild" {
		t.Errorf("without a route of its own, own.example.com answers %d %s", a.StatusCode, a.body)
	}
	w.Change(nil, []string{"*.example.com"})
	if w.Has("any.example.com") || w.Has("own.example.com") {
		t.Error("the wildcard is gone and still found")
	}
}

// Whatever is changed, one at a time or all at once, the table is what a plain
// map would be.
func TestChangesAddUp(t *testing.T) {
	in := ingress.New(ingress.Options{})
	defer in.Close()
	random := rand.New(rand.NewPCG(5, 6))
	want := map[string]bool{}
	domain := func() string { // of every length, up to 12 to 41 bytes with a host
		n := random.IntN(30)
		return fmt.Sprintf("%sd%d.test", strings.Repeat("x", n), n)
	}
	name := func() string {
		if random.IntN(8) == 0 {
			return "*." + domain()
		}
		return fmt.Sprintf("h%d.%s", random.IntN(20), domain())
	}
	for range 3000 {
		switch random.IntN(20) {
		case 0:
			clear(want)
			var all []ingress.Route
			for range random.IntN(300) {
				host := name()
				want[host] = true
				all = append(all, ingress.Route{Host: host, ServiceID: platform.ID(fmt.Sprint(random.IntN(9)))})
			}
			in.SetRoutes(all)
		default:
			var set []ingress.Route
			var remove []string
			for range random.IntN(4) {
				host := name()
				delete(want, host)
				remove = append(remove, strings.ToUpper(host)+".")
			}
			for range random.IntN(4) {
				host := name()
				want[host] = true
				set = append(set, ingress.Route{Host: host, ServiceID: platform.ID(fmt.Sprint(random.IntN(9)))})
			}
			in.Change(set, remove)
		}
		for range 5 {
			host := fmt.Sprintf("h%d.%s", random.IntN(20), domain())
			_, domain, _ := strings.Cut(host, ".")
			if got := in.Has(host); got != (want[host] || want["*."+domain]) {
				t.Fatalf("Has(%s) = %v; its own route: %v, the wildcard's: %v", host, got, want[host], want["*."+domain])
			}
		}
	}
}

// A pool that lost its last host is forgotten, one that keeps some is not, and
// is still known by one of them.
func TestChangeKeepsPoolsThatHaveHosts(t *testing.T) {
	hosts := make(chan string, 100)
	backend := newBackend(t, says("hello"))
	backend.Config.Handler = recordHost(hosts, backend.Config.Handler)
	w := newWorld(t, ingress.Options{})
	w.Change([]ingress.Route{{Host: "a.test", ServiceID: service}, {Host: "b.test", ServiceID: service}}, []string{host})
	if w.Has(host) || !w.Has("a.test") || !w.Has("b.test") {
		t.Fatal("the routes are others than they should be")
	}
	w.Change(nil, []string{"a.test", "never.test"})
	w.serve(target("a", backend.URL))
	if got := <-hosts; got != "b.test" {
		t.Errorf("the probe asks for %s", got)
	}
	// Of two routes for one host the first counts, and a set goes before a
	// removal.
	w.Change([]ingress.Route{{Host: "b.test", ServiceID: service}, {Host: "b.test", ServiceID: "service-2"}}, []string{"b.test"})
	r := w.request("GET", "/", nil)
	r.Host = "b.test"
	if a := w.do(r); a.body != "hello" {
		t.Errorf("b.test answers %d %s", a.StatusCode, a.body)
	}
	w.Change(nil, []string{"b.test"})
	if w.Has("b.test") {
		t.Error("b.test is still there")
	}
	if status := w.Status(service); len(status.Targets) != 1 {
		t.Errorf("without a host the pool is %+v", status)
	}
	w.Close()
	w.Change([]ingress.Route{{Host: "late.test", ServiceID: service}}, nil)
	if w.Has("late.test") {
		t.Error("a closed ingress was changed")
	}
}

// Whoever sees one of two hosts that were routed in one step sees the other as
// well, while others change and look up.
func TestChangeIsAtomic(t *testing.T) {
	in := ingress.New(ingress.Options{})
	defer in.Close()
	in.SetRoutes(routes(500))
	const rounds = 2000
	pair := func(i int64) (string, string) { return fmt.Sprintf("a%d.test", i), fmt.Sprintf("b%d.test", i) }
	var round atomic.Int64
	var readers, writers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for i := round.Load(); i < rounds; i = round.Load() {
				one, other := pair(i)
				if i%2 == 0 {
					one, other = other, one
				}
				if in.Has(one) && !in.Has(other) {
					t.Errorf("%s is routed and %s is not", one, other)
					return
				}
				if !in.Has("app-7.example.com") {
					t.Error("a host that nobody changes is gone")
					return
				}
			}
		})
	}
	writers.Go(func() {
		for i := range int64(rounds) {
			one, other := pair(i)
			in.Change([]ingress.Route{{Host: one, ServiceID: service}, {Host: other, ServiceID: service}}, nil)
			round.Store(i + 1)
		}
	})
	writers.Go(func() {
		for i := range rounds {
			host := fmt.Sprintf("other-%d.test", i%50)
			in.Change([]ingress.Route{{Host: host, ServiceID: "service-2"}}, nil)
			in.Change(nil, []string{host})
		}
	})
	writers.Wait()
	readers.Wait()
}

func routes(n int) []ingress.Route {
	all := make([]ingress.Route, n)
	for i := range all {
		all[i] = ingress.Route{Host: fmt.Sprintf("app-%d.example.com", i), ServiceID: platform.ID(fmt.Sprintf("service-%d", i))}
	}
	return all
}

var sizes = []int{10, 1000, 100_000}

// BenchmarkLookup looks up hosts with a port, and reports what a host costs in
// memory: its name, its place in the table, and a service of its own that is
// not configured yet.
func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			before := heap()
			in := ingress.New(ingress.Options{})
			defer in.Close()
			in.SetRoutes(routes(n))
			each := float64(heap()-before) / float64(n)
			hosts := make([]string, 1<<14)
			for i := range hosts {
				hosts[i] = fmt.Sprintf("app-%d.example.com:443", i*7919%n)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				in.Has(hosts[i&(1<<14-1)])
				i++
			}
			b.ReportMetric(each, "B/host")
		})
	}
}

// BenchmarkChange routes a host, sees that it is, and takes the route away.
func BenchmarkChange(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := ingress.New(ingress.Options{})
			defer in.Close()
			in.SetRoutes(routes(n))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				host := fmt.Sprintf("new-%d.example.com", i)
				in.Change([]ingress.Route{{Host: host, ServiceID: "service-1"}}, nil)
				if !in.Has(host) {
					b.Fatal("the host is not routed")
				}
				in.Change(nil, []string{host})
				i++
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// recordHost tells for which host a handler was asked.
func recordHost(hosts chan<- string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case hosts <- r.Host:
		default:
		}
		next.ServeHTTP(w, r)
	})
}
