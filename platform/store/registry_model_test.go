package store_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/registry/oci"
)

// model is what the registry should be, in the plainest form.
type model struct {
	blobs     map[string]*oci.Blob
	links     map[in]time.Time
	manifests map[in]time.Time
	tags      map[in]string // manifests by tag
}

// in is something in a repository.
type in struct{ repo, name string }

// What the model's repositories hold: the manifests by name, and what is
// needed first before what needs it.
var (
	modelRepos     = []string{"a", "a/b"}
	modelBlobs     = []string{"x", "y", "z"}
	modelTags      = []string{"v1", "v2"}
	modelManifests = map[string]oci.Manifest{
		"xy": image("xy", "x", "y"), "yz": image("yz", "y", "z"),
		"list": index("list", "xy", "yz", "x"), "nest": index("nest", "list"),
		"sign": referrer("sign", "list", "z"), "seal": referrer("seal", "sign"),
	}
	modelNames = slices.Sorted(maps.Keys(modelManifests))
)

func nameOf(d digest.Digest) string {
	for _, name := range append(slices.Clone(modelNames), modelBlobs...) {
		if of(name) == d {
			return name
		}
	}
	return string(d)
}

func (m *model) live(repo, blob string) bool {
	_, linked := m.links[in{repo, blob}]
	return linked && m.blobs[blob].State == oci.Live
}

func (m *model) hasParent(repo, name string) bool {
	for parent := range m.manifests {
		if parent.repo == repo && slices.ContainsFunc(modelManifests[parent.name].Children, func(c oci.Child) bool { return c.Digest == of(name) }) {
			return true
		}
	}
	return false
}

func (m *model) manifestNeeded(k in) bool {
	for tag, name := range m.tags {
		if tag.repo == k.repo && name == k.name {
			return true
		}
	}
	_, alive := m.manifests[in{k.repo, nameOf(modelManifests[k.name].Subject)}]
	return alive || m.hasParent(k.repo, k.name)
}

func (m *model) linked(blob string) bool {
	for k := range m.links {
		if k.name == blob {
			return true
		}
	}
	return false
}

func (m *model) missing(repo, name string) (list []digest.Digest) {
	for _, c := range modelManifests[name].Children {
		_, stored := m.manifests[in{repo, nameOf(c.Digest)}]
		if !m.live(repo, nameOf(c.Digest)) && (c.Need != oci.NeedAny || !stored) {
			list = append(list, c.Digest)
		}
	}
	return list
}

