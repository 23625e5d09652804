package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// line is a kept connection on which requests are written as they are and
// replies read as little as possible: what net/http costs a client would hide
// what a server can do.
type line struct {
	*net.TCPConn
	buffer []byte
}

func dial(ctx context.Context, address string) (*line, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &line{c.(*net.TCPConn), make([]byte, 256<<10)}, nil
}

// request is one for the server at address, with a token where one is needed.
func request(method, address, path, token string, body []byte, contentType string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nAccept: %s, */*\r\n", method, path, address, imageType)
	if token != "" {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", token)
	}
	if contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\nContent-Length: %d\r\n", contentType, len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

var endOfHeader = []byte("\r\n\r\n")

// ask sends a request and reads the reply to its end. It returns the length of
// the reply's body, which it throws away.
func (l *line) ask(request []byte, wantStatus string) (int64, error) {
	if _, err := l.Write(request); err != nil {
		return 0, err
	}
	have, end := 0, -1
	for end < 0 {
		if have == len(l.buffer) {
			return 0, errors.New("the reply's header is too long")
		}
		n, err := l.Read(l.buffer[have:])
		if err != nil {
			return 0, err
		}
		have += n
		end = bytes.Index(l.buffer[:have], endOfHeader)
	}
	header := l.buffer[:end]
	if len(header) < 12 || string(header[9:12]) != wantStatus {
		return 0, fmt.Errorf("unexpected reply: %s", l.buffer[:min(have, 1000)])
	}
	if request[0] == 'H' {
		return 0, nil
	}
	length, err := contentLength(header)
	if err != nil {
		return 0, err
	}
	return length, l.discard(length - int64(have-end-len(endOfHeader)))
}

// discard has the kernel throw bytes away, without copying them: a client that
// is always faster than the server.
func (l *line) discard(left int64) error {
	if left <= 0 {
		return nil
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	for left > 0 {
		var n int
		var failed error
		if err := raw.Read(func(fd uintptr) bool {
			n, _, failed = syscall.Recvfrom(int(fd), l.buffer[:min(left, int64(len(l.buffer)))], syscall.MSG_TRUNC) // tcp(7)
			return !errors.Is(failed, syscall.EAGAIN)
		}); err != nil {
			return err
		}
		if errors.Is(failed, syscall.EINTR) {
			continue
		}
		if failed != nil {
			return failed
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		left -= int64(n)
	}
	return nil
}

func contentLength(header []byte) (int64, error) {
	const name = "\r\nContent-Length: "
	i := bytes.Index(header, []byte(name))
	if i < 0 {
		return 0, fmt.Errorf("a reply without Content-Length: %s", header)
	}
	value, _, _ := strings.Cut(string(header[i+len(name):]), "\r\n")
	return strconv.ParseInt(value, 10, 64)
}

// flood sends requests on kept connections for a time, each connection the next
// one of those given as soon as it has its reply, and returns how long each
// took.
func flood(ctx context.Context, address string, requests [][]byte, connections int, seconds float64) (took []time.Duration, err error) {
	var (
		all      = make([][]time.Duration, connections)
		failures = make(chan error, connections)
		running  sync.WaitGroup
		lines    []*line
	)
	defer func() {
		for _, l := range lines {
			_ = l.Close()
		}
	}()
	for range connections {
		l, err := dial(ctx, address)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	deadline := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for i, l := range lines {
		running.Go(func() {
			_ = l.SetDeadline(deadline.Add(10 * time.Second)) // a TCP connection has deadlines
			next := i * len(requests) / connections
			for began := time.Now(); began.Before(deadline); {
				if _, err := l.ask(requests[next], "200"); err != nil {
					failures <- err
					return
				}
				now := time.Now()
				all[i] = append(all[i], now.Sub(began))
				began = now
				next = (next + 1) % len(requests)
			}
		})
	}
	running.Wait()
	close(failures)
	for _, part := range all {
		took = append(took, part...)
	}
	return took, <-failures
}
