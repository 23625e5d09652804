package ingress

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// refusal is why Denia itself answers a request. It is immutable.
type refusal struct {
	status     int
	code       string // stable snake_case
	title      string
	detail     string
	retryAfter int // seconds; 0 for none
}

var (
	refuseUnknown = &refusal{
		status: http.StatusNotFound, code: "unknown_host", title: "Nothing is served here",
		detail: "Denia knows no service under this host name.",
	}
	refuseConnect = &refusal{
		status: http.StatusMethodNotAllowed, code: "method_not_allowed", title: "Method not allowed",
		detail: "Denia does not serve as a tunnel.",
	}
	refuseShutdown = &refusal{
		status: http.StatusServiceUnavailable, code: "shutting_down", title: "Just a moment",
		detail: "Denia is being restarted on this machine. Try again in a few seconds.", retryAfter: 5,
	}
	// refuseGone is for a client that has left; it is never seen. The status
	// is the one that access logs use for it by custom.
	refuseGone = &refusal{status: 499, code: "client_gone"}

	refuseRequest = &refusal{
		status: http.StatusBadRequest, code: "bad_request", title: "This cannot be forwarded",
		detail: "The request's line or header is not what an HTTP request to a service may have.",
	}
	refuseBody = &refusal{
		status: http.StatusBadRequest, code: "body_incomplete", title: "The request ended early",
		detail: "The request body could not be read to its announced end.",
	}
	refuseStalled = &refusal{
		status: http.StatusRequestTimeout, code: "body_stalled", title: "The request stalled",
		detail: "Nothing more of the request body came for longer than the server's configuration allows (read_body_idle).",
	}
)

func refuseStopped(service string) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, code: "stopped", title: "Stopped",
		detail: fmt.Sprintf("The service %s has been stopped.", service), retryAfter: 60,
	}
}

func refuseUndeployed(service string) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, code: "not_deployed", title: "Not deployed yet",
		detail: fmt.Sprintf("The service %s has not been deployed yet.", service), retryAfter: 10,
	}
}

func refuseTimeout(service string, waited time.Duration) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, code: "no_ready_replica", title: "Not ready",
		detail: fmt.Sprintf("No replica of the service %s became ready within %v.", service, waited), retryAfter: 5,
	}
}

func refuseCrowd(service string, waiting int) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, code: "too_many_waiting", title: "Too many requests are waiting",
		detail: fmt.Sprintf("No replica of the service %s is ready, and %d requests are waiting for one already.", service, waiting), retryAfter: 5,
	}
}

// refuseBroken is for a request that may have reached a replica, but got no
// answer. repeated tells that it was sent more than once.
func refuseBroken(service string, repeated bool) *refusal {
	f := &refusal{status: http.StatusBadGateway, code: "replica_failed", title: "No answer"}
	if repeated {
		f.detail = fmt.Sprintf("The replicas of the service %s gave no proper answer. Denia sent the request several times.", service)
	} else {
		f.detail = fmt.Sprintf("A replica of the service %s gave no proper answer. "+
			"The request may have taken effect there, so Denia did not send it again.", service)
	}
	return f
}

func refuseTooLarge(limit int64) *refusal {
	return &refusal{
		status: http.StatusRequestEntityTooLarge, code: "body_too_large", title: "The request is too large",
		detail: fmt.Sprintf("The server's configuration allows request bodies of at most %d bytes.", limit),
	}
}

var htmlPage = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex"><title>{{.Status}} {{.Title}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:20vh auto 0;padding:0 1rem;color:#222;background:#fff}
small{color:#666}@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}small{color:#999}}</style></head>
<body><h1>{{.Title}}</h1><p>{{.Detail}}</p><p><small>{{.Status}} from Denia &middot; request {{.RequestID}}</small></p></body></html>
`))

// page is a refusal as it is written out, an RFC 9457 problem document among
// others.
type page struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

// write answers a request with f, as JSON, HTML or text by what it accepts.
func (f *refusal) write(w http.ResponseWriter, r *http.Request, id string) {
	if f == refuseGone {
		w.WriteHeader(f.status)
		return
	}
	p := page{Type: "about:blank", Title: f.title, Status: f.status, Detail: f.detail, Code: f.code, RequestID: id}
	h := w.Header()
	h.Set("X-Request-Id", id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if f.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retryAfter))
	}
	if f.status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
	}
	// Whether the client hears the page to its end is no concern of ours.
	accept := strings.Join(r.Header["Accept"], ",")
	switch {
	case strings.Contains(accept, "json"):
		h.Set("Content-Type", "application/problem+json")
		w.WriteHeader(f.status)
		_ = json.NewEncoder(w).Encode(p)
	case strings.Contains(accept, "text/html"):
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(f.status)
		_ = htmlPage.Execute(w, p)
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(f.status)
		fmt.Fprintf(w, "%d %s: %s\nfrom Denia, request %s\n", p.Status, p.Title, p.Detail, p.RequestID)
	}
}
