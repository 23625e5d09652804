package ingress

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// script is a connection whose other end says what was written down before,
// a few bytes at a time.
type script struct {
	net.Conn
	left  []byte
	piece int
}

func (s *script) Read(b []byte) (int, error) {
	if len(s.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), s.piece)], s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *script) SetReadDeadline(time.Time) error { return nil }
func (s *script) Close() error                    { return nil }

// taker is the client's side.
type taker struct {
	header  http.Header
	status  int
	interim []int
	body    bytes.Buffer
}

func (w *taker) Header() http.Header         { return w.header }
func (w *taker) Write(b []byte) (int, error) { return w.body.Write(b) }
func (w *taker) Flush()                      {}
func (w *taker) WriteHeader(status int) {
	if status < http.StatusOK {
		w.interim = append(w.interim, status)
		return
	}
	w.status = status
}

// reading is what a hop made of an answer.
type reading struct {
	err     error // of the head or the body
	head    answerHead
	body    string
	trailer []field
	interim []int
	left    int // bytes that were not used
}

func readAnswer(answer []byte, method string, piece int) (got reading) {
	s := &script{left: answer, piece: max(1, piece)}
	w := &taker{header: http.Header{}}
	x := &exchange{w: w, r: &http.Request{Method: method, ProtoMajor: 1, ProtoMinor: 1}}
	h := &hop{x: x, own: make([]byte, hopBuffer), c: &conn{Conn: s, upstream: &upstream{kick: make(chan struct{}, 1)}}}
	h.buf = h.own
	for range maxInterim {
		if got.err = h.readHead(); got.err != nil {
			return got
		}
		if h.head.status >= http.StatusOK || h.head.status == http.StatusSwitchingProtocols {
			break
		}
		got.interim = append(got.interim, h.head.status)
	}
	got.head = h.head
	got.head.fields = slices.Clone(h.head.fields)
	got.err = h.copyBody()
	got.body = w.body.String()
	got.trailer = h.trailers
	got.left = len(s.left) + h.w - h.r
	return got
}

// readAsNetHTTP reads the same with net/http.
func readAsNetHTTP(answer []byte, method string) (res *http.Response, body string, interim []int, left int, err error) {
	source := bytes.NewReader(answer)
	from := bufio.NewReader(source)
	for {
		res, err = http.ReadResponse(from, &http.Request{Method: method})
		if err != nil {
			return nil, "", interim, 0, err
		}
		if res.StatusCode >= http.StatusOK || res.StatusCode == http.StatusSwitchingProtocols {
			break
		}
		interim = append(interim, res.StatusCode)
	}
	b, err := io.ReadAll(res.Body)
	return res, string(b), interim, source.Len() + from.Buffered(), err
}

// connectionOf is the Connection field of the answer that counts.
func connectionOf(t *testing.T, answer []byte) []string {
	from := textproto.NewReader(bufio.NewReader(bytes.NewReader(answer)))
	for {
		line, err := from.ReadLine()
		if err != nil {
			t.Fatal(err)
		}
		header, err := from.ReadMIMEHeader()
		if err != nil {
			t.Fatal(err)
		}
		if line[9] != '1' || line[9:12] == "101" {
			return header["Connection"]
		}
	}
}

