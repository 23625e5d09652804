package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// timestamp is a time as the API writes it: RFC 3339, UTC, milliseconds.
type timestamp struct{ time.Time }

const timestampLayout = "2006-01-02T15:04:05.000Z"

// MarshalJSON writes the time.
func (t timestamp) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(timestampLayout) + `"`), nil
}

// Schema describes it to huma.
func (timestamp) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time"}
}

func timestampOf(t *time.Time) *timestamp {
	if t == nil {
		return nil
	}
	return &timestamp{*t}
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// object, created and listing are the shapes of replies.
type object[T any] struct {
	ETag string `header:"ETag" doc:"The version of the object, for If-Match."`
	Body T
}

type created[T any] struct {
	Location string `header:"Location" doc:"Where the object is."`
	ETag     string `header:"ETag" doc:"The version of the object, for If-Match."`
	Body     T
}

type listing[T any] struct {
	Link string `header:"Link" doc:"rel=\"next\": the next page (RFC 8288); absent on the last."`
	Body []T
}

type nothing struct{}

// contentTag is the ETag of an object nobody writes: it changes with whatever
// is seen of it.
func contentTag(v any) string {
	hash := sha256.New()
	_ = writeJSON(hash, v) // a hash takes everything
	return `"` + hex.EncodeToString(hash.Sum(nil)[:12]) + `"`
}

// Paging asks for a part of a list. It is exported, like IfMatch, because huma
// passes over fields of unexported embedded types.
type Paging struct {
	Limit  int    `query:"limit" default:"50" minimum:"1" maximum:"200" doc:"How many at most."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"Where to go on: from the Link header of the page before."`
}

func (p Paging) page() store.Page { return store.Page{Limit: p.Limit, Cursor: p.Cursor} }

// listed makes a page of a list. next is the cursor of the page after it.
func listed[F, T any](c *call, rows []F, next string, view func(F) T) *listing[T] {
	out := &listing[T]{Body: make([]T, len(rows))}
	for i, row := range rows {
		out.Body[i] = view(row)
	}
	if next != "" {
		query := c.request.URL.Query()
		query.Set("cursor", next)
		target := url.URL{Path: c.request.URL.Path, RawQuery: query.Encode()}
		out.Link = "<" + target.String() + `>; rel="next"`
	}
	return out
}

// etag is strong: the version grows with each write of the writable fields,
// which is what If-Match protects. Observed fields are no part of it.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// IfMatch is the header.
type IfMatch struct {
	Tags string `header:"If-Match" doc:"An ETag, a list of them, or *: the call fails with 412 when the object has changed since."`
}

// check holds If-Match against the version that is there. A weakened tag is
// taken as well: proxies that compress weaken tags.
func (m IfMatch) check(version int64) error {
	if m.Tags == "" {
		return nil
	}
	for tag := range strings.SplitSeq(m.Tags, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == etag(version) {
			return nil
		}
	}
	return platform.Errorf(platform.Precondition, "version_mismatch", "the object has changed since it was read: read it again and repeat the change")
}

// update reads, changes and writes an object. Without If-Match it starts again
// when somebody else wrote in between; with it, that is a 412.
func update[T any](m IfMatch, read func() (T, int64, error), write func(T, int64) (T, error)) (T, error) {
	for attempt := 1; ; attempt++ {
		current, version, err := read()
		if err == nil {
			err = m.check(version)
		}
		if err != nil {
			return current, err
		}
		written, err := write(current, version)
		if err == nil || m.Tags != "" || platform.CodeOf(err) != "version_mismatch" || attempt == 5 {
			return written, err
		}
	}
}

// Apply says whether an update is rolled out. It is no bool: huma takes false
// for left out, and would put the default there.
type Apply struct {
	Now string `query:"apply" default:"true" enum:"true,false" doc:"Whether what runs is rolled over when the update changes it."`
}

func (a Apply) apply() bool { return a.Now == "true" }

var uuidShape = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func isID(s string) bool { return uuidShape.MatchString(s) }

var requestIDShape = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// same tells whether two values say the same thing in JSON, where an empty
// list and none at all do.
func same(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// publicURL is the address of a service where Options say nothing: the scheme
// and port through which the API itself is being called.
func (a *API) publicURL(c *call, hostLabel string, tls string) string {
	if a.PublicURL != nil {
		return a.PublicURL(c.request, hostLabel)
	}
	scheme, port := "http", ""
	if _, p, err := net.SplitHostPort(c.request.Host); err == nil {
		port = ":" + p
	}
	if c.secure && tls != "off" {
		scheme = "https"
	} else if c.secure {
		port = ""
	}
	return fmt.Sprintf("%s://%s.%s%s", scheme, hostLabel, a.BaseDomain, port)
}

func isMutating(method string) bool {
	return method != http.MethodGet && method != http.MethodHead
}
