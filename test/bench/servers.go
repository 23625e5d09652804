package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Servers starts what a run compares, in a directory of the run's, and ends all
// of it. Its methods must not be called concurrently.
type Servers struct {
	Dir     string
	Program string // Denia's, which has all of Caddy in it

	started []*Process
}

// Start starts a server that End ends.
func (s *Servers) Start(ctx context.Context, c Command) (*Process, error) {
	c.Dir = s.Dir
	p, err := Start(ctx, c)
	if err != nil {
		return nil, err
	}
	s.started = append(s.started, p)
	return p, nil
}

// End ends all servers, the last one first.
func (s *Servers) End() {
	for ; len(s.started) > 0; s.started = s.started[:len(s.started)-1] {
		s.started[len(s.started)-1].End()
	}
}

// file is a file of a server's in the run's directory.
func (s *Servers) file(server, kind string) string {
	return filepath.Join(s.Dir, strings.NewReplacer(" ", "-", ",", "").Replace(server)+kind)
}

// Caddy starts Caddy with a Caddyfile. Program and arguments of the command
// are set.
func (s *Servers) Caddy(ctx context.Context, c Command, caddyfile string) (*Process, error) {
	path := s.file(c.Name, ".Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		return nil, err
	}
	c.Program, c.Args = s.Program, []string{"run", "--adapter", "caddyfile", "--config", path}
	c.Env = append(c.Env, "HOME="+s.Dir)
	return s.Start(ctx, c)
}

// Nginx starts nginx with what is given for its http block, beside no access
// log and connections that are kept.
func (s *Servers) Nginx(ctx context.Context, c Command, http string) (*Process, error) {
	home := s.file(c.Name, "")
	if err := os.Mkdir(home, 0o755); err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	config := filepath.Join(home, "nginx.conf")
	text := fmt.Sprintf(`%sdaemon off;
worker_processes auto;
pid %[2]s/pid;
error_log stderr error;
events { worker_connections 8192; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %[2]s; proxy_temp_path %[2]s; fastcgi_temp_path %[2]s; uwsgi_temp_path %[2]s; scgi_temp_path %[2]s;
%[3]s
}
`, user, home, http)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	c.Program, c.Args = "nginx", []string{"-p", home, "-e", "stderr", "-c", config}
	return s.Start(ctx, c)
}

// DeniaConfig says how Denia is configured beyond where it listens.
type DeniaConfig struct {
	Name             string   // of the process, and of its data directory
	Host             string   // of the API; empty: any
	Global           []string // lines of the Caddyfile's global options
	Options          []string // lines of the block denia
	Certificate, Key string   // files; empty: no TLS
}

// Denia is Denia with its administrator's token.
type Denia struct {
	*Process
	Data  string // directory
	Token string
	host  string
}

// Denia starts Denia on an empty data directory and returns when it is healthy.
func (s *Servers) Denia(ctx context.Context, config DeniaConfig) (*Denia, error) {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	d := &Denia{Data: s.file(config.Name, ""), Token: "dn_adm_" + hex.EncodeToString(secret), host: config.Host}
	c := Command{Name: config.Name, Env: []string{"DENIA_ADMIN_TOKEN=" + d.Token}}
	want := []*string{&c.Address, &c.Admin}
	if config.Certificate != "" {
		want = append(want, &c.Secure)
	}
	if err := FreeAddresses(ctx, want...); err != nil {
		return nil, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "{\n\tadmin %s\n\tpersist_config off\n", c.Admin)
	for _, line := range config.Global {
		fmt.Fprintf(&text, "\t%s\n", line)
	}
	fmt.Fprintf(&text, "\tdenia {\n\t\tdata_dir %s\n", d.Data)
	for _, line := range config.Options {
		fmt.Fprintf(&text, "\t\t%s\n", line)
	}
	fmt.Fprintf(&text, "\t}\n}\nhttp://:%s {\n\tbind 127.0.0.1\n\tdenia\n}\n", Port(c.Address))
	if c.Secure != "" {
		fmt.Fprintf(&text, "https://:%s {\n\tbind 127.0.0.1\n\ttls %s %s\n\tdenia\n}\n", Port(c.Secure), config.Certificate, config.Key)
	}
	var err error
	if d.Process, err = s.Caddy(ctx, c, text.String()); err != nil {
		return nil, err
	}
	return d, d.Healthy(ctx)
}

// Healthy returns when Denia says that it is.
func (d *Denia) Healthy(ctx context.Context) error {
	err := Until(ctx, 30*time.Second, 10*time.Millisecond, d.Name+" is healthy", func() (bool, error) {
		status, _, err := d.Ask(ctx, http.MethodGet, "/healthz", "", nil)
		return err == nil && status == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, d.Log())
	}
	return nil
}

// Restart ends Denia and starts it anew on its data; it returns when it is
// healthy.
func (d *Denia) Restart(ctx context.Context) error {
	if err := d.Process.Restart(ctx); err != nil {
		return err
	}
	return d.Healthy(ctx)
}

// Ask calls the API and returns the reply. kind is the body's media type, empty
// without one.
func (d *Denia) Ask(ctx context.Context, method, path, kind string, body io.Reader) (status int, text []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+d.Address+path, body)
	if err != nil {
		return 0, nil, err
	}
	r.Host = d.host
	r.Header.Set("Authorization", "Bearer "+d.Token)
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer reply.Body.Close()
	text, err = io.ReadAll(reply.Body)
	return reply.StatusCode, text, err
}

// Call calls the API with a JSON document, nil for none, and decodes the reply
// into what into points to, unless that is nil. It fails when the status is no
// success.
func (d *Denia) Call(ctx context.Context, method, path string, document, into any) error {
	var body io.Reader
	kind := ""
	if document != nil {
		text, err := json.Marshal(document)
		if err != nil {
			return err
		}
		body, kind = bytes.NewReader(text), "application/json"
	}
	return d.Send(ctx, method, path, kind, body, into)
}

// Send is Call with a body of any kind.
func (d *Denia) Send(ctx context.Context, method, path, kind string, body io.Reader, into any) error {
	status, text, err := d.Ask(ctx, method, path, kind, body)
	if err != nil {
		return err
	}
	if status >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %d: %s", method, path, status, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// Allocations is how many objects a Caddy with an admin endpoint has allocated
// since its start, and how many bytes.
func (p *Process) Allocations(ctx context.Context) (objects, bytes float64, err error) {
	if p.Admin == "" {
		return 0, 0, errors.New(p.Name + " has no admin endpoint")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Admin+"/debug/vars", nil)
	if err != nil {
		return 0, 0, err
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, 0, err
	}
	defer reply.Body.Close()
	var vars struct {
		MemStats struct{ Mallocs, TotalAlloc float64 } `json:"memstats"`
	}
	if err := json.NewDecoder(reply.Body).Decode(&vars); err != nil {
		return 0, 0, fmt.Errorf("reading the allocations of %s: %w", p.Name, err)
	}
	return vars.MemStats.Mallocs, vars.MemStats.TotalAlloc, nil
}
