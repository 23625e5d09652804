package platform

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// DefaultFollowTag is the tag whose push deploys a service that does not say.
const DefaultFollowTag = "latest"

// maxRepository bounds the name of a repository: clients send no longer one.
const maxRepository = 255

// ociTag is a tag as the OCI distribution specification writes it.
var ociTag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// releasePrefix begins the tags under which Denia keeps copies of releases in
// the repository of their service.
const releasePrefix = "release-"

// ReleaseTag is the tag under which a copy of release number n is kept in the
// repository of its service.
func ReleaseTag(n int) string { return releasePrefix + strconv.Itoa(n) }

// ParseReleaseTag undoes ReleaseTag; ok is false for every other tag.
func ParseReleaseTag(tag string) (n int, ok bool) {
	digits, found := strings.CutPrefix(tag, releasePrefix)
	if !found {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n > 0 && ReleaseTag(n) == tag
}

// RepositoryKey is what the registry knows a service's own repository by:
// names change, ids do not. A repository below it, <project>/<service>/<below>,
// has the key RepositoryKey + "/" + below.
func RepositoryKey(service ID) string { return "svc:" + string(service) }

// ParseRepositoryKey tells whose repository it is, and what its name has below
// <project>/<service>; nothing for the service's own. ok is false for keys that
// belong to no service.
func ParseRepositoryKey(key string) (service ID, below string, ok bool) {
	rest, found := strings.CutPrefix(key, "svc:")
	id, below, _ := strings.Cut(rest, "/")
	return ID(id), below, found && id != ""
}

// cacheHost writes the host of a registry as the first part of a name below a
// project. It always has a dot or an underscore, which no service's name has.
func cacheHost(host string) string {
	host = strings.ToLower(host)
	if name, port, found := strings.Cut(host, ":"); found {
		return name + "_" + port
	}
	if !strings.Contains(host, ".") {
		return host + "_443"
	}
	return host
}

// CacheName tells where below a project the cache serves an external image:
// <project>/<name><suffix>, where name is the host and path of the image and
// suffix ":<tag>" or "@<digest>". The host of "nginx" is docker.io and its path
// library/nginx, as everywhere; "_" stands before a port instead of ":", and a
// host that has neither dot nor port gets "_443", so that no host looks like a
// service. A tag beside a digest means nothing and is left out. ok is false for
// what no registry could serve under such a name: no image reference, an
// IPv6 address as host, a name that is too long.
func CacheName(image string) (name, suffix string, ok bool) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil || strings.HasPrefix(reference.Domain(named), "[") {
		return "", "", false
	}
	name = cacheHost(reference.Domain(named)) + "/" + reference.Path(named)
	if len(name) > maxRepository-len("/")-63 { // below a project, whatever its name
		return "", "", false
	}
	if digested, pinned := named.(reference.Digested); pinned {
		return name, "@" + digested.Digest().String(), true
	}
	tagged, _ := reference.TagNameOnly(named).(reference.Tagged)
	return name, ":" + tagged.Tag(), true
}

var cachePort = regexp.MustCompile(`^[0-9]{1,5}$`)

// ParseCacheName undoes CacheName: it takes a repository's name without the
// project in front, and tells at which host the registry is ("docker.io",
// "127.0.0.1:5000") and what the repository is called there. ok is false when
// name belongs to a service instead, or has a host and nothing below it.
func ParseCacheName(name string) (host, repository string, ok bool) {
	first, repository, below := strings.Cut(name, "/")
	if !below || repository == "" || !strings.ContainsAny(first, "._") {
		return "", "", false
	}
	host = first
	if cut := strings.LastIndexByte(first, '_'); cut >= 0 {
		if cut == 0 || !cachePort.MatchString(first[cut+1:]) {
			return "", "", false
		}
		host = first[:cut] + ":" + first[cut+1:]
	}
	if host == "docker.io" && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return host, repository, true
}
