package e2e

import (
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
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

// fill leaves between half a MiB and less than 1 MiB free on a small disk: too
// little for uploads and builds, enough for the database. The returned function
// gives the rest back; so does the end of the test, before the server goes.
func fill(t testing.TB, dir string) (empty func()) {
	t.Helper()
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	empty = func() {
		_ = filler.Close()
		if err := os.Remove(filler.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	t.Cleanup(empty)
	const least, step = 512 << 10, 64 << 10
	// The server writes its log and its database meanwhile.
	deadline := time.Now().Add(time.Minute)
	for size := int64(0); ; {
		if time.Now().After(deadline) {
			t.Fatalf("%s cannot be filled to between %d and %d bytes", dir, least, least+2*step)
		}
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		free := int64(fs.Bavail) * int64(fs.Bsize)
		switch {
		case free < least:
			size = max(size-step, 0)
			err = filler.Truncate(size)
		case free >= least+2*step:
			var n int
			n, err = filler.WriteAt(make([]byte, step), size)
			size += int64(n)
		default:
			return empty
		}
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
