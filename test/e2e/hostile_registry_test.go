package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// hostile is a request that has to be refused.
type hostile struct {
	name   string
	who    account
	method string
	path   string
	body   string
	header []string
	status []int
	code   string // "" where any of the specification's will do
}

// refused sends requests, and sees that each gets its error and none leaves
// anything behind.
func (s *server) refused(t *testing.T, cases []hostile) {
	t.Helper()
	before := s.registryHolds()
	for _, c := range cases {
		var body io.Reader
		if c.body != "" {
			body = strings.NewReader(c.body)
		}
		got := c.who.do(c.method, c.path, body, c.header...)
		ok := slices.Contains(c.status, got.status)
		switch code := got.code(); {
		case c.method == "HEAD":
			ok = ok && len(got.body) == 0
		case c.code != "":
			ok = ok && code == c.code
		default:
			ok = ok && code != ""
		}
		if !ok {
			t.Errorf("%s: %s /v2/%s answers %s, want %v %s", c.name, c.method, tail(c.path, 100), got, c.status, c.code)
		}
		if left := s.registryFiles(); len(left) > 0 {
			t.Errorf("%s: left behind: %v", c.name, left)
		}
	}
	if after := s.registryHolds(); after != before {
		t.Errorf("the registry held %s, now %s", before, after)
	}
}

