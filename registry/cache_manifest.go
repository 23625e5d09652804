package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// acceptManifests are the media types the cache asks for: all that are in use,
// so that what is stored does not depend on who asked first. Types that are
// unknown here come as artifacts do, by */*; Docker's first schema would too,
// and is refused when it is read.
var acceptManifests = http.Header{"Accept": {strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"*/*;q=0.1",
}, ", ")}}

// fetchManifest finds the manifest of a tag or a digest in a repository of the
// cache: the stored one if it is what the upstream has, or if that cannot be
// told now, and else the upstream's, which it stores. When there is none it
// answers the call itself and returns false.
func (c *call) fetchManifest(reference string) (oci.Manifest, bool) {
	h, ctx, up := c.cache, c.r.Context(), *c.grant.Upstream
	_, byDigest := referenceDigest(reference)
	if !byDigest && !oci.ValidTag(reference) {
		c.unknownManifest(reference)
		return oci.Manifest{}, false
	}
	stored, found, err := h.g.findManifest(ctx, c.grant.Repo, reference)
	if err != nil {
		c.failed(err)
		return oci.Manifest{}, false
	}
	ttl := c.cfg.CacheTTL
	if c.subject == Internal {
		ttl = 0 // a deployment is to have what the tag means now
	}
	if found && (byDigest || h.fresh(stored, ttl) || !up.Fetch) {
		h.hit()
		h.save(c, stored.Size)
		return stored, true
	}
	what := "tag " + reference
	if byDigest {
		what = "manifest " + reference
	}
	if !up.Fetch {
		c.refuseFetch(codeManifestUnknown, what)
		return oci.Manifest{}, false
	}

	answer, err := h.once(ctx, questionKey{"manifest", c.grant.Repo, reference}, func(ctx context.Context) (any, error) {
		return h.currentManifest(ctx, up, c.grant, reference, byDigest, ttl)
	})
	if err != nil {
		c.refuse(err, codeManifestUnknown, what)
		return oci.Manifest{}, false
	}
	current := answer.(currentManifest)
	if current.fetched {
		h.miss()
		return current.Manifest, true
	}
	h.hit()
	h.save(c, current.Size)
	if current.stale != nil {
		c.warnStale(current.stale)
	}
	return current.Manifest, true
}

// refuseFetch answers somebody who may have what is stored, but not what would
// have to be fetched.
func (c *call) refuseFetch(code, what string) {
	c.fail(http.StatusNotFound, code,
		fmt.Sprintf("%s of %s/%s is not in the cache, and you may not have it fetched", what, c.grant.Upstream.Host, c.grant.Upstream.Repository), nil)
}

// currentManifest is what a tag or digest means now, as far as can be told.
type currentManifest struct {
	oci.Manifest
	fetched bool  // just now
	stale   error // why it could not be compared with the upstream
}

func (h *cache) currentManifest(ctx context.Context, up Upstream, grant Grant, reference string, byDigest bool, ttl time.Duration) (currentManifest, error) {
	// Somebody may have been faster between the look at the store and this.
	stored, found, err := h.g.findManifest(ctx, grant.Repo, reference)
	if err != nil {
		return currentManifest{}, err
	}
	if found && (byDigest || h.fresh(stored, ttl)) {
		return currentManifest{Manifest: stored}, nil
	}
	u, err := h.upstreams.of(up)
	if err != nil {
		return currentManifest{}, err
	}
	if !found {
		tag := reference
		if byDigest {
			tag = ""
		}
		m, err := h.getManifest(ctx, u, grant, reference, tag)
		return currentManifest{Manifest: m, fetched: true}, err
	}

	if after, resting := u.resting(); resting {
		return currentManifest{Manifest: stored, stale: after}, nil
	}
	current, err := h.compare(ctx, u, grant, reference, stored)
	var failed *upstreamError
	if errors.As(err, &failed) && failed.down() {
		h.g.cfg.Log.WarnContext(ctx, "registry serves a tag of another registry without comparing it",
			"upstream", up.Host, "repository", up.Repository, "tag", reference, "err", failed.cause)
		return currentManifest{Manifest: stored, stale: failed}, nil
	}
	return current, err
}

// fresh tells whether a tag was compared with its upstream less than ttl ago.
// One that was compared in the future was so by a clock that was wrong.
func (h *cache) fresh(stored oci.Manifest, ttl time.Duration) bool {
	age := h.g.now().Sub(stored.CheckedAt)
	return age >= 0 && age < ttl
}

