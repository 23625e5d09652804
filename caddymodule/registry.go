package caddymodule

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/control"
	"github.com/denia-paas/denia/registry"
)

// openRegistry opens the registry and the port on which the Docker Engine
// reaches it. The engine speaks plain HTTP with registries on loopback, and
// there only; the Caddyfile may have no such listener, or another host's.
func (e *Engine) openRegistry(ctx context.Context, log *slog.Logger) error {
	key, err := loadOrCreate(filepath.Join(e.settings.dataDir, "keys", "registry.key"), func() string {
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // never fails (crypto/rand)
		return base64.RawURLEncoding.EncodeToString(secret)
	})
	if err != nil {
		return fmt.Errorf("loading the key of registry tokens: %w", err)
	}
	dir := filepath.Join(e.settings.dataDir, "registry")
	storage, err := registry.NewDisk(dir)
	if err != nil {
		return err
	}
	if err := belongsTo(dir, e.store.InstanceID()); err != nil {
		return err
	}
	r := e.settings.registry
	e.registry, err = registry.Open(ctx, registry.Config{
		Storage: storage, Metadata: e.store.Registry(), Log: log,
		Authenticate: func(r *http.Request, username, password string) (string, error) {
			return e.api.AuthenticateRegistry(r, username, password)
		},
		Authorize: e.authorize, OnPush: e.pushed, OnDelete: e.deleted, Reserved: reserved, Keep: e.keep,
		Scheme: scheme, TokenKey: []byte(key),
		Options: registry.Options{
			Lease: time.Duration(r.Lease), UploadTTL: time.Duration(r.UploadTTL), ManifestBytes: r.MaxManifestBytes,
			CacheTTL: time.Duration(r.CacheTTL), CacheBytes: r.CacheBytes, ScrubBytes: r.ScrubBytes,
			ReserveBytes: e.settings.builds.ReserveBytes,
		},
	})
	if err != nil {
		return fmt.Errorf("opening the registry: %w", err)
	}
	e.loopback, err = listenAgain(ctx, filepath.Join(e.settings.dataDir, "registry.port"))
	if err != nil {
		return fmt.Errorf("listening for the Docker engine: %w", err)
	}
	return nil
}

// belongsTo makes sure that the registry's files are those of this database.
// Another one knows none of them, and the registry would remove them all.
func belongsTo(dir, instance string) error {
	owner, err := loadOrCreate(filepath.Join(dir, "instance"), func() string { return instance })
	if err != nil {
		return fmt.Errorf("looking whose registry this is: %w", err)
	}
	if owner != instance {
		return fmt.Errorf("%s holds the images of another database (instance %s, this one is %s): restore that database, or move the directory away to begin with an empty registry", dir, owner, instance)
	}
	return nil
}

// listenAgain listens on the loopback port named in the file, or on a free one
// that it puts there. The engine remembers by address which layers a registry
// has; with another one it would send them all again.
func listenAgain(ctx context.Context, file string) (net.Listener, error) {
	const loopback = "127.0.0.1"
	var config net.ListenConfig
	if content, err := os.ReadFile(file); err == nil {
		if listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(loopback, strings.TrimSpace(string(content)))); err == nil {
			return listener, nil
		}
	}
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	if err := writeFile(file, port+"\n"); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// startRegistry answers the Docker Engine, and starts the registry's loops.
// Until then a connection waits.
func (e *Engine) startRegistry(log *slog.Logger) {
	e.registry.Start()
	e.loopbackServer = &http.Server{
		Handler:           http.HandlerFunc(e.serveEngine),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	e.serving.Go(func() {
		if err := e.loopbackServer.Serve(e.loopback); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the port for the Docker engine is closed", "error", err)
		}
	})
}

// closeRegistry cuts the engine's transfers and waits for the registry's loops.
func (e *Engine) closeRegistry() error {
	var errs []error
	if e.loopbackServer != nil {
		errs = append(errs, e.loopbackServer.Close())
		e.serving.Wait()
	} else if e.loopback != nil {
		errs = append(errs, e.loopback.Close())
	}
	if e.registry != nil {
		errs = append(errs, e.registry.Close())
	}
	return errors.Join(errs...)
}

// serveEngine answers the Docker Engine.
func (e *Engine) serveEngine(w http.ResponseWriter, r *http.Request) {
	if !isRegistry(r.URL.Path) {
		http.NotFound(w, r)
		return
	}
	e.registry.ServeHTTP(w, r)
}

