package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// The replica is nginx, for what is measured is the proxy before it, on the same
// machine: GET /200, /65536 and /1048576 give as many bytes. This program stands
// behind it for all else.

// behindNginx is where this program listens, within the replica.
const behindNginx = "127.0.0.1:8081"

// replicaConfig is nginx's, to be completed with what it answers with.
const replicaConfig = `daemon off;
worker_processes 2;
pid /dev/shm/pid;
error_log stderr error;
events { worker_connections 8192; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path /dev/shm; proxy_temp_path /dev/shm; fastcgi_temp_path /dev/shm; uwsgi_temp_path /dev/shm; scgi_temp_path /dev/shm;
%s
}
`

// replicaServer is what nginx answers with at an address, with files that are
// below a directory.
func replicaServer(address, files string) string {
	return fmt.Sprintf(`	server {
		listen %s;
		keepalive_timeout 1h;
		sendfile on;
		tcp_nopush on;
		default_type application/octet-stream;
		location = / { return 200; }
		location = /200 { return 200 "%s"; }
		location = /65536 { root %s; }
		location = /1048576 { root %[3]s; }
		location / {
			proxy_pass http://%[4]s;
			proxy_http_version 1.1;
			proxy_set_header Connection upgrade;
			proxy_set_header Upgrade $http_upgrade;
			proxy_read_timeout 1h;
		}
	}
`, address, strings.Repeat("x", 200), files, behindNginx)
}

// replicaAnswers are the files that are served by nginx.
func replicaAnswers() map[string][]byte {
	return map[string][]byte{"65536": bytes.Repeat([]byte("x"), 65536), "1048576": bytes.Repeat([]byte("x"), 1048576)}
}

// replicaFiles are those of its image: this program, and nginx as it is
// installed here.
func replicaFiles(ctx context.Context) (map[string][]byte, error) {
	files := map[string][]byte{
		"Dockerfile":     []byte("FROM scratch\nCOPY . /\nCMD [\"/replica\", \"-replica\"]\n"),
		"etc/nginx.conf": fmt.Appendf(nil, replicaConfig, replicaServer("8080", "/files")),
		"etc/passwd":     []byte("nobody:x:65534:65534::/:\n"),
		"etc/group":      []byte("nogroup:x:65534:\n"),
	}
	for name, content := range replicaAnswers() {
		files["files/"+name] = content
	}
	own, err := os.Executable()
	if err != nil {
		return nil, err
	}
	paths := map[string]string{"replica": own, "nginx": "/usr/sbin/nginx"}
	libraries, err := command(ctx, "ldd", paths["nginx"])
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(libraries) {
		for _, field := range strings.Fields(line) {
			if strings.HasPrefix(field, "/") {
				paths[strings.TrimPrefix(field, "/")] = field
			}
		}
	}
	for name, path := range paths {
		if files[name], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// serveReplica answers within the replica, and has nginx answer before it. GET
// /who is answered with a name of the process's own, and whoever asks for a
// WebSocket gets one that greets back.
func serveReplica(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	front := exec.CommandContext(ctx, "/nginx", "-p", "/", "-e", "stderr", "-c", "/etc/nginx.conf")
	front.Cancel = func() error { return front.Process.Signal(syscall.SIGTERM) }
	front.Stdout, front.Stderr = os.Stdout, os.Stderr
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", behindNginx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if err := front.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = front.Wait()
		end() // one without the other is no replica
	}()
	defer func() {
		end()
		<-ended
	}()
	name := rand.Text()
	answers := &answers{who: fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(name), name)}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go answers.serve(c)
	}
}

// answers tells who asks.
type answers struct{ who []byte }

func (a *answers) serve(c net.Conn) {
	defer c.Close()
	from := bufio.NewReader(c)
	for {
		line, err := from.ReadSlice('\n')
		if err != nil {
			return
		}
		key := ""
		for len(line) > 2 {
			if line, err = from.ReadSlice('\n'); err != nil {
				return
			}
			if len(line) > 18 && line[17] == ':' && bytes.EqualFold(line[:17], []byte("Sec-WebSocket-Key")) {
				key = string(bytes.TrimSpace(line[18:]))
			}
		}
		if key != "" {
			greet(c, from, key)
			return
		}
		if _, err := c.Write(a.who); err != nil {
			return
		}
	}
}

// greeting is a message of a WebSocket's, from the server.
const greeting = "\x81\x02hi"

// greet makes the connection a WebSocket and answers each message, which is
// short and masked as every client's, with a greeting.
func greet(c net.Conn, from *bufio.Reader, key string) {
	if _, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptOf(key)); err != nil {
		return
	}
	for {
		head, err := from.Peek(2)
		if err != nil {
			return
		}
		if _, err := from.Discard(2 + 4 + int(head[1]&0x7f)); err != nil {
			return
		}
		if _, err := c.Write([]byte(greeting)); err != nil {
			return
		}
	}
}

// acceptOf is what a server proves its understanding with (RFC 6455 §4.2.2).
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
