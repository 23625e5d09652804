package ingress_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform/ingress"
)

func init() {
	if addr := os.Getenv("ZZ_BACKEND"); addr != "" {
		var l net.Listener
		var err error
		for {
			if l, err = net.Listen("tcp", addr); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "ok")
		}))
		os.Exit(0)
	}
}

func spawn(t *testing.T, addr string) *exec.Cmd {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "ZZ_BACKEND="+addr)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestZZKill(t *testing.T) {
	for _, n := range []int{2, 1} {
		w := newWorld(t, ingress.Options{})
		procs := make([]*exec.Cmd, n)
		var targets []ingress.Target
		for i := range n {
			addr := fmt.Sprintf("127.0.0.1:%d", 19470+i+n*10)
			procs[i] = spawn(t, addr)
			targets = append(targets, target(fmt.Sprint(i), "http://"+addr))
		}
		w.serve(targets...)
		var gets, posts, getFail, postFail atomic.Int32
		var wg sync.WaitGroup
		stop := make(chan struct{})
		payload := make([]byte, 64<<10)
		wg.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				wg.Go(func() {
					var body io.Reader
					m, n, bad := "GET", &gets, &getFail
					if i%2 == 0 {
						m, n, bad, body = "POST", &posts, &postFail, bytes.NewReader(payload)
					}
					r, _ := http.NewRequest(m, w.server.URL, body)
					r.Host = host
					res, err := w.client.Do(r)
					n.Add(1)
					if err != nil {
						bad.Add(1)
						t.Log(m, err)
						return
					}
					b, _ := io.ReadAll(res.Body)
					res.Body.Close()
					if res.StatusCode != 200 {
						bad.Add(1)
						t.Logf("%s %d %.100s", m, res.StatusCode, b)
					}
				})
			}
		})
		for k := range 40 {
			time.Sleep(time.Duration(300+k*7) * time.Millisecond)
			i := k % n
			procs[i].Process.Kill()
			procs[i].Wait()
			procs[i] = spawn(t, targets[i].Addr)
		}
		close(stop)
		wg.Wait()
		for _, p := range procs {
			p.Process.Kill()
			p.Wait()
		}
		t.Logf("%d replicas: GET %d failed of %d, POST %d of %d", n, getFail.Load(), gets.Load(), postFail.Load(), posts.Load())
	}
}
