package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
)

// version is what an answer begins with, without the last digit.
const version = "HTTP/1."

const (
	// maxHead bounds the head of an answer, and the trailers of one, in bytes.
	// It has to fit into a buffer.
	maxHead = copyBuffer

	// maxInterim bounds the 1xx answers before the one that counts.
	maxInterim = 100
)

// field is a line of a head, its name in canonical form.
type field struct{ name, value string }

// answerHead is the head of a replica's answer.
//
// Where RFC 9112 leaves it to the reader how much to forgive, nothing is
// forgiven: what two readers could take for different answers is an error.
type answerHead struct {
	status    int
	minor     byte    // of HTTP/1
	fields    []field // to be forwarded, in the order they came in
	trailers  []string
	length    int64 // of the body; -1: it is chunked, or ends with the connection
	chunked   bool
	untilEOF  bool
	close     bool // the connection is not to be used again
	events    bool // the body is an event stream
	hasLength bool
}

// reset forgets everything but the memory.
func (a *answerHead) reset() {
	clear(a.fields)
	clear(a.trailers)
	*a = answerHead{fields: a.fields[:0], trailers: a.trailers[:0]}
}

var (
	errHeadTooLong   = fmt.Errorf("malformed answer: its head is longer than %d bytes", maxHead)
	errNotHTTP       = errors.New("malformed answer: it does not begin with HTTP/1")
	errStatusLine    = errors.New("malformed answer: its status line")
	errLineEnd       = errors.New("malformed answer: a line does not end with CR LF")
	errFolded        = errors.New("malformed answer: a field is folded over several lines")
	errFieldName     = errors.New("malformed answer: the name of a field")
	errFieldValue    = errors.New("malformed answer: a control character in the value of a field")
	errLength        = errors.New("malformed answer: its Content-Length")
	errLengths       = errors.New("malformed answer: it has several Content-Lengths")
	errCoding        = errors.New("malformed answer: its Transfer-Encoding is not just chunked")
	errLengthCoding  = errors.New("malformed answer: it has both a Content-Length and a Transfer-Encoding")
	errCodingIn10    = errors.New("malformed answer: HTTP/1.0 has no Transfer-Encoding")
	errListed        = fmt.Errorf("malformed answer: Connection lists more than %d fields", maxListed)
	errTrailers      = fmt.Errorf("malformed answer: more than %d trailers", maxListed)
	errManyInterim   = errors.New("the replica sent too many informational answers")
	errSwitchUnasked = errors.New("the replica switched protocols unasked")
	errDisturbed     = errors.New("the replica closed a connection, or sent something over it unasked")
)

// parse takes a whole head: every line with its end, without the empty line
// after the last. head tells that the request was a HEAD. The fields are parts
// of text.
func (a *answerHead) parse(text string, head bool) error {
	a.reset()
	line, text, err := cutLine(text)
	if err != nil {
		return err
	}
	if err := a.parseStatus(line); err != nil {
		return err
	}
	var connection []string
	coded := false
	for text != "" {
		if line, text, err = cutLine(text); err != nil {
			return err
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		switch f.name {
		case "Connection":
			connection = append(connection, f.value)
			continue
		case "Transfer-Encoding":
			if coded || !strings.EqualFold(f.value, "chunked") {
				return errCoding
			}
			coded = true
			continue
		case "Content-Length":
			if again, err := a.setLength(&f); err != nil {
				return err
			} else if again {
				continue
			}
		case "Trailer":
			if err := a.announce(f.value); err != nil {
				return err
			}
			continue
		case "Content-Type":
			kind, _, _ := strings.Cut(f.value, ";")
			a.events = strings.EqualFold(textproto.TrimString(kind), "text/event-stream")
		default:
			if hopByHop(f.name) {
				continue
			}
		}
		a.fields = append(a.fields, f)
	}
	listed := 0
	for _, value := range connection {
		if listed += 1 + strings.Count(value, ","); listed > maxListed {
			return errListed
		}
		a.obey(value)
	}
	return a.frame(head, coded)
}

// cutLine cuts the first line off, without its end.
func cutLine(text string) (line, rest string, err error) {
	end := strings.IndexByte(text, '\n')
	if end < 1 || text[end-1] != '\r' {
		return "", "", errLineEnd
	}
	return text[:end-1], text[end+1:], nil
}

func (a *answerHead) parseStatus(line string) error {
	if !strings.HasPrefix(line, version) {
		return errNotHTTP
	}
	if len(line) < 12 || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return errStatusLine
	}
	a.minor = line[7] - '0'
	for _, digit := range []byte(line[9:12]) {
		if digit < '0' || digit > '9' {
			return errStatusLine
		}
		a.status = a.status*10 + int(digit-'0')
	}
	reason := line[12:]
	if a.status < 100 || reason != "" && reason[0] != ' ' || !validValue(reason) {
		return errStatusLine
	}
	return nil
}

// parseField takes a field line without its end.
func parseField(line string) (field, error) {
	if line == "" || line[0] == ' ' || line[0] == '\t' {
		return field{}, errFolded
	}
	at, canonical := scanName(line)
	if at == 0 || at == len(line) || line[at] != ':' {
		return field{}, errFieldName
	}
	f := field{name: line[:at], value: strings.Trim(line[at+1:], " \t")}
	if !validValue(f.value) {
		return field{}, errFieldValue
	}
	if !canonical {
		f.name = textproto.CanonicalMIMEHeaderKey(f.name)
	}
	return f, nil
}