// compare asks what a tag means at its upstream. When that is what is stored
// it notes so; when not, it moves the tag, and fetches what it means if it is
// not there yet.
func (h *cache) compare(ctx context.Context, u *upstream, grant Grant, tag string, stored oci.Manifest) (currentManifest, error) {
	asking, cancel := context.WithTimeout(ctx, h.patience.compare)
	defer cancel()
	resp, err := u.ask(asking, http.MethodHead, "manifests", tag, acceptManifests)
	if err != nil {
		return currentManifest{}, err
	}
	resp.Body.Close()
	d, said := referenceDigest(resp.Header.Get("Docker-Content-Digest"))
	switch {
	case !said:
		// This upstream has to be asked for the content to tell.
		m, err := h.getManifest(ctx, u, grant, tag, tag)
		return currentManifest{Manifest: m, fetched: m.Digest != stored.Digest}, err
	case d == stored.Digest:
		u.answered("manifests")
		return currentManifest{Manifest: stored}, h.checked(ctx, grant.Repo, tag)
	}
	m, found, err := h.g.findManifest(ctx, grant.Repo, d.String())
	if err != nil {
		return currentManifest{}, err
	}
	if found {
		// Read anew: what is remembered of it is without its edges.
		whole, err := oci.ParseManifest(m.Content, m.MediaType)
		if err != nil {
			return currentManifest{}, fmt.Errorf("reading stored manifest %s: %w", d, err)
		}
		whole.Digest = d
		return currentManifest{Manifest: whole}, h.storeManifest(ctx, grant, &whole, tag)
	}
	m, err = h.getManifest(ctx, u, grant, d.String(), tag)
	return currentManifest{Manifest: m, fetched: true}, err
}

// getManifest fetches a manifest by tag or digest, and stores it, if it is what
// was asked for, under the tag, if that is not empty.
func (h *cache) getManifest(ctx context.Context, u *upstream, grant Grant, reference, tag string) (oci.Manifest, error) {
	asking, cancel := context.WithTimeout(ctx, h.patience.manifest)
	defer cancel()
	resp, err := u.ask(asking, http.MethodGet, "manifests", reference, acceptManifests)
	if err != nil {
		return oci.Manifest{}, err
	}
	defer resp.Body.Close()
	limit := h.g.cfg.ManifestBytes
	content, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return oci.Manifest{}, u.broke("manifests", fmt.Errorf("reading manifest %s: %w", reference, err))
	}
	bad := func(cause error) (oci.Manifest, error) {
		return oci.Manifest{}, u.lied("manifests", fmt.Errorf("reading manifest %s: %w", reference, cause))
	}
	if int64(len(content)) > limit {
		return bad(fmt.Errorf("it is larger than %d bytes", limit))
	}
	d, byDigest := referenceDigest(reference)
	if !byDigest {
		// The upstream's own word, if it gives it: it shows damage on the way,
		// and may be of another algorithm.
		if d, err = oci.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err != nil {
			d = digest.FromBytes(content)
		}
	}
	if d.Algorithm().FromBytes(content) != d {
		return bad(errors.New("its content does not have its digest"))
	}
	mediaType := resp.Header.Get("Content-Type")
	if !strings.HasPrefix(mediaType, "application/vnd.") {
		mediaType = "" // a web server's guess; the manifest knows better
	}
	m, err := oci.ParseManifest(content, mediaType)
	if err != nil {
		return bad(err)
	}
	m.Digest = d
	u.answered("manifests")
	h.g.metrics.cacheFetched.Add(float64(len(content)))
	cost := manifestCost(m.Size, len(m.Children))
	if err := h.room(ctx, cost, cost); err != nil {
		return oci.Manifest{}, err
	}
	return m, h.storeManifest(ctx, grant, &m, tag)
}

// storeManifest stores a manifest of which nothing needs to be there yet, and
// lets the tag mean it, unless that is empty.
func (h *cache) storeManifest(ctx context.Context, grant Grant, m *oci.Manifest, tag string) error {
	for i := range m.Children {
		m.Children[i].Need = oci.NeedNothing
	}
	m.PushedAt, m.Lease = h.g.now(), h.g.lease(grant)
	var tags []string
	if tag != "" {
		tags, m.CheckedAt = []string{tag}, m.PushedAt
	}
	_, err := h.g.cfg.Metadata.PutManifest(ctx, grant.Repo, *m, tags, m.Lease)
	h.g.memo.drop(grant.Repo)
	if err != nil {
		return fmt.Errorf("storing manifest %s: %w", m.Digest, err)
	}
	if tag != "" {
		h.g.collector.kick() // what the tag meant before may be garbage
	}
	h.grown(manifestCost(m.Size, len(m.Children)))
	return nil
}

// checked notes that a tag means what its upstream says.
func (h *cache) checked(ctx context.Context, repo, tag string) error {
	err := h.g.cfg.Metadata.CheckTag(ctx, repo, tag, h.g.now())
	h.g.memo.drop(repo)
	if err != nil {
		return fmt.Errorf("noting that tag %s was compared: %w", tag, err)
	}
	return nil
}

func referenceDigest(reference string) (digest.Digest, bool) {
	d, err := oci.ParseDigest(reference)
	return d, err == nil
}
