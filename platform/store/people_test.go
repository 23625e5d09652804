package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestUsers_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ann := user(t, s, "ann")
		equal(t, "hash", ann.PasswordHash, "$argon2id$ann")
		same(t, "by id", get(s.User(t.Context(), ann.ID)).or(t), ann)
		same(t, "by name", get(s.UserByName(t.Context(), "ann")).or(t), ann)
		_, err := s.CreateUser(t.Context(), platform.User{Name: "ann"})
		fails(t, err, platform.Conflict, "name_taken")
		_, err = s.UserByName(t.Context(), "Ann")
		notFound(t, err)
		_, err = s.User(t.Context(), store.NewID())
		notFound(t, err)

		changed := ann
		changed.Name, changed.PasswordHash, changed.SuperAdmin = "anna", "new", true
		changed = get(s.UpdateUser(t.Context(), changed, ann.Version)).or(t)
		equal(t, "name", changed.Name, "anna")
		equal(t, "super-admin", changed.SuperAdmin, true)
		equal(t, "version", changed.Version, ann.Version+1)
		_, err = s.UpdateUser(t.Context(), ann, ann.Version)
		fails(t, err, platform.Precondition, "version_mismatch")
		bob := user(t, s, "bob")
		bob.Name = "anna"
		_, err = s.UpdateUser(t.Context(), bob, 0)
		fails(t, err, platform.Conflict, "name_taken")
		_, err = s.UpdateUser(t.Context(), platform.User{ID: store.NewID()}, 0)
		notFound(t, err)
		notFound(t, s.DeleteUser(t.Context(), store.NewID()))
	})
}

func TestUsers_ListByName(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		for _, name := range []string{"carl", "ann", "dora", "bob"} {
			user(t, s, name)
		}
		var all []platform.User
		for page, more := (store.Page{Limit: 3}), true; more; more = page.Cursor != "" {
			var list []platform.User
			list, page.Cursor = get2(s.Users(t.Context(), page)).or(t)
			all = append(all, list...)
		}
		equal(t, "users", names(all, func(u platform.User) string { return u.Name }), "ann bob carl dora")
	})
}

func TestBootstrap_OneWins(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		oneWins(t, together(8, func(i int) error {
			_, err := s.Bootstrap(context.Background(), platform.User{Name: string(rune('a' + i))})
			return err
		}), platform.Conflict, "already_bootstrapped")
		users, _ := get2(s.Users(t.Context(), store.Page{})).or(t)
		equal(t, "users", len(users), 1)
		equal(t, "super-admin", users[0].SuperAdmin, true)
		equal(t, "role in default", get(s.Roles(t.Context(), users[0].ID)).or(t)[defaultProject(t, s).ID], platform.RoleAdmin)
	})
}

func TestUsers_LastSuperAdminStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		root := get(s.Bootstrap(t.Context(), platform.User{Name: "root"})).or(t)
		fails(t, s.DeleteUser(t.Context(), root.ID), platform.Conflict, "last_super_admin")
		demoted := root
		demoted.SuperAdmin = false
		_, err := s.UpdateUser(t.Context(), demoted, 0)
		fails(t, err, platform.Conflict, "last_super_admin")
		root.PasswordHash = "changed"
		get(s.UpdateUser(t.Context(), root, 0)).or(t)

		second := get(s.CreateUser(t.Context(), platform.User{Name: "second", SuperAdmin: true})).or(t)
		oneWins(t, together(2, func(i int) error {
			return s.DeleteUser(context.Background(), []platform.ID{second.ID, second.ID}[i])
		}), platform.NotFound, "not_found")
		third := get(s.CreateUser(t.Context(), platform.User{Name: "third", SuperAdmin: true})).or(t)
		oneWins(t, together(2, func(i int) error {
			u := []platform.User{demoted, third}[i]
			u.SuperAdmin = false
			_, err := s.UpdateUser(context.Background(), u, 0)
			return err
		}), platform.Conflict, "last_super_admin")
	})
}