// compare fails where a hop accepts what net/http does not, or takes it for
// something else.
func compare(t *testing.T, answer []byte, method string, piece int) {
	t.Helper()
	got := readAnswer(answer, method, piece)
	whole := readAnswer(answer, method, len(answer))
	if (got.err == nil) != (whole.err == nil) || got.body != whole.body || got.left != whole.left {
		t.Fatalf("in pieces of %d: %v %q, %d left; whole: %v %q, %d left", piece, got.err, got.body, got.left, whole.err, whole.body, whole.left)
	}
	if got.err != nil {
		return
	}
	res, body, interim, left, err := readAsNetHTTP(answer, method)
	if err != nil {
		if strings.Contains(err.Error(), "bad trailer key") || strings.Contains(err.Error(), "suspiciously long trailer") {
			return // dropped, and bounded otherwise
		}
		t.Fatalf("accepted, but net/http says: %v", err)
	}
	if got.head.status != res.StatusCode || got.body != body || got.left != left || !slices.Equal(got.interim, interim) {
		t.Fatalf("%v %d %q, %d left; net/http: %v %d %q, %d left", got.interim, got.head.status, got.body, got.left, interim, res.StatusCode, body, left)
	}
	if res.Close && !got.head.close {
		t.Fatal("the connection would be used again")
	}
	header := http.Header{}
	setFields(header, got.head.fields)
	removeListed(res.Header, connectionOf(t, answer)) // net/http forgets what it lists beside close
	if res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusSwitchingProtocols {
		delete(res.Header, "Content-Length")
	}
	for name, values := range header {
		theirs := res.Header[name]
		if name == "Content-Length" {
			for i := range theirs {
				for len(theirs[i]) > 1 && theirs[i][0] == '0' {
					theirs[i] = theirs[i][1:]
				}
			}
		}
		if !slices.Equal(values, theirs) {
			t.Fatalf("%s: %q; net/http: %q", name, values, theirs)
		}
	}
	for name, values := range res.Header {
		if !hopByHop(name) && header[name] == nil {
			t.Fatalf("%s: %q is missing", name, values)
		}
	}
	trailer := http.Header{}
	for _, f := range got.trailer {
		trailer[f.name] = append(trailer[f.name], f.value)
	}
	for name, values := range res.Trailer {
		if trailable(name) && !slices.Equal(trailer[name], values) {
			t.Fatalf("trailer %s: %q; net/http: %q", name, trailer[name], values)
		}
	}
}

var answers = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellomore",
	"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 200 \r\ncontent-length:00005\t\r\nX-A: 1\r\nx-a:  2 \r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.0 200 OK\r\n\r\nuntil the end",
	"HTTP/1.1 200 OK\r\nConnection: X-Private, close\r\nX-Private: 1\r\n\r\nuntil the end",
	"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nEtag: \"1\"\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-End\r\n\r\n5;a=b\r\nhello\r\n00A \r\n0123456789\r\n0\r\nX-End: 1\r\nX-More: 2\r\n\r\nrest",
	"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes",
	"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\ndata: 1\n\n",
}

// refusedAnswers are those that two readers might take for different ones, and
// those that are no answers, with what is said of them.
var refusedAnswers = map[string]error{
	"HTTP/1.1 200 OK\nContent-Length: 2\n\nok":                                                           errLineEnd,
	"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok":                                                       errLineEnd,
	"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok":                                          errFieldValue,
	"HTTP/1.1 200 OK\r\nX: a\r\r\nContent-Length: 2\r\n\r\nok":                                           errFieldValue,
	"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok":                                        errFieldValue,
	"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok":                                  errFolded,
	"HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok":                                            errFolded,
	"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok":                                                    errFieldName,
	"HTTP/1.1 200 OK\r\n: 2\r\n\r\nok":                                                                   errFieldName,
	"HTTP/1.1 200 OK\r\nContent-Length\r\n\r\nok":                                                        errFieldName,
	"HTTP/1.1 200 OK\r\nContent\xffLength: 2\r\n\r\nok":                                                  errFieldName,
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok":                                errLengths,
	"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok":                                                  errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok":                                                    errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok":                                                    errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok":                                                   errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: 2 3\r\n\r\nok":                                                   errLength,
	"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok":                                                       errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\nok":                                   errLength,
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n":     errLengthCoding,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n":                               errCoding,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n":                           errCoding,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok":                      errCoding,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n":                                    errCoding,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n":                                  errFieldValue,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":       errCoding,
	"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                                     errCodingIn10,
	"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                     errStatusLine,
	"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                     errNotHTTP,
	"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok":                                                    errStatusLine,
	"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok":                                                      errStatusLine,
	"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok":                                                     errStatusLine,
	"HTTP/1.1 2000\r\nContent-Length: 2\r\n\r\nok":                                                       errStatusLine,
	"HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok":                                                 errStatusLine,
	"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                 errNotHTTP,
	"SSH-2.0-OpenSSH_9.2\r\n":                                                                            errNotHTTP,
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel":                                                    io.ErrUnexpectedEOF,
	"HTTP/1.1 200 OK\r\nContent-Le":                                                                      io.ErrUnexpectedEOF,
	"":                                                                                                   io.EOF,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":                                io.ErrUnexpectedEOF,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n":                           io.ErrUnexpectedEOF,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n":                         errLineEnd,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n":                  errLineEnd,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n":                  errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5 x\r\nhello\r\n0\r\n\r\n":                     errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n":                     errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n":                      errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n":                      errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n":                        errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n":       errChunkSize,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n":                      errChunkEnd,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n":                         errChunkEnd,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : 1\r\n\r\n":                            errFieldName,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n folded\r\n\r\n":                  errFolded,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\n\r\n":                               errLineEnd,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5" + strings.Repeat(";a=b", 200) + "\r\nhello": errChunkLine,
	"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", maxHead) + "\r\n\r\n":                                 errHeadTooLong,
	"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: a\r\n", maxHead/6) + "\r\n":                               errHeadTooLong,
	"HTTP/1.1 200 OK\r\nConnection: " + strings.Repeat("a,", 100) + "\r\nContent-Length: 0\r\n\r\n":      errListed,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + strings.Repeat("a", maxHead):       errTrailersLong,
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("1"+strings.Repeat(";a=b", 100)+"\r\nx\r\n", 100): errOverhead,
}

