package e2e

import (
	"archive/tar"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/denia-paas/denia/test/bench"
)

// The benchmarks measure what users wait for or pay for. Run them with
// make bench; each takes as long as it takes, whatever b.N is.

// usage is what Denia has used so far.
func (s *server) usage() bench.Usage {
	s.t.Helper()
	u, err := bench.UsageOf(s.cmd.Process.Pid)
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}

// Idle with 20 services: memory and CPU over a minute.
func BenchmarkIdleWith20Services(b *testing.B) {
	s := start(b)
	first := s.service("app0", nil)
	s.healthy(s.deployFiles(first, appContext("idle")))
	registry := s.publish(first)
	for i := 1; i < 20; i++ {
		id := s.service(fmt.Sprint("app", i), object{"source": object{"type": "external_image", "image": registry}})
		s.healthy(s.deploy(id, object{"type": "external_image", "image": registry}))
	}
	<-time.After(20 * time.Second) // what the deployments left to do
	before := s.usage()
	began := time.Now()
	s.profile(time.Minute)
	after := s.usage()
	b.ReportMetric(bench.MiB(after.RSS), "rss-MiB")
	b.ReportMetric(bench.MiB(after.Peak), "peak-MiB")
	b.ReportMetric(100*float64(after.CPU-before.CPU)/float64(time.Since(began)), "cpu-%-of-a-core")
	b.ReportMetric(0, "ns/op")
}

// profile waits, and if DENIA_PROFILE names a file writes a CPU profile of
// Denia meanwhile into it.
func (s *server) profile(d time.Duration) {
	s.t.Helper()
	file := os.Getenv("DENIA_PROFILE")
	if file == "" {
		<-time.After(d)
		return
	}
	reply, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=%.0f", s.admin, d.Seconds()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	content, err := io.ReadAll(reply.Body)
	if err == nil {
		err = os.WriteFile(file, content, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// publish pushes a service's image into a registry and returns its reference.
func (s *server) publish(service string) string {
	s.t.Helper()
	var d object
	s.expect(http.StatusOK, "GET", "/v1/deployments/"+s.latest(service), nil, &d)
	reference := emptyRegistry(s.t) + "/team/app:1"
	s.docker("tag", d.str("artifact.digest"), reference)
	defer s.docker("rmi", reference)
	s.docker("push", "-q", reference)
	return reference
}

// From the request of a deployment of an image the engine has to the first
// answer through the ingress, beside docker run and the first answer of the
// same image, in turns.
func BenchmarkWarmDeployment(b *testing.B) {
	s := start(b)
	id := s.running("app", "warm", nil)
	first := s.latest(id)
	var image object
	s.expect(http.StatusOK, "GET", "/v1/deployments/"+first, nil, &image)
	var ours, dockers []time.Duration
	for range 10 {
		began := time.Now()
		deployment := s.deploy(id, object{"type": "redeploy", "deployment_id": first})
		s.events("/v1/deployments/"+deployment+"/logs/stream", func(event, _ string) bool { return event != "done" })
		s.answers("app.localhost", "warm")
		ours = append(ours, time.Since(began))
		s.eventually(time.Minute, "the old one is gone", func() bool { return len(s.containers()) == 1 })

		began = time.Now()
		container := s.docker("run", "-d", "--memory", "512m", "--pids-limit", "512", "-e", "PORT=8080", image.str("artifact.digest"))[0]
		address := s.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", container)[0]
		for {
			reply, err := http.Get("http://" + address + ":8080/")
			if err == nil {
				_, _ = io.Copy(io.Discard, reply.Body)
				_ = reply.Body.Close()
				break
			}
			time.Sleep(time.Millisecond)
		}
		dockers = append(dockers, time.Since(began))
		s.docker("rm", "-f", container)
	}
	b.ReportMetric(median(ours), "denia-ms")
	b.ReportMetric(median(dockers), "docker-run-ms")
	b.ReportMetric(median(ours)-median(dockers), "difference-ms")
	b.ReportMetric(0, "ns/op")
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	middle := (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	return float64(middle) / float64(time.Millisecond)
}

// A 1 GiB upload: what it adds to the resident memory.
func BenchmarkUploadOf1GiB(b *testing.B) {
	s := start(b)
	id := s.service("app", nil)
	before := s.usage()
	body, feed := io.Pipe()
	go func() {
		packed, err := zstd.NewWriter(feed, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			_ = feed.CloseWithError(err)
			return
		}
		const size = 1<<30 - 1<<20 // the limit counts bytes as sent
		w := tar.NewWriter(packed)
		err = w.WriteHeader(&tar.Header{Name: "noise", Typeflag: tar.TypeReg, Size: size})
		if err == nil {
			_, err = io.CopyN(w, rand.NewChaCha8([32]byte{}), size)
		}
		for _, closer := range []io.Closer{w, packed} {
			if err == nil {
				err = closer.Close()
			}
		}
		_ = feed.CloseWithError(err)
	}()
	began := time.Now()
	if status, code, detail := s.send(id, body); status != http.StatusCreated {
		b.Fatalf("%d %s: %s", status, code, detail)
	}
	took := time.Since(began)
	after := s.usage()
	b.ReportMetric(bench.MiB(before.RSS), "rss-before-MiB")
	b.ReportMetric(bench.MiB(after.Peak), "rss-peak-MiB")
	b.ReportMetric(1024/took.Seconds(), "MiB/s")
	b.ReportMetric(0, "ns/op")
}
