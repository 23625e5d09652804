package store

import (
	"context"
	"database/sql"
)

const (
	// preparedAfter is how many transactions run a text before it is prepared:
	// one that depends on what is asked for may never come again.
	preparedAfter = 2

	maxPrepared = 128
)

// prepared keeps the statements of SQLite's transactions, as statements does
// for what is read. Whoever has the Store's turn may use it.
type prepared struct {
	db   *sql.DB
	kept map[string]*sql.Stmt // live as long as the database
	seen map[string]int       // texts not kept
}

func newPrepared(db *sql.DB) *prepared {
	return &prepared{db: db, kept: map[string]*sql.Stmt{}, seen: map[string]int{}}
}

// preparedTx is a transaction that runs what is prepared.
type preparedTx struct {
	*sql.Tx
	p *prepared
}

// ExecContext is that of a tx.
func (t preparedTx) ExecContext(ctx context.Context, text string, args ...any) (sql.Result, error) {
	if stmt := t.p.find(text); stmt != nil {
		return t.StmtContext(ctx, stmt).ExecContext(ctx, args...) //nolint:sqlclosecheck // ends with the transaction
	}
	return t.Tx.ExecContext(ctx, text, args...)
}

// QueryContext is that of a tx.
func (t preparedTx) QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	if stmt := t.p.find(text); stmt != nil {
		return t.StmtContext(ctx, stmt).QueryContext(ctx, args...) //nolint:sqlclosecheck // ends with the transaction
	}
	return t.Tx.QueryContext(ctx, text, args...)
}

func (p *prepared) find(text string) *sql.Stmt {
	stmt := p.kept[text]
	if stmt == nil && len(p.kept) < maxPrepared {
		if len(p.seen) > maxPrepared {
			clear(p.seen)
		}
		p.seen[text]++
	}
	return stmt
}

// grow prepares what was seen often enough. No transaction must be open: the
// connection that writes is the only one.
func (p *prepared) grow(ctx context.Context) {
	for text, times := range p.seen {
		if times < preparedAfter || len(p.kept) >= maxPrepared {
			continue
		}
		delete(p.seen, text)
		// One that cannot be prepared now is run as it is.
		if stmt, err := p.db.PrepareContext(ctx, text); err == nil { //nolint:sqlclosecheck // it is kept
			p.kept[text] = stmt
		}
	}
}
