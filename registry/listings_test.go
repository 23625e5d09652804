package registry_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// next returns where the next page is, as a relative link says; empty: there
// is none.
func (a answer) next(t testing.TB) string {
	t.Helper()
	link := a.Header.Get("Link")
	if link == "" {
		return ""
	}
	found := regexp.MustCompile(`^<(/v2/[^>]+)>; rel="next"$`).FindStringSubmatch(link)
	if found == nil {
		t.Fatalf("Link: %s", link)
	}
	return found[1]
}

func TestTags(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const list = "/v2/team/app/tags/list"
	s.get(list).want(t, http.StatusNotFound, "NAME_UNKNOWN")

	image := s.image()
	d := s.push(string(digest.FromBytes(image)), image)
	if got := string(s.get(list).want(t, http.StatusOK, "").body); got != `{"name":"team/app","tags":[]}` {
		t.Errorf("without tags: %s", got)
	}
	sorted := []string{"1", "10", "2", "B", "_", "a", "b", "b-"}
	for _, tag := range []string{"b", "a", "B", "_", "10", "2", "1", "b-"} {
		s.put(string(d)+"?tag="+tag, image).want(t, http.StatusCreated, "")
	}
	for _, test := range []struct {
		query, next string
		want        []string
	}{
		{"", "", sorted},
		{"?n=100", "", sorted},
		{"?n=8", "", sorted},
		{"?n=99999999", "", sorted},
		{"?n=0", "", nil},
		{"?n=0&last=a", "", nil},
		{"?n=3", list + "?last=2&n=3", sorted[:3]},
		{"?last=2&n=3", list + "?last=a&n=3", sorted[3:6]},
		{"?last=a&n=3", "", sorted[6:]},
		{"?last=Zebra", "", sorted[4:]},
		{"?last=zebra", "", nil},
	} {
		var got struct {
			Name string
			Tags []string
		}
		a := s.get(list+test.query).want(t, http.StatusOK, "").header(t, "Content-Type", "application/json")
		a.decode(t, &got)
		if got.Name != "team/app" || got.Tags == nil || !slices.Equal(got.Tags, test.want) || a.next(t) != test.next {
			t.Errorf("%q: %s, next %q", test.query, a.body, a.next(t))
		}
	}
	for _, query := range []string{"?n=-1", "?n=", "?n=many", "?n=99999999999999999999", "?%zz"} {
		s.get(list+query).want(t, http.StatusBadRequest, "UNSUPPORTED")
	}
}

type index struct {
	SchemaVersion int
	MediaType     string
	Manifests     []oci.Descriptor
}

