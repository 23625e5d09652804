package store

import (
	"context"
	"time"

	"github.com/denia-paas/denia/platform"
)

// DomainRef is what routing and challenges need to know of a domain.
type DomainRef struct {
	ID        platform.ID
	ServiceID platform.ID
	Hostname  string
	Token     string
	Verified  bool
}

// CreateDomain records a service's claim to a host name, pending, under the
// token. Other services' claims to it, verified or not, do not stand in its
// way. NotFound when there is no such service; Conflict "domain_exists" when
// the service claims the host name already, "too_many_domains" when it has most
// of them.
func (s *Store) CreateDomain(ctx context.Context, service platform.ID, hostname, token string, most int) (d platform.Domain, err error) {
	defer explain(&err, "attaching %s to service %s", hostname, service)
	err = s.write(ctx, func(tx tx) error {
		if found, err := exists(ctx, tx, `SELECT 1 FROM services WHERE id = $1`, service); err != nil {
			return err
		} else if !found {
			return noService(service)
		}
		claimed, err := all(ctx, tx, scanString, `SELECT hostname FROM domains WHERE service_id = $1`, service)
		if err != nil {
			return err
		}
		for _, other := range claimed {
			if other == hostname {
				return platform.Errorf(platform.Conflict, "domain_exists", "%s is attached to this service already", hostname)
			}
		}
		if len(claimed) >= most {
			return platform.Errorf(platform.Conflict, "too_many_domains", "a service can have %d domains: detach one first", most)
		}
		d = platform.Domain{ID: NewID(), ServiceID: service, Hostname: hostname, Token: token, Status: platform.DomainPending, CreatedAt: tx.now}
		_, err = tx.exec(ctx, `INSERT INTO domains (id, service_id, hostname, token, status, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
			d.ID, d.ServiceID, d.Hostname, d.Token, string(d.Status), d.CreatedAt)
		return err
	})
	return d, err
}

// Domain returns a service's domain; NotFound when it is another service's.
func (s *Store) Domain(ctx context.Context, service, id platform.ID) (d platform.Domain, err error) {
	defer explain(&err, "reading domain %s", id)
	return mustDomain(ctx, s.read(), service, id)
}

// Domains lists a service's domains by host name, and returns the cursor of
// the next page.
func (s *Store) Domains(ctx context.Context, service platform.ID, page Page) (list []platform.Domain, next string, err error) {
	defer explain(&err, "listing the domains of service %s", service)
	after, err := page.position("domains", 1)
	if err != nil {
		return nil, "", err
	}
	var q builder
	q.add(selectDomains+` WHERE service_id = ?`, service)
	if after != nil {
		q.add(` AND hostname > ?`, after[0])
	}
	q.add(` ORDER BY hostname LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), scanDomain, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "domains", list, func(d platform.Domain) []string { return []string{d.Hostname} })
	return list, next, nil
}

// AllDomains lists every claim of every service, in no order.
func (s *Store) AllDomains(ctx context.Context) (list []DomainRef, err error) {
	defer explain(&err, "listing all domains")
	return all(ctx, s.read(), func(r row) (d DomainRef, err error) {
		var status string
		err = r.Scan(&d.ID, &d.ServiceID, &d.Hostname, &d.Token, &status)
		d.Verified = status == string(platform.DomainVerified)
		return d, err
	}, `SELECT id, service_id, hostname, token, status FROM domains`)
}

// DueDomains lists at most limit verified domains whose next check is due at
// now, the longest due first, and then those whose next check is after latest:
// the clock that said so was wrong.
func (s *Store) DueDomains(ctx context.Context, now, latest time.Time, limit int) (list []platform.Domain, err error) {
	defer explain(&err, "listing the domains to check")
	// Asked for both at once, SQLite reads the whole index.
	const verified = selectDomains + ` WHERE status = 'verified'`
	list, err = all(ctx, s.read(), scanDomain, verified+` AND next_check_at <= $1 ORDER BY next_check_at LIMIT $2`, now, limit)
	if err != nil || len(list) == limit {
		return list, err
	}
	ahead, err := all(ctx, s.read(), scanDomain, verified+` AND next_check_at > $1 ORDER BY next_check_at LIMIT $2`, latest, limit-len(list))
	return append(list, ahead...), err
}

// JudgeDomain records what a check of the domain found, as
// platform.Domain.Judge decides, together with what that means for the rivals.
// It returns the domain as it now is and those that lost their host name to it.
// NotFound when the domain is gone.
func (s *Store) JudgeDomain(ctx context.Context, id platform.ID, check platform.DomainCheck) (d platform.Domain, lost []platform.Domain, err error) {
	defer explain(&err, "recording a check of domain %s", id)
	check.At = check.At.UTC().Truncate(time.Millisecond)
	err = s.write(ctx, func(tx tx) error {
		before, found, err := one(ctx, tx, scanDomain, selectDomains+` WHERE id = $1`, id)
		if err != nil {
			return err
		}
		if !found {
			return noDomain(id)
		}
		project, _, err := one(ctx, tx, scanID, `SELECT project_id FROM services WHERE id = $1`, before.ServiceID)
		if err != nil {
			return err
		}
		rivals, err := rivalsOf(ctx, tx, before.Hostname)
		if err != nil {
			return err
		}
		d, lost = before.Judge(check, project, rivals)
		// Losers go first: there is one verified row for a host name at a time.
		for _, loser := range lost {
			if err := saveDomain(ctx, tx, loser); err != nil {
				return err
			}
		}
		return saveDomain(ctx, tx, d)
	})
	return d, lost, err
}

// DeleteDomain removes a service's domain and returns what it was.
func (s *Store) DeleteDomain(ctx context.Context, service, id platform.ID) (d platform.Domain, err error) {
	defer explain(&err, "deleting domain %s", id)
	err = s.write(ctx, func(tx tx) error {
		if d, err = mustDomain(ctx, tx, service, id); err != nil {
			return err
		}
		_, err := tx.exec(ctx, `DELETE FROM domains WHERE id = $1`, id)
		return err
	})
	return d, err
}

const (
	domainColumns = `id, service_id, hostname, token, status, error, verified_at, last_check_at, proven_at, disproven_since, next_check_at, created_at`
	selectDomains = `SELECT ` + domainColumns + ` FROM domains`
)

func scanDomain(r row) (d platform.Domain, err error) {
	var status string
	err = r.Scan(&d.ID, &d.ServiceID, &d.Hostname, &d.Token, &status, intoJSON(&d.LastError), intoOptionalTime(&d.VerifiedAt),
		intoOptionalTime(&d.LastCheckAt), intoOptionalTime(&d.ProvenAt), intoOptionalTime(&d.DisprovenSince),
		intoOptionalTime(&d.NextCheckAt), intoTime(&d.CreatedAt))
	d.Status = platform.DomainStatus(status)
	return d, err
}

func saveDomain(ctx context.Context, tx tx, d platform.Domain) error {
	failure, err := asJSON(d.LastError)
	if err != nil {
		return err
	}
	_, err = tx.exec(ctx, `UPDATE domains SET status = $1, error = $2, verified_at = $3, last_check_at = $4, proven_at = $5,
		disproven_since = $6, next_check_at = $7 WHERE id = $8`,
		string(d.Status), failure, d.VerifiedAt, d.LastCheckAt, d.ProvenAt, d.DisprovenSince, d.NextCheckAt, d.ID)
	return err
}

// rivalsOf lists the verified claims to a host name and to those above it.
func rivalsOf(ctx context.Context, tx tx, hostname string) ([]platform.Rival, error) {
	var q builder
	q.add(`SELECT d.id, d.service_id, d.hostname, d.token, d.created_at, v.project_id FROM domains d
		JOIN services v ON v.id = d.service_id WHERE d.status = 'verified' AND d.hostname IN (?`, hostname)
	for _, above := range platform.Ancestors(hostname) {
		q.add(`, ?`, above)
	}
	q.add(`)`)
	return all(ctx, tx, func(r row) (v platform.Rival, err error) {
		v.Status = platform.DomainVerified
		err = r.Scan(&v.ID, &v.ServiceID, &v.Hostname, &v.Token, intoTime(&v.CreatedAt), &v.ProjectID)
		return v, err
	}, q.text.String(), q.args...)
}

func mustDomain(ctx context.Context, tx tx, service, id platform.ID) (platform.Domain, error) {
	d, found, err := one(ctx, tx, scanDomain, selectDomains+` WHERE id = $1 AND service_id = $2`, id, service)
	if err == nil && !found {
		err = noDomain(id)
	}
	return d, err
}

func noDomain(id platform.ID) error { return platform.NotFoundf("there is no domain %s", id) }
