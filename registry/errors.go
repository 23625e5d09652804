package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/denia-paas/denia/registry/oci"
)

// Error codes of the distribution specification, and the last two, which
// distribution established.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooManyRequests     = "TOOMANYREQUESTS"
	codeUnavailable         = "UNAVAILABLE"
	codeUnknown             = "UNKNOWN"
)

// ErrUnauthorized says that a user name and password are nobody's.
var ErrUnauthorized = errors.New("unknown user name or password")

// Limited says that credentials were tried too often.
type Limited struct { //nolint:errname // part of Config, where it reads well
	RetryAfter time.Duration
}

func (l *Limited) Error() string {
	return fmt.Sprintf("too many attempts, the next in %s", l.RetryAfter)
}

// errDiskFull says that accepting more would leave less than
// Options.ReserveBytes of free space.
var errDiskFull = errors.New("the registry's disk is full")

// retryFull is what a client is told to wait while the disk is full: about as
// long as a collection needs.
const retryFull = time.Minute

// drainBytes is how much of a body is read and thrown away before an error is
// answered. A client that writes its body before it reads anything sees the
// answer then instead of a reset connection; for more than this, the
// connection is closed, which HTTP servers do with a delay for the same reason.
const drainBytes = 4 << 20

// fail answers with the specification's error body ("Error Codes"). detail is
// marshalled; nil leaves it out.
func (c *call) fail(status int, code, message string, detail any) {
	type body struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	// What detail may be is fixed by this package, and all of it can be
	// marshalled.
	answer, _ := json.Marshal(map[string][]body{"errors": {{code, message, detail}}})

	level := slog.LevelDebug
	switch status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusConflict,
		http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		// containerd and BuildKit don't show these bodies to their users.
		level = slog.LevelInfo
	}
	c.log(level, "registry refused a request", "status", status, "code", code, "reason", message)

	c.drain()
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(answer)))
	c.w.WriteHeader(status)
	if c.r.Method != http.MethodHead {
		c.w.Write(answer)
	}
}

// failed answers for something that is not the client's fault, and logs it.
func (c *call) failed(err error) {
	var limited *Limited
	switch {
	case c.r.Context().Err() != nil:
		// Nobody is there to read the answer; it ends the request in order.
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "the request was broken off", nil)
	case diskFull(err):
		c.log(slog.LevelError, "registry has no space left", "err", err)
		c.w.Header().Set("Retry-After", seconds(retryFull))
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "the disk of this registry is full; free space on it, or have its operator do so", nil)
	case errors.As(err, &limited):
		c.w.Header().Set("Retry-After", seconds(limited.RetryAfter))
		c.fail(http.StatusTooManyRequests, codeTooManyRequests, limited.Error(), nil)
	case errors.Is(err, oci.ErrUnavailable):
		c.log(slog.LevelError, "registry cannot reach its metadata", "err", err)
		c.w.Header().Set("Retry-After", "1")
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "the database of this registry cannot be reached; try again", nil)
	case c.ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		c.w.Header().Set("Retry-After", "1")
		c.fail(http.StatusServiceUnavailable, codeUnavailable, "the registry is shutting down or overloaded; try again", nil)
	default:
		c.log(slog.LevelError, "registry failed", "err", err)
		c.fail(http.StatusInternalServerError, codeUnknown, "something failed inside the registry; its log tells what", nil)
	}
}

func (c *call) log(level slog.Level, message string, attrs ...any) {
	ctx := c.r.Context()
	if !c.cfg.Log.Enabled(ctx, level) {
		return
	}
	c.cfg.Log.Log(ctx, level, message, append(attrs,
		"method", c.r.Method, "path", c.r.URL.Path, "subject", c.subject)...)
}

// drain reads what a client still sends of its body, up to drainBytes.
func (c *call) drain() {
	switch {
	case c.r.Body == nil, c.r.Body == http.NoBody, c.r.ProtoMajor > 1, c.r.ContentLength > drainBytes:
		return
	case c.r.Header.Get("Expect") != "":
		// The client waits for a word before it sends; reading would give it.
		return
	}
	defer c.atClose((*http.ResponseController).SetReadDeadline)()
	// Whether the body ends well no longer matters.
	_, _ = io.CopyN(io.Discard, c.r.Body, drainBytes)
}

func diskFull(err error) bool {
	return errors.Is(err, errDiskFull) || errors.Is(err, oci.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// seconds writes a duration for Retry-After: whole seconds, at least one.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
