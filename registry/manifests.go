package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// manifestPatience is how long a client may take to send a manifest.
const manifestPatience = time.Minute

// maxTags is how many tags one push may set by query parameters.
const maxTags = 64

// getManifest answers GET and HEAD of a manifest, by tag or digest.
func (c *call) getManifest(reference string) {
	// What is found may be collected before its lease is renewed; another look
	// then finds what there is now.
	for range 2 {
		m, ok := c.lookUp(reference)
		if !ok {
			return
		}
		kept, err := c.keepManifest(c.r.Context(), c.grant, m)
		if err != nil {
			c.failed(fmt.Errorf("renewing the lease of manifest %s: %w", m.Digest, err))
			return
		}
		if kept {
			c.serveManifest(m)
			return
		}
	}
	c.unknownManifest(reference)
}

// lookUp finds a manifest, or answers that there is none.
func (c *call) lookUp(reference string) (oci.Manifest, bool) {
	if strings.ContainsRune(reference, ':') {
		if _, err := oci.ParseDigest(reference); err != nil {
			c.fail(http.StatusBadRequest, codeDigestInvalid, err.Error(), nil)
			return oci.Manifest{}, false
		}
	}
	if c.grant.Upstream != nil {
		return c.fetchManifest(reference)
	}
	m, found, err := c.findManifest(c.r.Context(), c.grant.Repo, reference)
	if err != nil {
		c.failed(err)
	} else if !found {
		c.unknownManifest(reference)
	}
	return m, found && err == nil
}

// findManifest finds a stored manifest by tag or digest.
func (g *Registry) findManifest(ctx context.Context, repo, reference string) (m oci.Manifest, found bool, err error) {
	if strings.ContainsRune(reference, ':') {
		d := digest.Digest(reference)
		if m, found = g.memo.manifest(repo, d); found {
			return m, true, nil
		}
		stamp := g.memo.stamp(repo)
		if m, found, err = g.cfg.Metadata.Manifest(ctx, repo, d); found && err == nil {
			g.memo.putManifest(repo, stamp, m)
		}
	} else {
		if m, found = g.memo.tag(repo, reference); found {
			return m, true, nil
		}
		stamp := g.memo.stamp(repo)
		if m, found, err = g.cfg.Metadata.TaggedManifest(ctx, repo, reference); found && err == nil {
			g.memo.putTag(repo, stamp, reference, m)
		}
	}
	if err != nil {
		return oci.Manifest{}, false, fmt.Errorf("looking for manifest %s: %w", reference, err)
	}
	return m, found, nil
}

// keepManifest sees to it that the manifest stays for what a client is
// promised when it is told of it. False: it is gone.
func (g *Registry) keepManifest(ctx context.Context, grant Grant, m oci.Manifest) (bool, error) {
	if !g.renewable(grant, m.Lease) {
		return true, nil
	}
	lease := g.lease(grant)
	kept, err := g.cfg.Metadata.RenewManifest(ctx, grant.Repo, m.Digest, lease)
	if err != nil {
		return false, err
	}
	if kept {
		g.memo.renewManifest(grant.Repo, m.Digest, lease)
	} else {
		g.memo.drop(grant.Repo)
	}
	return kept, nil
}

// serveManifest sends a manifest as it was pushed, whatever the client accepts:
// anything else would not have its digest.
func (c *call) serveManifest(m oci.Manifest) {
	// One allocation for all values. Each has a slice of its own, because
	// handlers around this one may change them in place.
	values := [...]string{m.MediaType, string(m.Digest), strconv.Itoa(len(m.Content))}
	h := c.w.Header()
	h["Content-Type"] = values[0:1:1]
	h["Docker-Content-Digest"] = values[1:2:2]
	h["Content-Length"] = values[2:3:3]
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == http.MethodHead {
		return
	}
	c.metrics.manifestPulls.Inc()
	n, _ := c.w.Write(m.Content)
	c.metrics.sent.Add(float64(n))
}

func (c *call) unknownManifest(reference string) {
	c.fail(http.StatusNotFound, codeManifestUnknown, c.name+" has no manifest "+reference, map[string]string{"name": c.name, "reference": reference})
}

