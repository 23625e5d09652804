package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	indexType = "application/vnd.oci.image.index.v1+json"
)

// image is a manifest that needs the blobs.
func image(name string, blobs ...string) oci.Manifest {
	m := oci.Manifest{Digest: of(name), MediaType: imageType, Content: []byte(name), Size: int64(len(name)), PushedAt: noon}
	for _, blob := range blobs {
		m.Children = append(m.Children, oci.Child{Digest: of(blob), Need: oci.NeedBlob})
	}
	return m
}

// index is a manifest that needs manifests or blobs.
func index(name string, children ...string) oci.Manifest {
	m := image(name)
	m.MediaType = indexType
	for _, child := range children {
		m.Children = append(m.Children, oci.Child{Digest: of(child), Need: oci.NeedAny})
	}
	return m
}

func referrer(name, subject string, blobs ...string) oci.Manifest {
	m := image(name, blobs...)
	m.Subject = of(subject)
	return m
}

func put(t testing.TB, g *store.Registry, repo string, m oci.Manifest, lease time.Time, tags ...string) {
	t.Helper()
	if missing := get(g.PutManifest(background, repo, m, tags, lease)).or(t); len(missing) > 0 {
		t.Fatalf("manifest %s lacks %v", m.Content, missing)
	}
}

func manifestReview(repo, name string) oci.Review {
	return oci.Review{Kind: oci.ReviewsManifest, Repo: repo, Digest: of(name)}
}

// there checks until when the repository has the manifest leased.
func there(t testing.TB, g *store.Registry, repo, name string, want time.Time) {
	t.Helper()
	m, found := get2(g.Manifest(background, repo, of(name))).or(t)
	equal(t, name+" in "+repo, found, !want.IsZero())
	if found {
		equal(t, "lease of "+name, m.Lease, want)
	}
}

func referrers(t testing.TB, g *store.Registry, repo, subject, artifactType string, after digest.Digest, n int) (list []oci.Manifest) {
	t.Helper()
	ok(t, g.Referrers(background, repo, of(subject), artifactType, after, n, func(m oci.Manifest) bool {
		list = append(list, m)
		return true
	}))
	return list
}

// tagged checks what a tag points at.
func tagged(t testing.TB, g *store.Registry, repo, tag, want string) {
	t.Helper()
	m, found := get2(g.TaggedManifest(background, repo, tag)).or(t)
	equal(t, "tag "+tag, found, want != "")
	if found {
		equal(t, "manifest of "+tag, string(m.Content), want)
	}
}

func TestRegistry_ManifestsComeBackAsTheyWere(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		m := referrer("\x00{} \xff", "subject", "blob")
		m.ArtifactType = "application/<&>"
		m.Annotations = map[string]string{"a": "b\x00\u2028", "": "é<"}
		m.Platforms = []string{"linux/amd64", "linux/arm64/v8"}
		m.CheckedAt = hour(-1)
		commit(t, g, "a", "blob", noon)
		put(t, g, "a", m, hour(1), "v1", "v2")

		want := m
		want.Lease, want.Children, want.CheckedAt = hour(1), nil, time.Time{}
		got, _ := get2(g.Manifest(t.Context(), "a", m.Digest)).or(t)
		same(t, "by digest", got, want)
		want.CheckedAt = hour(-1)
		for _, tag := range []string{"v1", "v2"} {
			got, _ = get2(g.TaggedManifest(t.Context(), "a", tag)).or(t)
			same(t, "by tag", got, want)
		}
		there(t, g, "b", string(m.Content), time.Time{})
		tagged(t, g, "b", "v1", "")
		tagged(t, g, "a", "V1", "")
		list := referrers(t, g, "a", "subject", "", "", 10)
		want.Content, want.CheckedAt = nil, time.Time{}
		same(t, "as a referrer", list, []oci.Manifest{want})

		plain := oci.Manifest{Digest: of("plain"), MediaType: imageType}
		put(t, g, "a", plain, noon)
		got, _ = get2(g.Manifest(t.Context(), "a", plain.Digest)).or(t)
		if got.PushedAt.IsZero() || len(got.Content) != 0 || got.Annotations != nil || got.Platforms != nil || got.Subject != "" {
			t.Errorf("a bare manifest came back as %+v", got)
		}

		large := image("large")
		large.Content = bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		put(t, g, "a", large, noon, "large")
		got, _ = get2(g.TaggedManifest(t.Context(), "a", "large")).or(t)
		if !bytes.Equal(got.Content, large.Content) || got.Size != int64(len(large.Content)) {
			t.Errorf("4 MiB came back as %d bytes of size %d", len(got.Content), got.Size)
		}
	})
}

