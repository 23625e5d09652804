package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/denia-paas/denia/platform"
)

const (
	minValue = 4 // shorter ones would turn ordinary text into stars
	minLine  = 8 // of one line of a value of several
	minInner = 8 // of a value looked for inside of other base64
)

// Redactor hides secret values in text. A nil Redactor hides nothing. It is
// safe for concurrent use.
type Redactor struct {
	forms    []string // every text that is hidden, longest first
	longest  int
	replacer *strings.Replacer
}

// NewRedactor makes a Redactor for values. Each value of at least 4 bytes is
// hidden as it is, in base64 (standard and URL alphabet, with and without
// padding, and inside of longer base64 such as a Basic authorization), URL
// encoded, and quoted as in JSON or Go; a value of several lines is hidden
// line by line as well.
func NewRedactor(values []string) *Redactor {
	seen := map[string]bool{}
	for _, value := range values {
		// A value read from a file often ends in a line break that is not
		// printed with it.
		for _, v := range []string{value, strings.TrimSpace(value)} {
			if len(v) < minValue {
				continue
			}
			for _, form := range forms(v) {
				seen[form] = true
			}
		}
	}
	r := &Redactor{}
	for form := range seen {
		r.forms = append(r.forms, form)
	}
	// The replacer prefers earlier pairs: a value that holds another must win.
	slices.SortFunc(r.forms, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	if len(r.forms) == 0 {
		return r
	}
	r.longest = len(r.forms[0])
	pairs := make([]string, 0, 2*len(r.forms))
	for _, form := range r.forms {
		pairs = append(pairs, form, platform.Redacted)
	}
	r.replacer = strings.NewReplacer(pairs...)
	return r
}

func forms(value string) []string {
	list := []string{
		value,
		base64.StdEncoding.EncodeToString([]byte(value)),
		base64.RawStdEncoding.EncodeToString([]byte(value)),
		base64.URLEncoding.EncodeToString([]byte(value)),
		base64.RawURLEncoding.EncodeToString([]byte(value)),
		unquote(strconv.Quote(value)),
		unquote(strconv.QuoteToASCII(value)),
	}
	for _, escaped := range []string{url.QueryEscape(value), url.PathEscape(value), percentAll(value)} {
		list = append(list, escaped, lowerHex(escaped))
	}
	if text, err := json.Marshal(value); err == nil { // escapes <, > and &
		list = append(list, unquote(string(text)))
	}
	if len(value) >= minInner {
		list = append(list, innerBase64(value)...)
	}
	if strings.ContainsAny(value, "\r\n") {
		for line := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == '\r' || r == '\n' }) {
			if line = strings.TrimSpace(line); len(line) >= minLine {
				list = append(list, line)
			}
		}
	}
	return list
}

func unquote(s string) string { return s[1 : len(s)-1] }

// percentAll escapes all but unreserved characters (RFC 3986 §2.3), as curl
// and JavaScript do.
func percentAll(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

func lowerHex(escaped string) string {
	b := []byte(escaped)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:i+3], bytes.ToLower(b[i:i+3]))
		}
	}
	return string(b)
}

// innerBase64 returns how value shows up in the base64 of a text it is part
// of: three alignments, each without the characters that mix in neighbours.
func innerBase64(value string) []string {
	var list []string
	for before := range 3 {
		text := append(make([]byte, before), value...)
		first := (before*8 + 5) / 6
		last := len(text) * 8 / 6
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			list = append(list, encoding.EncodeToString(text)[first:last])
		}
	}
	return list
}

// String returns s with every secret value replaced by "***".
func (r *Redactor) String(s string) string {
	if r == nil || r.replacer == nil {
		return s
	}
	return r.replacer.Replace(s)
}

// Writer returns a writer that passes text on to w, redacted, line by line: a
// value that arrives in pieces is hidden all the same. Close passes on what is
// left of the last line; it does not close w. A line of any length takes
// bounded memory. The writer is safe for concurrent use; after an error of w
// it keeps failing with that error.
func (r *Redactor) Writer(w io.Writer) io.WriteCloser { return &writer{r: r, w: w} }

const maxPending = 64 << 10

type writer struct {
	r *Redactor
	w io.Writer

	mu      sync.Mutex // guards all below
	pending []byte     // the line that has not ended
	err     error
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	// A carriage return ends a line too: progress bars use nothing else.
	end := bytes.LastIndexAny(p, "\r\n") + 1
	if end > 0 {
		w.pass(append(w.pending, p[:end]...))
		w.pending = w.pending[:0]
	}
	w.pending = append(w.pending, p[end:]...)
	if longest := w.r.longestForm(); len(w.pending) > maxPending+2*longest {
		safe := w.r.safeCut(w.pending, len(w.pending)-longest)
		w.pass(w.pending[:safe])
		w.pending = append(w.pending[:0], w.pending[safe:]...)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// Close passes the rest on.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && len(w.pending) > 0 {
		w.pass(w.pending)
	}
	w.pending = nil
	return w.err
}

func (w *writer) pass(text []byte) {
	if w.err != nil {
		return
	}
	_, w.err = io.WriteString(w.w, w.r.String(string(text)))
}

func (r *Redactor) longestForm() int {
	if r == nil {
		return 0
	}
	return r.longest
}

// safeCut returns the last place at or before cut that no form stretches
// across. Moving back to where such a form begins can land in another one, so
// it looks again. Where forms follow each other without a gap all along, as in
// a line of one letter, every place is as good as cut.
func (r *Redactor) safeCut(text []byte, cut int) int {
	if r == nil {
		return cut
	}
	for safe := cut; safe > 0; {
		across := -1
		for _, form := range r.forms {
			from, to := max(0, safe-len(form)+1), min(len(text), safe+len(form)-1)
			if i := bytes.Index(text[from:to], []byte(form)); i >= 0 {
				across = from + i
				break
			}
		}
		if across < 0 {
			return safe
		}
		safe = across
	}
	return cut
}