// setLength takes a Content-Length. again tells that the same was there before.
func (a *answerHead) setLength(f *field) (again bool, err error) {
	var n int64
	// Eighteen digits fit into 63 bits.
	if f.value == "" || len(f.value) > 18 {
		return false, errLength
	}
	for i := range len(f.value) {
		digit := f.value[i]
		if digit < '0' || digit > '9' {
			return false, errLength
		}
		n = n*10 + int64(digit-'0')
	}
	if a.hasLength {
		if n != a.length {
			return false, errLengths
		}
		return true, nil
	}
	for len(f.value) > 1 && f.value[0] == '0' {
		f.value = f.value[1:]
	}
	a.hasLength, a.length = true, n
	return false, nil
}

// announce takes a Trailer field.
func (a *answerHead) announce(value string) error {
	for name := range strings.SplitSeq(value, ",") {
		name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
		if end, _ := scanName(name); end == len(name) && end > 0 && trailable(name) {
			if len(a.trailers) == maxListed {
				return errTrailers
			}
			a.trailers = append(a.trailers, name)
		}
	}
	return nil
}

// trailable tells whether a field may stand after the body: not what frames or
// describes it (RFC 9110 §6.5.1).
func trailable(name string) bool {
	switch name {
	case "Content-Length", "Content-Type", "Content-Encoding", "Content-Range", "Host":
		return false
	}
	return !hopByHop(name)
}

// obey does what a Connection field says.
func (a *answerHead) obey(value string) {
	for name := range strings.SplitSeq(value, ",") {
		name = textproto.TrimString(name)
		switch {
		case strings.EqualFold(name, "close"):
			a.close = true
		case strings.EqualFold(name, "keep-alive"):
		default:
			kept := a.fields[:0]
			for _, f := range a.fields {
				if !strings.EqualFold(f.name, name) {
					kept = append(kept, f)
				}
			}
			a.fields = kept
		}
	}
}

// frame decides how long the body is (RFC 9112 §6.3).
func (a *answerHead) frame(head, coded bool) error {
	switch {
	case coded && a.minor == 0:
		return errCodingIn10
	case coded && a.hasLength:
		return errLengthCoding
	}
	if a.minor == 0 {
		a.close = true
	}
	interim := a.status < http.StatusOK
	switch {
	case interim || a.status == http.StatusNoContent:
		// Neither may say how long its body is. One that does may send it, too.
		if coded || a.length > 0 {
			a.close = true
		}
		a.dropLength()
		a.length = 0
	case head || a.status == http.StatusNotModified:
		a.length = 0 // what Content-Length says is that of another answer
	case coded:
		a.chunked, a.length = true, -1
	case !a.hasLength:
		a.untilEOF, a.close, a.length = true, true, -1
	}
	if !a.chunked {
		a.trailers = a.trailers[:0]
	}
	return nil
}

func (a *answerHead) dropLength() {
	for i := range a.fields {
		if a.fields[i].name == "Content-Length" {
			a.fields = append(a.fields[:i], a.fields[i+1:]...)
			return
		}
	}
}

// setFields makes h have fields, instead of what it had under their names.
func setFields(h http.Header, fields []field) {
	if len(fields) == 0 {
		return
	}
	for name := range h { // few: what the server itself says
		for i := range fields {
			if fields[i].name == name {
				delete(h, name)
				break
			}
		}
	}
	values := make([]string, len(fields))
	for i, f := range fields {
		values[i] = f.value
		if before, several := h[f.name]; several {
			h[f.name] = append(before, f.value)
		} else {
			h[f.name] = values[i : i+1 : i+1]
		}
	}
}

const (
	isToken = 1 << iota // may be in the name of a field (RFC 9110 §5.6.2)
	isLower
	isUpper
	isValue // may be in the value of one: everything but control characters
)

var bytesAre = func() (is [256]byte) {
	for c := range 256 {
		if c >= ' ' && c != 0x7f || c == '\t' {
			is[c] |= isValue
		}
		switch {
		case 'a' <= c && c <= 'z':
			is[c] |= isToken | isLower
		case 'A' <= c && c <= 'Z':
			is[c] |= isToken | isUpper
		case '0' <= c && c <= '9', c > ' ' && c < 0x7f && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0:
			is[c] |= isToken
		}
	}
	return is
}()

// scanName tells where the name that s begins with ends, and whether it is in
// canonical form.
func scanName(s string) (end int, canonical bool) {
	canonical = true
	wrong := byte(isLower) // at the beginning of a word
	for i := range len(s) {
		is := bytesAre[s[i]]
		if is&isToken == 0 {
			return i, canonical
		}
		if is&wrong != 0 {
			canonical = false
		}
		wrong = isUpper
		if s[i] == '-' {
			wrong = isLower
		}
	}
	return len(s), canonical
}

// validValue tells whether s can be the value of a field.
func validValue(s string) bool {
	all := byte(isValue)
	for i := range len(s) {
		all &= bytesAre[s[i]]
	}
	return all != 0
}
