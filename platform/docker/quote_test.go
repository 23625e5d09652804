package docker_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
)

// A reference may name any host and port the engine reaches. What a stranger's
// server says there is not shown to whoever deploys.
func TestPullDoesNotQuoteStrangers(t *testing.T) {
	t.Parallel()
	e := open(t)
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden, http.StatusInternalServerError, http.StatusBadGateway} {
		host := startRegistry(t, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v2/" {
					return
				}
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "the cat's name is Tibbles")
			})
		})
		var log buildLog
		_, err := e.Pull(t.Context(), platform.Pull{Reference: host + "/intern/status:latest", Tag: "denia/" + run + "/quoted:1"}, &log)
		failure, known := errors.AsType[*platform.Error](err)
		if !known {
			t.Fatalf("%d: %v, want an error with a code", status, err)
		}
		if strings.Contains(failure.Message+log.String(), "Tibbles") {
			t.Errorf("%d: the answer is shown: %s\n%s", status, failure.Message, log.String())
		}
	}
}
