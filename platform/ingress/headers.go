package ingress

import (
	"errors"
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

// maxListed bounds the fields that a Connection field may list. Each is looked
// for among all others, and a sender must not make that long.
const maxListed = 64

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

// passage decides which fields of a request go on to a replica.
type passage struct {
	r       *http.Request
	trusted bool     // the peer is a proxy that is believed
	listed  []string // by Connection
	chain   []string // of proxies up to the peer, that is to be continued
}

// errHeader is for a header that no client that means well sends.
var errHeader = errors.New("the request's header cannot be forwarded")

func (x *exchange) passage() (p passage, err error) {
	p.r, p.trusted = x.r, x.trusted
	for _, line := range x.r.Header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.TrimString(name)
			if name == "" || strings.EqualFold(name, "close") || strings.EqualFold(name, "keep-alive") {
				continue
			}
			if len(p.listed) == maxListed {
				return p, errHeader
			}
			p.listed = append(p.listed, name)
		}
	}
	if p.trusted && !p.isListed("X-Forwarded-For") {
		p.chain = x.r.Header["X-Forwarded-For"]
		for _, line := range p.chain {
			if !validValue(line) {
				return p, errHeader
			}
		}
	}
	return p, nil
}

// fields gives each field that goes on as it came. It fails for what would not
// be one field when written out: net/http's servers let no such name or value
// in, but there are others, and modules that set fields.
func (p *passage) fields(give func(name string, values []string)) error {
	for name, values := range p.r.Header {
		end, canonical := scanName(name)
		if end != len(name) || end == 0 {
			return errHeader
		}
		if !canonical {
			name = textproto.CanonicalMIMEHeaderKey(name)
		}
		if !p.passes(name) {
			continue
		}
		for _, value := range values {
			if !validValue(value) {
				return errHeader
			}
		}
		give(name, values)
	}
	return nil
}

func (p *passage) passes(name string) bool {
	switch name {
	case "Host", "Content-Length", "X-Request-Id", "X-Forwarded-For", "Forwarded":
		return false // written anew
	case "Expect":
		return p.r.ContentLength != 0
	}
	if hopByHop(name) || !p.trusted && forwardedFor(name) || p.isListed(name) {
		return false
	}
	// CGI and its heirs cannot tell these from the fields that they look like.
	if strings.IndexByte(name, '_') >= 0 {
		twin := textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
		return twin != "Host" && twin != "Content-Length" && twin != "X-Request-Id" && !hopByHop(twin) && !forwardedFor(twin)
	}
	return true
}

func (p *passage) isListed(name string) bool {
	for _, listed := range p.listed {
		if strings.EqualFold(listed, name) {
			return true
		}
	}
	return false
}

// wantsTrailers tells whether the client said that it takes trailers, on which
// gRPC insists.
func (p *passage) wantsTrailers() bool {
	te := p.r.Header["Te"]
	return te != nil && hasToken(te, "trailers")
}

// adds tells whether Denia has to say something under name, because nobody who
// is believed did.
func (p *passage) adds(name string) bool {
	return !p.trusted || p.r.Header[name] == nil || p.isListed(name)
}

func (p *passage) proto() string {
	if p.r.TLS != nil {
		return "https"
	}
	return "http"
}

// requestHeader is the header to send upstream. Values are shared with the
// request.
func (x *exchange) requestHeader() (http.Header, error) {
	r := x.r
	p, err := x.passage()
	if err != nil {
		return nil, err
	}
	h := make(http.Header, len(r.Header)+7)
	if err := p.fields(func(name string, values []string) { h[name] = values }); err != nil {
		return nil, err
	}
	if p.wantsTrailers() {
		h["Te"] = []string{"trailers"}
	}
	if _, given := h["User-Agent"]; !given {
		h["User-Agent"] = []string{""} // else net/http puts its own
	}
	var buf [128]byte
	added := [5]string{x.ip, r.Host, p.proto(), x.id, string(p.appendForwarded(buf[:0], x.ip))}
	if len(p.chain) > 0 {
		// The chain so far was written by proxies up to the peer, so what is
		// to be added is the peer, not the client at the chain's beginning.
		added[0] = strings.Join(p.chain, ", ") + ", " + peer(r)
	}
	h["X-Forwarded-For"] = added[0:1:1]
	if p.adds("X-Forwarded-Host") {
		h["X-Forwarded-Host"] = added[1:2:2]
	}
	if p.adds("X-Forwarded-Proto") {
		h["X-Forwarded-Proto"] = added[2:3:3]
	}
	h["X-Request-Id"] = added[3:4:4]
	h["Forwarded"] = added[4:5:5]
	return h, nil
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
