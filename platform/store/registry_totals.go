package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// Totals implements oci.Metadata. It reads every row of the registry but the
// manifests' contents.
func (g *Registry) Totals(ctx context.Context) (t oci.Totals, err error) {
	defer explainRegistry(&err, "counting what the registry holds")
	return g.totals(ctx, "", `registry_blobs`)
}

// PrefixTotals implements oci.Metadata.
func (g *Registry) PrefixTotals(ctx context.Context, prefix string) (t oci.Totals, err error) {
	defer explainRegistry(&err, "counting what the registry holds in %s", prefix)
	return g.totals(ctx, prefix, `(SELECT DISTINCT digest FROM registry_links`+inRange+`) d JOIN registry_blobs b ON b.digest = d.digest`)
}

// inRange selects the repositories whose key begins with a prefix.
const inRange = ` WHERE repo >= $1 AND repo < $2`

// totals is one statement, so that its numbers belong together.
func (g *Registry) totals(ctx context.Context, prefix, blobs string) (t oci.Totals, err error) {
	t, _, err = one(ctx, g.read(), func(r row) (t oci.Totals, err error) {
		return t, r.Scan(&t.Repositories, &t.Manifests, &t.ManifestBytes, &t.Edges, intoTimeOrZero(&t.OldestLease), &t.Blobs, &t.PhysicalBytes, &t.LogicalBytes)
	}, `SELECT
		(SELECT COUNT(*) FROM (SELECT repo FROM registry_links`+inRange+` UNION SELECT repo FROM registry_manifests`+inRange+`) r),
		(SELECT COUNT(*) FROM registry_manifests`+inRange+`),
		CAST(COALESCE((SELECT SUM(size) FROM registry_manifests`+inRange+`), 0) AS BIGINT),
		(SELECT COUNT(*) FROM registry_edges`+inRange+`),
		(SELECT MIN(lease) FROM registry_manifests`+inRange+`),
		blobs.n, blobs.size,
		CAST(COALESCE((SELECT SUM(b.size) FROM registry_links l JOIN registry_blobs b ON b.digest = l.digest
			`+inRange+` AND b.state = 'live'), 0) AS BIGINT)
		FROM (SELECT COUNT(*) AS n, CAST(COALESCE(SUM(size), 0) AS BIGINT) AS size FROM `+blobs+` WHERE state = 'live') blobs`,
		[]byte(prefix), behind(prefix))
	return t, err
}

// Oldest implements oci.Metadata.
func (g *Registry) Oldest(ctx context.Context, prefix string, n int) (list []oci.Ref, err error) {
	defer explainRegistry(&err, "listing the oldest manifests of %s", prefix)
	return all(ctx, g.read(), func(r row) (ref oci.Ref, err error) {
		return ref, r.Scan(&ref.Repo, intoDigest(&ref.Digest), intoTime(&ref.Lease))
	}, `SELECT repo, digest, lease FROM registry_manifests`+inRange+` ORDER BY lease, repo, digest LIMIT $3`,
		[]byte(prefix), behind(prefix), max(n, 0))
}

