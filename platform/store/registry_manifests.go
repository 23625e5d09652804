package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// PutManifest implements oci.Metadata. What is missing is told in the order of
// the children. A manifest that is there already keeps the media type and the
// time it was pushed with.
func (g *Registry) PutManifest(ctx context.Context, repo string, m oci.Manifest, tags []string, lease time.Time) (missing []digest.Digest, err error) {
	defer explainRegistry(&err, "storing manifest %s", m.Digest)
	annotations, err := jsonUnlessEmpty(m.Annotations, len(m.Annotations))
	if err != nil {
		return nil, err
	}
	platforms, err := jsonUnlessEmpty(m.Platforms, len(m.Platforms))
	if err != nil {
		return nil, err
	}
	err = g.s.write(ctx, func(tx tx) error {
		children, absent, err := lookUpChildren(ctx, tx, repo, m.Children)
		if missing = absent; err != nil || len(missing) > 0 {
			return err
		}
		if m.PushedAt.IsZero() {
			m.PushedAt = tx.now
		}
		var subject any
		if m.Subject != "" {
			subject = pack(m.Subject)
		}
		content := m.Content
		if content == nil {
			content = []byte{}
		}
		added, err := tx.exec(ctx, `INSERT INTO registry_manifests (repo, digest, lease, pushed_at, size, media_type, artifact_type, subject, platforms, annotations, content)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (repo, digest) DO NOTHING`,
			[]byte(repo), pack(m.Digest), lease, m.PushedAt, int64(len(content)), m.MediaType, m.ArtifactType, subject, platforms, annotations, content)
		if err != nil {
			return err
		}
		if added == 0 {
			err = extendManifest(ctx, tx, repo, m.Digest, lease)
		} else if err = insertEdges(ctx, tx, repo, m.Digest, children); err == nil {
			err = queue(ctx, tx, oci.ReviewsManifest, repo, m.Digest, lease)
		}
		if err != nil {
			return err
		}
		for _, tag := range tags {
			if err := setTag(ctx, tx, repo, tag, m); err != nil {
				return fmt.Errorf("setting tag %q: %w", tag, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return missing, nil
}

// lookUpChildren returns the children to keep an edge for, and the required
// ones that are not there, each once.
func lookUpChildren(ctx context.Context, tx tx, repo string, children []oci.Child) (kept, missing []digest.Digest, err error) {
	var blobs, others []digest.Digest
	seen := make(map[oci.Child]bool, len(children))
	for _, child := range children {
		if child.Need == oci.NeedNothing || seen[child] {
			continue
		}
		seen[child] = true
		blobs = append(blobs, child.Digest)
		if child.Need == oci.NeedAny {
			others = append(others, child.Digest)
		}
	}
	// No join: PostgreSQL, before it has counted its rows, begins one with all
	// blobs there are.
	linked, err := present(ctx, tx, repo, blobs, `SELECT l.digest FROM registry_links l
		WHERE (SELECT b.state FROM registry_blobs b WHERE b.digest = l.digest) = 'live' AND l.repo = ? AND l.digest IN (`)
	if err != nil {
		return nil, nil, err
	}
	stored, err := present(ctx, tx, repo, others, `SELECT digest FROM registry_manifests WHERE repo = ? AND digest IN (`)
	if err != nil {
		return nil, nil, err
	}
	told := map[digest.Digest]bool{}
	for _, child := range children {
		switch there := linked[child.Digest] || child.Need == oci.NeedAny && stored[child.Digest]; {
		case there, child.Need == oci.NeedNothing:
			kept = append(kept, child.Digest)
		case child.Need == oci.NeedIfThere, told[child.Digest]:
		default:
			told[child.Digest] = true
			missing = append(missing, child.Digest)
		}
	}
	return kept, missing, nil
}

// present returns those of the digests that the query finds.
func present(ctx context.Context, tx tx, repo string, digests []digest.Digest, query string) (map[digest.Digest]bool, error) {
	found := make(map[digest.Digest]bool, len(digests))
	err := inPieces(digests, func(part []digest.Digest) error {
		var q builder
		q.add(query, []byte(repo))
		q.addList(part)
		q.add(`)`)
		list, err := all(ctx, tx, scanDigest, q.text.String(), q.args...)
		for _, d := range list {
			found[d] = true
		}
		return err
	})
	return found, err
}

func insertEdges(ctx context.Context, tx tx, repo string, parent digest.Digest, children []digest.Digest) error {
	return inPieces(children, func(part []digest.Digest) error {
		var q builder
		q.add(`INSERT INTO registry_edges (repo, parent, child) VALUES ($1, $2, `)
		q.args = []any{[]byte(repo), pack(parent)}
		for i, child := range part {
			if i > 0 {
				q.add(`), ($1, $2, `)
			}
			q.add(`?`, pack(child))
		}
		q.add(`) ON CONFLICT (repo, child, parent) DO NOTHING`)
		_, err := tx.exec(ctx, q.text.String(), q.args...)
		return err
	})
}

func extendManifest(ctx context.Context, tx tx, repo string, d digest.Digest, lease time.Time) error {
	_, err := tx.exec(ctx, `UPDATE registry_manifests SET lease = $3 WHERE repo = $1 AND digest = $2 AND lease < $3`, []byte(repo), pack(d), lease)
	return err
}

// setTag points the tag at the manifest, and has what it pointed at reviewed.
func setTag(ctx context.Context, tx tx, repo, tag string, m oci.Manifest) error {
	before, had, err := one(ctx, tx, scanDigest, `SELECT digest FROM registry_tags WHERE repo = $1 AND name = $2`, []byte(repo), []byte(tag))
	if err != nil {
		return err
	}
	var checked *time.Time
	if !m.CheckedAt.IsZero() {
		checked = &m.CheckedAt
	}
	if _, err := tx.exec(ctx, `INSERT INTO registry_tags (repo, name, digest, pushed_at, checked_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (repo, name) DO UPDATE SET digest = excluded.digest, pushed_at = excluded.pushed_at, checked_at = excluded.checked_at`,
		[]byte(repo), []byte(tag), pack(m.Digest), m.PushedAt, checked); err != nil {
		return err
	}
	if !had || before == m.Digest {
		return nil
	}
	return queueManifest(ctx, tx, repo, before)
}

// queueManifest has a manifest reviewed when its lease is over.
func queueManifest(ctx context.Context, tx tx, repo string, d digest.Digest) error {
	_, err := tx.exec(ctx, insertReview+`SELECT 'manifest', repo, digest, lease FROM registry_manifests
		WHERE repo = $1 AND digest = $2`+orMoveReview, []byte(repo), pack(d))
	return err
}

const (
	manifestColumns = `m.digest, m.lease, m.pushed_at, m.size, m.media_type, m.artifact_type, m.subject, m.platforms, m.annotations`
	manifestFound   = ` FROM registry_manifests m WHERE m.repo = $1 AND m.digest = $2`
)

func scanManifest(r row) (m oci.Manifest, err error) {
	return m, r.Scan(manifestInto(&m)...)
}

func manifestInto(m *oci.Manifest, more ...any) []any {
	return append([]any{intoDigest(&m.Digest), intoTime(&m.Lease), intoTime(&m.PushedAt), &m.Size, &m.MediaType, &m.ArtifactType,
		intoDigest(&m.Subject), intoJSON(&m.Platforms), intoJSON(&m.Annotations)}, more...)
}

// Manifest implements oci.Metadata.
func (g *Registry) Manifest(ctx context.Context, repo string, d digest.Digest) (m oci.Manifest, found bool, err error) {
	defer explainRegistry(&err, "reading manifest %s", d)
	return one(ctx, g.read(), func(r row) (m oci.Manifest, err error) {
		return m, r.Scan(manifestInto(&m, &m.Content)...)
	}, `SELECT `+manifestColumns+`, m.content`+manifestFound, []byte(repo), pack(d))
}

// TaggedManifest implements oci.Metadata.
func (g *Registry) TaggedManifest(ctx context.Context, repo, tag string) (m oci.Manifest, found bool, err error) {
	defer explainRegistry(&err, "reading the manifest of tag %q", tag)
	return one(ctx, g.read(), func(r row) (m oci.Manifest, err error) {
		return m, r.Scan(manifestInto(&m, intoTimeOrZero(&m.CheckedAt), &m.Content)...)
	}, `SELECT `+manifestColumns+`, t.checked_at, m.content FROM registry_tags t
		JOIN registry_manifests m ON m.repo = t.repo AND m.digest = t.digest WHERE t.repo = $1 AND t.name = $2`, []byte(repo), []byte(tag))
}

// Whole implements oci.Metadata.
func (g *Registry) Whole(ctx context.Context, repo string, d digest.Digest) (whole bool, err error) {
	defer explainRegistry(&err, "looking whether manifest %s is whole", d)
	return exists(ctx, g.read(), `WITH RECURSIVE tree (digest) AS (
			SELECT digest FROM registry_manifests WHERE repo = $1 AND digest = $2
			UNION
			SELECT e.child FROM tree t JOIN registry_edges e ON e.repo = $1 AND e.parent = t.digest)
		SELECT 1 WHERE EXISTS (SELECT 1 FROM tree) AND NOT EXISTS (SELECT 1 FROM tree t
			WHERE NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = $1 AND m.digest = t.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_links l JOIN registry_blobs b ON b.digest = l.digest
				WHERE l.repo = $1 AND l.digest = t.digest AND b.state = 'live'))`, []byte(repo), pack(d))
}

// RenewManifest implements oci.Metadata.
func (g *Registry) RenewManifest(ctx context.Context, repo string, d digest.Digest, lease time.Time) (found bool, err error) {
	defer explainRegistry(&err, "renewing the lease of manifest %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		have, found, err := one(ctx, tx, scanTime, `SELECT m.lease`+manifestFound, []byte(repo), pack(d))
		if err != nil || !found || !have.Before(lease) {
			return found, err
		}
		return true, extendManifest(ctx, tx, repo, d, lease)
	})
}

// DeleteTag implements oci.Metadata.
func (g *Registry) DeleteTag(ctx context.Context, repo, tag string) (found bool, err error) {
	defer explainRegistry(&err, "deleting tag %q", tag)
	return g.change(ctx, func(tx tx) (bool, error) {
		d, found, err := one(ctx, tx, scanDigest, `DELETE FROM registry_tags WHERE repo = $1 AND name = $2 RETURNING digest`, []byte(repo), []byte(tag))
		if err != nil || !found {
			return false, err
		}
		return true, queueManifest(ctx, tx, repo, d)
	})
}

// DeleteManifest implements oci.Metadata.
func (g *Registry) DeleteManifest(ctx context.Context, repo string, d digest.Digest) (found bool, err error) {
	defer explainRegistry(&err, "deleting manifest %s", d)
	return g.change(ctx, func(tx tx) (bool, error) { return removeManifest(ctx, tx, repo, d) })
}

// WithdrawManifest implements oci.Metadata.
func (g *Registry) WithdrawManifest(ctx context.Context, repo string, d digest.Digest, lease time.Time) (found bool, err error) {
	defer explainRegistry(&err, "deleting manifest %s", d)
	return g.change(ctx, func(tx tx) (bool, error) {
		have, found, err := one(ctx, tx, scanTime, `SELECT m.lease`+manifestFound, []byte(repo), pack(d))
		if err != nil || !found {
			return false, err
		}
		needed, err := exists(ctx, tx, `SELECT 1 WHERE EXISTS (SELECT 1 FROM registry_edges WHERE repo = $1 AND child = $2 AND parent <> $2)`, []byte(repo), pack(d))
		switch {
		case err != nil:
			return false, err
		case needed:
			return false, oci.ErrInUse
		case have.After(lease):
			return false, oci.ErrRenewed
		}
		return removeManifest(ctx, tx, repo, d)
	})
}

// removeManifest deletes a manifest with its tags and edges, and has reviewed
// what may have lived by it alone: children that no other manifest refers to,
// and its referrers.
func removeManifest(ctx context.Context, tx tx, repo string, d digest.Digest) (found bool, err error) {
	for _, children := range []string{
		`SELECT 'link', c.repo, c.digest, c.lease FROM registry_edges e JOIN registry_links c`,
		`SELECT 'manifest', c.repo, c.digest, c.lease FROM registry_edges e JOIN registry_manifests c`,
	} {
		if _, err := tx.exec(ctx, insertReview+children+` ON c.repo = e.repo AND c.digest = e.child WHERE e.repo = $1 AND e.parent = $2
			AND NOT EXISTS (SELECT 1 FROM registry_edges o WHERE o.repo = e.repo AND o.child = e.child AND o.parent <> e.parent)`+orMoveReview,
			[]byte(repo), pack(d)); err != nil {
			return false, err
		}
	}
	if n, err := tx.exec(ctx, `DELETE FROM registry_manifests WHERE repo = $1 AND digest = $2`, []byte(repo), pack(d)); err != nil || n == 0 {
		return false, err
	}
	if _, err := tx.exec(ctx, insertReview+`SELECT 'manifest', repo, digest, lease FROM registry_manifests
		WHERE repo = $1 AND subject = $2`+orMoveReview, []byte(repo), pack(d)); err != nil {
		return false, err
	}
	return true, dropReview(ctx, tx, oci.ReviewsManifest, repo, d)
}

// CheckTag implements oci.Metadata.
func (g *Registry) CheckTag(ctx context.Context, repo, tag string, at time.Time) (err error) {
	defer explainRegistry(&err, "noting the check of tag %q", tag)
	_, err = g.s.single().exec(ctx, `UPDATE registry_tags SET checked_at = $3 WHERE repo = $1 AND name = $2`,
		[]byte(repo), []byte(tag), at)
	return err
}

// Tags implements oci.Metadata.
func (g *Registry) Tags(ctx context.Context, repo, last string, n int) (tags []string, known bool, err error) {
	defer explainRegistry(&err, "listing tags")
	tags, err = all(ctx, g.read(), scanString, `SELECT name FROM registry_tags WHERE repo = $1 AND name > $2 ORDER BY name LIMIT $3`,
		[]byte(repo), []byte(last), max(n, 0))
	if err != nil || len(tags) > 0 {
		return tags, err == nil, err
	}
	known, err = exists(ctx, g.read(), `SELECT 1 WHERE EXISTS (SELECT 1 FROM registry_manifests WHERE repo = $1)
		OR EXISTS (SELECT 1 FROM registry_links WHERE repo = $1)`, []byte(repo))
	return nil, known, err
}

// Referrers implements oci.Metadata.
func (g *Registry) Referrers(ctx context.Context, repo string, subject digest.Digest, artifactType string, after digest.Digest, n int, visit func(oci.Manifest) bool) (err error) {
	defer explainRegistry(&err, "listing the referrers of %s", subject)
	var q builder
	q.add(`SELECT `+manifestColumns+` FROM registry_manifests m WHERE m.repo = ? AND m.subject = ? AND m.digest > ?`, []byte(repo), pack(subject), pack(after))
	if artifactType != "" {
		q.add(` AND m.artifact_type = ?`, artifactType)
	}
	q.add(` ORDER BY m.digest LIMIT ?`, max(n, 0))
	return each(ctx, g.read(), scanManifest, visit, q.text.String(), q.args...)
}

func jsonUnlessEmpty(v any, n int) (any, error) {
	if n == 0 {
		return nil, nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return string(text), nil
}
