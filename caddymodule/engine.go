package caddymodule

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/api"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/platform/docker"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/source"
	"github.com/denia-paas/denia/platform/store"
	"github.com/denia-paas/denia/platform/telemetry"
	"github.com/denia-paas/denia/registry"
)

// engines holds the process's Engines by data directory.
var engines = caddy.NewUsagePool()

// running is the process's Engine: there is one data directory in a process. It
// is for those who must not wait until a further configuration has started.
var running atomic.Pointer[Engine]

// drainTimeout bounds how long a closing Engine waits for its requests.
const drainTimeout = 10 * time.Second

// Engine is everything of Denia that outlives a configuration: one for a data
// directory, shared by every configuration of this process that names it.
type Engine struct {
	settings      settings
	vault         *vault
	log           *relay       // the vault's
	store         *store.Store // the vault's
	controlDomain atomic.Pointer[string]
	certificates  *certificates

	docker  *docker.Engine
	logs    *telemetry.Logs
	access  *telemetry.Requests
	ingress *ingress.Ingress
	plane   *control.Plane
	api     *api.API

	registry       *registry.Registry
	loopback       net.Listener // where the Docker Engine reaches the registry
	loopbackServer *http.Server
	serving        sync.WaitGroup
	transfers      context.Context // ends when the registry's transfers have to
	cutTransfers   context.CancelFunc

	greeting   sync.WaitGroup // of the engine of containers, at the start
	stopGreets context.CancelFunc

	requests atomic.Int64 // under way; closingBias while closing
	idle     chan struct{}
}

// openEngine makes an Engine and starts its loops. What it has opened when it
// fails, it closes.
func openEngine(ctx context.Context, s settings, log *slog.Logger) (_ *Engine, err error) {
	e := &Engine{settings: s, idle: make(chan struct{}, 1)}
	tuneMemory()
	e.controlDomain.Store(&s.controlDomain)
	e.transfers, e.cutTransfers = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.vault, err = openVault(ctx, s, log); err != nil {
		return nil, err
	}
	e.log, e.store = e.vault.log, e.vault.store
	e.log.use(log)
	logger := slog.New(e.log)
	token, err := adminToken(s)
	if err != nil {
		return nil, err
	}
	if e.logs, err = telemetry.OpenLogs(filepath.Join(s.dataDir, "logs"), telemetry.LogOptions{CapBytes: s.logs.MaxBytes, RequestBytes: s.ingress.RequestsBytes}); err != nil {
		return nil, fmt.Errorf("opening the logs: %w", err)
	}
	if e.docker, err = docker.Open(ctx, docker.Options{Host: s.dockerHost, Instance: e.store.InstanceID(), Log: logger}); err != nil {
		return nil, fmt.Errorf("docker_host: %w", err)
	}
	e.access = telemetry.NewRequests(e.logs, func(id platform.ID) []byte { return e.ingress.Unwritten(id) })
	e.ingress = ingress.New(ingress.Options{
		Log: logger, Client: client, Endless: endless, Whole: whole, Record: e.access.Append,
		WaitTimeout: time.Duration(s.ingress.WaitTimeout), MaxWaiting: s.ingress.MaxWaiting, DialTimeout: time.Duration(s.ingress.DialTimeout),
	})
	if err := e.openRegistry(ctx, logger); err != nil {
		return nil, err
	}
	e.certificates = newCertificates(s.certificates, s.controlDomain, logger)
	e.plane = control.New(control.Options{
		Names: e.certificates.useNames, ControlDomain: func() string { return *e.controlDomain.Load() },
		Domains: control.DomainOptions{
			AllowPrivate: s.domains.AllowPrivate, Resolver: s.domains.Resolver,
			Recheck: time.Duration(s.domains.Recheck), ChallengePort: s.domains.ChallengePort,
			Reached: e.certificates.reached,
		},
		Registry: hosted{e}, Store: e.store, Runtime: e.docker, Images: e.docker, Ingress: e.ingress, Logs: e.logs, Log: logger,
		DataDir: s.dataDir, BaseDomain: s.baseDomain, Node: e.vault.node,
		Unpack: func(ctx context.Context, archive, dir string) error {
			return source.Unpack(ctx, archive, dir, s.uploads)
		},
		BuildWorkers: s.builds.Workers, BuildTimeout: time.Duration(s.builds.Timeout), PullTimeout: time.Duration(s.builds.PullTimeout),
		DiskReserve: s.builds.ReserveBytes, KeepReleases: s.builds.KeepReleases,
	})
	if err := e.plane.Start(ctx); err != nil {
		return nil, fmt.Errorf("starting the control plane: %w", err)
	}
	uploads := filepath.Join(s.dataDir, "uploads")
	e.api, err = api.New(api.Options{
		Store: e.store, Plane: e.plane, Registry: e.registry, Logs: e.logs, Requests: e.access, Log: logger,
		UploadsDir: uploads, UploadLimits: s.uploads,
		AdminToken: token, BaseDomain: s.baseDomain, ControlDomain: func() string { return *e.controlDomain.Load() },
		Certificate: e.certificates.state, ChallengePort: s.domains.ChallengePort,
		DataDir: s.dataDir, Version: Version(), Client: client, Docker: e.dockerInfo, Routes: e.routes,
	})
	if err != nil {
		return nil, fmt.Errorf("building the API: %w", err)
	}
	e.startRegistry(logger)
	var greet context.Context
	greet, e.stopGreets = context.WithCancel(context.Background())
	e.greeting.Go(func() { e.greetDocker(greet) })
	e.certificates.start()
	running.Store(e)
	shedStartup()
	return e, nil
}

