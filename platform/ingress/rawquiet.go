//go:build unix

package ingress

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// quietness asks the kernel about a connection. The zero value is ready.
type quietness struct {
	raw syscall.RawConn
	ask func(fd uintptr)
	fds [1]unix.PollFd
	n   int // of fds there is something to read from
	err error
}

// quiet tells whether there is surely nothing to read from c: no bytes, and not
// its end. Only who alone uses the connection may ask.
func (c *conn) quiet() bool {
	n, err := c.readable()
	return n == 0 && err == nil
}

// pending tells whether there surely is something to read from c.
func (c *conn) pending() bool {
	n, err := c.readable()
	return n > 0 && err == nil
}

func (c *conn) readable() (n int, err error) {
	raw, err := c.socket()
	if err != nil {
		return 0, err
	}
	q := &c.quietness
	if q.ask == nil {
		q.ask = q.poll
	}
	if err := raw.Control(q.ask); err != nil {
		return 0, err
	}
	return q.n, q.err
}

func (c *conn) socket() (_ syscall.RawConn, err error) {
	if c.quietness.raw == nil {
		socket, ok := c.Conn.(syscall.Conn)
		if !ok {
			return nil, errors.ErrUnsupported
		}
		if c.quietness.raw, err = socket.SyscallConn(); err != nil {
			return nil, err
		}
	}
	return c.quietness.raw, nil
}

func (q *quietness) poll(fd uintptr) {
	q.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	for {
		if q.n, q.err = unix.Poll(q.fds[:], 0); !errors.Is(q.err, unix.EINTR) {
			return
		}
	}
}
