package store

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// Garbage implements oci.Metadata: it does the reviews that are due as the
// collector does them, and those that follow from them, but in memory. It
// takes memory for what is due and for what would go.
func (g *Registry) Garbage(ctx context.Context, now time.Time, keep func(repo string, d digest.Digest) (bool, error)) (counts oci.Garbage, err error) {
	defer explainRegistry(&err, "looking for what is not needed")
	p := &preview{
		tx: g.read(), now: now, keep: keep, kept: map[oci.Review]bool{},
		gone: map[oci.Review]bool{}, parents: map[oci.Review]int64{}, links: map[digest.Digest]int64{},
	}
	if p.list, err = all(ctx, p.tx, func(r row) (v oci.Review, err error) {
		return v, r.Scan(&v.Kind, &v.Repo, intoDigest(&v.Digest))
	}, `SELECT kind, repo, digest FROM registry_reviews WHERE due_at <= $1`, now); err != nil {
		return oci.Garbage{}, err
	}
	for len(p.list) > 0 {
		next := p.list[len(p.list)-1]
		p.list = p.list[:len(p.list)-1]
		if p.gone[next] {
			continue
		}
		switch next.Kind {
		case oci.ReviewsManifest:
			err = p.manifest(ctx, next)
		case oci.ReviewsLink:
			err = p.link(ctx, next)
		default:
			err = p.blob(ctx, next)
		}
		if err != nil {
			return oci.Garbage{}, err
		}
	}
	return p.counts, nil
}

// preview is a collection that only takes notes.
type preview struct {
	tx     tx
	now    time.Time
	keep   func(repo string, d digest.Digest) (bool, error)
	kept   map[oci.Review]bool // what keep said
	counts oci.Garbage

	list    []oci.Review            // to be looked at, some perhaps again
	gone    map[oci.Review]bool     // what would be deleted
	parents map[oci.Review]int64    // how many manifests among that refer to the digest; Kind is empty
	links   map[digest.Digest]int64 // how many links of the blob are among that
}

// counted is what reviews look at.
type counted struct {
	lease time.Time
	refs  int64 // that need the object
	size  int64
}

func (p *preview) read(ctx context.Context, text string, args ...any) (counted, bool, error) {
	return one(ctx, p.tx, func(r row) (c counted, err error) {
		return c, r.Scan(intoTime(&c.lease), &c.refs, &c.size)
	}, text, args...)
}

func (p *preview) manifest(ctx context.Context, r oci.Review) error {
	repo, d := []byte(r.Repo), pack(r.Digest)
	m, found, err := p.read(ctx, `SELECT lease, (SELECT COUNT(*) FROM registry_edges WHERE repo = $1 AND child = $2)
		+ (SELECT COUNT(*) FROM registry_tags WHERE repo = $1 AND digest = $2), size FROM registry_manifests WHERE repo = $1 AND digest = $2`, repo, d)
	if err != nil || !found || m.lease.After(p.now) || m.refs > p.parents[oci.Review{Repo: r.Repo, Digest: r.Digest}] {
		return err
	}
	subject, found, err := one(ctx, p.tx, scanDigest, `SELECT s.digest FROM registry_manifests m
		JOIN registry_manifests s ON s.repo = m.repo AND s.digest = m.subject WHERE m.repo = $1 AND m.digest = $2`, repo, d)
	if err != nil || found && !p.gone[oci.Review{Kind: oci.ReviewsManifest, Repo: r.Repo, Digest: subject}] {
		return err
	}
	kept, asked := p.kept[r]
	if !asked {
		if kept, err = p.keep(r.Repo, r.Digest); err != nil {
			return err
		}
		p.kept[r] = kept
	}
	if kept {
		return nil
	}
	p.gone[r] = true
	p.counts.Manifests++
	children, err := all(ctx, p.tx, scanDigest, `SELECT child FROM registry_edges WHERE repo = $1 AND parent = $2`, repo, d)
	if err != nil {
		return err
	}
	for _, child := range children {
		p.parents[oci.Review{Repo: r.Repo, Digest: child}]++
		p.list = append(p.list, oci.Review{Kind: oci.ReviewsManifest, Repo: r.Repo, Digest: child}, oci.Review{Kind: oci.ReviewsLink, Repo: r.Repo, Digest: child})
	}
	referrers, err := all(ctx, p.tx, scanDigest, `SELECT digest FROM registry_manifests WHERE repo = $1 AND subject = $2`, repo, d)
	for _, referrer := range referrers {
		p.list = append(p.list, oci.Review{Kind: oci.ReviewsManifest, Repo: r.Repo, Digest: referrer})
	}
	return err
}

func (p *preview) link(ctx context.Context, r oci.Review) error {
	l, found, err := p.read(ctx, `SELECT lease, (SELECT COUNT(*) FROM registry_edges WHERE repo = $1 AND child = $2), 0
		FROM registry_links WHERE repo = $1 AND digest = $2`, []byte(r.Repo), pack(r.Digest))
	if err != nil || !found || l.lease.After(p.now) || l.refs > p.parents[oci.Review{Repo: r.Repo, Digest: r.Digest}] {
		return err
	}
	p.gone[r] = true
	p.counts.Links++
	p.links[r.Digest]++
	p.list = append(p.list, oci.Review{Kind: oci.ReviewsBlob, Digest: r.Digest})
	return nil
}

func (p *preview) blob(ctx context.Context, r oci.Review) error {
	b, found, err := p.read(ctx, `SELECT 0, (SELECT COUNT(*) FROM registry_links WHERE digest = $1), size FROM registry_blobs WHERE digest = $1`, pack(r.Digest))
	if err != nil || !found || b.refs > p.links[r.Digest] {
		return err
	}
	p.gone[r] = true
	p.counts.Blobs++
	p.counts.Bytes += b.size
	return nil
}
