package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/denia-paas/denia/platform"
)

// IdempotencyTTL is how long a key answers the first reply again.
const IdempotencyTTL = 24 * time.Hour

// StoredReply is the reply to the first request with an idempotency key.
type StoredReply struct {
	Status int
	Header map[string]string
	Body   []byte
}

// ReserveIdempotency takes a key for a request with that body. scope keeps the
// keys of different callers and operations apart.
//
// Without a reply and an error the key is the caller's: it does the work, then
// calls FinishIdempotency, or ReleaseIdempotency when the work failed. With a
// reply the work was done already. Invalid "idempotency_key_reused" when the
// key came with another body, Conflict "idempotency_in_flight" while the first
// request is not answered; of concurrent calls one gets the key. Open releases
// the keys that a dead process held.
func (s *Store) ReserveIdempotency(ctx context.Context, scope, key string, bodyHash []byte, now time.Time) (reply *StoredReply, err error) {
	defer explain(&err, "reserving an idempotency key")
	id := idempotencyID(scope, key)
	if bodyHash == nil {
		bodyHash = []byte{} // a nil slice would be NULL
	}
	err = s.write(ctx, func(tx tx) error {
		type entry struct {
			bodyHash []byte
			reply    *StoredReply
		}
		stored, found, err := one(ctx, tx, func(r row) (e entry, err error) {
			return e, r.Scan(&e.bodyHash, s.intoSealed(&e.reply))
		}, `SELECT body_hash, reply FROM idempotency WHERE id = $1 AND created_at > $2`, id, now.Add(-IdempotencyTTL))
		switch {
		case err != nil:
			return err
		case !found:
			_, err := tx.exec(ctx, `INSERT INTO idempotency (id, body_hash, created_at) VALUES ($1, $2, $3)
				ON CONFLICT (id) DO UPDATE SET body_hash = excluded.body_hash, reply = NULL, created_at = excluded.created_at`, id, bodyHash, now)
			return err
		case !bytes.Equal(stored.bodyHash, bodyHash):
			return platform.Errorf(platform.Invalid, "idempotency_key_reused", "this Idempotency-Key was used with another body: use a fresh key for each new request")
		case stored.reply == nil:
			return platform.Errorf(platform.Conflict, "idempotency_in_flight", "the first request with this Idempotency-Key is still being worked on: try again later")
		}
		reply = stored.reply
		return nil
	})
	if err != nil {
		reply = nil
	}
	return reply, err
}

// FinishIdempotency keeps the reply to the request that holds the key. It is
// sealed, since a reply may show a secret for the only time.
func (s *Store) FinishIdempotency(ctx context.Context, scope, key string, reply StoredReply) (err error) {
	defer explain(&err, "keeping the reply to an idempotency key")
	doc, err := s.sealJSON(reply)
	if err != nil {
		return err
	}
	_, err = s.single().exec(ctx, `UPDATE idempotency SET reply = $1 WHERE id = $2`, doc, idempotencyID(scope, key))
	return err
}

// ReleaseIdempotency gives a key back whose request has failed. A key that was
// answered is kept.
func (s *Store) ReleaseIdempotency(ctx context.Context, scope, key string) (err error) {
	defer explain(&err, "releasing an idempotency key")
	_, err = s.single().exec(ctx, `DELETE FROM idempotency WHERE id = $1 AND reply IS NULL`, idempotencyID(scope, key))
	return err
}

// TrimIdempotency forgets the keys from before a time.
func (s *Store) TrimIdempotency(ctx context.Context, before time.Time) (err error) {
	defer explain(&err, "trimming idempotency keys")
	_, err = s.single().exec(ctx, `DELETE FROM idempotency WHERE created_at < $1`, before)
	return err
}

// idempotencyID is of one size however long a client's key is.
func idempotencyID(scope, key string) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(scope), scope, key))
	return sum[:]
}
