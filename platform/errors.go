package platform

import (
	"errors"
	"fmt"
)

// Kind says what a caller can do about an Error. The API maps each kind to one
// HTTP status.
type Kind int

// The kinds, with the HTTP status the API answers for each.
const (
	Internal        Kind = iota // 500: ours; details go to the log only
	Invalid                     // 422: a field has a value that cannot be used
	Malformed                   // 400: the request could not be read at all
	Unauthenticated             // 401
	Forbidden                   // 403: the role is too low
	NotFound                    // 404: absent, or hidden from this caller
	Conflict                    // 409: the state of something else stands against it
	Precondition                // 412: If-Match did not hold
	TooLarge                    // 413
	Unsupported                 // 415
	RateLimited                 // 429
	Unavailable                 // 503: try again later
)

// FieldError names one field of the input and what is wrong with it.
type FieldError struct {
	Field   string `json:"field"`   // path in the JSON body, e.g. "source.image"
	Code    string `json:"code"`    // stable snake_case
	Message string `json:"message"` // what is wrong and what would be right
}

// Error is an error somebody may decide on. Message is for the user and must
// never hold a secret or an internal detail; Err is for the log.
type Error struct {
	Kind    Kind
	Code    string // stable snake_case, part of the API
	Message string
	Fields  []FieldError
	Err     error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Message, e.Err)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of the given kind and code with a formatted message.
func Errorf(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// NotFoundf reports that something does not exist, or is hidden.
func NotFoundf(format string, args ...any) *Error {
	return Errorf(NotFound, "not_found", format, args...)
}

// InvalidField reports one bad field.
func InvalidField(field, code, format string, args ...any) *Error {
	message := fmt.Sprintf(format, args...)
	return &Error{
		Kind: Invalid, Code: "validation_failed", Message: field + ": " + message,
		Fields: []FieldError{{Field: field, Code: code, Message: message}},
	}
}

// Wrap puts a kind, a code and a message for the user around err. The Error
// unwraps to err.
func Wrap(err error, kind Kind, code, format string, args ...any) *Error {
	e := Errorf(kind, code, format, args...)
	e.Err = err
	return e
}

// KindOf returns the kind of the first Error in err's chain, Internal when
// there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// CodeOf returns the code of the first Error in err's chain, "internal" when
// there is none.
func CodeOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return "internal"
}

// fields gathers field errors while an object is validated.
type fields []FieldError

func (f *fields) add(field, code, format string, args ...any) {
	*f = append(*f, FieldError{Field: field, Code: code, Message: fmt.Sprintf(format, args...)})
}

func (f fields) err() error {
	if len(f) == 0 {
		return nil
	}
	return &Error{
		Kind: Invalid, Code: "validation_failed",
		Message: f[0].Field + ": " + f[0].Message, Fields: f,
	}
}
