package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the schema up to date, each version in a transaction of its
// own together with the row that records it.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, log *slog.Logger) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	provider, err := goose.NewProvider(dialect, db, files,
		goose.WithTableName("schema_version"), // the name goose gives may be taken in a shared database
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	have, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	for {
		if have > known {
			return fmt.Errorf("the database has schema version %d, but this Denia knows only up to version %d: it was written by a newer Denia; start that version again, or restore the backup made before the upgrade", have, known)
		}
		if have == known {
			return nil
		}
		log.InfoContext(ctx, "migrating the database", "from", have, "to", known)
		if _, err = provider.Up(ctx); err == nil {
			return nil
		}
		// Another process may have migrated between our look and our step;
		// SQLite has no lock to hold across both. Then there is progress that
		// is not ours, and what remains is tried again.
		before := have
		if have, _, _ = provider.GetVersions(ctx); have <= before {
			return fmt.Errorf("migrating the schema from version %d to %d; nothing of the failed step was kept: %w", before, known, err)
		}
	}
}
