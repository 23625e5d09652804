package ingress

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection to a replica. It knows enough of what went over it to
// tell, when it breaks, whether a request can have reached the replica.
type conn struct {
	net.Conn
	upstream *upstream
	sent     atomic.Int64 // bytes given to the kernel
	received atomic.Int64
	reset    atomic.Bool  // by the peer
	short    atomic.Bool  // a write failed before its end
	accepted atomic.Int64 // 1 + the bytes the peer's kernel had taken when it closed; 0: not known

	quietness quietness
	asking    asking
	readEnd   time.Time // when reads end by themselves; zero: never
}

// traffic is how much has gone over a connection, in bytes.
type traffic struct{ sent, received int64 }

func (c *conn) traffic() traffic { return traffic{c.sent.Load(), c.received.Load()} }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read(n, err)
	return n, err
}

// read takes the outcome of a read.
func (c *conn) read(n int, err error) {
	c.received.Add(int64(n))
	if err == nil {
		return
	}
	switch {
	case errors.Is(err, io.EOF):
		c.peerClosed()
	case errors.Is(err, syscall.ECONNRESET):
		c.reset.Store(true)
	}
	if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.upstream.wake()
	}
}

// disturbed is what became of a connection over which something came since its
// last answer. The replica closed it, and may be gone; or it sent what nobody
// asked for, and the next request would be given that.
func (c *conn) disturbed() error {
	c.upstream.wake()
	return errDisturbed
}

// watchAfter has reads end soon after now, zero for never. It is not exact, so
// that not every request has to set a timer.
func (c *conn) watchAfter(now time.Time) {
	var end time.Time
	if !now.IsZero() {
		if left := c.readEnd.Sub(now); left >= soon/2 && left <= soon {
			return
		}
		end = now.Add(soon)
	}
	c.readEnd = end
	_ = c.SetReadDeadline(end) // a connection that is closed says so soon enough
}

func (c *conn) Write(b []byte) (int, error) {
	// Counted first, so that the count is never too small while the kernel
	// is at work.
	c.sent.Add(int64(len(b)))
	n, err := c.Conn.Write(b)
	c.wrote(int64(n), int64(len(b)), err)
	return n, err
}

// writeAll writes all of parts, whose lengths sum up to size, at once if it
// can. It uses parts up.
func (c *conn) writeAll(parts *net.Buffers, size int64) error {
	c.sent.Add(size)
	n, err := parts.WriteTo(c.Conn)
	c.wrote(n, size, err)
	return err
}

// wrote takes the outcome of a write of which all has been counted.
func (c *conn) wrote(n, all int64, err error) {
	if n < all {
		c.sent.Add(n - all)
		c.short.Store(true)
	}
	switch {
	case err == nil:
	case errors.Is(err, syscall.EPIPE):
		c.peerClosed()
	case errors.Is(err, syscall.ECONNRESET):
		c.reset.Store(true)
	}
}

func (c *conn) Close() error {
	c.upstream.conns.Delete(c)
	return c.Conn.Close()
}

func (c *conn) CloseWrite() error {
	return c.Conn.(*net.TCPConn).CloseWrite()
}

// peerClosed notes how much the peer has taken. The peer's FIN carries an
// acknowledgement of all it ever will, so at this point, and only from this
// point on, the number is final. A reset carries none: after one it stays
// unknown.
func (c *conn) peerClosed() {
	if taken, ok := ackedBytes(c.Conn); ok {
		c.accepted.CompareAndSwap(0, 1+taken)
	}
}

// untouchedSince tells whether no byte written after the first sent bytes can
// have reached the peer: none was written, or the peer had closed before.
func (c *conn) untouchedSince(sent int64) bool {
	if c.sent.Load() == sent {
		return true
	}
	accepted := c.accepted.Load()
	// The kernel's count begins with the SYN, which is one.
	return accepted > 0 && accepted-1 <= sent+1
}

// unreadSince tells whether some of what was written after before was surely
// never read by the peer, and nothing came back.
//
// A kernel resets, rather than closes, the connections of a process that ends
// with bytes of theirs unread. It closes the others; then the bytes written
// since then, or not even written, were not read.
func (c *conn) unreadSince(before traffic) bool {
	if c.received.Load() != before.received {
		return false
	}
	accepted := c.accepted.Load()
	return c.reset.Load() || c.short.Load() || accepted > 0 && accepted-1 < c.sent.Load()
}
