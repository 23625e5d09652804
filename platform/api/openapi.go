package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// handlers takes from huma what it would put into a mux, so that the gates can
// stand in front of it.
type handlers map[string]http.HandlerFunc

func (h handlers) HandleFunc(pattern string, f func(http.ResponseWriter, *http.Request)) {
	h[pattern] = f
}

func (handlers) ServeHTTP(http.ResponseWriter, *http.Request) {}

// describeRoutes registers every route with huma: its document and, in run,
// its JSON operations.
func (a *API) describeRoutes(table []*route) *huma.OpenAPI {
	made := handlers{}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Denia", Version: "v1",
				Description: "Errors are application/problem+json (RFC 9457) with a stable code. Lists take limit and cursor and answer a Link header. " +
					"Objects carry an ETag; updates honour If-Match. POSTs that create honour Idempotency-Key for 24 hours. " +
					"X-Request-Id is taken from the request or made, and sent back.",
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "Admin token, session (dn_ses_…) or API token (dn_api_…)."},
				},
			},
			Security: []map[string][]string{{"bearer": {}}},
		},
		Formats: map[string]huma.Format{
			"application/json": {Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: decode},
			"json":             {Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: decode}, // application/problem+json
		},
		DefaultFormat: "application/json",
	}
	for _, rt := range table {
		if !slices.ContainsFunc(config.Tags, func(t *huma.Tag) bool { return t.Name == rt.section }) {
			config.Tags = append(config.Tags, &huma.Tag{Name: rt.section})
		}
	}
	h := humago.New(made, config)
	for _, rt := range table {
		o := rt.describe()
		if rt.operation != nil {
			rt.operation(a, h, o)
			rt.run = made[rt.pattern()]
			continue
		}
		registry := h.OpenAPI().Components.Schemas
		o.Responses = map[string]*huma.Response{}
		addParams(&o, rt)
		rt.document(registry, &o)
		problems(registry, &o)
		h.OpenAPI().AddOperation(&o)
	}
	return h.OpenAPI()
}

// describe is what the table says about an operation.
func (rt *route) describe() huma.Operation {
	o := huma.Operation{
		OperationID: rt.id, Method: rt.method, Path: rt.path, Summary: rt.summary, Description: rt.about, Tags: []string{rt.section},
		DefaultStatus: rt.status, Errors: rt.errors(),
		// The gates have read and bounded the body before huma sees it.
		MaxBodyBytes: maxBody + 1, BodyReadTimeout: -1,
		Extensions: map[string]any{"x-least-role": rt.least.String()},
	}
	if rt.least == public {
		o.Security = []map[string][]string{}
	}
	if rt.creates {
		o.Parameters = append(o.Parameters, headerParam("Idempotency-Key", "The same key and body within 24 hours get the first reply again; another body is a 422."))
	}
	return o
}

// errors are the statuses a client has to expect besides success.
func (rt *route) errors() []int {
	var list []int
	add := func(when bool, statuses ...int) {
		if when {
			list = append(list, statuses...)
		}
	}
	writes := rt.method == post || rt.method == put
	add(writes, http.StatusBadRequest)
	add(rt.least != public || rt.limit == limitLogin, http.StatusUnauthorized)
	add(rt.least > anyToken, http.StatusForbidden)
	add(rt.scope >= inBody || strings.Contains(rt.path, "{"), http.StatusNotFound)
	add(rt.method != get, http.StatusConflict)
	add(rt.method == put || rt.method == del, http.StatusPreconditionFailed)
	add(writes, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	add(rt.limit != limitNone, http.StatusUnprocessableEntity, http.StatusTooManyRequests)
	return append(list, http.StatusInternalServerError)
}

func problems(registry huma.Registry, o *huma.Operation) {
	schema := registry.Schema(reflect.TypeFor[problem](), true, "Problem")
	for _, status := range o.Errors {
		o.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content:     map[string]*huma.MediaType{problemType: {Schema: schema}},
		}
	}
}

// router builds the mux and the document from the table.
func (a *API) router() (*http.ServeMux, []byte, error) {
	table := routes()
	doc, err := marshalOpenAPI(a.describeRoutes(table))
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	for _, rt := range table {
		if rt.run == nil && rt.plain == nil {
			return nil, nil, fmt.Errorf("route %s has no handler", rt.pattern())
		}
		mux.HandleFunc(rt.pattern(), func(w http.ResponseWriter, r *http.Request) { a.serve(rt, w, r) })
	}
	return mux, doc, nil
}

// OpenAPI returns the OpenAPI 3.1 document of the API, as JSON.
func OpenAPI() ([]byte, error) {
	return marshalOpenAPI((&API{}).describeRoutes(routes()))
}

// nullableObjects are the fields that hold an object or null, which huma
// cannot say: schema → fields.
var nullableObjects = map[string][]string{
	"Service":    {"source", "auto_rollback"},
	"Deployment": {"artifact", "error"},
	"DoneEvent":  {"error"},
	"Artifact":   {"source"},
	"Domain":     {"last_error"},

	"RegistryStatus": {"last_gc"},
	"CacheStatus":    {"last_gc"},
}

func marshalOpenAPI(doc *huma.OpenAPI) ([]byte, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("writing the OpenAPI document: %w", err)
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI document back: %w", err)
	}
	schemas := tree["components"].(map[string]any)["schemas"].(map[string]any)
	for name, fields := range nullableObjects {
		properties := schemas[name].(map[string]any)["properties"].(map[string]any)
		for _, field := range fields {
			property := properties[field].(map[string]any)
			property["anyOf"] = []any{map[string]any{"$ref": property["$ref"]}, map[string]any{"type": "null"}}
			delete(property, "$ref")
		}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(tree); err != nil {
		return nil, fmt.Errorf("writing the OpenAPI document: %w", err)
	}
	return out.Bytes(), nil
}

