package ingress

import "strings"

// table finds the pool of a host. It is immutable: a change makes a new one.
type table map[string]*pool

// maxHost is the longest host DNS knows (RFC 1035 §2.3.4), with room for the
// brackets of an IPv6 literal.
const maxHost = 255

// lookup returns the pool of host, as it stands in a Host header, or nil. It
// allocates nothing.
func (t table) lookup(host string) *pool {
	host = trimHost(host)
	for i := range len(host) {
		if c := host[i]; 'A' <= c && c <= 'Z' {
			return t.lookupFolded(host)
		}
	}
	return t[host]
}

func (t table) lookupFolded(host string) *pool {
	var folded [maxHost]byte
	if len(host) > len(folded) {
		return nil
	}
	for i := range len(host) {
		c := host[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		folded[i] = c
	}
	return t[string(folded[:len(host)])] // the compiler looks up without making the string
}

// trimHost cuts the port and the trailing dot of a fully qualified name off.
func trimHost(host string) string {
	// A colon before a closing bracket is part of an IPv6 literal.
	if colon := strings.LastIndexByte(host, ':'); colon >= 0 && strings.IndexByte(host[colon:], ']') < 0 {
		host = host[:colon]
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	return host
}
