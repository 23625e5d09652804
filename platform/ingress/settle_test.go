package ingress_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/denia-paas/denia/platform/ingress"
)

// A process that is being killed goes on accepting connections until its last
// thread is gone, which takes long where the machine is busy. A request that
// may be repeated must not be spent on it.
func TestRepeatWaitsUntilTheOnlyReplicaAnswersAgain(t *testing.T) {
	var dying atomic.Bool
	var checks, requests atomic.Int32
	replica := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if dying.Load() {
			switch r.URL.Path {
			case "/health":
				if checks.Add(1) == 8 {
					dying.Store(false)
				}
			default:
				requests.Add(1)
			}
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "alive")
	}))
	defer replica.Close()
	w := newWorld(t, ingress.Options{})
	w.serve(target("only", replica.URL))
	dying.Store(true)

	answer, err := w.client.Do(w.request("GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || string(body) != "alive" {
		t.Errorf("got %s %q (%v), want the answer of the replica that lives again", answer.Status, body, err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("the dying replica got the request %d times, want once", n)
	}
}

// A replica that lives and breaks one request off is not waited for.
func TestRequestThatIsAlwaysBrokenOffFails(t *testing.T) {
	var requests atomic.Int32
	replica := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			requests.Add(1)
			panic(http.ErrAbortHandler)
		}
	}))
	defer replica.Close()
	w := newWorld(t, ingress.Options{})
	w.serve(target("only", replica.URL))
	answer, err := w.client.Do(w.request("GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusBadGateway || requests.Load() != 3 {
		t.Errorf("got %s after %d attempts, want 502 after 3", answer.Status, requests.Load())
	}
}
