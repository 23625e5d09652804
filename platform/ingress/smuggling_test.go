package ingress_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform/ingress"
)

// strict is a replica that understands one way of writing a request only, and
// keeps what it got: a request line, fields without whims, a Content-Length if
// there is a body, or chunks. What is written otherwise is AMBIGUOUS. A request
// that breaks off is none.
func strict(t testing.TB) (addr string, requests <-chan string) {
	got := make(chan string, 64)
	return raw(t, func(c net.Conn, from *bufio.Reader) {
		for {
			head, complaint := readHead(from)
			if complaint == io.EOF.Error() {
				return
			}
			if complaint != "" {
				got <- "AMBIGUOUS (" + complaint + "): " + head
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), oneByOne{from})))
			if err != nil {
				got <- "AMBIGUOUS (" + err.Error() + "): " + head
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			got <- head + string(body)
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	}), got
}

// oneByOne has nobody read ahead.
type oneByOne struct{ io.Reader }

func (r oneByOne) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(1, len(b))]) }

// readHead reads a head and finds fault with it.
func readHead(from *bufio.Reader) (head, complaint string) {
	var all strings.Builder
	seen := map[string]int{}
	for first := true; ; first = false {
		line, err := from.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			return all.String(), io.EOF.Error()
		}
		text, ended := strings.CutSuffix(line, "\r\n")
		if !ended || strings.ContainsAny(text, "\r\x00") {
			return all.String(), "line"
		}
		if text == "" {
			break
		}
		if first {
			parts := strings.Split(text, " ")
			if len(parts) != 3 || parts[2] != "HTTP/1.1" || !strings.HasPrefix(parts[1], "/") {
				return all.String(), "request line"
			}
			continue
		}
		name, _, colon := strings.Cut(text, ":")
		if !colon || strings.ContainsAny(name, " \t_") || name == "" {
			return all.String(), "field"
		}
		seen[http.CanonicalHeaderKey(name)]++
	}
	if seen["Host"] != 1 || seen["Content-Length"]+seen["Transfer-Encoding"] > 1 || seen["Connection"] > 0 {
		return all.String(), "fields"
	}
	return all.String(), ""
}