// Repositories implements oci.Metadata.
func (g *Registry) Repositories(ctx context.Context, keys []string) (list []oci.Repository, err error) {
	defer explainRegistry(&err, "listing repositories")
	found := map[string]*contents{}
	for _, key := range keys {
		if found[key] != nil {
			continue // came with another key
		}
		part, err := g.contents(ctx, key)
		if err != nil {
			return nil, err
		}
		maps.Copy(found, part)
	}
	budget := countSteps
	for _, key := range slices.Sorted(maps.Keys(found)) {
		r, err := found[key].repository(ctx, key, &budget)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// contents are the rows of one repository.
type contents struct {
	manifests map[digest.Digest]oci.Manifest
	blobs     map[digest.Digest]int64
	children  map[digest.Digest][]digest.Digest
	tags      []oci.Tag
}

// Kinds of rows that contents reads.
const (
	rowManifest = iota
	rowLink
	rowEdge
	rowTag
)

// contents reads a repository and all below it in one statement, so that its
// rows belong together.
func (g *Registry) contents(ctx context.Context, key string) (map[string]*contents, error) {
	found := map[string]*contents{}
	_, err := all(ctx, g.read(), func(r row) (none struct{}, err error) {
		var (
			kind      int
			repo      string
			name      []byte
			d         digest.Digest
			size      int64
			pushed    time.Time
			platforms []string
		)
		if err := r.Scan(&kind, &repo, &name, intoDigest(&d), &size, intoTime(&pushed), intoJSON(&platforms)); err != nil {
			return none, err
		}
		c := found[repo]
		if c == nil {
			c = &contents{manifests: map[digest.Digest]oci.Manifest{}, blobs: map[digest.Digest]int64{}, children: map[digest.Digest][]digest.Digest{}}
			found[repo] = c
		}
		switch kind {
		case rowManifest:
			c.manifests[d] = oci.Manifest{Size: size, Platforms: platforms}
		case rowLink:
			c.blobs[d] = size
		case rowEdge:
			parent, err := unpack(name)
			if err != nil {
				return none, err
			}
			c.children[parent] = append(c.children[parent], d)
		case rowTag:
			c.tags = append(c.tags, oci.Tag{Name: string(name), Digest: d, PushedAt: pushed})
		}
		return none, nil
	}, fmt.Sprintf(`SELECT %d, repo, digest, digest, size, pushed_at, platforms FROM registry_manifests WHERE `+inTree+`
		UNION ALL SELECT %d, l.repo, l.digest, l.digest, b.size, 0, NULL FROM registry_links l JOIN registry_blobs b ON b.digest = l.digest WHERE `+inTree+`
		UNION ALL SELECT %d, repo, parent, child, 0, 0, NULL FROM registry_edges WHERE `+inTree+`
		UNION ALL SELECT %d, repo, name, digest, 0, pushed_at, NULL FROM registry_tags WHERE `+inTree,
		rowManifest, rowLink, rowEdge, rowTag), tree(key)...)
	return found, err
}

const (
	// countDepth is how deep indexes in indexes are counted. Clients make one
	// of images, rarely one of those.
	countDepth = 8
	// countSteps bounds what is followed for all tags of a listing: about a
	// second. A tag may be made of few rows and still reach all of a
	// repository, so that tags times rows is what exactness would cost.
	countSteps = 4 << 20
	// countCheck is after how many steps the context is looked at.
	countCheck = 1 << 12
)

// repository describes the repository; budget is what is left of countSteps.
func (c *contents) repository(ctx context.Context, key string, budget *int) (oci.Repository, error) {
	r := oci.Repository{Key: key, Tags: c.tags}
	for d, m := range c.manifests {
		r.SizeBytes += m.Size
		delete(c.blobs, d) // a manifest that was pushed as a blob too: the same bytes
	}
	for _, size := range c.blobs {
		r.SizeBytes += size
	}
	slices.SortFunc(r.Tags, func(a, b oci.Tag) int { return cmp.Compare(a.Name, b.Name) })
	sizes := map[digest.Digest]int64{}
	count := tally{contents: c, budget: budget, reached: map[digest.Digest]int{}}
	for i := range r.Tags {
		tag := &r.Tags[i]
		tag.Platforms = c.manifests[tag.Digest].Platforms
		size, known := sizes[tag.Digest]
		if !known {
			var err error
			if size, err = count.size(ctx, tag.Digest); err != nil {
				return oci.Repository{}, err
			}
			sizes[tag.Digest] = size
		}
		tag.SizeBytes = size
	}
	return r, nil
}

// tally adds up what is below manifests.
type tally struct {
	*contents
	budget  *int                  // of steps that are left
	reached map[digest.Digest]int // by the how manieth question
	asked   int
}

// size adds up the manifest and what is below it, each once.
func (t *tally) size(ctx context.Context, d digest.Digest) (size int64, err error) {
	depth := countDepth
	if *t.budget <= 0 {
		depth = 1
	}
	t.asked++
	t.reached[d] = t.asked
	for level := []digest.Digest{d}; len(level) > 0; depth-- {
		var below []digest.Digest
		for _, d := range level {
			m, isManifest := t.manifests[d]
			if !isManifest {
				size += t.blobs[d]
				continue
			}
			size += m.Size
			if depth == 0 {
				continue
			}
			for _, child := range t.children[d] {
				if *t.budget--; *t.budget%countCheck == 0 && ctx.Err() != nil {
					return 0, ctx.Err()
				}
				if t.reached[child] != t.asked {
					t.reached[child] = t.asked
					below = append(below, child)
				}
			}
		}
		level = below
	}
	return size, nil
}
