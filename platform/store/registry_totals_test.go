package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

func TestRegistry_Totals(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		same(t, "nothing", get(g.Totals(t.Context())).or(t), oci.Totals{})
		commit(t, g, "svc:1", "four", hour(1))
		commit(t, g, "svc:1/web", "four", hour(1))
		commit(t, g, "svc:1/web", "three", hour(1))
		put(t, g, "svc:1", image("app"), hour(2))
		put(t, g, "svc:1/web", image("app", "four", "three"), hour(3))
		put(t, g, "svc:2", image("bare"), hour(4)) // known by its manifest alone
		commit(t, g, "cache:1/ghcr.io/x", "four", hour(1))
		commit(t, g, "cache:1/ghcr.io/x", "eleven more!", hour(1))
		put(t, g, "cache:1/ghcr.io/x", image("app"), hour(5))
		commit(t, g, "\xf4\x8f\xbf\xbf", "far away", hour(1)) // the last of all keys
		commit(t, g, "svc:3", "damaged", hour(1))
		get(g.Quarantine(t.Context(), of("damaged"))).or(t)
		commit(t, g, "svc:3", "condemned", hour(1))
		get(g.UnlinkBlob(t.Context(), "svc:3", of("condemned"))).or(t)
		_, _, err := g.Condemn(t.Context(), of("condemned"))
		ok(t, err)
		commit(t, g, "svc:3", "unlinked", hour(1))
		get(g.UnlinkBlob(t.Context(), "svc:3", of("unlinked"))).or(t)

		same(t, "all", get(g.Totals(t.Context())).or(t), oci.Totals{
			Repositories: 6, Manifests: 4, Blobs: 5, OldestLease: hour(2),
			PhysicalBytes: 4 + 5 + 12 + 8 + 8, LogicalBytes: 3*4 + 5 + 12 + 8, ManifestBytes: 3*3 + 4, Edges: 2,
		})
		same(t, "cache", get(g.PrefixTotals(t.Context(), "cache:")).or(t), oci.Totals{
			Repositories: 1, Manifests: 1, Blobs: 2, OldestLease: hour(5), PhysicalBytes: 4 + 12, LogicalBytes: 4 + 12, ManifestBytes: 3,
		})
		same(t, "services", get(g.PrefixTotals(t.Context(), "svc:1")).or(t), oci.Totals{
			Repositories: 2, Manifests: 2, Blobs: 2, OldestLease: hour(2), PhysicalBytes: 4 + 5, LogicalBytes: 2*4 + 5, ManifestBytes: 3 + 3, Edges: 2,
		})
		same(t, "nobody's", get(g.PrefixTotals(t.Context(), "svc:9")).or(t), oci.Totals{})
	})
}

func TestRegistry_OldestFirst(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		put(t, g, "cache:b", image("second"), hour(2))
		put(t, g, "cache:a", image("third"), hour(3))
		put(t, g, "cache:c", image("first"), hour(1))
		put(t, g, "svc:a", image("other"), noon)
		list := get(g.Oldest(t.Context(), "cache:", 2)).or(t)
		same(t, "oldest", list, []oci.Ref{
			{Repo: "cache:c", Digest: of("first"), Lease: hour(1)},
			{Repo: "cache:b", Digest: of("second"), Lease: hour(2)},
		})
		get(g.RenewManifest(t.Context(), "cache:c", of("first"), hour(4))).or(t)
		equal(t, "oldest after use", get(g.Oldest(t.Context(), "cache:", 1)).or(t)[0].Digest, of("second"))
		equal(t, "all", len(get(g.Oldest(t.Context(), "", 10)).or(t)), 4)
	})
}

