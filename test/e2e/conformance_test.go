package e2e

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The OCI's own suite, at its current release and as it is being developed,
// through Caddy and with tokens: nothing fails, and nothing is skipped.
func TestConformance(t *testing.T) {
	suite := tool(t, "conformance")
	s := start(t)
	// What it pushes is not to run.
	s.project("conformance")
	for _, service := range []string{"repo1", "repo2"} {
		s.service(service, object{"project_id": "conformance", "follow_tag": "not-pushed"})
	}
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			results := t.TempDir()
			cmd := exec.Command(suite)
			cmd.Dir = results // it would read a configuration
			cmd.Env = append(os.Environ(),
				"OCI_REGISTRY="+s.registryHost(), "OCI_TLS=disabled", "OCI_USERNAME=admin", "OCI_PASSWORD="+s.token,
				"OCI_REPO1=conformance/repo1", "OCI_REPO2=conformance/repo2",
				"OCI_VERSION="+version, "OCI_LOG=error", "OCI_RESULTS_DIR="+results)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("the suite: %v", err)
			}
			text, err := os.ReadFile(filepath.Join(results, "junit.xml"))
			if err != nil {
				t.Fatalf("%v; the suite said: %s", err, tail(string(out), 3000))
			}
			var report struct {
				Suites []struct {
					Tests    int `xml:"tests,attr"`
					Failures int `xml:"failures,attr"`
					Errors   int `xml:"errors,attr"`
					Disabled int `xml:"disabled,attr"`
					Skipped  int `xml:"skipped,attr"`
					Cases    []struct {
						Name   string `xml:"name,attr"`
						Status string `xml:"status,attr"`
						Why    string `xml:"system-out"`
					} `xml:"testcase"`
				} `xml:"testsuite"`
			}
			if err := xml.Unmarshal(text, &report); err != nil || len(report.Suites) != 1 {
				t.Fatalf("junit.xml has %d suites: %v", len(report.Suites), err)
			}
			r := report.Suites[0]
			t.Logf("conformance %s: %d checks, %d failed, %d errors, %d skipped, %d that are no part of this release",
				version, r.Tests, r.Failures, r.Errors, r.Skipped, r.Disabled)
			// Far fewer would mean that the suite no longer asks what it did.
			if r.Tests < 800 || r.Failures+r.Errors+r.Skipped != 0 {
				t.Errorf("want at least 800 checks, none failed and none skipped")
			}
			for _, c := range r.Cases {
				// Without a reason, it is no part of that release.
				if c.Status != "passed" && c.Why != "" {
					t.Errorf("%s: %s: %s", c.Name, c.Status, tail(c.Why, 500))
				}
			}
		})
	}
}
