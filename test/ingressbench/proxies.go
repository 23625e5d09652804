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
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

// The proxies.
const (
	deniaName   = "denia"
	againstName = "denia, other build"
	caddyName   = "caddy"
	caddyLogs   = "caddy, access log"
	nginxName   = "nginx"
	haproxyName = "haproxy"

	// Caddy's server that answers by itself: what every proxy within it adds to.
	floorName = "caddy, no proxy"
)

// start starts all proxies, with the replica behind them.
func (b *run) start(ctx context.Context) (err error) {
	if err := b.writeCertificate(); err != nil {
		return err
	}
	var behind *service
	if b.denia, behind, err = b.startDenia(ctx, deniaName); err != nil {
		return err
	}
	b.host, b.replica = behind.host, behind.address
	if b.against != "" {
		program := b.servers.Program
		if b.servers.Program, err = filepath.Abs(b.against); err != nil {
			return err
		}
		if _, _, err = b.startDenia(ctx, againstName); err != nil {
			return err
		}
		b.servers.Program = program
	}
	for _, start := range []func(context.Context) (*bench.Process, error){
		func(ctx context.Context) (*bench.Process, error) {
			return b.startCaddy(ctx, caddyName, b.reverseProxy())
		},
		func(ctx context.Context) (*bench.Process, error) {
			return b.startCaddy(ctx, caddyLogs, "log {\n\t\toutput file "+b.file("access.log")+"\n\t}\n\t"+b.reverseProxy())
		},
		func(ctx context.Context) (*bench.Process, error) {
			return b.startCaddy(ctx, floorName, "respond "+strings.Repeat("x", 200))
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

func (b *run) certificate() string { return b.file("certificate.pem") }
func (b *run) key() string         { return b.file("key.pem") }

func (b *run) writeCertificate() error {
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
func (b *run) both() string { return b.file("both.pem") }

// startDenia starts a Denia with a service that is the replica.
func (b *run) startDenia(ctx context.Context, name string) (*bench.Denia, *service, error) {
	d, err := b.servers.Denia(ctx, bench.DeniaConfig{
		Name: name, Host: "control.localhost", Certificate: b.certificate(), Key: b.key(),
		Global:  []string{"auto_https disable_redirects", "default_sni bench"},
		Options: []string{"base_domain bench.localhost", "control_domain control.localhost"},
	})
	if err != nil {
		return nil, nil, err
	}
	b.proxies = append(b.proxies, d.Process)
	behind, err := b.deploy(ctx, d, "replica")
	return d, behind, err
}

// reverseProxy is Caddy's own, to the replica.
func (b *run) reverseProxy() string {
	return fmt.Sprintf(`reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 512
		}
	}`, b.replica)
}

// startCaddy starts the Caddy of the same program with what is given for its
// site.
func (b *run) startCaddy(ctx context.Context, name, directives string) (*bench.Process, error) {
	c := bench.Command{Name: name}
	if err := bench.FreeAddresses(ctx, &c.Address, &c.Secure, &c.Admin); err != nil {
		return nil, err
	}
	return b.servers.Caddy(ctx, c, fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https disable_redirects
	default_sni bench
}
http://%s:%s {
	bind 127.0.0.1
	%s
}
https://:%s {
	bind 127.0.0.1
	tls %s %s
	%[4]s
}
`, c.Admin, b.host, bench.Port(c.Address), directives, bench.Port(c.Secure), b.certificate(), b.key()))
}

func (b *run) startNginx(ctx context.Context) (*bench.Process, error) {
	c := bench.Command{Name: nginxName}
	if err := bench.FreeAddresses(ctx, &c.Address, &c.Secure); err != nil {
		return nil, err
	}
	return b.servers.Nginx(ctx, c, fmt.Sprintf(`	map $http_upgrade $connection_of_upgrade { default upgrade; "" ""; }
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
			proxy_set_header Connection $connection_of_upgrade;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Host $host;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_set_header X-Request-Id $request_id;
		}
	}`, b.replica, c.Address, c.Secure, b.certificate(), b.key()))
}

func (b *run) startHAProxy(ctx context.Context) (*bench.Process, error) {
	c := bench.Command{Name: haproxyName, Program: "haproxy", Args: []string{"-db", "-f", b.file("haproxy.cfg")}}
	if err := bench.FreeAddresses(ctx, &c.Address, &c.Secure); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`global
	maxconn 8192
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server 60s
	timeout tunnel 60s
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
`, c.Address, c.Secure, b.both(), b.replica)
	if err := os.WriteFile(b.file("haproxy.cfg"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return b.servers.Start(ctx, c)
}