// putManifest stores a manifest under a tag, or under its digest and the tags
// the query names.
func (c *call) putManifest(reference string) {
	control := http.NewResponseController(c.w)
	// Connections without deadlines, as in tests, go without. When the push
	// fails, the deadline stays for what is left of the body.
	_ = control.SetReadDeadline(time.Now().Add(manifestPatience))
	d, tags, ok := c.target(reference)
	if !ok {
		return
	}
	m, ok := c.readManifest(d)
	if !ok {
		return
	}
	_ = control.SetReadDeadline(time.Time{})
	if !c.authorizeAgain("push", false) {
		return
	}
	for _, tag := range tags {
		if c.subject != Internal && c.cfg.Reserved(tag) {
			c.fail(http.StatusForbidden, codeDenied, "the tag "+tag+" is not for clients to set; use another", map[string]string{"tag": tag})
			return
		}
	}

	ctx := c.r.Context()
	missing, err := c.cfg.Metadata.PutManifest(ctx, c.grant.Repo, m, tags, c.lease(c.grant))
	c.memo.drop(c.grant.Repo)
	if err != nil {
		c.failed(fmt.Errorf("storing manifest %s: %w", m.Digest, err))
		return
	}
	if len(missing) > 0 {
		c.failMissing(missing)
		return
	}
	c.collector.kick() // what a tag meant before may be garbage
	c.step("manifest.txn")

	// The tags are moved. A client that goes away now doesn't change what has
	// to follow from that.
	ctx = context.WithoutCancel(ctx)
	for _, tag := range tags {
		err := c.cfg.OnPush(ctx, Push{
			Subject: c.subject, Repo: c.grant.Repo, Name: c.name, Tag: tag, Digest: m.Digest, MediaType: m.MediaType,
		})
		if err != nil {
			c.failed(fmt.Errorf("telling of the push of %s:%s: %w", c.name, tag, err))
			return
		}
	}
	c.step("manifest.pushed")

	c.metrics.manifestPushes.Inc()
	c.metrics.received.Add(float64(m.Size))
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.name+"/manifests/"+string(m.Digest))
	h.Set("Docker-Content-Digest", string(m.Digest))
	h.Set("Content-Length", "0")
	if m.Subject != "" {
		h.Set("Oci-Subject", string(m.Subject))
	}
	for _, tag := range tags {
		if tag != reference {
			h.Add("Oci-Tag", tag)
		}
	}
	c.w.WriteHeader(http.StatusCreated)
}

