package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/denia-paas/denia/internal/testsocket"
	"github.com/denia-paas/denia/test/bench"
)

// edge is a Denia that speaks every version of HTTP, with two services.
type edge struct {
	*server
	trusting int    // the port where the client is a proxy that is believed
	global   string // further global options
	roots    *x509.CertPool
}

// startEdge starts it with further global options.
func startEdge(t testing.TB, global ...string) *edge {
	t.Helper()
	e := &edge{trusting: freePort(t)}
	e.server = &server{t: t, dir: t.TempDir(), port: freePort(t), https: freePort(t), admin: freePort(t), token: "dn_adm_e2e-test-admin-token", log: &logBuffer{}}
	e.data = filepath.Join(e.dir, "data")
	e.global = strings.Join(global, "\n\t")
	e.serve("10s", "")
	t.Cleanup(func() {
		e.removeEverything()
		e.stop()
		if t.Failed() {
			t.Logf("Denia's log:\n%s", tail(e.log.String(), 12000))
		}
	})
	e.run()
	e.roots = e.localRoots()
	return e
}

// serve writes the Caddyfile, with further sites.
func (e *edge) serve(grace, sites string) {
	e.t.Helper()
	e.configure(fmt.Sprintf(`{
	admin 127.0.0.1:%d
	persist_config off
	grace_period %[6]s
	skip_install_trust
	auto_https disable_redirects
	%[8]s
	servers 127.0.0.1:%[2]d {
		trusted_proxies static 127.0.0.1
	}
	denia {
		data_dir %[3]s
	}
}
http://:%[4]d, http://:%[2]d {
	bind 127.0.0.1
	denia
}
https://app.localhost:%[5]d, https://grpc.localhost:%[5]d {
	bind 127.0.0.1
	tls internal
	denia
}
%[7]s`, e.admin, e.trusting, e.data, e.port, e.https, grace, sites, e.global))
}

func (s *server) rootFile() string { return filepath.Join(s.dir, "root.pem") }

// localRoots has the certificate of Caddy's own authority, which is written to
// rootFile as well.
func (s *server) localRoots() *x509.CertPool {
	s.t.Helper()
	reply, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/pki/ca/local", s.admin))
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	var authority struct {
		Root string `json:"root_certificate"`
	}
	if err := json.NewDecoder(reply.Body).Decode(&authority); err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(authority.Root)) {
		s.t.Fatalf("no certificate: %q", authority.Root)
	}
	if err := os.WriteFile(s.rootFile(), []byte(authority.Root), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return roots
}

// version is a client of one version of HTTP.
type version struct {
	*http.Client
	name    string
	major   int
	base    string // of the service app, whatever the connection leads to
	sockets *http.Client
}

// versions are clients of every version that connect to Denia alone.
func (e *edge) versions(t *testing.T) []version {
	t.Helper()
	config := func() *tls.Config { return &tls.Config{RootCAs: e.roots} }
	dial := func(port int) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		}
	}
	plain := &http.Transport{DialContext: dial(e.port), DisableCompression: true, ExpectContinueTimeout: time.Minute}
	secure := &http.Transport{DialContext: dial(e.https), TLSClientConfig: config(), DisableCompression: true, ExpectContinueTimeout: time.Minute}
	secure.Protocols = new(http.Protocols)
	secure.Protocols.SetHTTP1(true)
	second := &http.Transport{DialContext: dial(e.https), TLSClientConfig: config(), DisableCompression: true, ForceAttemptHTTP2: true, ExpectContinueTimeout: time.Minute}
	// The transport of net/http has no extended CONNECT.
	streams, closeStreams := testsocket.HTTP2(fmt.Sprintf("127.0.0.1:%d", e.https), config())
	third := &http3.Transport{
		DisableCompression: true, TLSClientConfig: config(),
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, fmt.Sprintf("127.0.0.1:%d", e.https), c, q)
		},
	}
	t.Cleanup(func() {
		plain.CloseIdleConnections()
		secure.CloseIdleConnections()
		second.CloseIdleConnections()
		closeStreams()
		_ = third.Close()
	})
	of := func(transport http.RoundTripper) *http.Client {
		return &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	// A Timeout would end WebSockets as well.
	socket := func(transport http.RoundTripper) *http.Client { return &http.Client{Transport: transport} }
	base := fmt.Sprintf("https://app.localhost:%d", e.https)
	return []version{
		{of(plain), "HTTP/1.1 without TLS", 1, fmt.Sprintf("http://app.localhost:%d", e.port), socket(plain)},
		{of(secure), "HTTP/1.1", 1, base, socket(secure)},
		{of(second), "HTTP/2", 2, base, socket(streams)},
		{of(third), "HTTP/3", 3, base, socket(&testsocket.Transport{RoundTripper: third, HTTP3: true})},
	}
}

