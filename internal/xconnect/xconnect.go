// Package xconnect has this process's HTTP/2 servers offer extended CONNECT
// (RFC 8441), which browsers need to open a WebSocket on a connection that they
// already have. Importing it is all there is to do.
//
// net/http and golang.org/x/net/http2 can do it, but look once, when they are
// initialised, for http2xconnect=1 in GODEBUG, and know no other way to be told
// (golang/go#71128). That is early enough here: packages that are ready to be
// initialised are so in the order of their import paths, this one is ready as
// soon as os is, and its path goes before theirs. It must therefore import
// nothing that needs them. GODEBUG=http2xconnect=0 turns it off.
package xconnect

import (
	"os"
	"strings"
)

func init() {
	const key = "http2xconnect="
	set := os.Getenv("GODEBUG")
	switch {
	case strings.Contains(set, key):
	case set == "":
		_ = os.Setenv("GODEBUG", key+"1")
	default:
		_ = os.Setenv("GODEBUG", set+","+key+"1")
	}
}