func TestRegistry_WithdrawsWhatIsNotNeeded(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		put(t, g, "a", image("amd64"), hour(1), "latest")
		put(t, g, "b", image("amd64"), hour(1))
		put(t, g, "a", index("list", "amd64"), hour(1))
		withdraw := func(repo, name string, lease time.Time, want bool, why error) {
			t.Helper()
			found, err := g.WithdrawManifest(t.Context(), repo, of(name), lease)
			if found != want || !errors.Is(err, why) {
				t.Errorf("withdrawing %s from %s: %t, %v; want %t, %v", name, repo, found, err, want, why)
			}
		}
		withdraw("a", "amd64", hour(1), false, oci.ErrInUse)
		withdraw("b", "amd64", noon, false, oci.ErrRenewed)
		there(t, g, "a", "amd64", hour(1))
		there(t, g, "b", "amd64", hour(1))
		withdraw("b", "amd64", hour(1), true, nil)
		withdraw("b", "amd64", hour(1), false, nil)
		withdraw("a", "list", hour(1), true, nil)
		withdraw("a", "amd64", hour(2), true, nil)
		tagged(t, g, "a", "latest", "")
	})
}

// Layers that stay elsewhere would be rows that nothing ever comes of.
func TestRegistry_NoEdgeToWhatStaysElsewhere(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		commit(t, g, "a", "here", hour(1))
		m := image("image")
		m.Children = []oci.Child{{Digest: of("here"), Need: oci.NeedIfThere}, {Digest: of("elsewhere"), Need: oci.NeedIfThere}}
		put(t, g, "a", m, hour(9))
		commit(t, g, "a", "elsewhere", hour(1))
		_, err := g.UnlinkBlob(t.Context(), "a", of("here"))
		if !errors.Is(err, oci.ErrInUse) {
			t.Errorf("what is here: %v", err)
		}
		equal(t, "unlinked", get(g.UnlinkBlob(t.Context(), "a", of("elsewhere"))).or(t), true)

		cached := image("cached")
		cached.Children = []oci.Child{{Digest: of("later"), Need: oci.NeedNothing}}
		put(t, g, "a", cached, hour(9))
		commit(t, g, "a", "later", hour(1))
		if _, err := g.UnlinkBlob(t.Context(), "a", of("later")); !errors.Is(err, oci.ErrInUse) {
			t.Errorf("what the cache fetches later: %v", err)
		}
	})
}

func TestRegistry_NoManifestWithoutWhatItNeeds(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		refused := func(repo string, m oci.Manifest, missing ...string) {
			t.Helper()
			var want []digest.Digest
			for _, name := range missing {
				want = append(want, of(name))
			}
			same(t, "missing", get(g.PutManifest(t.Context(), repo, m, []string{"latest"}, hour(9))).or(t), want)
			there(t, g, repo, string(m.Content), time.Time{})
			tagged(t, g, repo, "latest", "")
		}
		commit(t, g, "a", "x", noon)
		commit(t, g, "b", "y", noon)
		put(t, g, "a", image("child"), noon)
		refused("a", image("app", "z", "x", "y", "z"), "z", "y") // y is another repository's
		refused("a", image("app", "child"), "child")             // a manifest is no blob
		refused("a", index("list", "child", "x", "y"), "y")
		refused("b", index("list", "child"), "child")
		equal(t, "known", get2(g.Tags(t.Context(), "c", "", 10)).b, false)

		// A layer named by an index is as good as a manifest, and what may be
		// absent may be absent.
		list := index("list", "child", "x")
		list.Children = append(list.Children, oci.Child{Digest: of("nowhere"), Need: oci.NeedNothing})
		put(t, g, "a", list, noon, "latest")
		tagged(t, g, "a", "latest", "list")

		many := image("many")
		for i := range 300 {
			name := fmt.Sprint("layer ", i)
			many.Children = append(many.Children, oci.Child{Digest: of(name), Need: oci.NeedBlob}, oci.Child{Digest: of(name), Need: oci.NeedBlob})
			if i%2 == 0 {
				commit(t, g, "a", name, noon)
			}
		}
		missing := get(g.PutManifest(t.Context(), "a", many, nil, noon)).or(t)
		equal(t, "number of missing layers", len(missing), 150)
		for i := 1; i < 300; i += 2 {
			commit(t, g, "a", fmt.Sprint("layer ", i), noon)
		}
		put(t, g, "a", many, noon)
		for i := range 300 {
			equal(t, "verdict", get(g.ReviewLink(t.Context(), "a", of(fmt.Sprint("layer ", i)), hour(9))).or(t), oci.Needed)
		}
	})
}

