package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

// service is this program as a service of Denia's.
type service struct {
	by            *bench.Denia
	id, project   string
	release       string // the first deployment
	image         string
	host, address string // of the service and of its replica
}

// deployment is what the API says of one.
type deployment struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	FinishedAt time.Time `json:"finished_at"`
	Artifact   struct {
		Digest string `json:"digest"` // of the image
	} `json:"artifact"`
	Error struct {
		Message string `json:"message"`
	} `json:"error"`
}

// deploy makes a service of a Denia's and waits until it is healthy.
func (b *run) deploy(ctx context.Context, by *bench.Denia, name string) (*service, error) {
	s := &service{by: by}
	var made struct {
		ID      string `json:"id"`
		Project string `json:"project_id"`
	}
	if err := s.by.Call(ctx, http.MethodPost, "/v1/services", map[string]any{"name": name, "user": "65534"}, &made); err != nil {
		return nil, err
	}
	s.id, s.project = made.ID, made.Project
	b.made = append(b.made, s)
	archive, err := buildContext(ctx)
	if err != nil {
		return nil, err
	}
	var upload struct {
		ID string `json:"upload_id"`
	}
	if err := s.by.Send(ctx, http.MethodPost, "/v1/services/"+s.id+"/uploads", "application/x-tar", archive, &upload); err != nil {
		return nil, err
	}
	d, err := b.release(ctx, s, map[string]any{"type": "upload", "upload_id": upload.ID})
	if err != nil {
		return nil, err
	}
	s.release, s.image = d.ID, d.Artifact.Digest
	var routes []struct {
		Host    string `json:"host"`
		Targets []struct {
			Addr string `json:"addr"`
		} `json:"targets"`
	}
	if err := s.by.Call(ctx, http.MethodGet, "/v1/ingress/routes", nil, &routes); err != nil {
		return nil, err
	}
	for _, r := range routes {
		if strings.HasPrefix(r.Host, name+".") && len(r.Targets) == 1 {
			s.host, s.address = r.Host, r.Targets[0].Addr
			return s, nil
		}
	}
	return nil, fmt.Errorf("want a route to one replica of %s, got %v", name, routes)
}

// release deploys a source and waits until it is healthy.
func (b *run) release(ctx context.Context, s *service, source any) (d deployment, err error) {
	if err := s.by.Call(ctx, http.MethodPost, "/v1/deployments", map[string]any{"service_id": s.id, "source": source}, &d); err != nil {
		return d, err
	}
	// The API takes some ten requests a second of one client.
	return d, bench.Until(ctx, 2*time.Minute, 200*time.Millisecond, "the deployment is healthy", func() (bool, error) {
		if err := s.by.Call(ctx, http.MethodGet, "/v1/deployments/"+d.ID, nil, &d); err != nil {
			return false, err
		}
		if d.Status == "failed" {
			return false, fmt.Errorf("the deployment failed: %s", d.Error.Message)
		}
		return d.Status == "healthy", nil
	})
}

// buildContext is an archive of what the replica runs.
func buildContext(ctx context.Context) (io.Reader, error) {
	files, err := replicaFiles(ctx)
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for name, content := range files {
		mode := int64(0o644)
		if bytes.HasPrefix(content, []byte("\x7fELF")) {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return &all, w.Close()
}

// remove takes the services away, and returns when nothing of them is left in
// the engine.
func (b *run) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var failed error
	for _, s := range b.made {
		failed = errors.Join(failed, bench.Until(ctx, 10*time.Second, time.Second, "service "+s.id+" is deleted", func() (bool, error) {
			status, _, err := s.by.Ask(ctx, http.MethodDelete, "/v1/services/"+s.id, "", nil)
			return status < http.StatusMultipleChoices, err
		}))
	}
	for _, s := range b.made {
		failed = errors.Join(failed, bench.Until(ctx, time.Minute, 100*time.Millisecond, "the engine has no container and no network of the project", func() (bool, error) {
			return isGone(ctx, s.project)
		}))
		// Denia keeps images for a while, and it ends now. One that is not there
		// any more, or that another run uses, is no failure.
		failed = errors.Join(failed, engine(ctx, http.MethodDelete, "/images/"+s.image+"?force=1", nil))
	}
	if failed != nil {
		bench.Say("something may be left in the engine: %v", failed)
	}
}

// isGone tells whether the engine has no container and no network of a project.
func isGone(ctx context.Context, project string) (bool, error) {
	query := "?" + url.Values{"all": {"1"}, "filters": {`{"label":["denia.project=` + project + `"]}`}}.Encode()
	for _, kind := range []string{"/containers/json", "/networks"} {
		var found []json.RawMessage
		if err := engine(ctx, http.MethodGet, kind+query, &found); err != nil || len(found) > 0 {
			return false, err
		}
	}
	return true, nil
}

// engine calls the Docker Engine that Denia uses, and decodes the reply into
// what into points to, unless that is nil.
func engine(ctx context.Context, method, path string, into any) error {
	network, address := "unix", "/var/run/docker.sock"
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		var found bool
		if network, address, found = strings.Cut(host, "://"); !found {
			return errors.New("DOCKER_HOST is no address")
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	r, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	reply, err := client.Do(r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if into == nil {
		return nil
	}
	return json.NewDecoder(reply.Body).Decode(into)
}
