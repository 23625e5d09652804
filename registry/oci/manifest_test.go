package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry/oci"
)

var (
	da = digest.FromString("a")
	db = digest.FromString("b")
	dc = digest.SHA512.FromString("c")
)

func TestParseManifest(t *testing.T) {
	t.Parallel()
	desc := func(mediaType string, d digest.Digest, more ...string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1%s}`, mediaType, d, strings.Join(more, ""))
	}
	image := `"schemaVersion":2,"config":` + desc("application/vnd.example.config", da)
	blob := func(d digest.Digest) oci.Child { return oci.Child{Digest: d, Need: oci.NeedBlob} }

	for _, test := range []struct {
		name, mediaType, content string
		want                     oci.Manifest
	}{
		{
			"image", oci.TypeImage, `{` + image + `,"layers":[` + desc("x/y", db) + `,` + desc("x/y", db) + `,` + desc("x/y", dc) + `]}`,
			oci.Manifest{MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{blob(da), blob(db), blob(dc)}},
		},
		{
			"Docker's image", oci.TypeDockerImage, `{` + image + `,"layers":[]}`,
			oci.Manifest{MediaType: oci.TypeDockerImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{blob(da)}},
		},
		{
			"unknown fields and parameters", oci.TypeImage + "; charset=utf-8", ` {` + image + `,"custom":{"digest":1},"layers":null}` + "\n",
			oci.Manifest{MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{blob(da)}},
		},
		{
			"layers that are not distributed", oci.TypeImage, `{` + image + `,"layers":[` +
				desc("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", db) + `,` +
				desc("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", dc) + `]}`,
			oci.Manifest{MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{
				blob(da), {Digest: db, Need: oci.NeedIfThere}, {Digest: dc, Need: oci.NeedIfThere},
			}},
		},
		{
			"the strictest need counts", oci.TypeImage, `{` + image + `,"layers":[` +
				desc("application/vnd.oci.image.layer.nondistributable.v1.tar", db) + `,` + desc("x/y", db) + `]}`,
			oci.Manifest{MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{blob(da), blob(db)}},
		},
		{
			"artifact with a subject", oci.TypeImage, `{` + image + `,"artifactType":"application/vnd.example.sbom","subject":` + desc(oci.TypeImage, db) +
				`,"annotations":{"k":"v","l":""}}`,
			oci.Manifest{
				MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.sbom", Subject: db, Children: []oci.Child{blob(da)},
				Annotations: map[string]string{"k": "v", "l": ""},
			},
		},
		{
			"artifact of the draft", oci.TypeArtifact, `{"artifactType":"a/b","blobs":[` + desc("x/y", da) + `]}`,
			oci.Manifest{MediaType: oci.TypeArtifact, ArtifactType: "a/b", Children: []oci.Child{blob(da)}},
		},
		{
			"index", oci.TypeIndex, `{"schemaVersion":2,"manifests":[` +
				desc(oci.TypeImage, da, `,"platform":{"os":"linux","architecture":"arm","variant":"v7"}`) + `,` +
				desc(oci.TypeImage, db, `,"platform":{"os":"linux","architecture":"amd64"}`) + `,` +
				desc(oci.TypeImage, dc, `,"platform":{"os":"unknown","architecture":"unknown"}`) + `],"subject":` + desc("", da) + `}`,
			oci.Manifest{
				MediaType: oci.TypeIndex, Subject: da, Platforms: []string{"linux/arm/v7", "linux/amd64"},
				Children: []oci.Child{{Digest: da, Need: oci.NeedAny}, {Digest: db, Need: oci.NeedAny}, {Digest: dc, Need: oci.NeedAny}},
			},
		},
		{
			"empty index", oci.TypeIndex, `{"schemaVersion":2,"manifests":[]}`, oci.Manifest{MediaType: oci.TypeIndex},
		},
		{
			"its own word", "", `{"mediaType":"application/vnd.example.new+json"}`, oci.Manifest{MediaType: "application/vnd.example.new+json"},
		},
		{
			"upper case stays", "application/vnd.Example", "x", oci.Manifest{MediaType: "application/vnd.Example"},
		},
		{
			"by its form an image", "", `{` + image + `}`,
			oci.Manifest{MediaType: oci.TypeImage, ArtifactType: "application/vnd.example.config", Children: []oci.Child{blob(da)}},
		},
		{
			"by its form an index", "", `{"schemaVersion":2,"manifests":[]}`, oci.Manifest{MediaType: oci.TypeIndex},
		},
		{
			"unknown type with layers", "application/vnd.example.new+json", `{"layers":[` + desc("x/y", da) + `]}`,
			oci.Manifest{MediaType: "application/vnd.example.new+json", Children: []oci.Child{blob(da)}},
		},
		{
			"unknown type that means something else by config", "application/vnd.example.new+json", `{"config":"on","layers":[7],"subject":{"digest":"x"}}`,
			oci.Manifest{MediaType: "application/vnd.example.new+json"},
		},
		{
			"not JSON at all", "application/vnd.example", "\x00\x01", oci.Manifest{MediaType: "application/vnd.example"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := oci.ParseManifest([]byte(test.content), test.mediaType)
			if err != nil {
				t.Fatal(err)
			}
			test.want.Content, test.want.Size = []byte(test.content), int64(len(test.content))
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestParseManifestRefuses(t *testing.T) {
	t.Parallel()
	config := fmt.Sprintf(`{"digest":%q}`, da)
	many := func(n int, one string) string { return strings.Repeat(one+",", n) + one }
	for _, test := range []struct{ name, mediaType, content string }{
		{"half a document", oci.TypeImage, `{"schemaVersion":2,`},
		{"no object", oci.TypeImage, `[]`},
		{"nothing", oci.TypeImage, ``},
		{"nothing of no type", "", ``},
		{"an image without config", oci.TypeImage, `{"schemaVersion":2,"layers":[]}`},
		{"an index without manifests", oci.TypeIndex, `{"schemaVersion":2}`},
		{"an index that is null", oci.TypeIndex, `{"schemaVersion":2,"manifests":null}`},
		{"a short digest", oci.TypeImage, `{"config":{"digest":"sha256:abc"}}`},
		{"an unknown algorithm", oci.TypeImage, `{"config":{"digest":"md5:900150983cd24fb0d6963f7d28e17f72"}}`},
		{"a layer without digest", oci.TypeImage, `{"config":` + config + `,"layers":[{}]}`},
		{"layers that are an object", oci.TypeImage, `{"config":` + config + `,"layers":{}}`},
		{"a subject without digest", oci.TypeImage, `{"config":` + config + `,"subject":{}}`},
		{"annotations that are a list", oci.TypeImage, `{"config":` + config + `,"annotations":[]}`},
		{"an annotation that is a number", oci.TypeImage, `{"config":` + config + `,"annotations":{"a":1}}`},
		{"another type inside", oci.TypeImage, `{"mediaType":"` + oci.TypeDockerImage + `","config":` + config + `}`},
		{"no type anywhere", "", `{"x":1}`},
		{"JSON that is none", "application/vnd.example.new+json", `{`},
		{"not a media type", "what?", `{}`},
		{"not a media type by its own word", "", `{"mediaType":"a/b\r\nX-Forged: c"}`},
		{"Docker's schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{}`},
		{"Docker's schema 1 by its own word", "", `{"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}`},
		{"too many layers", oci.TypeImage, `{"config":` + config + `,"layers":[` + many(2_000, config) + `]}`},
		{"too many layers and blobs", oci.TypeImage, `{"config":` + config + `,"layers":[` + many(999, config) + `],"blobs":[` + many(1_000, config) + `]}`},
		{"too many manifests", oci.TypeIndex, `{"manifests":[` + many(4_000, config) + `]}`},
		{"a type browsers show", "text/html", `{"config":` + config + `}`},
		{"a type browsers show, by its own word", "", `{"mediaType":"image/svg+xml"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if m, err := oci.ParseManifest([]byte(test.content), test.mediaType); !errors.Is(err, oci.ErrManifest) {
				t.Errorf("got %v and %+v", err, m)
			}
		})
	}
	for name, content := range map[string]string{
		oci.TypeImage: `{"config":` + config + `,"layers":[` + many(1_999, config) + `]}`,
		oci.TypeIndex: `{"manifests":[` + many(3_999, config) + `]}`,
	} {
		if _, err := oci.ParseManifest([]byte(content), name); err != nil {
			t.Errorf("as many as may be: %v", err)
		}
	}
	t.Run("too many annotations", func(t *testing.T) {
		t.Parallel()
		annotations := map[string]string{}
		for i := range 10_001 {
			annotations[fmt.Sprint(i)] = ""
		}
		content, _ := json.Marshal(map[string]any{"config": map[string]any{"digest": da}, "annotations": annotations})
		if _, err := oci.ParseManifest(content, oci.TypeImage); !errors.Is(err, oci.ErrManifest) {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzManifest: whatever is pushed, what comes of it can be stored: it has a
// media type, and refers to valid digests only, each once.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+da+`"},"layers":[{"digest":"`+db+`"}],"subject":{"digest":"`+dc+`"}}`), oci.TypeImage)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+da+`","platform":{"os":"linux","architecture":"arm64"}}]}`), "")
	f.Add([]byte(`{"mediaType":"a/b","annotations":{"a":"b","a":"c"}}`), "a/b; c=d")
	f.Add([]byte{0}, "application/octet-stream")
	f.Fuzz(func(t *testing.T, content []byte, mediaType string) {
		m, err := oci.ParseManifest(content, mediaType)
		if err != nil {
			if !errors.Is(err, oci.ErrManifest) {
				t.Fatalf("%v is not an ErrManifest", err)
			}
			return
		}
		if m.MediaType == "" || strings.ContainsAny(m.MediaType, " ;\r\n") {
			t.Fatalf("media type %q", m.MediaType)
		}
		if string(m.Content) != string(content) || m.Size != int64(len(content)) {
			t.Fatal("the content was changed")
		}
		seen := map[digest.Digest]bool{}
		for _, child := range m.Children {
			if _, err := oci.ParseDigest(string(child.Digest)); err != nil || seen[child.Digest] {
				t.Fatalf("child %q: %v, seen %t", child.Digest, err, seen[child.Digest])
			}
			seen[child.Digest] = true
		}
		if m.Subject != "" {
			if _, err := oci.ParseDigest(string(m.Subject)); err != nil {
				t.Fatalf("subject %q: %v", m.Subject, err)
			}
		}
	})
}
