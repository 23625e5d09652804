// Package oci holds what the registry and its database speak of: digests,
// names and ranges as the OCI distribution specification writes them,
// manifests taken apart, and the records of Metadata. It does no I/O.
package oci

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// Metadata is the registry's memory: which blobs exist, which repository may
// see which of them, what a manifest needs, what a tag means, and what has to
// be looked at by the collector. Every method is one transaction, durable when
// it returns, and may be called concurrently. Nothing is decided from what was
// read in an earlier one.
//
// A repository is known by an opaque key that never changes, not by its name.
// It exists while it has a row.
//
// A lease is a time until which the collector leaves a link or a manifest
// alone. Leases only grow: a method given an earlier one than is stored keeps
// the stored one.
//
// Whatever may have become garbage is put on the list of reviews in the
// transaction that made it so, due when its lease is over.
type Metadata interface {
	// Blob tells size and lease of a blob that is linked in the repository and
	// live.
	Blob(ctx context.Context, repo string, d digest.Digest) (Link, bool, error)

	// BlobState tells how it stands with a blob, linked or not.
	BlobState(ctx context.Context, d digest.Digest) (Blob, bool, error)

	// CommitBlob makes the blob live, whatever it was before, links it in the
	// repository, and leases the link. The bytes must be durable already.
	CommitBlob(ctx context.Context, repo string, d digest.Digest, size int64, lease time.Time) error

	// MountBlob links a live blob that is linked in from in the repository
	// too. False: it is not there.
	MountBlob(ctx context.Context, from, repo string, d digest.Digest, lease time.Time) (size int64, found bool, err error)

	// RenewBlob extends the lease of a link to a live blob. False: it is not
	// there.
	RenewBlob(ctx context.Context, repo string, d digest.Digest, lease time.Time) (bool, error)

	// UnlinkBlob takes the blob from the repository, lease or not. It fails
	// with ErrInUse when a manifest of the repository needs the blob. False:
	// it was not linked.
	UnlinkBlob(ctx context.Context, repo string, d digest.Digest) (bool, error)

	// PutManifest checks that everything the manifest requires is there, and
	// stores it with its edges, the tags, and its lease, in one transaction. A
	// manifest that is there already gets the tags and the lease. When
	// something is missing it stores nothing and tells what. Tags that pointed
	// elsewhere are moved, and what they pointed to is reviewed.
	PutManifest(ctx context.Context, repo string, m Manifest, tags []string, lease time.Time) (missing []digest.Digest, err error)

	// Manifest finds a manifest by digest, TaggedManifest by tag.
	Manifest(ctx context.Context, repo string, d digest.Digest) (Manifest, bool, error)
	TaggedManifest(ctx context.Context, repo, tag string) (Manifest, bool, error)

	// Whole tells whether a manifest is there and everything it keeps an edge
	// to, at any depth: manifests of the repository, and live, linked blobs.
	Whole(ctx context.Context, repo string, d digest.Digest) (bool, error)

	// RenewManifest extends the lease of a manifest. False: it is not there.
	RenewManifest(ctx context.Context, repo string, d digest.Digest, lease time.Time) (bool, error)

	// DeleteTag removes a tag; DeleteManifest a manifest with its tags and
	// edges. False: it was not there.
	DeleteTag(ctx context.Context, repo, tag string) (bool, error)
	DeleteManifest(ctx context.Context, repo string, d digest.Digest) (bool, error)

	// WithdrawManifest is DeleteManifest, unless the manifest is needed: it
	// fails with ErrInUse when another manifest of the repository refers to
	// it, and with ErrRenewed when its lease ends later than the given one.
	WithdrawManifest(ctx context.Context, repo string, d digest.Digest, lease time.Time) (bool, error)

	// CheckTag notes when a tag of the cache was last compared with its
	// upstream, be it earlier than was noted: a clock may have been ahead. See
	// Manifest.CheckedAt.
	CheckTag(ctx context.Context, repo, tag string, at time.Time) error

	// Tags lists at most n tags strictly after last, in the order of their
	// bytes. known is false when the repository does not exist.
	Tags(ctx context.Context, repo, last string, n int) (tags []string, known bool, err error)

	// Referrers visits the manifests with the subject, in the order of their
	// digests, strictly after the given one, without Content, at most n. It
	// reads on only while visit returns true: annotations may be large. visit
	// must not call Metadata. artifactType filters unless empty.
	Referrers(ctx context.Context, repo string, subject digest.Digest, artifactType string, after digest.Digest, n int, visit func(Manifest) bool) error

	// DropRepositories removes the repository and all whose key begins with
	// key + "/": manifests, tags and links, leases or not. It takes many small
	// transactions, so that nobody waits for a large repository; when it
	// fails, calling it again carries on.
	DropRepositories(ctx context.Context, key string) error

	// Due lists at most n reviews that are due, the oldest first, and tells
	// when the next after them falls due (zero: none).
	Due(ctx context.Context, now time.Time, n int) ([]Review, time.Time, error)

	// ReviewManifest deletes a manifest that nothing needs any more: no tag,
	// no index, no subject that is there, a lease that is over. What it
	// needed is reviewed next. Otherwise the review is dropped, or put off to
	// the end of the lease.
	ReviewManifest(ctx context.Context, repo string, d digest.Digest, now time.Time) (Verdict, error)

	// PutOff moves a review to a later time, because something outside of the
	// registry needs its object, or because it failed. One that was dropped is
	// put on the list again.
	PutOff(ctx context.Context, r Review, until time.Time) error

	// ReviewLink deletes the link of a blob that no manifest of the repository
	// needs, lease over, and has the blob reviewed.
	ReviewLink(ctx context.Context, repo string, d digest.Digest, now time.Time) (Verdict, error)

	// Condemn marks a live blob without any link: from now on nobody finds or
	// mounts it, until it is committed again. So it does with a quarantined
	// blob; one that is condemned already stays so. It returns the generation
	// that is condemned; false when the blob is linked, or not there. The
	// review is dropped.
	Condemn(ctx context.Context, d digest.Digest) (gen int64, condemned bool, err error)

	// Forget deletes the row of a blob that is still condemned in that
	// generation. False: it was committed again.
	Forget(ctx context.Context, d digest.Digest, gen int64) (bool, error)

	// Linkers lists at most n repositories whose key begins with prefix and
	// that have a link to the blob, ordered by key.
	Linkers(ctx context.Context, d digest.Digest, prefix string, n int) (repos []string, err error)

	// Quarantine marks a live blob whose bytes are not what its digest says:
	// nobody finds it until it is committed again. Links and edges stay, so
	// that a push heals every image that needs it. False: it is not live.
	Quarantine(ctx context.Context, d digest.Digest) (bool, error)

	// Heal makes a quarantined blob live whose bytes were found after all.
	// False: it is not quarantined.
	Heal(ctx context.Context, d digest.Digest) (bool, error)

	// Garbage tells what the collector would delete now, and changes nothing.
	// keep tells which manifests are needed outside of the registry. This may
	// be more than one transaction, too.
	Garbage(ctx context.Context, now time.Time, keep func(repo string, d digest.Digest) (bool, error)) (Garbage, error)

	// Blobs lists at most n blobs, in the order of their digests, strictly
	// after the given one.
	Blobs(ctx context.Context, after digest.Digest, n int) ([]Blob, error)

	// Totals counts everything; PrefixTotals what belongs to repositories whose
	// key begins with prefix.
	Totals(ctx context.Context) (Totals, error)
	PrefixTotals(ctx context.Context, prefix string) (Totals, error)

	// Repositories lists the repositories whose key is one of keys or begins
	// with one of them + "/", ordered by key, with their tags. Their sizes
	// count indexes in indexes down to a depth of 8, and only what the tag's
	// manifest itself refers to when it takes too long to count more.
	Repositories(ctx context.Context, keys []string) ([]Repository, error)

	// Oldest lists at most n manifests of repositories whose key begins with
	// prefix, those whose lease ends first first, without Content.
	Oldest(ctx context.Context, prefix string, n int) ([]Ref, error)
}

