package e2e

import (
	"net"
	"net/http/httptest"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/denia-paas/denia/internal/testpg"
)

const waitForRemoval = 60 * time.Second

// postgres returns the URL of a fresh database.
func postgres(t testing.TB) string { return testpg.Start(t) }

// emptyRegistry runs a registry and returns its host and port.
func emptyRegistry(t testing.TB) string {
	server := httptest.NewServer(registry.New())
	t.Cleanup(server.Close)
	return server.Listener.Addr().(*net.TCPAddr).String()
}

// reload has Caddy take the Caddyfile again.
func (s *server) reload() (string, error) {
	out, err := exec.Command(binary, "reload", "--config", s.caddyfile()).CombinedOutput()
	return string(out), err
}

// logHas tells whether a log has a line with the text.
func (s *server) logHas(of, text string) bool {
	found := false
	s.events(of+"/logs/stream?tail=200", func(event, data string) bool {
		found = found || event == "log" && strings.Contains(data, text)
		return !found && event != "done"
	})
	return found
}

// fill is how many bytes leave half a MiB free.
func fill(t testing.TB, dir string) int {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int(fs.Bavail)*int(fs.Bsize) - 512<<10
}
