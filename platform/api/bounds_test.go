package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

// stuckWriter is a client that does not take its answer.
type stuckWriter struct {
	header  http.Header
	wrote   chan struct{} // closed at the first write
	release <-chan struct{}
	once    sync.Once
}

func (w *stuckWriter) Header() http.Header { return w.header }
func (w *stuckWriter) WriteHeader(int)     {}
func (w *stuckWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.wrote) })
	<-w.release
	return len(p), nil
}

// Stored lines are in memory until the client has taken them, so only a few
// clients get theirs at a time.
func TestStoredLogReadsAreBounded(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	s := e.service(e.project("shop"), "web")
	e.say("services/"+string(s.ID), "a line")

	release := make(chan struct{})
	var under sync.WaitGroup
	ask := func() *stuckWriter {
		w := &stuckWriter{header: http.Header{}, wrote: make(chan struct{}), release: release}
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/services/shop:web/logs", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		under.Go(func() { e.api.ServeHTTP(w, r) })
		return w
	}
	defer under.Wait()
	defer close(release)
	for range 4 {
		select {
		case <-ask().wrote:
		case <-time.After(10 * time.Second):
			t.Fatal("fewer than four clients are served at a time")
		}
	}
	fifth := ask()
	select {
	case <-fifth.wrote:
		t.Error("a fifth answer is in memory while four clients do not take theirs")
	case <-time.After(100 * time.Millisecond): // a slow machine cannot fail this, only miss a fault
	}
}

// A disk that is nearly full is said before the client has sent anything.
func TestUploadIsRefusedBelowTheReserve(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	e.service(e.project("shop"), "web")
	e.plane.reserve = platform.Errorf(platform.Unavailable, platform.CodeDiskFull, "1 MiB free, 2 MiB are kept")
	body := strings.NewReader("never read")
	e.do(token, "POST", "/v1/services/shop:web/uploads", struct{ io.Reader }{body}, "Content-Type", tarType).want(503, "disk_full")
	if body.Len() != len("never read") {
		t.Error("the body was read")
	}
	if left := e.uploadFiles(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