func (a *API) serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/openapi+json")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(a.openapi) // the client is gone: nobody is left to tell
}

func documentOpenAPI(_ huma.Registry, o *huma.Operation) {
	o.Responses["200"] = &huma.Response{
		Description: "The document.",
		Content:     map[string]*huma.MediaType{"application/openapi+json": {Schema: &huma.Schema{Type: huma.TypeObject}}},
	}
}

func headerParam(name, about string) *huma.Param {
	return &huma.Param{Name: name, In: "header", Description: about, Schema: &huma.Schema{Type: huma.TypeString}}
}

func queryParam(name, about string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: about, Schema: &huma.Schema{Type: huma.TypeString}}
}

func addParams(o *huma.Operation, rt *route) {
	about := "Service, by id or as project:name."
	if rt.scope == ofDeployment {
		about = "The deployment's id."
	}
	if strings.Contains(rt.path, "{id}") {
		o.Parameters = append(o.Parameters, &huma.Param{Name: "id", In: "path", Required: true, Description: about, Schema: &huma.Schema{Type: huma.TypeString}})
	}
}

func backlogParams() []*huma.Param {
	return []*huma.Param{
		queryParam("tail", "How many stored lines come first, or all; default 200, or all that follow since."),
		queryParam("since", "From when on: an RFC 3339 time, or a duration back from now such as 10m."),
		queryParam("replica", "Only this replica: <release number>.<index>."),
		queryParam("stream", "Only stdout, stderr or system."),
	}
}

func documentLogs(registry huma.Registry, o *huma.Operation) {
	o.Description = "Lines outlive their containers. The newest lines that match, at most 10000, oldest first."
	o.Parameters = append(append(o.Parameters, backlogParams()...),
		queryParam("until", "Until when: as since."),
		queryParam("grep", "Only lines that contain this."))
	line := registry.Schema(reflect.TypeFor[logLine](), true, "LogLine")
	o.Responses["200"] = &huma.Response{
		Description: "The lines; as text with Accept: text/plain.",
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{Type: huma.TypeArray, Items: line}},
			"text/plain":       {Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}
}

func documentStream(o *huma.Operation, about string) {
	o.Description = about + " Each event has an id; Last-Event-ID resumes after it. A comment comes every 15 seconds. " +
		"The stream ends when the caller loses the right to it, or Denia shuts down."
	o.Parameters = append(o.Parameters, headerParam("Last-Event-ID", "Go on after this event."))
	o.Responses["200"] = &huma.Response{
		Description: "Server-Sent Events.",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
}

func documentServiceStream(registry huma.Registry, o *huma.Operation) {
	registry.Schema(reflect.TypeFor[logLine](), true, "LogLine")
	o.Parameters = append(o.Parameters, backlogParams()...)
	documentStream(o, "`event: log` with a LogLine.")
}

func documentRequestStream(registry huma.Registry, o *huma.Operation) {
	registry.Schema(reflect.TypeFor[requestEntry](), true, "RequestEntry")
	o.Parameters = append(o.Parameters,
		queryParam("limit", "How many stored ones come first, 0 to 200; default 50."),
		queryParam("status", "Only this status, such as 404, or class, such as 5xx."),
		queryParam("method", "Only this method."),
		queryParam("path", "Only paths that begin so, percent-encoded as they were sent."),
		queryParam("since", "From when on: an RFC 3339 time, or a duration back from now such as 10m."))
	documentStream(o, "`event: request` with a RequestEntry, at the latest half a second after it ended.")
}

func documentDeploymentStream(registry huma.Registry, o *huma.Operation) {
	registry.Schema(reflect.TypeFor[doneEvent](), true, "DoneEvent")
	o.Parameters = append(o.Parameters, backlogParams()...)
	documentStream(o, "`event: log` with a LogLine, `event: status` with the Deployment, at the end `event: done` with a DoneEvent, then the stream ends. "+
		"Of a deployment that has ended already, the whole log is sent.")
}

func documentEvents(registry huma.Registry, o *huma.Operation) {
	registry.Schema(reflect.TypeFor[serviceEvent](), true, "ServiceEvent")
	documentStream(o, "`event: service` with a ServiceEvent and `event: deployment` with a Deployment, of the projects you belong to. "+
		"`event: reset` says that events were missed: read everything again.")
}

func documentUpload(registry huma.Registry, o *huma.Operation) {
	o.Description = "The body is streamed to disk and checked on the way: tar, compressed with zstd or gzip if you like. " +
		"An upload is bound to its service, used by one deployment, and kept for an hour. Expect: 100-continue is honoured."
	o.Parameters = append(o.Parameters,
		headerParam("Content-Digest", "Checked if sent (RFC 9530)."),
		headerParam("Repr-Digest", "Checked if sent (RFC 9530)."))
	binary := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	o.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		"application/zstd": binary, "application/gzip": binary, "application/x-tar": binary,
	}}
	o.Responses["201"] = &huma.Response{
		Description: "Stored.",
		Headers:     map[string]*huma.Param{"Location": {Schema: &huma.Schema{Type: huma.TypeString}}},
		Content:     map[string]*huma.MediaType{"application/json": {Schema: registry.Schema(reflect.TypeFor[upload](), true, "Upload")}},
	}
}
