package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

func TestRegistry_DueInOrder(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		check := func(now time.Time, n int, next time.Time, want ...oci.Review) {
			t.Helper()
			list, then := get2(g.Due(t.Context(), now, n)).or(t)
			same(t, "reviews", list, want)
			equal(t, "next", then, next)
		}
		check(hour(9), 10, time.Time{})
		commit(t, g, "a", "two", hour(2))
		commit(t, g, "a", "one", hour(1))
		put(t, g, "a", image("three"), hour(3))
		one, two, three := linkReview("a", "one"), linkReview("a", "two"), manifestReview("a", "three")
		check(noon, 10, hour(1))
		check(hour(1), 10, hour(2), one)
		check(hour(9), 10, time.Time{}, one, two, three)
		check(hour(9), 3, time.Time{}, one, two, three)
		check(hour(9), 2, hour(3), one, two)
		check(hour(9), 0, hour(1))

		ok(t, g.PutOff(t.Context(), one, hour(4)))
		check(hour(9), 10, time.Time{}, two, three, one)
		commit(t, g, "a", "two", hour(5)) // the review finds the longer lease
		check(hour(2), 10, hour(3), two)
		equal(t, "verdict", get(g.ReviewLink(t.Context(), "a", of("two"), hour(2))).or(t), oci.Leased)
		check(hour(2), 10, hour(3))
		check(hour(9), 10, time.Time{}, three, one, two)

		// What was put off is looked at earlier when there is a new reason to.
		get(g.DeleteManifest(t.Context(), "a", of("three"))).or(t)
		put(t, g, "a", image("app", "one"), hour(1))
		equal(t, "verdict", get(g.ReviewLink(t.Context(), "a", of("one"), hour(9))).or(t), oci.Needed)
		check(hour(9), 10, time.Time{}, manifestReview("a", "app"), two)
		ok(t, g.PutOff(t.Context(), one, hour(6)))
		equal(t, "verdict", get(g.ReviewManifest(t.Context(), "a", of("app"), hour(1))).or(t), oci.Deleted)
		check(hour(1), 10, hour(5), one)
		equal(t, "verdict", get(g.ReviewLink(t.Context(), "a", of("one"), hour(1))).or(t), oci.Deleted)
		check(hour(1), 10, hour(5), blobReview("one"))

		ok(t, g.PutOff(t.Context(), blobReview("one"), hour(7)))
		check(hour(9), 10, time.Time{}, two, blobReview("one"))
		_, condemned, err := g.Condemn(t.Context(), of("one"))
		ok(t, err)
		equal(t, "condemned", condemned, true)
		check(hour(9), 10, time.Time{}, two)
		// A deletion that failed after that is put off like any other.
		ok(t, g.PutOff(t.Context(), blobReview("one"), hour(8)))
		check(hour(9), 10, time.Time{}, two, blobReview("one"))
		equal(t, "verdict", get(g.ReviewLink(t.Context(), "b", of("two"), hour(9))).or(t), oci.Gone)
	})
}

func TestRegistry_DropRepositories(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		dropped := []string{"svc:1", "svc:1/web", "svc:1/web/x", "svc:1/é"}
		kept := []string{"svc:1-2", "svc:1.", "svc:10", "svc:2", "svc:", "svc"}
		for _, repo := range append(append([]string{}, dropped...), kept...) {
			commit(t, g, repo, "shared", hour(5))
			commit(t, g, repo, "own of "+repo, hour(5))
			put(t, g, repo, image("app", "shared", "own of "+repo), hour(5), "latest")
			put(t, g, repo, index("list", "app"), hour(5), "v1")
			put(t, g, repo, referrer("signature", "app"), hour(5))
		}
		ok(t, g.DropRepositories(t.Context(), "svc:1"))
		ok(t, g.DropRepositories(t.Context(), "svc:1"))
		for _, repo := range dropped {
			_, known := get2(g.Tags(t.Context(), repo, "", 10)).or(t)
			equal(t, repo+" is known", known, false)
			tagged(t, g, repo, "latest", "")
			there(t, g, repo, "app", time.Time{})
			leased(t, g, repo, "shared", time.Time{})
		}
		settle(t, g, noon)
		for _, repo := range dropped {
			state(t, g, "own of "+repo, "", 0)
		}
		settle(t, g, hour(9))
		for _, repo := range kept {
			tagged(t, g, repo, "latest", "app")
			there(t, g, repo, "signature", hour(5))
			leased(t, g, repo, "own of "+repo, hour(5))
		}
		state(t, g, "shared", oci.Live, 0)
	})
}

func TestRegistry_GarbageChangesNothing(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		for _, blob := range []string{"base", "left", "right", "sbom"} {
			commit(t, g, "a", blob, hour(1))
		}
		commit(t, g, "b", "right", hour(5))
		put(t, g, "a", image("l", "base", "left"), hour(1))
		put(t, g, "a", image("r", "base", "right"), hour(1))
		put(t, g, "a", index("list", "l", "r"), hour(1), "latest")
		put(t, g, "a", referrer("signature", "list", "sbom"), hour(1))
		settle(t, g, hour(1))
		get(g.DeleteTag(t.Context(), "a", "latest")).or(t)

		asked := map[string]int{}
		count := func(now time.Time, keep string) oci.Garbage {
			t.Helper()
			counts, err := g.Garbage(t.Context(), now, func(repo string, d digest.Digest) (bool, error) {
				equal(t, "repository", repo, "a")
				asked[string(d)]++
				_, err := g.Totals(t.Context()) // it may use the database
				return d == of(keep), err
			})
			ok(t, err)
			return counts
		}
		same(t, "before the lease is over", count(noon, ""), oci.Garbage{})
		same(t, "with the index kept", count(hour(1), "list"), oci.Garbage{})
		same(t, "with a part kept", count(hour(1), "r"), oci.Garbage{Manifests: 3, Links: 2, Blobs: 2, Bytes: 8})
		want := oci.Garbage{Manifests: 4, Links: 4, Blobs: 3, Bytes: 12}
		clear(asked)
		same(t, "all", count(hour(1), ""), want)
		for d, n := range asked {
			equal(t, "times asked about "+d, n, 1)
		}
		_, err := g.Garbage(t.Context(), hour(1), func(string, digest.Digest) (bool, error) { return false, errTest })
		if !errors.Is(err, errTest) {
			t.Errorf("when keep fails: %v", err)
		}
		same(t, "deleted", settle(t, g, hour(1)), want)
		same(t, "afterwards", count(hour(1), ""), oci.Garbage{})
	})
}
