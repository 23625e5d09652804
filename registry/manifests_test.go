package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

const manifests = "/v2/team/app/manifests/"

func TestManifest_ComesBackAsItWasPushed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	image := s.image(` , "custom" : [ ] `)
	sha512 := digest.SHA512.FromBytes(image)
	index := []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + string(sha512) + `"},{"digest":"` + string(s.blob("layer")) + `"}]}`)
	opaque := []byte("\x00 not JSON")
	for _, test := range []struct {
		reference, sent, stored string
		content                 []byte
		digest                  digest.Digest
	}{
		{"v1", oci.TypeImage, oci.TypeImage, image, digest.FromBytes(image)},
		{string(digest.FromBytes(image)), oci.TypeImage + "; charset=utf-8", oci.TypeImage, image, digest.FromBytes(image)},
		{string(sha512), oci.TypeImage, oci.TypeImage, image, sha512},
		{"index", "", oci.TypeIndex, index, digest.FromBytes(index)},
		{"sha256-" + strings.Repeat("0", 64), "application/vnd.example", "application/vnd.example", opaque, digest.FromBytes(opaque)},
	} {
		location := s.put(test.reference, test.content, "Content-Type", test.sent).
			want(t, http.StatusCreated, "").
			header(t, "Docker-Content-Digest", string(test.digest)).
			Header.Get("Location")
		for _, path := range []string{location, manifests + test.reference} {
			for _, method := range []string{http.MethodHead, http.MethodGet, http.MethodGet} {
				a := s.do(method, path, nil, "Accept", "text/plain", "Range", "bytes=0-").want(t, http.StatusOK, "").
					header(t, "Content-Type", test.stored).
					header(t, "Docker-Content-Digest", string(test.digest)).
					header(t, "Content-Length", fmt.Sprint(len(test.content)))
				if method == http.MethodGet && !bytes.Equal(a.body, test.content) {
					t.Errorf("GET %s: %q", path, a.body)
				} else if method == http.MethodHead && len(a.body) > 0 {
					t.Errorf("HEAD %s has a body", path)
				}
			}
		}
	}
	// A digest of the other algorithm is another name, which was not given.
	s.get(manifests+string(digest.SHA512.FromBytes(index))).want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
}

