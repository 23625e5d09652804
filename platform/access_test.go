package platform_test

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
)

func TestAccessRecordReadsBack(t *testing.T) {
	full := platform.AccessEntry{
		TS: time.Unix(1767225600, 123456789).UTC(), Replica: "3.0", Release: "0198-release",
		Method: "POST", Protocol: "HTTP/1.1", Host: "shop.example.com:8443", Path: "/a%20b/c", Query: "q=shoes&page=2",
		Status: 201, BytesIn: 12, BytesOut: 3456, Duration: 1500 * time.Microsecond, Upstream: 900 * time.Microsecond, Waited: 250 * time.Microsecond,
		ColdStart: true, RemoteIP: "2001:db8::1", UserAgent: "curl/8 (a b)", RequestID: "8f3a", Error: platform.AccessClientGone,
	}
	for _, e := range []platform.AccessEntry{full, {TS: time.Unix(0, 5).UTC(), Status: 503}} {
		line := string(platform.AppendAccess(nil, &e))
		head, text, _ := strings.Cut(line, " o ")
		replica, text, _ := strings.Cut(text, " ")
		got, ok := platform.ParseAccess(strings.TrimSuffix(text, "\n"))
		if !ok || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%q does not read back", line)
		}
		got.TS, got.Replica = e.TS, strings.TrimPrefix(replica, "-")
		if got != e || head == "" {
			t.Errorf("%q reads back as %+v, want %+v", line, got, e)
		}
	}
	for _, text := range []string{"", "200 GET", "200 GET h /p - HTTP/1.1 x 1 1 1 1 - - - - - ", "x GET h /p - HTTP/1.1 1 1 1 1 1 - - - - - "} {
		if _, ok := platform.ParseAccess(text); ok {
			t.Errorf("%q is read as an entry", text)
		}
	}
}

func TestAccessRecordIsOneBoundedLine(t *testing.T) {
	long := strings.Repeat("\n\x00é ", 20_000)
	e := platform.AccessEntry{
		TS: time.Now(), Replica: long, Release: platform.ID(long), Method: long, Protocol: long, Host: long, Path: long, Query: long,
		RemoteIP: long, UserAgent: long, RequestID: long, Error: long,
	}
	line := platform.AppendAccess(nil, &e)
	if len(line) > platform.MaxAccessRecord {
		t.Errorf("%d bytes", len(line))
	}
	if bytes.IndexByte(line, '\n') != len(line)-1 {
		t.Error("a client's bytes end the line")
	}
	for _, c := range line[:len(line)-1] {
		if c < ' ' {
			t.Fatalf("control byte %#x is kept", c)
		}
	}
	_, text, _ := strings.Cut(string(line[:len(line)-1]), " o ")
	_, text, _ = strings.Cut(text, " ")
	got, ok := platform.ParseAccess(text)
	if !ok || !utf8.ValidString(got.UserAgent) {
		t.Errorf("it does not read back: %t, %q", ok, got.UserAgent)
	}
}

