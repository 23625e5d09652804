package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
)

// fail turns an error of the engine's API into one of Denia's: engine gone,
// disk full, or else the error itself with what was being done. ctx is the
// call's own; when it ended, that is what happened.
func (e *Engine) fail(ctx context.Context, err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	if known, ok := errors.AsType[*platform.Error](err); ok {
		return fmt.Errorf("%s: %w", doing, known)
	}
	switch {
	case errors.Is(context.Cause(ctx), errHung):
		return e.unavailable(errHung)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	case wrongVersion(err):
		e.renegotiate()
		return e.unavailable(err)
	case unreachable(err):
		return e.unavailable(err)
	case diskFull(err.Error()):
		return diskFullError(err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// unavailable says that the engine cannot be used, and what to look at.
func (e *Engine) unavailable(err error) *platform.Error {
	advice := "check that it runs (systemctl status docker) and that docker_host names its socket"
	switch {
	case errors.Is(err, syscall.EACCES) || strings.Contains(err.Error(), "permission denied"):
		advice = "Denia's user may not open it; add that user to the group docker, or run Denia as root"
	case wrongVersion(err):
		advice = "it does not speak the version of the API agreed on before; Denia agrees anew at the next try, and needs Docker 20.10 or later"
	case errors.Is(err, errHung):
		advice = "it did not answer in time; look at its log and at the load of the machine"
	}
	return platform.Wrap(err, platform.Unavailable, platform.CodeEngineUnavailable,
		"the Docker Engine at %s cannot be used: %s", e.host, advice)
}

func unreachable(err error) bool {
	if client.IsErrConnectionFailed(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	// A dial in a hijack, and a stream cut while being read.
	_, isNet := errors.AsType[*net.OpError](err)
	// What the engine answers while it shuts down.
	return isNet || cerrdefs.IsUnavailable(err)
}

func wrongVersion(err error) bool {
	text := err.Error()
	return strings.Contains(text, "is too old. Minimum supported API version") ||
		strings.Contains(text, "is too new. Maximum supported API version")
}

func diskFull(text string) bool {
	return strings.Contains(text, "no space left on device") || strings.Contains(text, "disk quota exceeded")
}

func diskFullError(err error) *platform.Error {
	return platform.Wrap(err, platform.Unavailable, platform.CodeDiskFull,
		"the engine has no space left on its disk: remove what is not needed there, or enlarge it")
}

// startFailed reports that the engine refused to create or start a container,
// in the engine's words.
func startFailed(err error) error {
	return platform.Wrap(err, platform.Invalid, platform.CodeStartFailed,
		"the container could not be started: %s", engineWords(err.Error()))
}

// noise is what the layers between a request and its cause put around the
// cause.
var noise = []*regexp.Regexp{
	regexp.MustCompile(`^Error response from daemon: `),
	regexp.MustCompile(`^(failed to create task for container|failed to create shim task|failed to start shim): `),
	regexp.MustCompile(`^(OCI runtime create failed|OCI runtime start failed|runc create failed|runc run failed): `),
	regexp.MustCompile(`^(container_linux|process_linux|standard_init_linux|rootfs_linux)\.go:\d+: `),
	regexp.MustCompile(`^(starting container process caused|unable to start container process|container init caused|error during container init): `),
	regexp.MustCompile(`: unknown$`),
}

// engineWords strips an engine's message to its cause.
func engineWords(text string) string {
	text = strings.TrimSpace(text)
	for again := true; again; {
		again = false
		for _, n := range noise {
			if stripped := strings.TrimSpace(n.ReplaceAllString(text, "")); stripped != text && stripped != "" {
				text, again = stripped, true
			}
		}
	}
	// Some errors arrive said twice.
	if half := (len(text) - 2) / 2; half > 0 && text == text[:half]+": "+text[:half] {
		text = text[:half]
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