// Of what is sent here, a replica gets requests that everybody understands
// alike, or nothing. evil stands for a request that must not come to be.
func TestNothingAmbiguousIsForwarded(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	h := "Host: " + host + "\r\n"
	cases := map[string]struct {
		request string
		passes  bool // as one request, whose body is whatever came
		evil    bool // is, by RFC 9112, a request of its own
	}{
		"CL.TE":                {"POST / HTTP/1.1\r\n" + h + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, true, true},
		"TE.CL":                {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + fmt.Sprintf("%x", len(evil)) + "\r\n" + evil + "\r\n0\r\n\r\n", true, false},
		"TE.TE":                {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + evil, false, false},
		"TE cow":               {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: cow\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + evil, false, false},
		"TE list":              {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + evil, false, false},
		"TE space":             {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, false, false},
		"TE tab":               {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, false, false},
		"TE folded":            {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, true, true},
		"TE underscore":        {"POST / HTTP/1.1\r\n" + h + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", true, false},
		"CL underscore":        {"POST / HTTP/1.1\r\n" + h + "Content_Length: 500\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", true, false},
		"CL twice":             {"POST / HTTP/1.1\r\n" + h + "Content-Length: 4\r\nContent-Length: 40\r\n\r\n0123" + evil, false, false},
		"CL list":              {"POST / HTTP/1.1\r\n" + h + "Content-Length: 4, 4\r\n\r\n0123" + evil, false, false},
		"CL plus":              {"POST / HTTP/1.1\r\n" + h + "Content-Length: +4\r\n\r\n0123" + evil, false, false},
		"CL minus":             {"POST / HTTP/1.1\r\n" + h + "Content-Length: -4\r\n\r\n0123" + evil, false, false},
		"CL hex":               {"POST / HTTP/1.1\r\n" + h + "Content-Length: 0x4\r\n\r\n0123" + evil, false, false},
		"CL large":             {"POST / HTTP/1.1\r\n" + h + "Content-Length: 18446744073709551620\r\n\r\n0123" + evil, false, false},
		"CL space":             {"POST / HTTP/1.1\r\n" + h + "Content-Length: 4 4\r\n\r\n0123" + evil, false, false},
		"folded":               {"GET / HTTP/1.1\r\n" + h + "X-A: 1\r\n Content-Length: 50\r\n\r\n", true, false},
		"first folded":         {"GET / HTTP/1.1\r\n Content-Length: 50\r\n" + h + "\r\n", false, false},
		"name space":           {"GET / HTTP/1.1\r\n" + h + "X A: 1\r\n\r\n", false, false},
		"name empty":           {"GET / HTTP/1.1\r\n" + h + ": 1\r\n\r\n", false, false},
		"name beyond ASCII":    {"GET / HTTP/1.1\r\n" + h + "X-\xc3\xa9: 1\r\n\r\n", false, false},
		"value CR":             {"GET / HTTP/1.1\r\n" + h + "X-A: 1\rX-B: 2\r\n\r\n", false, false},
		"value NUL":            {"GET / HTTP/1.1\r\n" + h + "X-A: 1\x002\r\n\r\n", false, false},
		"no colon":             {"GET / HTTP/1.1\r\n" + h + "X-A\r\n\r\n", false, false},
		"chunk size signed":    {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", false, false},
		"chunk size prefixed":  {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", false, false},
		"chunk size huge":      {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", false, false},
		"chunk line feed":      {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n", false, false},
		"chunk end":            {"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", false, false},
		"host twice":           {"GET / HTTP/1.1\r\n" + h + "Host: evil.example.com\r\n\r\n", false, false},
		"no host":              {"GET / HTTP/1.1\r\n\r\n", false, false},
		"host space":           {"GET / HTTP/1.1\r\nHost: " + host + " evil\r\n\r\n", false, false},
		"host path":            {"GET / HTTP/1.1\r\nHost: " + host + ":80/evil\r\n\r\n", false, false},
		"host user":            {"GET / HTTP/1.1\r\nHost: x@" + host + "\r\n\r\n", false, false},
		"host bytes":           {"GET / HTTP/1.1\r\nHost: " + host + ":8\"0\r\n\r\n", false, false},
		"absolute":             {"GET http://" + host + "/ HTTP/1.1\r\nHost: evil.example.com\r\n\r\n", true, false},
		"absolute elsewhere":   {"GET http://evil.example.com/ HTTP/1.1\r\n" + h + "\r\n", false, false},
		"opaque":               {"GET x:" + host + " HTTP/1.1\r\n" + h + "\r\n", false, false},
		"authority":            {"CONNECT " + host + ":80 HTTP/1.1\r\n" + h + "\r\n", false, false},
		"target space":         {"GET /a HTTP/1.1\r\nX: y HTTP/1.1\r\n" + h + "\r\n", true, false}, // a field
		"two spaces":           {"GET  / HTTP/1.1\r\n" + h + "\r\n", false, false},
		"target control":       {"GET /\x01 HTTP/1.1\r\n" + h + "\r\n", false, false},
		"method":               {"GE(T / HTTP/1.1\r\n" + h + "\r\n", false, false},
		"line feeds only":      {"GET / HTTP/1.1\nHost: " + host + "\n\n", true, false}, // written anew
		"listed length":        {"POST / HTTP/1.1\r\n" + h + "Connection: Content-Length, Transfer-Encoding, Host\r\nContent-Length: 2\r\n\r\nhi", true, false},
		"listed many":          {"GET / HTTP/1.1\r\n" + h + "Connection: " + strings.Repeat("a,", 1000) + "\r\n\r\n", false, false},
		"GET with length":      {"GET / HTTP/1.1\r\n" + h + "Content-Length: 2\r\n\r\nhi", true, false},
		"GET with evil":        {"GET / HTTP/1.1\r\n" + h + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(evil)) + evil, true, false},
		"forwarded underscore": {"GET / HTTP/1.1\r\n" + h + "X_Forwarded_For: 1.2.3.4\r\nX_Real_IP: 1.2.3.4\r\n\r\n", true, false},
	}
	for name, c := range cases {
		for _, only := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", name, only), func(t *testing.T) {
				var got <-chan string
				t.Cleanup(func() { // after the replica has seen the end of all connections
					passed := false
					for len(got) > 0 {
						request := <-got
						switch {
						case strings.HasPrefix(request, "AMBIGUOUS"):
							t.Errorf("the replica got %q", request)
						case strings.HasPrefix(request, "GET /evil "):
							if !c.evil {
								t.Errorf("a request came out of nothing: %q", request)
							}
						case !strings.HasPrefix(request, "GET /last "):
							passed = true
							if !c.passes {
								t.Errorf("the replica got %q", request)
							}
						}
					}
					if c.passes && !passed {
						t.Error("the replica got nothing")
					}
				})
				var addr string
				addr, got = strict(t)
				w := newWorld(t, ingress.Options{TransportOnly: only})
				w.Configure(w.spec(bare(addr)))
				exchangeRaw(t, w.server.Listener.Addr().String(), c.request+line("GET", "/last", ""))
			})
		}
	}
}

// HTTP/2 and HTTP/3 carry what HTTP/1.1 cannot.
func TestRequestsThatAreNoLinesAreRefused(t *testing.T) {
	addr, got := strict(t)
	for _, only := range []bool{false, true} {
		in := serving(t, ingress.Options{TransportOnly: only}, bare(addr))
		for name, change := range map[string]func(*http.Request){
			"method":       func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" },
			"no method":    func(r *http.Request) { r.Method = "" },
			"query":        func(r *http.Request) { r.URL.RawQuery = "x HTTP/1.1" },
			"query line":   func(r *http.Request) { r.URL.RawQuery = "x\r\nX-A: 1" },
			"opaque":       func(r *http.Request) { r.URL.Opaque = "evil" },
			"path":         func(r *http.Request) { r.URL.Path = "evil" },
			"asterisk":     func(r *http.Request) { r.URL.Path = "*" },
			"host":         func(r *http.Request) { r.Host = host + ":80\r\nX-A: 1" },
			"name":         func(r *http.Request) { r.Header["X-A: 1\r\nX-B"] = []string{"2"} },
			"empty name":   func(r *http.Request) { r.Header[""] = []string{"2"} },
			"value":        func(r *http.Request) { r.Header["X-A"] = []string{"1\r\nX-B: 2"} },
			"other value":  func(r *http.Request) { r.Header["x-a"] = []string{"1\n"} },
			"chain":        func(r *http.Request) { r.Header["X-Forwarded-For"] = []string{"1\r\nX-B: 2"} },
			"many at once": func(r *http.Request) { r.Header["Connection"] = []string{strings.Repeat("a,", 1000)} },
		} {
			r := browser(t)
			change(r)
			w := &sink{header: http.Header{}}
			in.ServeHTTP(w, r)
			if name == "chain" { // of an untrusted client: dropped
				if w.status != http.StatusOK || strings.Contains(<-got, "X-B") {
					t.Errorf("%s: %d", name, w.status)
				}
				continue
			}
			if w.status != http.StatusBadRequest && w.status != http.StatusNotFound {
				t.Errorf("transport only %v, %s: %d", only, name, w.status)
			}
		}
		if len(got) > 0 {
			t.Errorf("the replica got %q", <-got)
		}
		// A module may set a field under any spelling: it is still the same field.
		r := browser(t)
		r.Header["content-length"] = []string{"5"}
		r.Header["transfer-encoding"] = []string{"chunked"}
		r.Header["x-forwarded-for"] = []string{"1.2.3.4"}
		r.Header["hOst"] = []string{"evil.example.com"}
		w := &sink{header: http.Header{}}
		in.ServeHTTP(w, r)
		if request := <-got; w.status != http.StatusOK || strings.Contains(request, "1.2.3.4") || strings.Contains(request, "evil") || strings.Contains(strings.ToLower(request), "content-length") {
			t.Errorf("%d, the replica got %q", w.status, request)
		}
	}
}
