package store

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

// Members lists the members of a project by user name, and returns the cursor
// of the next page. A project that does not exist has none.
func (s *Store) Members(ctx context.Context, project platform.ID, page Page) (list []platform.Member, next string, err error) {
	defer explain(&err, "listing members of project %s", project)
	after, err := page.position("members", 1)
	if err != nil {
		return nil, "", err
	}
	var q builder
	q.add(selectMembers+` WHERE m.project_id = ?`, project)
	if after != nil {
		q.add(` AND u.name > ?`, after[0])
	}
	q.add(` ORDER BY u.name LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), scanMember, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "members", list, func(m platform.Member) []string { return []string{m.UserName} })
	return list, next, nil
}

// PutMember gives a user a role in a project, whatever it was before, and
// tells whether the user is a new member. NotFound when project or user do not
// exist, Conflict "last_admin" when it would demote the project's last admin.
func (s *Store) PutMember(ctx context.Context, project, user platform.ID, role platform.Role) (m platform.Member, created bool, err error) {
	defer explain(&err, "giving user %s the role %s in project %s", user, role, project)
	if !role.Valid() {
		return m, false, platform.InvalidField("role", "not_one_of", "must be viewer, operator or admin")
	}
	err = s.write(ctx, func(tx tx) error {
		if _, err := s.mustProject(ctx, tx, project); err != nil {
			return err
		}
		if _, err := mustUser(ctx, tx, user); err != nil {
			return err
		}
		old, found, err := findMember(ctx, tx, project, user)
		if err != nil {
			return err
		}
		if found && !role.Covers(old.Role) {
			if err := notLastAdmin(ctx, tx, old); err != nil {
				return err
			}
		}
		if _, err := tx.exec(ctx, `INSERT INTO members (project_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (project_id, user_id) DO UPDATE SET role = excluded.role`, project, user, role, tx.now); err != nil {
			return err
		}
		created = !found
		m, _, err = findMember(ctx, tx, project, user)
		return err
	})
	return m, created, err
}

// RemoveMember takes a user out of a project. Conflict "last_admin" for its
// last admin.
func (s *Store) RemoveMember(ctx context.Context, project, user platform.ID) (err error) {
	defer explain(&err, "removing user %s from project %s", user, project)
	return s.write(ctx, func(tx tx) error {
		m, found, err := findMember(ctx, tx, project, user)
		if err != nil {
			return err
		}
		if !found {
			return platform.NotFoundf("user %s is no member of project %s", user, project)
		}
		if err := notLastAdmin(ctx, tx, m); err != nil {
			return err
		}
		_, err = tx.exec(ctx, `DELETE FROM members WHERE project_id = $1 AND user_id = $2`, project, user)
		return err
	})
}

// Roles returns a user's role in each project of which it is a member.
func (s *Store) Roles(ctx context.Context, user platform.ID) (roles map[platform.ID]platform.Role, err error) {
	defer explain(&err, "reading the roles of user %s", user)
	list, err := all(ctx, s.read(), scanMember, selectMembers+` WHERE m.user_id = $1`, user)
	if err != nil {
		return nil, err
	}
	roles = make(map[platform.ID]platform.Role, len(list))
	for _, m := range list {
		roles[m.ProjectID] = m.Role
	}
	return roles, nil
}

const selectMembers = `SELECT m.project_id, m.user_id, u.name, m.role, m.created_at FROM members m JOIN users u ON u.id = m.user_id`

func scanMember(r row) (m platform.Member, err error) {
	err = r.Scan(&m.ProjectID, &m.UserID, &m.UserName, &m.Role, intoTime(&m.CreatedAt))
	return m, err
}

func findMember(ctx context.Context, tx tx, project, user platform.ID) (platform.Member, bool, error) {
	return one(ctx, tx, scanMember, selectMembers+` WHERE m.project_id = $1 AND m.user_id = $2`, project, user)
}

func notLastAdmin(ctx context.Context, tx tx, m platform.Member) error {
	if m.Role != platform.RoleAdmin {
		return nil
	}
	others, err := exists(ctx, tx, `SELECT 1 FROM members WHERE project_id = $1 AND role = 'admin' AND user_id <> $2`, m.ProjectID, m.UserID)
	if err == nil && !others {
		err = platform.Errorf(platform.Conflict, "last_admin", "%q is the last admin of the project: make somebody else admin first", m.UserName)
	}
	return err
}