func TestRegistry_PuttingAManifestAgain(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		put(t, g, "a", image("app"), hour(2), "v1")
		again := image("app")
		again.PushedAt, again.CheckedAt = hour(1), hour(1)
		put(t, g, "a", again, hour(1), "v2")
		there(t, g, "a", "app", hour(2))
		m, _ := get2(g.TaggedManifest(t.Context(), "a", "v2")).or(t)
		equal(t, "pushed at", m.PushedAt, noon)
		equal(t, "checked at", m.CheckedAt, hour(1))
		put(t, g, "a", again, hour(3))
		there(t, g, "a", "app", hour(3))
		put(t, g, "a", image("app"), noon, "v2")
		m, _ = get2(g.TaggedManifest(t.Context(), "a", "v2")).or(t)
		equal(t, "checked at after a push", m.CheckedAt, time.Time{})
		due(t, g, hour(9), manifestReview("a", "app"))
	})
}

func TestRegistry_MovedAndDeletedTagsAreReviewed(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		review := func(name string, now time.Time, want oci.Verdict) {
			t.Helper()
			equal(t, "verdict on "+name, get(g.ReviewManifest(t.Context(), "a", of(name), now)).or(t), want)
		}
		put(t, g, "a", image("one"), hour(1), "latest", "v1")
		put(t, g, "a", image("two"), hour(2))
		review("one", hour(9), oci.Needed)
		review("two", hour(1), oci.Leased)
		due(t, g, hour(9), manifestReview("a", "two"))

		put(t, g, "a", image("two"), hour(3), "latest")
		due(t, g, noon)
		due(t, g, hour(1), manifestReview("a", "one"))
		review("one", hour(9), oci.Needed) // v1
		equal(t, "deleted", get(g.DeleteTag(t.Context(), "a", "v1")).or(t), true)
		equal(t, "deleted", get(g.DeleteTag(t.Context(), "a", "v1")).or(t), false)
		equal(t, "deleted", get(g.DeleteTag(t.Context(), "b", "latest")).or(t), false)
		due(t, g, hour(1), manifestReview("a", "one"))
		equal(t, "renewed", get(g.RenewManifest(t.Context(), "a", of("one"), hour(4))).or(t), true)
		equal(t, "renewed", get(g.RenewManifest(t.Context(), "a", of("one"), hour(2))).or(t), true)
		equal(t, "renewed", get(g.RenewManifest(t.Context(), "b", of("one"), hour(2))).or(t), false)
		there(t, g, "a", "one", hour(4))
		review("one", hour(4).Add(-time.Millisecond), oci.Leased)
		due(t, g, hour(3), manifestReview("a", "two"))
		due(t, g, hour(4), manifestReview("a", "two"), manifestReview("a", "one"))
		review("one", hour(4), oci.Deleted)
		review("one", hour(4), oci.Gone)
		there(t, g, "a", "one", time.Time{})
		tagged(t, g, "a", "latest", "two")
	})
}

