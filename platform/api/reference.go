package api

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// WriteReference writes the reference of the API as Markdown, from the same
// table and document that serve it.
func WriteReference(w io.Writer) error {
	table := routes()
	doc := (&API{}).describeRoutes(table)
	var out bytes.Buffer
	out.WriteString("# API reference\n\nMade from the code by `make docs`; do not edit. The same as an OpenAPI document: [openapi.json](openapi.json), and `GET /v1/openapi.json`. What holds for every route, and examples: [services.md](services.md) and [operations.md](operations.md).\n\n")
	section := ""
	for _, rt := range table {
		if rt.section != section {
			section = rt.section
			fmt.Fprintf(&out, "## %s\n\n", section)
		}
		writeOperation(&out, rt, operationOf(doc, rt))
	}
	out.WriteString("## Objects\n\n")
	schemas := doc.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		writeSchema(&out, name, schemas[name])
	}
	_, err := out.WriteTo(w)
	return err
}

func operationOf(doc *huma.OpenAPI, rt *route) *huma.Operation {
	item := doc.Paths[rt.path]
	switch rt.method {
	case get:
		return item.Get
	case post:
		return item.Post
	case put:
		return item.Put
	}
	return item.Delete
}

func writeOperation(out *bytes.Buffer, rt *route, o *huma.Operation) {
	fmt.Fprintf(out, "### %s `%s`\n\n%s.", rt.method, rt.path, rt.summary)
	if o.Description != "" {
		out.WriteString(" " + o.Description)
	}
	fmt.Fprintf(out, "\n\nLeast role: %s", rt.least)
	if rt.creates {
		out.WriteString(" · honours `Idempotency-Key`")
	}
	out.WriteString("\n\n")
	if len(o.Parameters) > 0 {
		out.WriteString("| parameter | in | |\n|---|---|---|\n")
		for _, p := range o.Parameters {
			fmt.Fprintf(out, "| `%s` | %s | %s |\n", p.Name, p.In, cell(p.Description+defaultOf(p.Schema)))
		}
		out.WriteString("\n")
	}
	if o.RequestBody != nil {
		fmt.Fprintf(out, "Request: %s\n\n", contents(o.RequestBody.Content))
	}
	for _, status := range slices.Sorted(maps.Keys(o.Responses)) {
		if strings.HasPrefix(status, "2") {
			fmt.Fprintf(out, "Answers `%s`%s\n\n", status, prefixed(": ", contents(o.Responses[status].Content)))
		}
	}
}

// contents names the bodies an operation takes or gives.
func contents(content map[string]*huma.MediaType) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(content)) {
		part := "`" + kind + "`"
		if kind == "application/json" {
			part = typeOf(content[kind].Schema)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func writeSchema(out *bytes.Buffer, name string, s *huma.Schema) {
	fmt.Fprintf(out, "### %s\n\n| field | type | |\n|---|---|---|\n", name)
	nullable := nullableObjects[name]
	for _, field := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[field]
		about := p.Description
		if p.ReadOnly {
			about = strings.TrimSpace("Read-only. " + about)
		}
		kind := typeOf(p)
		if slices.Contains(nullable, field) {
			kind += " or null"
		}
		fmt.Fprintf(out, "| `%s` | %s | %s |\n", field, cell(kind), cell(about+defaultOf(p)))
	}
	out.WriteString("\n")
}

func typeOf(s *huma.Schema) string {
	kind := s.Type
	switch {
	case s.Ref != "":
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name))
	case s.Type == huma.TypeArray:
		return "array of " + typeOf(s.Items)
	case len(s.Enum) > 0:
		words := make([]string, len(s.Enum))
		for i, word := range s.Enum {
			words[i] = fmt.Sprintf("`%v`", word)
		}
		kind = strings.Join(words, ", ")
	case s.Format == "date-time":
		kind = "time"
	}
	if values, ok := s.AdditionalProperties.(*huma.Schema); ok {
		kind = "object of " + typeOf(values)
	}
	if s.Nullable {
		kind += " or null"
	}
	return kind
}

func defaultOf(s *huma.Schema) string {
	if s == nil || s.Default == nil {
		return ""
	}
	return fmt.Sprintf(" Default `%v`.", s.Default)
}

// cell makes text fit into a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(strings.TrimSpace(text))
}
