package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// call is what is known of the request being served. One goroutine works on it
// at a time, but for who, which a stream renews.
type call struct {
	id      string // request id
	ip      string
	secure  bool // over TLS, at our listener or a trusted proxy's
	log     *slog.Logger
	request *http.Request
	route   *route
	secret  string       // the bearer token, as presented
	header  http.Header  // of the reply
	who     atomic.Value // identity; set once authenticated

	service    platform.Service    // scope service and deployment
	deployment platform.Deployment // scope deployment
	project    platform.Project    // scope project

	// For the audit row.
	actor    string      // who tried to, while there is no identity
	audited  platform.ID // project
	resource platform.ID
	code     string
}

// identity is a principal and the token that proved it.
type identity struct {
	platform.Principal
	token platform.Token // zero for the admin token
}

type callKey struct{}

func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

func (c *call) identity() identity {
	who, _ := c.who.Load().(identity)
	return who
}

func (c *call) action() string {
	if c.route == nil {
		return c.request.Method
	}
	return c.route.pattern()
}

// touch says what the call is about, for the audit.
func (c *call) touch(project, resource platform.ID) { c.audited, c.resource = project, resource }

func peer(r *http.Request) (string, bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr, false
	}
	return host, false
}

// ServeHTTP answers a request for /healthz or anything under /v1.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{log: a.Log, header: w.Header(), id: r.Header.Get("X-Request-Id")}
	if !requestIDShape.MatchString(c.id) {
		c.id = string(store.NewID())
	}
	ip, trusted := a.Client(r)
	c.ip = ip
	c.secure = r.TLS != nil || trusted && r.Header.Get("X-Forwarded-Proto") == "https"
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	c.request = r

	h := w.Header()
	h.Set("X-Request-Id", c.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if c.secure {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	defer a.survive(w, r)

	// The mux would redirect an unclean path and answer in plain text.
	if path.Clean(r.URL.Path) != r.URL.Path {
		fail(w, r, noSuchPath())
		return
	}
	if handler, pattern := a.mux.Handler(r); pattern == "" {
		refused := newReply()
		handler.ServeHTTP(refused, r)
		if refused.status == http.StatusMethodNotAllowed {
			h.Set("Allow", refused.header.Get("Allow"))
			fail(w, r, newProblemFor(c, http.StatusMethodNotAllowed, "method_not_allowed", "this path knows "+refused.header.Get("Allow")+" only"))
			return
		}
		fail(w, r, noSuchPath())
		return
	}
	a.mux.ServeHTTP(w, r)
}

func noSuchPath() error { return platform.NotFoundf("there is nothing at this path") }

func newProblemFor(c *call, status int, code, detail string) *problem {
	p := newProblem(status, code, detail)
	p.RequestID = c.id
	return p
}

// survive turns a panic into a 500 and a line in the log.
func (a *API) survive(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	c := callFrom(r.Context())
	a.Log.ErrorContext(r.Context(), "handler panicked", "request_id", c.id, "action", c.action(), "panic", v, "stack", string(debug.Stack()))
	fail(w, r, newProblemFor(c, http.StatusInternalServerError, "internal", "something went wrong inside Denia; its log tells more under this request_id"))
}

// serve takes one request through the gates.
func (a *API) serve(rt *route, w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	c.route = rt
	if err := a.admit(c); err != nil {
		fail(w, r, err)
		if kind := platform.KindOf(err); kind != platform.RateLimited && (isMutating(r.Method) || kind == platform.Forbidden) {
			a.audit(c, statusOf[kind])
		}
		return
	}
	if rt.plain != nil {
		watched := &statusWriter{ResponseWriter: w}
		rt.plain(a, watched, r)
		if isMutating(r.Method) {
			a.audit(c, watched.status)
		}
		return
	}
	out := &reply{header: w.Header().Clone()}
	c.header = out.header
	if body, err := readBody(w, r); err != nil {
		fail(out, r, err)
	} else {
		r.Body = io.NopCloser(bytes.NewReader(body))
		func() {
			defer a.survive(out, r)
			a.once(rt, out, r, body)
		}()
	}
	if isMutating(r.Method) {
		a.audit(c, out.status)
	}
	out.send(w, c.log)
}

const (
	maxBody     = 1 << 20
	bodyTimeout = 30 * time.Second // for the whole of a JSON body
)

// readBody reads a JSON body whole. Reading it here keeps every operation's
// limits, media type and errors the same.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || !isMutating(r.Method) {
		return nil, nil
	}
	// Not every ResponseWriter has deadlines; the server's own then hold.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = control.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, platform.Errorf(platform.TooLarge, "too_large", "the body is larger than %d bytes", maxBody)
	}
	if err != nil {
		return nil, platform.Wrap(err, platform.Malformed, "malformed", "the body could not be read to its end")
	}
	if len(body) == 0 {
		return nil, nil
	}
	if given := r.Header.Get("Content-Type"); given != "" {
		kind, params, err := mime.ParseMediaType(given)
		if charset := params["charset"]; err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return nil, platform.Errorf(platform.Unsupported, "unsupported_media_type", "the body must be application/json")
		}
		r.Header.Set("Content-Type", "application/json")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, platform.Errorf(platform.Unsupported, "unsupported_content_encoding", "the body must come without Content-Encoding")
	}
	return body, nil
}

// reply holds a JSON operation's answer until its audit row is written.
type reply struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newReply() *reply { return &reply{header: http.Header{}} }

func (p *reply) Header() http.Header { return p.header }

func (p *reply) WriteHeader(status int) {
	if p.status == 0 {
		p.status = status
	}
}

func (p *reply) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.body.Write(b)
}

func (p *reply) send(w http.ResponseWriter, log *slog.Logger) {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	w.WriteHeader(p.status)
	if _, err := p.body.WriteTo(w); err != nil {
		log.Debug("sending a reply failed", "error", err)
	}
}

// statusWriter remembers the status a plain handler answered.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusWriter) Write(b []byte) (int, error) {
	if s.status == 0 {
		s.status = http.StatusOK
	}
	return s.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the writer below.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
