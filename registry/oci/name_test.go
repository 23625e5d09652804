package oci_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/denia-paas/denia/registry/oci"
)

func TestNames(t *testing.T) {
	for _, name := range []string{
		"a", "team/app", "a/b/c/d", "a.b/c_d/e__f/g---h", "0", "127.0.0.1_5000/library/alpine", strings.Repeat("a", 255),
	} {
		if !oci.ValidName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", "A", "team/App", "a..b", "a._b", "a___b", "-a", "a-", "a/-b", ".", "..", "../a", "a/../b", "a/./b",
		"a b", "a\x00b", "a%2fb", "ä", "a:b", `a\b`, "a\n", strings.Repeat("a", 256),
	} {
		if oci.ValidName(name) {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestTags(t *testing.T) {
	for _, tag := range []string{"a", "latest", "v1.2.3", "_", "A-b_c.d", "sha256-" + strings.Repeat("a", 64), strings.Repeat("a", 128)} {
		if !oci.ValidTag(tag) {
			t.Errorf("%q is refused", tag)
		}
	}
	for _, tag := range []string{"", ".", "..", "-a", ".a", "a/b", "a:b", "a b", "ä", "a\x00", strings.Repeat("a", 129)} {
		if oci.ValidTag(tag) {
			t.Errorf("%q is accepted", tag)
		}
	}
}

// The expressions are the specification's own.
var (
	specName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	specTag  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

func FuzzName(f *testing.F) {
	for _, s := range []string{"a", "team/app", "a..b", "a__b", "a___b", "a---b", "a/", "/a", "a/../b", "a\n", "v1.0-rc_1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := oci.ValidName(s), len(s) <= 255 && specName.MatchString(s); got != want {
			t.Errorf("name %q: %v, the specification says %v", s, got, want)
		}
		if got, want := oci.ValidTag(s), specTag.MatchString(s); got != want {
			t.Errorf("tag %q: %v, the specification says %v", s, got, want)
		}
	})
}
