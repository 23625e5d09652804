package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/denia-paas/denia/platform"
)

// problem is the body of every error reply (RFC 9457).
type problem struct {
	Type         string       `json:"type" doc:"Always \"about:blank\": decide on code."`
	Title        string       `json:"title" doc:"The status in words."`
	Status       int          `json:"status" doc:"The HTTP status."`
	Detail       string       `json:"detail" doc:"What is wrong and what to do, for a person."`
	Code         string       `json:"code" doc:"What is wrong, for a program; stable snake_case."`
	RequestID    string       `json:"request_id" doc:"The X-Request-Id of the reply; Denia's log has more under it."`
	RequiredRole string       `json:"required_role,omitempty" doc:"With code forbidden: the least role that may do this."`
	Errors       []fieldError `json:"errors,omitempty" doc:"With code validation_failed: every bad field."`
}

type fieldError struct {
	Field   string `json:"field" doc:"Where, e.g. source.image or volumes[0].path; a query parameter by its name."`
	Code    string `json:"code" doc:"Stable snake_case."`
	Message string `json:"message" doc:"What is wrong and what would be right."`
}

func (p *problem) Error() string  { return p.Detail }
func (p *problem) GetStatus() int { return p.Status }

// ContentType is asked by huma for the media type of an error it writes.
func (p *problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

var statusOf = map[platform.Kind]int{
	platform.Internal:        http.StatusInternalServerError,
	platform.Invalid:         http.StatusUnprocessableEntity,
	platform.Malformed:       http.StatusBadRequest,
	platform.Unauthenticated: http.StatusUnauthorized,
	platform.Forbidden:       http.StatusForbidden,
	platform.NotFound:        http.StatusNotFound,
	platform.Conflict:        http.StatusConflict,
	platform.Precondition:    http.StatusPreconditionFailed,
	platform.TooLarge:        http.StatusRequestEntityTooLarge,
	platform.Unsupported:     http.StatusUnsupportedMediaType,
	platform.RateLimited:     http.StatusTooManyRequests,
	platform.Unavailable:     http.StatusServiceUnavailable,
}

// roleError is a Forbidden that names the role it would take.
type roleError struct {
	error
	role string
}

func (e *roleError) Unwrap() error { return e.error }

// problemOf turns err into the reply for it. What the client must not see goes
// to the log, under the same request id.
func problemOf(ctx context.Context, err error) *problem {
	c := callFrom(ctx)
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	e, ok := errors.AsType[*platform.Error](err)
	if !ok && ctx.Err() != nil {
		e, ok = platform.Errorf(platform.Unavailable, "canceled", "the request was given up before it was done"), true
	}
	if !ok || e.Kind == platform.Internal {
		c.log.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("request_id", c.id), slog.String("action", c.action()), slog.Any("error", err))
		e = platform.Errorf(platform.Internal, "internal", "something went wrong inside Denia; its log tells more under this request_id")
	}
	p := newProblem(statusOf[e.Kind], e.Code, e.Message)
	p.RequestID = c.id
	if role, ok := errors.AsType[*roleError](err); ok {
		p.RequiredRole = role.role
	}
	for _, f := range e.Fields {
		p.Errors = append(p.Errors, fieldError(f))
	}
	return p
}

func newProblem(status int, code, detail string) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// fail writes err as the reply.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(r.Context(), err)
	callFrom(r.Context()).code = p.Code
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", challenge(r))
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = writeJSON(w, p) // the client is gone: nobody is left to tell
}

// challenge says how to authenticate (RFC 6750 §3).
func challenge(r *http.Request) string {
	if r.Header.Get("Authorization") != "" {
		return `Bearer realm="denia", error="invalid_token"`
	}
	return `Bearer realm="denia"`
}

// huma keeps these as variables of the package. Its own errors echo the
// offending value, which may be a secret, so they are replaced; the rest makes
// validation as strict as the contract: names are matched exactly, and a list
// is never null.
func init() {
	huma.DefaultArrayNullable = false
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		return humaProblem(status, message, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, message string, errs ...error) huma.StatusError {
		p := humaProblem(status, message, errs)
		c := callFrom(ctx.Context())
		p.RequestID, c.code = c.id, p.Code
		return p
	}
}

var humaCodes = map[int]string{
	http.StatusBadRequest:            "malformed",
	http.StatusRequestEntityTooLarge: "too_large",
	http.StatusUnsupportedMediaType:  "unsupported_media_type",
	http.StatusUnprocessableEntity:   "validation_failed",
}

func humaProblem(status int, message string, errs []error) *problem {
	code, ok := humaCodes[status]
	if !ok {
		code = "internal"
	}
	p := newProblem(status, code, message)
	for _, err := range errs {
		detail, ok := err.(huma.ErrorDetailer)
		if !ok {
			continue
		}
		p.Errors = append(p.Errors, describe(detail.ErrorDetail()))
	}
	switch {
	case len(p.Errors) == 0:
	case status == http.StatusBadRequest:
		p.Detail, p.Errors = p.Errors[0].Message, nil
	default:
		p.Detail = p.Errors[0].Field + ": " + p.Errors[0].Message
	}
	return p
}

var requiredProperty = regexp.MustCompile(`^expected required property (\S+) to be present$`)

// describe says in Denia's words what huma found. The value at fault is left
// out on purpose.
func describe(d *huma.ErrorDetail) fieldError {
	field := d.Location
	for _, place := range []string{"body", "query", "path", "header"} {
		if field == place {
			field = ""
		}
		field = strings.TrimPrefix(field, place+".")
	}
	if match := requiredProperty.FindStringSubmatch(d.Message); match != nil {
		return fieldError{Field: join(field, match[1]), Code: "required", Message: "is required"}
	}
	code, message := "bad_value", strings.Replace(d.Message, "expected", "must be", 1)
	switch {
	case d.Message == "unexpected property":
		code, message = "unknown_field", "is no field of this object"
	case strings.HasPrefix(d.Message, "required "):
		code, message = "required", "is required"
	case strings.HasPrefix(d.Message, "expected value to be one of"):
		code, message = "not_one_of", strings.Replace(d.Message, "expected value to be", "must be", 1)
	case strings.HasPrefix(d.Message, "expected number "), strings.HasPrefix(d.Message, "expected length "), strings.HasPrefix(d.Message, "expected array length "):
		code = "out_of_range"
	case strings.HasPrefix(d.Message, "expected ") && !strings.Contains(d.Message, " to "), strings.HasPrefix(d.Message, "invalid "):
		code = "wrong_type"
	}
	return fieldError{Field: field, Code: code, Message: message}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// decode reads JSON for huma. Its errors are shown to the client: they say
// where, not what.
func decode(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("the body is malformed JSON at byte %d", syntax.Offset)
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("the body's field %s holds a %s that does not fit", kind.Field, strings.Fields(kind.Value)[0])
	}
	return errors.New("the body could not be read as JSON")
}
