package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

// CertificateFile is what is known of a file beside its content.
type CertificateFile struct {
	Key       string
	Modified  time.Time // zero for a directory
	Size      int64     // of the content as it was given
	Directory bool      // the key has no content, others below it have
}

// PutCertificateFile keeps content, sealed, under the key, in place of what was
// there. Keys are paths with slashes, without one at either end.
func (s *Store) PutCertificateFile(ctx context.Context, key string, content []byte) (err error) {
	defer explain(&err, "storing %s", key)
	sealed, err := s.seal(content)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	t := s.single()
	_, err = t.exec(ctx, `INSERT INTO certificate_files (key, value, modified, size) VALUES ($1, $2, $3, $4)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified, size = excluded.size`,
		[]byte(key), sealed, t.now, len(content))
	return err
}

// CertificateContent returns what PutCertificateFile was given last.
func (s *Store) CertificateContent(ctx context.Context, key string) (_ []byte, err error) {
	defer explain(&err, "reading %s", key)
	sealed, found, err := one(ctx, s.read(), scanBytes, `SELECT value FROM certificate_files WHERE key = $1`, []byte(key))
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, noCertificateFile(key)
	}
	content, err := s.unseal(sealed)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return content, nil
}

// CertificateFile tells about a key that has content, or others below it.
func (s *Store) CertificateFile(ctx context.Context, key string) (_ CertificateFile, err error) {
	defer explain(&err, "looking at %s", key)
	file, found, err := one(ctx, s.read(), func(r row) (CertificateFile, error) {
		file := CertificateFile{Key: key}
		return file, r.Scan(intoTime(&file.Modified), &file.Size)
	}, `SELECT modified, size FROM certificate_files WHERE key = $1`, []byte(key))
	if err != nil || found {
		return file, err
	}
	from, to := below(key)
	found, err = exists(ctx, s.read(), `SELECT 1 FROM certificate_files WHERE key >= $1 AND key < $2 LIMIT 1`, from, to)
	if err != nil {
		return CertificateFile{}, err
	}
	if !found {
		return CertificateFile{}, noCertificateFile(key)
	}
	return CertificateFile{Key: key, Directory: true}, nil
}

// DeleteCertificateFiles deletes a key and all below it. It is no error if
// there is nothing.
func (s *Store) DeleteCertificateFiles(ctx context.Context, key string) (err error) {
	defer explain(&err, "deleting %s", key)
	from, to := below(key)
	_, err = s.single().exec(ctx, `DELETE FROM certificate_files WHERE key = $1 OR (key >= $2 AND key < $3)`, []byte(key), from, to)
	return err
}

// CertificateKeys lists the keys below a directory: those with content, and the
// directories between. It goes one level down only, unless
// recursive. The empty directory holds all.
func (s *Store) CertificateKeys(ctx context.Context, directory string, recursive bool) (keys []string, err error) {
	defer explain(&err, "listing %s", directory)
	prefix := directory + "/"
	query := `SELECT key FROM certificate_files WHERE key >= $1 AND key < $2 ORDER BY key`
	from, to := below(directory)
	args := []any{from, to}
	if directory == "" {
		prefix, query, args = "", `SELECT key FROM certificate_files ORDER BY key`, nil
	}
	seen := map[string]bool{}
	err = each(ctx, s.read(), scanBytes, func(key []byte) bool {
		parts := strings.Split(strings.TrimPrefix(string(key), prefix), "/")
		if !recursive {
			parts = parts[:1]
		}
		for i := range parts {
			if found := prefix + strings.Join(parts[:i+1], "/"); !seen[found] {
				seen[found] = true
				keys = append(keys, found)
			}
		}
		return true
	}, query, args...)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, noCertificateFile(directory)
	}
	return keys, nil
}

// CertificateLock is a lock as somebody holds it.
type CertificateLock struct {
	Holder string
	Beat   int64 // another number each time the holder says that it lives
}

// TakeCertificateLock takes the lock of that name for holder, who must be
// nobody else's name, and tells whether it has it; if not, it returns the lock
// as it is held. It takes away a lock that is still as stale says: nothing else
// ends one whose holder has died. Of concurrent calls one wins.
func (s *Store) TakeCertificateLock(ctx context.Context, name, holder string, stale CertificateLock) (held CertificateLock, taken bool, err error) {
	defer explain(&err, "taking the lock %s", name)
	for range 3 { // it may be released between the two statements
		t := s.single()
		taken, err = exists(ctx, t, `INSERT INTO certificate_locks (name, holder, beat) VALUES ($1, $2, $3)
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, beat = excluded.beat
			WHERE certificate_locks.holder = $4 AND certificate_locks.beat = $5
			RETURNING name`, name, holder, t.now, stale.Holder, stale.Beat)
		if err != nil || taken {
			return CertificateLock{}, taken, err
		}
		var found bool
		held, found, err = one(ctx, t, func(r row) (l CertificateLock, err error) {
			return l, r.Scan(&l.Holder, &l.Beat)
		}, `SELECT holder, beat FROM certificate_locks WHERE name = $1`, name)
		if err != nil || found {
			return held, false, err
		}
	}
	return CertificateLock{}, false, nil
}

// BeatCertificateLock says that holder lives, and tells whether it still has
// the lock.
func (s *Store) BeatCertificateLock(ctx context.Context, name, holder string) (held bool, err error) {
	defer explain(&err, "keeping the lock %s", name)
	// Adding rather than writing the time: a clock that is set back must not
	// make two beats look alike.
	n, err := s.single().exec(ctx, `UPDATE certificate_locks SET beat = beat + 1 WHERE name = $1 AND holder = $2`, name, holder)
	return n > 0, err
}

// ReleaseCertificateLock ends a lock if holder has it.
func (s *Store) ReleaseCertificateLock(ctx context.Context, name, holder string) (err error) {
	defer explain(&err, "releasing the lock %s", name)
	_, err = s.single().exec(ctx, `DELETE FROM certificate_locks WHERE name = $1 AND holder = $2`, name, holder)
	return err
}

// below bounds the keys below a directory; "0" is the byte after "/".
func below(directory string) (from, to []byte) {
	return []byte(directory + "/"), []byte(directory + "0")
}

func noCertificateFile(key string) error {
	return platform.NotFoundf("there is no certificate file %s", key)
}

func scanBytes(r row) (b []byte, err error) { return b, r.Scan(&b) }
