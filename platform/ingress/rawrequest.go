package ingress

import (
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
)

// appendRequest appends the head of a request to a replica, with the fields of
// requestHeader. length is that of the body.
func (x *exchange) appendRequest(b []byte, length int) ([]byte, error) {
	r := x.r
	p, err := x.passage()
	if err != nil {
		return b, err
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = appendTarget(b, r.URL)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	err = p.fields(func(name string, values []string) {
		if name == "User-Agent" && len(values) > 0 {
			if values = values[:1]; values[0] == "" {
				return
			}
		}
		for _, value := range values {
			b = appendField(b, name, textproto.TrimString(value))
		}
	})
	if err != nil {
		return b, err
	}
	if p.wantsTrailers() {
		b = appendField(b, "Te", "trailers")
	}
	b = append(b, "X-Forwarded-For: "...)
	if len(p.chain) > 0 {
		for _, line := range p.chain {
			b = append(b, line...)
			b = append(b, ", "...)
		}
		b = append(b, peer(r)...)
	} else {
		b = append(b, x.ip...)
	}
	b = append(b, "\r\n"...)
	if p.adds("X-Forwarded-Host") {
		b = appendField(b, "X-Forwarded-Host", r.Host)
	}
	if p.adds("X-Forwarded-Proto") {
		b = appendField(b, "X-Forwarded-Proto", p.proto())
	}
	b = append(b, "Forwarded: "...)
	b = append(p.appendForwarded(b, x.ip), "\r\n"...)
	b = appendField(b, "X-Request-Id", x.id)
	if length > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(length), 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// appendTarget appends what URL.RequestURI gives, for a valid target.
func appendTarget(b []byte, u *url.URL) []byte {
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	b = append(b, path...)
	if u.ForceQuery || u.RawQuery != "" {
		b = append(b, '?')
		b = append(b, u.RawQuery...)
	}
	return b
}

// validRequest tells whether method, target and host, written out, are one
// request line and one Host field: HTTP/2 and HTTP/3 can carry others. For
// targets this is what a service of a host can be asked for, a path, or * for
// OPTIONS.
func validRequest(r *http.Request) bool {
	if end, _ := scanName(r.Method); end != len(r.Method) || end == 0 {
		return false
	}
	if r.URL.Opaque != "" || !validTarget(r.URL.RawQuery) || !validHost(r.Host) {
		return false
	}
	path := r.URL.EscapedPath()
	return path == "" || path[0] == '/' && validTarget(path) || path == "*" && r.Method == http.MethodOptions
}

// validTarget tells whether s can be a part of a request line. What is beyond
// ASCII should not be there, but clients send it and servers take it.
func validTarget(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func validHost(s string) bool {
	for i := range len(s) {
		c := s[i]
		if bytesAre[c]&isToken == 0 && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return true
}
