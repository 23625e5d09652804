package registry

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// memoBytes bounds what the memo holds: the manifests' bytes and an
	// estimate of everything around them.
	memoBytes = 3 << 20
	// memoEntryBytes is that estimate for one entry.
	memoEntryBytes = 400
	// memoManifestBytes is how large a manifest may be to be remembered; most
	// have a few KiB.
	memoManifestBytes = memoBytes / 16

	memoStamps = 256
)

// memo remembers, in this process, what Metadata answered: tags, manifests and
// links, so that a pull of what is pulled often costs no transaction. It never
// remembers that something is absent.
//
// Nobody is answered with what a write had removed before the request began:
// whoever changes something drops it here after the transaction and before he
// replies, and whoever fills something in shows the stamp that he took before
// he read, which a drop in between has made invalid. A lease remembered here
// may be shorter than the stored one, never longer.
//
// The least recently used goes first. The methods may be called concurrently.
type memo struct {
	grants *grants
	tokens *verified

	mu     sync.Mutex
	repos  map[string]map[memoKey]*memoEntry
	newest memoEntry // ring of all entries: next is the newest, prev the oldest
	weight int

	// stamps holds a counter of drops for each part of the repositories.
	// Repositories that share one cost each other a fill, nothing more.
	stamps [memoStamps]uint64
	seed   maphash.Seed
}

type memoKind uint8

const (
	memoTag memoKind = iota
	memoManifest
	memoLink
)

type memoKey struct {
	kind memoKind
	ref  string // a tag or a digest
}

type memoEntry struct {
	repo       string
	key        memoKey
	weight     int
	prev, next *memoEntry

	manifest  oci.Manifest  // of a manifest; CheckedAt is not its own but its tag's
	link      oci.Link      // of a link
	digest    digest.Digest // of a tag
	checkedAt time.Time     // of a tag
}

// stamp is taken before Metadata is read; see memo.
type stamp uint64

func newMemo() *memo {
	m := &memo{
		grants: newGrants(),
		tokens: newVerified(),
		repos:  map[string]map[memoKey]*memoEntry{},
		seed:   maphash.MakeSeed(),
	}
	m.newest.prev, m.newest.next = &m.newest, &m.newest
	return m
}

// tag returns the manifest a tag means.
func (m *memo) tag(repo, tag string) (oci.Manifest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := m.repos[repo]
	e := entries[memoKey{memoTag, tag}]
	if e == nil {
		return oci.Manifest{}, false
	}
	of := entries[memoKey{memoManifest, string(e.digest)}]
	if of == nil {
		return oci.Manifest{}, false
	}
	m.used(e)
	m.used(of)
	found := of.manifest
	found.CheckedAt = e.checkedAt
	return found, true
}

// manifest returns the manifest of that digest.
func (m *memo) manifest(repo string, d digest.Digest) (oci.Manifest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.repos[repo][memoKey{memoManifest, string(d)}]
	if e == nil {
		return oci.Manifest{}, false
	}
	m.used(e)
	return e.manifest, true
}

// link returns the repository's link to a blob.
func (m *memo) link(repo string, d digest.Digest) (oci.Link, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.repos[repo][memoKey{memoLink, string(d)}]
	if e == nil {
		return oci.Link{}, false
	}
	m.used(e)
	return e.link, true
}

// stamp has to be taken before Metadata is read, and shown to what fills in
// the answer.
func (m *memo) stamp(repo string) stamp {
	m.mu.Lock()
	defer m.mu.Unlock()
	return stamp(*m.stampOf(repo))
}

// putTag fills in what a tag means, putManifest a manifest, putLink a link.
func (m *memo) putTag(repo string, s stamp, tag string, of oci.Manifest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	checkedAt := of.CheckedAt
	if m.keep(repo, s, of) {
		m.put(&memoEntry{repo: repo, key: memoKey{memoTag, tag}, weight: memoEntryBytes, digest: of.Digest, checkedAt: checkedAt})
	}
}

func (m *memo) putManifest(repo string, s stamp, of oci.Manifest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep(repo, s, of)
}

