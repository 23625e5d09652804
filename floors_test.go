package denia_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/denia-paas/denia"

// floors says who may import whom inside the module: a package may import the
// packages of lower floors, and none of its own.
var floors = map[string]int{
	"platform":              0,
	"registry/oci":          0,
	"registry":              1,
	"platform/store":        1,
	"platform/docker":       1,
	"platform/ingress":      1,
	"platform/source":       1,
	"platform/telemetry":    1,
	"platform/secret":       1,
	"platform/control":      2,
	"platform/api":          3,
	"caddymodule":           4,
	"":                      5,
	"cmd/denia":             5,
	"cmd/xcaddy-build":      5,
	"examples/hello":        5,
	"platform/platformtest": 1,
	"internal/xconnect":     0,
}

// owners says which package alone may import a library: what that package
// hides.
var owners = map[string][]string{
	"database/sql":                           {"platform/store"},
	"github.com/jackc/pgx":                   {"platform/store"},
	"modernc.org/sqlite":                     {"platform/store"},
	"github.com/docker/docker":               {"platform/docker"},
	"github.com/google/go-containerregistry": {"registry"},
	"github.com/moby/buildkit":               {"platform/docker"},
	"github.com/caddyserver":                 {"caddymodule", "cmd/denia", "cmd/xcaddy-build"},
	"github.com/danielgtaylor":               {"platform/api"},
	"filippo.io/age":                         {"platform/secret"},
	"github.com/klauspost":                   {"platform/source"},
	"github.com/coder/websocket":             {},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Doc        string
	GoFiles    []string // but those of tests
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Doc,GoFiles", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func inModule(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func TestFloors(t *testing.T) {
	for _, p := range packages(t) {
		name, _ := inModule(p.ImportPath)
		floor, known := floors[name]
		if !known && (strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "test/")) {
			continue // helpers of tests; nothing may import them but tests
		}
		if !known {
			t.Errorf("%s stands on no floor: add it to the table, or to an existing package", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if below, ok := inModule(imported); ok {
				if under, known := floors[below]; !known || under >= floor {
					t.Errorf("%s (floor %d) must not import %s", p.ImportPath, floor, imported)
				}
				continue
			}
			for library, allowed := range owners {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(allowed, name) {
					t.Errorf("%s must not import %s: only %v may", p.ImportPath, imported, allowed)
				}
			}
		}
	}
}

func TestNounsDoNoWork(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"/platform" {
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains([]string{"os", "net", "net/http", "sync", "os/exec", "database/sql"}, imported) {
				t.Errorf("platform imports %s: nouns and rules do no I/O and start nothing", imported)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
