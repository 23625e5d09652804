package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// process is a server that was started for the run.
type process struct {
	name    string
	address string // host:port it serves on
	admin   string // of Caddy's admin endpoint; empty: none
	cmd     *exec.Cmd
	done    chan struct{}
	log     *tail
	idleMiB float64
}

// tail keeps the end of a process's output.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 8<<10; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// launch starts a program and waits until something answers on its address.
func (b *bench) launch(ctx context.Context, p *process, env []string, program string, args ...string) error {
	p.log = new(tail)
	p.cmd = exec.CommandContext(ctx, program, args...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 20 * time.Second
	p.cmd.Dir = b.dir
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.done = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	dialer := &net.Dialer{Timeout: time.Second}
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := dialer.DialContext(ctx, "tcp", p.address)
		if err == nil {
			_ = c.Close()
			// For those who want to look on, with a profile for example.
			b.say("%-17s is process %d on %s %s", p.name, p.cmd.Process.Pid, p.address, p.admin)
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at its start:\n%s", p.name, p.log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen:\n%s", p.name, p.log)
		}
	}
}

// end stops the process and waits for it.
func (p *process) end() {
	if p == nil || p.done == nil {
		return
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (b *bench) stop() {
	if b.denia != nil {
		b.denia.end()
	}
	if b.docker != nil {
		b.docker.end()
	}
	b.nginx.end()
	b.caddy.end()
}

// start starts all servers, and takes what they need when idle.
func (b *bench) start(ctx context.Context) (err error) {
	if b.denia, err = b.startDenia(ctx, "denia", b.dir); err != nil {
		return err
	}
	if b.docker, err = b.startDocker(ctx, b.dir); err != nil {
		return err
	}
	if err := os.Mkdir(b.static(), 0o700); err != nil {
		return err
	}
	if b.nginx, err = b.startNginx(ctx); err != nil {
		return err
	}
	if b.caddy, err = b.startCaddy(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	for _, p := range []*process{b.denia.process, b.docker.process, b.nginx, b.caddy} {
		u, err := p.usage()
		if err != nil {
			return err
		}
		p.idleMiB = mib(u.rss)
		b.say("%-17s %6.1f MiB idle", p.name, p.idleMiB)
		b.report.add("idle", p.name, sample{"rss_mib": p.idleMiB})
	}
	return nil
}

// static is the directory the web servers serve.
func (b *bench) static() string { return filepath.Join(b.dir, "static") }

// The project and the service all repositories of Denia are under.
const (
	project = "bench"
	service = "app"
)

// startDenia starts Denia on an empty data directory; options go into the block
// denia of its Caddyfile. No Docker Engine is needed, and none is touched.
func (b *bench) startDenia(ctx context.Context, name, within string, options ...string) (*registry, error) {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	g := &registry{
		process:  &process{name: name},
		data:     filepath.Join(within, name),
		password: "dn_adm_" + hex.EncodeToString(secret),
		prefix:   project + "/" + service + "/",
	}
	g.remove = g.removeFromDenia
	var err error
	if g.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	if g.admin, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(g.address, ":")
	config := g.data + ".Caddyfile"
	text := fmt.Sprintf(`{
	admin %s
	persist_config off
	denia {
		data_dir %s
		docker_host unix://%s
		%s
	}
}
http://:%s {
	bind 127.0.0.1
	denia
}
`, g.admin, g.data, filepath.Join(b.dir, "no-engine.sock"), strings.Join(options, "\n\t\t"), port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := b.launch(ctx, g.process, []string{"DENIA_ADMIN_TOKEN=" + g.password, "HOME=" + b.dir}, b.options.denia, "run", "--config", config); err != nil {
		return nil, err
	}
	g.connect()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if status, _, err := g.control(ctx, http.MethodGet, "/healthz", nil); err == nil && status == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			g.end()
			return nil, fmt.Errorf("%s does not become healthy:\n%s", name, g.log)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	for _, made := range []struct{ path, body string }{
		{"/v1/projects", `{"name":"` + project + `"}`},
		{"/v1/services", `{"name":"` + service + `","project_id":"` + project + `"}`},
	} {
		status, text, err := g.control(ctx, http.MethodPost, made.path, []byte(made.body))
		if err == nil && status != http.StatusCreated {
			err = fmt.Errorf("POST %s: %d: %s", made.path, status, text)
		}
		if err != nil {
			g.end()
			return nil, err
		}
	}
	return g, nil
}

// control calls Denia's own API.
func (g *registry) control(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, g.url(path), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+g.password)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	reply, err := g.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	return reply.StatusCode, text, err
}

// startDocker starts docker-registry as Debian configures it, without its log
// of every request and without authentication.
func (b *bench) startDocker(ctx context.Context, within string) (*registry, error) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, errors.New("docker-registry is not installed: see scripts/bench-registry")
	}
	g := &registry{process: &process{name: "docker-registry"}, data: filepath.Join(within, "docker-registry"), prefix: project + "/"}
	g.remove = g.removeFromDocker
	if g.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	config := g.data + ".yml"
	text, err := json.Marshal(map[string]any{ // which is YAML, too
		"version": "0.1",
		"log":     map[string]any{"level": "error", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{
			"cache":      map[string]any{"blobdescriptor": "inmemory"},
			"filesystem": map[string]any{"rootdirectory": g.data},
			"delete":     map[string]any{"enabled": true},
		},
		"http": map[string]any{"addr": g.address},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	if err := b.launch(ctx, g.process, nil, program, "serve", config); err != nil {
		return nil, err
	}
	g.connect()
	return g, nil
}

// startSmallest starts this program as a server.
func (b *bench) startSmallest(ctx context.Context, within string) (*registry, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	g := &registry{process: &process{name: smallestName}, data: filepath.Join(within, "smallest"), prefix: project + "/"}
	g.remove = g.removeFiles
	if g.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	if err := b.launch(ctx, g.process, nil, program, "-smallest", g.address, "-dir", g.data); err != nil {
		return nil, err
	}
	g.connect()
	return g, nil
}

func (b *bench) startNginx(ctx context.Context) (*process, error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // which only root's PATH has
	}
	p := &process{name: "nginx"}
	if p.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	home := filepath.Join(b.dir, "nginx")
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	text := fmt.Sprintf(`%sdaemon off;
worker_processes auto;
pid %[2]s/pid;
error_log stderr error;
events { worker_connections 512; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen %[3]s;
		root %[4]s;
	}
}
`, user, home, p.address, b.static())
	config := filepath.Join(home, "nginx.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return p, b.launch(ctx, p, nil, program, "-p", home, "-e", "stderr", "-c", config)
}

func (b *bench) startCaddy(ctx context.Context) (p *process, err error) {
	p = &process{name: "caddy file_server"}
	if p.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(p.address, ":")
	text := fmt.Sprintf(`{
	admin off
	persist_config off
}
http://:%s {
	bind 127.0.0.1
	root * %s
	file_server
}
`, port, b.static())
	config := filepath.Join(b.dir, "static.Caddyfile")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return p, b.launch(ctx, p, []string{"HOME=" + b.dir}, b.options.denia, "run", "--config", config)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
