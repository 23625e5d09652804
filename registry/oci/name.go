package oci

// Lengths of the distribution specification's names ("Pulling manifests").
const (
	maxName = 255
	maxTag  = 128
)

// ValidName tells whether a string can name a repository: path components of
// lower-case letters and digits, joined by one ".", one or two "_", or any
// number of "-", separated by "/", at most 255 bytes in all.
func ValidName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := 0; ; {
		var ok bool
		if i, ok = component(s, i); !ok {
			return false
		}
		if i == len(s) {
			return true
		}
		i++ // the slash
	}
}

// component reads one path component from s[i:], up to a slash or the end.
func component(s string, i int) (end int, ok bool) {
	for {
		start := i
		for i < len(s) && alphanumeric(s[i]) {
			i++
		}
		if i == start {
			return i, false
		}
		if i == len(s) || s[i] == '/' {
			return i, true
		}
		start = i
		for i < len(s) && s[i] == s[start] {
			i++
		}
		switch n := i - start; s[start] {
		case '.':
			ok = n == 1
		case '_':
			ok = n <= 2
		case '-':
			ok = true
		default:
			ok = false
		}
		if !ok {
			return i, false
		}
	}
}

func alphanumeric(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// ValidTag tells whether a string can be a tag: a letter, a digit or "_",
// followed by at most 127 of these, "." and "-".
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case alphanumeric(c), c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}
