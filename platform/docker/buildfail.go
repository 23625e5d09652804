package docker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/denia-paas/denia/platform"
)

var (
	exitCode   = regexp.MustCompile(`exit code: (\d+)`)
	sourceLine = regexp.MustCompile(`^line \d+: `)
)

// buildFailed says why a build failed. solveErr is what BuildKit answered,
// frontendErr what the frontend in this process met before, if anything, and
// failed the step that ended it all, if one did.
func (e *Engine) buildFailed(ctx context.Context, solveErr, frontendErr error, failed *failedStep, dockerfile string) error {
	err := solveErr
	if frontendErr != nil {
		err = frontendErr
	}
	if ctx.Err() != nil {
		return fmt.Errorf("building: %w", ctx.Err())
	}
	if outOfSpace(err, failed) {
		return diskFullError(err)
	}
	if base, ok := errors.AsType[*baseError](err); ok {
		if errors.Is(base, errOwnBase) {
			return platform.Wrap(err, platform.Invalid, platform.CodeDockerfileInvalid,
				"%s%s cannot be a base image: images below denia/ belong to services; push a base image to a registry", at(dockerfile, err), base.image)
		}
		if gone(base.err) {
			return e.unavailable(base.err)
		}
		cause := pullError(base.err, base.image)
		cause.Message = at(dockerfile, err) + cause.Message
		return cause
	}
	switch {
	case failed != nil && strings.Contains(failed.name, "FROM ") && !strings.HasPrefix(failed.name, "[internal]"):
		// The layers of a base image, fetched when first needed.
		_, image, _ := strings.Cut(failed.name, "FROM ")
		return pullError(errors.New(failed.err), image)
	case failed != nil:
		if code := exitCode.FindStringSubmatch(failed.err); code != nil {
			return platform.Wrap(err, platform.Invalid, platform.CodeBuildFailed,
				"the build step %s failed with exit code %s: the last lines of the log say why", failed.name, code[1])
		}
		return platform.Wrap(err, platform.Invalid, platform.CodeBuildFailed,
			"the build step %s failed: %s", failed.name, oneLine(failed.err))
	case gone(err):
		return e.unavailable(err)
	case frontendErr != nil:
		return platform.Wrap(err, platform.Invalid, platform.CodeDockerfileInvalid,
			"%s%s", at(dockerfile, err), oneLine(rootCause(err)))
	}
	return platform.Wrap(err, platform.Invalid, platform.CodeBuildFailed, "the build failed: %s", oneLine(rootCause(err)))
}

// outOfSpace tells whether the disk was full. The error of a command that
// failed quotes the command, so there only its output counts.
func outOfSpace(err error, failed *failedStep) bool {
	if failed != nil && exitCode.MatchString(failed.err) {
		return failed.diskFull
	}
	return diskFull(err.Error()) || failed != nil && diskFull(failed.err)
}

// gone tells whether BuildKit's connection broke.
func gone(err error) bool {
	return unreachable(err) || status.Code(unwrapStatus(err)) == codes.Unavailable
}

// unwrapStatus finds the error of a remote call in err's chain.
func unwrapStatus(err error) error {
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		if _, ok := cause.(interface{ GRPCStatus() *status.Status }); ok {
			return cause
		}
	}
	return nil
}

// at is the place in the Dockerfile that err names, as a prefix of a message.
func at(dockerfile string, err error) string {
	if located, ok := errors.AsType[*parser.LocationError](err); ok {
		for _, ranges := range located.Locations {
			if len(ranges) > 0 && ranges[0].Start.Line > 0 {
				return fmt.Sprintf("%s:%d: ", dockerfile, ranges[0].Start.Line)
			}
		}
	}
	for _, source := range solvererrors.Sources(err) {
		if len(source.Ranges) > 0 && source.Ranges[0].Start != nil && source.Ranges[0].Start.Line > 0 {
			return fmt.Sprintf("%s:%d: ", dockerfile, source.Ranges[0].Start.Line)
		}
	}
	return dockerfile + ": "
}

// rootCause is the text of err without the layers it came through.
func rootCause(err error) string {
	text := err.Error()
	for _, prefix := range []string{"failed to run Build function: ", "failed to solve: ", "rpc error: code = Unknown desc = ", "dockerfile parse error on ", "dockerfile parse error "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return sourceLine.ReplaceAllString(text, "")
}
