package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

// onEachRegistry runs a test on a fresh registry in each kind of database.
func onEachRegistry(t *testing.T, test func(t *testing.T, g *store.Registry)) {
	onEach(t, func(t *testing.T, s *store.Store) { test(t, s.Registry()) })
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// hour is a time so many hours after noon.
func hour(n int) time.Time { return noon.Add(time.Duration(n) * time.Hour) }

// of is the digest of what has that text.
func of(text string) digest.Digest { return digest.FromString(text) }

func commit(t testing.TB, g *store.Registry, repo, blob string, lease time.Time) digest.Digest {
	t.Helper()
	ok(t, g.CommitBlob(background, repo, of(blob), int64(len(blob)), lease))
	return of(blob)
}

// leased checks whether the repository has the blob, and until when.
func leased(t testing.TB, g *store.Registry, repo, blob string, want time.Time) {
	t.Helper()
	l, found := get2(g.Blob(background, repo, of(blob))).or(t)
	equal(t, blob+" in "+repo, found, !want.IsZero())
	if found {
		same(t, "link of "+blob, l, oci.Link{Size: int64(len(blob)), Lease: want})
	}
}

func state(t testing.TB, g *store.Registry, blob, want string, gen int64) {
	t.Helper()
	b, found := get2(g.BlobState(background, of(blob))).or(t)
	equal(t, blob+" is there", found, want != "")
	if found {
		same(t, "row of "+blob, b, oci.Blob{Digest: of(blob), Size: int64(len(blob)), State: want, Gen: gen})
	}
}

// due checks what is on the list of reviews, in any order.
func due(t testing.TB, g *store.Registry, now time.Time, want ...oci.Review) {
	t.Helper()
	list, _ := get2(g.Due(background, now, 1000)).or(t)
	got, expected := map[oci.Review]bool{}, map[oci.Review]bool{}
	for _, r := range list {
		got[r] = true
	}
	for _, r := range want {
		expected[r] = true
	}
	same(t, "reviews due at "+now.Format(time.TimeOnly), got, expected)
	equal(t, "number of reviews", len(list), len(want))
}

func linkReview(repo, blob string) oci.Review {
	return oci.Review{Kind: oci.ReviewsLink, Repo: repo, Digest: of(blob)}
}

func blobReview(blob string) oci.Review { return oci.Review{Kind: oci.ReviewsBlob, Digest: of(blob)} }

func TestRegistry_BlobsAreSeenWhereTheyAreLinked(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		leased(t, g, "a", "x", time.Time{})
		state(t, g, "x", "", 0)
		commit(t, g, "a", "x", hour(2))
		leased(t, g, "a", "x", hour(2))
		leased(t, g, "b", "x", time.Time{})
		state(t, g, "x", oci.Live, 0)

		// Pushing again, in whatever order the answers come, keeps the longest.
		commit(t, g, "a", "x", hour(1))
		leased(t, g, "a", "x", hour(2))
		commit(t, g, "a", "x", hour(3))
		leased(t, g, "a", "x", hour(3))

		sha512 := digest.SHA512.FromString("x")
		ok(t, g.CommitBlob(t.Context(), "a", sha512, 1, hour(1)))
		l, found := get2(g.Blob(t.Context(), "a", sha512)).or(t)
		equal(t, "found by SHA-512", found, true)
		same(t, "link", l, oci.Link{Size: 1, Lease: hour(1)})
		b, _ := get2(g.BlobState(t.Context(), sha512)).or(t)
		equal(t, "digest", b.Digest, sha512)

		ok(t, g.CommitBlob(t.Context(), "a", of(""), 0, hour(1))) // the empty blob
		leased(t, g, "a", "", hour(1))
	})
}

func TestRegistry_MountNeedsTheSourceAlive(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		mount := func(from, repo, blob string, want bool) {
			t.Helper()
			size, found, err := g.MountBlob(t.Context(), from, repo, of(blob), hour(5))
			ok(t, err)
			equal(t, "mounted", found, want)
			if want {
				equal(t, "size", size, int64(len(blob)))
			}
		}
		mount("a", "b", "x", false)
		commit(t, g, "a", "x", hour(1))
		mount("c", "b", "x", false)
		leased(t, g, "b", "x", time.Time{})
		mount("a", "b", "x", true)
		leased(t, g, "b", "x", hour(5))
		leased(t, g, "a", "x", hour(1))
		due(t, g, hour(1), linkReview("a", "x"))
		due(t, g, hour(5), linkReview("a", "x"), linkReview("b", "x"))

		get(g.UnlinkBlob(t.Context(), "a", of("x"))).or(t)
		leased(t, g, "b", "x", hour(5)) // mounted is as good as pushed
		mount("a", "c", "x", false)
		equal(t, "quarantined", get(g.Quarantine(t.Context(), of("x"))).or(t), true)
		mount("b", "c", "x", false)
	})
}

