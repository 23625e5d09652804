package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/test/bench"
)

const tableName = "route table"

var tableSizes = []int{10, 1000, 100_000}

func mHosts(n int) string { return fmt.Sprintf("%d hosts", n) }

// hosts has another run of this program measure the route table: what it
// allocates is nobody else's.
func (b *run) hosts(ctx context.Context, n int) (bench.Sample, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, program, "-hosts", strconv.Itoa(n), "-to", b.replica, "-seconds", strconv.Itoa(b.seconds))
	c.Stderr = os.Stderr
	text, err := c.Output()
	if err != nil {
		return nil, err
	}
	var s bench.Sample
	return s, json.Unmarshal(text, &s)
}

// measureHosts measures an ingress with n hosts, each of a service of its own,
// behind net/http's server: the table itself, how soon a change is seen by a
// request, and what 100 changes a second do to the latency of all others.
func measureHosts(ctx context.Context, n int, to string, seconds int) (bench.Sample, error) {
	before := heap()
	in := ingress.New(ingress.Options{Log: slog.New(slog.DiscardHandler)})
	defer in.Close()
	began := time.Now()
	in.SetRoutes(routes(n))
	s := bench.Sample{"set_all_ms": milliseconds(time.Since(began))}
	s["bytes_per_host"] = float64(heap()-before) / float64(n)
	s["lookup_ns"] = lookup(in, n)

	const served = "served"
	in.Configure(ingress.PoolSpec{ServiceID: served, Name: served, Serving: []ingress.Target{{
		ID: "replica", Addr: to, Presumed: true, Health: platform.HealthCheck{Type: platform.HealthNone},
	}}})
	popular := min(n, 1000) // hosts that are asked for
	var all []ingress.Route
	for i := range popular {
		all = append(all, ingress.Route{Host: hostName(i), ServiceID: served})
	}
	in.Change(all, nil)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: in} //nolint:gosec // its only clients are this program's
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // requests fail when it does
	}()
	defer func() {
		_ = server.Close()
		<-ended
	}()
	for _, measure := range []func() error{
		func() error { return visible(ctx, s, in, l.Addr().String(), served) },
		func() error { return undisturbed(ctx, s, in, l.Addr().String(), served, popular, seconds) },
	} {
		if err := measure(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func hostName(i int) string { return fmt.Sprintf("app-%d.example.com", i) }

func routes(n int) []ingress.Route {
	all := make([]ingress.Route, n)
	for i := range all {
		all[i] = ingress.Route{Host: hostName(i), ServiceID: platform.ID(fmt.Sprintf("service-%d", i))}
	}
	return all
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first one only marked
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// lookup returns how many nanoseconds it takes to look a host up, of many in
// turn and as they stand in a Host header, less what it takes to read them: a
// server has just done that.
func lookup(in *ingress.Ingress, n int) float64 {
	asked := make([]string, 1<<14)
	for i := range asked {
		asked[i] = hostName(i*7919%n) + ":443"
	}
	const times = 1 << 21
	count := func(is func(string) bool) time.Duration {
		found := 0
		began := time.Now()
		for i := range times {
			if is(asked[i%len(asked)]) {
				found++
			}
		}
		took := time.Since(began)
		if found != times {
			panic("a host that was routed is not found")
		}
		return took
	}
	reading := count(func(host string) bool { return host[0] == 'a' && host[len(host)-1] == '3' })
	return float64(count(in.Has)-reading) / times
}

// visible measures how long a change takes until every request that comes sees
// it, and how long until the first one that saw it has its answer, the request's
// own time included.
func visible(ctx context.Context, s bench.Sample, in *ingress.Ingress, address string, service platform.ID) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	from := bufio.NewReader(c)
	ask := func(host string, want int) error {
		if _, err := fmt.Fprintf(c, "GET /200 HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
			return err
		}
		reply, err := http.ReadResponse(from, nil)
		if err != nil {
			return err
		}
		defer reply.Body.Close()
		if _, err := io.Copy(io.Discard, reply.Body); err != nil {
			return err
		}
		if reply.StatusCode != want {
			return fmt.Errorf("%s answers %s and not %d: the change is not seen by the next request", host, reply.Status, want)
		}
		return nil
	}
	if err := ask(hostName(0), http.StatusOK); err != nil {
		return err
	}
	var took, changed []time.Duration
	for i := range 300 {
		host := fmt.Sprintf("new-%d.example.com", i)
		began := time.Now()
		in.Change([]ingress.Route{{Host: host, ServiceID: service}}, nil)
		changed = append(changed, time.Since(began))
		if err := ask(host, http.StatusOK); err != nil {
			return err
		}
		took = append(took, time.Since(began))
		in.Change(nil, []string{host})
		if err := ask(host, http.StatusNotFound); err != nil {
			return err
		}
	}
	slices.Sort(changed)
	s["change_us"] = float64(changed[len(changed)/2]) / float64(time.Microsecond)
	s.Latencies("change_", changed)
	s.Latencies("visible_", took)
	return nil
}

// undisturbed loads the ingress without and with changes, in the order A B B A.
func undisturbed(ctx context.Context, s bench.Sample, in *ingress.Ingress, address string, service platform.ID, popular, seconds int) error {
	dir, err := os.MkdirTemp("", "ingressbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := fmt.Sprintf(`
local requests = {}
local at = 0
function init()
  for i = 0, %d do
    requests[i] = wrk.format("GET", "/200", {["Host"] = "app-" .. i .. ".example.com"})
  end
end
function request()
  at = (at + 1) %% %d
  return requests[at]
end
`, popular-1, popular)
	load := func() (bench.Sample, error) {
		return wrk(ctx, filepath.Join(dir, "hosts.lua"), script, "http://"+address+"/200", 64, time.Duration(max(1, seconds*2/5))*time.Second)
	}
	if _, err := load(); err != nil { // warms up
		return err
	}
	for _, changing := range []bool{false, true, true, false} {
		stop := func() {}
		key := "p99_quiet_ms"
		if changing {
			key, stop = "p99_changing_ms", change(in, service)
		}
		got, err := load()
		stop()
		if err != nil {
			return err
		}
		s[key] += got["p99_ms"] / 2
	}
	if s["p99_quiet_ms"] == 0 {
		return errors.New("wrk measured no latency")
	}
	return nil
}

// change routes hosts and takes them away, 100 times a second, until it is
// stopped.
func change(in *ingress.Ingress, service platform.ID) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		again := time.NewTicker(10 * time.Millisecond)
		defer again.Stop()
		for i := 0; ; i++ {
			host := fmt.Sprintf("changing-%d.example.com", i/2)
			if i%2 == 0 {
				in.Change([]ingress.Route{{Host: host, ServiceID: service}}, nil)
			} else {
				in.Change(nil, []string{host})
			}
			select {
			case <-end:
				return
			case <-again.C:
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
