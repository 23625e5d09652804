// Package caddymodule is Denia as modules of Caddy: the app that holds the
// configuration, the handlers, the Caddyfile and the commands. It only adapts;
// what lasts lives on the Engine, which survives configuration reloads.
package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/denia-paas/denia/platform/source"
	"github.com/denia-paas/denia/platform/telemetry"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.OnExit(closeEngines)
}

// closeEngines closes what still runs when the process ends, after every app
// has stopped.
func closeEngines(context.Context) {
	var left []any
	engines.Range(func(key, _ any) bool {
		left = append(left, key)
		return true
	})
	for _, key := range left {
		for _, held := engines.References(key); held; _, held = engines.References(key) {
			if _, err := engines.Delete(key); err != nil {
				caddy.Log().Named("denia").Error("closing", zap.Error(err))
			}
		}
	}
}

// App is the app module `denia`: the configuration of Denia. Every field has a
// default.
type App struct {
	// DataDir holds the store, keys, uploads and logs; made 0700. One process
	// at a time may use it. Default: "./data".
	DataDir string `json:"data_dir,omitempty"`

	// Database is "sqlite", a file in DataDir, or a "postgres://…" URL.
	// Default: "sqlite". A change needs a restart.
	Database string `json:"database,omitempty"`

	// DockerHost is the engine's address, e.g. "unix:///var/run/docker.sock".
	// Default: the Docker client's own rules (DOCKER_HOST, then its socket). A
	// change needs a restart.
	DockerHost string `json:"docker_host,omitempty"`

	// BaseDomain is what services are reached under. Default: "localhost". A
	// change needs a restart.
	BaseDomain string `json:"base_domain,omitempty"`

	// ControlDomain is the host of the API. While it is empty, the API answers
	// on localhost and on IP addresses.
	ControlDomain string `json:"control_domain,omitempty"`

	// AdminToken is the token that bootstraps Denia; DENIA_ADMIN_TOKEN in the
	// environment goes before it. Default: made at the first start, kept in
	// DataDir/admin.token and printed once. A change needs a restart.
	AdminToken string `json:"admin_token,omitempty"`

	Uploads  Uploads  `json:"uploads,omitzero"`
	Builds   Builds   `json:"builds,omitzero"`
	Ingress  Ingress  `json:"ingress,omitzero"`
	Logs     Logs     `json:"logs,omitzero"`
	Registry Registry `json:"registry,omitzero"`

	Certificates Certificates `json:"certificates,omitzero"`
	Domains      Domains      `json:"domains,omitzero"`

	engine  atomic.Pointer[Engine]
	started chan struct{} // closed when it has, or never will
	settle  func()        // closes started
	ctx     caddy.Context
	key     string // of the engine in the pool, once started
	decides bool   // by tls.permission.denia alone, for which names there are certificates on demand
	tls     *tlsView
	early   earlyVault
}

// Uploads bound build contexts. A change needs a restart, as for Builds,
// Ingress, Logs and Registry.
type Uploads struct {
	MaxPackedBytes   int64 `json:"max_packed_bytes,omitempty"`   // default 1 GiB
	MaxUnpackedBytes int64 `json:"max_unpacked_bytes,omitempty"` // default 4 GiB
	MaxEntries       int   `json:"max_entries,omitempty"`        // default 200000
	MaxRatio         int   `json:"max_ratio,omitempty"`          // unpacked to packed; default 200
}

// Builds bound image builds and pulls.
type Builds struct {
	Workers      int            `json:"workers,omitempty"`       // default 1
	Timeout      caddy.Duration `json:"timeout,omitempty"`       // default 30m
	PullTimeout  caddy.Duration `json:"pull_timeout,omitempty"`  // default 15m
	ReserveBytes int64          `json:"reserve_bytes,omitempty"` // left free on DataDir's disk; default 256 MiB
	KeepReleases int            `json:"keep_releases,omitempty"` // images kept per service for rolling back; default 5
}

