package store

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/registry/oci"
)

// Registry is the part of the Store that is the registry's memory. What its
// methods promise is said at oci.Metadata.
type Registry struct {
	s     *Store
	reads queryer
}

var _ oci.Metadata = (*Registry)(nil)

// Registry returns the registry's memory in this database. It lives as long as
// the Store; there is nothing to close.
func (s *Store) Registry() *Registry { return s.registry }

func newRegistry(s *Store) *Registry {
	g := &Registry{s: s, reads: s.reads}
	if s.reads != s.writes { // pgx keeps statements by itself
		g.reads = &statements{DB: s.reads, kept: map[string]*sql.Stmt{}}
	}
	return g
}

func (g *Registry) read() tx { return tx{q: g.reads, now: now()} }

// change is write for what either finds something to do or does not.
func (g *Registry) change(ctx context.Context, fn func(tx) (bool, error)) (done bool, err error) {
	err = g.s.write(ctx, func(tx tx) (err error) {
		done, err = fn(tx)
		return err
	})
	return done && err == nil, err
}

// What a packed digest begins with. The order of packed digests is that of
// their texts.
const (
	packedText   = 0 // the digest as it is: of another algorithm, or malformed
	packedSHA256 = 1
	packedSHA512 = 2
)

// pack makes a digest half as long as its text. The empty digest, which comes
// before all others, becomes no bytes at all.
func pack(d digest.Digest) []byte {
	if d == "" {
		return []byte{}
	}
	algorithm, text, _ := strings.Cut(string(d), ":")
	packed := make([]byte, 1, 1+sha512.Size)
	switch {
	case algorithm == "sha256" && len(text) == 2*sha256.Size:
		packed[0] = packedSHA256
	case algorithm == "sha512" && len(text) == 2*sha512.Size:
		packed[0] = packedSHA512
	}
	if packed[0] != packedText && strings.ToLower(text) == text {
		if packed, err := hex.AppendDecode(packed, []byte(text)); err == nil {
			return packed
		}
	}
	return append([]byte{packedText}, d...)
}

func unpack(packed []byte) (digest.Digest, error) {
	if len(packed) == 0 {
		return "", nil
	}
	switch packed[0] {
	case packedText:
		return digest.Digest(packed[1:]), nil
	case packedSHA256:
		return digest.NewDigestFromBytes(digest.SHA256, packed[1:]), nil
	case packedSHA512:
		return digest.NewDigestFromBytes(digest.SHA512, packed[1:]), nil
	default:
		return "", fmt.Errorf("a digest is stored as what begins with %d", packed[0])
	}
}

func intoDigest(d *digest.Digest) sql.Scanner {
	return scanFunc(func(value any) (err error) {
		packed, ok := value.([]byte)
		if !ok && value != nil {
			return fmt.Errorf("a digest is stored as %T", value)
		}
		*d, err = unpack(packed)
		return err
	})
}

// intoTimeOrZero leaves t alone for a NULL.
func intoTimeOrZero(t *time.Time) sql.Scanner {
	return scanFunc(func(value any) error {
		if value == nil {
			return nil
		}
		return intoTime(t).Scan(value)
	})
}

func scanDigest(r row) (d digest.Digest, err error) { return d, r.Scan(intoDigest(&d)) }

func scanTime(r row) (t time.Time, err error) { return t, r.Scan(intoTimeOrZero(&t)) }

// behind returns the first key after all that begin with prefix. Keys are
// UTF-8, which has no byte 0xff.
func behind(prefix string) []byte {
	if prefix == "" {
		return []byte{0xff}
	}
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

// Statements that put reviews on the list begin and end with these. A review
// that is on it already gets the new time: that is the end of the lease there
// is now, or later by the will of who put it off.
const (
	insertReview = `INSERT INTO registry_reviews (kind, repo, digest, due_at) `
	orMoveReview = ` ON CONFLICT (kind, repo, digest) DO UPDATE SET due_at = excluded.due_at`
)

// atOnce is when the review of a blob falls due: it has no lease of its own.
var atOnce = time.UnixMilli(0)

func queue(ctx context.Context, tx tx, kind, repo string, d digest.Digest, due time.Time) error {
	_, err := tx.exec(ctx, insertReview+`VALUES ($1, $2, $3, $4)`+orMoveReview, kind, []byte(repo), pack(d), due)
	return err
}

func dropReview(ctx context.Context, tx tx, kind, repo string, d digest.Digest) error {
	_, err := tx.exec(ctx, `DELETE FROM registry_reviews WHERE kind = $1 AND repo = $2 AND digest = $3`, kind, []byte(repo), pack(d))
	return err
}

// Statements take many digests in pieces of at most this many.
const piece = 128

// inPieces calls fn with the digests, a piece at a time. Pieces are filled up
// with their last digest to a power of two, so that there are few different
// statements and databases can keep them prepared.
func inPieces(digests []digest.Digest, fn func([]digest.Digest) error) error {
	for len(digests) > 0 {
		n := min(len(digests), piece)
		size := 1
		for size < n {
			size *= 2
		}
		part := append(make([]digest.Digest, 0, size), digests[:n]...)
		for len(part) < size {
			part = append(part, digests[n-1])
		}
		if err := fn(part); err != nil {
			return err
		}
		digests = digests[n:]
	}
	return nil
}

// addList appends the digests as "?, ?, …" to a query.
func (b *builder) addList(digests []digest.Digest) {
	for i, d := range digests {
		if i > 0 {
			b.text.WriteString(", ")
		}
		b.add("?", pack(d))
	}
}

// explainRegistry is explain in the words of oci.Metadata.
func explainRegistry(err *error, doing string, args ...any) {
	explain(err, doing, args...)
	if platform.KindOf(*err) != platform.Unavailable {
		return
	}
	why := oci.ErrUnavailable
	if platform.CodeOf(*err) == platform.CodeDiskFull {
		why = oci.ErrNoSpace
	}
	*err = fmt.Errorf("%w: %w", why, *err)
}