func (v version) request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, v.base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// do checks the version and the status, and reads the answer.
func (v version) do(t *testing.T, r *http.Request, status int) (*http.Response, string) {
	t.Helper()
	res, err := v.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", r.Method, r.URL, err)
	}
	if res.ProtoMajor != v.major || res.StatusCode != status {
		t.Fatalf("%s %s: %s %d %q, want HTTP/%d and %d", r.Method, r.URL, res.Proto, res.StatusCode, tail(string(text), 300), v.major, status)
	}
	return res, string(text)
}

// Every version of HTTP, with everything HTTP has that applications rely on.
func TestProtocols(t *testing.T) {
	e := startEdge(t)
	e.running("app", "hello", nil)
	e.runningGRPC()
	for _, v := range e.versions(t) {
		t.Run(v.name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				test func(*testing.T, *edge, version)
			}{
				{"requests", testRequests},
				{"answers without a body", testBodiless},
				{"trailers", testTrailers},
				{"early hints", testEarlyHints},
				{"expect", testExpect},
				{"server-sent events", testEvents},
				{"both ways at once", testBothWays},
				{"large bodies", testLargeBodies},
				{"WebSocket", testWebSocket},
				{"forwarding fields", testForwarding},
			} {
				t.Run(c.name, func(t *testing.T) { c.test(t, e, v) })
			}
		})
	}
	t.Run("another protocol", func(t *testing.T) { testSwitch(t, e) })
	t.Run("trusted proxy", func(t *testing.T) { testTrusted(t, e) })
	t.Run("gRPC", func(t *testing.T) { testGRPC(t, e) })
	t.Run("curl", func(t *testing.T) { testCurl(t, e) })
	t.Run("h2load", func(t *testing.T) { testH2load(t, e) })
}

func testRequests(t *testing.T, _ *edge, v version) {
	if _, text := v.do(t, v.request(t, "GET", "/", nil), 200); text != "hello" {
		t.Errorf("GET answers %q", text)
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
		// Known and unknown lengths, held in memory and streamed.
		for _, size := range []int{0, 1, 5000, 100_000} {
			body := bytes.Repeat([]byte("x"), size)
			for _, content := range []io.Reader{bytes.NewReader(body), struct{ io.Reader }{bytes.NewReader(body)}} {
				_, text := v.do(t, v.request(t, method, "/dump?a=%2F&b=%20", content), 200)
				var got object
				if err := json.Unmarshal([]byte(text), &got); err != nil {
					t.Fatal(err)
				}
				if got.str("method") != method || got.str("uri") != "/dump?a=%2F&b=%20" || got.str("bytes") != strconv.Itoa(size) {
					t.Errorf("%s of %d bytes arrived as %s", method, size, text)
				}
			}
		}
	}
}

func testBodiless(t *testing.T, _ *edge, v version) {
	res, text := v.do(t, v.request(t, "HEAD", "/big?bytes=1000000", nil), 200)
	if res.ContentLength != 1_000_000 || text != "" {
		t.Errorf("HEAD: length %d, body %q", res.ContentLength, text)
	}
	for _, status := range []int{204, 304} {
		res, text := v.do(t, v.request(t, "GET", fmt.Sprintf("/status/%d", status), nil), status)
		if text != "" || res.Header.Get("Etag") != `"1"` || res.Header.Get("Content-Length") != "" {
			t.Errorf("%d: body %q, %v", status, text, res.Header)
		}
	}
}

func testTrailers(t *testing.T, _ *edge, v version) {
	r := v.request(t, "POST", "/trailers", struct{ io.Reader }{strings.NewReader("body")})
	r.Trailer = http.Header{"X-Sent": {"sent"}}
	r.Header.Set("Te", "trailers")
	res, text := v.do(t, r, 200)
	want := "sent"
	if v.major == 3 {
		want = "" // the server gives them to a request that handlers have only a copy of
	}
	if text != "body" || res.Trailer.Get("X-Announced") != want || res.Trailer.Get("X-Late") != "late" {
		t.Errorf("%q, trailers %v", text, res.Trailer)
	}
}

