package store

import (
	"context"
	"errors"
	"time"

	"github.com/denia-paas/denia/platform"
)

// CreateToken keeps a token, with a new id unless it has one. NotFound when
// its user or project do not exist.
func (s *Store) CreateToken(ctx context.Context, token platform.Token) (t platform.Token, err error) {
	defer explain(&err, "creating a token for user %s", token.UserID)
	if len(token.Hash) == 0 {
		return t, errors.New("it has no hash")
	}
	if token.ID == "" {
		token.ID = NewID()
	}
	err = s.write(ctx, func(tx tx) error {
		if _, err := mustUser(ctx, tx, token.UserID); err != nil {
			return err
		}
		if token.ProjectID != "" {
			if _, err := s.mustProject(ctx, tx, token.ProjectID); err != nil {
				return err
			}
		}
		if token.CreatedAt.IsZero() {
			token.CreatedAt = tx.now
		}
		if _, err := tx.exec(ctx, `INSERT INTO tokens (`+tokenColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			token.ID, token.UserID, token.Kind, token.Name, token.Hash, optional(token.ProjectID), token.Role,
			token.CreatedAt, token.ExpiresAt, token.LastUsedAt); err != nil {
			return err
		}
		t, err = mustToken(ctx, tx, token.ID)
		return err
	})
	return t, err
}

// TokenByHash returns the token whose secret has that SHA-256. It may have
// expired: that is the caller's to judge.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (t platform.Token, err error) {
	defer explain(&err, "looking a token up")
	t, found, err := one(ctx, s.read(), scanToken, selectTokens+` WHERE hash = $1`, hash)
	if err == nil && !found {
		err = platform.NotFoundf("there is no such token")
	}
	return t, err
}

// Token returns the token with that id.
func (s *Store) Token(ctx context.Context, id platform.ID) (t platform.Token, err error) {
	defer explain(&err, "reading token %s", id)
	return mustToken(ctx, s.read(), id)
}

// TouchToken records when a token was used, and, unless expires is nil, when
// it now ends.
func (s *Store) TouchToken(ctx context.Context, id platform.ID, lastUsed time.Time, expires *time.Time) (err error) {
	defer explain(&err, "recording the use of token %s", id)
	n, err := s.single().exec(ctx, `UPDATE tokens SET last_used_at = $1, expires_at = COALESCE(CAST($2 AS BIGINT), expires_at) WHERE id = $3`,
		lastUsed, expires, id)
	if err == nil && n == 0 {
		err = platform.NotFoundf("there is no token %s", id)
	}
	return err
}

// Tokens lists a user's tokens of a kind, of all kinds for "", newest first,
// and returns the cursor of the next page.
func (s *Store) Tokens(ctx context.Context, user platform.ID, kind string, page Page) (list []platform.Token, next string, err error) {
	defer explain(&err, "listing the tokens of user %s", user)
	after, err := page.position("tokens", 2)
	if err != nil {
		return nil, "", err
	}
	var q builder
	q.add(selectTokens+` WHERE user_id = ?`, user)
	if kind != "" {
		q.add(` AND kind = ?`, kind)
	}
	if after != nil {
		at, err := number(after[0])
		if err != nil {
			return nil, "", err
		}
		q.add(` AND (created_at, id) < (?, ?)`, at, after[1])
	}
	q.add(` ORDER BY created_at DESC, id DESC LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), scanToken, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "tokens", list, func(t platform.Token) []string { return []string{timeKey(t.CreatedAt), string(t.ID)} })
	return list, next, nil
}

// DeleteToken revokes a token.
func (s *Store) DeleteToken(ctx context.Context, id platform.ID) (err error) {
	defer explain(&err, "deleting token %s", id)
	n, err := s.single().exec(ctx, `DELETE FROM tokens WHERE id = $1`, id)
	if err == nil && n == 0 {
		err = platform.NotFoundf("there is no token %s", id)
	}
	return err
}

// DeleteTokensOf revokes a user's tokens of a kind, of all kinds for "", apart
// from the one named by except.
func (s *Store) DeleteTokensOf(ctx context.Context, user platform.ID, kind string, except platform.ID) (err error) {
	defer explain(&err, "deleting the tokens of user %s", user)
	var q builder
	q.add(`DELETE FROM tokens WHERE user_id = ? AND id <> ?`, user, except)
	if kind != "" {
		q.add(` AND kind = ?`, kind)
	}
	_, err = s.single().exec(ctx, q.text.String(), q.args...)
	return err
}

// DeleteExpiredTokens removes the tokens that ended at or before now.
func (s *Store) DeleteExpiredTokens(ctx context.Context, now time.Time) (err error) {
	defer explain(&err, "deleting expired tokens")
	_, err = s.single().exec(ctx, `DELETE FROM tokens WHERE expires_at <= $1`, now)
	return err
}

const (
	tokenColumns = `id, user_id, kind, name, hash, project_id, role, created_at, expires_at, last_used_at`
	selectTokens = `SELECT ` + tokenColumns + ` FROM tokens`
)

func scanToken(r row) (t platform.Token, err error) {
	err = r.Scan(&t.ID, &t.UserID, &t.Kind, &t.Name, &t.Hash, intoOptionalID(&t.ProjectID), &t.Role,
		intoTime(&t.CreatedAt), intoOptionalTime(&t.ExpiresAt), intoOptionalTime(&t.LastUsedAt))
	return t, err
}

func mustToken(ctx context.Context, tx tx, id platform.ID) (platform.Token, error) {
	t, found, err := one(ctx, tx, scanToken, selectTokens+` WHERE id = $1`, id)
	if err == nil && !found {
		err = platform.NotFoundf("there is no token %s", id)
	}
	return t, err
}
