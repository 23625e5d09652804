package registry

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

func remembered(content string) oci.Manifest {
	return oci.Manifest{Digest: digest.FromString(content), Content: []byte(content), Size: int64(len(content))}
}

func TestMemo_IsBounded(t *testing.T) {
	t.Parallel()
	m := newMemo()
	big := make([]byte, 100<<10)
	for i := range 1000 {
		repo := fmt.Sprint("repo", i%7)
		of := oci.Manifest{Digest: digest.FromString(fmt.Sprint(i)), Content: big}
		m.putTag(repo, m.stamp(repo), fmt.Sprint("v", i), of)
		m.putTag("hot", m.stamp("hot"), "used", remembered("hot"))
		if _, ok := m.tag("hot", "used"); !ok {
			t.Fatal("what is used all the time was forgotten")
		}
		if m.weight > memoBytes {
			t.Fatalf("it holds %d bytes", m.weight)
		}
	}
	if _, ok := m.tag("repo5", "v999"); !ok {
		t.Error("the newest was forgotten")
	}
	if _, ok := m.tag("repo0", "v0"); ok {
		t.Error("the oldest was not forgotten")
	}
	m.putManifest("repo", m.stamp("repo"), oci.Manifest{Digest: digest.FromString("huge"), Content: make([]byte, memoManifestBytes+1)})
	if _, ok := m.manifest("repo", digest.FromString("huge")); ok {
		t.Error("a huge manifest was remembered")
	}
	for i := range 7 {
		m.drop(fmt.Sprint("repo", i))
	}
	m.drop("hot")
	if m.weight != 0 || len(m.repos) != 0 || m.newest.next != &m.newest || m.newest.prev != &m.newest {
		t.Errorf("after everything was dropped %d bytes in %d repositories are left", m.weight, len(m.repos))
	}
}

func TestMemo_Drops(t *testing.T) {
	t.Parallel()
	d, of := digest.FromString("blob"), remembered("manifest")
	repos := []string{"a", "a/b", "ab", "c"}
	for name, test := range map[string]struct {
		drop            func(m *memo)
		manifests, link []string // the repositories that keep them
	}{
		"a repository":     {func(m *memo) { m.drop("a") }, repos[1:], repos[1:]},
		"a tree":           {func(m *memo) { m.dropTree("a") }, repos[2:], repos[2:]},
		"a link":           {func(m *memo) { m.dropLink("a", d) }, repos, repos[1:]},
		"a blob":           {func(m *memo) { m.dropBlob(d) }, repos, nil},
		"what isn't there": {func(m *memo) { m.drop("x"); m.dropLink("x", d); m.dropTree("x"); m.dropBlob("x") }, repos, repos},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemo()
			stamps := map[string]stamp{}
			for _, repo := range repos {
				stamps[repo] = m.stamp(repo)
				m.putTag(repo, stamps[repo], "latest", of)
				m.putLink(repo, stamps[repo], d, oci.Link{Size: 4})
			}
			test.drop(m)
			check := func() {
				t.Helper()
				manifests, links := []string{}, []string{}
				for _, repo := range repos {
					_, tagged := m.tag(repo, "latest")
					if _, ok := m.manifest(repo, of.Digest); ok && tagged {
						manifests = append(manifests, repo)
					}
					if _, ok := m.link(repo, d); ok {
						links = append(links, repo)
					}
				}
				if got, want := fmt.Sprint(manifests, links), fmt.Sprint(test.manifests, test.link); got != want {
					t.Errorf("left: %s, want %s", got, want)
				}
			}
			check()
			// What was read before the drop doesn't come back.
			for _, repo := range repos {
				if m.stamp(repo) != stamps[repo] {
					m.putTag(repo, stamps[repo], "latest", of)
					m.putLink(repo, stamps[repo], d, oci.Link{Size: 4})
				}
			}
			check()
		})
	}
}

func TestMemo_LeasesOnlyGrow(t *testing.T) {
	t.Parallel()
	m, d := newMemo(), digest.FromString("blob")
	of := remembered("manifest")
	of.Lease = time.Unix(100, 0)
	m.putManifest("a", m.stamp("a"), of)
	m.putLink("a", m.stamp("a"), d, oci.Link{Lease: of.Lease})
	for _, lease := range []int64{200, 150} {
		m.renewManifest("a", of.Digest, time.Unix(lease, 0))
		m.renewLink("a", d, time.Unix(lease, 0))
		m.renewLink("b", d, time.Unix(lease, 0))
	}
	got, _ := m.manifest("a", of.Digest)
	link, _ := m.link("a", d)
	if got.Lease.Unix() != 200 || link.Lease.Unix() != 200 {
		t.Errorf("leases until %d and %d", got.Lease.Unix(), link.Lease.Unix())
	}
}

// The store is a counter that only grows; a reader must never be answered with
// less than what it was before he began.
func TestMemo_NeverGoesBack(t *testing.T) {
	t.Parallel()
	m := newMemo()
	var mu sync.Mutex
	var stored, told int64 // told: what a writer has replied
	read := func() int64 { mu.Lock(); defer mu.Unlock(); return stored }
	done := make(chan struct{})
	var writers, readers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for range 2000 {
				mu.Lock()
				stored++
				now := stored
				mu.Unlock()
				m.drop("a")
				mu.Lock()
				told = max(told, now)
				mu.Unlock()
			}
		})
	}
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				before := told
				mu.Unlock()
				link, ok := m.link("a", "d")
				if !ok {
					s := m.stamp("a")
					link.Size = read()
					m.putLink("a", s, "d", link)
				}
				if link.Size < before {
					t.Errorf("got %d after a writer had told of %d", link.Size, before)
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

func TestGrants_AreBounded(t *testing.T) {
	t.Parallel()
	k := newGrants()
	now := time.Unix(1000, 0)
	for i := range maxGrants {
		k.known[grantKey{"s", fmt.Sprint(i)}] = knownGrant{until: now.Add(time.Duration(i%2) * time.Second)}
	}
	k.makeRoom(now)
	if len(k.known) != maxGrants/2 {
		t.Errorf("%d of %d are left, of which half were over", len(k.known), maxGrants)
	}
	for i := range maxGrants {
		k.known[grantKey{"s", fmt.Sprint(i)}] = knownGrant{until: now.Add(time.Second)}
	}
	if k.makeRoom(now); len(k.known) != 0 {
		t.Errorf("%d are left", len(k.known))
	}
}