func TestManifest_NeedsItsParts(t *testing.T) {
	t.Parallel()
	s := newService(t)
	absent := []digest.Digest{digest.FromString("config"), digest.FromString("one"), digest.FromString("two"), digest.FromString("three"), digest.FromString("four")}
	layers := ""
	for _, d := range absent[1:] {
		layers += fmt.Sprintf(`{"digest":%q},`, d)
	}
	image := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[%s{"digest":%q},{"digest":%q,"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar"}]}`,
		absent[0], layers, s.blob("layer"), digest.FromString("licensed")))

	e := s.put("v1", image).want(t, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN").errors(t)[0]
	var detail struct{ Digests []digest.Digest }
	if err := json.Unmarshal(e.Detail, &detail); err != nil || !slices.Equal(detail.Digests, absent) {
		t.Errorf("%s doesn't list what is missing: %v", e.Detail, err)
	}
	if !strings.Contains(e.Message, string(absent[0])) {
		t.Errorf("the message names nothing: %s", e.Message)
	}
	s.get(manifests+"v1").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.get(manifests+string(digest.FromBytes(image))).want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	if len(s.pushes) > 0 {
		t.Errorf("told of %v", s.pushes)
	}

	for _, content := range []string{"config", "one", "two", "three", "four"} {
		s.blob(content)
	}
	s.push("v1", image)
}

func TestManifest_TagsOfTheQuery(t *testing.T) {
	t.Parallel()
	s := newService(t)
	image := s.image()
	d := digest.FromBytes(image)
	s.put(string(d)+"?tag=1.2.3&tag=1.2&tag=latest&tag=1.2", image).want(t, http.StatusCreated, "").header(t, "Oci-Tag", "1.2.3, 1.2, latest")
	for _, tag := range []string{"1.2.3", "1.2", "latest"} {
		s.do(http.MethodHead, manifests+tag, nil).want(t, http.StatusOK, "").header(t, "Docker-Content-Digest", string(d))
	}
	if len(s.pushes) != 3 {
		t.Errorf("told of %v", s.pushes)
	}
	s.put(string(d)+"?tag=-x", image).want(t, http.StatusBadRequest, "MANIFEST_INVALID")
	many := "?tag=0"
	for i := range 64 {
		many += fmt.Sprintf("&tag=%d", i+1)
	}
	s.put(string(d)+many, image).want(t, http.StatusRequestURITooLong, "UNSUPPORTED")
}

func TestManifest_Refused(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *registry.Config) { c.ManifestBytes = 4 << 10 })
	image := s.image()
	for _, test := range []struct {
		name, reference string
		body            io.Reader
		mediaType       string
		status          int
		code            string
	}{
		{"another digest", string(digest.FromString("x")), bytes.NewReader(image), oci.TypeImage, 400, "DIGEST_INVALID"},
		{"no digest", "sha256:baddigeststring", bytes.NewReader(image), oci.TypeImage, 400, "DIGEST_INVALID"},
		{"an algorithm nobody knows", "md5:900150983cd24fb0d6963f7d28e17f72", bytes.NewReader(image), oci.TypeImage, 400, "DIGEST_INVALID"},
		{"no tag", "..", bytes.NewReader(image), oci.TypeImage, 400, "MANIFEST_INVALID"},
		{"a long tag", strings.Repeat("a", 129), bytes.NewReader(image), oci.TypeImage, 400, "MANIFEST_INVALID"},
		{"half of it", "v1", bytes.NewReader(image[:50]), oci.TypeImage, 400, "MANIFEST_INVALID"},
		{"another type", "v1", bytes.NewReader(image), oci.TypeDockerImage, 400, "MANIFEST_INVALID"},
		{"a type browsers show", "v1", bytes.NewReader(image), "text/html", 400, "MANIFEST_INVALID"},
		{"no type", "v1", strings.NewReader(`{}`), "", 400, "MANIFEST_INVALID"},
		{"too large", "v1", strings.NewReader(strings.Repeat(" ", 4<<10+1)), oci.TypeImage, 413, "SIZE_INVALID"},
		{"too large, of no stated length", "v1", io.MultiReader(strings.NewReader(strings.Repeat(" ", 4<<10+1))), oci.TypeImage, 413, "SIZE_INVALID"},
		{"broken off", "v1", io.MultiReader(bytes.NewReader(image), broken{}), oci.TypeImage, 400, "SIZE_INVALID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.do(http.MethodPut, manifests+test.reference, test.body, "Content-Type", test.mediaType).want(t, test.status, test.code)
		})
	}
	totals, err := s.Metadata.Totals(t.Context())
	if err != nil || totals.Manifests != 0 {
		t.Errorf("%d manifests were left behind, %v", totals.Manifests, err)
	}
	if len(s.pushes) > 0 {
		t.Errorf("told of %v", s.pushes)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestManifest_MayBeLarge(t *testing.T) {
	t.Parallel()
	s := newService(t)
	annotations := map[string]string{}
	for i := range 390 {
		annotations[fmt.Sprintf("org.example.%d", i)] = strings.Repeat("x", 10_000)
	}
	text, _ := json.Marshal(annotations)
	image := s.image(`,"annotations":`, string(text))
	d := s.push("large", image)
	for _, reference := range []string{"large", string(d), "large"} {
		if a := s.get(manifests+reference).want(t, http.StatusOK, ""); !bytes.Equal(a.body, image) {
			t.Errorf("%s came back with %d bytes", reference, len(a.body))
		}
	}
}

func TestManifest_Delete(t *testing.T) {
	t.Parallel()
	s := newService(t)
	d := s.push("v1", s.image())
	s.push("v2", s.image())
	for _, reference := range []string{"v1", "v2", string(d)} {
		s.get(manifests+reference).want(t, http.StatusOK, "")
	}

	s.do(http.MethodDelete, manifests+"v1", nil).want(t, http.StatusAccepted, "")
	s.get(manifests+"v1").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.do(http.MethodDelete, manifests+"v1", nil).want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.get(manifests+"v2").want(t, http.StatusOK, "")
	s.get(manifests+string(d)).want(t, http.StatusOK, "")

	s.do(http.MethodDelete, manifests+"sha256:1", nil).want(t, http.StatusBadRequest, "DIGEST_INVALID")
	s.kept[d] = true
	s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusForbidden, "DENIED")
	s.get(manifests+string(d)).want(t, http.StatusOK, "")
	s.kept[d] = false
	s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusAccepted, "")
	s.get(manifests+"v2").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.do(http.MethodHead, manifests+string(d), nil).want(t, http.StatusNotFound, "")
	s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	if len(s.deleted) != 2 {
		t.Errorf("told of %v, want the two deletions that were done", s.deleted)
	}
	for _, told := range s.deleted {
		if told.Kind != "manifests" || told.Name != "team/app" || told.Subject == "" || told.Repo == "" {
			t.Errorf("told of %+v", told)
		}
	}
}

func TestManifest_OfAnIndexStays(t *testing.T) {
	t.Parallel()
	s := newService(t)
	child := s.push("amd64", s.image())
	list := s.push("latest", []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"digest":%q}]}`, oci.TypeIndex, child)))
	s.kept[list] = true // as a release of several platforms
	s.do(http.MethodDelete, manifests+string(child), nil).want(t, http.StatusForbidden, "DENIED")
	s.get(manifests+string(child)).want(t, http.StatusOK, "")
	s.do(http.MethodDelete, manifests+string(list), nil).want(t, http.StatusForbidden, "DENIED")
	s.kept[list] = false
	for _, d := range []digest.Digest{list, child} {
		s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusAccepted, "")
	}
}

