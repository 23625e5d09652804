package store_test

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/denia-paas/denia/internal/testpg"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

// What a benchmark's registry holds: images of ten layers, of which half are
// the image's own, each under a tag.
const (
	benchRepos  = 20
	benchImages = 100 // in each
	benchLayers = 10
)

func benchRepo(i int) string { return fmt.Sprintf("svc:01890a5d-ac96-774b-bcce-%012d", i) }

func benchLayer(image, layer int) string {
	if layer < benchLayers/2 {
		return fmt.Sprint("base ", layer)
	}
	return fmt.Sprint("layer ", image, layer)
}

// fill writes the rows behind the Store's back, in one transaction.
func fill(b *testing.B, dsn string) {
	db := raw(b, dsn)
	t := get(db.Begin()).or(b)
	packed := func(text string) []byte {
		sum := sha256.Sum256([]byte(text))
		return append([]byte{1}, sum[:]...)
	}
	execute := func(statement string, args ...any) {
		if _, err := t.Exec(statement, args...); err != nil {
			b.Fatal(err)
		}
	}
	content := make([]byte, 2000)
	for r := range benchRepos {
		repo := []byte(benchRepo(r))
		for i := range benchImages {
			name := packed(fmt.Sprint("image ", i))
			execute(`INSERT INTO registry_manifests (repo, digest, lease, pushed_at, size, media_type, artifact_type, content)
				VALUES ($1, $2, 0, 0, 2000, $3, '', $4)`, repo, name, imageType, content)
			execute(`INSERT INTO registry_tags (repo, name, digest, pushed_at) VALUES ($1, $2, $3, 0)`, repo, []byte(fmt.Sprint("v", i)), name)
			for l := range benchLayers {
				layer := packed(benchLayer(i, l))
				execute(`INSERT INTO registry_blobs (digest, size, state, gen) VALUES ($1, 1000, 'live', 0) ON CONFLICT DO NOTHING`, layer)
				execute(`INSERT INTO registry_links (repo, digest, lease) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING`, repo, layer)
				execute(`INSERT INTO registry_edges (repo, child, parent) VALUES ($1, $2, $3)`, repo, layer, name)
			}
		}
	}
	ok(b, t.Commit())
	ok(b, db.Close())
}

func BenchmarkRegistry(b *testing.B) {
	for kind, start := range map[string]func(testing.TB) string{
		"sqlite":   func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "denia.db") },
		"postgres": testpg.Start,
	} {
		b.Run(kind, func(b *testing.B) {
			dsn := start(b)
			s := open(b, dsn)
			fill(b, dsn)
			benchmarkRegistry(b, s.Registry())
		})
	}
}

func benchmarkRegistry(b *testing.B, g *store.Registry) {
	run := func(name string, fn func(i int) error) {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := fn(i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	parallel := func(name string, fn func(i int) error) {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(16)
			b.RunParallel(func(p *testing.PB) {
				for i := 0; p.Next(); i++ {
					if err := fn(i); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	found := func(found bool, err error) error {
		if err == nil && !found {
			err = errTest
		}
		return err
	}
	taggedManifest := func(i int) error {
		_, there, err := g.TaggedManifest(background, benchRepo(i%benchRepos), fmt.Sprint("v", i%benchImages))
		return found(there, err)
	}
	run("TaggedManifest", taggedManifest)
	parallel("TaggedManifest-parallel", taggedManifest)
	run("Blob", func(i int) error {
		_, there, err := g.Blob(background, benchRepo(i%benchRepos), of(benchLayer(i%benchImages, i%benchLayers)))
		return found(there, err)
	})
	new := 0
	run("CommitBlob", func(int) error {
		new++
		return g.CommitBlob(background, benchRepo(0), of(fmt.Sprint("new ", new)), 1000, noon)
	})
	run("RenewBlob", func(i int) error {
		return found(g.RenewBlob(background, benchRepo(1), of("base 1"), hour(i+1)))
	})
	run("PutManifest", func(int) error {
		new++
		m := image(fmt.Sprint("new ", new))
		for l := range benchLayers {
			m.Children = append(m.Children, oci.Child{Digest: of(benchLayer(1, l)), Need: oci.NeedBlob})
		}
		missing, err := g.PutManifest(background, benchRepo(2), m, []string{"latest"}, noon)
		return found(len(missing) == 0, err)
	})
	run("ReviewManifest", func(i int) error {
		_, err := g.ReviewManifest(background, benchRepo(2), of(fmt.Sprint("image ", i%benchImages)), noon)
		return err
	})
	run("Due", func(int) error {
		_, _, err := g.Due(background, noon, 100)
		return err
	})
	run("Totals", func(int) error {
		_, err := g.Totals(background)
		return err
	})
	run("PrefixTotals", func(int) error {
		_, err := g.PrefixTotals(background, benchRepo(3))
		return err
	})
	run("Oldest", func(int) error {
		_, err := g.Oldest(background, "svc:", 100)
		return err
	})
	run("Repositories", func(int) error {
		_, err := g.Repositories(background, []string{benchRepo(4)})
		return err
	})
	dropped := 5
	run("DropRepositories", func(int) error {
		dropped++ // what is not there is dropped soon
		return g.DropRepositories(background, benchRepo(dropped%benchRepos))
	})
}
