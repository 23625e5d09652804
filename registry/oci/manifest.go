package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Media types of manifests.
const (
	TypeImage       = "application/vnd.oci.image.manifest.v1+json"
	TypeIndex       = "application/vnd.oci.image.index.v1+json"
	TypeArtifact    = "application/vnd.oci.artifact.manifest.v1+json" // of a draft; some clients pushed it
	TypeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"

	typeDockerSchema1 = "application/vnd.docker.distribution.manifest.v1"
)

// ErrManifest is what ParseManifest fails with; the error's text says more.
var ErrManifest = errors.New("invalid manifest")

var (
	errLayers    = fmt.Errorf("it has more than %d layers", maxLayers)
	errManifests = fmt.Errorf("it lists more than %d manifests or blobs", maxManifests)
)

var errSchema1 = errors.New("schema 1 of Docker's image manifests, which clients gave up in 2016, is not supported")

// Bounds of a manifest's parts, which keep what is made of its bytes in memory
// within a small multiple of them, and the transaction that stores it short:
// it looks each child up and adds a row for it. Clients stay far below.
const (
	maxLayers      = 2_000 // and blobs, together
	maxManifests   = 4_000
	maxAnnotations = 10_000
)

// Descriptor is what a manifest says about something it refers to
// (image-spec, "Descriptor"); what the registry has no use for is left out.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       digest.Digest     `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *Platform         `json:"platform,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// Platform is what an image runs on.
type Platform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}

// String writes a platform as clients do: "linux/arm/v7".
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// ParseManifest takes a manifest of any media type apart. mediaType is the
// Content-Type it came under; its parameters are dropped, and when it is empty
// the manifest's own word or form decides.
//
// The media type has to be one of application/*.
//
// A manifest of a type that is known has to be well-formed, with valid digests
// throughout, at most 2,000 layers and at most 4,000 manifests. Its config and
// layers (or blobs) are children that have to be blobs, except layers that are
// not to be distributed, which may be absent; what an index lists may be a
// manifest or a blob. Of a type that isn't known
// the same fields are read, if they are there and mean the same; else it is
// stored as it is, and has no children. The subject is no child: it may be
// absent.
//
// Annotations are set when there is a subject, because only a list of
// referrers tells them. Digest, Lease, PushedAt and CheckedAt are left to the
// caller. The error is ErrManifest, wrapped.
func ParseManifest(content []byte, mediaType string) (Manifest, error) {
	if mediaType != "" {
		bare, err := bareType(mediaType)
		if err != nil {
			return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
		}
		mediaType = bare
	}
	if strings.HasPrefix(mediaType, typeDockerSchema1) {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, errSchema1)
	}
	m := Manifest{MediaType: mediaType, Size: int64(len(content)), Content: content}

	var doc document
	if err := json.Unmarshal(content, &doc); err != nil {
		if mediaType == "" || isKnown(mediaType) || isJSON(mediaType) && !json.Valid(content) {
			return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
		}
		return m, nil
	}
	if err := m.read(&doc); err != nil {
		if mediaType == "" || isKnown(mediaType) {
			return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
		}
		return Manifest{MediaType: mediaType, Size: m.Size, Content: content}, nil
	}
	if mediaType != "" && doc.MediaType != "" && doc.MediaType != mediaType {
		return Manifest{}, fmt.Errorf("%w: it was sent as %q and calls itself %.100q", ErrManifest, mediaType, doc.MediaType)
	}
	return m, nil
}

// bareType returns a media type without its parameters.
func bareType(mediaType string) (string, error) {
	parsed, _, err := mime.ParseMediaType(mediaType)
	bare, _, _ := strings.Cut(mediaType, ";")
	bare = strings.TrimSpace(bare)
	// Parsing changes upper case, which clients compare, to lower.
	if err != nil || !strings.Contains(parsed, "/") || !strings.EqualFold(bare, parsed) {
		return "", fmt.Errorf("%.100q is not a media type", mediaType)
	}
	// It is told to whoever pulls, and some do more with text/html than read it.
	if !strings.HasPrefix(parsed, "application/") {
		return "", fmt.Errorf("a manifest's media type begins with application/, and %.100q does not", mediaType)
	}
	return bare, nil
}

func isKnown(mediaType string) bool {
	switch mediaType {
	case TypeImage, TypeIndex, TypeArtifact, TypeDockerImage, TypeDockerList:
		return true
	}
	return false
}

func isJSON(mediaType string) bool {
	return strings.HasSuffix(mediaType, "+json") || mediaType == "application/json"
}

