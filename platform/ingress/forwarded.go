package ingress

import "strings"

// appendForwarded appends the value of the field Forwarded (RFC 7239): what the
// X-Forwarded-* fields say, for those who read this one. What came under that
// name from a proxy that is believed is continued. Where such a proxy knows the
// others only, what they say of the client goes first.
func (p *passage) appendForwarded(b []byte, client string) []byte {
	r := p.r
	given := len(b)
	if p.trusted && !p.isListed("Forwarded") {
		for _, line := range r.Header["Forwarded"] {
			// One with an open quote would take in what follows it.
			if !validForwarded(line) {
				b = b[:given]
				break
			}
			b = append(b, line...)
			b = append(b, ", "...)
		}
	}
	if !p.trusted || len(b) > given {
		from := client
		if p.trusted {
			from = peer(r)
		}
		return appendElement(b, from, r.Host, p.proto())
	}
	host, proto := r.Host, p.proto()
	if said := p.said("X-Forwarded-Host"); said != "" && validHost(said) {
		host = said
	}
	if said := p.said("X-Forwarded-Proto"); isWord(said) {
		proto = said
	}
	b = appendElement(b, client, host, proto)
	if by := peer(r); by != client {
		b = append(b, ", "...)
		b = appendNode(b, by)
	}
	return b
}

// said is the one value of a field that a proxy that is believed has set.
func (p *passage) said(name string) string {
	if values := p.r.Header[name]; len(values) == 1 && !p.isListed(name) {
		return values[0]
	}
	return ""
}

// appendElement appends what one proxy says of a request. host and proto are
// valid.
func appendElement(b []byte, from, host, proto string) []byte {
	b = appendNode(b, from)
	b = append(b, ";host="...)
	if isWord(host) {
		b = append(b, host...)
	} else { // a port, or brackets
		b = append(b, '"')
		b = append(b, host...)
		b = append(b, '"')
	}
	b = append(b, ";proto="...)
	return append(b, proto...)
}

// appendNode appends who sent a request. A zone means nothing elsewhere; what is
// no address, as of a Unix socket's client, is unknown.
func appendNode(b []byte, addr string) []byte {
	b = append(b, "for="...)
	digits := addr != ""
	for i := range len(addr) {
		switch c := addr[i]; {
		case c == ':':
			addr, _, _ = strings.Cut(addr, "%")
			b = append(b, `"[`...)
			b = append(b, addr...)
			return append(b, `]"`...)
		case (c < '0' || c > '9') && c != '.':
			digits = false
		}
	}
	if !digits {
		return append(b, "unknown"...)
	}
	return append(b, addr...)
}

// isWord tells whether s can stand for itself, without quotes.
func isWord(s string) bool {
	end, _ := scanName(s)
	return end == len(s) && end > 0
}

// validForwarded tells whether what follows line would be read by itself: words
// and their separators, and quotes that end.
func validForwarded(line string) bool {
	quoted := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case bytesAre[c]&isValue == 0:
			return false
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				if i++; i == len(line) || bytesAre[line[i]]&isValue == 0 {
					return false
				}
			}
		case bytesAre[c]&isToken == 0 && strings.IndexByte("=;, \t", c) < 0:
			return false
		}
	}
	return !quoted
}
