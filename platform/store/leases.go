package store

import (
	"context"
	"time"
)

// AcquireLease takes or renews the lease of that name for holder, until now
// plus ttl, and tells whether holder has it. It fails to take one that another
// holder has and that has not ended at now; of concurrent calls one wins.
func (s *Store) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration, now time.Time) (held bool, err error) {
	defer explain(&err, "acquiring the lease %q", name)
	return exists(ctx, s.single(), `INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
		WHERE leases.holder = excluded.holder OR leases.expires_at <= $4
		RETURNING name`, name, holder, now.Add(ttl), now)
}

// ReleaseLease ends a lease if holder has it.
func (s *Store) ReleaseLease(ctx context.Context, name, holder string) (err error) {
	defer explain(&err, "releasing the lease %q", name)
	_, err = s.single().exec(ctx, `DELETE FROM leases WHERE name = $1 AND holder = $2`, name, holder)
	return err
}
