//go:build !unix

package ingress

type quietness struct{}

// asking is the outcome of a request that was sent.
type asking struct {
	n        int
	writeErr error
	readErr  error
}

// ask sends a request, unless there was one before: see quiet.
func (c *conn) ask(request, into []byte, again bool) (asked bool, err error) {
	if again {
		return false, c.disturbed()
	}
	c.asking = asking{}
	_, c.asking.writeErr = c.Write(request)
	return true, nil
}

// quiet cannot tell here, so no connection is used twice.
func (c *conn) quiet() bool { return false }

// pending cannot tell either.
func (c *conn) pending() bool { return false }