func TestRegistry_DeletingAManifestTakesWhatLivedByIt(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		for _, blob := range []string{"base", "top", "other", "sbom"} {
			commit(t, g, "a", blob, hour(1))
		}
		put(t, g, "a", image("amd64", "base", "top"), hour(1))
		put(t, g, "a", image("arm64", "base", "other"), hour(1))
		put(t, g, "a", index("list", "amd64", "arm64"), hour(1), "latest", "v1")
		put(t, g, "a", referrer("signature", "list", "sbom"), hour(1))
		put(t, g, "a", referrer("countersignature", "signature"), hour(1))
		settle(t, g, hour(9)) // everything is needed
		due(t, g, hour(9))

		equal(t, "deleted", get(g.DeleteManifest(t.Context(), "a", of("list"))).or(t), true)
		equal(t, "deleted", get(g.DeleteManifest(t.Context(), "a", of("list"))).or(t), false)
		tagged(t, g, "a", "latest", "")
		tagged(t, g, "a", "v1", "")
		due(t, g, hour(9), manifestReview("a", "amd64"), manifestReview("a", "arm64"), manifestReview("a", "signature"))

		put(t, g, "a", index("next", "arm64"), hour(1), "latest")
		settle(t, g, hour(9))
		for name, left := range map[string]bool{"amd64": false, "arm64": true, "signature": false, "countersignature": false, "next": true} {
			equal(t, name+" is left", get2(g.Manifest(t.Context(), "a", of(name))).b, left)
		}
		for blob, left := range map[string]bool{"base": true, "top": false, "other": true, "sbom": false} {
			equal(t, blob+" is left", get2(g.Blob(t.Context(), "a", of(blob))).b, left)
			equal(t, "row of "+blob+" is left", get2(g.BlobState(t.Context(), of(blob))).b, left)
		}
	})
}

// settle works off all reviews as the collector does, and returns what it
// deleted.
func settle(t testing.TB, g *store.Registry, now time.Time) (deleted oci.Garbage) {
	t.Helper()
	for {
		list, _ := get2(g.Due(background, now, 10)).or(t)
		if len(list) == 0 {
			return deleted
		}
		for _, r := range list {
			switch r.Kind {
			case oci.ReviewsManifest:
				if get(g.ReviewManifest(background, r.Repo, r.Digest, now)).or(t) == oci.Deleted {
					deleted.Manifests++
				}
			case oci.ReviewsLink:
				if get(g.ReviewLink(background, r.Repo, r.Digest, now)).or(t) == oci.Deleted {
					deleted.Links++
				}
			default:
				b, _ := get2(g.BlobState(background, r.Digest)).or(t)
				gen, condemned, err := g.Condemn(background, r.Digest)
				ok(t, err)
				if condemned {
					equal(t, "forgotten", get(g.Forget(background, r.Digest, gen)).or(t), true)
					deleted.Blobs++
					deleted.Bytes += b.Size
				}
			}
		}
	}
}

func TestRegistry_ReferrersBeforeTheirSubject(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		put(t, g, "a", referrer("early", "app"), hour(1))
		put(t, g, "a", referrer("lost", "nowhere"), hour(1))
		equal(t, "verdict", get(g.ReviewManifest(t.Context(), "a", of("early"), noon)).or(t), oci.Leased)
		put(t, g, "a", image("app"), hour(1), "latest")
		put(t, g, "b", image("nowhere"), hour(1), "latest") // another repository's
		settle(t, g, hour(9))
		there(t, g, "a", "early", hour(1))
		there(t, g, "a", "lost", time.Time{})
	})
}

