package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

const (
	mSockets = "WebSockets"
	sockets  = 2000
)

// freshSockets is openSockets with a proxy that was started anew, and is again
// afterwards: what one measurement leaves in memory is not to be in another's.
func (b *run) freshSockets(ctx context.Context, p *bench.Process) (bench.Sample, error) {
	if err := b.restart(ctx, p); err != nil {
		return nil, err
	}
	s, err := b.openSockets(ctx, p)
	if err != nil {
		return nil, err
	}
	return s, b.restart(ctx, p)
}

// restart starts the proxy anew and returns when the replica answers through
// it.
func (b *run) restart(ctx context.Context, p *bench.Process) error {
	if err := p.Restart(ctx); err != nil {
		return err
	}
	return b.reachable(ctx, p)
}

// openSockets measures what a WebSocket that has said something, and rests,
// costs a proxy in memory. Those before the first reading pay for what a proxy
// makes once.
func (b *run) openSockets(ctx context.Context, p *bench.Process) (bench.Sample, error) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	more := func(n int) (bench.Usage, error) {
		for range n {
			c, err := b.socket(ctx, p)
			if err != nil {
				return bench.Usage{}, fmt.Errorf("WebSocket %d: %w", len(open)+1, err)
			}
			open = append(open, c)
		}
		if err := bench.Rest(ctx, time.Second); err != nil { // what they cost at rest is what is measured
			return bench.Usage{}, err
		}
		return p.Usage()
	}
	before, err := more(100)
	if err != nil {
		return nil, err
	}
	after, err := more(sockets)
	if err != nil {
		return nil, err
	}
	return bench.Sample{
		"socket_kib": bench.KiB(after.RSS-before.RSS) / sockets,
		"rss_mib":    bench.MiB(after.RSS), "rss_peak_mib": bench.MiB(after.Peak),
	}, nil
}

// reachable returns when the replica answers through the proxy.
func (b *run) reachable(ctx context.Context, p *bench.Process) error {
	return bench.Until(ctx, 30*time.Second, 20*time.Millisecond, "the replica answers through "+p.Name, func() (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Address+"/200", nil)
		if err != nil {
			return false, err
		}
		r.Host, r.Close = b.host, true
		reply, err := http.DefaultClient.Do(r)
		if err != nil {
			return false, nil //nolint:nilerr // it is not there yet
		}
		reply.Body.Close()
		return reply.StatusCode == http.StatusOK, nil
	})
}

// socket opens a WebSocket through a proxy and says something each way.
func (b *run) socket(ctx context.Context, p *bench.Process) (c net.Conn, err error) {
	if c, err = new(net.Dialer).DialContext(ctx, "tcp", p.Address); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // a TCP connection has deadlines
	if _, err = fmt.Fprintf(c, "GET /socket HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", b.host); err != nil {
		return nil, err
	}
	from := bufio.NewReaderSize(c, 1024)
	for first := true; ; first = false {
		line, err := from.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if first && !strings.HasPrefix(line, "HTTP/1.1 101 ") {
			return nil, errors.New(strings.TrimSpace(line))
		}
		if line == "\r\n" {
			break
		}
	}
	if _, err = io.WriteString(c, "\x81\x82\x00\x00\x00\x00hi"); err != nil {
		return nil, err
	}
	got := make([]byte, len(greeting))
	if _, err = io.ReadFull(from, got); err != nil {
		return nil, err
	}
	if string(got) != greeting {
		return nil, fmt.Errorf("%q came back", got)
	}
	return c, nil
}
