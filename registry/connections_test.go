package registry_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// dial opens a connection to a server of the registry and sends the head of a
// request as ann.
func (s *depot) dial(server *httptest.Server, method, path string, headers ...string) (net.Conn, *bufio.Reader) {
	s.t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: registry.test\r\nAuthorization: Basic YW5uOm5uYQ==\r\n", method, path)
	for i := 0; i < len(headers); i += 2 {
		fmt.Fprintf(&head, "%s: %s\r\n", headers[i], headers[i+1])
	}
	head.WriteString("\r\n")
	if _, err := io.WriteString(conn, head.String()); err != nil {
		s.t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

func readAnswer(t testing.TB, r *bufio.Reader) answer {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, body}
}

// A client whose connection broke asks how far it got and goes on there.
func TestBrokenBodies(t *testing.T) {
	s := newDepot(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	content := strings.Repeat("0123456789", 100_000)
	d := digest.FromString(content)
	for _, chunked := range []bool{false, true} {
		l := s.start("")
		half := content[:len(content)/2]
		var conn net.Conn
		var r *bufio.Reader
		if chunked {
			conn, r = s.dial(server, http.MethodPatch, l, "Transfer-Encoding", "chunked")
			fmt.Fprintf(conn, "%x\r\n%s\r\n", len(half), half)
		} else {
			conn, r = s.dial(server, http.MethodPatch, l, "Content-Length", strconv.Itoa(len(content)))
			io.WriteString(conn, half)
		}
		conn.(*net.TCPConn).CloseWrite()
		readAnswer(t, r).want(t, http.StatusBadRequest, "BLOB_UPLOAD_INVALID")
		s.get(l).want(t, http.StatusNoContent, "").header(t, "Range", fmt.Sprintf("0-%d", len(half)-1))
		s.restart()
		server.Config.Handler = s
		s.patch(l, content[len(half):], "Content-Range", fmt.Sprintf("%d-%d", len(half), len(content)-1)).want(t, http.StatusAccepted, "")
		s.finish(l, d, "").want(t, http.StatusCreated, "")
		s.wantBlob("team/app", d, content)
	}
	// A POST has no session to go on with.
	conn, r := s.dial(server, http.MethodPost, uploads+"?digest="+d.String(), "Content-Length", strconv.Itoa(len(content)))
	io.WriteString(conn, content[:10])
	conn.(*net.TCPConn).CloseWrite()
	readAnswer(t, r).want(t, http.StatusBadRequest, "BLOB_UPLOAD_INVALID")
	s.wantNoUploads()
}

// While one request writes, another one cannot, a third sees how far it is, and
// the collector leaves the upload alone however old it is.
func TestOneWriterAtATime(t *testing.T) {
	s := newDepot(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	l := s.start("")
	content := bytes.Repeat([]byte("x"), 256<<10)
	conn, r := s.dial(server, http.MethodPatch, l, "Content-Length", strconv.Itoa(2*len(content)))
	if _, err := conn.Write(content); err != nil {
		t.Fatal(err)
	}
	for s.get(l).want(t, http.StatusNoContent, "").Header.Get("Range") != fmt.Sprintf("0-%d", len(content)-1) {
	}
	s.clock.pass(100 * time.Hour)
	if c, err := s.Collect(t.Context(), false); err != nil || c.Uploads != 0 {
		t.Errorf("collected %+v, %v", c, err)
	}
	s.patch(l, "y").want(t, http.StatusConflict, "BLOB_UPLOAD_INVALID").header(t, "Retry-After", "1")
	s.do(http.MethodDelete, l, nil).want(t, http.StatusConflict, "BLOB_UPLOAD_INVALID")
	if _, err := conn.Write(content); err != nil {
		t.Fatal(err)
	}
	readAnswer(t, r).want(t, http.StatusAccepted, "").header(t, "Range", fmt.Sprintf("0-%d", 2*len(content)-1))
	s.finish(l, digest.NewDigestFromBytes(digest.SHA256, sum(content, content)), "").want(t, http.StatusCreated, "")
}

func sum(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Clients that write all of their body before they read see the answer, and
// those that wait for a word are not given it.
func TestRefusedBodies(t *testing.T) {
	s := newDepot(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	content := bytes.Repeat([]byte("x"), 3<<20)
	conn, r := s.dial(server, http.MethodPatch, uploads+strings.Repeat("A", 26), "Content-Length", strconv.Itoa(len(content)))
	if _, err := conn.Write(content); err != nil {
		t.Fatal(err)
	}
	readAnswer(t, r).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	// The connection goes on to be used.
	io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
	readAnswer(t, r).want(t, http.StatusUnauthorized, "UNAUTHORIZED")

	_, r = s.dial(server, http.MethodPatch, uploads+strings.Repeat("A", 26), "Content-Length", "10", "Expect", "100-continue")
	readAnswer(t, r).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")

	_, r = s.dial(server, http.MethodPatch, uploads+strings.Repeat("A", 26), "Content-Length", strconv.Itoa(1<<40))
	a := readAnswer(t, r).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	if !a.Close {
		t.Error("the connection is said to stay open")
	}
}

// Close does not wait for clients that have stopped sending or reading.
func TestCloseBreaksRequestsOff(t *testing.T) {
	s := newDepot(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	// More than the buffers of a connection hold.
	content := strings.Repeat("x", 32<<20)
	d := s.pushed("team/app", content)
	l := s.start("")
	_, sending := s.dial(server, http.MethodPatch, l, "Content-Length", "10")
	_, refused := s.dial(server, http.MethodPatch, uploads+strings.Repeat("A", 26), "Content-Length", "10")
	_, reading := s.dial(server, http.MethodGet, "/v2/team/app/blobs/"+d.String())
	resp, err := http.ReadResponse(reading, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.Close()
	readAnswer(t, refused)
	readAnswer(t, sending).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	s.get("/v2/").want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
}
