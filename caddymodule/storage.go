package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func init() { caddy.RegisterModule(new(Storage)) }

// Storage is `caddy.storage.denia`: certificates, their keys, ACME accounts and
// challenges stand in Denia's database, sealed with the node's key, so that
// every node with that database and that key shares them.
type Storage struct{ app *App }

// CaddyModule returns the module's id and constructor.
func (*Storage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.denia", New: func() caddy.Module { return new(Storage) }}
}

// UnmarshalCaddyfile reads `storage denia`; there is nothing to configure.
func (*Storage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(0) {
		return d.Err("storage denia takes no block; the database is an option of denia")
	}
	return nil
}

// Provision finds the app.
func (s *Storage) Provision(ctx caddy.Context) error {
	module, err := ctx.AppIfConfigured("denia")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return errors.New("storage denia needs the global option denia beside it, and is open to `denia run` alone")
	}
	if err != nil {
		return fmt.Errorf("loading the app denia: %w", err)
	}
	s.app = module.(*App)
	return nil
}

// CertMagicStorage implements caddy.StorageConverter.
func (s *Storage) CertMagicStorage() (certmagic.Storage, error) {
	return &certificateStorage{app: s.app}, nil
}

const (
	storageTimeout = 5 * time.Second
	storagePause   = 2 * time.Second
)

// certificateStorage is certmagic's storage over the vault. When the database
// cannot be reached, it fails at once for a moment, without trying: a handshake
// asks it several times before it makes do with the certificate in memory.
type certificateStorage struct {
	app  *App
	down atomic.Pointer[outage]
}

type outage struct {
	since time.Time
	err   error
}

// access is what an operation does in the database.
type access int

const (
	reading access = iota
	writing
)

// do runs one operation on the vault. That one of them cannot write says nothing
// about the others: reads go on while the disk is full or another process keeps
// the database busy.
func (s *certificateStorage) do(ctx context.Context, a access, operation func(context.Context, *vault) error) error {
	if down := s.down.Load(); down != nil && time.Since(down.since) < storagePause {
		return down.err
	}
	v, err := s.app.vault(ctx)
	if err != nil {
		return fmt.Errorf("opening Denia's certificate storage: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	err = operation(bounded, v)
	switch {
	case err == nil:
	case platform.KindOf(err) == platform.NotFound:
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case platform.CodeOf(err) == "database_unavailable", a == reading && bounded.Err() != nil && ctx.Err() == nil:
		s.down.Store(&outage{time.Now(), err})
	}
	return err
}

// Store implements certmagic.Storage.
func (s *certificateStorage) Store(ctx context.Context, key string, value []byte) error {
	return s.do(ctx, writing, func(ctx context.Context, v *vault) error {
		return v.store.PutCertificateFile(ctx, cleanKey(key), value)
	})
}

// Load implements certmagic.Storage.
func (s *certificateStorage) Load(ctx context.Context, key string) (value []byte, err error) {
	err = s.do(ctx, reading, func(ctx context.Context, v *vault) (err error) {
		value, err = v.store.CertificateContent(ctx, cleanKey(key))
		return err
	})
	return value, err
}

// Delete implements certmagic.Storage.
func (s *certificateStorage) Delete(ctx context.Context, key string) error {
	return s.do(ctx, writing, func(ctx context.Context, v *vault) error { return v.store.DeleteCertificateFiles(ctx, cleanKey(key)) })
}

// Exists implements certmagic.Storage.
func (s *certificateStorage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List implements certmagic.Storage.
func (s *certificateStorage) List(ctx context.Context, path string, recursive bool) (keys []string, err error) {
	err = s.do(ctx, reading, func(ctx context.Context, v *vault) (err error) {
		keys, err = v.store.CertificateKeys(ctx, cleanKey(path), recursive)
		return err
	})
	return keys, err
}

// Stat implements certmagic.Storage.
func (s *certificateStorage) Stat(ctx context.Context, key string) (info certmagic.KeyInfo, err error) {
	var file store.CertificateFile
	err = s.do(ctx, reading, func(ctx context.Context, v *vault) (err error) {
		file, err = v.store.CertificateFile(ctx, cleanKey(key))
		return err
	})
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key, Modified: file.Modified, Size: file.Size, IsTerminal: !file.Directory}, nil
}

// Lock implements certmagic.Locker.
func (s *certificateStorage) Lock(ctx context.Context, name string) error {
	v, err := s.app.vault(ctx)
	if err != nil {
		return err
	}
	_, err = v.locks.take(ctx, name, true)
	return err
}

// TryLock implements certmagic.TryLocker.
func (s *certificateStorage) TryLock(ctx context.Context, name string) (taken bool, err error) {
	err = s.do(ctx, writing, func(ctx context.Context, v *vault) (err error) {
		taken, err = v.locks.take(ctx, name, false)
		return err
	})
	return taken, err
}

// Unlock implements certmagic.Locker.
func (s *certificateStorage) Unlock(ctx context.Context, name string) error {
	v, err := s.app.vault(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return v.locks.release(ctx, name)
}

// RenewLockLease implements certmagic.LockLeaseRenewer. Locks are kept for as
// long as they are held, so it only stops who has lost one.
func (s *certificateStorage) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	return s.do(ctx, writing, func(ctx context.Context, v *vault) error { return v.locks.renew(ctx, name) })
}

// String names the storage in Caddy's log.
func (*certificateStorage) String() string { return "Denia's database" }

func cleanKey(key string) string { return strings.Trim(key, "/") }

// Interface guards
var (
	_ caddy.Provisioner          = (*Storage)(nil)
	_ caddy.StorageConverter     = (*Storage)(nil)
	_ caddyfile.Unmarshaler      = (*Storage)(nil)
	_ certmagic.Storage          = (*certificateStorage)(nil)
	_ certmagic.TryLocker        = (*certificateStorage)(nil)
	_ certmagic.LockLeaseRenewer = (*certificateStorage)(nil)
)
