package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
)

// serveReplica answers GET /n with n bytes, in as little work as can be: what
// is measured is the proxy before it, on the same machine.
func serveReplica(ctx context.Context, address string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	answers := new(answers)
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
type answers struct{ bySize sync.Map }

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
		size := 2
		if fields := bytes.Fields(line); len(fields) == 3 {
			if n, err := strconv.Atoi(string(bytes.TrimPrefix(fields[1], []byte("/")))); err == nil && n >= 0 && n <= 1<<24 {
				size = n
			}
		}
		for len(line) > 2 {
			if line, err = from.ReadSlice('\n'); err != nil {
				return
			}
		}
		if _, err := c.Write(a.of(size)); err != nil {
			return
		}
	}
}
