//go:build unix

package ingress

import (
	"errors"
	"io"
	"syscall"
)

// asking is a request that is sent over a connection, and what is read first
// after it. All of it is one read to Go's poller: each visit there has a price,
// and most of what this saves is not to look twice whether there is something.
type asking struct {
	visit   func(fd uintptr) (done bool)
	request []byte
	into    []byte
	again   bool // the connection was used before
	asked   bool
	early   [1]byte

	n        int // bytes read
	writeErr error
	readErr  error
}

// ask sends a request and reads what comes first into into, which may be the
// same memory. Nothing was sent if it has not asked; errDisturbed then says that
// there was something to read before, from a connection that was used before.
// What became of a request that was sent is in c.asking.
func (c *conn) ask(request, into []byte, again bool) (asked bool, err error) {
	raw, err := c.socket()
	if err != nil {
		return false, err
	}
	a := &c.asking
	if a.visit == nil {
		a.visit = c.visit
	}
	a.request, a.into, a.again = request, into, again
	a.asked, a.n, a.writeErr, a.readErr = false, 0, nil, nil
	err = raw.Read(a.visit)
	a.request, a.into = nil, nil
	if err == nil && !a.asked {
		return false, c.disturbed()
	}
	if err != nil {
		a.readErr = err
	}
	if a.asked {
		c.read(a.n, a.readErr)
	}
	return a.asked, err
}

// visit is called with the connection's socket, and again when there may be
// something to read, until it is done.
func (c *conn) visit(fd uintptr) (done bool) {
	a := &c.asking
	if !a.asked {
		if a.again {
			if _, err := readNow(fd, a.early[:]); !errors.Is(err, syscall.EAGAIN) {
				return true
			}
		}
		a.asked = true
		a.writeErr = c.writeNow(fd, a.request)
	}
	n, err := readNow(fd, a.into)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil:
		a.readErr = err
	case n == 0:
		a.readErr = io.EOF
	default:
		a.n = n
	}
	return true
}

// writeNow writes all of b, at once if it can.
func (c *conn) writeNow(fd uintptr, b []byte) error {
	c.sent.Add(int64(len(b)))
	n, err := syscall.Write(int(fd), b)
	for errors.Is(err, syscall.EINTR) {
		n, err = syscall.Write(int(fd), b)
	}
	if err != nil && !errors.Is(err, syscall.EAGAIN) {
		c.wrote(0, int64(len(b)), err)
		return err
	}
	if n = max(n, 0); n < len(b) {
		c.sent.Add(int64(n - len(b)))
		_, err = c.Write(b[n:])
		return err
	}
	return nil
}

func readNow(fd uintptr, b []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(int(fd), b); !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}
