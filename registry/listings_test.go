package registry_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

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

func TestReferrers_ComeInPages(t *testing.T) {
	t.Parallel()
	s := newService(t)
	subject := digest.FromString("subject")
	want := map[digest.Digest]bool{}
	for i := range 105 {
		size := 33_000
		if i == 7 {
			size = 3_300_000 // larger than a page, but it has to be told
		}
		want[s.push(fmt.Sprint(i), s.image(`,"artifactType":"a/b","subject":{"digest":"`+string(subject)+`"},"annotations":{"x":"`, fmt.Sprint(i), strings.Repeat("x", size), `"}`))] = true
	}
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
}
