// Package leak fails a package's tests when they leave a goroutine behind.
package leak

import (
	"net/http"
	"testing"

	"go.uber.org/goleak"
)

// Main runs the tests; call it from TestMain. Idle connections of the default
// HTTP client do not count.
func Main(m *testing.M) { goleak.VerifyTestMain(tests{m}) }

type tests struct{ *testing.M }

func (t tests) Run() int {
	code := t.M.Run()
	http.DefaultClient.CloseIdleConnections()
	return code
}