// target reads what a push is to set: its digest, if the client gave it, and
// tags. False: it cannot be, and has been answered.
func (c *call) target(reference string) (d digest.Digest, tags []string, ok bool) {
	if strings.ContainsRune(reference, ':') {
		var err error
		if d, err = oci.ParseDigest(reference); err != nil {
			c.fail(http.StatusBadRequest, codeDigestInvalid, err.Error(), nil)
			return "", nil, false
		}
	} else {
		tags = []string{reference}
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		c.fail(http.StatusBadRequest, codeManifestInvalid, "the query cannot be read", nil)
		return "", nil, false
	}
	if len(query["tag"]) > maxTags {
		c.fail(http.StatusRequestURITooLong, codeUnsupported, fmt.Sprintf("one push sets at most %d tags", maxTags), nil)
		return "", nil, false
	}
	for _, tag := range query["tag"] {
		if !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	for _, tag := range tags {
		if !oci.ValidTag(tag) {
			c.fail(http.StatusBadRequest, codeManifestInvalid, "a tag is made of up to 128 letters, digits, and _ . -, of which the last two don't stand first", map[string]string{"tag": tag})
			return "", nil, false
		}
	}
	return d, tags, true
}

// readManifest reads the body of a push. d is what its digest has to be; empty:
// any. False: it is not a manifest, and that has been answered.
func (c *call) readManifest(d digest.Digest) (oci.Manifest, bool) {
	limit := c.cfg.ManifestBytes
	tooLarge := func() (oci.Manifest, bool) {
		c.fail(http.StatusRequestEntityTooLarge, codeSizeInvalid, fmt.Sprintf("a manifest has at most %d bytes", limit), nil)
		return oci.Manifest{}, false
	}
	if c.r.ContentLength > limit {
		return tooLarge()
	}
	announced := c.r.ContentLength
	if announced < 0 {
		announced = limit
	}
	if err := c.checkSpace(c.r.Context(), announced); err != nil {
		c.failed(err)
		return oci.Manifest{}, false
	}
	stop := c.atClose((*http.ResponseController).SetReadDeadline)
	content, err := io.ReadAll(io.LimitReader(c.r.Body, limit+1))
	stop()
	var tooMuch *http.MaxBytesError
	switch {
	case err != nil && c.ctx.Err() != nil:
		c.failed(err)
		return oci.Manifest{}, false
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.fail(http.StatusRequestTimeout, codeSizeInvalid, fmt.Sprintf("the manifest did not arrive within %s", manifestPatience), nil)
		return oci.Manifest{}, false
	case errors.As(err, &tooMuch):
		limit = tooMuch.Limit
		return tooLarge()
	case err != nil:
		c.fail(http.StatusBadRequest, codeSizeInvalid, "the body broke off", nil)
		return oci.Manifest{}, false
	case int64(len(content)) > limit:
		return tooLarge()
	}

	algorithm := digest.SHA256
	if d != "" {
		algorithm = d.Algorithm()
	}
	computed := algorithm.FromBytes(content)
	if d != "" && d != computed {
		c.fail(http.StatusBadRequest, codeDigestInvalid, "the body has another digest than the one it was to be stored under",
			map[string]digest.Digest{"expected": d, "received": computed})
		return oci.Manifest{}, false
	}
	m, err := oci.ParseManifest(content, c.r.Header.Get("Content-Type"))
	if err != nil {
		c.fail(http.StatusBadRequest, codeManifestInvalid, err.Error(), nil)
		return oci.Manifest{}, false
	}
	annotations := 0
	for key, value := range m.Annotations { // set if there is a subject
		annotations += len(key) + len(value)
	}
	if annotations > maxReferrerAnnotations {
		c.fail(http.StatusBadRequest, codeManifestInvalid,
			fmt.Sprintf("a manifest with a subject has at most %d bytes of annotations, and this one has %d", maxReferrerAnnotations, annotations), nil)
		return oci.Manifest{}, false
	}
	m.Digest = computed
	m.PushedAt = c.now()
	return m, true
}

// deleteManifest removes a tag, or a manifest with all its tags.
func (c *call) deleteManifest(reference string) {
	ctx, repo := c.r.Context(), c.grant.Repo
	var found bool
	var err error
	if strings.ContainsRune(reference, ':') {
		d, invalid := oci.ParseDigest(reference)
		if invalid != nil {
			c.fail(http.StatusBadRequest, codeDigestInvalid, invalid.Error(), nil)
			return
		}
		if found, err = c.withdraw(ctx, d); c.refuseWithdrawal(d, err) {
			return
		}
	} else {
		found, err = c.cfg.Metadata.DeleteTag(ctx, repo, reference)
	}
	c.memo.drop(repo)
	switch {
	case err != nil:
		c.failed(fmt.Errorf("deleting manifest %s: %w", reference, err))
	case !found:
		c.unknownManifest(reference)
	default:
		c.metrics.manifestDeletes.Inc()
		c.deleted("manifests")
	}
}

// errKept says that Config.Keep wants a manifest.
var errKept = errors.New("this manifest is needed outside of the registry, as by a release that runs or can be rolled back to")

// withdraw deletes a manifest that nobody needs. Who begins to need it while
// Config.Keep is asked touches it (see Touch), and wins: it fails with
// oci.ErrRenewed then. Who touched it before that and is not known to Keep yet
// loses it, as if the deletion had come first.
//
// What an index lists is needed as long as the index: Keep need not know of
// the platforms of what it keeps.
func (c *call) withdraw(ctx context.Context, d digest.Digest) (bool, error) {
	m, found, err := c.cfg.Metadata.Manifest(ctx, c.grant.Repo, d)
	if err != nil || !found {
		return false, err
	}
	needed, err := c.cfg.Keep(ctx, c.grant.Repo, d)
	if err != nil {
		return false, fmt.Errorf("asking who else needs it: %w", err)
	}
	if needed {
		return false, errKept
	}
	return c.cfg.Metadata.WithdrawManifest(ctx, c.grant.Repo, d, m.Lease)
}

// refuseWithdrawal answers when withdraw failed because the manifest is
// needed. False: it is not that.
func (c *call) refuseWithdrawal(d digest.Digest, err error) bool {
	detail := map[string]digest.Digest{"digest": d}
	switch {
	case errors.Is(err, errKept):
		c.fail(http.StatusForbidden, codeDenied, errKept.Error(), detail)
	case errors.Is(err, oci.ErrInUse):
		c.fail(http.StatusForbidden, codeDenied, "an index of this repository lists the manifest; delete the index first", detail)
	case errors.Is(err, oci.ErrRenewed):
		c.w.Header().Set("Retry-After", "1")
		c.fail(http.StatusConflict, codeDenied, "somebody has just begun to use this manifest; try again if it is to go nevertheless", detail)
	default:
		return false
	}
	return true
}

// failMissing tells what a manifest needs and the repository doesn't have, all
// of it: clients push it and try again.
func (c *call) failMissing(missing []digest.Digest) {
	const named = 3
	message := "the manifest needs what is not in " + c.name + ": "
	for i, d := range missing {
		if i == named {
			message += fmt.Sprintf(" and %d more", len(missing)-named)
			break
		}
		if i > 0 {
			message += ", "
		}
		message += string(d)
	}
	c.fail(http.StatusBadRequest, codeManifestBlobUnknown, message, map[string][]digest.Digest{"digests": missing})
}