// Ingress bounds requests that wait for a replica, and what is kept of those
// that have ended.
type Ingress struct {
	WaitTimeout   caddy.Duration `json:"wait_timeout,omitempty"`   // default 30s
	MaxWaiting    int            `json:"max_waiting,omitempty"`    // per service; default 1000
	DialTimeout   caddy.Duration `json:"dial_timeout,omitempty"`   // default 2s
	RequestsBytes int64          `json:"requests_bytes,omitempty"` // access entries, per service; default 20 MiB
}

// Logs bound what is kept of each service's output.
type Logs struct {
	MaxBytes int64 `json:"max_bytes,omitempty"` // per service; default 100 MiB
}

// Registry bounds the registry at /v2 and its cache of other registries.
type Registry struct {
	// Lease is how long what was pushed or asked for is safe from collection,
	// tagged or not. It must be longer than any push takes. Default 24h.
	Lease caddy.Duration `json:"lease,omitempty"`

	// UploadTTL is how long an upload may pause. Default 24h.
	UploadTTL caddy.Duration `json:"upload_ttl,omitempty"`

	MaxManifestBytes int64          `json:"max_manifest_bytes,omitempty"` // default 8 MiB
	CacheBytes       int64          `json:"cache_bytes,omitempty"`        // kept of other registries; default 10 GiB
	CacheTTL         caddy.Duration `json:"cache_ttl,omitempty"`          // after which a tag is compared with its registry; default 5m
	ScrubBytes       int64          `json:"scrub_bytes,omitempty"`        // checked for damage each day; default 20 GiB
}

// Domains say how claims to host names are proven. A change needs a restart.
type Domains struct {
	// AllowPrivate lets host names lead to private, loopback and link-local
	// addresses. Whoever may attach domains can then have Denia send a GET to
	// any host it reaches.
	AllowPrivate bool `json:"allow_private,omitempty"`

	// Resolver is the DNS server to ask, as "ip:port". Default: the system's.
	Resolver string `json:"resolver,omitempty"`

	Recheck       caddy.Duration `json:"recheck,omitempty"`        // of verified domains; default 24h
	ChallengePort int            `json:"challenge_port,omitempty"` // where hosts are asked for the challenge; default 80
}

// Certificates bound how many new certificates are ordered of authorities. The
// defaults keep below Let's Encrypt's limits.
type Certificates struct {
	OrdersPerHour   int `json:"orders_per_hour,omitempty"`   // default 100
	OrdersPerDomain int `json:"orders_per_domain,omitempty"` // below one registered domain in seven days; default 50
}

// CaddyModule returns the module's id and constructor.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "denia", New: func() caddy.Module { return new(App) }}
}

// Provision fills defaults. It does nothing that `caddy validate` must not.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.started = make(chan struct{})
	a.settle = sync.OnceFunc(func() { close(a.started) })
	a.replace()
	a.DataDir = cmp.Or(a.DataDir, "./data")
	a.Database = cmp.Or(a.Database, "sqlite")
	a.BaseDomain = cmp.Or(a.BaseDomain, "localhost")
	limits := source.DefaultLimits
	a.Uploads.MaxPackedBytes = cmp.Or(a.Uploads.MaxPackedBytes, limits.PackedBytes)
	a.Uploads.MaxUnpackedBytes = cmp.Or(a.Uploads.MaxUnpackedBytes, limits.UnpackedBytes)
	a.Uploads.MaxEntries = cmp.Or(a.Uploads.MaxEntries, limits.Entries)
	a.Uploads.MaxRatio = cmp.Or(a.Uploads.MaxRatio, limits.Ratio)
	a.Builds.Workers = cmp.Or(a.Builds.Workers, 1)
	a.Builds.Timeout = cmp.Or(a.Builds.Timeout, caddy.Duration(30*time.Minute))
	a.Builds.PullTimeout = cmp.Or(a.Builds.PullTimeout, caddy.Duration(15*time.Minute))
	a.Builds.ReserveBytes = cmp.Or(a.Builds.ReserveBytes, 256<<20)
	a.Builds.KeepReleases = cmp.Or(a.Builds.KeepReleases, 5)
	a.Ingress.WaitTimeout = cmp.Or(a.Ingress.WaitTimeout, caddy.Duration(30*time.Second))
	a.Ingress.MaxWaiting = cmp.Or(a.Ingress.MaxWaiting, 1000)
	a.Ingress.DialTimeout = cmp.Or(a.Ingress.DialTimeout, caddy.Duration(2*time.Second))
	a.Ingress.RequestsBytes = cmp.Or(a.Ingress.RequestsBytes, telemetry.DefaultRequestBytes)
	a.Logs.MaxBytes = cmp.Or(a.Logs.MaxBytes, 100<<20)
	a.Registry.Lease = cmp.Or(a.Registry.Lease, caddy.Duration(24*time.Hour))
	a.Registry.UploadTTL = cmp.Or(a.Registry.UploadTTL, caddy.Duration(24*time.Hour))
	a.Registry.MaxManifestBytes = cmp.Or(a.Registry.MaxManifestBytes, 8<<20)
	a.Registry.CacheBytes = cmp.Or(a.Registry.CacheBytes, 10<<30)
	a.Registry.CacheTTL = cmp.Or(a.Registry.CacheTTL, caddy.Duration(5*time.Minute))
	a.Registry.ScrubBytes = cmp.Or(a.Registry.ScrubBytes, 20<<30)
	a.Certificates.OrdersPerHour = cmp.Or(a.Certificates.OrdersPerHour, 100)
	a.Certificates.OrdersPerDomain = cmp.Or(a.Certificates.OrdersPerDomain, 50)
	a.Domains.Recheck = cmp.Or(a.Domains.Recheck, caddy.Duration(24*time.Hour))
	a.Domains.ChallengePort = cmp.Or(a.Domains.ChallengePort, 80)
	return a.listen(ctx)
}

