package registry_test

import (
	"testing"

	"github.com/denia-paas/denia/internal/leak"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { leak.Main(m) }