func (s *service) referrers(path string) (index, answer) {
	s.t.Helper()
	var list index
	a := s.get(path).want(s.t, http.StatusOK, "").header(s.t, "Content-Type", oci.TypeIndex)
	a.decode(s.t, &list)
	if list.SchemaVersion != 2 || list.MediaType != oci.TypeIndex || list.Manifests == nil {
		s.t.Fatalf("%s is not an index", a.body)
	}
	return list, a
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	subject := digest.FromString("never pushed")
	path := "/v2/team/app/referrers/" + string(subject)

	list, a := s.referrers(path)
	if len(list.Manifests) > 0 || a.Header.Get("OCI-Filters-Applied") != "" {
		t.Errorf("of a subject that nothing refers to: %s", a.body)
	}
	s.get("/v2/team/app/referrers/sha256:short").want(t, http.StatusBadRequest, "DIGEST_INVALID")
	s.get("/v2/team/app/referrers/latest").want(t, http.StatusBadRequest, "DIGEST_INVALID")
	s.get(path+"?last=x").want(t, http.StatusBadRequest, "DIGEST_INVALID")

	of := `,"subject":{"mediaType":"` + oci.TypeImage + `","digest":"` + string(subject) + `","size":1}`
	sbom := s.image(of, `,"artifactType":"application/vnd.example.sbom","annotations":{"a":"1","b":"2"}`)
	plain := s.image(of)
	group := []byte(`{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[]` + of + `}`)
	for _, content := range [][]byte{sbom, plain, group} {
		s.put(string(digest.FromBytes(content)), content).want(t, http.StatusCreated, "").header(t, "OCI-Subject", string(subject))
	}
	s.push("other", s.image(`,"subject":{"digest":"`+string(digest.FromString("another"))+`"}`))
	// What clients keep where this endpoint doesn't exist, and copy here.
	s.push("sha256-"+subject.Encoded(), []byte(fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q}]}`, digest.FromBytes(plain))))

	want := []oci.Descriptor{
		{MediaType: oci.TypeImage, Digest: digest.FromBytes(sbom), Size: int64(len(sbom)), ArtifactType: "application/vnd.example.sbom", Annotations: map[string]string{"a": "1", "b": "2"}},
		{MediaType: oci.TypeImage, Digest: digest.FromBytes(plain), Size: int64(len(plain)), ArtifactType: "application/vnd.oci.image.config.v1+json"},
		{MediaType: oci.TypeIndex, Digest: digest.FromBytes(group), Size: int64(len(group))},
	}
	slices.SortFunc(want, func(a, b oci.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	check := func(path, filters string, want ...oci.Descriptor) {
		t.Helper()
		list, a := s.referrers(path)
		a.header(t, "OCI-Filters-Applied", filters)
		if got, want := fmt.Sprintf("%+v", list.Manifests), fmt.Sprintf("%+v", want); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", path, got, want)
		}
	}
	check(path, "", want...)
	check(path+"?artifactType=application/vnd.example.sbom", "artifactType", want[slices.IndexFunc(want, func(d oci.Descriptor) bool { return d.Annotations != nil })])
	check(path+"?artifactType=application/vnd.example.none", "artifactType", []oci.Descriptor{}...)
	check(path+"?last="+string(want[0].Digest), "", want[1:]...)

	s.do(http.MethodDelete, manifests+string(want[1].Digest), nil).want(t, http.StatusAccepted, "")
	check(path, "", want[0], want[2])
}

// visits counts the referrers that are read.
type visits struct {
	oci.Metadata
	n atomic.Int64
}

func (m *visits) Referrers(ctx context.Context, repo string, subject digest.Digest, artifactType string, after digest.Digest, n int, visit func(oci.Manifest) bool) error {
	return m.Metadata.Referrers(ctx, repo, subject, artifactType, after, n, func(found oci.Manifest) bool {
		m.n.Add(1)
		return visit(found)
	})
}

func TestReferrers_ComeInPages(t *testing.T) {
	t.Parallel()
	visits := &visits{}
	s := newService(t, func(c *registry.Config) { visits.Metadata, c.Metadata = c.Metadata, visits })
	subject := digest.FromString("subject")
	want := map[digest.Digest]bool{}
	for i := range 105 {
		want[s.push(fmt.Sprint(i), s.image(`,"artifactType":"a/b","subject":{"digest":"`+string(subject)+`"},"annotations":{"x":"`, fmt.Sprint(i), strings.Repeat("x", 60_000), `"}`))] = true
	}
	// Larger than a page, as the cache may have it, but it has to be told.
	large := oci.Manifest{
		Digest: digest.FromString("large"), MediaType: oci.TypeImage, ArtifactType: "a/b", Subject: subject,
		Annotations: map[string]string{"x": strings.Repeat("x", 3_300_000)},
	}
	if _, err := s.Metadata.PutManifest(t.Context(), "key:team/app", large, nil, s.clock.Now()); err != nil {
		t.Fatal(err)
	}
	want[large.Digest] = true
	pages := 0
	for path := "/v2/team/app/referrers/" + string(subject) + "?artifactType=a/b"; path != ""; pages++ {
		list, a := s.referrers(path)
		if len(a.body) > 4<<20 {
			t.Errorf("a page has %d bytes", len(a.body))
		}
		a.header(t, "OCI-Filters-Applied", "artifactType")
		for _, d := range list.Manifests {
			if !want[d.Digest] {
				t.Fatalf("%s came twice, or is none", d.Digest)
			}
			delete(want, d.Digest)
		}
		path = a.next(t)
	}
	if len(want) > 0 || pages < 3 || pages > 6 {
		t.Errorf("%d are missing after %d pages", len(want), pages)
	}
	// The first that has no place on a page is read to find that out.
	if n := int(visits.n.Load()); n > 106+pages-1 {
		t.Errorf("%d rows were read for 106 referrers on %d pages", n, pages)
	}
}

func TestReferrers_HaveFewAnnotations(t *testing.T) {
	t.Parallel()
	s := newService(t)
	of := `,"subject":{"digest":"` + string(digest.FromString("subject")) + `"}`
	annotations := func(n int) string { return `,"annotations":{"key":"` + strings.Repeat("x", n-len("key")) + `"}` }
	s.push("most", s.image(of, annotations(64<<10)))
	e := s.put("more", s.image(of, annotations(64<<10+1))).want(t, http.StatusBadRequest, "MANIFEST_INVALID").errors(t)[0]
	if !strings.Contains(e.Message, "65536") {
		t.Errorf("the message does not name the limit: %s", e.Message)
	}
	s.push("of-nothing", s.image(annotations(1<<20)))
}