// greetDocker says once which engine was found, or why none answers. An engine
// that hangs does not keep Denia from listening.
func (e *Engine) greetDocker(ctx context.Context) {
	logger := slog.New(e.log)
	info, err := e.docker.Ping(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		logger.Warn("the Docker engine does not answer; services come back when it does", "error", err)
		return
	}
	logger.Info("Docker engine found", "version", info.Version, "api", info.APIVersion)
}

// reconfigure takes over what can change while the process runs, and refuses
// the rest.
func (e *Engine) reconfigure(next settings, log *slog.Logger) error {
	if name := e.settings.needsRestart(next); name != "" {
		return restartNeeded(name)
	}
	e.controlDomain.Store(&next.controlDomain)
	e.certificates.useControlDomain(next.controlDomain)
	e.log.use(log)
	return nil
}

func restartNeeded(option string) error {
	return fmt.Errorf("%s cannot be changed by a reload: stop Denia and start it again (the applications go on running)", option)
}

// closingBias keeps the count of requests below zero once the Engine closes.
const closingBias = -1 << 40

// begin counts a request in; false when the Engine is closing.
func (e *Engine) begin() bool {
	if e.requests.Add(1) > 0 {
		return true
	}
	e.end()
	return false
}

// end counts a request out.
func (e *Engine) end() {
	if e.requests.Add(-1) == closingBias {
		select {
		case e.idle <- struct{}{}:
		default:
		}
	}
}

// drain has streams end: the process is about to.
func (e *Engine) drain() {
	e.plane.Drain()
	e.ingress.Drain()
	e.cutTransfers()
}

// Destruct implements caddy.Destructor: it waits for the requests under way,
// then closes everything. Containers are left running.
func (e *Engine) Destruct() error {
	e.drain()
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	for left := e.requests.Add(closingBias); left != closingBias; left = e.requests.Load() {
		select {
		case <-e.idle:
		case <-timeout.C:
			slog.New(e.log).Warn("closing with requests under way", "requests", left-closingBias)
			return e.close()
		}
	}
	return e.close()
}

