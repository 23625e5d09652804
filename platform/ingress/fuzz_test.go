package ingress

import (
	"encoding/binary"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// endsOf is where, in a stream of frames, another one may stand, read one after
// the other (RFC 6455 §5.2).
func endsOf(stream []byte) map[int]bool {
	ends := map[int]bool{0: true}
	for at := uint64(0); ; {
		rest := stream[at:]
		if len(rest) < 2 {
			return ends
		}
		closes := rest[0]&0x0f == 8
		head, payload := uint64(2), uint64(rest[1]&0x7f)
		masked := rest[1]&0x80 != 0
		switch payload {
		case 126:
			head = 4
		case 127:
			head = 10
		}
		if masked {
			head += 4
		}
		if uint64(len(rest)) < head {
			return ends
		}
		switch payload {
		case 126:
			payload = uint64(binary.BigEndian.Uint16(rest[2:]))
		case 127:
			payload = binary.BigEndian.Uint64(rest[2:])
		}
		if payload > uint64(len(rest))-head || closes {
			return ends
		}
		at += head + payload
		ends[int(at)] = true
	}
}

// FuzzFrames has a stream of frames come in pieces of any length: each says how
// long the next is.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x81\x05hello\x89\x00\x88\x02\x03\xe9\x81\x00"), []byte{1})
	f.Add([]byte("\x81\x83\x01\x02\x03\x04abc\x82\x7e\x00\x03xyz"), []byte{3, 1, 4})
	f.Add([]byte("\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x02ab\x82\xfe\x00\x01\x01\x02\x03\x04z"), []byte{2, 7})
	f.Add([]byte("\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04"), []byte{9})
	f.Fuzz(func(t *testing.T, stream, pieces []byte) {
		ends := endsOf(stream)
		var frames frames
		for at, i := 0, 0; at < len(stream); i++ {
			n := 1
			if len(pieces) > 0 {
				n += int(pieces[i%len(pieces)])
			}
			n = min(n, len(stream)-at)
			frames.advance(stream[at : at+n])
			if at += n; frames.between() != ends[at] {
				t.Fatalf("after %d bytes of %q, in pieces as in %v: between() = %v", at, stream, pieces, frames.between())
			}
		}
	})
}

// elementsOf cuts a Forwarded field into what each proxy said: at commas outside
// of quotes (RFC 7239 §4). ok tells that it can be read by itself.
func elementsOf(value string) (elements []string, ok bool) {
	quoted, escaped := false, false
	from := 0
	for i := range len(value) {
		switch c := value[i]; {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			elements = append(elements, strings.Trim(value[from:i], " \t"))
			from = i + 1
		}
	}
	return append(elements, strings.Trim(value[from:], " \t")), !quoted && validValue(value)
}

// pairOf is a name and a value by the letter of RFC 7239.
var pairOf = regexp.MustCompile(`^([-!#$%&'*+.^_|~0-9A-Za-z` + "`" + `]+)=(?:([-!#$%&'*+.^_|~0-9A-Za-z` + "`" + `]+)|"((?:[^"\\]|\\.)*)")$`)

// pairsOf reads an element by the letter of RFC 7239, nil if it is none. Its
// values must have nothing of what would have to be escaped.
func pairsOf(element string) map[string]string {
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(element, ";") {
		m := pairOf.FindStringSubmatch(pair)
		if m == nil {
			return nil
		}
		pairs[m[1]] = m[2] + m[3]
	}
	return pairs
}

// nodeOf is how an address is written in Forwarded, without quotes.
func nodeOf(addr string) string {
	if !strings.Contains(addr, ":") {
		return addr
	}
	addr, _, _ = strings.Cut(addr, "%")
	return "[" + addr + "]"
}

// FuzzForwarded has a peer say anything, in two lines. What is made of it can be
// read as what came, if the peer is believed and it can be read by itself, and
// then what Denia says, which nobody else can change.
func FuzzForwarded(f *testing.F) {
	f.Add("for=192.0.2.60;proto=http;by=203.0.113.43", `for="[2001:db8::1]:80";by="a \" b, c"`, "", "", "192.0.2.1", "web.example.com:80")
	f.Add(`for="open`, "for=1.2.3.4", "shop.example.com:8443", "https", "2001:db8::1", "web.example.com")
	f.Add(`for="open\"`, "", `a"b`, "https,http", "fe80::1%eth0", "[::1]:80")
	f.Add("for=1,,;=", "\tfor=_x , ", "", "ht tp", "::ffff:192.0.2.1", "")
	f.Fuzz(func(t *testing.T, one, two, saidHost, saidProto, from, host string) {
		const client = "198.51.100.7"
		if _, err := netip.ParseAddr(from); err != nil || !validHost(host) {
			return // neither gets that far
		}
		r := &http.Request{Host: host, RemoteAddr: from, URL: &url.URL{}, Header: http.Header{
			"Forwarded": {one, two}, "X-Forwarded-Host": {saidHost}, "X-Forwarded-Proto": {saidProto},
		}}
		read := func(trusted bool) []string {
			t.Helper()
			p := passage{r: r, trusted: trusted}
			value := string(p.appendForwarded(nil, client))
			elements, ok := elementsOf(value)
			if !ok {
				t.Fatalf("%q cannot be read by itself", value)
			}
			return elements
		}
		expect := func(element string, want map[string]string) {
			t.Helper()
			if got := pairsOf(element); !maps.Equal(got, want) {
				t.Fatalf("%q says %v, want %v", element, got, want)
			}
		}
		direct := read(false)
		if len(direct) != 1 {
			t.Fatalf("a stranger had %q said", direct)
		}
		expect(direct[0], map[string]string{"for": client, "host": host, "proto": "http"})

		got := read(true)
		first, ok := elementsOf(one)
		second, alsoOK := elementsOf(two)
		given := slices.Concat(first, second)
		last := len(got) - 1
		if ok && alsoOK && slices.Equal(got[:last], given) {
			expect(got[last], map[string]string{"for": nodeOf(from), "host": host, "proto": "http"})
			return
		}
		if !slices.ContainsFunc(given, func(element string) bool { return pairsOf(element) == nil }) && ok && alsoOK {
			t.Fatalf("%q was not continued: %q", given, got)
		}
		want := map[string]string{"for": client, "host": host, "proto": "http"}
		if saidHost != "" && validHost(saidHost) {
			want["host"] = saidHost
		}
		if isWord(saidProto) {
			want["proto"] = saidProto
		}
		expect(got[0], want)
		if from == client {
			got = append(got, "for="+client)
		}
		if len(got) != 2 {
			t.Fatalf("got %q", got)
		}
		expect(got[1], map[string]string{"for": nodeOf(from)})
	})
}
