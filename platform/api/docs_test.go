package api_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/denia-paas/denia/platform/api"
)

// The documents in docs/ are those of this code.
func TestDocumentsAreUpToDate(t *testing.T) {
	var reference bytes.Buffer
	if err := api.WriteReference(&reference); err != nil {
		t.Fatal(err)
	}
	document, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, document, "", "  "); err != nil {
		t.Fatal(err)
	}
	indented.WriteByte('\n')
	for file, want := range map[string][]byte{"api.md": reference.Bytes(), "openapi.json": indented.Bytes()} {
		got, err := os.ReadFile("../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what the code says: run make docs", file)
		}
	}
}
