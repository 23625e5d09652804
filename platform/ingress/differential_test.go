package ingress_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// bare is a target that is not probed.
func bare(addr string) ingress.Target {
	at := target("a", addr)
	at.Health.Type = platform.HealthNone
	return at
}

// exchangeRaw sends bytes to a server, and reads what comes until it closes the
// connection: each request has to ask for that, or to be refused.
func exchangeRaw(t testing.TB, addr, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(c) // a reset after the answer is an end, too
	return string(b)
}

// heard is what a client makes of an answer.
type heard struct {
	interim []string // 1xx, with their Link
	status  int
	header  http.Header // but what differs from one run to the next
	body    string
	trailer http.Header
	broken  bool // it did not come to its end
}

func (h heard) String() string {
	return fmt.Sprintf("%v %d %v %q trailer %v broken %v", h.interim, h.status, h.header, h.body, h.trailer, h.broken)
}

func hear(t testing.TB, answer, method string) (h heard) {
	t.Helper()
	from := bufio.NewReader(strings.NewReader(answer))
	for {
		res, err := http.ReadResponse(from, &http.Request{Method: method})
		if err != nil {
			h.broken = true
			return h
		}
		if res.StatusCode < 200 {
			if res.StatusCode != http.StatusContinue { // which Denia says by itself
				h.interim = append(h.interim, fmt.Sprint(res.StatusCode, res.Header["Link"]))
			}
			continue
		}
		body, err := io.ReadAll(res.Body)
		h.status, h.header, h.body, h.trailer, h.broken = res.StatusCode, res.Header, string(body), res.Trailer, err != nil
		// Whether a short answer has chunks or a length is the server's choice.
		for _, name := range []string{"Date", "X-Request-Id", "Connection"} {
			delete(h.header, name)
		}
		if res.StatusCode == http.StatusOK && method != http.MethodHead {
			delete(h.header, "Content-Length")
		}
		for name, values := range h.trailer {
			if values == nil {
				delete(h.trailer, name)
			}
		}
		return h
	}
}

// fronts are three proxies to one address: plain requests, the same over
// net/http's transport, and net/http's own proxy.
func fronts(t testing.TB, addr string) map[string]string {
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.Host
			r.Out.URL = &url.URL{Scheme: "http", Host: addr, Path: r.In.URL.Path, RawPath: r.In.URL.RawPath, RawQuery: r.In.URL.RawQuery}
		},
		Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil // else the server guesses one
		reverse.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = reverse.ErrorLog
	server.Start()
	t.Cleanup(server.Close)
	listeners := map[string]string{"ReverseProxy": server.Listener.Addr().String()}
	for name, only := range map[string]bool{"plain": false, "transport": true} {
		w := newWorld(t, ingress.Options{TransportOnly: only})
		w.Configure(w.spec(bare(addr)))
		listeners[name] = w.server.Listener.Addr().String()
	}
	return listeners
}

// line is the head of a request after which the server is to close.
func line(method, target, rest string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n" + rest + "\r\n"
}

