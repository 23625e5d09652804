package e2e

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
)

// An engine that takes connections and never answers keeps Denia neither from
// listening nor from telling about itself.
func TestStartWhileTheEngineHangs(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked sync.Once
	hangs := make(chan struct{})
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			asked.Do(func() { close(hangs) })
			connections.Go(func() {
				_, _ = io.Copy(io.Discard, conn) // until the other side gives up
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		connections.Wait()
	})
	s := start(t, "docker_host unix://"+socket)
	<-hangs
	s.expect(http.StatusOK, "GET", "/v1/node", nil, nil)
	s.expect(http.StatusOK, "GET", "/v1/services", nil, nil)
}