// serveRegistry answers a request for /v2. Blobs are large and clients slow:
// what bounds them is standing still, in pieces large enough for the kernel to
// send by itself.
func (e *Engine) serveRegistry(w http.ResponseWriter, r *http.Request) {
	const piece = 1 << 20
	reader, writer := caddyhttp.IdleTimeoutsFromContext(r.Context())
	if reader != nil {
		defer reader.Override(transferStall, 0)()
		reader.ReadCloser = gathered{reader.ReadCloser}
	}
	if writer != nil {
		defer writer.Override(transferStall, 0, piece)()
	}
	// The process would wait for a slow client, and meanwhile answer nobody.
	control := http.NewResponseController(w)
	defer context.AfterFunc(e.transfers, func() {
		_ = control.SetReadDeadline(time.Now()) // not every writer has deadlines
		_ = control.SetWriteDeadline(time.Now())
	})()
	e.registry.ServeHTTP(w, r)
}

// transferStall is how long a transfer of the registry may stand still.
const transferStall = 2 * time.Minute

// gathered is a body that gives as much as was asked for, or what came within a
// second. Caddy sets a deadline for each read, and of a body in chunks a read is
// no more than one of them, which most clients make of 32 KiB.
type gathered struct{ io.ReadCloser }

func (g gathered) Read(p []byte) (n int, err error) {
	began := time.Now()
	for {
		m, err := g.ReadCloser.Read(p[n:])
		if n += m; err != nil || n == len(p) || time.Since(began) > time.Second {
			return n, err
		}
	}
}

// scheme is the one by which the client reached the registry.
func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		return "https"
	}
	return "http"
}

// authorize implements registry.Config. Names are <project>/<service>[/more],
// and <project>/<host>/<path> for what comes from another registry.
func (e *Engine) authorize(ctx context.Context, subject, name string) (registry.Grant, error) {
	projectName, rest, ok := strings.Cut(name, "/")
	if !ok {
		return registry.Grant{Missing: "repositories are called <project>/<service>"}, nil
	}
	role, err := e.roles(ctx, subject)
	if err != nil {
		return registry.Grant{}, err
	}
	project, err := e.store.ProjectByName(ctx, projectName)
	if platform.KindOf(err) == platform.NotFound {
		if role("") == platform.RoleNone {
			return registry.Grant{}, nil // whether it exists is not for everybody to know
		}
		return registry.Grant{Missing: fmt.Sprintf("there is no project %q", projectName)}, nil
	}
	if err != nil {
		return registry.Grant{}, err
	}
	return e.grant(ctx, project, rest, role(project.ID))
}

// roles tells what the subject may do in a project; the super-admin's role in
// none at all is that of an admin.
func (e *Engine) roles(ctx context.Context, subject string) (func(platform.ID) platform.Role, error) {
	switch subject {
	case registry.Internal:
		return func(platform.ID) platform.Role { return platform.RoleAdmin }, nil
	case "":
		return func(platform.ID) platform.Role { return platform.RoleNone }, nil
	}
	roles, _, err := e.api.RegistryRoles(ctx, subject)
	return roles, err
}

// grant tells what a role in the project may do with the repository called
// rest below it.
func (e *Engine) grant(ctx context.Context, project platform.Project, rest string, role platform.Role) (registry.Grant, error) {
	if host, path, ok := platform.ParseCacheName(rest); ok {
		if role == platform.RoleNone {
			return registry.Grant{}, nil
		}
		return registry.Grant{
			Repo: registry.CachePrefix + string(project.ID) + "/" + rest, Pull: true,
			Upstream: &registry.Upstream{Host: host, Repository: path, Fetch: role.Covers(platform.RoleOperator)},
		}, nil
	}
	public := project.AnonymousPull
	if role == platform.RoleNone && !public {
		return registry.Grant{}, nil
	}
	serviceName, more, _ := strings.Cut(rest, "/")
	service, err := e.store.ServiceByName(ctx, project.ID, serviceName)
	if platform.KindOf(err) == platform.NotFound {
		return registry.Grant{Missing: fmt.Sprintf("there is no service %q in project %q: create it first", serviceName, project.Name)}, nil
	}
	if err != nil {
		return registry.Grant{}, err
	}
	key := platform.RepositoryKey(service.ID)
	if more != "" {
		key += "/" + more
	}
	write := role.Covers(platform.RoleOperator)
	return registry.Grant{Repo: key, Pull: true, Push: write, Delete: write}, nil
}