// What a replica answers reaches the client as the same, whoever carries it.
func TestAnswersAreTheSameWhoeverCarriesThem(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 10_000)
	chunks := func(size int) string {
		var b bytes.Buffer
		w := httputil.NewChunkedWriter(&b)
		for piece := range slices.Chunk([]byte(long), size) {
			w.Write(piece)
		}
		w.Close()
		return b.String()
	}
	answers := map[string]string{
		"length":            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\nx-lower: 3\r\nServer: me\r\n\r\nhello",
		"no reason":         "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
		"rare status":       "HTTP/1.1 299 Rare\r\nContent-Length: 5\r\n\r\nhello",
		"length twice":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"empty":             "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"long":              fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long),
		"chunks":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
		"small chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(7) + "\r\n",
		"large chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(50_000) + "\r\n",
		"trailers":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n5\r\nhello\r\n0\r\nX-End: 1\r\n\r\n",
		"more trailers":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End, X-Last\r\n\r\n5\r\nhello\r\n0\r\nX-End: 1\r\nX-Last: 2\r\nX-More: 3\r\n\r\n",
		"trailers missing":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"until the end":     "HTTP/1.1 200 OK\r\n\r\nhello" + long,
		"old":               "HTTP/1.0 200 OK\r\n\r\nhello",
		"old with length":   "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
		"no content":        "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
		"not modified":      "HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\nContent-Length: 77\r\n\r\n",
		"hints":             "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"continue unasked":  "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"hop by hop":        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Yours: 1\r\n\r\nhello",
		"cookies":           "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nset-cookie: c=3\r\n\r\nhello",
		"events":            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n",
		"beyond ASCII":      "HTTP/1.1 200 D\xe9j\xe0 vu\r\nContent-Length: 5\r\nX-Name: caf\xc3\xa9\r\n\r\nhello",
		"more than the end": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
		"cut short":         "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
		"cut in a chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
		"cut after a chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"error page":        "HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\noops",
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			addr := raw(t, func(c net.Conn, from *bufio.Reader) {
				for {
					r, err := http.ReadRequest(from)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					answer := answer
					if head, _, found := strings.Cut(answer, "\r\n\r\nhello"); found && r.Method == http.MethodHead && name != "more than the end" {
						answer = head + "\r\n\r\n" // the transport may take a body for the next answer
					}
					io.WriteString(c, answer)
					if strings.HasPrefix(name, "cut") || strings.HasPrefix(name, "old") || name == "until the end" {
						return
					}
				}
			})
			servers := fronts(t, addr)
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				if method == http.MethodHead && !strings.Contains(answer, "\r\n\r\nhello") {
					continue
				}
				if method == http.MethodPost && name == "more than the end" {
					continue // the transport may still use such a connection again, and then not repeat a POST
				}
				body := ""
				if method == http.MethodPost {
					body = "Content-Length: 0\r\n"
				}
				got := map[string]heard{}
				for server, at := range servers {
					got[server] = hear(t, exchangeRaw(t, at, line(method, "/", body)), method)
				}
				if a, b := got["plain"].String(), got["transport"].String(); a != b {
					t.Errorf("%s: plain\n%.500s\ntransport\n%.500s", method, a, b)
				}
				// net/http's proxy adds nothing of its own to these, but for
				// what its server guesses.
				if kind := got["ReverseProxy"].header; kind.Get("Content-Type") == "text/plain; charset=utf-8" {
					delete(kind, "Content-Type")
				}
				if a, b := got["plain"].String(), got["ReverseProxy"].String(); a != b {
					t.Errorf("%s: plain\n%.500s\nReverseProxy\n%.500s", method, a, b)
				}
			}
		})
	}
}

