package caddymodule

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/denia-paas/denia/platform/source"
)

// settings are an App's configuration with its paths resolved: comparable, so
// that a reload can tell what has changed.
type settings struct {
	dataDir, database, dockerHost string
	baseDomain, controlDomain     string
	adminToken                    string
	uploads                       source.Limits
	builds                        Builds
	ingress                       Ingress
	logs                          Logs
	registry                      Registry
	certificates                  Certificates
	domains                       Domains
}

func (a *App) settings(dataDir string) settings {
	token := os.Getenv("DENIA_ADMIN_TOKEN")
	if token == "" {
		token = a.AdminToken
	}
	return settings{
		dataDir: dataDir, database: a.Database, dockerHost: a.DockerHost,
		baseDomain: strings.ToLower(a.BaseDomain), controlDomain: strings.ToLower(a.ControlDomain),
		adminToken: token,
		uploads:    source.Limits{PackedBytes: a.Uploads.MaxPackedBytes, UnpackedBytes: a.Uploads.MaxUnpackedBytes, Entries: a.Uploads.MaxEntries, Ratio: a.Uploads.MaxRatio},
		builds:     a.Builds, ingress: a.Ingress, logs: a.Logs, registry: a.Registry, certificates: a.Certificates, domains: a.Domains,
	}
}

// needsRestart names the first setting of next that cannot be changed while
// the process runs; empty when there is none.
func (s settings) needsRestart(next settings) string {
	for _, c := range []struct {
		name    string
		changed bool
	}{
		{"database", s.database != next.database},
		{"docker_host", s.dockerHost != next.dockerHost},
		{"base_domain", s.baseDomain != next.baseDomain},
		{"admin_token", s.adminToken != next.adminToken},
		{"uploads", s.uploads != next.uploads},
		{"builds", s.builds != next.builds},
		{"ingress", s.ingress != next.ingress},
		{"logs", s.logs != next.logs},
		{"registry", s.registry != next.registry},
		{"domains", s.domains != next.domains},
		{"certificates", s.certificates != next.certificates},
	} {
		if c.changed {
			return c.name
		}
	}
	return ""
}

var hostname = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

func (a *App) validate() error {
	if err := checkDatabase(a.Database); err != nil {
		return err
	}
	if d := strings.ToLower(a.BaseDomain); d != "" && !hostname.MatchString(d) {
		return fmt.Errorf("base_domain: %q is no host name", a.BaseDomain)
	}
	if d := strings.ToLower(a.ControlDomain); d != "" {
		if _, err := netip.ParseAddr(d); err == nil || !hostname.MatchString(d) {
			return fmt.Errorf("control_domain: %q is no host name; leave it out to use IP addresses", a.ControlDomain)
		}
	}
	if n := len(a.AdminToken); n > 0 && n < 16 {
		return errors.New("admin_token: must have at least 16 characters")
	}
	if a.Uploads.MaxPackedBytes < 0 || a.Uploads.MaxUnpackedBytes < 0 || a.Uploads.MaxEntries < 0 || a.Uploads.MaxRatio < 0 {
		return errors.New("uploads: limits must not be negative")
	}
	if a.Builds.Workers < 0 || a.Builds.Workers > 64 || a.Builds.Timeout < 0 || a.Builds.PullTimeout < 0 || a.Builds.ReserveBytes < 0 || a.Builds.KeepReleases < 0 {
		return errors.New("builds: values must not be negative, workers at most 64")
	}
	if a.Ingress.MaxWaiting < 0 || a.Ingress.WaitTimeout < 0 || a.Ingress.DialTimeout < 0 {
		return errors.New("ingress: values must not be negative")
	}
	if n := a.Ingress.RequestsBytes; n != 0 && n < 1<<20 {
		return errors.New("ingress: requests_size (requests_bytes in JSON) must be at least 1 MiB")
	}
	if r := a.Registry; r.Lease < 0 || r.UploadTTL < 0 || r.MaxManifestBytes < 0 || r.CacheBytes < 0 || r.CacheTTL < 0 || r.ScrubBytes < 0 {
		return errors.New("registry: values must not be negative")
	}
	if n := a.Registry.MaxManifestBytes; n != 0 && n < 4<<20 {
		return errors.New("registry: max_manifest (max_manifest_bytes in JSON) must be at least 4 MiB, which clients may rely on")
	}
	if r := a.Domains.Resolver; r != "" {
		if _, err := netip.ParseAddrPort(r); err != nil {
			return fmt.Errorf("domains: resolver: %q is no address with a port; write for example 1.1.1.1:53", r)
		}
	}
	if p := a.Domains.ChallengePort; a.Domains.Recheck < 0 || p < 0 || p > math.MaxUint16 {
		return errors.New("domains: recheck must not be negative, challenge_port at most 65535")
	}
	if a.Certificates.OrdersPerHour < 0 || a.Certificates.OrdersPerDomain < 0 {
		return errors.New("certificates: values must not be negative")
	}
	if a.Logs.MaxBytes != 0 && a.Logs.MaxBytes < 1<<20 {
		return errors.New("logs: max_size (max_bytes in JSON) must be at least 1 MiB")
	}
	return nil
}

// checkDatabase never repeats the value: it may hold a password.
func checkDatabase(dsn string) error {
	if dsn == "" || dsn == "sqlite" {
		return nil
	}
	u, err := url.Parse(dsn)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || u.Host == "" && u.Query().Get("host") == "" {
		return errors.New("database: must be sqlite or a URL such as postgres://user:password@host/name")
	}
	return nil
}
