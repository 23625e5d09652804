//go:build !linux

package ingress

import "net"

// ackedBytes is not known here: a request that was written is taken as sent.
func ackedBytes(net.Conn) (int64, bool) { return 0, false }