// recorder is a replica that keeps the bytes of each request and answers 200.
func recorder(t testing.TB) (addr string, requests <-chan string) {
	got := make(chan string, 16)
	return raw(t, func(c net.Conn, _ *bufio.Reader) {
		var all bytes.Buffer
		from := bufio.NewReader(io.TeeReader(c, &all))
		for {
			r, err := http.ReadRequest(from)
			if err != nil {
				if all.Len() > 0 {
					got <- all.String()
				}
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				got <- all.String()
				return
			}
			got <- string(all.Next(all.Len() - from.Buffered()))
			answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
			if r.Method != http.MethodHead { // else the transport may take it for the next answer
				answer += "ok"
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}), got
}

// sorted is a request with its fields in order: that of different fields says
// nothing.
func sorted(request string) string {
	head, body, _ := strings.Cut(request, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	fields := lines[1:]
	for i, field := range fields {
		if strings.HasPrefix(field, "X-Request-Id: ") && len(field) == len("X-Request-Id: ")+32 {
			fields[i] = "X-Request-Id: (made)"
		}
	}
	slices.SortStableFunc(fields, func(a, b string) int {
		a, _, _ = strings.Cut(a, ":")
		b, _, _ = strings.Cut(b, ":")
		return strings.Compare(a, b)
	})
	return strings.Join(lines, "\n") + "\n\n" + body
}

// A request reaches a replica as the same, whoever carries it.
func TestRequestsAreTheSameWhoeverCarriesThem(t *testing.T) {
	requests := map[string]string{
		"plain":        line("GET", "/a%2Fb//c?q=1;2&x=%zz", "Accept: */*\r\nUser-Agent: me\r\n"),
		"no agent":     line("GET", "/", ""),
		"empty agent":  line("GET", "/", "User-Agent:\r\n"),
		"two agents":   line("GET", "/", "User-Agent: a\r\nUser-Agent: b\r\n"),
		"twice":        line("GET", "/", "X-A: 1\r\nX-B: 2\r\nX-A: 3\r\nx-a:   4  \r\nX-Empty:\r\n"),
		"hop by hop":   "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\nTE: trailers\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\n\r\n",
		"listed":       "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close, X-Forwarded-For, X-Request-Id, Host, User-Agent\r\nUser-Agent: me\r\n\r\n",
		"forwarded":    line("GET", "/", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Port: 1\r\n"),
		"continued":    line("GET", "/", "Forwarded: for=1.2.3.4;proto=https\r\nforwarded: for=\"[2001:db8::1]:80\", for=_x\r\n"),
		"open quote":   line("GET", "/", "Forwarded: for=\"1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n"),
		"listed chain": "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close, Forwarded, X-Forwarded-Host\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Host: x.example.com\r\n\r\n",
		"request id":   line("GET", "/", "X-Request-Id: abc-1\r\n"),
		"bad id":       line("GET", "/", "X-Request-Id: a b\r\n"),
		"post":         line("POST", "/", "Content-Length: 5\r\nContent-Type: text/plain\r\n") + "hello",
		"large post":   line("POST", "/", "Content-Length: 60000\r\n") + strings.Repeat("x", 60000),
		"empty post":   line("POST", "/", "Content-Length: 0\r\n"),
		"no body":      line("PUT", "/", ""),
		"delete":       line("DELETE", "/x", ""),
		"delete body":  line("DELETE", "/x", "Content-Length: 2\r\n") + "hi",
		"own method":   line("PROPFIND", "/x", "Depth: 1\r\nContent-Length: 2\r\n") + "hi",
		"get body":     line("GET", "/x", "Content-Length: 2\r\n") + "hi",
		"head":         line("HEAD", "/x", ""),
		"absolute":     line("GET", "http://"+host+"/abs?x", ""),
		"absolute bar": line("GET", "http://"+host, ""),
		"other host":   "GET http://" + host + "/abs HTTP/1.1\r\nHost: evil.example.com\r\nConnection: close\r\n\r\n",
		"expect none":  line("POST", "/", "Expect: 100-continue\r\nContent-Length: 0\r\n"),
		"beyond ASCII": line("GET", "/caf\xc3\xa9?x=\xc3\xa9", "X-Name: caf\xc3\xa9\r\n"),
		"fragment":     line("GET", "/a#b", ""),
		"question":     line("GET", "/?", ""),
		"version 1.0":  "GET / HTTP/1.0\r\nHost: " + host + "\r\nX-A: 1\r\n\r\n",
		"port":         "GET / HTTP/1.1\r\nHost: " + host + ":8080\r\nConnection: close\r\n\r\n",
		"cookies":      line("GET", "/", "Cookie: a=1\r\nCookie: b=2\r\n"),
	}
	for _, trusted := range []bool{false, true} {
		addr, got := recorder(t)
		client := func(*http.Request) (string, bool) { return "203.0.113.9", trusted }
		carried := map[string]map[string]string{}
		for name, only := range map[string]bool{"plain": false, "transport": true} {
			carried[name] = map[string]string{}
			w := newWorld(t, ingress.Options{TransportOnly: only, Client: client})
			w.Configure(w.spec(bare(addr)))
			for _, request := range slices.Sorted(maps.Keys(requests)) {
				answer := exchangeRaw(t, w.server.Listener.Addr().String(), requests[request])
				if !strings.HasPrefix(answer, "HTTP/1.1 200") && !strings.HasPrefix(answer, "HTTP/1.0 200") {
					t.Fatalf("%s, %s: %q", name, request, answer)
				}
				carried[name][request] = sorted(<-got)
			}
		}
		for request, plain := range carried["plain"] {
			if other := carried["transport"][request]; plain != other {
				t.Errorf("trusted %v, %s: plain\n%.700s\ntransport\n%.700s", trusted, request, plain, other)
			}
		}
	}
}
