package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

type entry struct {
	tar.Header
	content string
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	packed, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(packed)
	for _, e := range entries {
		e.Size, e.Mode = int64(len(e.content)), 0o755
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bomb is n zero bytes in one file, packed small.
func bomb(t testing.TB, n int64) []byte {
	t.Helper()
	var out bytes.Buffer
	packed, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(packed)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: n}); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for left := n; left > 0; left -= int64(len(block)) {
		if _, err := w.Write(block[:min(left, int64(len(block)))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func many(n int) []entry {
	list := make([]entry, n)
	for i := range list {
		list[i] = entry{Header: tar.Header{Name: "f" + strconv.Itoa(i), Typeflag: tar.TypeReg}}
	}
	return list
}

// send uploads bytes and returns the status, code and detail of the reply.
func (s *server) send(service string, body io.Reader) (status int, code, detail string) {
	s.t.Helper()
	request, err := http.NewRequest("POST", s.url("/v1/services/"+service+"/uploads"), body)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Header.Set("Content-Type", "application/zstd")
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	var problem object
	_ = json.NewDecoder(reply.Body).Decode(&problem)
	return reply.StatusCode, problem.str("code"), problem.str("detail")
}

func (s *server) uploadFiles() []string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.data, "uploads", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(s.data, "uploads", ".*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return append(found, hidden...)
}

// Hostile uploads are refused with the entry named, and leave no byte behind.
func TestHostileUploads(t *testing.T) {
	s := start(t)
	id := s.service("app", nil)
	file := func(name string) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, content: "x"}
	}
	link := func(name, target string) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
	}
	good := pack(t, file("Dockerfile"))
	for _, c := range []struct {
		name  string
		body  []byte
		named string
	}{
		{"a path out of the root", pack(t, file("a/../../evil")), "evil"},
		{"an absolute path", pack(t, file("/etc/evil")), "/etc/evil"},
		{"an absolute link", pack(t, link("evil", "/etc/passwd")), "evil"},
		{"a link out of the root", pack(t, link("evil", "../../x")), "evil"},
		{"a path through a link", pack(t, link("dir", ".."), file("dir/evil")), "dir"},
		{"a hard link out of the root", pack(t, entry{Header: tar.Header{Name: "evil", Typeflag: tar.TypeLink, Linkname: "../x"}}), "evil"},
		{"a device", pack(t, entry{Header: tar.Header{Name: "evil", Typeflag: tar.TypeBlock}}), "evil"},
		{"a fifo", pack(t, entry{Header: tar.Header{Name: "evil", Typeflag: tar.TypeFifo}}), "evil"},
		{"a bomb", bomb(t, 1<<30), "zeros"},
		{"300 000 entries", pack(t, many(300_000)...), "f"},
		{"a truncated stream", good[:len(good)-6], ""},
		{"no archive", []byte("hello"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, code, detail := s.send(id, bytes.NewReader(c.body))
			if status != http.StatusUnprocessableEntity && status != http.StatusRequestEntityTooLarge {
				t.Errorf("status %d, want 413 or 422: %s", status, detail)
			}
			if !strings.Contains(detail, c.named) {
				t.Errorf("%q does not name %q", detail, c.named)
			}
			if left := s.uploadFiles(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			t.Logf("%d %s: %s", status, code, detail)
		})
	}

	t.Run("a lie in Content-Length", func(t *testing.T) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /v1/services/%s/uploads HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/zstd\r\nContent-Length: %d\r\n\r\n", id, s.token, len(good)+1000)
		_, _ = conn.Write(good)
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
		reply, _ := io.ReadAll(conn)
		_ = conn.Close()
		if line := firstLine(string(reply)); !strings.Contains(line, " 422 ") {
			t.Errorf("answer: %s, want 422", line)
		}
		s.eventually(10*time.Second, "nothing is left behind", func() bool { return len(s.uploadFiles()) == 0 })
	})
	s.healthy(s.deployFiles(id, appContext("still works")))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\r\n")
	return line
}

// A full disk is said, in numbers, and nothing half-written stays.
func TestFullDisk(t *testing.T) {
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
	id := s.running("app", "steady", nil)

	noise := make([]byte, 32<<20)
	_, _ = rand.Read(noise)
	body := pack(t, entry{Header: tar.Header{Name: "noise", Typeflag: tar.TypeReg}, content: string(noise)})
	status, code, detail := s.send(id, bytes.NewReader(body))
	t.Logf("%d %s: %s", status, code, detail)
	if code != "disk_full" {
		t.Errorf("an upload that fills the disk: %d %s %s", status, code, detail)
	}
	if left := s.uploadFiles(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	s.answers("app.localhost", "steady")

	upload := s.upload(id, appContext("no room"))
	empty := fill(t, small)
	d := s.finished(s.deploy(id, object{"type": "upload", "upload_id": upload}))
	t.Logf("%s: %s", d.str("error.code"), d.str("error.message"))
	if d.str("status") != "failed" || d.str("error.code") != "disk_full" {
		t.Errorf("a deployment on a full disk is %s: %v", d.str("status"), d["error"])
	}
	s.answers("app.localhost", "steady")
	empty()
	s.healthy(s.deployFiles(id, appContext("room again")))
	s.answers("app.localhost", "room again")
}
