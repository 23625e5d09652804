package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

// sendfileBytes is from how many bytes on the kernel sends content by itself;
// below, one read and one write are cheaper.
const sendfileBytes = 64 << 10

// getBlob answers HEAD and GET of a blob (distribution-spec, end-2).
func (c *call) getBlob(reference string) {
	d, err := oci.ParseDigest(reference)
	if err != nil {
		c.invalidDigest(reference)
		return
	}
	if c.grant.Upstream != nil {
		c.fetchBlob(d)
		return
	}
	size, found, err := c.blob(c.r.Context(), c.grant, d)
	switch {
	case err != nil:
		c.failed(err)
	case !found:
		c.noBlob(d)
	default:
		c.serveBlob(d, size)
	}
}

// deleteBlob takes a blob from the repository (end-10).
func (c *call) deleteBlob(reference string) {
	d, err := oci.ParseDigest(reference)
	if err != nil {
		c.invalidDigest(reference)
		return
	}
	// The transaction may be carried out though the client has gone.
	found, err := c.cfg.Metadata.UnlinkBlob(context.WithoutCancel(c.r.Context()), c.grant.Repo, d)
	c.memo.dropLink(c.grant.Repo, d)
	switch {
	case errors.Is(err, oci.ErrInUse):
		c.fail(http.StatusForbidden, codeDenied, "a manifest of this repository needs the blob; delete the manifest, and the blob goes by itself", map[string]string{"digest": d.String()})
	case err != nil:
		c.failed(fmt.Errorf("deleting blob %s: %w", d, err))
	case !found:
		c.noBlob(d)
	default:
		c.metrics.blobDeletes.Inc()
		c.deleted("blobs")
	}
}

// deleted tells the collector, Config.OnDelete and the client that something
// was removed.
func (c *call) deleted(kind string) {
	c.collector.kick()
	err := c.cfg.OnDelete(context.WithoutCancel(c.r.Context()), Deletion{Subject: c.subject, Repo: c.grant.Repo, Name: c.name, Kind: kind})
	if err != nil {
		c.failed(fmt.Errorf("telling of a deletion in %s: %w", c.name, err))
		return
	}
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusAccepted)
}

// blob tells the size of a blob of a repository, and sees to it that it stays
// for three quarters of a lease at least.
func (g *Registry) blob(ctx context.Context, grant Grant, d digest.Digest) (size int64, found bool, err error) {
	link, found := g.memo.link(grant.Repo, d)
	if !found {
		stamp := g.memo.stamp(grant.Repo)
		link, found, err = g.cfg.Metadata.Blob(ctx, grant.Repo, d)
		if err != nil {
			return 0, false, fmt.Errorf("looking for blob %s: %w", d, err)
		}
		if !found {
			return 0, false, nil
		}
		g.memo.putLink(grant.Repo, stamp, d, link)
	}
	if !g.renewable(grant, link.Lease) {
		return link.Size, true, nil
	}
	lease := g.lease(grant)
	found, err = g.cfg.Metadata.RenewBlob(ctx, grant.Repo, d, lease)
	if err != nil {
		return 0, false, fmt.Errorf("renewing the lease of blob %s: %w", d, err)
	}
	if !found {
		g.memo.dropLink(grant.Repo, d)
		return 0, false, nil
	}
	g.memo.renewLink(grant.Repo, d, lease)
	return link.Size, true, nil
}