func TestManifest_TouchedWhileItIsDeletedStays(t *testing.T) {
	t.Parallel()
	var s *service
	var during func(d digest.Digest)
	s = newService(t, func(c *registry.Config) {
		keep := c.Keep
		c.Keep = func(ctx context.Context, repo string, d digest.Digest) (bool, error) {
			kept, err := keep(ctx, repo, d)
			during(d)
			return kept, err
		}
	})
	d := s.push("latest", s.image())
	s.clock.pass(time.Second)
	during = func(d digest.Digest) {
		if found, err := s.Touch(t.Context(), "key:team/app", d); !found || err != nil {
			t.Errorf("touched: %t, %v", found, err)
		}
	}
	s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusConflict, "DENIED").header(t, "Retry-After", "1")
	s.get(manifests+"latest").want(t, http.StatusOK, "")
	during = func(digest.Digest) {}
	s.do(http.MethodDelete, manifests+string(d), nil).want(t, http.StatusAccepted, "")
}

func TestManifest_NeedsSpace(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *registry.Config) {
		c.Storage, c.ReserveBytes = &fullDisk{Storage: c.Storage, room: 10<<20 + 100}, 10<<20
	})
	image := s.image()
	for _, body := range []io.Reader{bytes.NewReader(image), io.MultiReader(bytes.NewReader(image))} {
		s.do(http.MethodPut, manifests+"latest", body).want(t, http.StatusServiceUnavailable, "UNAVAILABLE").header(t, "Retry-After", "60")
	}
	s.get(manifests+"latest").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
}

// deadlines is a connection whose client sends nothing more.
type deadlines struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.until = t
	return nil
}

func (d *deadlines) Read([]byte) (int, error) {
	if left := time.Until(d.until); left > time.Minute {
		return 0, fmt.Errorf("this would have taken %s", left)
	}
	return 0, os.ErrDeadlineExceeded
}