// document is the union of all manifests' fields.
type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        *Descriptor  `json:"config"`
	Layers        *descriptors `json:"layers"`
	Blobs         *descriptors `json:"blobs"`
	Manifests     *descriptors `json:"manifests"`
	Subject       *Descriptor  `json:"subject"`
	Annotations   annotations  `json:"annotations"`
}

// descriptors are read one by one, so that a list that is too long, or is
// made of nothing, ends the reading early.
type descriptors []Descriptor

func (list *descriptors) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil {
		return err
	} else if open != json.Delim('[') {
		return errors.New("a list of descriptors is expected")
	}
	*list = descriptors{}
	for dec.More() {
		var d Descriptor
		if err := dec.Decode(&d); err != nil {
			return err
		}
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return fmt.Errorf("a descriptor has the digest %.150q: %w", d.Digest, err)
		}
		if len(*list) == maxManifests {
			return errManifests
		}
		*list = append(*list, d)
	}
	return nil
}

type annotations map[string]string

func (a *annotations) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil {
		return err
	} else if open != json.Delim('{') {
		return errors.New("annotations are an object")
	}
	*a = annotations{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value string
		if err := dec.Decode(&value); err != nil {
			return fmt.Errorf("annotation %.100q: %w", key, err)
		}
		if len(*a) == maxAnnotations {
			return fmt.Errorf("there are more than %d annotations", maxAnnotations)
		}
		(*a)[key.(string)] = value
	}
	return nil
}

// read fills in what the document says, and the media type if it is not known
// yet.
func (m *Manifest) read(doc *document) error {
	if m.MediaType == "" {
		if doc.MediaType == "" {
			doc.MediaType = doc.guess()
		}
		if doc.MediaType == "" {
			return errors.New("neither it nor its content type says of what media type it is")
		}
		var err error
		if m.MediaType, err = bareType(doc.MediaType); err != nil {
			return err
		}
		if strings.HasPrefix(m.MediaType, typeDockerSchema1) {
			return errSchema1
		}
	}
	switch m.MediaType {
	case TypeImage, TypeDockerImage:
		if doc.Config == nil {
			return errors.New("an image manifest has a config")
		}
	case TypeIndex, TypeDockerList:
		if doc.Manifests == nil {
			return errors.New("an index has manifests")
		}
	}

	m.ArtifactType = doc.ArtifactType
	children := childSet{}
	if c := doc.Config; c != nil {
		if _, err := ParseDigest(string(c.Digest)); err != nil {
			return fmt.Errorf("the config has the digest %.150q: %w", c.Digest, err)
		}
		if m.ArtifactType == "" {
			m.ArtifactType = c.MediaType
		}
		children.add(c.Digest, NeedBlob)
	}
	layers := 0
	for _, list := range []*descriptors{doc.Layers, doc.Blobs} {
		if list == nil {
			continue
		}
		if layers += len(*list); layers > maxLayers {
			return errLayers
		}
		for _, layer := range *list {
			need := NeedBlob
			if stays(layer.MediaType) {
				need = NeedIfThere
			}
			children.add(layer.Digest, need)
		}
	}
	if doc.Manifests != nil {
		for _, of := range *doc.Manifests {
			children.add(of.Digest, NeedAny)
			// Attestations stand in an index as of an unknown platform.
			if p := of.Platform; p != nil && p.OS != "" && p.OS != "unknown" && !slices.Contains(m.Platforms, p.String()) && len(m.Platforms) < 100 {
				m.Platforms = append(m.Platforms, p.String())
			}
		}
	}
	m.Children = children.list
	if doc.Subject != nil {
		subject, err := ParseDigest(string(doc.Subject.Digest))
		if err != nil {
			return fmt.Errorf("the subject has the digest %.150q: %w", doc.Subject.Digest, err)
		}
		m.Subject, m.Annotations = subject, doc.Annotations
	}
	return nil
}

// guess tells by its form what a manifest is that doesn't say it.
func (doc *document) guess() string {
	switch {
	case doc.SchemaVersion != 2:
	case doc.Config != nil && doc.Manifests == nil:
		return TypeImage
	case doc.Manifests != nil && doc.Config == nil:
		return TypeIndex
	}
	return ""
}

// stays tells whether a layer is one that stays where it came from: its
// licence forbids to distribute it, and clients don't push it.
func stays(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.tar") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.diff.tar")
}

// childSet holds each child once, with the most that is asked of it.
type childSet struct {
	list []Child
	at   map[digest.Digest]int
}

func (s *childSet) add(d digest.Digest, need Need) {
	if s.at == nil {
		s.at = map[digest.Digest]int{}
	}
	if i, ok := s.at[d]; ok {
		s.list[i].Need = min(s.list[i].Need, need)
		return
	}
	s.at[d] = len(s.list)
	s.list = append(s.list, Child{Digest: d, Need: need})
}
