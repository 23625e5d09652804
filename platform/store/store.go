// Package store keeps Denia's rows in SQLite or PostgreSQL, behind one concrete
// Store and one SQL text.
//
// Writes that belong together happen in one transaction, and writing
// transactions run one after another on both databases, so that a rule which
// spans rows ("never the last admin") is checked and applied without a gap.
// Reads never wait for writes.
//
// Every method may be called concurrently, gives up when its context ends, and
// then has either done all of its work or none. Errors that somebody can
// decide on are *platform.Error: NotFound for a row that is not there,
// Conflict, Precondition and Invalid with the codes named at the method,
// Unavailable when the database cannot be reached or its disk is full.
// Everything else is internal.
//
// Times are UTC with millisecond precision. Maps and lists come back nil when
// they are empty. Secrets are sealed before they reach the database and plain
// in what the methods return.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/denia-paas/denia/platform"
)

// Options configure Open. All fields are required.
type Options struct {
	Log *slog.Logger

	// Seal encrypts what must not be readable in the database file, Unseal
	// reverses it. Both must be safe for concurrent use. A database opened
	// with another key opens, but reading a row with secrets fails.
	Seal, Unseal func([]byte) ([]byte, error)
}

// Store is an open database.
type Store struct {
	log          *slog.Logger
	reads        *sql.DB
	writes       *sql.DB
	turn         chan struct{} // holds a token while a transaction writes: waiting takes no connection from readers
	prepared     *prepared     // statements of SQLite's transactions; nil: the driver keeps them
	exclusive    string        // statement that also keeps other processes from writing; empty when Begin does
	release      func()        // frees what the two handles do not own
	instance     string
	seal, unseal func([]byte) ([]byte, error)
	registry     *Registry
}

// Open opens the database named by dsn, "sqlite:<path>" or
// "postgres://user:password@host/database", creates or migrates its schema,
// and makes sure that the project "default" exists. Several processes may open
// one PostgreSQL database at a time; the first migrates, the others wait.
//
// A migration either happens as a whole or not at all. Open fails when the
// schema is newer than this program knows; it then has changed nothing.
// No error names the password in dsn.
func Open(ctx context.Context, dsn string, o Options) (*Store, error) {
	if o.Log == nil || o.Seal == nil || o.Unseal == nil {
		return nil, errors.New("opening database: Options.Log, Seal and Unseal are required")
	}
	s := &Store{log: o.Log, turn: make(chan struct{}, 1), seal: o.Seal, unseal: o.Unseal, release: func() {}}
	var err error
	switch path, isSQLite := strings.CutPrefix(dsn, "sqlite:"); {
	case isSQLite && path != "":
		err = s.openSQLite(ctx, path)
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		err = s.openPostgres(ctx, dsn)
	default:
		err = errors.New("the data source must be sqlite:<path> or postgres://user:password@host/database")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening database: %w", err), s.Close())
	}
	s.registry = newRegistry(s)
	return s, nil
}

// Close waits for running queries and closes the database. The Store cannot be
// used afterwards; closing it again does nothing.
func (s *Store) Close() error {
	var errs []error
	// SQLite folds its write-ahead log into the file when the last connection
	// closes, and only a writer can.
	if s.reads != nil && s.reads != s.writes {
		errs = append(errs, s.reads.Close())
	}
	if s.writes != nil {
		errs = append(errs, s.writes.Close())
	}
	s.release()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing database: %w", err)
	}
	return nil
}

// NewID makes an id. Ids made later by one process sort after earlier ones.
func NewID() platform.ID { return platform.ID(uuid.Must(uuid.NewV7()).String()) }

// InstanceID names this database for ever: what Denia made outside of it, such
// as containers, carries this id, so that two installations on one engine
// never touch each other's things.
func (s *Store) InstanceID() string { return s.instance }

// Shared tells whether other nodes may work on this database: one in a file has
// a single process.
func (s *Store) Shared() bool { return s.exclusive != "" }

// prepare writes the rows that every database has, and removes what a process
// that died has left.
func (s *Store) prepare(ctx context.Context) error {
	return s.write(ctx, func(tx tx) error {
		if _, err := tx.exec(ctx, `INSERT INTO meta (key, value) VALUES ('instance_id', $1) ON CONFLICT (key) DO NOTHING`, NewID()); err != nil {
			return fmt.Errorf("naming the instance: %w", err)
		}
		instance, _, err := one(ctx, tx, scanString, `SELECT value FROM meta WHERE key = 'instance_id'`)
		if err != nil {
			return fmt.Errorf("reading the instance id: %w", err)
		}
		s.instance = instance
		spec := platform.ProjectSpec{Name: platform.DefaultProject}
		if _, found, err := s.findProject(ctx, tx, "name = $1", spec.Name); err != nil {
			return err
		} else if !found {
			if _, err := s.insertProject(ctx, tx, spec); err != nil {
				return err
			}
		}
		if err := fillTLS(ctx, tx); err != nil {
			return fmt.Errorf("completing the services: %w", err)
		}
		// A request in flight has died with its process, and its client may
		// repeat it now.
		if _, err := tx.exec(ctx, `DELETE FROM idempotency WHERE reply IS NULL`); err != nil {
			return fmt.Errorf("releasing idempotency keys: %w", err)
		}
		return nil
	})
}

// now is the time as the database keeps it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
