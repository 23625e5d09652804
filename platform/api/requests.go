package api

import (
	"context"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

type requestEntry struct {
	TS        timestamp   `json:"ts" doc:"When it ended; it began duration_ms before."`
	ServiceID platform.ID `json:"service_id"`
	Method    string      `json:"method"`
	Host      string      `json:"host" doc:"As in the request, with the port if it had one."`
	Path      string      `json:"path" doc:"As it was sent, percent-encoded; cut after 1024 bytes."`
	Query     string      `json:"query_redacted" doc:"Values of parameters that look secret are ***; cut after 1024 bytes."`
	Status    int         `json:"status" doc:"Of the answer; 101 for a WebSocket, 499 when the client left before there was one."`
	BytesIn   int64       `json:"bytes_in" doc:"Of the request's body, as far as it was read."`
	BytesOut  int64       `json:"bytes_out" doc:"Of the answer's body, as far as it was written."`

	DurationMS float64 `json:"duration_ms" doc:"From the request's header to the answer's end."`
	UpstreamMS float64 `json:"upstream_ms" doc:"Of that, until a replica answered, without waited_ms; all attempts together."`
	WaitedMS   float64 `json:"waited_ms" doc:"Of that, for a replica to be ready."`
	ColdStart  bool    `json:"cold_start" doc:"No replica was ready when it came, and it was sent to the first that was."`

	Replica   string      `json:"replica" doc:"Who answered: <release number>.<index>; empty when Denia answered itself."`
	ReleaseID platform.ID `json:"release_id" doc:"The deployment it was last sent to; empty for none."`
	RemoteIP  string      `json:"remote_ip" doc:"The client's, behind trusted proxies."`
	UserAgent string      `json:"user_agent" doc:"Cut after 256 bytes."`
	Protocol  string      `json:"protocol" doc:"Of the client: HTTP/1.1, HTTP/2.0, HTTP/3.0, or websocket."`
	RequestID string      `json:"request_id" doc:"As the replica got it in X-Request-Id."`
	Error     string      `json:"error" doc:"Why Denia answered itself, such as no_ready_replica or replica_failed; client_gone or broken_off when an answer was cut short; else empty."`
}

func requestView(service platform.ID) func(platform.AccessEntry) requestEntry {
	return func(e platform.AccessEntry) requestEntry {
		return requestEntry{
			TS: timestamp{e.TS}, ServiceID: service, Method: e.Method, Host: e.Host, Path: e.Path, Query: e.Query,
			Status: e.Status, BytesIn: e.BytesIn, BytesOut: e.BytesOut,
			DurationMS: milliseconds(e.Duration), UpstreamMS: milliseconds(e.Upstream), WaitedMS: milliseconds(e.Waited), ColdStart: e.ColdStart,
			Replica: e.Replica, ReleaseID: e.Release, RemoteIP: e.RemoteIP, UserAgent: e.UserAgent, Protocol: e.Protocol, RequestID: e.RequestID, Error: e.Error,
		}
	}
}

// milliseconds has three digits behind the point.
func milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

// RequestFilter says which requests are wanted. It is exported, like Paging,
// for huma.
type RequestFilter struct {
	Status string `query:"status" doc:"Only this status, such as 404, or class, such as 5xx."`
	Method string `query:"method" doc:"Only this method."`
	Path   string `query:"path" doc:"Only paths that begin so, percent-encoded as they were sent."`
	Since  string `query:"since" doc:"From when on: an RFC 3339 time, or a duration back from now such as 10m."`
}

var (
	statusShape = regexp.MustCompile(`^[1-5]([0-9]{2}|xx)$`)
	methodShape = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}$")
)

func (f *RequestFilter) query(limit int) (telemetry.RequestQuery, error) {
	q := telemetry.RequestQuery{Limit: limit, Method: strings.ToUpper(f.Method), Path: f.Path}
	switch class, isClass := strings.CutSuffix(f.Status, "xx"); {
	case f.Status == "":
	case !statusShape.MatchString(f.Status):
		return q, platform.InvalidField("status", "bad_value", "must be a status such as 404, or a class such as 5xx")
	case isClass:
		q.Class = int(class[0] - '0')
	default:
		q.Status, _ = strconv.Atoi(f.Status) // three digits
	}
	if f.Method != "" && !methodShape.MatchString(f.Method) {
		return q, platform.InvalidField("method", "bad_value", "must be a method such as GET")
	}
	if f.Path != "" && (!strings.HasPrefix(f.Path, "/") || len(f.Path) > 1024) {
		return q, platform.InvalidField("path", "bad_value", "must begin with / and have at most 1024 bytes")
	}
	var err error
	q.Since, err = timeParam(url.Values{"since": {f.Since}}, "since")
	return q, err
}

type requestsInput struct {
	ServiceRef
	Paging
	RequestFilter
}

// listRequests answers stored entries.
func (a *API) listRequests(ctx context.Context, in *requestsInput) (*listing[requestEntry], error) {
	c := callFrom(ctx)
	q, err := in.query(in.Limit)
	if err != nil {
		return nil, err
	}
	select { // a filter may read all there is
	case a.logReads <- struct{}{}:
		defer func() { <-a.logReads }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	rows, next, err := a.Requests.Read(c.service.ID, q, telemetry.Cursor(in.Cursor))
	if err != nil {
		return nil, err
	}
	return listed(c, rows, string(next), requestView(c.service.ID)), nil
}

// streamRequests sends entries as they come, for as long as the client stays.
func (a *API) streamRequests(w http.ResponseWriter, r *http.Request) {
	c := callFrom(r.Context())
	values := r.URL.Query()
	filter := RequestFilter{Status: values.Get("status"), Method: values.Get("method"), Path: values.Get("path"), Since: values.Get("since")}
	limit := 50
	if text := values.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 200 {
			fail(w, r, platform.InvalidField("limit", "out_of_range", "must be 0 to 200"))
			return
		}
		limit = n
	}
	q, err := filter.query(limit)
	if err != nil {
		fail(w, r, err)
		return
	}
	// Whoever has the status misses nothing from then on.
	entries, stop, err := a.follow(r.Context(), telemetry.Cursor(lastEventID(r)), func(ctx context.Context, after telemetry.Cursor) (*telemetry.Follower, error) {
		return a.Requests.Follow(ctx, c.service.ID, after, q)
	})
	if err != nil {
		fail(w, r, err)
		return
	}
	defer stop()
	view := requestView(c.service.ID)
	a.stream(w, r, func(ctx context.Context, out *sse) error {
		return relay(ctx, out, entries, func(e entry) error {
			request, ok := telemetry.RequestOf(e.line)
			if !ok {
				return nil
			}
			return out.event(string(e.cursor), "request", view(request))
		})
	})
}