func (m *memo) putLink(repo string, s stamp, d digest.Digest, link oci.Link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if uint64(s) == *m.stampOf(repo) {
		m.put(&memoEntry{repo: repo, key: memoKey{memoLink, string(d)}, weight: memoEntryBytes, link: link})
	}
}

// renewManifest notes that a manifest's lease was extended, renewLink that a
// link's was.
func (m *memo) renewManifest(repo string, d digest.Digest, lease time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.repos[repo][memoKey{memoManifest, string(d)}]; e != nil && e.manifest.Lease.Before(lease) {
		e.manifest.Lease = lease
	}
}

func (m *memo) renewLink(repo string, d digest.Digest, lease time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.repos[repo][memoKey{memoLink, string(d)}]; e != nil && e.link.Lease.Before(lease) {
		e.link.Lease = lease
	}
}

// drop forgets all of a repository. Call it after each transaction that took
// something from the repository or changed a tag, whether it succeeded or not.
func (m *memo) drop(repo string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*m.stampOf(repo)++
	for _, e := range m.repos[repo] {
		m.remove(e)
	}
}

// dropLink forgets one link: for when nothing else was changed.
func (m *memo) dropLink(repo string, d digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*m.stampOf(repo)++
	if e := m.repos[repo][memoKey{memoLink, string(d)}]; e != nil {
		m.remove(e)
	}
}

// dropBlob forgets the links of all repositories to a blob.
func (m *memo) dropBlob(d digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.invalidate()
	for _, entries := range m.repos {
		if e := entries[memoKey{memoLink, string(d)}]; e != nil {
			m.remove(e)
		}
	}
}

// dropTree forgets the repository key and all whose key begins with key + "/",
// and who may do what.
func (m *memo) dropTree(key string) {
	m.grants.drop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.invalidate()
	for repo, entries := range m.repos {
		if rest, ok := strings.CutPrefix(repo, key); !ok || rest != "" && rest[0] != '/' {
			continue
		}
		for _, e := range entries {
			m.remove(e)
		}
	}
}

func (m *memo) invalidate() {
	for i := range m.stamps {
		m.stamps[i]++
	}
}

func (m *memo) stampOf(repo string) *uint64 {
	return &m.stamps[maphash.String(m.seed, repo)%memoStamps]
}

// keep fills in a manifest; false if it may not be remembered.
func (m *memo) keep(repo string, s stamp, of oci.Manifest) bool {
	if uint64(s) != *m.stampOf(repo) || len(of.Content) > memoManifestBytes {
		return false
	}
	// Edges, annotations and platforms matter to those who store and list;
	// what answers a pull does without.
	of.Children, of.Annotations, of.Platforms = nil, nil, nil
	of.CheckedAt = time.Time{}
	m.put(&memoEntry{
		repo: repo, key: memoKey{memoManifest, string(of.Digest)},
		weight: memoEntryBytes + cap(of.Content), manifest: of,
	})
	return true
}

func (m *memo) put(e *memoEntry) {
	if old := m.repos[e.repo][e.key]; old != nil {
		m.remove(old)
	}
	entries := m.repos[e.repo]
	if entries == nil {
		entries = map[memoKey]*memoEntry{}
		m.repos[e.repo] = entries
	}
	entries[e.key] = e
	m.weight += e.weight
	m.insert(e)
	for m.weight > memoBytes {
		m.remove(m.newest.prev)
	}
}

func (m *memo) remove(e *memoEntry) {
	e.prev.next, e.next.prev = e.next, e.prev
	m.weight -= e.weight
	entries := m.repos[e.repo]
	delete(entries, e.key)
	if len(entries) == 0 {
		delete(m.repos, e.repo)
	}
}

func (m *memo) used(e *memoEntry) {
	if m.newest.next == e {
		return
	}
	e.prev.next, e.next.prev = e.next, e.prev
	m.insert(e)
}

func (m *memo) insert(e *memoEntry) {
	e.prev, e.next = &m.newest, m.newest.next
	e.prev.next, e.next.prev = e, e
}
