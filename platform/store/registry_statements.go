package store

import (
	"context"
	"database/sql"
	"sync"
)

// maxStatements bounds how many statements are kept prepared; there are fewer,
// unless a query's text depends on what is asked for.
const maxStatements = 64

// statements runs queries as its database does, but keeps them prepared: for a
// lookup in SQLite, reading the text takes longer than looking up.
type statements struct {
	*sql.DB
	mu   sync.Mutex
	kept map[string]*sql.Stmt // live as long as the database
}

// QueryContext is that of a tx.
func (s *statements) QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	stmt, err := s.prepare(ctx, text) //nolint:sqlclosecheck // it is kept
	if err != nil {
		return nil, err
	}
	if stmt == nil {
		return s.DB.QueryContext(ctx, text, args...)
	}
	return stmt.QueryContext(ctx, args...)
}

// prepare returns nil when enough statements are kept.
func (s *statements) prepare(ctx context.Context, text string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stmt := s.kept[text]
	if stmt != nil || len(s.kept) >= maxStatements {
		return stmt, nil
	}
	stmt, err := s.PrepareContext(ctx, text) //nolint:sqlclosecheck // it is kept
	if err == nil {
		s.kept[text] = stmt
	}
	return stmt, err
}