func TestMembers_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p, q := project(t, s, "p"), project(t, s, "q")
		ann, bob, carl := user(t, s, "ann"), user(t, s, "bob"), user(t, s, "carl")
		m, created := get2(s.PutMember(t.Context(), p.ID, carl.ID, platform.RoleViewer)).or(t)
		equal(t, "created", created, true)
		equal(t, "user name", m.UserName, "carl")
		same(t, "member", m, platform.Member{ProjectID: p.ID, UserID: carl.ID, UserName: "carl", Role: platform.RoleViewer, CreatedAt: m.CreatedAt})
		again, created := get2(s.PutMember(t.Context(), p.ID, carl.ID, platform.RoleOperator)).or(t)
		equal(t, "created", created, false)
		equal(t, "role", again.Role, platform.RoleOperator)
		equal(t, "created at", again.CreatedAt, m.CreatedAt)
		get2(s.PutMember(t.Context(), p.ID, ann.ID, platform.RoleAdmin)).or(t)
		get2(s.PutMember(t.Context(), p.ID, bob.ID, platform.RoleViewer)).or(t)
		get2(s.PutMember(t.Context(), q.ID, ann.ID, platform.RoleViewer)).or(t)

		userName := func(m platform.Member) string { return m.UserName }
		first, next := get2(s.Members(t.Context(), p.ID, store.Page{Limit: 2})).or(t)
		second, end := get2(s.Members(t.Context(), p.ID, store.Page{Limit: 2, Cursor: next})).or(t)
		equal(t, "members", names(append(first, second...), userName), "ann bob carl")
		equal(t, "cursor at the end", end, "")
		same(t, "roles", get(s.Roles(t.Context(), ann.ID)).or(t), map[platform.ID]platform.Role{p.ID: platform.RoleAdmin, q.ID: platform.RoleViewer})

		ok(t, s.RemoveMember(t.Context(), p.ID, bob.ID))
		notFound(t, s.RemoveMember(t.Context(), p.ID, bob.ID))
		_, _, err := s.PutMember(t.Context(), p.ID, store.NewID(), platform.RoleViewer)
		notFound(t, err)
		_, _, err = s.PutMember(t.Context(), store.NewID(), ann.ID, platform.RoleViewer)
		notFound(t, err)
		_, _, err = s.PutMember(t.Context(), p.ID, ann.ID, "owner")
		fails(t, err, platform.Invalid, "validation_failed")
	})
}

func TestMembers_LastAdminStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := project(t, s, "p")
		ann, bob := user(t, s, "ann"), user(t, s, "bob")
		put := func(u platform.User, role platform.Role) error {
			_, _, err := s.PutMember(context.Background(), p.ID, u.ID, role)
			return err
		}
		ok(t, put(ann, platform.RoleAdmin))
		fails(t, put(ann, platform.RoleOperator), platform.Conflict, "last_admin")
		fails(t, s.RemoveMember(t.Context(), p.ID, ann.ID), platform.Conflict, "last_admin")
		fails(t, s.DeleteUser(t.Context(), ann.ID), platform.Conflict, "last_admin")
		ok(t, put(ann, platform.RoleAdmin))

		// Each of two admins takes the other's rights away.
		for _, away := range []func(u platform.User) error{
			func(u platform.User) error { return put(u, platform.RoleViewer) },
			func(u platform.User) error { return s.RemoveMember(context.Background(), p.ID, u.ID) },
		} {
			ok(t, put(ann, platform.RoleAdmin))
			ok(t, put(bob, platform.RoleAdmin))
			oneWins(t, together(2, func(i int) error { return away([]platform.User{ann, bob}[i]) }), platform.Conflict, "last_admin")
		}
		ok(t, put(ann, platform.RoleAdmin))
		ok(t, put(bob, platform.RoleAdmin))
		oneWins(t, together(2, func(i int) error {
			return s.DeleteUser(context.Background(), []platform.User{ann, bob}[i].ID)
		}), platform.Conflict, "last_admin")
	})
}