func TestAnswersAreReadAsNetHTTPReadsThem(t *testing.T) {
	for _, answer := range answers {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, piece := range []int{1, 2, 7, 4096} {
				if got := readAnswer([]byte(answer), method, piece); got.err != nil {
					t.Errorf("%q to %s is refused: %v", answer, method, got.err)
				}
				compare(t, []byte(answer), method, piece)
			}
		}
	}
}

func TestAmbiguousAnswersAreRefused(t *testing.T) {
	for answer, want := range refusedAnswers {
		for _, piece := range []int{1, 1000, len(answer)} {
			if got := readAnswer([]byte(answer), http.MethodGet, piece); got.err != want {
				t.Errorf("%.200q in pieces of %d: %v, want %v", answer, piece, got.err, want)
			}
		}
	}
}

// A head that will never be whole must not be waited for.
func TestGarbageIsNotWaitedFor(t *testing.T) {
	for _, answer := range []string{"220 mail ready\r\n", "HTTP/1.1 200 OK\n", "\x16\x03\x01", "HTTP/3"} {
		if got := readAnswer([]byte(answer), http.MethodGet, 1); got.err != errNotHTTP && got.err != errLineEnd {
			t.Errorf("%q: %v", answer, got.err)
		}
	}
}

func FuzzResponseHead(f *testing.F) {
	for _, answer := range answers {
		f.Add([]byte(answer), false, 3)
		f.Add([]byte(answer), true, 1000)
	}
	for answer := range refusedAnswers {
		if len(answer) < 500 {
			f.Add([]byte(answer), false, 5)
		}
	}
	f.Fuzz(func(t *testing.T, answer []byte, head bool, piece int) {
		if len(answer) > 4000 {
			return // net/http's limits are others
		}
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		compare(t, answer, method, piece)
	})
}

// FuzzChunked compares with net/http, and has a chunked body that net/http
// wrote accepted.
func FuzzChunked(f *testing.F) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, answer := range answers {
		if body, ok := strings.CutPrefix(answer, head); ok {
			f.Add([]byte(body), 3)
		}
	}
	for answer := range refusedAnswers {
		if body, ok := strings.CutPrefix(answer, head); ok && len(body) < 500 {
			f.Add([]byte(body), 3)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, piece int) {
		if len(body) > 4000 {
			return
		}
		compare(t, append([]byte(head), body...), http.MethodGet, piece)

		var good bytes.Buffer
		good.WriteString(head)
		w := httputil.NewChunkedWriter(&good)
		size := max(1, piece)
		for chunk := range slices.Chunk(body, size) {
			w.Write(chunk)
		}
		w.Close()
		good.WriteString("\r\n")
		if got := readAnswer(good.Bytes(), http.MethodGet, size); got.err != nil || got.body != string(body) || got.left != 0 {
			t.Fatalf("chunks of %d: %v, %q instead of %q, %d left", size, got.err, got.body, body, got.left)
		}
	})
}
