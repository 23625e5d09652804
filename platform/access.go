package platform

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// AccessEntry is one finished request to a service, as the ingress saw it.
type AccessEntry struct {
	TS      time.Time // when it ended
	Replica string    // that answered, "<release number>.<index>"; empty when Denia answered itself
	Release ID        // the deployment the request was last sent to; empty for none

	Method   string
	Protocol string // of the client: HTTP/1.1, HTTP/2.0, HTTP/3.0, or websocket
	Host     string
	Path     string // as it was sent, percent-encoded
	Query    string // without its question mark

	Status   int
	BytesIn  int64 // of the request's body, as far as it was read
	BytesOut int64 // of the answer's body, as far as it was written

	Duration time.Duration // from the request's header to the answer's end
	Upstream time.Duration // of that, until a replica answered: all attempts, without Waited
	Waited   time.Duration // of that, for a replica to be ready

	// ColdStart tells that no replica was ready when the request came, and
	// that it was sent to the first that was.
	ColdStart bool

	RemoteIP  string
	UserAgent string
	RequestID string

	// Error is a stable code: why Denia answered, or why the answer was not
	// sent whole. Empty when all went well.
	Error string
}

// Codes of AccessEntry.Error, besides those of the pages Denia answers with.
const (
	AccessClientGone = "client_gone" // before its answer was sent whole
	AccessBrokenOff  = "broken_off"  // the replica ended in the midst of its answer
)

// Longer values of an access entry are cut; what a client sends must not fill
// memory or disk. Percent-encoding may make them three times as long.
const (
	maxAccessMethod = 32
	maxAccessHost   = 255
	maxAccessPath   = 1024
	maxAccessQuery  = 1024
	maxAccessAgent  = 256
	maxAccessID     = 128
)

// MaxAccessRecord bounds the bytes of one record that AppendAccess makes.
const MaxAccessRecord = 10 << 10

// AppendAccess adds e to b as one line of text: nanoseconds since 1970 at the
// request's end, "o", the replica, and then
//
//	status method host path ?query protocol bytes_in bytes_out duration_us upstream_us waited_us flags remote_ip request_id release error user agent
//
// with "-" for what is empty; the only flag is c, for a cold start. Values of
// the query that look secret are replaced by ***, long values are cut, and
// what could break the line is encoded. The line is a record of a log, see the
// package telemetry. Nothing is allocated when b has room.
func AppendAccess(b []byte, e *AccessEntry) []byte {
	b = strconv.AppendInt(b, e.TS.UnixNano(), 10)
	b = append(b, " o "...)
	b = appendWord(b, e.Replica, maxAccessID)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(e.Status), 10)
	b = append(b, ' ')
	b = appendWord(b, e.Method, maxAccessMethod)
	b = append(b, ' ')
	b = appendWord(b, e.Host, maxAccessHost)
	b = append(b, ' ')
	b = appendWord(b, e.Path, maxAccessPath)
	b = append(b, ' ')
	if e.Query == "" {
		b = append(b, '-')
	} else {
		b = append(b, '?')
		b = AppendRedactedQuery(b, e.Query)
	}
	b = append(b, ' ')
	b = appendWord(b, e.Protocol, maxAccessMethod)
	for _, n := range [...]int64{e.BytesIn, e.BytesOut, e.Duration.Microseconds(), e.Upstream.Microseconds(), e.Waited.Microseconds()} {
		b = append(b, ' ')
		b = strconv.AppendInt(b, n, 10)
	}
	if e.ColdStart {
		b = append(b, " c "...)
	} else {
		b = append(b, " - "...)
	}
	b = appendWord(b, e.RemoteIP, maxAccessID)
	b = append(b, ' ')
	b = appendWord(b, e.RequestID, maxAccessID)
	b = append(b, ' ')
	b = appendWord(b, string(e.Release), maxAccessID)
	b = append(b, ' ')
	b = appendWord(b, e.Error, maxAccessID)
	b = append(b, ' ')
	b = appendAgent(b, e.UserAgent)
	return append(b, '\n')
}

// accessFields is how many words of a record's text stand before the user
// agent.
const accessFields = 16