func TestManifest_ComesWithinAMinute(t *testing.T) {
	t.Parallel()
	s := newService(t)
	image := s.image()
	put := func(rest func(d *deadlines) io.Reader) *deadlines {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodPut, manifests+"latest", io.MultiReader(bytes.NewReader(image[:50]), rest(w)))
		r.SetBasicAuth("ann", "nna")
		s.ServeHTTP(w, r)
		return w
	}
	if slow := put(func(w *deadlines) io.Reader { return w }); slow.Code != http.StatusRequestTimeout || slow.until.IsZero() {
		t.Errorf("%d %s", slow.Code, slow.Body)
	}
	if quick := put(func(*deadlines) io.Reader { return bytes.NewReader(image[50:]) }); quick.Code != http.StatusCreated || !quick.until.IsZero() {
		t.Errorf("%d, and the connection ends at %s", quick.Code, quick.until)
	}
}

func TestManifest_ReservedTagsAreNotForClients(t *testing.T) {
	t.Parallel()
	s := newService(t)
	content := s.image()
	d := s.push("v1", content)
	s.put("ours", content).want(t, http.StatusForbidden, "DENIED")
	s.put(string(d)+"?tag=ours", content).want(t, http.StatusForbidden, "DENIED")
	s.get(manifests+"ours").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
}

