// Package e2e drives the real binary over HTTP, with a real Docker Engine.
package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	binary string // Denia
	app    []byte // the application's program
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "denia-e2e-")
	if err == nil {
		err = build(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func build(dir string) error {
	binary = filepath.Join(dir, "denia")
	program := filepath.Join(dir, "app")
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags", "-s -w", "-tags", "nobadger,nomysql,nopgx", "-o", binary, "../../cmd/denia"},
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./app"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building: %w\n%s", err, out)
		}
	}
	var err error
	app, err = os.ReadFile(program)
	return err
}

// server is a running Denia.
type server struct {
	t     testing.TB
	dir   string // holds the Caddyfile
	data  string // the data directory
	port  int
	https int // where there is TLS
	admin int
	token string
	cmd   *exec.Cmd
	files []*os.File // passed on, from descriptor 3
	path  string     // of the program, where it is not the one that was built
	done  chan struct{}
	host  string // of the API, where it is not the address
	log   *logBuffer
}

// logBuffer keeps a process's output, for the failing test to show.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// start runs Denia on an empty data directory; options go into the block denia
// of its Caddyfile, with $PORT as the port it listens on. When the test ends,
// everything it made is removed.
func start(t testing.TB, options ...string) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), port: freePort(t), admin: freePort(t), token: "dn_adm_e2e-test-admin-token", log: &logBuffer{}}
	s.data = filepath.Join(s.dir, "data")
	for _, option := range options {
		if dir, ok := strings.CutPrefix(option, "data_dir "); ok {
			s.data = dir
		}
		if host, ok := strings.CutPrefix(option, "control_domain "); ok {
			s.host = host
		}
	}
	s.writeCaddyfile(options...)
	t.Cleanup(func() {
		s.removeEverything()
		s.stop()
		if t.Failed() {
			t.Logf("Denia's log:\n%s", tail(s.log.String(), 12000))
		}
	})
	s.run()
	return s
}

func tail(text string, n int) string {
	if len(text) > n {
		return "…" + text[len(text)-n:]
	}
	return text
}

// ports is how many ports were given to tests.
var ports atomic.Int32

// freePort returns a port on which nobody listens, never the same twice: Caddy
// shares a port with whoever listens on it, so nobody would be told that two
// tests have the same. It is below those that Linux takes for connections, unless
// told otherwise. Another run of the tests begins elsewhere.
func freePort(t testing.TB) int {
	t.Helper()
	for {
		n := int(ports.Add(1))
		if n > 12_000 {
			t.Fatal("all ports have been given away")
		}
		port := 20_000 + (61*os.Getpid()+n)%12_000
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}

func (s *server) writeCaddyfile(options ...string) {
	s.t.Helper()
	options = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return strings.HasPrefix(o, "data_dir ") })
	text := fmt.Sprintf(`{
	admin 127.0.0.1:%d
	persist_config off
	grace_period 10s
	denia {
		data_dir %s
		%s
	}
}
http://:%d {
	bind 127.0.0.1
	denia
}
`, s.admin, s.data, strings.ReplaceAll(strings.Join(options, "\n\t\t"), "$PORT", strconv.Itoa(s.port)), s.port)
	if err := os.WriteFile(s.caddyfile(), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) caddyfile() string { return filepath.Join(s.dir, "Caddyfile") }

// launch starts the process.
func (s *server) launch() error {
	s.cmd = exec.Command(cmp.Or(s.path, binary), "run", "--config", s.caddyfile())
	s.cmd.Env = append(os.Environ(), "DENIA_ADMIN_TOKEN="+s.token, "HOME="+s.dir)
	s.cmd.ExtraFiles = s.files
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.done = make(chan struct{})
	if err := s.cmd.Start(); err != nil {
		close(s.done)
		return err
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(s.cmd, s.done)
	return nil
}

// run starts the process and waits until it listens.
func (s *server) run() {
	s.t.Helper()
	if err := s.launch(); err != nil {
		s.t.Fatal(err)
	}
	listens := func() bool {
		select {
		case <-s.done:
			s.t.Fatalf("Denia ended at its start:\n%s", s.log)
		default:
		}
		request, err := http.NewRequest("GET", s.url("/healthz"), nil)
		if err != nil {
			s.t.Fatal(err)
		}
		request.Host = s.host
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		defer reply.Body.Close()
		return reply.StatusCode == http.StatusOK
	}
	if !poll(context.Background(), soon, 30*time.Second, listens) {
		s.t.Fatal("Denia does not listen within 30s")
	}
}

// stop ends Denia as Ctrl-C does.
func (s *server) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.done
		s.t.Errorf("Denia did not end within 60 s of an interrupt")
	}
}