// ParseAccess reads what AppendAccess wrote behind the replica, without the
// line break. What is no such text is not ok.
func ParseAccess(text string) (e AccessEntry, ok bool) {
	var word [accessFields]string
	for i := range word {
		if word[i], text, ok = strings.Cut(text, " "); !ok {
			return AccessEntry{}, false
		}
		if word[i] == "-" {
			word[i] = ""
		}
	}
	var number [5]int64
	for i := range number {
		n, err := strconv.ParseInt(word[6+i], 10, 64)
		if err != nil {
			return AccessEntry{}, false
		}
		number[i] = n
	}
	status, err := strconv.Atoi(word[0])
	if err != nil {
		return AccessEntry{}, false
	}
	return AccessEntry{
		Status: status, Method: word[1], Host: word[2], Path: word[3],
		Query: strings.TrimPrefix(word[4], "?"), Protocol: word[5],
		BytesIn: number[0], BytesOut: number[1],
		Duration: time.Duration(number[2]) * time.Microsecond,
		Upstream: time.Duration(number[3]) * time.Microsecond,
		Waited:   time.Duration(number[4]) * time.Microsecond,

		ColdStart: word[11] == "c", RemoteIP: word[12], RequestID: word[13],
		Release: ID(word[14]), Error: word[15],
		UserAgent: strings.ToValidUTF8(text, "\uFFFD"),
	}, true
}

// ones is a byte in each place of a word.
const ones = 0x0101010101010101

// plain is how many bytes at the beginning of s are printable ASCII, from
// first on. It looks at eight at a time: this is what an entry costs.
func plain(s string, first byte) int {
	n := 0
	for ; n+8 <= len(s); n += 8 {
		b := s[n : n+8]
		x := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
			uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		below := (x - ones*uint64(first)) &^ x
		above := (x + ones) | x // 0x7f and what is no ASCII
		if (below|above)&(ones<<7) != 0 {
			break
		}
	}
	for n < len(s) && s[n] >= first && s[n] < 0x7f {
		n++
	}
	return n
}

const cut = "…"

// appendWord adds s without anything that ends a word or a line.
func appendWord(b []byte, s string, limit int) []byte {
	if s == "" {
		return append(b, '-')
	}
	if len(s) > limit {
		return append(appendEscaped(b, s[:limit]), cut...)
	}
	return appendEscaped(b, s)
}

// appendEscaped percent-encodes what is not printable ASCII.
func appendEscaped(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for {
		n := plain(s, '!')
		b = append(b, s[:n]...)
		if n == len(s) {
			return b
		}
		b = append(b, '%', digits[s[n]>>4], digits[s[n]&15])
		s = s[n+1:]
	}
}

// appendAgent adds a user agent, whose words stay readable.
func appendAgent(b []byte, s string) []byte {
	end := min(len(s), maxAccessAgent)
	n := plain(s[:end], ' ')
	b = append(b, s[:n]...)
	for ; n < end; n++ {
		c := s[n]
		if c < ' ' || c == 0x7f {
			c = '?'
		}
		b = append(b, c)
	}
	if end < len(s) {
		b = append(b, cut...)
	}
	return b
}

// AppendRedactedQuery adds a query with *** in place of every value whose
// parameter looks as if it were secret, and of values that hold such a
// parameter themselves, as redirects do. Names are kept. A long query is cut.
func AppendRedactedQuery(b []byte, query string) []byte {
	start := len(b)
	for {
		end := 0
		for end < len(query) && query[end] != '&' && query[end] != ';' {
			end++
		}
		name, value, assigned := strings.Cut(query[:end], "=")
		left := maxAccessQuery - (len(b) - start)
		if left <= 0 {
			return append(b, cut...)
		}
		if len(name) > left {
			return append(appendEscaped(b, name[:left]), cut...)
		}
		b = appendEscaped(b, name)
		if assigned {
			b = append(b, '=')
			left = max(0, left-len(name)-1)
			switch {
			case value == "":
			case secretName(name) || secretInside(value):
				b = append(b, "***"...)
			case len(value) > left:
				return append(appendEscaped(b, value[:left]), cut...)
			default:
				b = appendEscaped(b, value)
			}
		}
		if end == len(query) {
			return b
		}
		b = append(b, query[end])
		query = query[end+1:]
	}
}

// secretName tells whether a parameter's value is better not kept. A name
// that is too long to be one is judged like a secret.
func secretName(name string) bool {
	if innocent(name) {
		return false
	}
	var buffer [128]byte
	if len(name) > len(buffer) {
		return true
	}
	return looksSecret(unescape(buffer[:0], name))
}