func TestRegistry_RenewBlob(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		renew := func(repo string, lease time.Time, want bool) {
			t.Helper()
			equal(t, "renewed", get(g.RenewBlob(t.Context(), repo, of("x"), lease)).or(t), want)
		}
		renew("a", hour(1), false)
		commit(t, g, "a", "x", hour(2))
		renew("a", hour(1), true)
		leased(t, g, "a", "x", hour(2))
		renew("a", hour(3), true)
		leased(t, g, "a", "x", hour(3))
		renew("b", hour(3), false)
		leased(t, g, "b", "x", time.Time{})
		get(g.Quarantine(t.Context(), of("x"))).or(t)
		renew("a", hour(4), false)
	})
}

func TestRegistry_Linkers(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		linkers := func(prefix string, n int, want ...string) {
			t.Helper()
			same(t, "linkers below "+prefix, get(g.Linkers(t.Context(), of("x"), prefix, n)).or(t), want)
		}
		linkers("", 10)
		for _, repo := range []string{"svc:1", "cache:2/ghcr.io/a", "cache:1/quay.io/a", "cache;"} {
			commit(t, g, repo, "x", hour(1))
		}
		commit(t, g, "cache:3/ghcr.io/a", "y", hour(1))
		linkers("cache:", 10, "cache:1/quay.io/a", "cache:2/ghcr.io/a")
		linkers("cache:", 1, "cache:1/quay.io/a")
		linkers("cache:", 0)
		linkers("svc:", 10, "svc:1")
		linkers("cache:3", 10)
		get(g.UnlinkBlob(t.Context(), "cache:1/quay.io/a", of("x"))).or(t)
		linkers("cache:", 10, "cache:2/ghcr.io/a")
	})
}

func TestRegistry_UnlinkBlob(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		commit(t, g, "a", "x", hour(1))
		commit(t, g, "b", "x", hour(1))
		commit(t, g, "a", "config", hour(1))
		put(t, g, "a", image("app", "config"), hour(1), "latest")

		equal(t, "unlinked", get(g.UnlinkBlob(t.Context(), "c", of("x"))).or(t), false)
		_, err := g.UnlinkBlob(t.Context(), "a", of("config"))
		if !errors.Is(err, oci.ErrInUse) {
			t.Errorf("unlinking what a manifest needs: %v", err)
		}
		leased(t, g, "a", "config", hour(1))

		equal(t, "unlinked", get(g.UnlinkBlob(t.Context(), "a", of("x"))).or(t), true)
		leased(t, g, "a", "x", time.Time{})
		leased(t, g, "b", "x", hour(1))
		due(t, g, noon) // it is linked elsewhere: nothing to look at
		equal(t, "unlinked", get(g.UnlinkBlob(t.Context(), "b", of("x"))).or(t), true)
		due(t, g, noon, blobReview("x"))
		state(t, g, "x", oci.Live, 0)
	})
}

func TestRegistry_CondemnedBlobsAreGoneUntilTheyComeAgain(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		condemn := func(want int64) {
			t.Helper()
			gen, condemned, err := g.Condemn(t.Context(), of("x"))
			ok(t, err)
			equal(t, "condemned", condemned, want > 0)
			equal(t, "generation", gen, want)
		}
		forget := func(gen int64, want bool) {
			t.Helper()
			equal(t, "forgotten", get(g.Forget(t.Context(), of("x"), gen)).or(t), want)
		}
		condemn(0)
		commit(t, g, "a", "x", noon)
		condemn(0) // linked
		get(g.UnlinkBlob(t.Context(), "a", of("x"))).or(t)
		condemn(1)
		state(t, g, "x", oci.Condemned, 1)
		due(t, g, hour(1000))
		_, found, err := g.MountBlob(t.Context(), "a", "b", of("x"), noon)
		ok(t, err)
		equal(t, "mounted a condemned blob", found, false)
		condemn(1) // what failed half-way is done again

		commit(t, g, "b", "x", noon)
		state(t, g, "x", oci.Live, 1)
		forget(1, false)
		leased(t, g, "b", "x", noon)

		get(g.UnlinkBlob(t.Context(), "b", of("x"))).or(t)
		condemn(2)
		forget(1, false) // condemned before, in vain
		forget(2, true)
		forget(2, false)
		state(t, g, "x", "", 0)
	})
}