func TestHostileRegistryRequests(t *testing.T) {
	s := start(t)
	s.project("other", "app")
	s.service("app", object{"follow_tag": "followed"})
	dev, viewer, foreigner := s.account("dev", "default", "operator"), s.account("viewer", "default", "viewer"), s.account("foreigner", "other", "operator")
	public := account{s: s}
	for _, a := range []account{dev, foreigner} {
		repo := map[string]string{"dev": "default/app", "foreigner": "other/app"}[a.name]
		a.blob(repo, []byte("{}"))
		layer := []byte("the layer of " + a.name)
		a.blob(repo, layer)
		a.expect(http.StatusCreated, "PUT", repo+"/manifests/v1", bytes.NewReader(manifest(layer, a.name)), "Content-Type: "+manifestType)
	}
	own := digest.FromString("the layer of dev").String()
	foreign := digest.FromString("the layer of foreigner").String()
	foreignManifest := digest.FromBytes(manifest([]byte("the layer of foreigner"), "foreigner")).String()
	absent := digest.FromString("absent").String()
	bad, missing := []int{http.StatusBadRequest}, []int{http.StatusNotFound}
	unauthorized, denied := []int{http.StatusUnauthorized}, []int{http.StatusForbidden}
	octets := []string{"Content-Type: application/octet-stream"}
	ofManifest := []string{"Content-Type: " + manifestType}

	t.Run("content", func(t *testing.T) {
		upload := func(path string, body string, header ...string) answer {
			t.Helper()
			return dev.do("PUT", path, strings.NewReader(body), header...)
		}
		before := s.registryHolds()
		if got := upload(withDigest(dev.begin("default/app"), digest.Digest(absent)), "not that"); got.status != http.StatusBadRequest || got.code() != "DIGEST_INVALID" {
			t.Errorf("a digest that does not match: %s", got)
		}
		if after := s.registryHolds(); after != before || len(s.registryFiles()) > 0 {
			t.Errorf("a digest that does not match: the registry held %s, now %s, and has %v", before, after, s.registryFiles())
		}
		path := dev.begin("default/app")
		for _, given := range []string{"", "sha256", "sha256:short", "sha256:" + strings.Repeat("G", 64), "sha256:../../../../boot", "md5:" + strings.Repeat("0", 32)} {
			if got := upload(path+"?digest="+given, "x"); got.status != http.StatusBadRequest || got.code() != "DIGEST_INVALID" {
				t.Errorf("digest %q: %s", given, got)
			}
		}
		for _, header := range []string{"5-9", "bytes=0-4", "4-0", "0-99999999999999999999", "-1-3", "x"} {
			got := dev.do("PATCH", path, strings.NewReader("12345"), "Content-Range: "+header)
			if got.status != http.StatusBadRequest && got.status != http.StatusRequestedRangeNotSatisfiable || got.code() == "" {
				t.Errorf("Content-Range %q: %s", header, got)
			}
			if status := dev.expect(http.StatusNoContent, "GET", path, nil); status.header.Get("Range") != "0-0" {
				t.Errorf("after Content-Range %q the upload has %q", header, status.header.Get("Range"))
			}
		}
		if got := dev.do("PATCH", path, strings.NewReader("12345"), "Content-Range: 0-9"); got.status != http.StatusBadRequest || got.code() != "SIZE_INVALID" {
			t.Errorf("a chunk that is shorter than it says: %s", got)
		}
		// Another may not touch it, and from below another repository it isn't there.
		elsewhere := strings.Replace(path, "default/app", "other/app", 1)
		s.refused(t, []hostile{
			{"an upload of another repository", foreigner, "GET", elsewhere, "", nil, missing, "BLOB_UPLOAD_UNKNOWN"},
			{"an upload of another repository", foreigner, "PUT", withDigest(elsewhere, digest.FromString("x")), "x", octets, missing, "BLOB_UPLOAD_UNKNOWN"},
			{"an upload by a viewer", viewer, "PATCH", path, "x", octets, denied, "DENIED"},
		})
		dev.expect(http.StatusNoContent, "DELETE", path, nil)
		if after := s.registryHolds(); after != before {
			t.Errorf("the registry held %s, now %s", before, after)
		}
		for _, header := range []string{"bytes=1000-", "bytes=9-3", "bytes=-0"} {
			got := dev.do("GET", "default/app/blobs/"+own, nil, "Range: "+header)
			if got.status != http.StatusRequestedRangeNotSatisfiable || got.code() == "" {
				t.Errorf("Range %q: %s", header, got)
			}
		}
		s.refused(t, []hostile{
			{"a POST with another digest", dev, "POST", "default/app/blobs/uploads/?digest=" + absent, "not that", octets, bad, "DIGEST_INVALID"},
			{"an upload that never was", dev, "PATCH", "default/app/blobs/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA", "x", octets, missing, "BLOB_UPLOAD_UNKNOWN"},
			{"an upload out of the directory", dev, "PATCH", "default/app/blobs/uploads/..%2F..%2Fboot", "x", octets, []int{400, 404, 405}, ""},
			{"an upload out of the directory", dev, "GET", "default/app/blobs/uploads/..", "", nil, []int{400, 404, 405}, ""},
			{"a blob that is not there", dev, "GET", "default/app/blobs/" + absent, "", nil, missing, "BLOB_UNKNOWN"},
			{"a manifest that is not there", dev, "GET", "default/app/manifests/" + absent, "", nil, missing, "MANIFEST_UNKNOWN"},
			{"a tag that is not there", dev, "GET", "default/app/manifests/never", "", nil, missing, "MANIFEST_UNKNOWN"},
			{"no manifest", dev, "PUT", "default/app/manifests/bad", "hello", ofManifest, bad, "MANIFEST_INVALID"},
			{"an empty manifest", dev, "PUT", "default/app/manifests/bad", " ", ofManifest, bad, "MANIFEST_INVALID"},
			{"a manifest of nested brackets", dev, "PUT", "default/app/manifests/bad", strings.Repeat("[", 1<<20), ofManifest, bad, "MANIFEST_INVALID"},
			{"a manifest of blobs that are not there", dev, "PUT", "default/app/manifests/bad", string(manifest([]byte("nowhere"), "")), ofManifest, bad, "MANIFEST_BLOB_UNKNOWN"},
			{"a manifest under another digest", dev, "PUT", "default/app/manifests/" + absent, string(manifest([]byte("the layer of dev"), "")), ofManifest, bad, "DIGEST_INVALID"},
			{"a tag that is none", dev, "PUT", "default/app/manifests/-bad", string(manifest([]byte("the layer of dev"), "")), ofManifest, bad, ""},
			{"a tag that is too long", dev, "PUT", "default/app/manifests/" + strings.Repeat("a", 129), string(manifest([]byte("the layer of dev"), "")), ofManifest, bad, ""},
			{"10 MiB of manifest", dev, "PUT", "default/app/manifests/bad", `{"schemaVersion":2,"x":"` + strings.Repeat("x", 10<<20) + `"}`, ofManifest, []int{http.StatusRequestEntityTooLarge}, "SIZE_INVALID"},
			{"a blob that is in use", dev, "DELETE", "default/app/blobs/" + own, "", nil, []int{403, 405}, ""},
		})
		// The same without a length.
		request := dev.request("PUT", "default/app/manifests/bad", struct{ io.Reader }{bytes.NewReader(make([]byte, 10<<20))}, ofManifest...)
		if got, err := dev.try(request); err != nil || got.status != http.StatusRequestEntityTooLarge || got.code() != "SIZE_INVALID" {
			t.Errorf("10 MiB of manifest of unknown length: %s, %v", got, err)
		}
	})

	t.Run("bodies cut short", func(t *testing.T) {
		before := s.registryHolds()
		token := "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+s.token))
		// What came of an upload in a session stays, for the client to go on.
		path := dev.begin("default/app")
		for _, c := range []struct{ method, path string }{
			{"POST", "default/app/blobs/uploads/?digest=" + absent},
			{"PUT", "default/app/manifests/cut"},
			{"PATCH", path},
			{"PUT", withDigest(path, digest.Digest(absent))},
		} {
			line := s.cutShort(c.method, "/v2/"+c.path, token)
			if !strings.Contains(line, " 400 ") {
				t.Errorf("%s /v2/%s, cut short, answers %q", c.method, c.path, line)
			}
		}
		if status := dev.expect(http.StatusNoContent, "GET", path, nil); status.header.Get("Range") != "0-1999" {
			t.Errorf("of two times 1000 bytes the upload has %q", status.header.Get("Range"))
		}
		dev.expect(http.StatusNoContent, "DELETE", path, nil)
		if left := s.registryFiles(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if after := s.registryHolds(); after != before {
			t.Errorf("the registry held %s, now %s", before, after)
		}
	})

	t.Run("names and paths", func(t *testing.T) {
		var cases []hostile
		for _, name := range []string{
			"default/..", "../app", "default/../other/app", "default%2F..%2Fother%2Fapp", "default/%2e%2e/other/app", "./app", "default/./app",
			"Default/app", "default/APP", "default//app", "/default/app", "default/app/", "default/-app", "default/app-", "default/a..b", "default/a___b",
			"default/app%00", "default/app%0a", "default/ap%C3%A9", "default/app%20", "default/" + strings.Repeat("a", 300), strings.Repeat("a/", 200) + "a",
			"default/..%5c..%5capp", "default/app%252F..",
		} {
			cases = append(cases,
				hostile{"name " + tail(name, 40), dev, "GET", name + "/manifests/v1", "", nil, []int{400, 404}, ""},
				hostile{"name " + tail(name, 40), dev, "PUT", name + "/manifests/v1", "{}", ofManifest, []int{400, 404}, ""},
				hostile{"name " + tail(name, 40), dev, "POST", name + "/blobs/uploads/", "", nil, []int{400, 404}, ""})
		}
		for _, path := range []string{
			"nothing", "default/app", "default/app/nothing", "default/app/manifests/", "default/app/blobs/", "default/app/tags", "default/app/tags/list/x",
			"default/app/referrers/", "default/app/manifests/v1/extra", "manifests/v1", "/", "..", "default/app/blobs/../../../../etc/passwd", "token/x",
		} {
			cases = append(cases, hostile{"path " + path, dev, "GET", path, "", nil, []int{400, 404, 405}, ""})
		}
		for _, c := range []struct{ method, path string }{
			{"POST", ""}, {"DELETE", ""}, {"POST", "default/app/manifests/v1"}, {"PATCH", "default/app/manifests/v1"}, {"PUT", "default/app/blobs/" + own},
			{"POST", "default/app/tags/list"}, {"DELETE", "default/app/tags/list"}, {"PUT", "default/app/referrers/" + own}, {"GET", "default/app/blobs/uploads/"},
			{"PUT", "token"}, {"BREW", "default/app/manifests/v1"}, {"OPTIONS", "default/app/manifests/v1"},
		} {
			cases = append(cases, hostile{"verb", dev, c.method, c.path, "", nil, []int{http.StatusMethodNotAllowed}, "UNSUPPORTED"})
		}
		s.refused(t, append(cases,
			hostile{"no such service", dev, "POST", "default/none/blobs/uploads/", "", nil, missing, "NAME_UNKNOWN"},
			hostile{"no such project", dev, "POST", "none/app/blobs/uploads/", "", nil, missing, "NAME_UNKNOWN"},
			hostile{"a page of a negative size", dev, "GET", "default/app/tags/list?n=-1", "", nil, bad, ""},
			hostile{"referrers of what is no digest", dev, "GET", "default/app/referrers/v1", "", nil, bad, "DIGEST_INVALID"},
		))
		if got := dev.do("POST", "default/app/manifests/v1", nil); !strings.Contains(got.header.Get("Allow"), "PUT") {
			t.Errorf("a wrong verb gets Allow: %q", got.header.Get("Allow"))
		}
	})

	t.Run("other projects' content", func(t *testing.T) {
		s.refused(t, []hostile{
			{"a digest of another project", dev, "GET", "default/app/blobs/" + foreign, "", nil, missing, "BLOB_UNKNOWN"},
			{"a digest of another project", dev, "HEAD", "default/app/blobs/" + foreign, "", nil, missing, ""},
			{"a digest of another project", dev, "GET", "default/app/manifests/" + foreignManifest, "", nil, missing, "MANIFEST_UNKNOWN"},
			{"a digest of another project", dev, "HEAD", "default/app/manifests/" + foreignManifest, "", nil, missing, ""},
			{"another project's repository", dev, "GET", "other/app/blobs/" + foreign, "", nil, missing, "NAME_UNKNOWN"},
			{"another project's repository", dev, "GET", "other/app/tags/list", "", nil, missing, "NAME_UNKNOWN"},
			{"a manifest of another project's blobs", dev, "PUT", "default/app/manifests/stolen", string(manifest([]byte("the layer of foreigner"), "")), ofManifest, bad, "MANIFEST_BLOB_UNKNOWN"},
			{"a viewer's push", viewer, "POST", "default/app/blobs/uploads/", "", nil, denied, "DENIED"},
			{"a viewer's push", viewer, "POST", "default/app/blobs/uploads/?digest=" + absent, "absent", octets, denied, "DENIED"},
			{"a viewer's push", viewer, "PUT", "default/app/manifests/v2", string(manifest([]byte("the layer of dev"), "")), ofManifest, denied, "DENIED"},
			{"a viewer's delete", viewer, "DELETE", "default/app/manifests/v1", "", nil, denied, "DENIED"},
			{"a viewer's delete", viewer, "DELETE", "default/app/blobs/" + own, "", nil, denied, "DENIED"},
		})
		viewer.whole("default/app:v1")
		before := s.registryHolds()
		for _, from := range []string{"&from=other/app", "&from=none/none", "&from=../x", ""} {
			// A mount that cannot be is an upload that begins.
			got := dev.expect(http.StatusAccepted, "POST", "default/app/blobs/uploads/?mount="+foreign+from, nil)
			dev.expect(http.StatusNoContent, "DELETE", dev.next(got), nil)
		}
		dev.expect(http.StatusNotFound, "HEAD", "default/app/blobs/"+foreign, nil)
		if after := s.registryHolds(); after != before {
			t.Errorf("the registry held %s, now %s", before, after)
		}
	})

	t.Run("credentials", func(t *testing.T) {
		bearer := func(token string) []string { return []string{"Authorization: Bearer " + token} }
		token := dev.token("repository:default/app:pull,push,delete")
		public.expect(http.StatusOK, "GET", "default/app/manifests/v1", nil, bearer(token)...)
		key, err := os.ReadFile(filepath.Join(s.data, "keys", "registry.key"))
		if err != nil {
			t.Fatal(err)
		}
		key = bytes.TrimSpace(key)
		resigned := func(key []byte, change func(claims object)) string {
			parts := strings.Split(token, ".")
			text, err := base64.RawURLEncoding.DecodeString(parts[1])
			if err != nil {
				t.Fatal(err)
			}
			claims := object{}
			if err := json.Unmarshal(text, &claims); err != nil {
				t.Fatal(err)
			}
			change(claims)
			text, err = json.Marshal(claims)
			if err != nil {
				t.Fatal(err)
			}
			signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(text)
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(signed))
			return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		}
		// So that the ones below are refused for what they say.
		public.expect(http.StatusOK, "GET", "default/app/manifests/v1", nil, bearer(resigned(key, func(object) {}))...)
		parts := strings.Split(token, ".")
		none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`))
		var cases []hostile
		for name, forged := range map[string]string{
			"no token":                 "",
			"garbage":                  "garbage",
			"dots":                     "..",
			"no signature":             parts[0] + "." + parts[1] + ".",
			"another signature":        parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
			"another algorithm":        none + "." + parts[1] + ".",
			"another's signature":      resigned([]byte(strings.Repeat("k", 43)), func(object) {}),
			"expired":                  resigned(key, func(c object) { c["exp"] = time.Now().Unix() - 1 }),
			"never to expire":          resigned(key, func(c object) { delete(c, "exp") }),
			"somebody who is not":      resigned(key, func(c object) { c["sub"] = "user:nobody" }),
			"longer than any header":   strings.Repeat("A", 12<<10),
			"another repository's":     foreigner.token("repository:other/app:pull,push"),
			"claims that are not ours": parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("[]")) + "." + parts[2],
		} {
			for _, c := range []hostile{
				{method: "GET", path: "default/app/manifests/v1"},
				{method: "PUT", path: "default/app/manifests/v2", body: "{}"},
				{method: "POST", path: "default/app/blobs/uploads/"},
			} {
				c.name, c.who, c.header, c.status = "token: "+name, public, bearer(forged), []int{401, 404}
				cases = append(cases, c)
			}
		}
		pull := dev.token("repository:default/app:pull")
		s.refused(t, append(cases,
			hostile{"a token to pull", public, "POST", "default/app/blobs/uploads/", "", bearer(pull), unauthorized, "UNAUTHORIZED"},
			hostile{"a token to pull", public, "DELETE", "default/app/manifests/v1", "", bearer(pull), unauthorized, "UNAUTHORIZED"},
			hostile{"a viewer's token", public, "POST", "default/app/blobs/uploads/", "", bearer(viewer.token("repository:default/app:pull,push")), []int{401, 403}, ""},
			hostile{"nobody", public, "GET", "", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"nobody", public, "GET", "default/app/manifests/v1", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"nobody", public, "GET", "none/none/manifests/v1", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"nobody", public, "POST", "default/app/blobs/uploads/", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"nobody's token", public, "GET", "token?scope=repository:default/app:pull", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"another scheme", public, "GET", "default/app/manifests/v1", "", []string{"Authorization: Digest x"}, unauthorized, "UNAUTHORIZED"},
			hostile{"no base64", public, "GET", "default/app/manifests/v1", "", []string{"Authorization: Basic !"}, unauthorized, "UNAUTHORIZED"},
			hostile{"Denia's own name", account{s, "<denia>", token}, "GET", "default/app/manifests/v1", "", nil, unauthorized, "UNAUTHORIZED"},
			hostile{"a wrong admin token", account{s, "admin", "dn_adm_wrong"}, "GET", "token", "", nil, unauthorized, "UNAUTHORIZED"},
		))
		challenge := public.do("GET", "default/app/manifests/v1", nil).header.Get("Www-Authenticate")
		if want := fmt.Sprintf(`Bearer realm="http://%[1]s/v2/token",service="%[1]s",scope="repository:default/app:pull"`, s.registryHost()); challenge != want {
			t.Errorf("the challenge is %s, want %s", challenge, want)
		}
		// A project that is public gives, and takes nothing.
		s.expect(http.StatusOK, "PUT", "/v1/projects/default", object{"name": "default", "anonymous_pull": true}, nil)
		s.eventually(10*time.Second, "everybody can pull", func() bool { return public.do("GET", "default/app/manifests/v1", nil).status == http.StatusOK })
		public.expect(http.StatusOK, "GET", "default/app/blobs/"+own, nil, bearer(public.token("repository:default/app:pull,push"))...)
		s.refused(t, []hostile{
			{"nobody, of a public project", public, "GET", "", "", nil, unauthorized, "UNAUTHORIZED"},
			{"nobody, of a public project", public, "POST", "default/app/blobs/uploads/", "", nil, unauthorized, "UNAUTHORIZED"},
			{"nobody, of a public project", public, "POST", "default/app/blobs/uploads/", "", bearer(public.token("repository:default/app:pull,push")), unauthorized, "UNAUTHORIZED"},
			{"nobody, of a public project", public, "DELETE", "default/app/manifests/v1", "", nil, unauthorized, "UNAUTHORIZED"},
			{"nobody, of another project", public, "GET", "other/app/manifests/v1", "", nil, unauthorized, "UNAUTHORIZED"},
		})
		// Who guesses is told to wait.
		wrong := account{s, "dev", "not the password"}
		for attempt := 1; ; attempt++ {
			got := wrong.do("GET", "token", nil)
			if got.status == http.StatusTooManyRequests {
				if got.code() != "TOOMANYREQUESTS" || got.header.Get("Retry-After") == "" {
					t.Errorf("too many attempts: %s with %v", got, got.header)
				}
				break
			}
			if got.status != http.StatusUnauthorized || got.code() != "UNAUTHORIZED" || attempt > 6 {
				t.Fatalf("attempt %d with a wrong password: %s", attempt, got)
			}
		}
		// Whoever is known goes on.
		dev.expect(http.StatusOK, "GET", "default/app/manifests/v1", nil)
	})
}

// token gets one from /v2/token.
func (a account) token(scope string) string {
	a.s.t.Helper()
	var body object
	if err := json.Unmarshal(a.expect(http.StatusOK, "GET", "token?service="+a.s.registryHost()+"&scope="+scope, nil).body, &body); err != nil || body.str("token") == "" || body.str("token") != body.str("access_token") {
		a.s.t.Fatalf("a token of %s for %s: %v, %v", a.name, scope, body, err)
	}
	return body.str("token")
}

// cutShort sends 1000 bytes of a body of 2000, and returns the status line.
func (s *server) cutShort(method, path, authorization string) string {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.registryHost())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: 2000\r\n\r\n", method, path, s.registryHost(), authorization)
	_, _ = conn.Write(make([]byte, 1000))
	_ = conn.(*net.TCPConn).CloseWrite()
	reply, _ := io.ReadAll(conn)
	return firstLine(string(reply))
}

// A full disk is said, and leaves neither half a blob nor a broken manifest.
func TestRegistryOnAFullDisk(t *testing.T) {
	small := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small).CombinedOutput(); err != nil {
		t.Fatalf("mounting a small disk (needs root): %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", small).CombinedOutput(); err != nil {
			t.Errorf("unmounting: %v %s", err, out)
		}
	})
	s := start(t, "data_dir "+small, "builds {\n\t\t\treserve 1MiB\n\t\t}")
	s.service("app", object{"follow_tag": "followed"})
	owner := s.owner()
	owner.blob("default/app", []byte("{}"))
	layer := noise(1<<20, 4)
	owner.blob("default/app", layer)
	owner.expect(http.StatusCreated, "PUT", "default/app/manifests/v1", bytes.NewReader(manifest(layer, "v1")), "Content-Type: "+manifestType)
	before := s.registryHolds()
	full := func(what string, got answer) {
		t.Helper()
		t.Logf("%s: %s", what, got)
		if got.status != http.StatusServiceUnavailable && got.status != http.StatusInsufficientStorage || got.code() == "" || !strings.Contains(string(got.body), "disk") {
			t.Errorf("%s on a full disk: %s", what, got)
		}
		if left := s.registryFiles(); len(left) > 0 {
			t.Errorf("%s on a full disk left behind: %v", what, left)
		}
	}
	big := noise(32<<20, 5)
	d := digest.FromBytes(big)
	full("a blob of known length", owner.do("PUT", withDigest(owner.begin("default/app"), d), bytes.NewReader(big)))
	full("a blob of unknown length", owner.do("PUT", withDigest(owner.begin("default/app"), d), struct{ io.Reader }{bytes.NewReader(big)}))
	full("a blob at once", owner.do("POST", "default/app/blobs/uploads/?digest="+d.String(), struct{ io.Reader }{bytes.NewReader(big)}))

	begun := owner.begin("default/app")
	empty := fill(t, small)
	little := noise(64<<10, 6)
	full("a new upload", owner.do("POST", "default/app/blobs/uploads/", nil))
	full("a small blob", owner.do("PUT", withDigest(begun, digest.FromBytes(little)), bytes.NewReader(little)))
	// Reading goes on.
	owner.whole("default/app:v1")
	// Not a byte is left, for the database neither.
	rest := filepath.Join(small, "rest")
	t.Cleanup(func() { _ = os.Remove(rest) })
	if err := os.WriteFile(rest, big, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk should be full: %v", err)
	}
	document := manifest(layer, strings.Repeat("v2", 1<<20))
	full("a manifest", owner.do("PUT", "default/app/manifests/v2", bytes.NewReader(document), "Content-Type: "+manifestType))
	owner.whole("default/app:v1")
	owner.expect(http.StatusNotFound, "GET", "default/app/manifests/v2", nil)

	empty()
	if err := os.Remove(rest); err != nil {
		t.Fatal(err)
	}
	if after := s.registryHolds(); after != before {
		t.Errorf("the registry held %s, now %s", before, after)
	}
	owner.blob("default/app", little)
	owner.expect(http.StatusCreated, "PUT", "default/app/manifests/v2", bytes.NewReader(manifest(layer, "v2")), "Content-Type: "+manifestType)
	owner.whole("default/app:v2")
}