// close closes what was opened, in the opposite order. Loops go first, then
// what they use.
func (e *Engine) close() error {
	var errs []error
	running.CompareAndSwap(e, nil)
	if e.certificates != nil {
		e.certificates.close()
	}
	if e.stopGreets != nil {
		e.stopGreets()
		e.greeting.Wait()
	}
	if e.plane != nil {
		e.plane.Drain()
	}
	if e.api != nil {
		e.api.Close()
	}
	if e.plane != nil {
		errs = append(errs, e.plane.Close())
	}
	errs = append(errs, e.closeRegistry())
	if e.ingress != nil {
		e.ingress.Close()
	}
	if e.docker != nil {
		errs = append(errs, e.docker.Close())
	}
	if e.logs != nil {
		errs = append(errs, e.logs.Close())
	}
	if e.vault != nil {
		errs = append(errs, closeVault(e.settings))
	}
	return errors.Join(errs...)
}

func (e *Engine) dockerInfo(ctx context.Context) (api.Docker, error) {
	usage, err := e.docker.Usage(ctx)
	if err != nil {
		return api.Docker{}, err
	}
	return api.Docker{Version: usage.Version, Containers: usage.Containers, ImagesBytes: usage.ImagesBytes}, nil
}

// routes is the ingress's table as it is now.
func (e *Engine) routes() []api.IngressRoute {
	var routes []api.IngressRoute
	for _, r := range e.plane.Routes() {
		pool := e.ingress.Status(r.ServiceID)
		route := api.IngressRoute{Host: r.Host, ServiceID: r.ServiceID, Waiting: pool.Waiting}
		for _, t := range pool.Targets {
			route.Targets = append(route.Targets, api.IngressTarget{
				ID: t.ID, ReleaseID: t.ReleaseID, Addr: t.Addr, Ready: t.Ready, Serving: t.Serving, Draining: t.Draining, InFlight: t.InFlight,
			})
		}
		routes = append(routes, route)
	}
	return routes
}

// client tells who sent a request, as Caddy's trusted_proxies decide.
func client(r *http.Request) (ip string, trusted bool) {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	ip, _ = vars[caddyhttp.ClientIPVarKey].(string)
	trusted, _ = vars[caddyhttp.TrustedProxyVarKey].(bool)
	if ip == "" {
		ip, _, _ = net.SplitHostPort(r.RemoteAddr)
	}
	return ip, trusted
}

// lockDir makes sure that one process at a time uses the directory. The kernel
// drops the lock when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("data_dir %s is in use by another process; end that one or use another directory", dir), f.Close())
	}
	return f, nil
}

// adminToken returns the configured token, or the one kept in the data
// directory, made and printed at the first start. It goes to standard output
// and never to a log.
func adminToken(s settings) (string, error) {
	if s.adminToken != "" {
		if len(s.adminToken) < 16 {
			return "", errors.New("the admin token must have at least 16 characters")
		}
		return s.adminToken, nil
	}
	path := filepath.Join(s.dataDir, "admin.token")
	made := false
	token, err := loadOrCreate(path, func() string {
		made = true
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // never fails (crypto/rand)
		return platform.AdminPrefix + base64.RawURLEncoding.EncodeToString(secret)
	})
	if err != nil {
		return "", fmt.Errorf("loading the admin token: %w", err)
	}
	if made {
		fmt.Printf("\n  Admin token (shown once, kept in %s):\n  %s\n\n", path, token)
	}
	return token, nil
}

// loadOrCreate reads a one-line file, or makes it durably with mode 0600.
func loadOrCreate(path string, value func() string) (string, error) {
	content, err := os.ReadFile(path)
	if err == nil {
		if line := strings.TrimSpace(string(content)); line != "" {
			return line, nil
		}
		return "", fmt.Errorf("%s is empty; remove it to have it made anew", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	line := value()
	if err := writeFile(path, line+"\n"); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	return line, nil
}

func writeFile(path, content string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
