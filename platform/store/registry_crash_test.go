package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

// sound checks what must be true of the rows at any time.
func sound(t *testing.T, db *sql.DB) {
	t.Helper()
	for rule, violated := range map[string]string{
		"a link without its blob": `SELECT COUNT(*) FROM registry_links l
			WHERE NOT EXISTS (SELECT 1 FROM registry_blobs b WHERE b.digest = l.digest AND b.state = 'live')`,
		"a manifest without what it needs": `SELECT COUNT(*) FROM registry_edges e
			WHERE NOT EXISTS (SELECT 1 FROM registry_links l WHERE l.repo = e.repo AND l.digest = e.child)
			AND NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = e.repo AND m.digest = e.child)`,
		"a tag of nothing": `SELECT COUNT(*) FROM registry_tags t
			WHERE NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = t.repo AND m.digest = t.digest)`,
		"an edge of nothing": `SELECT COUNT(*) FROM registry_edges e
			WHERE NOT EXISTS (SELECT 1 FROM registry_manifests m WHERE m.repo = e.repo AND m.digest = e.parent)`,
		"a blob nobody will look at": `SELECT COUNT(*) FROM registry_blobs b WHERE b.state = 'live'
			AND NOT EXISTS (SELECT 1 FROM registry_links l WHERE l.digest = b.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'blob' AND r.digest = b.digest)`,
		"a link nobody will look at": `SELECT COUNT(*) FROM registry_links l
			WHERE NOT EXISTS (SELECT 1 FROM registry_edges e WHERE e.repo = l.repo AND e.child = l.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'link' AND r.repo = l.repo AND r.digest = l.digest)`,
		"a manifest nobody will look at": `SELECT COUNT(*) FROM registry_manifests m
			WHERE NOT EXISTS (SELECT 1 FROM registry_edges e WHERE e.repo = m.repo AND e.child = m.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_tags t WHERE t.repo = m.repo AND t.digest = m.digest)
			AND NOT EXISTS (SELECT 1 FROM registry_manifests s WHERE s.repo = m.repo AND s.digest = m.subject)
			AND NOT EXISTS (SELECT 1 FROM registry_reviews r WHERE r.kind = 'manifest' AND r.repo = m.repo AND r.digest = m.digest)`,
	} {
		var n int
		ok(t, db.QueryRowContext(context.WithoutCancel(t.Context()), violated).Scan(&n))
		if n > 0 {
			t.Errorf("there is %s (%d times)", rule, n)
		}
	}
}

// collectOnce does reviews that are due, as the collector does, and returns how
// many blobs it deleted.
func collectOnce(ctx context.Context, g *store.Registry, now time.Time) (deleted int64, err error) {
	list, _, err := g.Due(ctx, now, 10)
	for _, r := range list {
		if err != nil {
			break
		}
		switch r.Kind {
		case oci.ReviewsManifest:
			_, err = g.ReviewManifest(ctx, r.Repo, r.Digest, now)
		case oci.ReviewsLink:
			_, err = g.ReviewLink(ctx, r.Repo, r.Digest, now)
		default:
			var gen int64
			var condemned, forgotten bool
			if gen, condemned, err = g.Condemn(ctx, r.Digest); err == nil && condemned {
				forgotten, err = g.Forget(ctx, r.Digest, gen)
			}
			if forgotten {
				deleted++
			}
		}
	}
	return deleted, err
}

// Whoever was told that a blob is there can use it while the lease lasts,
// whatever others delete and the collector collects meanwhile.
func TestRegistry_LeasesHoldAgainstTheCollector(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		const pushers, collectors, pushes = 3, 2, 25
		g := open(t, dsn).Registry()
		ctx := context.WithoutCancel(t.Context())
		blobs := strings.Split("abcdefgh", "")
		var minutes, left, held, deleted atomic.Int64
		clock := func() time.Time { return noon.Add(time.Duration(minutes.Load()) * time.Minute) }
		left.Store(pushers)
		push := func(random *rand.Rand) error {
			repo := []string{"x", "y"}[random.IntN(2)]
			first, second := blobs[random.IntN(len(blobs))], blobs[random.IntN(len(blobs))]
			m := image(first+second, first, second)
			minutes.Add(1)
			lease := clock().Add(5 * time.Minute)
			for _, blob := range []string{first, second} {
				found, err := g.RenewBlob(ctx, repo, of(blob), lease)
				if err == nil && !found {
					_, found, err = g.MountBlob(ctx, "x", repo, of(blob), lease)
				}
				if err == nil && !found {
					err = g.CommitBlob(ctx, repo, of(blob), 1, lease)
				}
				if err != nil {
					return err
				}
			}
			missing, err := g.PutManifest(ctx, repo, m, []string{"t" + first}, lease)
			if err != nil {
				return err
			}
			if len(missing) > 0 && clock().Before(lease) {
				return fmt.Errorf("%s lacks %v at %s, leased until %s", m.Content, missing, clock(), lease)
			}
			if clock().Before(lease) {
				held.Add(1)
			}
			if random.IntN(2) == 0 {
				_, err = g.DeleteTag(ctx, repo, "t"+first)
			} else {
				_, err = g.DeleteManifest(ctx, repo, m.Digest)
			}
			return err
		}
		for _, err := range together(pushers+collectors, func(i int) error {
			if i >= pushers {
				for left.Load() > 0 {
					n, err := collectOnce(ctx, g, clock())
					if err != nil {
						return err
					}
					deleted.Add(n)
				}
				return nil
			}
			defer left.Add(-1)
			random := rand.New(rand.NewPCG(uint64(i), 7))
			for n := 0; n < pushes || deleted.Load() == 0 && n < 20*pushes; n++ {
				if err := push(random); err != nil {
					return err
				}
			}
			return nil
		}) {
			ok(t, err)
		}
		if held.Load() == 0 || deleted.Load() == 0 {
			t.Errorf("%d leases were relied on, %d blobs deleted: that says nothing", held.Load(), deleted.Load())
		}
		sound(t, raw(t, dsn))
		for _, repo := range []string{"x", "y"} {
			for _, blob := range blobs {
				get(g.DeleteTag(ctx, repo, "t"+blob)).or(t)
			}
		}
		settle(t, g, noon.AddDate(1, 0, 0))
		same(t, "what is left", get(g.Totals(ctx)).or(t), oci.Totals{})
	})
}

