package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// activated starts a Denia whose listening sockets are somebody else's, as
// systemd's socket units have it.
func activated(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), admin: freePort(t), token: "dn_adm_e2e-test-admin-token", log: &logBuffer{}}
	for _, port := range []*int{&s.port, &s.https} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		*port = l.Addr().(*net.TCPAddr).Port
		s.files = append(s.files, file)
		_ = l.Close() // the file stays open
	}
	s.data = filepath.Join(s.dir, "data")
	s.path = filepath.Join(s.dir, "denia")
	if err := os.Link(binary, s.path); err != nil {
		t.Fatal(err)
	}
	s.configure(fmt.Sprintf(`{
	admin 127.0.0.1:%d
	persist_config off
	shutdown_delay 1s
	grace_period 10s
	skip_install_trust
	auto_https disable_redirects
	on_demand_tls {
		permission denia
	}
	servers {
		listener_wrappers {
			denia
			tls
		}
	}
	denia {
		data_dir %s
	}
}
http:// {
	bind fd/3 {
		protocols h1
	}
	denia
}
https:// {
	bind fd/4 {
		protocols h1 h2
	}
	tls {
		issuer internal
		on_demand
	}
	denia
}
`, s.admin, s.data))
	t.Cleanup(func() {
		s.removeEverything()
		s.stop()
		for _, file := range s.files {
			_ = file.Close()
		}
		if t.Failed() {
			t.Logf("Denia's log:\n%s", tail(s.log.String(), 12000))
		}
	})
	s.run()
	return s
}

// sockets opens WebSockets, and tells how each ended.
func (s *server) sockets(ctx context.Context, host string, n int) <-chan error {
	s.t.Helper()
	client := s.client()
	client.Timeout = 0
	ended := make(chan error, n)
	for range n {
		c, _, err := websocket.Dial(ctx, "http://"+host+"/ws", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			s.t.Fatal(err)
		}
		go func() {
			defer func() { _ = c.CloseNow() }()
			_, _, err := c.Read(ctx)
			ended <- err
		}()
	}
	return ended
}

// upgrader runs packaging/denia-upgrade, with the test as systemd.
func (s *server) upgrader() (upgrade func(program string) (string, error)) {
	var one sync.Mutex
	systemd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		one.Lock()
		defer one.Unlock()
		began := time.Now()
		s.stop()
		ended := time.Now()
		if !s.starts() {
			w.WriteHeader(http.StatusInternalServerError)
		}
		s.t.Logf("stopping at %s took %s, starting %s", began.Format("15:04:05.000"), ended.Sub(began).Round(time.Millisecond), time.Since(ended).Round(time.Millisecond))
	}))
	s.t.Cleanup(systemd.Close)
	return func(program string) (string, error) {
		cmd := exec.Command("../../packaging/denia-upgrade", program)
		cmd.Env = append(os.Environ(), "DENIA_PROGRAM="+s.path, "DENIA_CONFIG="+s.caddyfile(), "DENIA_RESTART=curl -fsS "+systemd.URL, "HOME="+s.dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// A new program takes over under load, and neither one that does not run nor one
// that fails at its start costs a request.
func TestUpgradeUnderLoad(t *testing.T) {
	s := activated(t)
	s.running("app", "hello", nil)
	upgrade := s.upgrader()
	program := func(name, content string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	n := amount(t, "DENIA_UPGRADE_SOCKETS", 50)
	open := s.sockets(ctx, "app.localhost", n)
	l := s.load("app.localhost", amount(t, "DENIA_UPGRADE_RATE", 100), false)
	ended := s.secureLoad(ctx)

	before := s.cmd.Process.Pid
	if out, err := upgrade(program("broken", "\x7fELF, but not really")); err == nil || s.cmd.Process.Pid != before {
		t.Errorf("a program that does not run: %v, process %d, was %d\n%s", err, s.cmd.Process.Pid, before, out)
	}
	select {
	case err := <-open:
		t.Errorf("a WebSocket ended although nothing was replaced: %v", err)
	default:
	}
	began := time.Now()
	if out, err := upgrade(binary); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("upgraded within %s", time.Since(began).Round(time.Millisecond))
	if s.cmd.Process.Pid == before {
		t.Error("the process is the old one")
	}
	for range n {
		if err := <-open; websocket.CloseStatus(err) != websocket.StatusGoingAway {
			t.Errorf("a WebSocket ended with %v, want 1001", err)
		}
	}
	// It runs, takes the configuration, and then fails.
	failing := program("failing", fmt.Sprintf("#!/bin/sh\n[ $1 != run ] || exit 1\nexec %s \"$@\"\n", binary))
	if out, err := upgrade(failing); err == nil || !strings.Contains(out, "going back") {
		t.Errorf("a program that fails: %v\n%s", err, out)
	}
	l.end()
	ended()
	s.answers("app.localhost", "hello")
}

// secureLoad has one client each of HTTP/1.1 and HTTP/2 with TLS send one request
// after the other over kept connections, until it is told to end.
func (s *server) secureLoad(ctx context.Context) (end func()) {
	s.t.Helper()
	roots := s.localRoots()
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for major := 1; major <= 2; major++ {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.https))
			},
			Protocols: new(http.Protocols),
		}
		transport.Protocols.SetHTTP1(major == 1)
		transport.Protocols.SetHTTP2(major == 2)
		clients.Go(func() {
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: time.Minute}
			for n := 0; ; n++ {
				answer, err := client.Post("https://app.localhost/echo", "text/plain", strings.NewReader("body"))
				if err == nil {
					_, err = io.Copy(io.Discard, answer.Body)
					_ = answer.Body.Close()
				}
				switch {
				case ctx.Err() != nil:
					s.t.Logf("%d requests over HTTP/%d with TLS", n, major)
					return
				case err != nil:
					s.t.Errorf("HTTP/%d with TLS, request %d: %v", major, n, err)
				case answer.StatusCode != http.StatusOK || answer.ProtoMajor != major:
					s.t.Errorf("HTTP/%d with TLS, request %d: %s %s", major, n, answer.Proto, answer.Status)
				}
			}
		})
	}
	return func() {
		cancel()
		clients.Wait()
	}
}

// starts runs the process, and tells whether it came to listen.
func (s *server) starts() bool {
	s.t.Helper()
	if err := s.launch(); err != nil {
		return false
	}
	ended := false
	up := poll(s.t.Context(), soon, 30*time.Second, func() bool {
		select {
		case <-s.done:
			ended = true
			return true
		default:
		}
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, "GET", s.url("/healthz"), nil)
		if err != nil {
			s.t.Fatal(err)
		}
		request.Host = s.host
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		_ = reply.Body.Close()
		return reply.StatusCode == http.StatusOK
	})
	return up && !ended
}
