// Package registry is an OCI registry: the distribution specification over
// HTTP (https://github.com/opencontainers/distribution-spec), content-addressed
// blobs with links per repository, an online collector, and a pull-through
// cache of other registries.
//
// It knows nothing of projects, services and users: who somebody is and what
// they may do, what a push means, and which manifests are needed elsewhere, it
// asks the functions of its Config.
package registry

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// Config is what a Registry needs. All functions may be called concurrently.
type Config struct {
	Storage  Storage
	Metadata oci.Metadata
	Log      *slog.Logger

	// Authenticate tells whose user name and password (or token) these are:
	// a stable name that Authorize understands. It fails with ErrUnauthorized
	// when they are nobody's, with *Limited when it was tried too often.
	Authenticate func(r *http.Request, username, password string) (subject string, err error)

	// Authorize tells what the subject may do with the repository of that
	// name: nothing at all in a zero Grant. The empty subject is the public;
	// Internal is Denia itself, which may do everything. Answers are kept for
	// up to two seconds.
	Authorize func(ctx context.Context, subject, name string) (Grant, error)

	// OnPush is told of each manifest that was stored under a tag, before the
	// client is. When it fails, so does the push, which then can be repeated.
	// It must not wait for anything long.
	OnPush func(ctx context.Context, p Push) error

	// OnDelete is told of each tag, manifest or blob that a client removed,
	// before the client is. When it fails, the client is told so, though what
	// it wanted is done.
	OnDelete func(ctx context.Context, d Deletion) error

	// Reserved tells whether a tag is not for clients to set.
	Reserved func(tag string) bool

	// Keep tells whether a manifest is needed outside of the registry, though
	// nothing in it refers to it.
	Keep func(ctx context.Context, repo string, d digest.Digest) (bool, error)

	// Scheme is the one by which the client reached the registry, "http" or
	// "https".
	Scheme func(r *http.Request) string

	// TokenKey signs the tokens of /v2/token. At least 32 bytes.
	TokenKey []byte

	Options
}

// Options bound the registry. A zero takes the default in brackets.
type Options struct {
	Lease         time.Duration // how long what was asked for is safe from collection [24h]
	CacheLease    time.Duration // the same in the cache [1h]
	UploadTTL     time.Duration // after which an idle upload is dropped [24h]
	TokenTTL      time.Duration // [5m]
	ManifestBytes int64         // the largest manifest [8 MiB]
	CacheTTL      time.Duration // after which a cached tag is compared with its upstream [5m]
	CacheBytes    int64         // budget of the cache [10 GiB]
	ReserveBytes  int64         // free space below which nothing is accepted [0]
	ScrubBytes    int64         // re-hashed a day [20 GiB]; negative: none

	// Now is the clock; Failpoint, if set, is called at each step that a crash
	// could follow, with the step's name. Both are for tests.
	Now       func() time.Time
	Failpoint func(step string)
}

// Internal is the subject of Denia's own requests, see Registry.Credentials.
const Internal = "internal"

// Grant is what a subject may do with a repository.
type Grant struct {
	// Repo is the repository's key: what Metadata knows it by. Empty: there is
	// no such repository, or the subject must not know.
	Repo string

	Pull, Push, Delete bool

	// Missing explains, to somebody who may know, why Repo is empty.
	Missing string

	// Upstream, if set, makes this a repository of the cache: what is not
	// there is fetched.
	Upstream *Upstream
}

// Upstream is where a repository of the cache comes from.
type Upstream struct {
	Host       string // "ghcr.io", "127.0.0.1:5000"
	Repository string // "owner/name"
	Fetch      bool   // the subject may have Denia fetch what is not there yet

	// Username and Password are sent to Host; empty: anonymous.
	Username, Password string
}

// Deletion is something that a client removed from a repository.
type Deletion struct {
	Subject string // who did, as Authenticate named them
	Repo    string // key
	Name    string // as the client wrote it
	Kind    string // "manifests" or "blobs", as in the path
}

// Push is a manifest that was stored under a tag.
type Push struct {
	Subject   string // who pushed, as Authenticate named them
	Repo      string // key
	Name      string // as the client wrote it
	Tag       string
	Digest    digest.Digest
	MediaType string
}