func testEarlyHints(t *testing.T, _ *edge, v version) {
	var hinted []string
	r := v.request(t, "GET", "/hints", nil)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			hinted = append(hinted, fmt.Sprint(code, " ", header.Get("Link")))
			return nil
		},
	}))
	res, text := v.do(t, r, 200)
	if text != "hinted" || len(hinted) != 1 || hinted[0] != "103 </style.css>; rel=preload" || res.Header.Get("Link") != "" {
		t.Errorf("%q after %q, with %v", text, hinted, res.Header)
	}
}

// A client that waits for 100 gets it when the application wants the body, and
// else the answer at once. HTTP/2's server keeps from handlers that the client
// waits, and asks for the body when Denia begins to forward it.
func testExpect(t *testing.T, _ *edge, v version) {
	body := bytes.Repeat([]byte("x"), 1<<20)
	asked := 0
	expecting := func(path string) *http.Request {
		r := v.request(t, "POST", path, bytes.NewReader(body))
		r.Header.Set("Expect", "100-continue")
		return r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { asked++ }}))
	}
	if _, text := v.do(t, expecting("/echo"), 200); text != fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)) {
		t.Errorf("accepted: %q", text)
	}
	if v.major < 3 && asked != 1 {
		t.Errorf("accepted, and the body was asked for %d times", asked)
	}
	for _, status := range []int{413, 417} {
		asked = 0
		v.do(t, expecting(fmt.Sprintf("/refuse?code=%d", status)), status)
		if v.major == 1 && asked > 0 {
			t.Errorf("refused with %d, and the body was asked for", status)
		}
	}
}

func testEvents(t *testing.T, _ *edge, v version) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res, err := v.Do(v.request(t, "GET", "/sse", nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	n := 0
	for events := bufio.NewScanner(res.Body); n < 5 && events.Scan(); {
		if events.Text() == fmt.Sprint("data: ", n) {
			n++
		}
	}
	if n < 5 || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d events as %s", n, res.Header.Get("Content-Type"))
	}
}

