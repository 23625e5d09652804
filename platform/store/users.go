package store

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

// CreateUser makes a user, with a new id unless it has one. Conflict
// "name_taken" when there is one of that name.
func (s *Store) CreateUser(ctx context.Context, user platform.User) (u platform.User, err error) {
	defer explain(&err, "creating user %q", user.Name)
	err = s.write(ctx, func(tx tx) error {
		u, err = insertUser(ctx, tx, user)
		return err
	})
	return u, err
}

// Bootstrap makes the first user: a super-admin, and admin of the project
// "default". Conflict "already_bootstrapped" when there is any user; of
// concurrent calls one wins.
func (s *Store) Bootstrap(ctx context.Context, user platform.User) (u platform.User, err error) {
	defer explain(&err, "bootstrapping user %q", user.Name)
	err = s.write(ctx, func(tx tx) error {
		any, err := exists(ctx, tx, `SELECT 1 FROM users`)
		if err != nil {
			return err
		}
		if any {
			return platform.Errorf(platform.Conflict, "already_bootstrapped", "there are users already: ask a super-admin for an account")
		}
		user.SuperAdmin = true
		if u, err = insertUser(ctx, tx, user); err != nil {
			return err
		}
		_, err = tx.exec(ctx, `INSERT INTO members (project_id, user_id, role, created_at)
			SELECT id, CAST($1 AS TEXT), 'admin', CAST($2 AS BIGINT) FROM projects WHERE name = $3`, u.ID, tx.now, platform.DefaultProject)
		return err
	})
	return u, err
}

// User returns the user with that id.
func (s *Store) User(ctx context.Context, id platform.ID) (u platform.User, err error) {
	defer explain(&err, "reading user %s", id)
	return mustUser(ctx, s.read(), id)
}

// UserByName returns the user of that name.
func (s *Store) UserByName(ctx context.Context, name string) (u platform.User, err error) {
	defer explain(&err, "reading user %q", name)
	u, found, err := one(ctx, s.read(), scanUser, selectUsers+` WHERE name = $1`, name)
	if err == nil && !found {
		err = platform.NotFoundf("there is no user %q", name)
	}
	return u, err
}

// Users lists users by name, and returns the cursor of the next page.
func (s *Store) Users(ctx context.Context, page Page) (list []platform.User, next string, err error) {
	defer explain(&err, "listing users")
	after, err := page.position("users", 1)
	if err != nil {
		return nil, "", err
	}
	var q builder
	q.add(selectUsers)
	if after != nil {
		q.add(` WHERE name > ?`, after[0])
	}
	q.add(` ORDER BY name LIMIT ?`, page.limit()+1)
	list, err = all(ctx, s.read(), scanUser, q.text.String(), q.args...)
	if err != nil {
		return nil, "", err
	}
	list, next = cut(page, "users", list, func(u platform.User) []string { return []string{u.Name} })
	return list, next, nil
}

// UpdateUser replaces name, password hash and super-admin of the user with
// that id. Precondition "version_mismatch" unless version is 0 or the stored
// one; Conflict "name_taken", or "last_super_admin" when it would demote the
// last one.
func (s *Store) UpdateUser(ctx context.Context, user platform.User, version int64) (u platform.User, err error) {
	defer explain(&err, "updating user %s", user.ID)
	err = s.write(ctx, func(tx tx) error {
		old, err := mustUser(ctx, tx, user.ID)
		if err != nil {
			return err
		}
		if err := sameVersion("user", old.Version, version); err != nil {
			return err
		}
		if user.Name != old.Name {
			if err := userNameFree(ctx, tx, user.Name); err != nil {
				return err
			}
		}
		if !user.SuperAdmin {
			if err := notLastSuperAdmin(ctx, tx, old); err != nil {
				return err
			}
		}
		if _, err := tx.exec(ctx, `UPDATE users SET name = $1, password_hash = $2, super_admin = $3, version = version + 1, updated_at = $4 WHERE id = $5`,
			user.Name, user.PasswordHash, user.SuperAdmin, tx.now, user.ID); err != nil {
			return err
		}
		u, err = mustUser(ctx, tx, user.ID)
		return err
	})
	return u, err
}

// DeleteUser removes a user with all tokens and memberships. Conflict
// "last_super_admin" for the last super-admin, "last_admin" for the last admin
// of some project.
func (s *Store) DeleteUser(ctx context.Context, id platform.ID) (err error) {
	defer explain(&err, "deleting user %s", id)
	return s.write(ctx, func(tx tx) error {
		u, err := mustUser(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := notLastSuperAdmin(ctx, tx, u); err != nil {
			return err
		}
		project, found, err := one(ctx, tx, scanString, `SELECT p.name FROM members m JOIN projects p ON p.id = m.project_id
			WHERE m.user_id = $1 AND m.role = 'admin' AND NOT EXISTS (
				SELECT 1 FROM members o WHERE o.project_id = m.project_id AND o.role = 'admin' AND o.user_id <> m.user_id)
			ORDER BY p.name LIMIT 1`, id)
		if err != nil {
			return err
		}
		if found {
			return platform.Errorf(platform.Conflict, "last_admin", "%q is the last admin of the project %q: make somebody else admin first", u.Name, project)
		}
		_, err = tx.exec(ctx, `DELETE FROM users WHERE id = $1`, id)
		return err
	})
}

const (
	userColumns = `id, name, password_hash, super_admin, version, created_at, updated_at`
	selectUsers = `SELECT ` + userColumns + ` FROM users`
)

func scanUser(r row) (u platform.User, err error) {
	err = r.Scan(&u.ID, &u.Name, &u.PasswordHash, &u.SuperAdmin, &u.Version, intoTime(&u.CreatedAt), intoTime(&u.UpdatedAt))
	return u, err
}

func mustUser(ctx context.Context, tx tx, id platform.ID) (platform.User, error) {
	u, found, err := one(ctx, tx, scanUser, selectUsers+` WHERE id = $1`, id)
	if err == nil && !found {
		err = platform.NotFoundf("there is no user %s", id)
	}
	return u, err
}

func insertUser(ctx context.Context, tx tx, u platform.User) (platform.User, error) {
	if err := userNameFree(ctx, tx, u.Name); err != nil {
		return platform.User{}, err
	}
	if u.ID == "" {
		u.ID = NewID()
	}
	if _, err := tx.exec(ctx, `INSERT INTO users (`+userColumns+`) VALUES ($1, $2, $3, $4, 1, $5, $5)`,
		u.ID, u.Name, u.PasswordHash, u.SuperAdmin, tx.now); err != nil {
		return platform.User{}, err
	}
	return mustUser(ctx, tx, u.ID)
}

func userNameFree(ctx context.Context, tx tx, name string) error {
	taken, err := exists(ctx, tx, `SELECT 1 FROM users WHERE name = $1`, name)
	if err == nil && taken {
		err = platform.Errorf(platform.Conflict, "name_taken", "there is a user %q already", name)
	}
	return err
}

func notLastSuperAdmin(ctx context.Context, tx tx, u platform.User) error {
	if !u.SuperAdmin {
		return nil
	}
	others, err := exists(ctx, tx, `SELECT 1 FROM users WHERE super_admin AND id <> $1`, u.ID)
	if err == nil && !others {
		err = platform.Errorf(platform.Conflict, "last_super_admin", "%q is the last super-admin: make somebody else super-admin first", u.Name)
	}
	return err
}
