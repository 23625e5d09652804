package store

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const selectLink = `SELECT b.size, l.lease FROM registry_links l JOIN registry_blobs b ON b.digest = l.digest
	WHERE l.repo = $1 AND l.digest = $2 AND b.state = 'live'`

func scanLink(r row) (l oci.Link, err error) { return l, r.Scan(&l.Size, intoTime(&l.Lease)) }

// Blob implements oci.Metadata.
func (g *Registry) Blob(ctx context.Context, repo string, d digest.Digest) (l oci.Link, found bool, err error) {
	defer explainRegistry(&err, "reading the link of blob %s", d)
	return one(ctx, g.read(), scanLink, selectLink, []byte(repo), pack(d))
}

const selectBlobs = `SELECT digest, size, state, gen FROM registry_blobs`

func scanBlob(r row) (b oci.Blob, err error) {
	return b, r.Scan(intoDigest(&b.Digest), &b.Size, &b.State, &b.Gen)
}

// BlobState implements oci.Metadata.
func (g *Registry) BlobState(ctx context.Context, d digest.Digest) (b oci.Blob, found bool, err error) {
	defer explainRegistry(&err, "reading blob %s", d)
	return one(ctx, g.read(), scanBlob, selectBlobs+` WHERE digest = $1`, pack(d))
}

// Blobs implements oci.Metadata.
func (g *Registry) Blobs(ctx context.Context, after digest.Digest, n int) (list []oci.Blob, err error) {
	defer explainRegistry(&err, "listing blobs")
	return all(ctx, g.read(), scanBlob, selectBlobs+` WHERE digest > $1 ORDER BY digest LIMIT $2`, pack(after), max(n, 0))
}

// CommitBlob implements oci.Metadata.
func (g *Registry) CommitBlob(ctx context.Context, repo string, d digest.Digest, size int64, lease time.Time) (err error) {
	defer explainRegistry(&err, "committing blob %s", d)
	return g.s.write(ctx, func(tx tx) error {
		if _, err := tx.exec(ctx, `INSERT INTO registry_blobs (digest, size, state, gen) VALUES ($1, $2, 'live', 0)
			ON CONFLICT (digest) DO UPDATE SET size = excluded.size, state = 'live'
			WHERE registry_blobs.state <> 'live' OR registry_blobs.size <> excluded.size`, pack(d), size); err != nil {
			return err
		}
		return link(ctx, tx, repo, d, lease)
	})
}

// link gives the repository the blob, or extends the lease it has on it.
func link(ctx context.Context, tx tx, repo string, d digest.Digest, lease time.Time) error {
	added, err := tx.exec(ctx, `INSERT INTO registry_links (repo, digest, lease) VALUES ($1, $2, $3) ON CONFLICT (repo, digest) DO NOTHING`,
		[]byte(repo), pack(d), lease)
	if err != nil {
		return err
	}
	if added > 0 {
		return queue(ctx, tx, oci.ReviewsLink, repo, d, lease)
	}
	_, err = tx.exec(ctx, `UPDATE registry_links SET lease = $3 WHERE repo = $1 AND digest = $2 AND lease < $3`, []byte(repo), pack(d), lease)
	return err
}

// MountBlob implements oci.Metadata.
func (g *Registry) MountBlob(ctx context.Context, from, repo string, d digest.Digest, lease time.Time) (size int64, found bool, err error) {
	defer explainRegistry(&err, "mounting blob %s", d)
	err = g.s.write(ctx, func(tx tx) error {
		source, there, err := one(ctx, tx, scanLink, selectLink, []byte(from), pack(d))
		if err != nil || !there {
			return err
		}
		size, found = source.Size, true
		return link(ctx, tx, repo, d, lease)
	})
	if err != nil {
		return 0, false, err
	}
	return size, found, nil
}

// RenewBlob implements oci.Metadata.
func (g *Registry) RenewBlob(ctx context.Context, repo string, d digest.Digest, lease time.Time) (found bool, err error) {
	defer explainRegistry(&err, "renewing the lease of blob %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		have, found, err := one(ctx, tx, scanLink, selectLink, []byte(repo), pack(d))
		if err != nil || !found || !have.Lease.Before(lease) {
			return found, err
		}
		return true, link(ctx, tx, repo, d, lease)
	})
}

