package ingress

import (
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

// What an entry costs a request, from its beginning to the ring, and what the
// goroutine that hands it on costs beside.
func BenchmarkEntry(b *testing.B) {
	for name, query := range map[string]string{"plain": "", "query": "page=2&sort=price&access_token=0123456789abcdef"} {
		b.Run(name, func(b *testing.B) {
			in := New(Options{
				Client: func(*http.Request) (string, bool) { return "198.51.100.7", false },
				Record: func(platform.ID, []byte) error { return nil },
			})
			b.Cleanup(in.Close)
			p := newPool(in, "0198c0de-0000-7000-8000-000000000001")
			u := &upstream{target: Target{ID: "a", Label: "12.0", ReleaseID: "0198c0de-0000-7000-8000-000000000002"}}
			r := &http.Request{
				Method: http.MethodGet, Proto: "HTTP/1.1", Host: "shop.example.com",
				URL:    &url.URL{Path: "/assets/app.js", RawQuery: query},
				Header: http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}},
			}
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				x := exchange{in: in, pool: p, r: r, id: "0123456789abcdef0123456789abcdef", status: 200, sent: 200}
				x.began = time.Now()
				x.tried, x.tries, x.answered, x.whole = u, 1, time.Since(x.began), true
				x.note()
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime is what the process has used, in all its threads.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// An entry allocates nothing.
func TestEntryAllocatesNothing(t *testing.T) {
	in := New(Options{Record: func(platform.ID, []byte) error { return nil }})
	defer in.Close()
	p := newPool(in, "service")
	r := &http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", Host: "shop.example.com", RemoteAddr: "198.51.100.7:50000",
		URL: &url.URL{Path: "/assets/app.js", RawQuery: "page=2&token=3"}, Header: http.Header{"User-Agent": {"agent"}},
	}
	x := exchange{in: in, pool: p, r: r, id: "0123456789abcdef", status: 200, sent: 200}
	x.began = time.Now()
	x.whole = true
	if n := testing.AllocsPerRun(1000, x.note); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
