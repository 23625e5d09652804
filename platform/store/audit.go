package store

import (
	"context"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

// AuditFilter says which entries a list may show: those of the projects named,
// or All, those of no project included.
type AuditFilter struct {
	Projects []platform.ID
	All      bool
}

// maxAuditText bounds what a stranger can make Denia keep per field, such as
// the name in a failed login.
const maxAuditText = 1024

// AppendAudit adds an entry, with a new id and the present time unless it has
// them. Texts are cut at 1024 bytes.
func (s *Store) AppendAudit(ctx context.Context, e platform.AuditEntry) (err error) {
	defer explain(&err, "appending to the audit log")
	if e.ID == "" {
		e.ID = NewID()
	}
	if e.At.IsZero() {
		e.At = now()
	}
	bounded := func(text string) string {
		if len(text) <= maxAuditText {
			return text
		}
		return strings.ToValidUTF8(text[:maxAuditText], "") // drops the rune that was cut through
	}
	_, err = s.single().exec(ctx, `INSERT INTO audit (`+auditColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		e.ID, e.At, bounded(string(e.ActorID)), bounded(e.Actor), bounded(string(e.TokenID)), bounded(e.RemoteIP), bounded(e.Action),
		bounded(string(e.ProjectID)), bounded(string(e.ResourceID)), e.Status, bounded(e.Code), bounded(e.RequestID))
	return err
}

// Audit lists entries, newest first, and returns the cursor of the next page.
func (s *Store) Audit(ctx context.Context, f AuditFilter, page Page) (list []platform.AuditEntry, next string, err error) {
	defer explain(&err, "reading the audit log")
	after, err := page.position("audit", 2)
	if err != nil || !f.All && len(f.Projects) == 0 {
		return nil, "", err
	}
	var q builder
	q.add(`SELECT ` + auditColumns + ` FROM audit WHERE TRUE`)
	if !f.All {
		q.addIn("project_id", f.Projects)
	}
	if after != nil {
		at, err := number(after[0])
		if err != nil {
			return nil, "", err
		}
		q.add(` AND (at, id) < (?, ?)`, at, after[1])
	}
	q.add(` ORDER BY at DESC, id DESC LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), scanAudit, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "audit", list, func(e platform.AuditEntry) []string { return []string{timeKey(e.At), string(e.ID)} })
	return list, next, nil
}

// TrimAudit removes the entries from before a time.
func (s *Store) TrimAudit(ctx context.Context, before time.Time) (err error) {
	defer explain(&err, "trimming the audit log")
	_, err = s.single().exec(ctx, `DELETE FROM audit WHERE at < $1`, before)
	return err
}

const auditColumns = `id, at, actor_id, actor, token_id, remote_ip, action, project_id, resource_id, status, code, request_id`

func scanAudit(r row) (e platform.AuditEntry, err error) {
	err = r.Scan(&e.ID, intoTime(&e.At), &e.ActorID, &e.Actor, &e.TokenID, &e.RemoteIP, &e.Action,
		&e.ProjectID, &e.ResourceID, &e.Status, &e.Code, &e.RequestID)
	return e, err
}
