package oci_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

func TestDigests(t *testing.T) {
	for _, d := range []digest.Digest{digest.SHA256.FromString(""), digest.SHA512.FromString("")} {
		got, err := oci.ParseDigest(d.String())
		if err != nil || got != d {
			t.Errorf("%s: got %q, %v", d, got, err)
		}
	}
	hex := strings.Repeat("0", 64)
	for _, s := range []string{
		"", ":", "sha256", "sha256:", "sha256:baddigeststring", "sha256:" + hex[1:], "sha256:" + hex + "0", "sha512:" + hex,
		"sha256:" + strings.Repeat("A", 64), "SHA256:" + hex, "sha384:" + strings.Repeat("0", 96), "md5:" + hex[:32], "latest",
		"sha256:../" + hex[3:], "sha256:" + hex[:63] + "/", "sha256:" + hex[:63] + "\x00",
	} {
		if d, err := oci.ParseDigest(s); !errors.Is(err, oci.ErrDigest) || d != "" {
			t.Errorf("%q: got %q, %v", s, d, err)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	for s, want := range map[string]digest.Algorithm{"": digest.SHA256, "sha256": digest.SHA256, "sha512": digest.SHA512} {
		a, err := oci.ParseAlgorithm(s)
		if err != nil || a != want || !a.Available() {
			t.Errorf("%q: got %q, %v", s, a, err)
		}
	}
	for _, s := range []string{"sha384", "md5", "SHA256", "sha256 "} {
		if _, err := oci.ParseAlgorithm(s); !errors.Is(err, oci.ErrDigest) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzDigest(f *testing.F) {
	f.Add(digest.SHA256.FromString("").String())
	f.Add(digest.SHA512.FromString("").String())
	f.Add("sha384:" + strings.Repeat("0", 96))
	f.Add("sha256:baddigeststring")
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		want := digest.Digest(s).Validate() == nil && !strings.HasPrefix(s, "sha384:")
		d, err := oci.ParseDigest(s)
		if (err == nil) != want {
			t.Fatalf("%q: %v, which go-digest sees otherwise", s, err)
		}
		if err == nil && d.String() != s {
			t.Fatalf("%q became %q", s, d)
		}
	})
}
