package store

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// Due implements oci.Metadata.
func (g *Registry) Due(ctx context.Context, now time.Time, n int) (due []oci.Review, next time.Time, err error) {
	defer explainRegistry(&err, "listing what is to be reviewed")
	type entry struct {
		oci.Review
		at time.Time
	}
	list, err := all(ctx, g.read(), func(r row) (e entry, err error) {
		return e, r.Scan(&e.Kind, &e.Repo, intoDigest(&e.Digest), intoTime(&e.at))
	}, `SELECT kind, repo, digest, due_at FROM registry_reviews ORDER BY due_at LIMIT $1`, max(n, 0)+1)
	if err != nil {
		return nil, time.Time{}, err
	}
	for _, e := range list {
		if len(due) >= n || e.at.After(now) {
			return due, e.at, nil
		}
		due = append(due, e.Review)
	}
	return due, time.Time{}, nil
}

// PutOff implements oci.Metadata.
func (g *Registry) PutOff(ctx context.Context, r oci.Review, until time.Time) (err error) {
	defer explainRegistry(&err, "putting off the review of %s %s", r.Kind, r.Digest)
	return queue(ctx, g.s.single(), r.Kind, r.Repo, r.Digest, until)
}

// review ends the review of an object by what was found about it: what may go
// is removed by remove.
func (g *Registry) review(ctx context.Context, kind, repo string, d digest.Digest, now time.Time,
	lease func(tx) (until time.Time, found bool, err error), needed func(tx) (bool, error), remove func(tx) error,
) (verdict oci.Verdict, err error) {
	err = g.s.write(ctx, func(tx tx) error {
		until, found, err := lease(tx)
		if err != nil {
			return err
		}
		if !found {
			verdict = oci.Gone
			return dropReview(ctx, tx, kind, repo, d)
		}
		inUse, err := needed(tx)
		switch {
		case err != nil:
			return err
		case inUse:
			verdict = oci.Needed
			return dropReview(ctx, tx, kind, repo, d)
		case until.After(now):
			verdict = oci.Leased
			return queue(ctx, tx, kind, repo, d, until)
		default:
			verdict = oci.Deleted
			return remove(tx)
		}
	})
	if err != nil {
		return oci.Gone, err
	}
	return verdict, nil
}

// ReviewManifest implements oci.Metadata.
func (g *Registry) ReviewManifest(ctx context.Context, repo string, d digest.Digest, now time.Time) (verdict oci.Verdict, err error) {
	defer explainRegistry(&err, "reviewing manifest %s", d)
	return g.review(ctx, oci.ReviewsManifest, repo, d, now,
		func(tx tx) (time.Time, bool, error) {
			return one(ctx, tx, scanTime, `SELECT m.lease`+manifestFound, []byte(repo), pack(d))
		},
		func(tx tx) (bool, error) {
			return exists(ctx, tx, `SELECT 1 WHERE EXISTS (SELECT 1 FROM registry_tags WHERE repo = $1 AND digest = $2)
				OR EXISTS (SELECT 1 FROM registry_edges WHERE repo = $1 AND child = $2)
				OR EXISTS (SELECT 1 FROM registry_manifests m JOIN registry_manifests s ON s.repo = m.repo AND s.digest = m.subject
					WHERE m.repo = $1 AND m.digest = $2)`, []byte(repo), pack(d))
		},
		func(tx tx) error {
			_, err := removeManifest(ctx, tx, repo, d)
			return err
		})
}

// ReviewLink implements oci.Metadata.
func (g *Registry) ReviewLink(ctx context.Context, repo string, d digest.Digest, now time.Time) (verdict oci.Verdict, err error) {
	defer explainRegistry(&err, "reviewing the link of blob %s", d)
	return g.review(ctx, oci.ReviewsLink, repo, d, now,
		func(tx tx) (time.Time, bool, error) {
			return one(ctx, tx, scanTime, `SELECT lease FROM registry_links WHERE repo = $1 AND digest = $2`, []byte(repo), pack(d))
		},
		func(tx tx) (bool, error) { return hasParent(ctx, tx, repo, d) },
		func(tx tx) error { return unlink(ctx, tx, repo, d) })
}

// inTree selects a repository and all below it.
const inTree = `(repo = $1 OR repo >= $2 AND repo < $3)`

func tree(key string) []any {
	return []any{[]byte(key), []byte(key + "/"), behind(key + "/")}
}

// dropManifests is how many manifests a step of DropRepositories removes at
// most: some milliseconds' work.
const dropManifests = 10

// DropRepositories implements oci.Metadata.
func (g *Registry) DropRepositories(ctx context.Context, key string) (err error) {
	defer explainRegistry(&err, "dropping the repositories of %s", key)
	for more := true; more; {
		more, err = g.change(ctx, func(tx tx) (bool, error) { return dropSome(ctx, tx, key) })
		if err != nil {
			return err
		}
	}
	return nil
}

// dropSome removes some manifests that no other refers to, or else some links,
// so that no manifest ever lacks what it needs. False: there was nothing.
func dropSome(ctx context.Context, tx tx, key string) (bool, error) {
	list, err := unneeded(ctx, tx, key, `registry_manifests`, dropManifests)
	if err != nil {
		return false, err
	}
	for _, ref := range list {
		if _, err := removeManifest(ctx, tx, ref.Repo, ref.Digest); err != nil {
			return false, err
		}
	}
	if len(list) > 0 {
		return true, nil
	}
	list, err = unneeded(ctx, tx, key, `registry_links`, piece)
	if err != nil || len(list) == 0 {
		return false, err
	}
	var digests []digest.Digest
	for _, ref := range list {
		if ref.Repo == list[0].Repo {
			digests = append(digests, ref.Digest)
		}
	}
	return true, unlink(ctx, tx, list[0].Repo, digests...)
}

// unneeded returns at most n of the tree's manifests or links to which no
// manifest refers, by repository.
func unneeded(ctx context.Context, tx tx, key, table string, n int) ([]oci.Ref, error) {
	return all(ctx, tx, func(r row) (ref oci.Ref, err error) {
		return ref, r.Scan(&ref.Repo, intoDigest(&ref.Digest))
	}, `SELECT repo, digest FROM `+table+` o WHERE `+inTree+`
		AND NOT EXISTS (SELECT 1 FROM registry_edges e WHERE e.repo = o.repo AND e.child = o.digest)
		ORDER BY repo, digest LIMIT $4`, append(tree(key), n)...)
}
