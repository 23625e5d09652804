package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

func TestRangesOfBlobs(t *testing.T) {
	s := newDepot(t)
	server := httptest.NewServer(s)
	defer server.Close()
	// Below, at and above the size from which the kernel sends by itself.
	for _, size := range []int{2048, 64 << 10, 1 << 20} {
		content := make([]byte, size)
		rand.Read(content)
		d := s.pushed("team/app", string(content))
		get := func(headers ...string) answer {
			t.Helper()
			r, err := http.NewRequest(http.MethodGet, server.URL+"/v2/team/app/blobs/"+d.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.SetBasicAuth("ann", "nna")
			for i := 0; i < len(headers); i += 2 {
				r.Header.Set(headers[i], headers[i+1])
			}
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return answer{resp, body}
		}
		last := size - 1
		for _, c := range []struct {
			header     string
			start, end int
		}{
			{"bytes=500-1499", 500, 1499}, {"bytes=500-", 500, last}, {"bytes=-500", size - 500, last},
			{fmt.Sprintf("bytes=1-%d", size-2), 1, size - 2}, {fmt.Sprintf("bytes=2000-%d", 2*size), 2000, last},
			{"bytes=0-", 0, last}, {"bytes=0-0", 0, 0},
		} {
			a := get("Range", c.header).want(t, http.StatusPartialContent, "").
				header(t, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", c.start, c.end, size)).
				header(t, "Content-Length", strconv.Itoa(c.end-c.start+1))
			if !bytes.Equal(a.body, content[c.start:c.end+1]) {
				t.Errorf("%s of %d: other bytes", c.header, size)
			}
		}
		for _, header := range []string{"bytes=500-0", fmt.Sprintf("bytes=%d-", size), "bytes=-0"} {
			get("Range", header).want(t, http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID").
				header(t, "Content-Range", fmt.Sprintf("bytes */%d", size))
		}
		etag := `"` + d.String() + `"`
		for _, headers := range [][]string{
			{}, {"Range", "bytes=x"}, {"Range", "bytes=0-1,5-6"}, {"Range", "bytes=0-1", "If-Range", `"other"`}, {"Accept-Encoding", "zstd, gzip"},
		} {
			a := get(headers...).want(t, http.StatusOK, "").header(t, "Content-Length", strconv.Itoa(size)).
				header(t, "Etag", etag).header(t, "Accept-Ranges", "bytes").header(t, "Content-Encoding", "")
			if !bytes.Equal(a.body, content) {
				t.Errorf("%q: other bytes", headers)
			}
		}
		get("Range", "bytes=0-1", "If-Range", etag).want(t, http.StatusPartialContent, "")
		if a := get("If-None-Match", etag).want(t, http.StatusNotModified, ""); len(a.body) > 0 {
			t.Error("304 with a body")
		}
	}
	empty := s.pushed("team/app", "")
	s.get("/v2/team/app/blobs/"+empty.String(), "Range", "bytes=0-").want(t, http.StatusOK, "").header(t, "Content-Length", "0")
}

// fileWriter is a ResponseWriter that can send a file by itself.
type fileWriter struct {
	*httptest.ResponseRecorder
	sent io.Reader
}

func (w *fileWriter) ReadFrom(r io.Reader) (int64, error) {
	w.sent = r
	return io.Copy(w.ResponseRecorder, r)
}

// The kernel sends a file only if it is handed the very file, or an
// io.LimitedReader of it.
func TestBlobsAreSentByTheKernel(t *testing.T) {
	s := newDepot(t)
	d := s.pushed("team/app", strings.Repeat("x", 1<<20))
	for header, whole := range map[string]bool{"": true, "bytes=0-": true, "bytes=5-": true, "bytes=-100000": true, "bytes=0-100000": false} {
		r := httptest.NewRequest(http.MethodGet, "/v2/team/app/blobs/"+d.String(), nil)
		r.SetBasicAuth("ann", "nna")
		if header != "" {
			r.Header.Set("Range", header)
		}
		w := &fileWriter{ResponseRecorder: httptest.NewRecorder()}
		s.ServeHTTP(w, r)
		sent := w.sent
		if limited, ok := sent.(*io.LimitedReader); ok && !whole {
			sent = limited.R
		}
		if _, ok := sent.(*os.File); !ok {
			t.Errorf("range %q is sent from a %T", header, w.sent)
		}
	}
}

func TestDeleteBlob(t *testing.T) {
	s := newDepot(t)
	d := s.pushed("team/app", "content")
	s.pushed("open/app", "content")
	path := "/v2/team/app/blobs/" + d.String()
	s.do(http.MethodDelete, path, nil).want(t, http.StatusAccepted, "")
	s.do(http.MethodHead, path, nil).want(t, http.StatusNotFound, "")
	s.get(path).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
	s.do(http.MethodDelete, path, nil).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
	s.wantBlob("open/app", d, "content")
	s.pushed("team/app", "content")
	s.wantBlob("team/app", d, "content")
}

func TestDeleteOfANeededBlobIsRefused(t *testing.T) {
	s := newDepot(t)
	config, layer := s.pushed("team/app", "{}"), s.pushed("team/app", "layer")
	s.push("latest", s.image())
	for _, d := range []digest.Digest{config, layer} {
		s.do(http.MethodDelete, "/v2/team/app/blobs/"+d.String(), nil).want(t, http.StatusForbidden, "DENIED")
	}
	s.wantBlob("team/app", layer, "layer")
}

// A digest alone gives no access.
func TestBlobsOfOtherRepositories(t *testing.T) {
	s := newDepot(t)
	d := s.pushed("team/app", "content")
	s.get("/v2/team/other/blobs/"+d.String()).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
	s.get("/v2/other/app/blobs/"+d.String()).want(t, http.StatusNotFound, "NAME_UNKNOWN")
	s.get("/v2/team/app/blobs/"+d.String(), "Authorization", "").want(t, http.StatusUnauthorized, "UNAUTHORIZED")
}

// Who was told that a blob is there may rely on it for three quarters of a
// lease.
func TestLookingRenewsTheLease(t *testing.T) {
	s := newDepot(t)
	d := s.pushed("team/app", "content")
	lease := func() time.Time {
		t.Helper()
		link, found, err := s.Metadata.Blob(t.Context(), "key:team/app", d)
		if err != nil || !found {
			t.Fatalf("the blob is gone: %v", err)
		}
		return link.Lease
	}
	for _, method := range []string{http.MethodHead, http.MethodGet, http.MethodHead} {
		for range 10 {
			s.clock.pass(5 * time.Hour)
			s.do(method, "/v2/team/app/blobs/"+d.String(), nil).want(t, http.StatusOK, "")
			if left := lease().Sub(s.clock.Now()); left < 18*time.Hour {
				t.Fatalf("the lease is over in %s", left)
			}
		}
	}
	before := lease()
	s.clock.pass(time.Minute)
	s.do(http.MethodHead, "/v2/team/app/blobs/"+d.String(), nil).want(t, http.StatusOK, "")
	if lease().Sub(before) > 6*time.Hour {
		t.Error("the lease shrank or jumped")
	}
}

// A blob whose file is lost, or has another size, is no longer said to be
// there, and a push of its bytes brings it back.
func TestLostFiles(t *testing.T) {
	s := newDepot(t)
	content := strings.Repeat("x", 100_000)
	d := s.pushed("team/app", content)
	path := "/v2/team/app/blobs/" + d.String()
	for name, harm := range map[string]func(ctx context.Context, d digest.Digest) error{
		"lost": func(ctx context.Context, d digest.Digest) error { return s.storage.Trash(ctx, d, 7) },
		"shorter": func(ctx context.Context, d digest.Digest) error {
			u, err := s.storage.Create(ctx, "harm")
			if err != nil {
				return err
			}
			u.Close()
			return s.storage.Commit(ctx, "harm", d)
		},
	} {
		s.wantBlob("team/app", d, content)
		if err := harm(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		s.get(path).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
		s.do(http.MethodHead, path, nil).want(t, http.StatusNotFound, "")
		if state, _, err := s.Metadata.BlobState(t.Context(), d); err != nil || state.State != oci.Quarantined {
			t.Errorf("%s: state %+v, %v", name, state, err)
		}
		s.pushed("team/app", content)
	}
	s.wantBlob("team/app", d, content)
}

func TestErrorsOfThePath(t *testing.T) {
	s := newDepot(t)
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/_catalog", 404, "UNSUPPORTED"},
		{"GET", "/v2/nothing", 404, "UNSUPPORTED"},
		{"GET", "/v2/team/app/what/ever", 404, "UNSUPPORTED"},
		{"GET", "/v2//blobs/uploads/", 400, "NAME_INVALID"},
		{"GET", "/v2/Team/app/tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/../../etc/passwd/tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/team/../app/manifests/latest", 400, "NAME_INVALID"},
		{"GET", "/v2/team//app/manifests/latest", 400, "NAME_INVALID"},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/tags/list", 400, "NAME_INVALID"},
		{"PATCH", "/v2/team/app/tags/list", 405, "UNSUPPORTED"},
		{"PUT", "/v2/team/app/blobs/uploads/", 405, "UNSUPPORTED"},
		{"POST", "/v2/", 405, "UNSUPPORTED"},
		{"GET", "/v2/team/app/blobs/" + digest.FromString("x").String(), 404, "BLOB_UNKNOWN"},
	} {
		a := s.do(c.method, c.path, nil).want(t, c.status, c.code).
			header(t, "Docker-Distribution-Api-Version", "registry/2.0").header(t, "Cache-Control", "no-transform").
			header(t, "X-Content-Type-Options", "nosniff")
		if a.Header.Get("Content-Length") != strconv.Itoa(len(a.body)) {
			t.Errorf("%s %s: Content-Length %s of %d", c.method, c.path, a.Header.Get("Content-Length"), len(a.body))
		}
		if c.status == 405 && a.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
	}
	if a := s.do(http.MethodHead, "/v2/nothing", nil).want(t, http.StatusNotFound, ""); len(a.body) > 0 {
		t.Error("HEAD with a body")
	}
}

func TestIncompleteConfig(t *testing.T) {
	s := newDepot(t)
	for name, spoil := range map[string]func(c *registry.Config){
		"storage": func(c *registry.Config) { c.Storage = nil }, "metadata": func(c *registry.Config) { c.Metadata = nil },
		"log": func(c *registry.Config) { c.Log = nil }, "authenticate": func(c *registry.Config) { c.Authenticate = nil },
		"authorize": func(c *registry.Config) { c.Authorize = nil }, "push": func(c *registry.Config) { c.OnPush = nil },
		"keep": func(c *registry.Config) { c.Keep = nil }, "key": func(c *registry.Config) { c.TokenKey = c.TokenKey[:31] },
	} {
		cfg := s.cfg
		spoil(&cfg)
		if _, err := registry.Open(t.Context(), cfg); err == nil {
			t.Errorf("opened without %s", name)
		}
	}
}
