package api_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform/api"
)

// later names what the contract promises and is not built: whole sections, and
// rows of built ones. A row that gets built has to leave this list.
var (
	laterSections = map[string]bool{
		"Jobs": true, "Console": true, "Registries & credentials": true,
	}
	laterRows = map[string]bool{
		"GET /v1/services/{id}/metrics": true,
	}
)

// besides are the rows the contract promises below its table.
var besides = []string{
	"POST /v1/auth/logout any token", "GET /v1/auth/sessions any token", "DELETE /v1/auth/sessions/{id} owner",
	"PUT /v1/users/{user_id} owner",
	"POST /v1/services/{id}/start Operator", "POST /v1/services/{id}/stop Operator",
	"GET /v1/services/{id}/requests/stream Viewer",
	"POST /v1/services/{id}/restart Operator", "POST /v1/services/{id}/scale Operator",
	"POST /v1/deployments/{id}/cancel Operator",
	"GET /v1/events any token", "GET /v1/audit Admin", "GET /v1/ingress/routes super-admin", "GET /v1/openapi.json public",
}

var contractRow = regexp.MustCompile("^\\| ([A-Z]+(?: / [A-Z]+)*) \\| `([^`]+)` \\| ([^|]+) \\|")

// promised reads testdata/contract.md, the contract's own table, into
// "VERB path least role".
func promised(t *testing.T) (built, later map[string]string) {
	t.Helper()
	text, err := os.ReadFile("testdata/contract.md")
	if err != nil {
		t.Fatal(err)
	}
	built, later = map[string]string{}, map[string]string{}
	section := ""
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| **") {
			section, _, _ = strings.Cut(strings.TrimPrefix(line, "| **"), "**")
			continue
		}
		match := contractRow.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		verbs, roles := strings.Split(match[1], " / "), strings.Split(match[3], " / ")
		for i, verb := range verbs {
			role := roles[min(i, len(roles)-1)]
			switch {
			case strings.HasPrefix(role, "public"):
				role = "public"
			case role == "Admin" && strings.HasPrefix(match[2], "/v1/users"):
				role = "super-admin" // the contract says so below the table
			}
			row := verb + " " + match[2]
			if laterSections[section] || laterRows[row] {
				later[row] = role
			} else {
				built[row] = role
			}
		}
	}
	for _, row := range besides {
		verb, rest, _ := strings.Cut(row, " ")
		path, role, _ := strings.Cut(rest, " ")
		built[verb+" "+path] = role
	}
	if len(built) < 45 || len(later) < 15 {
		t.Fatalf("read %d built and %d later rows out of the contract: is the table still there?", len(built), len(later))
	}
	return built, later
}

// The contract's table, the route table and the OpenAPI document say the same.
func TestContractTableDocumentAndRouterAgree(t *testing.T) {
	built, later := promised(t)
	raw, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Summary   string
			Role      string `json:"x-least-role"`
			Responses map[string]any
			Security  *[]any
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("the document is OpenAPI %q", doc.OpenAPI)
	}
	served := map[string]api.Row{}
	for _, row := range api.Table() {
		served[row.Method+" "+row.Path] = row
		if _, ok := built[row.Method+" "+row.Path]; !ok {
			t.Errorf("%s %s is served, but nobody promised it", row.Method, row.Path)
		}
	}
	documented := 0
	for _, verbs := range doc.Paths {
		documented += len(verbs)
	}
	if documented != len(served) {
		t.Errorf("%d operations are documented, %d served", documented, len(served))
	}
	for row, role := range built {
		if served[row].Least != role {
			t.Errorf("%s: least role %q, promised %q", row, served[row].Least, role)
		}
		verb, path, _ := strings.Cut(row, " ")
		o, ok := doc.Paths[path][strings.ToLower(verb)]
		if !ok || o.Role != role || o.Summary == "" {
			t.Errorf("%s: the document says %+v", row, o)
		}
		if _, ok := o.Responses[fmt.Sprint(served[row].Status)]; !ok {
			t.Errorf("%s: the document does not describe status %d", row, served[row].Status)
		}
		if public := o.Security != nil && len(*o.Security) == 0; public != (role == "public") {
			t.Errorf("%s: documented as public: %t", row, public)
		}
	}
	e := newEnv(t)
	token := e.super()
	for row := range later {
		verb, path, _ := strings.Cut(row, " ")
		if strings.HasPrefix(path, "/v1/") {
			if a := e.do(token, verb, path, nil); a.status != 404 && a.status != 405 {
				t.Errorf("%s answers %d: take it off the list of what comes later", row, a.status)
			}
		}
	}
}

// Replies hold to the schemas of the document: every field that is described
// as required is there, and no other field is.
func TestRepliesFitTheirSchemas(t *testing.T) {
	e := newEnv(t)
	s := e.service(e.project("shop"), "web")
	e.deployment(s)
	token := e.super()
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]any
			}
		}
	}
	if err := json.Unmarshal(e.do("", "GET", "/v1/openapi.json", nil).want(200).body, &doc); err != nil {
		t.Fatal(err)
	}
	for path, schema := range map[string]string{
		"/healthz": "HealthBody", "/v1/node": "Node", "/v1/me": "Principal", "/v1/projects/shop": "Project",
		"/v1/services/shop:web": "Service", "/v1/nowhere": "Problem",
		"/v1/registry/status": "RegistryStatus", "/v1/oci/cache/status": "CacheStatus",
	} {
		reply, _ := e.do(token, "GET", path, nil).field().(map[string]any)
		known := doc.Components.Schemas[schema]
		if len(known.Properties) == 0 {
			t.Fatalf("no schema %s", schema)
		}
		for _, field := range known.Required {
			if _, ok := reply[field]; !ok {
				t.Errorf("%s: required field %s is missing", path, field)
			}
		}
		for field := range reply {
			if _, ok := known.Properties[field]; !ok {
				t.Errorf("%s: field %s is not described", path, field)
			}
		}
	}
}

func TestReferenceNamesEveryRoute(t *testing.T) {
	var out strings.Builder
	if err := api.WriteReference(&out); err != nil {
		t.Fatal(err)
	}
	for _, row := range api.Table() {
		if !strings.Contains(out.String(), fmt.Sprintf("### %s `%s`\n", row.Method, row.Path)) {
			t.Errorf("%s %s is not in the reference", row.Method, row.Path)
		}
	}
}
