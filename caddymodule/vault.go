package caddymodule

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/denia-paas/denia/platform/secret"
	"github.com/denia-paas/denia/platform/store"
)

// vaults holds the process's vaults by data directory.
var vaults = caddy.NewUsagePool()

// vault is what an Engine keeps its things in: the data directory, the sealing
// key and the database. It is apart from the Engine because certificates stored
// in the database are asked for before any app has started: Caddy's internal
// authority reads its keys while a configuration is provisioned.
type vault struct {
	log   *relay
	lock  *os.File // of the data directory
	node  string   // the node's name
	store *store.Store
	locks *certificateLocks
}

// openVault opens the vault of a data directory, or takes a further reference
// to it. Each is given back with closeVault.
func openVault(ctx context.Context, s settings, log *slog.Logger) (*vault, error) {
	value, _, err := vaults.LoadOrNew(s.dataDir, func() (caddy.Destructor, error) {
		return newVault(ctx, s, log)
	})
	if err != nil {
		return nil, err
	}
	return value.(*vault), nil
}

func closeVault(s settings) error {
	_, err := vaults.Delete(s.dataDir)
	return err
}

func newVault(ctx context.Context, s settings, log *slog.Logger) (_ *vault, err error) {
	v := &vault{log: newRelay(log)}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Destruct())
		}
	}()
	if err := os.MkdirAll(s.dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("making data_dir: %w", err)
	}
	if v.lock, err = lockDir(s.dataDir); err != nil {
		return nil, err
	}
	key, err := secret.LoadOrCreate(filepath.Join(s.dataDir, "keys", "age.key"))
	if err != nil {
		return nil, fmt.Errorf("loading the sealing key: %w", err)
	}
	v.node, err = loadOrCreate(filepath.Join(s.dataDir, "node"), func() string { return string(store.NewID()) })
	if err != nil {
		return nil, fmt.Errorf("loading the node's name: %w", err)
	}
	dsn := s.database
	if dsn == "sqlite" {
		dsn = "sqlite:" + filepath.Join(s.dataDir, "denia.db")
	}
	logger := slog.New(v.log)
	if v.store, err = store.Open(ctx, dsn, store.Options{Log: logger, Seal: key.Seal, Unseal: key.Unseal}); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	v.locks = newCertificateLocks(v.store, v.node, rand.Text(), logger)
	return v, nil
}

// Destruct implements caddy.Destructor.
func (v *vault) Destruct() error {
	var errs []error
	if v.locks != nil {
		v.locks.close()
	}
	if v.store != nil {
		errs = append(errs, v.store.Close())
	}
	if v.lock != nil {
		errs = append(errs, v.lock.Close())
	}
	return errors.Join(errs...)
}

// earlyVault is a reference to the vault that is held until the app has
// started. Its zero value holds none.
type earlyVault struct {
	mu       sync.Mutex
	settings settings
	vault    *vault
	over     bool
}

// release gives the reference back; there is none any more from then on.
func (e *earlyVault) release() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	if e.vault == nil {
		return nil
	}
	e.vault = nil
	return closeVault(e.settings)
}

// vault returns the vault of this configuration's data directory, and opens it
// if the app has not started.
func (a *App) vault(ctx context.Context) (*vault, error) {
	if engine := a.engine.Load(); engine != nil {
		return engine.vault, nil
	}
	e := &a.early
	e.mu.Lock()
	defer e.mu.Unlock()
	if engine := a.engine.Load(); engine != nil {
		return engine.vault, nil
	}
	if e.over {
		return nil, errors.New("this configuration is not in use any more")
	}
	if e.vault == nil {
		key, err := filepath.Abs(a.DataDir)
		if err != nil {
			return nil, fmt.Errorf("resolving data_dir: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		e.settings = a.settings(key)
		if e.vault, err = openVault(ctx, e.settings, a.ctx.Slogger()); err != nil {
			return nil, err
		}
	}
	return e.vault, nil
}
