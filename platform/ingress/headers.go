package ingress

import (
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"strings"
)

// hopByHop tells whether a field concerns one connection only and is never
// forwarded (RFC 9110 §7.6.1). name is in canonical form.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return false
}

// removeListed removes the fields that a Connection field lists.
func removeListed(from http.Header, connection []string) {
	for _, line := range connection {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.TrimString(name)
			if name != "" && !strings.EqualFold(name, "close") && !strings.EqualFold(name, "keep-alive") {
				from.Del(name)
			}
		}
	}
}

// hasToken tells whether a list field has token, without regard to case.
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for t := range strings.SplitSeq(line, ",") {
			t, _, _ = strings.Cut(t, ";")
			if strings.EqualFold(textproto.TrimString(t), token) {
				return true
			}
		}
	}
	return false
}

// forwardedFor tells whether a field says what a proxy knows of the client.
// Applications believe these, so they come from a trusted proxy or from Denia.
func forwardedFor(name string) bool {
	return name == "Forwarded" || name == "X-Real-Ip" || strings.HasPrefix(name, "X-Forwarded-")
}

// requestHeader is the header to send upstream. Values are shared with r.
func (in *Ingress) requestHeader(r *http.Request, id string) http.Header {
	ip, trusted := in.options.Client(r)
	h := make(http.Header, len(r.Header)+6)
	for name, values := range r.Header {
		if !hopByHop(name) && (trusted || !forwardedFor(name)) {
			h[name] = values
		}
	}
	if connection := r.Header["Connection"]; connection != nil {
		removeListed(h, connection)
	}
	if te := r.Header["Te"]; te != nil && hasToken(te, "trailers") {
		h["Te"] = []string{"trailers"} // gRPC insists on it
	}
	if _, given := h["User-Agent"]; !given {
		h["User-Agent"] = []string{""} // else net/http puts its own
	}
	if r.ContentLength == 0 {
		delete(h, "Expect")
	}

	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	added := [4]string{ip, r.Host, proto, id}
	if trusted {
		// The chain so far was written by proxies up to the peer, so what is
		// to be added is the peer, not the client at the chain's beginning.
		if chain := h["X-Forwarded-For"]; len(chain) > 0 {
			added[0] = strings.Join(chain, ", ") + ", " + peer(r)
		}
	}
	h["X-Forwarded-For"] = added[0:1:1]
	if h["X-Forwarded-Host"] == nil {
		h["X-Forwarded-Host"] = added[1:2:2]
	}
	if h["X-Forwarded-Proto"] == nil {
		h["X-Forwarded-Proto"] = added[2:3:3]
	}
	h["X-Request-Id"] = added[3:4:4]
	return h
}

// requestID is the client's own request id if it can be put into logs and
// pages as it is, else a new one.
func requestID(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && saneID(given[0]) {
		return given[0]
	}
	const digits = "0123456789abcdef"
	var id [32]byte
	for half := range 2 {
		for i, n := 0, rand.Uint64(); i < 16; i, n = i+1, n>>4 {
			id[half*16+i] = digits[n&15]
		}
	}
	return string(id[:])
}

func saneID(id string) bool {
	if len(id) < 1 || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && strings.IndexByte("._:/+=@-", c) < 0 {
			return false
		}
	}
	return true
}

// idempotent tells whether a request may be sent again although it may have
// arrived (RFC 9110 §9.2.2, and the Idempotency-Key field).
func idempotent(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header["Idempotency-Key"] != nil
}
