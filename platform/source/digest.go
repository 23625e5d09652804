package source

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strings"

	"github.com/denia-paas/denia/platform"
)

// Digest is a digest that the bytes of an upload must have.
type Digest struct {
	Algorithm string // "sha-256" or "sha-512"
	Sum       []byte
}

func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case "sha-256":
		return sha256.New()
	case "sha-512":
		return sha512.New()
	}
	return nil
}

// ParseDigests reads the values of Content-Digest and Repr-Digest fields
// (RFC 9530), for example "sha-256=:<base64>:, sha-512=:<base64>:". Algorithms
// other than these two are passed over, as the RFC has it. A value that cannot
// be read is a Malformed error with code bad_digest.
//
// Both fields speak of the same bytes as long as the request has no
// Content-Encoding; refuse one that has.
func ParseDigests(values ...string) ([]Digest, error) {
	var digests []Digest
	for member := range strings.SplitSeq(strings.Join(values, ","), ",") {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue
		}
		algorithm, value, _ := strings.Cut(member, "=")
		h := newHash(algorithm)
		if h == nil {
			continue
		}
		value, _, _ = strings.Cut(value, ";") // parameters mean nothing here
		value = strings.Trim(value, " \t")
		encoded, ok := strings.CutPrefix(value, ":")
		if ok {
			encoded, ok = strings.CutSuffix(encoded, ":")
		}
		var sum []byte
		if ok {
			var err error
			sum, err = base64.StdEncoding.DecodeString(encoded)
			ok = err == nil && len(sum) == h.Size()
		}
		if !ok {
			return nil, platform.Errorf(platform.Malformed, "bad_digest",
				"the %s digest cannot be read; write it as %s=:<%d bytes in base64>:", algorithm, algorithm, h.Size())
		}
		digests = append(digests, Digest{Algorithm: algorithm, Sum: sum})
	}
	return digests, nil
}

// sums computes several digests of the same bytes in one pass.
type sums map[string]hash.Hash

// newSums always includes SHA-256, which names every upload.
func newSums(want []Digest) (sums, error) {
	s := sums{"sha-256": sha256.New()}
	for _, d := range want {
		if s[d.Algorithm] != nil {
			continue
		}
		h := newHash(d.Algorithm)
		if h == nil {
			return nil, platform.Errorf(platform.Malformed, "bad_digest", "%q is no digest algorithm taken here; sha-256 and sha-512 are", d.Algorithm)
		}
		s[d.Algorithm] = h
	}
	return s, nil
}

func (s sums) write(p []byte) {
	for _, h := range s {
		h.Write(p)
	}
}

func (s sums) check(want []Digest) error {
	for _, d := range want {
		if got := s[d.Algorithm].Sum(nil); !bytes.Equal(got, d.Sum) {
			return platform.Errorf(platform.Invalid, "digest_mismatch",
				"the %s digest of the upload is %x, not %x as the request says; send it again", d.Algorithm, got, d.Sum)
		}
	}
	return nil
}

func (s sums) name() string { return "sha256:" + hex.EncodeToString(s["sha-256"].Sum(nil)) }
