package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/test/bench"
)

// registry is a server that speaks the distribution specification, and a
// client of it.
type registry struct {
	*bench.Process
	denia  *bench.Denia // nil for the others, where everybody may do everything
	data   string       // where it stores
	prefix string       // of the repositories' names
	http   *http.Client

	// remove deletes blobs no manifest needs, and returns when their space is
	// free: what that costs belongs to no measurement.
	remove func(ctx context.Context, name string, all []digest.Digest) error

	mu     sync.Mutex
	tokens map[string]token // by repository
}

type token struct {
	text string
	at   time.Time
}

func (g *registry) connect() {
	g.tokens = map[string]token{}
	g.http = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
	}}
}

func (g *registry) url(path string) string { return "http://" + g.Address + path }

// repo is the path of a repository, "/v2/<name>".
func (g *registry) repo(name string) string { return "/v2/" + g.prefix + name }

// bearer returns a token for everything in a repository that is good for the
// minutes a measurement may take; clients keep theirs, too. Empty: none needed.
func (g *registry) bearer(ctx context.Context, name string) (string, error) {
	if g.denia == nil {
		return "", nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.tokens[name]; time.Since(t.at) < 2*time.Minute {
		return t.text, nil
	}
	query := url.Values{"service": {g.Address}, "scope": {"repository:" + g.prefix + name + ":pull,push,delete"}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url("/v2/token?"+query.Encode()), nil)
	if err != nil {
		return "", err
	}
	r.SetBasicAuth("admin", g.denia.Token)
	reply, err := g.http.Do(r)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	var issued struct{ Token string }
	if err := json.NewDecoder(reply.Body).Decode(&issued); err != nil || issued.Token == "" {
		return "", fmt.Errorf("no token from %s: %s: %w", g.Name, reply.Status, err)
	}
	g.tokens[name] = token{issued.Token, time.Now()}
	return issued.Token, nil
}

// call sends a request about a repository and returns the reply's header.
// length -1: the body is sent in chunks, as long as it is.
func (g *registry) call(ctx context.Context, want int, method, name, target string, body io.Reader, length int64, contentType string) (http.Header, error) {
	if body == nil {
		body = http.NoBody
	}
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if r.ContentLength = length; length == 0 {
		r.Body = http.NoBody
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	secret, err := g.bearer(ctx, name)
	if err != nil {
		return nil, err
	}
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	reply, err := g.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(io.LimitReader(reply.Body, 4<<10))
	if err != nil {
		return nil, err
	}
	if reply.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, r.URL.Path, reply.Status, text)
	}
	return reply.Header, nil
}

const binary = "application/octet-stream"

// begin starts an upload and returns where it goes on.
func (g *registry) begin(ctx context.Context, name string) (*url.URL, error) {
	target := g.url(g.repo(name) + "/blobs/uploads/")
	header, err := g.call(ctx, http.StatusAccepted, http.MethodPost, name, target, nil, 0, "")
	if err != nil {
		return nil, err
	}
	return location(target, header)
}

func location(target string, header http.Header) (*url.URL, error) {
	base, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	return base.Parse(header.Get("Location"))
}

func withDigest(u *url.URL, d digest.Digest) string {
	query := u.Query()
	query.Set("digest", d.String())
	u.RawQuery = query.Encode()
	return u.String()
}

// push uploads a blob by POST and one PUT.
func (g *registry) push(ctx context.Context, name string, d digest.Digest, body io.Reader, size int64) error {
	next, err := g.begin(ctx, name)
	if err != nil {
		return err
	}
	_, err = g.call(ctx, http.StatusCreated, http.MethodPut, name, withDigest(next, d), body, size, binary)
	return err
}

// stream uploads a blob as docker does: POST, one PATCH in chunks of HTTP, PUT.
func (g *registry) stream(ctx context.Context, name string, d digest.Digest, body io.Reader) error {
	next, err := g.begin(ctx, name)
	if err != nil {
		return err
	}
	header, err := g.call(ctx, http.StatusAccepted, http.MethodPatch, name, next.String(), body, -1, "")
	if err != nil {
		return err
	}
	if next, err = location(next.String(), header); err != nil {
		return err
	}
	_, err = g.call(ctx, http.StatusCreated, http.MethodPut, name, withDigest(next, d), nil, 0, "")
	return err
}

func (g *registry) pushBytes(ctx context.Context, name string, content []byte) (digest.Digest, error) {
	d := digest.FromBytes(content)
	return d, g.push(ctx, name, d, bytes.NewReader(content), int64(len(content)))
}

const imageType = "application/vnd.oci.image.manifest.v1+json"

func (g *registry) putManifest(ctx context.Context, name, reference string, content []byte) error {
	_, err := g.call(ctx, http.StatusCreated, http.MethodPut, name, g.url(g.repo(name)+"/manifests/"+reference), bytes.NewReader(content), int64(len(content)), imageType)
	return err
}

// descriptor and manifest are what the image specification calls so.
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

func newManifest(config descriptor, layers []descriptor, annotations map[string]string) []byte {
	text, err := json.Marshal(manifest{2, imageType, config, layers, annotations})
	if err != nil {
		panic(err) // there is nothing in it that cannot be encoded
	}
	return text
}

func configOf(d digest.Digest, size int) descriptor {
	return descriptor{"application/vnd.oci.image.config.v1+json", d, int64(size)}
}

func layerOf(d digest.Digest, size int64) descriptor {
	return descriptor{"application/vnd.oci.image.layer.v1.tar+gzip", d, size}
}

// removeFromDocker removes the files, and the repository's whole directory: the
// collection of docker-registry needs it stopped.
func (g *registry) removeFromDocker(ctx context.Context, name string, all []digest.Digest) error {
	if err := g.removeFiles(ctx, name, all); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(g.data, "docker/registry/v2/repositories", g.prefix, name))
}

func (g *registry) removeFiles(_ context.Context, _ string, all []digest.Digest) error {
	for _, d := range all {
		if err := os.RemoveAll(g.find(d)); err != nil {
			return err
		}
	}
	return nil
}

func (g *registry) removeFromDenia(ctx context.Context, name string, all []digest.Digest) error {
	for _, d := range all {
		if _, err := g.call(ctx, http.StatusAccepted, http.MethodDelete, name, g.url(g.repo(name)+"/blobs/"+d.String()), nil, 0, ""); err != nil {
			return err
		}
	}
	return bench.Until(ctx, time.Minute, 50*time.Millisecond, "the deleted blobs are off the disk", func() (bool, error) {
		for _, d := range all {
			if g.find(d) != "" {
				return false, nil
			}
		}
		return true, nil
	})
}

// find returns the path of a blob, empty if there is none: a file or directory
// somewhere in the data is called like the digest.
func (g *registry) find(d digest.Digest) (found string) {
	// What cannot be read has gone meanwhile.
	_ = filepath.WalkDir(g.data, func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		if err == nil && (name == d.Encoded() || strings.HasPrefix(name, "sha256."+d.Encoded())) && !strings.Contains(path, "/repositories/") {
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	return found
}