func TestTokens_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ann := user(t, s, "ann")
		p := project(t, s, "p")
		expires := time.Now().Add(time.Hour)
		token := get(s.CreateToken(t.Context(), platform.Token{
			UserID: ann.ID, Kind: platform.TokenAPI, Name: "ci", Hash: hash("1"), ProjectID: p.ID, Role: platform.RoleOperator, ExpiresAt: &expires,
		})).or(t)
		equal(t, "expiry", token.ExpiresAt.UnixMilli(), expires.UnixMilli())
		same(t, "by id", get(s.Token(t.Context(), token.ID)).or(t), token)
		same(t, "by hash", get(s.TokenByHash(t.Context(), hash("1"))).or(t), token)
		_, err := s.TokenByHash(t.Context(), hash("2"))
		notFound(t, err)
		_, err = s.TokenByHash(t.Context(), nil)
		notFound(t, err)

		used, later := time.Now().Add(time.Minute), expires.Add(time.Hour)
		ok(t, s.TouchToken(t.Context(), token.ID, used, nil))
		touched := get(s.Token(t.Context(), token.ID)).or(t)
		equal(t, "last use", touched.LastUsedAt.UnixMilli(), used.UnixMilli())
		equal(t, "expiry", touched.ExpiresAt.UnixMilli(), expires.UnixMilli())
		ok(t, s.TouchToken(t.Context(), token.ID, used, &later))
		equal(t, "expiry", get(s.Token(t.Context(), token.ID)).or(t).ExpiresAt.UnixMilli(), later.UnixMilli())
		notFound(t, s.TouchToken(t.Context(), store.NewID(), used, nil))

		ok(t, s.DeleteToken(t.Context(), token.ID))
		notFound(t, s.DeleteToken(t.Context(), token.ID))
		_, err = s.CreateToken(t.Context(), platform.Token{UserID: store.NewID(), Kind: platform.TokenAPI, Hash: hash("3")})
		notFound(t, err)
		_, err = s.CreateToken(t.Context(), platform.Token{UserID: ann.ID, Kind: platform.TokenAPI, Hash: hash("3"), ProjectID: store.NewID()})
		notFound(t, err)
		if _, err = s.CreateToken(t.Context(), platform.Token{UserID: ann.ID, Kind: platform.TokenAPI}); err == nil {
			t.Error("a token without hash was kept")
		}
	})
}

func TestTokens_Lists(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ann, bob := user(t, s, "ann"), user(t, s, "bob")
		start := time.Now()
		add := func(u platform.User, kind, name string, expires *time.Time) platform.Token {
			return get(s.CreateToken(t.Context(), platform.Token{UserID: u.ID, Kind: kind, Name: name, Hash: hash(name), CreatedAt: start, ExpiresAt: expires})).or(t)
		}
		past, future := start.Add(-time.Second), start.Add(time.Hour)
		add(ann, platform.TokenAPI, "1", nil)
		add(ann, platform.TokenSession, "2", &past)
		kept := add(ann, platform.TokenSession, "3", &future)
		add(bob, platform.TokenAPI, "4", nil)
		add(ann, platform.TokenAPI, "5", nil)
		list := func(u platform.User, kind string) string {
			var all []platform.Token
			for page, more := (store.Page{Limit: 1}), true; more; more = page.Cursor != "" {
				var list []platform.Token
				list, page.Cursor = get2(s.Tokens(t.Context(), u.ID, kind, page)).or(t)
				all = append(all, list...)
			}
			return names(all, func(t platform.Token) string { return t.Name })
		}
		equal(t, "all", list(ann, ""), "5 3 2 1")
		equal(t, "API", list(ann, platform.TokenAPI), "5 1")
		equal(t, "sessions", list(ann, platform.TokenSession), "3 2")
		ok(t, s.DeleteExpiredTokens(t.Context(), start))
		equal(t, "after expiry", list(ann, ""), "5 3 1")
		ok(t, s.DeleteTokensOf(t.Context(), ann.ID, platform.TokenSession, kept.ID))
		equal(t, "all but one session", list(ann, ""), "5 3 1")
		ok(t, s.DeleteTokensOf(t.Context(), ann.ID, platform.TokenAPI, ""))
		equal(t, "no API token", list(ann, ""), "3")
		equal(t, "another's", list(bob, ""), "4")
		ok(t, s.DeleteUser(t.Context(), ann.ID))
		_, err := s.TokenByHash(t.Context(), hash("3"))
		notFound(t, err)
	})
}
