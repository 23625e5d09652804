package platform

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxHostname is the longest name DNS can hold, written with dots (RFC 1035
// §2.3.4).
const maxHostname = 253

// ParseHostname reads a public host name as a person writes it and returns the
// one form in which Denia keeps it: A-labels (RFC 5891), lower case, without
// the trailing dot. "*." may stand in front, for every name with one label
// more. Its own output is read as itself.
//
// IP addresses, single labels such as "localhost", and everything that is more
// than a name (scheme, port, path) are Invalid, with the field "hostname".
func ParseHostname(text string) (string, error) {
	bad := func(code, format string, args ...any) (string, error) {
		return "", InvalidField("hostname", code, format, args...)
	}
	if text == "" {
		return bad("required", "is required: write for example shop.example.com")
	}
	if len(text) > 4*maxHostname { // of the longest in UTF-8
		return bad("too_long", "must be at most %d characters, as A-labels", maxHostname)
	}
	name, wildcard := strings.CutPrefix(text, "*.")
	if strings.Contains(name, "*") {
		return bad("bad_wildcard", "may have an asterisk only as its whole first label: *.example.com")
	}
	if isAddress(name) {
		return bad("ip_address", "must be a name: nobody can own an IP address here")
	}
	if strings.ContainsAny(name, "/:@?#[]\\ \t\r\n") || !utf8.ValidString(name) {
		return bad("bad_hostname", "must be a host name alone, without scheme, port, path or spaces")
	}
	name, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return bad("bad_hostname", "is no host name that DNS can hold: labels are letters, digits and hyphens, or valid in IDNA 2008")
	}
	name = strings.TrimSuffix(name, ".")
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !dnsLabel.MatchString(label) {
			return bad("bad_hostname", "has a label that is empty, longer than 63 characters, or not made of letters, digits and inner hyphens")
		}
	}
	if len(labels) < 2 {
		return bad("single_label", "must have a dot: names of one label belong to a registry or to this machine")
	}
	// Resolvers read a name that ends in a number as an IPv4 address, in
	// forms that no parser of ours knows (127.1, 0x7f.1).
	if numeric(labels[len(labels)-1]) {
		return bad("ip_address", "must not end in a number: it would be read as an IP address")
	}
	if wildcard {
		name = "*." + name
	}
	if len(name) > maxHostname {
		return bad("too_long", "must be at most %d characters, as A-labels", maxHostname)
	}
	return name, nil
}

func isAddress(text string) bool {
	if _, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return true
	}
	_, err := netip.ParseAddrPort(text)
	return err == nil
}

// numeric tells a label that is a number in decimal, octal or hexadecimal.
func numeric(label string) bool {
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = hex, digits+"abcdef"
	}
	return strings.Trim(label, digits) == ""
}

// IsWildcard tells a host name that stands for others.
func IsWildcard(hostname string) bool { return strings.HasPrefix(hostname, "*.") }

// Ancestors are the names above a host name, as they are and with "*." in
// front: whoever has proven one of them is likely to own the host name too.
// Names of one label are left out.
func Ancestors(hostname string) []string {
	var names []string
	rest := strings.TrimPrefix(hostname, "*.")
	for {
		_, above, found := strings.Cut(rest, ".")
		if !found || !strings.Contains(above, ".") {
			return names
		}
		names = append(names, above, "*."+above)
		rest = above
	}
}

// CheckReserved refuses the host names that are Denia's own: the control
// domain, the base domain and what is below it, and wildcards that stand for
// one of these. Both may be empty.
func CheckReserved(hostname, base, control string) error {
	name := strings.TrimPrefix(hostname, "*.")
	covers := func(host string) bool {
		_, parent, _ := strings.Cut(host, ".")
		return hostname == host || hostname == "*."+parent
	}
	switch {
	case control != "" && covers(control):
		return Errorf(Conflict, "hostname_reserved", "%s is, or stands for, the control domain", hostname)
	case base != "" && (covers(base) || name == base || strings.HasSuffix(name, "."+base)):
		return Errorf(Conflict, "hostname_reserved", "%s belongs to the base domain %s, below which each service has its host name already", hostname, base)
	}
	return nil
}
