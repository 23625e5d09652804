package testpg

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
)

// Line leads to a database and can be cut.
type Line struct {
	DSN string // of the database, through the line

	mu    sync.Mutex
	away  bool
	conns map[net.Conn]bool
}

// NewLine makes a line to the database; it ends with the test.
func NewLine(t testing.TB, dsn string) *Line {
	t.Helper()
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	network, target := "tcp", address.Host
	if dir := query.Get("host"); dir != "" {
		network, target = "unix", filepath.Join(dir, ".s.PGSQL."+cmp.Or(query.Get("port"), "5432"))
	}
	// Until the line's own end, which the test's context would be too early for.
	ctx := context.WithoutCancel(t.Context())
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	query.Del("host")
	query.Del("port")
	query.Set("sslmode", "disable")
	address.Host, address.RawQuery = listener.Addr().String(), query.Encode()
	l := &Line{DSN: address.String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(ctx, network, target)
			if err != nil || !l.hold(near, far) {
				_ = near.Close()
				if far != nil {
					_ = far.Close()
				}
				continue
			}
			pipe := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.Close()
				_ = from.Close()
			}
			wg.Go(func() { pipe(near, far) })
			wg.Go(func() { pipe(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		l.Cut(true)
		wg.Wait()
	})
	return l
}

func (l *Line) hold(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range conns {
		if l.away {
			return false
		}
		l.conns[conn] = true
	}
	return true
}

// Cut ends every connection, and refuses further ones while away.
func (l *Line) Cut(away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = away
	for conn := range l.conns {
		_ = conn.Close()
	}
	clear(l.conns)
}
