package registry

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/denia-paas/denia/registry/oci"
)

// call is one request under /v2 on its way through the registry.
type call struct {
	*Registry
	w       http.ResponseWriter
	r       *http.Request
	subject string // who asks; empty: the public
	who     identity
	name    string // repository as the client wrote it
	grant   Grant
}

// endpoint is one row of the specification's table of endpoints
// (distribution-spec, "Endpoints").
type endpoint struct {
	rest    string // of the path, after the name: "blobs", "uploads", …
	method  string
	actions string // what a token must grant: "pull", "push", "pull,push", "delete"
	serve   func(c *call, reference string)
}

var endpoints = []endpoint{
	{"blobs", http.MethodHead, "pull", (*call).getBlob},
	{"blobs", http.MethodGet, "pull", (*call).getBlob},
	{"blobs", http.MethodDelete, "delete", (*call).deleteBlob},
	{"uploads", http.MethodPost, "push", (*call).startUpload},
	{"upload", http.MethodGet, "push", (*call).uploadStatus},
	{"upload", http.MethodPatch, "push", (*call).appendUpload},
	{"upload", http.MethodPut, "push", (*call).finishUpload},
	{"upload", http.MethodDelete, "push", (*call).cancelUpload},
	{"manifests", http.MethodHead, "pull", (*call).getManifest},
	{"manifests", http.MethodGet, "pull", (*call).getManifest},
	{"manifests", http.MethodPut, "push", (*call).putManifest},
	{"manifests", http.MethodDelete, "delete", (*call).deleteManifest},
	{"tags", http.MethodGet, "pull", (*call).listTags},
	{"referrers", http.MethodGet, "pull", (*call).listReferrers},
}

// ServeHTTP answers everything under /v2. Nothing it sends may be transformed
// on the way: it says so to caches and to Caddy's compression.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Cache-Control", "no-transform")
	// What is stored here was written by anybody who may push, under a media
	// type of their choice, and is served from the console's own origin.
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")

	c := &call{Registry: g, w: w, r: r}
	if !g.serving.TryRLock() {
		h.Set("Retry-After", "1")
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "the registry is shut down", nil)
		return
	}
	defer g.serving.RUnlock()

	switch path := strings.TrimPrefix(r.URL.Path, "/v2"); path {
	case "", "/":
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			c.refuseMethod("GET, HEAD")
			return
		}
		g.servePing(w, r)
	case "/token":
		g.serveToken(w, r)
	default:
		c.route(strings.TrimPrefix(path, "/"))
	}
}

// route finds the endpoint of a path behind "/v2/", and has it serve the call.
func (c *call) route(path string) {
	name, rest, reference, ok := split(path)
	if !ok {
		c.fail(http.StatusNotFound, codeUnsupported, "there is no such endpoint", nil)
		return
	}
	if !oci.ValidName(name) {
		c.fail(http.StatusBadRequest, codeNameInvalid, "a repository is named by lower-case letters and digits, with . _ __ or - inside and / between, at most 255 in all", nil)
		return
	}
	var allow []string
	for i := range endpoints {
		e := &endpoints[i]
		if e.rest != rest {
			continue
		}
		if e.method != c.r.Method {
			allow = append(allow, e.method)
			continue
		}
		c.name = name
		if c.authorize(*e) {
			e.serve(c, reference)
		}
		return
	}
	c.refuseMethod(strings.Join(allow, ", "))
}

func (c *call) refuseMethod(allow string) {
	c.w.Header().Set("Allow", allow)
	c.fail(http.StatusMethodNotAllowed, codeUnsupported, "this endpoint has no method "+c.r.Method, nil)
}

// atClose has Close break off this request's reading or writing until stop is
// called: setDeadline is the controller's method for one or the other. A
// connection without deadlines ends with its server.
func (c *call) atClose(setDeadline func(*http.ResponseController, time.Time) error) (stop func()) {
	control, done := http.NewResponseController(c.w), make(chan struct{})
	cancel := context.AfterFunc(c.ctx, func() {
		defer close(done)
		_ = setDeadline(control, time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-done // a ResponseWriter must not be touched after its request
		}
	}
}

// split takes the path behind "/v2/" apart: the repository's name, which of
// the specification's endpoints this is, and what it refers to (a digest, a
// tag, an upload). A name may hold words such as "blobs" itself, so the path is
// read from its end.
func split(path string) (name, rest, reference string, ok bool) {
	if before, found := strings.CutSuffix(path, "/blobs/uploads/"); found {
		return before, "uploads", "", true
	}
	if before, found := strings.CutSuffix(path, "/blobs/uploads"); found {
		return before, "uploads", "", true
	}
	if before, found := strings.CutSuffix(path, "/tags/list"); found {
		return before, "tags", "", true
	}
	slash := strings.LastIndexByte(path, '/')
	if slash < 0 {
		return "", "", "", false
	}
	path, reference = path[:slash], path[slash+1:]
	for _, word := range []string{"blobs/uploads", "blobs", "manifests", "referrers"} {
		if before, found := strings.CutSuffix(path, "/"+word); found && reference != "" {
			if word == "blobs/uploads" {
				word = "upload"
			}
			return before, word, reference, true
		}
	}
	return "", "", "", false
}
