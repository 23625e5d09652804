package api_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
)

const tarType = "application/x-tar"

func (e *env) uploadFiles() []string {
	e.t.Helper()
	entries, err := os.ReadDir(filepath.Join(e.dir, "uploads"))
	if err != nil {
		e.t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func TestUpload(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	s := e.service(e.project("shop"), "web")
	body := tarball("Dockerfile", "FROM scratch\n")
	a := e.do(token, "POST", "/v1/services/shop:web/uploads", body, "Content-Type", tarType, "Content-Digest", digestOf(body), "Repr-Digest", digestOf(body)).want(201)
	if a.str("digest") != fmt.Sprintf("sha256:%x", sha256.Sum256(body)) || a.field("size_bytes") != float64(len(body)) {
		t.Errorf("answered %s", a.body)
	}
	id := a.str("upload_id")
	stored, err := os.ReadFile(filepath.Join(e.dir, "uploads", id))
	if err != nil || !bytes.Equal(stored, body) {
		t.Errorf("stored %d bytes, want %d: %v", len(stored), len(body), err)
	}
	u := must2(e.store.Upload(e.ctx, platform.ID(id)))(t)
	if u.ServiceID != s.ID {
		t.Errorf("bound to %s", u.ServiceID)
	}
	e.do(token, "POST", "/v1/deployments", `{"service_id":"shop:web","source":{"type":"upload","upload_id":"`+id+`"}}`).want(202)
	e.do(token, "POST", "/v1/deployments", `{"service_id":"shop:web","source":{"type":"upload","upload_id":"`+id+`"}}`).want(409, "upload_used")
}

func TestRefusedUploadsLeaveNothing(t *testing.T) {
	e := newEnv(t, func(o *api.Options) { o.UploadLimits.PackedBytes = 64 << 10 })
	p := e.project("shop")
	e.service(p, "web")
	token, viewer := e.super(), e.token(e.member(p, "viewer", platform.RoleViewer))
	good := tarball("Dockerfile", "FROM scratch\n")
	for _, c := range []struct {
		what    string
		token   string
		body    []byte
		headers []string
		status  int
	}{
		{"wrong type", token, good, []string{"Content-Type", "application/json"}, 415},
		{"coded", token, good, []string{"Content-Encoding", "gzip"}, 415},
		{"outside", token, tarball("../etc/passwd", "x"), nil, 422},
		{"truncated", token, good[:700], nil, 422},
		{"other digest", token, good, []string{"Repr-Digest", digestOf([]byte("other"))}, 422},
		{"malformed digest", token, good, []string{"Content-Digest", "sha-256=nonsense"}, 400},
		{"too large", token, tarball("big", strings.Repeat("x", 100<<10)), nil, 413},
		{"viewer", viewer, good, nil, 403},
		{"nobody", "", good, nil, 401},
	} {
		headers := append([]string{"Content-Type", tarType}, c.headers...)
		if a := e.do(c.token, "POST", "/v1/services/shop:web/uploads", c.body, headers...); a.status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.what, a.status, c.status, a.body)
		}
		// Without a length, the limit holds while streaming.
		streamed := struct{ io.Reader }{bytes.NewReader(c.body)}
		if a := e.do(c.token, "POST", "/v1/services/shop:web/uploads", streamed, headers...); a.status != c.status {
			t.Errorf("%s, streamed: status %d, want %d: %s", c.what, a.status, c.status, a.body)
		}
	}
	if left := e.uploadFiles(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	ids := must2(e.store.UploadIDs(e.ctx))(t)
	if len(ids) != 0 {
		t.Errorf("rows left behind: %v", ids)
	}
}

// A client that waits for 100 Continue sends nothing to who may not upload.
func TestExpectContinue(t *testing.T) {
	e := newEnv(t)
	e.service(e.project("shop"), "web")
	server := e.serve()
	body := tarball("Dockerfile", "FROM scratch\n")
	for token, want := range map[string]string{e.super(): "HTTP/1.1 100 Continue", "": "HTTP/1.1 401 Unauthorized"} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /v1/services/shop:web/uploads HTTP/1.1\r\nHost: denia.test\r\nAuthorization: Bearer %s\r\n"+
			"Content-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", token, tarType, len(body))
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("answered %q, want %q: %v", line, want, err)
		}
		if token == "" {
			continue
		}
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(body); err != nil {
			t.Fatal(err)
		}
		reply, err := http.ReadResponse(in, nil)
		if err != nil || reply.StatusCode != 201 {
			t.Fatalf("after the body: %v %v", reply, err)
		}
		reply.Body.Close()
	}
}

func TestIdempotencyKey(t *testing.T) {
	e := newEnv(t)
	token := e.super()
	create := func(token, key, body string) answer {
		return e.do(token, "POST", "/v1/projects", body, "Idempotency-Key", key)
	}
	first := create(token, "k1", `{"name":"shop"}`).want(201)
	again := create(token, "k1", `{"name":"shop"}`).want(201)
	if !bytes.Equal(first.body, again.body) || again.header.Get("Location") != first.header.Get("Location") || again.header.Get("ETag") != first.header.Get("ETag") {
		t.Errorf("replayed %s %v", again.body, again.header)
	}
	if again.header.Get("X-Request-Id") == first.header.Get("X-Request-Id") {
		t.Error("a replay has a request id of its own")
	}
	create(token, "k1", `{"name":"other"}`).want(422, "idempotency_key_reused")
	e.do(token, "POST", "/v1/users", `{"name":"shop"}`, "Idempotency-Key", "k1").want(422, "idempotency_key_reused")
	create(e.super(), "k1", `{"name":"others"}`).want(201)
	create(token, "white space", `{"name":"x"}`).want(400, "bad_idempotency_key")

	// What failed can be tried again under the same key.
	create(token, "k2", `{"name":"shop"}`).want(409, "name_taken")
	e.do(token, "DELETE", "/v1/projects/shop", nil).want(204)
	create(token, "k2", `{"name":"shop"}`).want(201)

	// The secret of a token is shown to the retry, too.
	mint := func() answer {
		return e.do(token, "POST", "/v1/api-tokens", `{"name":"ci"}`, "Idempotency-Key", "k3").want(201)
	}
	if a, b := mint(), mint(); a.str("token") == "" || a.str("token") != b.str("token") {
		t.Error("the retry got another token")
	}

	e.service(must2(e.store.ProjectByName(e.ctx, "shop"))(t), "web")
	upload := func(content string) answer {
		return e.do(token, "POST", "/v1/services/shop:web/uploads", tarball("a", content), "Content-Type", tarType, "Idempotency-Key", "k4")
	}
	if a, b := upload("x").want(201), upload("x").want(201); a.str("upload_id") != b.str("upload_id") {
		t.Error("the retry of an upload got another one")
	}
	upload("y").want(422, "idempotency_key_reused")
	if left := e.uploadFiles(); len(left) != 1 {
		t.Errorf("files: %v", left)
	}
}
