package oci

import (
	// go-digest knows an algorithm when its implementation is linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"

	"github.com/opencontainers/go-digest"
)

// ErrDigest says that a string is not a digest this registry can check.
var ErrDigest = errors.New("a digest is sha256: and 64, or sha512: and 128 lower-case hexadecimal digits")

// ParseDigest reads a digest: the image specification's grammar, of the
// registered algorithms, "sha256" and "sha512". It fails with ErrDigest.
func ParseDigest(s string) (digest.Digest, error) {
	var encoded string
	switch {
	case len(s) == len("sha256:")+64 && s[:len("sha256:")] == "sha256:":
		encoded = s[len("sha256:"):]
	case len(s) == len("sha512:")+128 && s[:len("sha512:")] == "sha512:":
		encoded = s[len("sha512:"):]
	default:
		return "", ErrDigest
	}
	for i := range len(encoded) {
		if c := encoded[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", ErrDigest
		}
	}
	return digest.Digest(s), nil
}

// ParseAlgorithm reads the name of a digest algorithm; the empty one is
// sha256. It fails with ErrDigest.
func ParseAlgorithm(s string) (digest.Algorithm, error) {
	switch a := digest.Algorithm(s); a {
	case "":
		return digest.SHA256, nil
	case digest.SHA256, digest.SHA512:
		return a, nil
	default:
		return "", ErrDigest
	}
}