// telling has, for every word that looksSecret knows, two letters that stand
// next to each other in it and in few other words.
var telling = func() (pairs [1 << 10]bool) {
	for pair := range strings.FieldsSeq("ok cr ss gn ig ut be rf ml hm ey od wd pw pi tp id ck jw") {
		pairs[pairOf(pair[0], pair[1])] = true
	}
	return pairs
}()

// pairOf is the same for upper and lower case.
func pairOf(a, b byte) int { return int(a&31)<<5 | int(b&31) }

// innocent tells of most names, at little cost, that they are not secret.
func innocent(name string) bool {
	if len(name) > 32 {
		return false
	}
	for i := range len(name) {
		if name[i] == '%' || i > 0 && telling[pairOf(name[i-1], name[i])] {
			return false
		}
	}
	return true
}

// secretInside tells whether a value holds a secret parameter.
func secretInside(value string) bool {
	if strings.IndexByte(value, '=') < 0 && strings.IndexByte(value, '%') < 0 {
		return false
	}
	var buffer [maxAccessQuery]byte
	// More of the value is not kept anyway.
	text := unescape(buffer[:0], value[:min(len(value), len(buffer))])
	// Encoded once more, as in a redirect within a redirect, it ends in %3D.
	return (bytes.IndexByte(text, '=') >= 0 || bytes.Contains(text, []byte("%3"))) && looksSecret(text)
}

// unescape undoes percent-encoding; what is none is taken as it stands.
func unescape(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' && i+2 < len(s) {
			high, low := unhex(s[i+1]), unhex(s[i+2])
			if high < 16 && low < 16 {
				c = high<<4 | low
				i += 2
			}
		}
		b = append(b, c)
	}
	return b
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 16
}

// secretParts are secret wherever letters hold them, by their first letter.
var secretParts = func() (parts [26][]string) {
	for _, part := range []string{
		"token", "secret", "passw", "passphrase", "passcode", "credential", "signature", "session",
		"oauth", "authoriz", "authoris", "authent", "authcode", "bearer", "assertion", "csrf", "xsrf", "saml", "hmac",
	} {
		parts[part[0]-'a'] = append(parts[part[0]-'a'], part)
	}
	return parts
}()

// looksSecret tells whether the text holds a word that names secrets: between
// other characters than letters, between the humps of camelCase, or within a
// longer word where it can hardly mean anything else. It writes over text.
func looksSecret(text []byte) bool {
	for len(text) > 0 {
		n, upper := 0, false
		for n < len(text) && isLetter(text[n]) {
			upper = upper || isUpper(text[n])
			n++
		}
		letters := text[:n]
		text = text[min(n+1, len(text)):]
		if upper && secretHump(letters) {
			return true
		}
		for i := range letters {
			letters[i] |= 0x20
		}
		if secretWord(letters) || hasSecretPart(letters) {
			return true
		}
	}
	return false
}

// secretHump tells whether a part of camelCase names secrets.
func secretHump(letters []byte) bool {
	var lower [8]byte
	n := len(letters)
	word := 0
	for i := 1; i <= n; i++ {
		hump := i < n && isUpper(letters[i]) && (!isUpper(letters[i-1]) || i+1 < n && !isUpper(letters[i+1]))
		if i < n && !hump {
			continue
		}
		if i-word <= len(lower) {
			for at, c := range letters[word:i] {
				lower[at] = c | 0x20
			}
			if secretWord(lower[:i-word]) {
				return true
			}
		}
		word = i
	}
	return false
}

// hasSecretPart takes letters in lower case.
func hasSecretPart(letters []byte) bool {
	if len(letters) < 4 {
		return false
	}
	if bytes.HasSuffix(letters, []byte("key")) || bytes.HasSuffix(letters, []byte("auth")) {
		return true
	}
	for i := range len(letters) - 3 {
		for _, part := range secretParts[letters[i]-'a'] {
			if len(letters)-i >= len(part) && string(letters[i:i+len(part)]) == part {
				return true
			}
		}
	}
	return false
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isUpper(c byte) bool  { return c < 'a' } // of a letter

// secretWord tells whether a whole word, in lower case, names secrets.
func secretWord(word []byte) bool {
	if len(word) < 2 || len(word) > 7 {
		return false
	}
	switch string(word) {
	case "key", "keys", "apikeys", "code", "pass", "pwd", "pw", "pin", "otp", "totp", "sid", "sess", "sig", "sign", "auth", "ticket", "jwt":
		return true
	}
	return false
}
