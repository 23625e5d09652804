package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// maxReferrersBytes is how large a list of referrers is at most, unless a
// single one is larger. Clients limit what they read as a manifest to 4 MiB.
const maxReferrersBytes = 3 << 20

// maxReferrerAnnotations is how many bytes of annotations a manifest with a
// subject may have: lists of referrers repeat them.
const maxReferrerAnnotations = 64 << 10

// referrersBatch is how many are read at once.
const referrersBatch = 100

// listReferrers answers GET referrers/<digest> (distribution-spec, "Listing
// Referrers") with an index, in the order of the digests. It is empty where
// there are none, and where there is no such subject.
func (c *call) listReferrers(reference string) {
	subject, err := oci.ParseDigest(reference)
	if err != nil {
		c.fail(http.StatusBadRequest, codeDigestInvalid, err.Error(), nil)
		return
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		c.fail(http.StatusBadRequest, codeUnsupported, "the query cannot be read", nil)
		return
	}
	artifactType := query.Get("artifactType")
	var last digest.Digest // of the page before
	if query.Has("last") {
		if last, err = oci.ParseDigest(query.Get("last")); err != nil {
			c.fail(http.StatusBadRequest, codeDigestInvalid, err.Error(), nil)
			return
		}
	}

	page := referrersPage{}
	page.WriteString(`{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[`)
	more, err := c.fillReferrers(c.r.Context(), &page, subject, artifactType, last)
	if err != nil {
		c.failed(fmt.Errorf("listing the referrers of %s: %w", subject, err))
		return
	}
	page.WriteString("]}")

	h := c.w.Header()
	if more {
		next := url.Values{"last": {string(page.last)}}
		if artifactType != "" {
			next.Set("artifactType", artifactType)
		}
		c.link("/referrers/"+string(subject), next)
	}
	if artifactType != "" {
		h.Set("Oci-Filters-Applied", "artifactType")
	}
	h.Set("Content-Type", oci.TypeIndex)
	h.Set("Content-Length", strconv.Itoa(page.Len()))
	c.w.WriteHeader(http.StatusOK)
	c.w.Write(page.Bytes())
}

// fillReferrers fills a page with the referrers after last, and tells whether
// some are left.
//
// On registries without this endpoint clients keep such an index themselves,
// under a tag made of the subject's digest ("Referrers Tag Schema"), and copy
// it along with the rest. It need not be read here: every manifest with a
// subject that is pushed is found by it, so that what such an index lists and
// is there is in the answer anyway.
func (c *call) fillReferrers(ctx context.Context, page *referrersPage, subject digest.Digest, artifactType string, last digest.Digest) (more bool, err error) {
	for {
		var read int
		var failure error
		err := c.cfg.Metadata.Referrers(ctx, c.grant.Repo, subject, artifactType, last, referrersBatch, func(m oci.Manifest) bool {
			read++
			var added bool
			added, failure = page.add(oci.Descriptor{
				MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, Annotations: m.Annotations, ArtifactType: m.ArtifactType,
			})
			more = !added
			return added
		})
		if err = errors.Join(err, failure); err != nil || more || read < referrersBatch {
			return more, err
		}
		last = page.last
	}
}

// referrersPage is an index being written.
type referrersPage struct {
	bytes.Buffer
	last digest.Digest // the last that was added
}

// add adds a descriptor; false if the page is full.
func (p *referrersPage) add(d oci.Descriptor) (bool, error) {
	begin := p.Len()
	if p.last != "" {
		p.WriteByte(',')
	}
	enc := json.NewEncoder(&p.Buffer)
	enc.SetEscapeHTML(false) // it would make annotations longer than they were pushed
	if err := enc.Encode(d); err != nil {
		return false, err
	}
	p.Truncate(p.Len() - len("\n"))
	if p.last != "" && p.Len() > maxReferrersBytes {
		p.Truncate(begin)
		return false, nil
	}
	p.last = d.Digest
	return true, nil
}
