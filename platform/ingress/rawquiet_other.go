//go:build !unix

package ingress

type quietness struct{}

// quiet cannot tell here, so no connection is used twice.
func (c *conn) quiet() bool { return false }

// pending cannot tell either.
func (c *conn) pending() bool { return false }