func TestRegistry_ReferrersPageByPage(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		var all, signatures []digest.Digest
		for i := range 9 {
			m := referrer(fmt.Sprint("r", i), "app")
			m.ArtifactType = "sbom"
			if i%3 == 0 {
				m.ArtifactType = "signature"
				signatures = append(signatures, m.Digest)
			}
			all = append(all, m.Digest)
			put(t, g, "a", m, noon)
		}
		put(t, g, "a", referrer("of another", "app2"), noon)
		put(t, g, "b", referrer("r0", "app"), noon)
		read := func(artifactType string, n int) (list []digest.Digest) {
			t.Helper()
			for last := digest.Digest(""); ; last = list[len(list)-1] {
				page := referrers(t, g, "a", "app", artifactType, last, n)
				if len(page) == 0 {
					return list
				}
				if len(page) > n {
					t.Errorf("%d referrers on a page of %d", len(page), n)
				}
				for _, m := range page {
					list = append(list, m.Digest)
				}
			}
		}
		slices.Sort(all)
		slices.Sort(signatures)
		same(t, "all", read("", 2), all)
		same(t, "signatures", read("signature", 2), signatures)
		same(t, "others", read("others", 2), []digest.Digest(nil))

		var first []digest.Digest
		ok(t, g.Referrers(t.Context(), "a", of("app"), "", "", 9, func(m oci.Manifest) bool {
			first = append(first, m.Digest)
			return len(first) < 3
		}))
		same(t, "as many as were wanted", first, all[:3])
	})
}

func TestRegistry_TagsInTheOrderOfBytes(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		tags, known, err := g.Tags(t.Context(), "a", "", 10)
		ok(t, err)
		equal(t, "known", known, false)
		equal(t, "tags", len(tags), 0)
		commit(t, g, "a", "x", noon)
		put(t, g, "b", image("app"), noon)
		for _, repo := range []string{"a", "b"} {
			_, known := get2(g.Tags(t.Context(), repo, "", 10)).or(t)
			equal(t, "known without a tag", known, true)
		}

		want := []string{"1", "10", "2", "A", "B", "Z.1", "Z_1", "_", "a", "a-b", "a.b", "aB", "a_b", "ab", "b", "sha256-ab"}
		put(t, g, "a", image("app"), noon, append(slices.Clone(want[8:]), want[:8]...)...)
		put(t, g, "a/b", image("app"), noon, "stranger")
		for _, n := range []int{1, 3, 100} {
			var got []string
			for last := ""; ; last = got[len(got)-1] {
				page, known := get2(g.Tags(t.Context(), "a", last, n)).or(t)
				equal(t, "known", known, true)
				if len(page) == 0 {
					break
				}
				got = append(got, page...)
			}
			same(t, "tags", got, want)
		}
		none, known := get2(g.Tags(t.Context(), "a", "", 0)).or(t)
		equal(t, "known", known, true)
		equal(t, "tags", len(none), 0)
		after, _ := get2(g.Tags(t.Context(), "a", "Z", 2)).or(t) // no tag itself
		same(t, "tags", after, []string{"Z.1", "Z_1"})
	})
}

func TestRegistry_CheckTag(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		checked := func(at, want time.Time) {
			t.Helper()
			ok(t, g.CheckTag(t.Context(), "a", "latest", at))
			m, _ := get2(g.TaggedManifest(t.Context(), "a", "latest")).or(t)
			equal(t, "checked at", m.CheckedAt, want)
		}
		ok(t, g.CheckTag(t.Context(), "a", "latest", noon))
		put(t, g, "a", image("app"), noon, "latest")
		checked(hour(1), hour(1))
		checked(hour(3), hour(3))
		checked(hour(2), hour(2)) // the clock was ahead
	})
}

func TestRegistry_WholeManifests(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		whole := func(name string, want bool) {
			t.Helper()
			equal(t, name+" is whole", get(g.Whole(t.Context(), "a", of(name))).or(t), want)
		}
		whole("app", false)
		commit(t, g, "a", "x", hour(1))
		commit(t, g, "a", "y", hour(1))
		whole("x", false) // a blob is no manifest
		put(t, g, "a", image("app", "x", "y"), hour(1))
		put(t, g, "a", image("other", "y"), hour(1))
		put(t, g, "a", index("both", "app", "other"), hour(1))
		for _, name := range []string{"app", "other", "both"} {
			whole(name, true)
		}
		equal(t, "whole in another repository", get(g.Whole(t.Context(), "b", of("app"))).or(t), false)

		get(g.Quarantine(t.Context(), of("x"))).or(t)
		whole("app", false)
		whole("other", true)
		whole("both", false)
		get(g.Heal(t.Context(), of("x"))).or(t)
		get(g.DeleteManifest(t.Context(), "a", of("other"))).or(t)
		whole("app", true)
		whole("both", false)
	})
}
