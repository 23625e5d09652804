package ingress_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform/ingress"
)

// What a proxy says of itself and of the client goes on in Forwarded as well,
// in a form that nobody can put more into.
func TestForwardedIsContinuedOfTrustedProxiesOnly(t *testing.T) {
	for name, c := range map[string]struct {
		ip      string
		trusted bool
		remote  string
		host    string
		tls     bool
		header  http.Header
		want    string
	}{
		"a client":       {ip: "203.0.113.9", remote: "203.0.113.9:1", want: "for=203.0.113.9;host=" + host + ";proto=http"},
		"TLS and a port": {ip: "203.0.113.9", remote: "203.0.113.9:1", host: host + ":8443", tls: true, want: `for=203.0.113.9;host="` + host + `:8443";proto=https`},
		"IPv6":           {ip: "2001:db8::1", remote: "[2001:db8::1]:1", want: `for="[2001:db8::1]";host=` + host + ";proto=http"},
		"a zone":         {ip: "fe80::1%eth0", remote: "[fe80::1%eth0]:1", want: `for="[fe80::1]";host=` + host + ";proto=http"},
		"a Unix socket":  {ip: "@", remote: "@", want: "for=unknown;host=" + host + ";proto=http"},
		"a pretender": {
			ip: "203.0.113.9", remote: "203.0.113.9:1", header: http.Header{"Forwarded": {"for=1.2.3.4"}, "X-Forwarded-Host": {"evil"}},
			want: "for=203.0.113.9;host=" + host + ";proto=http",
		},
		"a chain": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1", header: http.Header{"Forwarded": {`for="[2001:db8::1]:80";by="a \" b, c"`, "for=10.0.0.2;proto=https"}},
			want: `for="[2001:db8::1]:80";by="a \" b, c", for=10.0.0.2;proto=https, for=10.0.0.1;host=` + host + ";proto=http",
		},
		"an open quote": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1", header: http.Header{"Forwarded": {"for=10.0.0.2", `for="evil`}},
			want: "for=1.2.3.4;host=" + host + ";proto=http, for=10.0.0.1",
		},
		"an open escape": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1", header: http.Header{"Forwarded": {`for="evil\"`}},
			want: "for=1.2.3.4;host=" + host + ";proto=http, for=10.0.0.1",
		},
		"a second line": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1", header: http.Header{"Forwarded": {"for=1\r\nX-Evil: 1"}},
			want: "for=1.2.3.4;host=" + host + ";proto=http, for=10.0.0.1",
		},
		"not to be forwarded": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1", header: http.Header{"Forwarded": {"for=5.6.7.8"}, "Connection": {"forwarded"}},
			want: "for=1.2.3.4;host=" + host + ";proto=http, for=10.0.0.1",
		},
		"one that knows the others": {
			ip: "2001:db8::1", trusted: true, remote: "10.0.0.1:1",
			header: http.Header{"X-Forwarded-For": {"2001:db8::1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"shop.example.com:443"}},
			want:   `for="[2001:db8::1]";host="shop.example.com:443";proto=https, for=10.0.0.1`,
		},
		"one that knows lists": {
			ip: "1.2.3.4", trusted: true, remote: "10.0.0.1:1",
			header: http.Header{"X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Proto": {"https,http"}, "X-Forwarded-Host": {`a"b`}},
			want:   "for=1.2.3.4;host=" + host + ";proto=http, for=10.0.0.1",
		},
		"one that says nothing": {ip: "10.0.0.1", trusted: true, remote: "10.0.0.1:1", want: "for=10.0.0.1;host=" + host + ";proto=http"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, got := strict(t)
			for _, only := range []bool{false, true} {
				in := serving(t, ingress.Options{TransportOnly: only, Client: func(*http.Request) (string, bool) { return c.ip, c.trusted }}, bare(addr))
				r := browser(t)
				r.RemoteAddr = c.remote
				for name, values := range c.header {
					r.Header[name] = values
				}
				if c.host != "" {
					r.Host = c.host
				}
				if c.tls {
					r.TLS = &tls.ConnectionState{}
				}
				w := &sink{header: http.Header{}}
				in.ServeHTTP(w, r)
				if w.status != http.StatusOK {
					t.Fatalf("transport only %v: %d", only, w.status)
				}
				head, _, _ := strings.Cut(<-got, "\r\n\r\n")
				var values []string
				for line := range strings.SplitSeq(head, "\r\n") {
					if value, ok := strings.CutPrefix(line, "Forwarded: "); ok {
						values = append(values, value)
					}
				}
				if len(values) != 1 || values[0] != c.want {
					t.Errorf("transport only %v: %q\nwant %q", only, values, c.want)
				}
			}
		})
	}
}
