package platform_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
)

func TestCacheNames(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for image, want := range map[string]string{
		"nginx":                               "docker.io/library/nginx:latest",
		"nginx:1.29":                          "docker.io/library/nginx:1.29",
		"team/app":                            "docker.io/team/app:latest",
		"docker.io/nginx":                     "docker.io/library/nginx:latest",
		"index.docker.io/team/app:2":          "docker.io/team/app:2",
		"ghcr.io/owner/name:v1":               "ghcr.io/owner/name:v1",
		"GHCR.io/owner/name:v1":               "ghcr.io/owner/name:v1",
		"127.0.0.1:5000/tools/app:7":          "127.0.0.1_5000/tools/app:7",
		"registry:5000/app":                   "registry_5000/app:latest",
		"localhost/app":                       "localhost_443/app:latest",
		"nginx@sha256:" + hex:                 "docker.io/library/nginx@sha256:" + hex,
		"ghcr.io/o/n:v1@sha256:" + hex:        "ghcr.io/o/n@sha256:" + hex,
		"[::1]:5000/app":                      "",
		"docker.io/UPPER:1":                   "",
		"":                                    "",
		"a b":                                 "",
		"ghcr.io/" + strings.Repeat("a", 200): "",
	} {
		name, suffix, ok := platform.CacheName(image)
		if got := name + suffix; got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", image, got, ok, want)
		}
	}
}

// What CacheName makes, ParseCacheName undoes; services' names are none.
func TestParseCacheName(t *testing.T) {
	for name, want := range map[string]string{
		"docker.io/library/nginx": "docker.io library/nginx",
		"docker.io/nginx":         "docker.io library/nginx",
		"ghcr.io/owner/name":      "ghcr.io owner/name",
		"127.0.0.1_5000/app":      "127.0.0.1:5000 app",
		"registry_5000/team/app":  "registry:5000 team/app",
		"localhost_443/app":       "localhost:443 app",
		"web":                     "",
		"web/cache":               "",
		"web/docker.io/nginx":     "",
		"docker.io":               "",
		"docker.io/":              "",
		"_5000/app":               "",
		"host_/app":               "",
		"host_port/app":           "",
		"host_123456/app":         "",
	} {
		host, repository, ok := platform.ParseCacheName(name)
		got := strings.TrimSpace(host + " " + repository)
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, want)
		}
	}
	for _, image := range []string{"nginx", "ghcr.io/a/b", "127.0.0.1:5000/c", "host/d", "localhost:5000/e"} {
		name, _, _ := platform.CacheName(image)
		host, repository, ok := platform.ParseCacheName(name)
		again, _, _ := platform.CacheName(host + "/" + repository)
		if !ok || again != name {
			t.Errorf("%s: %s, then %s/%s, then %s", image, name, host, repository, again)
		}
	}
}

func TestRepositoryKeys(t *testing.T) {
	key := platform.RepositoryKey("0192")
	for text, want := range map[string]string{key: "0192 ", key + "/cache/x": "0192 cache/x", "cache:1/docker.io/x": "", "svc:": "", "": ""} {
		id, below, ok := platform.ParseRepositoryKey(text)
		if got := fmt.Sprint(id, " ", below); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, ok, want)
		}
	}
}

func TestReleaseTags(t *testing.T) {
	for n := 1; n < 20000; n *= 7 {
		if got, ok := platform.ParseReleaseTag(platform.ReleaseTag(n)); !ok || got != n {
			t.Errorf("release %d: %d, %v", n, got, ok)
		}
	}
	for _, tag := range []string{"latest", "release-", "release-0", "release-01", "release--1", "release-+1", "release-1a", "Release-1", "release-99999999999999999999"} {
		if n, ok := platform.ParseReleaseTag(tag); ok {
			t.Errorf("%s is the tag of release %d", tag, n)
		}
	}
}

// Whoever prints credentials, or something that holds them, prints no password.
func TestRegistryAuthDoesNotPrint(t *testing.T) {
	auth := platform.RegistryAuth{Username: "denia", Password: "sesame-opens"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, value := range []any{auth, &auth, platform.Pull{Auth: &auth}} {
			if text := fmt.Sprintf(format, value); strings.Contains(text, "sesame") {
				t.Errorf("%s prints %s", format, text)
			}
		}
	}
}