// pushed implements registry.Config: a push is the deploy.
func (e *Engine) pushed(ctx context.Context, p registry.Push) error {
	id, below, ok := platform.ParseRepositoryKey(p.Repo)
	if !ok || p.Subject == registry.Internal {
		return nil
	}
	service, err := e.store.Service(ctx, id)
	if platform.KindOf(err) == platform.NotFound {
		// Deleted while the push was on its way: what came after the
		// repositories were dropped goes too.
		return e.registry.Drop(ctx, platform.RepositoryKey(id))
	}
	if err != nil {
		return fmt.Errorf("looking for the service pushed to: %w", err)
	}
	if err := e.api.AuditRegistry(ctx, p.Subject, "PUT /v2/{name}/manifests/{reference}", http.StatusCreated, service.ProjectID, id); err != nil {
		return fmt.Errorf("recording the push: %w", err)
	}
	if below != "" {
		return nil
	}
	role, actor, err := e.api.RegistryRoles(ctx, p.Subject)
	if err != nil {
		return fmt.Errorf("finding out who pushed: %w", err)
	}
	if !role(service.ProjectID).Covers(platform.RoleOperator) {
		return nil // not any more
	}
	_, _, err = e.plane.Push(ctx, control.PushEvent{Service: id, Tag: p.Tag, Digest: p.Digest.String(), Actor: actor})
	if platform.KindOf(err) == platform.NotFound {
		return e.registry.Drop(ctx, platform.RepositoryKey(id))
	}
	return err
}

// deleted implements registry.Config.
func (e *Engine) deleted(ctx context.Context, d registry.Deletion) error {
	id, _, ok := platform.ParseRepositoryKey(d.Repo)
	if !ok || d.Subject == registry.Internal {
		return nil
	}
	service, err := e.store.Service(ctx, id)
	if platform.KindOf(err) == platform.NotFound {
		return nil
	}
	if err == nil {
		err = e.api.AuditRegistry(ctx, d.Subject, "DELETE /v2/{name}/"+d.Kind+"/{reference}", http.StatusAccepted, service.ProjectID, id)
	}
	if err != nil {
		return fmt.Errorf("recording a deletion: %w", err)
	}
	return nil
}

// reserved implements registry.Config: copies of releases are Denia's.
func reserved(tag string) bool {
	_, release := platform.ParseReleaseTag(tag)
	return release
}

// keep implements registry.Config: releases that can be rolled back to stay.
func (e *Engine) keep(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	service, below, ok := platform.ParseRepositoryKey(repo)
	if !ok || below != "" {
		return false, nil
	}
	return e.plane.Keep(ctx, service, d.String())
}

// hosted is the registry as the control plane sees it.
type hosted struct{ e *Engine }

// Address is empty for an engine elsewhere: its loopback is another one.
func (h hosted) Address() string {
	if !h.e.docker.OnThisMachine() {
		return ""
	}
	return h.e.loopback.Addr().String()
}

func (h hosted) Credentials(name, actions string, ttl time.Duration) (username, password string) {
	return h.e.registry.Credentials(name, actions, ttl)
}

func (h hosted) Touch(ctx context.Context, service platform.ID, d string) (bool, error) {
	return h.e.registry.Touch(ctx, platform.RepositoryKey(service), digest.Digest(d))
}

func (h hosted) Holds(ctx context.Context, service platform.ID, d string) (bool, error) {
	return h.e.registry.Whole(ctx, platform.RepositoryKey(service), digest.Digest(d))
}

func (h hosted) Tagged(ctx context.Context, service platform.ID, tag string) (string, error) {
	m, _, err := h.e.store.Registry().TaggedManifest(ctx, platform.RepositoryKey(service), tag)
	return m.Digest.String(), err
}

func (h hosted) Tags(ctx context.Context, service platform.ID) (tags []string, err error) {
	const page = 500
	for last := ""; ; {
		list, _, err := h.e.store.Registry().Tags(ctx, platform.RepositoryKey(service), last, page)
		if err != nil {
			return nil, err
		}
		tags = append(tags, list...)
		if len(list) < page {
			return tags, nil
		}
		last = list[page-1]
	}
}

func (h hosted) Untag(ctx context.Context, service platform.ID, tag string) error {
	return h.e.registry.Untag(ctx, platform.RepositoryKey(service), tag)
}

func (h hosted) MakeRoom(bytes int64) { h.e.registry.MakeRoom(bytes) }

func (h hosted) Drop(ctx context.Context, service platform.ID) error {
	return h.e.registry.Drop(ctx, platform.RepositoryKey(service))
}
