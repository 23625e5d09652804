package caddymodule

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/denia-paas/denia/platform"
)

func init() {
	caddy.RegisterModule(new(Handler))
	caddy.RegisterModule(new(APIHandler))
	caddy.RegisterModule(new(IngressHandler))
	caddy.RegisterModule(new(RegistryHandler))
}

// Handler is `http.handlers.denia`. It answers the challenges of domains, at
// whichever host, and decides for all else, by host, whose request this is: the
// control host's go to the API and the registry, hosts in the route table to their
// services, and what is nobody's to the next handler; if there is none, Denia
// answers 404.
//
// Plain requests for verified domains go to https once there is a certificate.
type Handler struct {
	app       *App
	redirects bool
}

// APIHandler is `http.handlers.denia_api`: the API alone, whatever the host.
type APIHandler struct{ app *App }

// IngressHandler is `http.handlers.denia_ingress`: the services alone, and the
// challenges and redirects of their domains.
type IngressHandler struct {
	app       *App
	redirects bool
}

// RegistryHandler is `http.handlers.denia_registry`: the registry alone,
// whatever the host.
type RegistryHandler struct{ app *App }

// CaddyModule returns the module's id and constructor.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.denia", New: func() caddy.Module { return new(Handler) }}
}

// CaddyModule returns the module's id and constructor.
func (*APIHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.denia_api", New: func() caddy.Module { return new(APIHandler) }}
}

// CaddyModule returns the module's id and constructor.
func (*IngressHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.denia_ingress", New: func() caddy.Module { return new(IngressHandler) }}
}

// CaddyModule returns the module's id and constructor.
func (*RegistryHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.denia_registry", New: func() caddy.Module { return new(RegistryHandler) }}
}

// Provision finds the app.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	h.redirects = mayRedirect(ctx)
	h.app, err = provision(ctx)
	return err
}

// Provision finds the app.
func (h *APIHandler) Provision(ctx caddy.Context) (err error) {
	h.app, err = provision(ctx)
	return err
}

// Provision finds the app.
func (h *IngressHandler) Provision(ctx caddy.Context) (err error) {
	h.redirects = mayRedirect(ctx)
	h.app, err = provision(ctx)
	return err
}

// Provision finds the app.
func (h *RegistryHandler) Provision(ctx caddy.Context) (err error) {
	h.app, err = provision(ctx)
	return err
}

// provision finds the app, and sees to it that a server which shuts down
// because the process ends does not wait for streams that would never end.
func provision(ctx caddy.Context) (*App, error) {
	module, err := ctx.App("denia")
	if err != nil {
		return nil, fmt.Errorf("loading the app denia: %w", err)
	}
	app := module.(*App)
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		server.RegisterOnShutdown(func() {
			if engine := app.engine.Load(); engine != nil && caddy.Exiting() {
				engine.drain()
			}
		})
	}
	return app, nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	engine := h.app.acquire(w, r)
	if engine == nil {
		return starting(w)
	}
	defer engine.end()
	if isChallenge(r.URL.Path) && engine.api.ServeChallenge(w, r) {
		return nil
	}
	switch engine.owner(r.Host) {
	case controlHost:
		if isAPI(r.URL.Path) {
			engine.api.ServeHTTP(w, r)
			return nil
		}
		if isRegistry(r.URL.Path) {
			engine.serveRegistry(w, r)
			return nil
		}
	case serviceHost:
		if h.redirects && engine.redirect(w, r) {
			return nil
		}
		engine.ingress.ServeHTTP(w, r)
		return nil
	}
	if err := next.ServeHTTP(w, r); err != nil {
		return err
	}
	if unhandled, _ := caddyhttp.GetVar(r.Context(), "unhandled").(bool); unhandled {
		engine.ingress.ServeHTTP(w, r) // answers 404 to hosts it does not know
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *APIHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	engine := h.app.acquire(w, r)
	if engine == nil {
		return starting(w)
	}
	defer engine.end()
	if !isAPI(r.URL.Path) {
		return next.ServeHTTP(w, r)
	}
	engine.api.ServeHTTP(w, r)
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *RegistryHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	engine := h.app.acquire(w, r)
	if engine == nil {
		return starting(w)
	}
	defer engine.end()
	if !isRegistry(r.URL.Path) {
		return next.ServeHTTP(w, r)
	}
	engine.serveRegistry(w, r)
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *IngressHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	engine := h.app.acquire(w, r)
	if engine == nil {
		return starting(w)
	}
	defer engine.end()
	if isChallenge(r.URL.Path) && engine.api.ServeChallenge(w, r) {
		return nil
	}
	if !engine.ingress.Has(r.Host) {
		return next.ServeHTTP(w, r)
	}
	if h.redirects && engine.redirect(w, r) {
		return nil
	}
	engine.ingress.ServeHTTP(w, r)
	return nil
}

// acquire returns the Engine and counts a request on it, so that it is not
// closed under the request: the caller owes it an end. Before the app has
// started, which Caddy may do after it has begun to listen, the request waits.
// It returns nil when the app does not start and when the Engine is closing.
func (a *App) acquire(w http.ResponseWriter, r *http.Request) *Engine {
	engine := a.engine.Load()
	if engine == nil {
		select {
		case <-a.started:
		case <-r.Context().Done():
		}
		engine = a.engine.Load()
	}
	if engine == nil || !engine.begin() {
		return nil
	}
	sayLast(w, r)
	return engine
}

func starting(w http.ResponseWriter) error {
	w.Header().Set("Retry-After", "1")
	return caddyhttp.Error(http.StatusServiceUnavailable, fmt.Errorf("denia is starting or stopping"))
}

func isAPI(path string) bool {
	return path == "/healthz" || path == "/v1" || strings.HasPrefix(path, "/v1/")
}

func isChallenge(path string) bool { return strings.HasPrefix(path, platform.ChallengePath) }

func isRegistry(path string) bool {
	return path == "/v2" || strings.HasPrefix(path, "/v2/")
}

type owner int

const (
	nobody owner = iota
	controlHost
	serviceHost
)

// owner decides whose a request for the host is. This is the one place where
// that is decided.
func (e *Engine) owner(host string) owner {
	if control := *e.controlDomain.Load(); control != "" {
		if sameHost(host, control) {
			return controlHost
		}
	} else if isLocal(host) {
		return controlHost
	}
	if e.ingress.Has(host) {
		return serviceHost
	}
	return nobody
}

func sameHost(host, want string) bool {
	return strings.EqualFold(bareHost(host), want)
}

// isLocal tells localhost and IP literals.
func isLocal(host string) bool {
	host = bareHost(host)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	if host == "" || (host[0] < '0' || host[0] > '9') && !strings.Contains(host, ":") {
		return false
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// bareHost strips port, brackets and a trailing dot.
func bareHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	return strings.TrimSuffix(strings.Trim(host, "[]"), ".")
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddy.Provisioner           = (*APIHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*APIHandler)(nil)
	_ caddy.Provisioner           = (*IngressHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*IngressHandler)(nil)
	_ caddy.Provisioner           = (*RegistryHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*RegistryHandler)(nil)
)
