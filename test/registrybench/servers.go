package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

// start starts all servers, and takes what they need when idle.
func (b *run) start(ctx context.Context) (err error) {
	if b.denia, err = b.startDenia(ctx, deniaName); err != nil {
		return err
	}
	if b.docker, err = b.startDocker(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(b.static(), 0o700); err != nil {
		return err
	}
	if b.nginx, err = b.startNginx(ctx, nginxName, "off"); err != nil {
		return err
	}
	if b.corked, err = b.startNginx(ctx, corkedName, "on"); err != nil {
		return err
	}
	if b.caddy, err = b.startCaddy(ctx); err != nil {
		return err
	}
	if err := bench.Rest(ctx, 2*time.Second); err != nil { // idle is what is measured
		return err
	}
	for _, p := range []*bench.Process{b.denia.Process, b.docker.Process, b.nginx, b.caddy} {
		u, err := p.Usage()
		if err != nil {
			return err
		}
		idle := bench.Sample{"rss_mib": bench.MiB(u.RSS)}
		bench.Say("%-18s idle:%s", p.Name, idle)
		b.report.Add(mIdle, p.Name, idle)
	}
	return nil
}

// static is the directory the web servers serve.
func (b *run) static() string { return b.file("static") }

// The project and the service all repositories of Denia are under.
const (
	project = "bench"
	service = "app"
)

// startDenia starts Denia on an empty data directory; options go into the block
// denia of its Caddyfile. No Docker Engine is needed, and none is touched.
func (b *run) startDenia(ctx context.Context, name string, options ...string) (*registry, error) {
	d, err := b.servers.Denia(ctx, bench.DeniaConfig{
		Name: name, Options: append(options, "docker_host unix://"+b.file("no-engine.sock")),
	})
	if err != nil {
		return nil, err
	}
	g := &registry{Process: d.Process, denia: d, data: d.Data, prefix: project + "/" + service + "/"}
	g.remove = g.removeFromDenia
	g.connect()
	if err := d.Call(ctx, http.MethodPost, "/v1/projects", map[string]any{"name": project}, nil); err != nil {
		return nil, err
	}
	return g, d.Call(ctx, http.MethodPost, "/v1/services", map[string]any{"name": service, "project_id": project}, nil)
}

// startDocker starts docker-registry as Debian configures it, without its log
// of every request and without authentication.
func (b *run) startDocker(ctx context.Context) (*registry, error) {
	c := bench.Command{Name: "docker-registry", Program: "docker-registry"}
	if _, err := exec.LookPath(c.Program); err != nil {
		return nil, errors.New("docker-registry is not installed: see scripts/bench-registry")
	}
	if err := bench.FreeAddresses(ctx, &c.Address); err != nil {
		return nil, err
	}
	g := &registry{data: b.file("docker-registry"), prefix: project + "/"}
	g.remove = g.removeFromDocker
	config := g.data + ".yml"
	text, err := json.Marshal(map[string]any{ // which is YAML, too
		"version": "0.1",
		"log":     map[string]any{"level": "error", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{
			"cache":      map[string]any{"blobdescriptor": "inmemory"},
			"filesystem": map[string]any{"rootdirectory": g.data},
			"delete":     map[string]any{"enabled": true},
		},
		"http": map[string]any{"addr": c.Address},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	c.Args = []string{"serve", config}
	if g.Process, err = b.servers.Start(ctx, c); err != nil {
		return nil, err
	}
	g.connect()
	return g, nil
}

// startSmallest starts this program as a server.
func (b *run) startSmallest(ctx context.Context) (*registry, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := bench.Command{Name: smallestName, Program: program}
	if err := bench.FreeAddresses(ctx, &c.Address); err != nil {
		return nil, err
	}
	g := &registry{data: b.file("smallest"), prefix: project + "/"}
	g.remove = g.removeFiles
	c.Args = []string{"-smallest", c.Address, "-dir", g.data}
	if g.Process, err = b.servers.Start(ctx, c); err != nil {
		return nil, err
	}
	g.connect()
	return g, nil
}

// startNginx starts nginx as it is by itself, but for sendfile. With tcp_nopush
// the kernel sends full segments only.
func (b *run) startNginx(ctx context.Context, name, nopush string) (*bench.Process, error) {
	c := bench.Command{Name: name}
	if err := bench.FreeAddresses(ctx, &c.Address); err != nil {
		return nil, err
	}
	return b.servers.Nginx(ctx, c, fmt.Sprintf(`	sendfile on;
	tcp_nopush %s;
	server {
		listen %s;
		root %s;
	}`, nopush, c.Address, b.static()))
}

func (b *run) startCaddy(ctx context.Context) (*bench.Process, error) {
	c := bench.Command{Name: fileServer}
	if err := bench.FreeAddresses(ctx, &c.Address); err != nil {
		return nil, err
	}
	return b.servers.Caddy(ctx, c, fmt.Sprintf(`{
	admin off
	persist_config off
}
http://:%s {
	bind 127.0.0.1
	root * %s
	file_server
}
`, bench.Port(c.Address), b.static()))
}