func TestQueriesAreRedacted(t *testing.T) {
	for query, want := range map[string]string{
		"":                                 "",
		"q=shoes&page=2":                   "q=shoes&page=2",
		"token=abc":                        "token=***",
		"a=1&access_token=abc&b=2":         "a=1&access_token=***&b=2",
		"TOKEN=abc;Session-Id=1":           "TOKEN=***;Session-Id=***",
		"to%6ben=abc":                      "to%6ben=***",
		"user[password]=x":                 "user[password]=***",
		"apiKey=x&api_key=x&key=x":         "apiKey=***&api_key=***&key=***",
		"AWSAccessKeyId=x&X-Amz-Sig=1":     "AWSAccessKeyId=***&X-Amz-Sig=***",
		"X-Amz-Signature=x&sig=y":          "X-Amz-Signature=***&sig=***",
		"code=x&state=y":                   "code=***&state=y",
		"auth=x&Authorization=y":           "auth=***&Authorization=***",
		"author=jane&keyword=x&barcode=1":  "author=jane&keyword=x&barcode=1",
		"token":                            "token",
		"token=":                           "token=",
		"token=a=b":                        "token=***",
		"next=%2Fcb%3Ftoken%3Dabc":         "next=***",
		"next=/cb?page=2":                  "next=/cb?page=2",
		"u=https%3A%2F%2Fx%3Fa%253Dsecret": "u=***",
		"a=\r\n b":                         "a=%0D%0A%20b",
		"a=b&&=c&":                         "a=b&&=c&",

		"TOKEN=x&Secret=x&passwd=x&PassPhrase=x&passCode=x&credentials=x": "TOKEN=***&Secret=***&passwd=***&PassPhrase=***&passCode=***&credentials=***",
		"signature=x&session=x&oauth_x=x&authorize=x&AUTHORISE=x":         "signature=***&session=***&oauth_x=***&authorize=***&AUTHORISE=***",
		"authenticity=x&authcode=x&bearer=x&assertion=x&csrf=x&xsrf=x":    "authenticity=***&authcode=***&bearer=***&assertion=***&csrf=***&xsrf=***",
		"saml=x&hmac=x&keys=x&apikeys=x&pass=x&pwd=x&pw=x&pin=x&otp=x":    "saml=***&hmac=***&keys=***&apikeys=***&pass=***&pwd=***&pw=***&pin=***&otp=***",
		"totp=x&sid=x&sess=x&sign=x&ticket=x&jwt=x&monkey=x&basicauth=x":  "totp=***&sid=***&sess=***&sign=***&ticket=***&jwt=***&monkey=***&basicauth=***",
		"page=1&sort=a&id=3&user_id=4&lang=en&category=5&width=6":         "page=1&sort=a&id=3&user_id=4&lang=en&category=5&width=6",
	} {
		if got := string(platform.AppendRedactedQuery(nil, query)); got != want {
			t.Errorf("%q becomes %q, want %q", query, got, want)
		}
	}
	if got := string(platform.AppendRedactedQuery(nil, "a="+strings.Repeat("x", 5000)+"&token=secret")); len(got) > 1100 || strings.Contains(got, "secret") {
		t.Errorf("a long query becomes %d bytes", len(got))
	}
	if got := string(platform.AppendRedactedQuery(nil, strings.Repeat("n", 500)+"=hidden")); strings.Contains(got, "hidden") {
		t.Errorf("a name that is no name: %q", got)
	}
}

func FuzzAccessRecord(f *testing.F) {
	f.Add("GET", "host", "/path", "a=b&token=c", "agent", "error")
	f.Add("", "-", " ", "&;=", "\xff\xfe", "\n")
	f.Fuzz(func(t *testing.T, method, host, path, query, agent, code string) {
		e := platform.AccessEntry{TS: time.Unix(1, 0), Status: 200, Method: method, Host: host, Path: path, Query: query, UserAgent: agent, Error: code}
		line := string(platform.AppendAccess(nil, &e))
		text, ok := strings.CutPrefix(line, "1000000000 o - ")
		if !ok || strings.IndexByte(line, '\n') != len(line)-1 || len(line) > platform.MaxAccessRecord {
			t.Fatalf("%q is no record", line)
		}
		got, ok := platform.ParseAccess(strings.TrimSuffix(text, "\n"))
		if !ok || got.Status != 200 {
			t.Fatalf("%q does not read back", line)
		}
	})
}

func BenchmarkAppendAccess(b *testing.B) {
	e := platform.AccessEntry{
		TS: time.Now(), Replica: "3.0", Release: "01980000-0000-7000-8000-000000000000", Method: "GET", Protocol: "HTTP/1.1",
		Host: "shop.example.com", Path: "/api/v1/products/1234", Query: "page=2&sort=price", Status: 200, BytesOut: 200,
		Duration: 1500 * time.Microsecond, Upstream: 900 * time.Microsecond, RemoteIP: "203.0.113.9",
		UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", RequestID: "0123456789abcdef0123456789abcdef",
	}
	b.ReportAllocs()
	buffer := make([]byte, 0, 1024)
	for b.Loop() {
		buffer = platform.AppendAccess(buffer[:0], &e)
	}
}