// Blob states.
const (
	Live        = "live"
	Condemned   = "condemned"   // being collected; no link
	Quarantined = "quarantined" // its bytes are damaged
)

// Blob is the row of a blob.
type Blob struct {
	Digest digest.Digest
	Size   int64
	State  string
	Gen    int64 // how often it was condemned
}

// Link is a repository's right to a blob.
type Link struct {
	Size  int64
	Lease time.Time
}

// Ref names a manifest.
type Ref struct {
	Repo   string
	Digest digest.Digest
	Lease  time.Time
}

// Manifest is a stored manifest. Content is what was pushed, byte for byte.
type Manifest struct {
	Digest       digest.Digest
	MediaType    string
	ArtifactType string // its own, else its config's media type
	Size         int64
	Content      []byte
	Annotations  map[string]string
	Subject      digest.Digest // empty: none
	Children     []Child       // given to PutManifest only
	Platforms    []string      // "linux/amd64"; of an index, as far as it says
	Lease        time.Time
	PushedAt     time.Time

	// CheckedAt is when the tag by which it was found was last compared with
	// its upstream; zero for what was pushed.
	CheckedAt time.Time
}

// Child is something a manifest refers to.
type Child struct {
	Digest digest.Digest

	// Need tells what has to be there for the manifest to be stored. An edge
	// is kept for each child but an absent NeedIfThere, so that none is
	// collected under its manifest.
	Need Need
}

// Need is what a manifest asks of a child.
type Need int

// What may be asked.
const (
	NeedBlob    Need = iota // a live, linked blob
	NeedAny                 // a manifest of the repository, or a live, linked blob
	NeedNothing             // it may be absent: an index in the cache, of which only some platforms were fetched
	NeedIfThere             // it may be absent, and then is left out: a layer that stays elsewhere
)

// Review kinds.
const (
	ReviewsManifest = "manifest"
	ReviewsLink     = "link"
	ReviewsBlob     = "blob" // Repo is empty
)

// Review is something that may have become garbage.
type Review struct {
	Kind   string
	Repo   string
	Digest digest.Digest
}

// Verdict is what came of a review.
type Verdict int

// The verdicts.
const (
	Gone    Verdict = iota // was deleted before
	Needed                 // something refers to it: dropped until that changes
	Leased                 // put off
	Deleted                // by this review
)

// Garbage counts what nobody needs any more.
type Garbage struct {
	Manifests int
	Links     int
	Blobs     int
	Bytes     int64 // of the blobs
}

// Totals count rows and bytes.
type Totals struct {
	Repositories  int
	Manifests     int
	Blobs         int   // live, each once
	LogicalBytes  int64 // each link counted
	PhysicalBytes int64 // each blob once
	ManifestBytes int64 // of manifests' contents
	Edges         int   // from manifests to what they refer to
	OldestLease   time.Time
}

// Repository is one repository with its tags, by name.
type Repository struct {
	Key       string
	SizeBytes int64 // its blobs and manifests, each once
	Tags      []Tag
}

// Tag is one tag of a repository.
type Tag struct {
	Name      string
	Digest    digest.Digest
	SizeBytes int64 // the manifest and everything it needs, each once, as far as Repositories counts
	PushedAt  time.Time
	Platforms []string
}