// The answer to each line is awaited before the next is sent.
func testBothWays(t *testing.T, _ *edge, v version) {
	body, feed := io.Pipe()
	res, err := v.Do(v.request(t, "POST", "/lines", body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	from := bufio.NewReader(res.Body)
	for _, word := range []string{"one", "two", "three"} {
		fmt.Fprintln(feed, word)
		if line, err := from.ReadString('\n'); line != "got "+word+"\n" {
			t.Fatalf("to %s came %q, %v", word, line, err)
		}
	}
	_ = feed.Close()
	if rest, err := io.ReadAll(from); err != nil || len(rest) > 0 {
		t.Errorf("the end is %q, %v", rest, err)
	}
}

// What is on its way is not gathered.
func testLargeBodies(t *testing.T, e *edge, v version) {
	size := int64(amount(t, "DENIA_LARGE_MIB", 64)) << 20
	before := e.usage().RSS
	e.resetPeak()
	r := v.request(t, "POST", "/dump", io.LimitReader(zeros{}, size))
	if _, text := v.do(t, r, 200); !strings.Contains(text, fmt.Sprintf(`"bytes":%d`, size)) {
		t.Errorf("the request arrived as %s", text)
	}
	res, err := v.Do(v.request(t, "GET", fmt.Sprintf("/big?bytes=%d", size), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Errorf("%d bytes of the answer arrived, %v", n, err)
	}
	if grown := e.usage().Peak - before; grown > 48<<20 {
		t.Errorf("it took %d MiB to pass on %d MiB", grown>>20, size>>20)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// resetPeak has the kernel begin its maximum of Denia's memory anew.
func (s *server) resetPeak() {
	s.t.Helper()
	if err := bench.ForgetPeak(s.cmd.Process.Pid); err != nil {
		s.t.Fatal(err)
	}
}

func testWebSocket(t *testing.T, e *edge, v version) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, v.base+"/ws", &websocket.DialOptions{HTTPClient: v.sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(1 << 22)
	for _, size := range []int{0, 1, 125, 126, 30_000} {
		message := bytes.Repeat([]byte("x"), size)
		if err := c.Write(ctx, websocket.MessageBinary, message); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}

// dumped is what the application got of a request with these fields.
func dumped(t *testing.T, v version, fields map[string]string) http.Header {
	t.Helper()
	r := v.request(t, "GET", "/dump", nil)
	for name, value := range fields {
		r.Header.Set(name, value)
	}
	_, text := v.do(t, r, 200)
	var got struct{ Header http.Header }
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	return got.Header
}

// pretended is what only a proxy may say.
var pretended = map[string]string{
	"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "other.test",
	"X-Real-Ip": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Prefix": "/x",
}

func testForwarding(t *testing.T, _ *edge, v version) {
	got := dumped(t, v, pretended)
	scheme, authority, _ := strings.Cut(v.base, "://")
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": scheme, "X-Forwarded-Host": authority, "X-Real-Ip": "", "X-Forwarded-Prefix": "",
	} {
		if strings.Join(got[name], "|") != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	host := authority
	if strings.Contains(host, ":") {
		host = `"` + host + `"`
	}
	if want := "for=127.0.0.1;host=" + host + ";proto=" + scheme; strings.Join(got["Forwarded"], "|") != want {
		t.Errorf("Forwarded is %q, want %q", got["Forwarded"], want)
	}
}

func testTrusted(t *testing.T, e *edge) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", e.trusting))
	}}
	defer transport.CloseIdleConnections()
	v := version{Client: &http.Client{Transport: transport}, major: 1, base: "http://app.localhost"}
	got := dumped(t, v, pretended)
	for name, want := range pretended {
		if name == "X-Forwarded-For" {
			want += ", 127.0.0.1"
		}
		if have := strings.Join(got[name], "|"); !strings.HasPrefix(have, want) {
			t.Errorf("%s is %q, want %q", name, have, want)
		}
	}
}

// Protocols other than WebSocket have HTTP/1.1's upgrade.
func testSwitch(t *testing.T, e *edge) {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", e.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(conn, "GET /switch HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nearly\n")
	from := bufio.NewReader(conn)
	res, err := http.ReadResponse(from, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "shout" {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, word := range []string{"early", "late"} {
		if word == "late" {
			fmt.Fprintln(conn, word)
		}
		if line, err := from.ReadString('\n'); line != word+"!\n" {
			t.Errorf("to %s came %q, %v", word, line, err)
		}
	}
}

// curl is a client that was not written in Go.
func testCurl(t *testing.T, e *edge) {
	run := func(args ...string) string {
		t.Helper()
		args = append([]string{
			"-sS", "--max-time", "30", "--cacert", e.rootFile(),
			"--resolve", fmt.Sprintf("app.localhost:%d:127.0.0.1", e.https), "-w", " %{http_version} %{http_code}",
		}, args...)
		out, err := exec.Command("curl", args...).CombinedOutput()
		if err != nil {
			t.Errorf("curl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	features, err := exec.Command("curl", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	upload := filepath.Join(e.dir, "upload")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(upload, content, 0o600); err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf("https://app.localhost:%d", e.https)
	for _, v := range []struct{ flag, version string }{{"--http1.1", "1.1"}, {"--http2", "2"}, {"--http3-only", "3"}} {
		if v.version == "3" && !bytes.Contains(features, []byte("HTTP3")) {
			continue // of Go's alone, then
		}
		for _, c := range []struct {
			args []string
			want string
		}{
			{[]string{"/"}, "hello " + v.version + " 200"},
			{[]string{"/echo", "-T", upload, "-X", "POST", "-H", "Expect: 100-continue"}, fmt.Sprintf("%d %x %s 200", len(content), sha256.Sum256(content), v.version)},
			{[]string{"/status/204"}, " " + v.version + " 204"},
			{[]string{"/trailers", "-d", "x"}, "body " + v.version + " 200"},
		} {
			if got := run(append([]string{v.flag, base + c.args[0]}, c.args[1:]...)...); got != c.want {
				t.Errorf("%s %v: %q, want %q", v.flag, c.args, got, c.want)
			}
		}
	}
}

// h2load keeps many streams of HTTP/2 busy.
func testH2load(t *testing.T, e *edge) {
	out, err := exec.Command("h2load", "-n", "3000", "-c", "4", "-m", "50",
		"--connect-to", fmt.Sprintf("127.0.0.1:%d", e.https),
		fmt.Sprintf("https://app.localhost:%d/", e.https)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "3000 succeeded, 0 failed, 0 errored") {
		t.Errorf("%v\n%s", err, out)
	}
}