func (m *model) deleteManifest(k in) bool {
	_, found := m.manifests[k]
	delete(m.manifests, k)
	maps.DeleteFunc(m.tags, func(tag in, name string) bool { return tag.repo == k.repo && name == k.name })
	return found
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (m *model) commit(repo, blob string, lease time.Time) {
	if m.blobs[blob] == nil {
		m.blobs[blob] = &oci.Blob{Digest: of(blob), Size: int64(len(blob))}
	}
	m.blobs[blob].State = oci.Live
	m.links[in{repo, blob}] = later(m.links[in{repo, blob}], lease)
}

// supply pushes what a manifest needs.
func (m *model) supply(t *testing.T, g *store.Registry, repo, name string, lease time.Time) {
	t.Helper()
	for _, d := range m.missing(repo, name) {
		child := nameOf(d)
		if slices.Contains(modelBlobs, child) {
			commit(t, g, repo, child, lease)
			m.commit(repo, child, lease)
			continue
		}
		m.supply(t, g, repo, child, lease)
		put(t, g, repo, modelManifests[child], lease)
		m.manifests[in{repo, child}] = lease
	}
}

// verdict is what a review must come to.
func verdict(lease map[in]time.Time, k in, needed bool, now time.Time) oci.Verdict {
	switch until, found := lease[k]; {
	case !found:
		return oci.Gone
	case needed:
		return oci.Needed
	case until.After(now):
		return oci.Leased
	default:
		return oci.Deleted
	}
}

// step does something at random to both and compares what came of it.
func (m *model) step(t *testing.T, g *store.Registry, random *rand.Rand, now time.Time) string {
	pick := func(list []string) string { return list[random.IntN(len(list))] }
	repo, blob, name, tag := pick(modelRepos), pick(modelBlobs), pick(modelNames), pick(modelTags)
	lease := now.Add(time.Duration(random.IntN(20)) * time.Minute)
	link, manifest := in{repo, blob}, in{repo, name}
	ctx := t.Context()
	switch random.IntN(18) {
	case 0, 1:
		ok(t, g.CommitBlob(ctx, repo, of(blob), int64(len(blob)), lease))
		m.commit(repo, blob, lease)
		return fmt.Sprint("commit ", link)
	case 2:
		from := pick(modelRepos)
		want := m.live(from, blob)
		_, found, err := g.MountBlob(ctx, from, repo, of(blob), lease)
		ok(t, err)
		equal(t, "mounted", found, want)
		if want {
			m.commit(repo, blob, lease)
		}
		return fmt.Sprint("mount ", link, " from ", from)
	case 3:
		want := m.live(repo, blob)
		equal(t, "renewed", get(g.RenewBlob(ctx, repo, of(blob), lease)).or(t), want)
		if want {
			m.links[link] = later(m.links[link], lease)
		}
		return fmt.Sprint("renew ", link)
	case 4:
		_, want := m.links[link]
		found, err := g.UnlinkBlob(ctx, repo, of(blob))
		if want && m.hasParent(repo, blob) {
			equal(t, "refused", err != nil, true)
			return fmt.Sprint("keep ", link)
		}
		ok(t, err)
		equal(t, "unlinked", found, want)
		delete(m.links, link)
		return fmt.Sprint("unlink ", link)
	case 5, 6, 7, 8, 9:
		tags := [][]string{nil, {tag}, {tag, "v2"}}[random.IntN(3)]
		if random.IntN(2) == 0 {
			m.supply(t, g, repo, name, lease)
		}
		want := m.missing(repo, name)
		same(t, "missing", get(g.PutManifest(ctx, repo, modelManifests[name], tags, lease)).or(t), want)
		if want != nil {
			return fmt.Sprint("refuse ", manifest)
		}
		m.manifests[manifest] = later(m.manifests[manifest], lease)
		for _, tag := range tags {
			m.tags[in{repo, tag}] = name
		}
		return fmt.Sprint("put ", manifest, " ", tags)
	case 10:
		_, want := m.tags[in{repo, tag}]
		equal(t, "deleted", get(g.DeleteTag(ctx, repo, tag)).or(t), want)
		delete(m.tags, in{repo, tag})
		return fmt.Sprint("delete tag ", repo, tag)
	case 11:
		want := m.deleteManifest(manifest)
		equal(t, "deleted", get(g.DeleteManifest(ctx, repo, of(name))).or(t), want)
		return fmt.Sprint("delete ", manifest)
	case 12:
		_, want := m.manifests[manifest]
		equal(t, "renewed", get(g.RenewManifest(ctx, repo, of(name), lease)).or(t), want)
		if want {
			m.manifests[manifest] = later(m.manifests[manifest], lease)
		}
		return fmt.Sprint("renew ", manifest)
	case 13:
		if random.IntN(8) > 0 {
			return "rest"
		}
		ok(t, g.DropRepositories(ctx, repo))
		dropped := func(k in) bool { return k.repo == repo || repo == "a" && k.repo == "a/b" }
		maps.DeleteFunc(m.links, func(k in, _ time.Time) bool { return dropped(k) })
		maps.DeleteFunc(m.manifests, func(k in, _ time.Time) bool { return dropped(k) })
		maps.DeleteFunc(m.tags, func(k in, _ string) bool { return dropped(k) })
		return "drop " + repo
	case 14:
		if random.IntN(4) > 0 {
			return "rest"
		}
		want := m.blobs[blob] != nil && m.blobs[blob].State == oci.Live
		equal(t, "quarantined", get(g.Quarantine(ctx, of(blob))).or(t), want)
		if want {
			m.blobs[blob].State = oci.Quarantined
		}
		return "quarantine " + blob
	default:
		return m.collect(t, g, now)
	}
}

// collect does the first review that is due.
func (m *model) collect(t *testing.T, g *store.Registry, now time.Time) string {
	list, _ := get2(g.Due(t.Context(), now, 1)).or(t)
	if len(list) == 0 {
		return "nothing due"
	}
	r := list[0]
	k := in{r.Repo, nameOf(r.Digest)}
	switch r.Kind {
	case oci.ReviewsManifest:
		want := verdict(m.manifests, k, m.manifestNeeded(k), now)
		equal(t, "verdict", get(g.ReviewManifest(t.Context(), r.Repo, r.Digest, now)).or(t), want)
		if want == oci.Deleted {
			m.deleteManifest(k)
		}
	case oci.ReviewsLink:
		want := verdict(m.links, k, m.hasParent(k.repo, k.name), now)
		equal(t, "verdict", get(g.ReviewLink(t.Context(), r.Repo, r.Digest, now)).or(t), want)
		if want == oci.Deleted {
			delete(m.links, k)
		}
	default:
		b := m.blobs[k.name]
		want := b != nil && !m.linked(k.name)
		gen, condemned, err := g.Condemn(t.Context(), r.Digest)
		ok(t, err)
		equal(t, "condemned", condemned, want)
		switch {
		case want && b.State != oci.Condemned: // its deletion fails the first time
			b.State, b.Gen = oci.Condemned, b.Gen+1
			equal(t, "generation", gen, b.Gen)
			ok(t, g.PutOff(t.Context(), r, now))
		case want:
			equal(t, "forgotten", get(g.Forget(t.Context(), r.Digest, gen)).or(t), true)
			delete(m.blobs, k.name)
		}
		return fmt.Sprint("condemn ", k.name, " [", want, "]")
	}
	return fmt.Sprint("review ", r.Kind, k)
}

// compare checks that both hold the same, and that all that nothing needs will
// be looked at when its lease is over.
func (m *model) compare(t *testing.T, g *store.Registry) {
	t.Helper()
	listed, _ := get2(g.Due(t.Context(), noon.AddDate(1, 0, 0), 1000)).or(t)
	unlisted := func(kind string, k in) bool {
		return !slices.Contains(listed, oci.Review{Kind: kind, Repo: k.repo, Digest: of(k.name)})
	}
	for _, blob := range modelBlobs {
		b, found := get2(g.BlobState(t.Context(), of(blob))).or(t)
		if want := m.blobs[blob]; found != (want != nil) || found && b != *want {
			t.Errorf("blob %s is %+v, %v, want %+v", blob, b, found, want)
		}
		if found && !m.linked(blob) && unlisted(oci.ReviewsBlob, in{"", blob}) {
			t.Errorf("nobody will look at blob %s", blob)
		}
		for _, repo := range modelRepos {
			l, found := get2(g.Blob(t.Context(), repo, of(blob))).or(t)
			equal(t, blob+" in "+repo, found, m.live(repo, blob))
			until, linked := m.links[in{repo, blob}]
			if found {
				equal(t, "lease of "+blob, l.Lease, until)
			}
			if linked && !m.hasParent(repo, blob) && unlisted(oci.ReviewsLink, in{repo, blob}) {
				t.Errorf("nobody will look at the link of %s in %s", blob, repo)
			}
		}
	}
	for _, repo := range modelRepos {
		for _, name := range modelNames {
			k := in{repo, name}
			got, found := get2(g.Manifest(t.Context(), repo, of(name))).or(t)
			until, want := m.manifests[k]
			equal(t, fmt.Sprint(k), found, want)
			if found {
				equal(t, "lease of "+name, got.Lease, until)
				if !m.manifestNeeded(k) && unlisted(oci.ReviewsManifest, k) {
					t.Errorf("nobody will look at manifest %v", k)
				}
			}
		}
		for _, tag := range modelTags {
			tagged(t, g, repo, tag, m.tags[in{repo, tag}])
		}
	}
}

func TestRegistry_DoesAsTheModel(t *testing.T) {
	const seeds, steps = 3, 400
	onEachRegistry(t, func(t *testing.T, g *store.Registry) {
		done := map[string]int{}
		for seed := range uint64(seeds) {
			random := rand.New(rand.NewPCG(seed, 1))
			m := &model{blobs: map[string]*oci.Blob{}, links: map[in]time.Time{}, manifests: map[in]time.Time{}, tags: map[in]string{}}
			now := noon
			var trace []string
			for i := range steps {
				if random.IntN(3) == 0 {
					now = now.Add(time.Minute)
				}
				trace = append(trace, m.step(t, g, random, now))
				kind, _, _ := strings.Cut(trace[i], " [")
				done[kind]++
				if i%20 == 0 {
					m.compare(t, g)
				}
				if t.Failed() {
					t.Fatalf("seed %d after %q", seed, trace[max(0, i-20):])
				}
			}
			// Without tags nothing is needed, and all of it goes.
			for _, repo := range modelRepos {
				for _, tag := range modelTags {
					get(g.DeleteTag(t.Context(), repo, tag)).or(t)
				}
			}
			want := get(g.Garbage(t.Context(), now.Add(time.Hour), func(string, digest.Digest) (bool, error) { return false, nil })).or(t)
			same(t, "garbage", settle(t, g, now.Add(time.Hour)), want)
			equal(t, "blobs left", len(get(g.Blobs(t.Context(), "", 10)).or(t)), 0)
			same(t, "what is left", get(g.Totals(t.Context())).or(t), oci.Totals{})
		}
		for _, kind := range []string{"put {a nest}", "put {a seal}", "review manifest{a list}", "review manifest{a sign}", "review link{a x}", "condemn x"} {
			if done[kind] == 0 {
				t.Errorf("no step was %q", kind)
			}
		}
	})
}
