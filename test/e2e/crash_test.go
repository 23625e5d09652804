package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// A power cut at a random moment of a deployment: after the restart every
// service answers at once, the deployment ends, and nothing is left over.
func TestKilledAtAnyMoment(t *testing.T) {
	s := start(t)
	steady := s.running("steady", "steady", nil)
	id := s.running("app", "one", nil)
	first := s.latest(id)
	// A fixed sequence, so that a failure can be had again.
	random := rand.New(rand.NewPCG(1, uint64(amount(t, "DENIA_SEED", 1))))
	times := amount(t, "DENIA_KILLS", 6)
	var slowest, longest time.Duration
	for i := range times {
		var deployment string
		if i%3 == 0 {
			deployment = s.deploy(id, object{"type": "redeploy", "deployment_id": first})
		} else {
			deployment = s.deployFiles(id, appContext(fmt.Sprint("number ", i)))
		}
		moment := time.Duration(random.Int64N(int64(3 * time.Second)))
		<-time.After(moment) // the moment is what is tested, not something awaited
		s.kill()
		s.run()
		listening := time.Now()
		for _, host := range []string{"steady.localhost", "app.localhost"} {
			if status, text := s.get(host, "/"); status != http.StatusOK {
				t.Errorf("kill %d after %s: %s answers %d %s", i, moment, host, status, text)
			}
		}
		slowest = max(slowest, time.Since(listening))
		d := s.finished(deployment)
		longest = max(longest, time.Since(listening))
		if status := d.str("status"); status != "healthy" && status != "inactive" {
			t.Errorf("kill %d after %s: the deployment ended %s: %v", i, moment, status, d["error"])
		}
		s.eventually(30*time.Second, "one container a service is left", func() bool { return len(s.containers()) == 2 })
	}
	t.Logf("%d kills: every service answered within %s of the listener's start, every deployment ended within %s",
		times, slowest.Round(time.Millisecond), longest.Round(time.Millisecond))
	if slowest > 5*time.Second || longest > 30*time.Second {
		t.Errorf("too slow: promised are 5s and 30s")
	}
	s.expect(http.StatusNoContent, "DELETE", "/v1/services/"+steady, nil, nil)
	s.kill()
	s.run()
	s.eventually(30*time.Second, "a service deleted before the power cut leaves nothing", func() bool { return len(s.containers()) == 1 })
}

// The end of the process waits for no upload, however slow.
func TestStopDoesNotWaitForASlowUpload(t *testing.T) {
	s := start(t)
	id := s.service("app", nil)
	body, feed := io.Pipe()
	defer feed.Close()
	answered := make(chan int, 1)
	go func() {
		request, _ := http.NewRequest("POST", s.url("/v1/services/"+id+"/uploads"), body)
		request.Header.Set("Authorization", "Bearer "+s.token)
		request.Header.Set("Content-Type", "application/zstd")
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			answered <- 0
			return
		}
		_ = reply.Body.Close()
		answered <- reply.StatusCode
	}()
	archive := appContext("slow").archive(t)
	if _, err := feed.Write(archive[:len(archive)/2]); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.stop()
	t.Logf("Denia ended after %s, the upload with status %d", time.Since(began).Round(time.Millisecond), <-answered)
	s.run()
	if left := s.uploadFiles(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Ctrl-C and a new start leave the applications running.
func TestStopLeavesApplicationsRunning(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.running("app", "hello", object{"scale": object{"min": 2, "max": 2}})
	before := s.containers()
	s.stop()
	s.run()
	s.answers("app.localhost", "hello")
	if after := s.containers(); strconv.Quote(fmt.Sprint(after)) != strconv.Quote(fmt.Sprint(before)) {
		t.Errorf("containers were %v, are %v: running ones should be taken over", before, after)
	}
}

// A log line printed is there after redeploys and restarts, once.
func TestServiceLogsOutliveContainers(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.running("app", "one", nil)
	s.get("app.localhost", "/print?line=from-the-first")
	s.healthy(s.deployFiles(id, appContext("two")))
	s.get("app.localhost", "/print?line=from-the-second")
	s.stop()
	s.run()
	s.get("app.localhost", "/print?line=after-the-restart")
	for _, line := range []string{"from-the-first", "from-the-second", "after-the-restart"} {
		s.eventually(10*time.Second, "the log has "+line, func() bool {
			var lines []object
			s.expect(http.StatusOK, "GET", "/v1/services/"+id+"/logs?tail=1000&grep="+line, nil, &lines)
			if len(lines) > 1 {
				t.Fatalf("%s is there %d times", line, len(lines))
			}
			return len(lines) == 1
		})
	}
	request, _ := http.NewRequest("GET", s.url("/v1/services/"+id+"/logs?grep=from-the"), nil)
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Header.Set("Accept", "text/plain")
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	text, _ := io.ReadAll(reply.Body)
	if string(text) == "" || text[0] == '[' {
		t.Errorf("as plain text the log reads %q", text)
	}
}