// serveBlob answers with a blob that the caller may see, or with the range of
// it that was asked for.
func (c *call) serveBlob(d digest.Digest, size int64) {
	h := c.w.Header()
	if c.r.Method == http.MethodHead {
		c.blobHeader(d)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		c.w.WriteHeader(http.StatusOK)
		c.metrics.blobPulls.Inc()
		return
	}
	if match := c.r.Header.Get("If-None-Match"); match != "" && strings.Contains(match, entityTag(d)) {
		c.blobHeader(d)
		c.w.WriteHeader(http.StatusNotModified)
		return
	}
	part, status := oci.Range{Length: size}, http.StatusOK
	if header := c.r.Header.Get("Range"); header != "" && c.sameContent(d) {
		asked, partial, err := oci.ParseRange(header, size)
		if err != nil {
			c.refuseRange(size)
			return
		}
		if partial {
			part, status = asked, http.StatusPartialContent
		}
	}
	content, err := c.openBlob(c.r.Context(), d, size)
	if err != nil {
		c.lostBlob(d, err)
		return
	}
	defer content.Close()
	c.blobHeader(d)
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.Start, part.Start+part.Length-1, size))
	}
	h.Set("Content-Length", strconv.FormatInt(part.Length, 10))
	c.w.WriteHeader(status)
	n, err := c.send(content, part, size)
	c.metrics.blobPulls.Inc()
	c.metrics.sent.Add(float64(n))
	if err != nil {
		// Mostly a client that has seen enough: containerd asks for an open
		// end and hangs up.
		c.log(slog.LevelDebug, "registry broke off sending a blob", "digest", d, "sent", n, "of", part.Length, "err", err)
	}
}

// blobHeader sets what is the same for every answer with a blob in it.
func (c *call) blobHeader(d digest.Digest) {
	h := c.w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Accept-Ranges", "bytes")
	h.Set("Etag", entityTag(d))
}

func entityTag(d digest.Digest) string { return `"` + d.String() + `"` }

// sameContent tells whether a Range header counts: an If-Range must name what
// is there (RFC 9110, section 13.1.5).
func (c *call) sameContent(d digest.Digest) bool {
	condition := c.r.Header.Get("If-Range")
	return condition == "" || condition == entityTag(d)
}

// refuseRange answers that no byte of the blob lies in the range.
func (c *call) refuseRange(size int64) {
	c.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	c.fail(http.StatusRequestedRangeNotSatisfiable, codeSizeInvalid,
		fmt.Sprintf("the blob has %d bytes, and none of them lies in the range", size), nil)
}

// openBlob opens the content of a blob and compares its size: what is sent by
// the kernel is sent to the file's end.
func (g *Registry) openBlob(ctx context.Context, d digest.Digest, size int64) (Content, error) {
	content, err := g.cfg.Storage.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	stored, err := content.Seek(0, io.SeekEnd)
	if err == nil && stored != size {
		err = errDamaged
	}
	if err != nil {
		content.Close()
		return nil, err
	}
	return content, nil
}

// lostBlob answers for a blob whose content cannot be opened though it was
// found: it was collected in between, or it is lost, and then HEAD has to say no
// from now on, so that the next push brings it back.
func (c *call) lostBlob(d digest.Digest, cause error) {
	if errors.Is(cause, fs.ErrNotExist) || errors.Is(cause, errDamaged) {
		cause = c.quarantine(c.r.Context(), d)
		c.memo.dropBlob(d)
		if cause == nil {
			c.noBlob(d)
			return
		}
	}
	c.failed(fmt.Errorf("opening blob %s: %w", d, cause))
}

func (c *call) noBlob(d digest.Digest) {
	c.fail(http.StatusNotFound, codeBlobUnknown, "the repository has no such blob", map[string]string{"digest": d.String()})
}

// send writes part of the content. A ResponseWriter that can read a file by
// itself ends up in sendfile(2), through Caddy's too, as long as it is given
// the file and nothing around it but an io.LimitedReader.
func (c *call) send(content Content, part oci.Range, size int64) (int64, error) {
	defer c.atClose((*http.ResponseController).SetWriteDeadline)()

	if part.Length <= sendfileBytes {
		buf := takeBuffer()
		defer giveBuffer(buf)
		n, err := content.ReadAt((*buf)[:part.Length], part.Start)
		if n < int(part.Length) {
			return 0, fmt.Errorf("reading content: %w", err)
		}
		n, err = c.w.Write((*buf)[:n])
		return int64(n), err
	}
	if _, err := content.Seek(part.Start, io.SeekStart); err != nil {
		return 0, fmt.Errorf("reading content: %w", err)
	}
	var from io.Reader = content
	if part.Start+part.Length < size {
		from = io.LimitReader(content, part.Length)
	}
	if w, ok := c.w.(io.ReaderFrom); ok {
		return w.ReadFrom(from)
	}
	buf := takeBuffer()
	defer giveBuffer(buf)
	return io.CopyBuffer(c.w, onlyReader{from}, *buf)
}