// Validate checks what can be checked without touching anything.
func (a *App) Validate() error { return a.validate() }

// Start takes the process's Engine for the data directory, or makes it.
func (a *App) Start() error {
	key, err := filepath.Abs(a.DataDir)
	if err != nil {
		return fmt.Errorf("denia: resolving data_dir: %w", err)
	}
	log := a.ctx.Slogger()
	other := ""
	engines.Range(func(taken, _ any) bool {
		if taken != any(key) {
			other, _ = taken.(string)
		}
		return other == ""
	})
	if other != "" {
		return restartNeeded("data_dir")
	}
	value, loaded, err := engines.LoadOrNew(key, func() (caddy.Destructor, error) {
		ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
		defer cancel()
		return openEngine(ctx, a.settings(key), log)
	})
	if err != nil {
		return fmt.Errorf("denia: %w", err)
	}
	engine := value.(*Engine)
	if loaded {
		if err := engine.reconfigure(a.settings(key), log); err != nil {
			_, _ = engines.Delete(key) // the reference just taken; others remain
			return fmt.Errorf("denia: %w", err)
		}
	}
	for _, collector := range engine.collectors() {
		var already prometheus.AlreadyRegisteredError
		if err := a.ctx.GetMetricsRegistry().Register(collector); err != nil && !errors.As(err, &already) {
			log.Error("registering metrics failed", "error", err)
		}
	}
	if a.tls, err = newTLSView(a.ctx, a.decides); err != nil {
		_, _ = engines.Delete(key)
		return fmt.Errorf("denia: reading the TLS configuration: %w", err)
	}
	a.key = key
	a.engine.Store(engine)
	a.settle()
	return a.early.release()
}

// Stop gives the Engine back; a reload has the new configuration hold it
// first. At the end of the process it leaves that to closeEngines: apps stop in
// no order, and the HTTP app must be able to answer until its listeners are
// closed.
func (a *App) Stop() error {
	if a.key == "" || caddy.Exiting() {
		return nil
	}
	if _, err := engines.Delete(a.key); err != nil {
		return fmt.Errorf("denia: closing: %w", err)
	}
	return nil
}

// Cleanup gives back what was taken by a configuration that never started.
func (a *App) Cleanup() error {
	if a.settle != nil {
		a.settle()
	}
	return a.early.release()
}

// current is the process's Engine, also while this configuration is about to
// take it over from the one before; nil when there is none yet.
func (a *App) current() *Engine {
	if engine := a.engine.Load(); engine != nil {
		return engine
	}
	return running.Load()
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