func TestRegistry_Repositories(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		sized := func(repo, blob string, size int64) {
			t.Helper()
			ok(t, g.CommitBlob(t.Context(), repo, of(blob), size, noon))
		}
		sized("p", "base", 1000)
		sized("p", "amd", 200)
		sized("p", "arm", 300)
		sized("p", "pushed, not used", 5)
		put(t, g, "p", image("amd64", "base", "amd", "base"), noon, "only-amd")
		put(t, g, "p", image("arm64", "base", "arm"), noon)
		list := index("list", "amd64", "arm64")
		list.Children = append(list.Children, oci.Child{Digest: of("nowhere"), Need: oci.NeedNothing})
		list.Platforms = []string{"linux/amd64", "linux/arm64"}
		list.PushedAt = hour(1)
		put(t, g, "p", list, noon, "latest", "B")
		sized("p/x", "base", 1000)
		sized("p/x", "amd64", 5) // a manifest that was pushed as a blob, too
		put(t, g, "p/x", image("amd64"), noon, "v1")
		sized("p2", "base", 1000)
		put(t, g, "q", image("bare"), noon)
		put(t, g, "z", image("bare"), noon)

		got := get(g.Repositories(t.Context(), []string{"q", "p", "p/x", "none", "q"})).or(t)
		const lists = 4 + 5 + 5
		platforms := list.Platforms
		same(t, "repositories", got, []oci.Repository{
			{Key: "p", SizeBytes: 1000 + 200 + 300 + 5 + lists, Tags: []oci.Tag{
				{Name: "B", Digest: of("list"), SizeBytes: 1500 + lists, PushedAt: hour(1), Platforms: platforms},
				{Name: "latest", Digest: of("list"), SizeBytes: 1500 + lists, PushedAt: hour(1), Platforms: platforms},
				{Name: "only-amd", Digest: of("amd64"), SizeBytes: 1205, PushedAt: noon},
			}},
			{Key: "p/x", SizeBytes: 1005, Tags: []oci.Tag{{Name: "v1", Digest: of("amd64"), SizeBytes: 5, PushedAt: noon}}},
			{Key: "q", SizeBytes: 4},
		})
		equal(t, "of nobody", len(get(g.Repositories(t.Context(), nil)).or(t)), 0)
	})
}

// Few rows may reach all of a repository from each of many tags.
func TestRegistry_RepositoriesThatAreExpensiveToCount(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		nested := func(name string, children ...string) {
			t.Helper()
			m := index(name, children...)
			for i := range m.Children {
				m.Children[i].Need = oci.NeedNothing
			}
			put(t, g, "deep", m, noon, name)
		}
		nested("0")
		for i := range 12 {
			nested(fmt.Sprint(i+1), fmt.Sprint(i))
		}
		sizes := map[string]int64{}
		for _, tag := range get(g.Repositories(t.Context(), []string{"deep"})).or(t)[0].Tags {
			sizes[tag.Name] = tag.SizeBytes
		}
		equal(t, "8 levels", sizes["8"], 9)
		equal(t, "more levels", sizes["12"], 2+2+2+6)

		ok(t, g.CommitBlob(t.Context(), "wide", of("blob0"), 1000, noon))
		var many []string
		for i := range 20_000 {
			many = append(many, fmt.Sprint("blob", i))
		}
		wide := index("wide", many...)
		for i := range wide.Children {
			wide.Children[i].Need = oci.NeedNothing
		}
		put(t, g, "wide", wide, noon)
		for i := range 300 {
			put(t, g, "wide", index(fmt.Sprint("tag", 100+i), "wide"), noon, fmt.Sprint("tag", 100+i))
		}
		tags := get(g.Repositories(t.Context(), []string{"wide"})).or(t)[0].Tags
		equal(t, "the first tag", tags[0].SizeBytes, 6+4+1000)
		equal(t, "the last tag", tags[299].SizeBytes, 6+4)
	})
}

// An image of its own digest cannot be made, but rows of a damaged database
// must not hang who reads them.
func TestRegistry_RepositoriesWithACircle(t *testing.T) {
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		circle := image("circle")
		circle.Children = []oci.Child{{Digest: circle.Digest, Need: oci.NeedNothing}, {Digest: digest.Digest("x"), Need: oci.NeedNothing}}
		put(t, g, "p", circle, time.Time{}, "latest")
		equal(t, "size", get(g.Repositories(t.Context(), []string{"p"})).or(t)[0].Tags[0].SizeBytes, 6)
	})
}