// What is committed again between being condemned and forgotten stays.
func TestRegistry_CommitAgainstForget(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		ctx := context.WithoutCancel(t.Context())
		for range 20 {
			ok(t, g.CommitBlob(ctx, "a", of("x"), 1, noon))
			get(g.UnlinkBlob(ctx, "a", of("x"))).or(t)
			for _, err := range together(3, func(i int) error {
				if i > 0 {
					return g.CommitBlob(ctx, fmt.Sprint("repo", i), of("x"), 1, noon)
				}
				gen, condemned, err := g.Condemn(ctx, of("x"))
				if err == nil && condemned {
					_, err = g.Forget(ctx, of("x"), gen)
				}
				return err
			}) {
				ok(t, err)
			}
			for _, repo := range []string{"repo1", "repo2"} {
				equal(t, "blob in "+repo, get2(g.Blob(ctx, repo, of("x"))).b, true)
				get(g.UnlinkBlob(ctx, repo, of("x"))).or(t)
			}
		}
	})
}

func numbered(n int) (blobs []string, m oci.Manifest) {
	blobs = []string{"base", fmt.Sprint("layer ", n)}
	return blobs, image(fmt.Sprint("image ", n), blobs...)
}

// pushForEver pushes images as fast as it can, each under the tag of the one
// before and a tag of its own, deletes what is old, collects, and prints a line
// for each push.
func pushForEver(dsn string) {
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := store.Open(ctx, dsn, options())
	fatal(err)
	g := s.Registry()
	n := 1
	if m, found, err := g.TaggedManifest(ctx, "a", "latest"); err != nil {
		fatal(err)
	} else if found {
		_, err := fmt.Sscanf(string(m.Content), "image %d", &n)
		fatal(err)
		n++
	}
	for ; ; n++ {
		blobs, m := numbered(n)
		for _, blob := range blobs {
			fatal(g.CommitBlob(ctx, "a", of(blob), int64(len(blob)), noon))
		}
		missing, err := g.PutManifest(ctx, "a", m, []string{"latest", fmt.Sprint(n)}, noon)
		fatal(err)
		if len(missing) > 0 {
			fatal(errors.New("a layer is missing"))
		}
		fmt.Println(n)
		tags, _, err := g.Tags(ctx, "a", "", 1000)
		fatal(err)
		for _, tag := range tags {
			if old, err := strconv.Atoi(tag); err == nil && old <= n-3 {
				_, err := g.DeleteTag(ctx, "a", tag)
				fatal(err)
			}
		}
		_, err = collectOnce(ctx, g, noon)
		fatal(err)
	}
}

func TestRegistry_SurvivesKill(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		ok(t, get(store.Open(t.Context(), dsn, options())).or(t).Close())
		random := rand.New(rand.NewPCG(3, 4))
		for range 5 {
			acknowledged := killAfter(t, pushEnv, dsn, 1+random.IntN(8), time.Duration(random.IntN(6000))*time.Microsecond)
			s := get(store.Open(t.Context(), dsn, options())).or(t)
			g := s.Registry()
			blobs, m := numbered(acknowledged)
			got, found := get2(g.TaggedManifest(t.Context(), "a", fmt.Sprint(acknowledged))).or(t)
			equal(t, fmt.Sprint("image ", acknowledged, " is there"), found, true)
			equal(t, "digest", got.Digest, m.Digest)
			for _, blob := range blobs {
				equal(t, blob+" is there", get2(g.Blob(t.Context(), "a", of(blob))).b, true)
			}
			latest, _ := get2(g.TaggedManifest(t.Context(), "a", "latest")).or(t)
			if _, next := numbered(acknowledged + 1); latest.Digest != m.Digest && latest.Digest != next.Digest {
				t.Errorf("latest is %s after image %d", latest.Content, acknowledged)
			}
			db := raw(t, dsn)
			sound(t, db)
			ok(t, db.Close())
			settle(t, g, noon)
			for _, b := range get(g.Blobs(t.Context(), "", 1000)).or(t) {
				if b.State == oci.Condemned { // killed before it was forgotten
					get(g.Forget(t.Context(), b.Digest, b.Gen)).or(t)
				}
			}
			if totals := get(g.Totals(t.Context())).or(t); totals.Manifests > 5 || totals.Blobs > 7 {
				t.Errorf("the collector leaves %+v", totals)
			}
			ok(t, s.Close())
		}
	})
}