// UnlinkBlob implements oci.Metadata.
func (g *Registry) UnlinkBlob(ctx context.Context, repo string, d digest.Digest) (found bool, err error) {
	defer explainRegistry(&err, "unlinking blob %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		found, err := exists(ctx, tx, `SELECT 1 FROM registry_links WHERE repo = $1 AND digest = $2`, []byte(repo), pack(d))
		if err != nil || !found {
			return false, err
		}
		needed, err := hasParent(ctx, tx, repo, d)
		if err != nil {
			return false, err
		}
		if needed {
			return false, oci.ErrInUse
		}
		return true, unlink(ctx, tx, repo, d)
	})
}

// hasParent tells whether a manifest of the repository refers to the digest.
func hasParent(ctx context.Context, tx tx, repo string, d digest.Digest) (bool, error) {
	return exists(ctx, tx, `SELECT 1 FROM registry_edges WHERE repo = $1 AND child = $2 LIMIT 1`, []byte(repo), pack(d))
}

// unlink takes blobs from the repository, and has those reviewed that no other
// repository has.
func unlink(ctx context.Context, tx tx, repo string, digests ...digest.Digest) error {
	for _, statement := range []struct {
		text string
		args []any
		end  string
	}{
		{`DELETE FROM registry_links WHERE repo = ? AND digest IN (`, []any{[]byte(repo)}, ``},
		{`DELETE FROM registry_reviews WHERE kind = 'link' AND repo = ? AND digest IN (`, []any{[]byte(repo)}, ``},
		{
			insertReview + `SELECT 'blob', ?, b.digest, ? FROM registry_blobs b WHERE b.digest IN (`, []any{[]byte{}, atOnce},
			` AND NOT EXISTS (SELECT 1 FROM registry_links l WHERE l.digest = b.digest)` + orMoveReview,
		},
	} {
		if err := inPieces(digests, func(part []digest.Digest) error {
			var q builder
			q.add(statement.text, statement.args...)
			q.addList(part)
			q.add(`)` + statement.end)
			_, err := tx.exec(ctx, q.text.String(), q.args...)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func isLinked(ctx context.Context, tx tx, d digest.Digest) (bool, error) {
	return exists(ctx, tx, `SELECT 1 FROM registry_links WHERE digest = $1 LIMIT 1`, pack(d))
}

// Linkers implements oci.Metadata.
func (g *Registry) Linkers(ctx context.Context, d digest.Digest, prefix string, n int) (repos []string, err error) {
	defer explainRegistry(&err, "listing who has blob %s", d)
	return all(ctx, g.read(), func(r row) (repo string, err error) { return repo, r.Scan(&repo) },
		`SELECT repo FROM registry_links`+inRange+` AND digest = $3 ORDER BY repo LIMIT $4`,
		[]byte(prefix), behind(prefix), pack(d), max(n, 0))
}

// Condemn implements oci.Metadata.
func (g *Registry) Condemn(ctx context.Context, d digest.Digest) (gen int64, condemned bool, err error) {
	defer explainRegistry(&err, "condemning blob %s", d)
	err = g.s.write(ctx, func(tx tx) error {
		if err := dropReview(ctx, tx, oci.ReviewsBlob, "", d); err != nil {
			return err
		}
		linked, err := isLinked(ctx, tx, d)
		if err != nil || linked {
			return err
		}
		gen, condemned, err = one(ctx, tx, func(r row) (n int64, err error) { return n, r.Scan(&n) },
			`UPDATE registry_blobs SET state = 'condemned', gen = CASE WHEN state = 'condemned' THEN gen ELSE gen + 1 END
			WHERE digest = $1 RETURNING gen`, pack(d))
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return gen, condemned, nil
}

// Forget implements oci.Metadata.
func (g *Registry) Forget(ctx context.Context, d digest.Digest, gen int64) (forgotten bool, err error) {
	defer explainRegistry(&err, "forgetting blob %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		n, err := tx.exec(ctx, `DELETE FROM registry_blobs WHERE digest = $1 AND state = 'condemned' AND gen = $2`, pack(d), gen)
		return n > 0, err
	})
}

// Quarantine implements oci.Metadata.
func (g *Registry) Quarantine(ctx context.Context, d digest.Digest) (found bool, err error) {
	defer explainRegistry(&err, "quarantining blob %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		n, err := tx.exec(ctx, `UPDATE registry_blobs SET state = 'quarantined' WHERE digest = $1 AND state = 'live'`, pack(d))
		return n > 0, err
	})
}

// Heal implements oci.Metadata.
func (g *Registry) Heal(ctx context.Context, d digest.Digest) (healed bool, err error) {
	defer explainRegistry(&err, "healing blob %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		n, err := tx.exec(ctx, `UPDATE registry_blobs SET state = 'live' WHERE digest = $1 AND state = 'quarantined'`, pack(d))
		return n > 0, err
	})
}