func TestManifest_MovesATag(t *testing.T) {
	t.Parallel()
	s := newService(t)
	image := s.image()
	first := s.push("latest", image)
	s.get(manifests+"latest").header(t, "Docker-Content-Digest", string(first))
	// From an index to an image and back: a tag isn't bound to a type.
	index := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"digest":%q}]}`, oci.TypeIndex, first))
	second := s.push("latest", index)
	s.get(manifests+"latest").header(t, "Docker-Content-Digest", string(second)).header(t, "Content-Type", oci.TypeIndex)
	s.push("latest", image)
	s.get(manifests+"latest").header(t, "Docker-Content-Digest", string(first)).header(t, "Content-Type", oci.TypeImage)
}

func TestManifest_APushIsTold(t *testing.T) {
	t.Parallel()
	s := newService(t)
	image := s.image()
	s.failing = errors.New("the database is locked")
	s.put("latest", image).want(t, http.StatusInternalServerError, "UNKNOWN")
	s.failing = nil
	d := s.push("latest", image)
	s.push(string(d), image) // of no tag, so nobody follows it
	want := registry.Push{Subject: "user:ann", Repo: "key:team/app", Name: "team/app", Tag: "latest", Digest: d, MediaType: oci.TypeImage}
	if len(s.pushes) != 1 || s.pushes[0] != want {
		t.Errorf("told of %+v, want %+v", s.pushes, want)
	}
}

// counted counts what the registry asks of its metadata.
type counted struct {
	oci.Metadata
	reads, renewals atomic.Int64

	// between, if set, is called when a tag was read, before the answer is
	// handed over.
	between func()
}

func (m *counted) Manifest(ctx context.Context, repo string, d digest.Digest) (oci.Manifest, bool, error) {
	m.reads.Add(1)
	return m.Metadata.Manifest(ctx, repo, d)
}

func (m *counted) TaggedManifest(ctx context.Context, repo, tag string) (oci.Manifest, bool, error) {
	m.reads.Add(1)
	found, ok, err := m.Metadata.TaggedManifest(ctx, repo, tag)
	if m.between != nil {
		m.between()
	}
	return found, ok, err
}

func (m *counted) RenewManifest(ctx context.Context, repo string, d digest.Digest, lease time.Time) (bool, error) {
	m.renewals.Add(1)
	return m.Metadata.RenewManifest(ctx, repo, d, lease)
}

func count(t testing.TB) (*counted, *service) {
	m := &counted{}
	return m, newService(t, func(c *registry.Config) { m.Metadata, c.Metadata = c.Metadata, m })
}

func TestManifest_IsReadOnce(t *testing.T) {
	t.Parallel()
	m, s := count(t)
	d := s.push("latest", s.image())
	for range 3 {
		s.get(manifests+"latest").want(t, http.StatusOK, "")
		s.get(manifests+string(d)).want(t, http.StatusOK, "")
		s.do(http.MethodHead, manifests+"latest", nil).want(t, http.StatusOK, "")
	}
	if n := m.reads.Load(); n != 1 {
		t.Errorf("it was read %d times", n)
	}
}

func TestManifest_APullRenewsItsLease(t *testing.T) {
	t.Parallel()
	m, s := count(t)
	d := s.push("latest", s.image())
	lease := func() time.Duration {
		stored, found, err := m.Metadata.Manifest(t.Context(), "key:team/app", d)
		if err != nil || !found {
			t.Fatalf("found: %t, %v", found, err)
		}
		return stored.Lease.Sub(s.clock.Now())
	}
	for _, test := range []struct {
		pass     time.Duration
		renewals int64
		left     time.Duration
	}{
		{0, 0, 24 * time.Hour},
		{6 * time.Hour, 0, 18 * time.Hour},
		{time.Minute, 1, 24 * time.Hour},
		{time.Hour, 1, 23 * time.Hour},
		{100 * time.Hour, 2, 24 * time.Hour},
	} {
		s.clock.pass(test.pass)
		s.do(http.MethodHead, manifests+"latest", nil).want(t, http.StatusOK, "")
		s.get(manifests+string(d)).want(t, http.StatusOK, "")
		if n, left := m.renewals.Load(), lease(); n != test.renewals || left != test.left {
			t.Errorf("after %s more: %d renewals, %s left; want %d, %s", test.pass, n, left, test.renewals, test.left)
		}
	}
}

// What was read before a write must not be remembered after it.
func TestManifest_APullRacesWithAWrite(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(s *service, d digest.Digest){
		"delete of the tag":      func(s *service, _ digest.Digest) { s.do(http.MethodDelete, manifests+"latest", nil) },
		"delete of the manifest": func(s *service, d digest.Digest) { s.do(http.MethodDelete, manifests+string(d), nil) },
		"push of another":        func(s *service, _ digest.Digest) { s.push("latest", s.image(`,"artifactType":"a/b"`)) },
		"drop of the repository": func(s *service, _ digest.Digest) { s.Drop(s.t.Context(), "key:team") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, s := count(t)
			d := s.push("latest", s.image())
			m.between = func() {
				m.between = nil
				write(s, d)
			}
			// This one asked before the write was done; it may see the old state.
			s.get(manifests+"latest").want(t, http.StatusOK, "").header(t, "Docker-Content-Digest", string(d))
			if after := s.get(manifests + "latest"); after.Header.Get("Docker-Content-Digest") == string(d) {
				t.Error("a pull after the write got what was there before it")
			}
		})
	}
}

// A manifest that was collected behind the memory's back is gone at the latest
// when its lease has to be renewed.
func TestManifest_IsNotPromisedWhenItIsGone(t *testing.T) {
	t.Parallel()
	m, s := count(t)
	d := s.push("latest", s.image())
	s.get(manifests+"latest").want(t, http.StatusOK, "")
	if _, err := m.DeleteManifest(t.Context(), "key:team/app", d); err != nil {
		t.Fatal(err)
	}
	s.clock.pass(25 * time.Hour)
	s.get(manifests+"latest").want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	s.get(manifests+string(d)).want(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
}

// BenchmarkManifest measures what a pull of a tag costs inside the registry.
func BenchmarkManifest(b *testing.B) {
	s := newService(b)
	s.push("latest", s.image())
	for name, authorization := range map[string]string{
		"token": s.token(basic("ann", "nna"), "repository:team/app:pull").bearer(),
		"basic": basic("ann", "nna"),
	} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			b.Run(method+"/"+name, func(b *testing.B) {
				r := httptest.NewRequest(method, manifests+"latest", nil)
				r.Header.Set("Authorization", authorization)
				b.ReportAllocs()
				for b.Loop() {
					w := discard{}
					s.ServeHTTP(w, r)
				}
			})
		}
	}
}

type discard http.Header

func (d discard) Header() http.Header       { return http.Header(d) }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
