package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// deployed is Denia with the replica as its only service.
type deployed struct {
	*proxy
	admin   string // Caddy's endpoint, for profiles
	token   string
	service string // id
}

// startDenia starts Denia on an empty data directory, and has it run this
// program as a service.
func (b *bench) startDenia(ctx context.Context) (*deployed, error) {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	d := &deployed{proxy: &proxy{name: "denia"}, token: "dn_adm_" + hex.EncodeToString(secret)}
	var err error
	if d.plain, d.secure, err = freeAddresses(ctx); err != nil {
		return nil, err
	}
	if d.admin, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	err = b.launchCaddy(ctx, d.proxy, []string{"DENIA_ADMIN_TOKEN=" + d.token}, fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https disable_redirects
	default_sni bench
	denia {
		data_dir %s
		base_domain bench.localhost
		control_domain control.localhost
	}
}
http://:%s {
	bind 127.0.0.1
	denia
}
https://:%s {
	bind 127.0.0.1
	tls %s %s
	denia
}
`, d.admin, filepath.Join(b.dir, "denia"), port(d.plain), port(d.secure), b.certificate(), b.key()))
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := d.call(ctx, http.MethodGet, "/healthz", "", nil, nil)
		if err == nil {
			// For those who want to look on, with a profile for example.
			b.say("%-20s has its admin endpoint on %s", d.name, d.admin)
			return d, nil
		}
		if time.Now().After(deadline) {
			d.end()
			return nil, fmt.Errorf("waiting until Denia is healthy: %w\n%s", err, d.log)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			d.end()
			return nil, err
		}
	}
}

// deploy makes the service and waits until it is healthy.
func (b *bench) deploy(ctx context.Context, d *deployed) error {
	var service struct {
		ID string `json:"id"`
	}
	if err := d.call(ctx, http.MethodPost, "/v1/services", "application/json", strings.NewReader(`{"name":"replica"}`), &service); err != nil {
		return err
	}
	d.service = service.ID
	archive, err := buildContext()
	if err != nil {
		return err
	}
	var upload struct {
		ID string `json:"upload_id"`
	}
	if err := d.call(ctx, http.MethodPost, "/v1/services/"+d.service+"/uploads", "application/x-tar", archive, &upload); err != nil {
		return err
	}
	var deployment struct {
		ID     string `json:"id"`
		Status string `json:"status"`
		Error  struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	request := fmt.Sprintf(`{"service_id":%q,"source":{"type":"upload","upload_id":%q}}`, d.service, upload.ID)
	if err := d.call(ctx, http.MethodPost, "/v1/deployments", "application/json", strings.NewReader(request), &deployment); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); deployment.Status != "healthy"; {
		if deployment.Status == "failed" || time.Now().After(deadline) {
			return fmt.Errorf("the replica's deployment is %s: %s", deployment.Status, deployment.Error.Message)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		if err := d.call(ctx, http.MethodGet, "/v1/deployments/"+deployment.ID, "", nil, &deployment); err != nil {
			return err
		}
	}
	var routes []struct {
		Host    string `json:"host"`
		Targets []struct {
			Addr string `json:"addr"`
		} `json:"targets"`
	}
	if err := d.call(ctx, http.MethodGet, "/v1/ingress/routes", "", nil, &routes); err != nil {
		return err
	}
	if len(routes) != 1 || len(routes[0].Targets) != 1 {
		return fmt.Errorf("want one route to one replica, got %v", routes)
	}
	b.host, b.replica = routes[0].Host, routes[0].Targets[0].Addr
	return nil
}

// buildContext is an archive of this program and how to run it.
func buildContext() (io.Reader, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for _, file := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"Dockerfile", 0o644, []byte("FROM scratch\nCOPY replica /replica\nCMD [\"/replica\", \"-replica\", \":8080\"]\n")},
		{"replica", 0o755, program},
	} {
		if err := w.WriteHeader(&tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.content)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(file.content); err != nil {
			return nil, err
		}
	}
	return &all, w.Close()
}

// call calls Denia's API.
func (d *deployed) call(ctx context.Context, method, path, kind string, body io.Reader, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+d.plain+path, body)
	if err != nil {
		return err
	}
	r.Host = "control.localhost"
	r.Header.Set("Authorization", "Bearer "+d.token)
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return err
	}
	if reply.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, reply.Status, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// remove takes the service away, and with it what runs in the engine.
func (b *bench) remove(d *deployed) error {
	if d.service == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.call(ctx, http.MethodDelete, "/v1/services/"+d.service, "", nil, nil); err != nil {
		return err
	}
	for b.replica != "" && listens(ctx, b.replica) {
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	// It has ended; its container and network go next, and nobody tells when.
	return sleep(ctx, 3*time.Second)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