func TestRegistry_QuarantineIsHealedByAPush(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		equal(t, "quarantined", get(g.Quarantine(t.Context(), of("x"))).or(t), false)
		commit(t, g, "a", "x", hour(1))
		commit(t, g, "b", "x", hour(1))
		put(t, g, "a", image("app", "x"), hour(1), "latest")
		equal(t, "quarantined", get(g.Quarantine(t.Context(), of("x"))).or(t), true)
		equal(t, "quarantined", get(g.Quarantine(t.Context(), of("x"))).or(t), false)
		state(t, g, "x", oci.Quarantined, 0)
		leased(t, g, "a", "x", time.Time{})
		missing := get(g.PutManifest(t.Context(), "b", image("app", "x"), nil, noon)).or(t)
		same(t, "missing", missing, []digest.Digest{of("x")})

		commit(t, g, "c", "x", hour(2)) // whoever pushes it
		for _, repo := range []string{"a", "b"} {
			leased(t, g, repo, "x", hour(1))
		}

		get(g.Quarantine(t.Context(), of("x"))).or(t)
		equal(t, "healed", get(g.Heal(t.Context(), of("x"))).or(t), true)
		equal(t, "healed", get(g.Heal(t.Context(), of("x"))).or(t), false)
		state(t, g, "x", oci.Live, 0)
		leased(t, g, "a", "x", hour(1))

		// Damaged garbage is garbage.
		commit(t, g, "a", "y", noon)
		get(g.Quarantine(t.Context(), of("y"))).or(t)
		equal(t, "verdict", get(g.ReviewLink(t.Context(), "a", of("y"), noon)).or(t), oci.Deleted)
		_, condemned, err := g.Condemn(t.Context(), of("y"))
		ok(t, err)
		equal(t, "condemned", condemned, true)
		equal(t, "healed", get(g.Heal(t.Context(), of("y"))).or(t), false)
		state(t, g, "y", oci.Condemned, 1)
	})
}

func TestRegistry_BlobsPageByPage(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		want := map[digest.Digest]bool{}
		for _, blob := range []string{"1", "2", "3", "4", "5", "6", "7"} {
			want[commit(t, g, "a", blob, noon)] = true
		}
		long := digest.SHA512.FromString("8")
		ok(t, g.CommitBlob(t.Context(), "a", long, 1, noon))
		want[long] = true
		var last digest.Digest
		got := map[digest.Digest]bool{}
		for {
			page := get(g.Blobs(t.Context(), last, 3)).or(t)
			if len(page) == 0 {
				break
			}
			for _, b := range page {
				if b.Digest <= last {
					t.Errorf("%s came after %s", b.Digest, last)
				}
				last = b.Digest
				got[last] = true
			}
		}
		same(t, "blobs", got, want)
		equal(t, "none asked for", len(get(g.Blobs(t.Context(), "", 0)).or(t)), 0)
	})
}

func TestRegistry_WhatIsNoDigestIsNotThere(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		commit(t, g, "a", "x", noon)
		upper := digest.Digest("sha256:" + "ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789")
		for _, d := range []digest.Digest{"", "x", "sha256:", "sha256:ab", "md5:ab", "sha256:\x00\xff", upper} {
			_, found := get2(g.Blob(t.Context(), "a", d)).or(t)
			equal(t, "blob "+string(d), found, false)
			_, found = get2(g.Manifest(t.Context(), "a", d)).or(t)
			equal(t, "manifest "+string(d), found, false)
			equal(t, "renewed", get(g.RenewBlob(t.Context(), "a", d, noon)).or(t), false)
			equal(t, "deleted", get(g.DeleteManifest(t.Context(), "a", d)).or(t), false)
		}
		ok(t, g.CommitBlob(t.Context(), "a", upper, 1, noon))
		b, found := get2(g.BlobState(t.Context(), upper)).or(t)
		equal(t, "found", found, true)
		equal(t, "digest", b.Digest, upper)
	})
}

func TestRegistry_MethodsEndWithTheirContext(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.CommitBlob(ctx, "a", of("x"), 1, noon); !errors.Is(err, context.Canceled) {
			t.Errorf("CommitBlob in an ended context: %v", err)
		}
		if _, _, err := g.Blob(ctx, "a", of("x")); !errors.Is(err, context.Canceled) {
			t.Errorf("Blob in an ended context: %v", err)
		}
		state(t, g, "x", "", 0)
	})
}
