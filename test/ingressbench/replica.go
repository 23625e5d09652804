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
	"strconv"
	"sync"
)

// serveReplica answers GET /n with n bytes, in as little work as can be: what
// is measured is the proxy before it, on the same machine. It answers GET /who
// with a name of its own, and whoever asks for a WebSocket gets one that greets
// back.
func serveReplica(ctx context.Context, address string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
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

// answers are made once each.
type answers struct {
	who    []byte
	bySize sync.Map
}

func (a *answers) of(size int) []byte {
	if made, ok := a.bySize.Load(size); ok {
		return made.([]byte)
	}
	made := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: replica\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: application/octet-stream\r\n"+
		"Content-Length: %d\r\nLast-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\nETag: \"5f1b-c8\"\r\nAccept-Ranges: bytes\r\n\r\n", size)
	made = append(made, bytes.Repeat([]byte("x"), size)...)
	a.bySize.Store(size, made)
	return made
}

func (a *answers) serve(c net.Conn) {
	defer c.Close()
	from := bufio.NewReader(c)
	for {
		line, err := from.ReadSlice('\n')
		if err != nil {
			return
		}
		size, who := 2, false
		if fields := bytes.Fields(line); len(fields) == 3 {
			who = string(fields[1]) == "/who"
			if n, err := strconv.Atoi(string(bytes.TrimPrefix(fields[1], []byte("/")))); err == nil && n >= 0 && n <= 1<<24 {
				size = n
			}
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
		answer := a.who
		switch {
		case key != "":
			greet(c, from, key)
			return
		case !who:
			answer = a.of(size)
		}
		if _, err := c.Write(answer); err != nil {
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