// kill ends Denia as a power cut does.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

func (s *server) url(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", s.port, path) }

// removeEverything deletes the services, and sees that nothing of them stays.
func (s *server) removeEverything() {
	select {
	case <-s.done:
		s.run()
	default:
	}
	var services []object
	s.call("GET", "/v1/services?limit=200", nil, &services)
	for _, service := range services {
		s.expect(http.StatusNoContent, "DELETE", "/v1/services/"+service.str("id")+"?volumes=true", nil, nil)
	}
	s.eventually(60*time.Second, "every container is removed", func() bool { return len(s.containers()) == 0 })
	s.removeNetworks()
}

func (s *server) containers() []string { return s.docker("ps", "-aq", "--filter", s.label()) }

// removeNetworks does what the janitor does within a minute.
func (s *server) removeNetworks() {
	for _, id := range s.docker("network", "ls", "-q", "--filter", s.label()) {
		s.docker("network", "rm", id)
	}
	// Each of this Denia's tags has a twin that names its instance.
	sum := sha256.Sum256([]byte(strings.TrimPrefix(s.label(), "label=denia.instance=")))
	own := fmt.Sprintf("denia-%x/", sum[:4])
	for _, twin := range s.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference="+own+"*/*") {
		_ = exec.Command("docker", "rmi", twin, "denia/"+strings.TrimPrefix(twin, own)).Run()
	}
}

// label finds what this Denia has made in the engine.
func (s *server) label() string {
	var node object
	s.call("GET", "/v1/node", nil, &node)
	return "label=denia.instance=" + node.str("instance_id")
}

func (s *server) docker(args ...string) []string {
	s.t.Helper()
	out, err := exec.Command("docker", args...).Output()
	if err != nil {
		s.t.Errorf("docker %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

// object is a JSON object of the API.
type object map[string]any

func (o object) str(path string) string {
	var value any = map[string]any(o)
	for key := range strings.SplitSeq(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case object:
			value = v[key]
		default:
			return ""
		}
	}
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// call makes an API request with a JSON body and decodes the JSON reply.
func (s *server) call(method, path string, body, into any) int {
	s.t.Helper()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequest(method, s.url(path), content)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Host = s.host
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer reply.Body.Close()
	if reply.StatusCode == http.StatusTooManyRequests {
		s.t.Fatalf("%s %s: the test asks too often", method, path)
	}
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	if into != nil && len(text) > 0 {
		if err := json.Unmarshal(text, into); err != nil {
			s.t.Fatalf("%s %s answered %d, no JSON: %s", method, path, reply.StatusCode, text)
		}
	}
	return reply.StatusCode
}

// expect is call that fails the test on another status.
func (s *server) expect(status int, method, path string, body, into any) {
	s.t.Helper()
	var raw json.RawMessage
	if got := s.call(method, path, body, &raw); got != status {
		s.t.Fatalf("%s %s: status %d, want %d: %s", method, path, got, status, raw)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
}

// service makes a service; settings are merged into its JSON.
func (s *server) service(name string, settings object) string {
	s.t.Helper()
	body := object{"name": name}
	for key, value := range settings {
		body[key] = value
	}
	var made object
	s.expect(http.StatusCreated, "POST", "/v1/services", body, &made)
	return made.str("id")
}

// files is a build context: names to contents.
type files map[string]string

const dockerfile = "FROM scratch\nCOPY app /app\nCOPY . /\nCMD [\"/app\"]\n"

// context is a build context of the application with a message.
func appContext(message string) files {
	return files{"Dockerfile": dockerfile, "message.txt": message, "app": string(app)}
}

func (f files) archive(t testing.TB) []byte {
	t.Helper()
	var entries []entry
	for name, content := range f {
		entries = append(entries, entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, content: content})
	}
	return pack(t, entries...)
}

// upload sends a build context and returns its id.
func (s *server) upload(service string, f files) string {
	s.t.Helper()
	request, err := http.NewRequest("POST", s.url("/v1/services/"+service+"/uploads"), bytes.NewReader(f.archive(s.t)))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Host = s.host
	request.Header.Set("Content-Type", "application/zstd")
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	var made object
	text, _ := io.ReadAll(reply.Body)
	if reply.StatusCode != http.StatusCreated {
		s.t.Fatalf("upload: %d %s", reply.StatusCode, text)
	}
	if err := json.Unmarshal(text, &made); err != nil {
		s.t.Fatal(err)
	}
	return made.str("upload_id")
}

// deploy requests a deployment and returns its id.
func (s *server) deploy(service string, source object) string {
	s.t.Helper()
	var made object
	s.expect(http.StatusAccepted, "POST", "/v1/deployments", object{"service_id": service, "source": source}, &made)
	return made.str("id")
}

func (s *server) deployFiles(service string, f files) string {
	s.t.Helper()
	return s.deploy(service, object{"type": "upload", "upload_id": s.upload(service, f)})
}

// finished waits for the end of a deployment, by its log.
func (s *server) finished(deployment string) object {
	s.t.Helper()
	var d object
	s.eventually(3*time.Minute, "deployment "+deployment+" ends", func() bool {
		s.events("/v1/deployments/"+deployment+"/logs/stream?tail=1", func(event, _ string) bool { return event != "done" })
		s.expect(http.StatusOK, "GET", "/v1/deployments/"+deployment, nil, &d)
		switch d.str("status") {
		case "pending", "building", "starting":
			return false
		}
		return true
	})
	return d
}

// healthy waits for a deployment to become the active release.
func (s *server) healthy(deployment string) object {
	s.t.Helper()
	d := s.finished(deployment)
	if d.str("status") != "healthy" {
		s.t.Fatalf("deployment is %s: %v", d.str("status"), d["error"])
	}
	return d
}

// running makes a service that serves the message.
func (s *server) running(name, message string, settings object) string {
	s.t.Helper()
	id := s.service(name, settings)
	s.healthy(s.deployFiles(id, appContext(message)))
	return id
}

// client dials Denia whatever the URL's host.
func (s *server) client() *http.Client {
	dialer := &net.Dialer{}
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", s.port))
		},
	}, Timeout: 60 * time.Second}
}

// get asks a service through the ingress.
func (s *server) get(host, path string) (int, string) {
	s.t.Helper()
	client := s.client()
	defer client.CloseIdleConnections()
	reply, err := client.Get("http://" + host + path)
	if err != nil {
		s.t.Fatalf("GET %s%s: %v", host, path, err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		s.t.Fatalf("GET %s%s: %v", host, path, err)
	}
	return reply.StatusCode, string(text)
}

func (s *server) answers(host, want string) {
	s.t.Helper()
	if status, got := s.get(host, "/"); status != http.StatusOK || got != want {
		s.t.Fatalf("http://%s/ answers %d %q, want 200 %q", host, status, got, want)
	}
}

// events reads a server-sent event stream until it ends or fn says stop.
func (s *server) events(path string, fn func(event, data string) bool) {
	s.t.Helper()
	request, err := http.NewRequest("GET", s.url(path), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	request.Host = s.host
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(reply.Body)
		s.t.Fatalf("GET %s: %d %s", path, reply.StatusCode, text)
	}
	event := ""
	for lines := bufio.NewScanner(reply.Body); lines.Scan(); {
		switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
		case "event":
			event = value
		case "data":
			if !fn(event, value) {
				return
			}
		}
	}
}

// eventually waits for a condition, looking 5 times a second: the API allows
// ten calls a second.
func (s *server) eventually(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	if !poll(context.Background(), 200*time.Millisecond, limit, ok) {
		s.t.Fatalf("within %s it did not come about that %s", limit, what)
	}
}

// soon is how often to look for what comes by itself in milliseconds.
const soon = 5 * time.Millisecond

// poll looks for a condition now, and every so often until it holds. It tells
// whether that came about within the limit.
func poll(ctx context.Context, every, limit time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ok()
		}
	}
	return true
}
