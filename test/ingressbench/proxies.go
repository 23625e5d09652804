package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// proxy is a server that was started for the run.
type proxy struct {
	name   string
	plain  string // host:port for HTTP/1.1
	secure string // host:port for TLS, HTTP/1.1 and HTTP/2
	cmd    *exec.Cmd
	done   chan struct{}
	log    *tail
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

// start starts all proxies.
func (b *bench) start(ctx context.Context) (err error) {
	if err := b.writeCertificate(); err != nil {
		return err
	}
	if b.denia, err = b.startDenia(ctx); err != nil {
		return err
	}
	b.proxies = append(b.proxies, b.denia.proxy)
	if err := b.deploy(ctx, b.denia); err != nil {
		return err
	}
	for _, start := range []func(context.Context) (*proxy, error){
		func(ctx context.Context) (*proxy, error) { return b.startCaddy(ctx, "caddy", "") },
		func(ctx context.Context) (*proxy, error) {
			return b.startCaddy(ctx, "caddy, access log", "log {\n\t\toutput file "+filepath.Join(b.dir, "access.log")+"\n\t}")
		},
		b.startNginx, b.startHAProxy,
	} {
		p, err := start(ctx)
		if err != nil {
			return err
		}
		b.proxies = append(b.proxies, p)
	}
	return nil
}

func (b *bench) stop() {
	if b.denia != nil {
		if err := b.remove(b.denia); err != nil {
			b.say("the replica is left in the engine: %v", err)
		}
	}
	for _, p := range b.proxies {
		p.end()
	}
}

func (b *bench) certificate() string { return filepath.Join(b.dir, "certificate.pem") }
func (b *bench) key() string         { return filepath.Join(b.dir, "key.pem") }

func (b *bench) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		DNSNames:  []string{"bench", "*.bench.localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return errors.Join(
		os.WriteFile(b.certificate(), certificate, 0o600),
		os.WriteFile(b.key(), secret, 0o600),
		os.WriteFile(b.both(), append(certificate, secret...), 0o600),
	)
}

// both is what HAProxy wants.
func (b *bench) both() string { return filepath.Join(b.dir, "both.pem") }

func (b *bench) launchCaddy(ctx context.Context, p *proxy, env []string, caddyfile string) error {
	path := filepath.Join(b.dir, strings.Fields(strings.ReplaceAll(p.name, ",", ""))[0]+strconv.Itoa(len(b.proxies))+".Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		return err
	}
	return b.launch(ctx, p, append(env, "HOME="+b.dir), b.options.denia, "run", "--adapter", "caddyfile", "--config", path)
}

// startCaddy starts Caddy's own reverse_proxy, of the same program.
func (b *bench) startCaddy(ctx context.Context, name, log string) (p *proxy, err error) {
	p = &proxy{name: name}
	if p.plain, p.secure, err = freeAddresses(ctx); err != nil {
		return nil, err
	}
	site := fmt.Sprintf(`	bind 127.0.0.1
	%s
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 512
		}
	}
`, log, b.replica)
	return p, b.launchCaddy(ctx, p, nil, fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https disable_redirects
	default_sni bench
}
http://%s:%s {
%s}
https://:%s {
	tls %s %s
%s}
`, b.host, port(p.plain), site, port(p.secure), b.certificate(), b.key(), site))
}

func (b *bench) startNginx(ctx context.Context) (p *proxy, err error) {
	p = &proxy{name: "nginx"}
	if p.plain, p.secure, err = freeAddresses(ctx); err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "nginx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`%s
daemon off;
worker_processes auto;
pid %s/pid;
error_log stderr error;
events { worker_connections 4096; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %[2]s; proxy_temp_path %[2]s; fastcgi_temp_path %[2]s; uwsgi_temp_path %[2]s; scgi_temp_path %[2]s;
	upstream replica { server %s; keepalive 512; keepalive_requests 1000000000; }
	server {
		listen %s;
		listen %s ssl http2;
		http2_max_concurrent_streams 128;
		ssl_certificate %s;
		ssl_certificate_key %s;
		location / {
			proxy_pass http://replica;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Host $host;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_set_header X-Request-Id $request_id;
		}
	}
}
`, user, dir, b.replica, p.plain, p.secure, b.certificate(), b.key())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return p, b.launch(ctx, p, nil, "nginx", "-p", dir, "-c", config)
}

func (b *bench) startHAProxy(ctx context.Context) (p *proxy, err error) {
	p = &proxy{name: "haproxy"}
	if p.plain, p.secure, err = freeAddresses(ctx); err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, "haproxy.cfg")
	text := fmt.Sprintf(`global
	maxconn 8192
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server 60s
	option forwardfor
	http-reuse always
	unique-id-format %%{+X}o%%ci%%cp%%Ts%%rt
	unique-id-header X-Request-Id
frontend in
	bind %s
	bind %s ssl crt %s alpn h2,http/1.1
	http-request set-header X-Forwarded-Host %%[req.hdr(host)]
	http-request set-header X-Forwarded-Proto %%[ssl_fc,iif(https,http)]
	default_backend replica
backend replica
	server replica %s pool-max-conn 512
`, p.plain, p.secure, b.both(), b.replica)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return p, b.launch(ctx, p, nil, "haproxy", "-db", "-f", config)
}

// launch starts a program and waits until it listens.
func (b *bench) launch(ctx context.Context, p *proxy, env []string, program string, args ...string) error {
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
	for deadline := time.Now().Add(30 * time.Second); ; {
		if listens(ctx, p.plain) && listens(ctx, p.secure) {
			b.say("%-20s is process %d on %s and %s", p.name, p.cmd.Process.Pid, p.plain, p.secure)
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at its start:\n%s", p.name, p.log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.end()
			return fmt.Errorf("%s does not listen:\n%s", p.name, p.log)
		}
	}
}

func listens(ctx context.Context, address string) bool {
	dialer := &net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// end stops the process and waits for it.
func (p *proxy) end() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func freeAddresses(ctx context.Context) (plain, secure string, err error) {
	if plain, err = freeAddress(ctx); err != nil {
		return "", "", err
	}
	secure, err = freeAddress(ctx)
	return plain, secure, err
}

func port(address string) string {
	_, port, _ := strings.Cut(address, ":")
	return port
}
