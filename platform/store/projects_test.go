package store_test

import (
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func projectName(p platform.Project) string { return p.Name }

func TestProjects_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		spec := platform.ProjectSpec{
			Name: "shop", Description: "a \"shop\"\x00 with ümläuts",
			SharedEnv: platform.Env{"A": "1"}, SharedSecretEnv: platform.Env{"B": "2"},
			DefaultResources: platform.Resources{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 9},
		}
		p := get(s.CreateProject(t.Context(), spec)).or(t)
		same(t, "spec", p.ProjectSpec, spec)
		equal(t, "version", p.Version, 1)
		if p.CreatedAt.IsZero() || p.CreatedAt.Location().String() != "UTC" || p.CreatedAt.Nanosecond()%1e6 != 0 || p.UpdatedAt != p.CreatedAt {
			t.Errorf("times are %v and %v", p.CreatedAt, p.UpdatedAt)
		}
		same(t, "read by id", get(s.Project(t.Context(), p.ID)).or(t), p)
		same(t, "read by name", get(s.ProjectByName(t.Context(), "shop")).or(t), p)

		_, err := s.CreateProject(t.Context(), spec)
		fails(t, err, platform.Conflict, "name_taken")
		for _, id := range []platform.ID{"", store.NewID(), "a\x00b", "\xff"} {
			_, err = s.Project(t.Context(), id)
			notFound(t, err)
			_, err = s.ProjectByName(t.Context(), string(id))
			notFound(t, err)
		}
	})
}

func TestProjects_UpdateChecksVersion(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := project(t, s, "shop")
		second := get(s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "shop", Description: "new"}, p.Version)).or(t)
		equal(t, "version", second.Version, 2)
		equal(t, "description", second.Description, "new")
		equal(t, "created at", second.CreatedAt, p.CreatedAt)
		_, err := s.UpdateProject(t.Context(), p.ID, p.ProjectSpec, p.Version)
		fails(t, err, platform.Precondition, "version_mismatch")
		third := get(s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "store"}, 0)).or(t)
		equal(t, "version", third.Version, 3)
		equal(t, "name", third.Name, "store")
		project(t, s, "shop") // the old name is free again
		_, err = s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "shop"}, 0)
		fails(t, err, platform.Conflict, "name_taken")
		_, err = s.UpdateProject(t.Context(), store.NewID(), platform.ProjectSpec{Name: "x"}, 0)
		notFound(t, err)
	})
}

func TestProjects_DefaultStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := defaultProject(t, s)
		_, err := s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "other"}, 0)
		fails(t, err, platform.Conflict, "default_project")
		fails(t, s.DeleteProject(t.Context(), p.ID), platform.Conflict, "default_project")
		p = get(s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "default", SharedEnv: platform.Env{"A": "1"}}, p.Version)).or(t)
		equal(t, "shared env", p.SharedEnv["A"], "1")
	})
}

func TestProjects_DeleteOnlyEmpty(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p := project(t, s, "shop")
		ann := user(t, s, "ann")
		get2(s.PutMember(t.Context(), p.ID, ann.ID, platform.RoleAdmin)).or(t)
		bound := get(s.CreateToken(t.Context(), platform.Token{UserID: ann.ID, Kind: platform.TokenAPI, Hash: hash("1"), ProjectID: p.ID})).or(t)
		web := service(t, s, p.ID, "web")
		fails(t, s.DeleteProject(t.Context(), p.ID), platform.Conflict, "project_not_empty")
		ok(t, s.DeleteService(t.Context(), web.ID))
		ok(t, s.DeleteProject(t.Context(), p.ID))
		notFound(t, s.DeleteProject(t.Context(), p.ID))
		_, err := s.Token(t.Context(), bound.ID)
		notFound(t, err) // without its project it would reach further
		equal(t, "number of roles", len(get(s.Roles(t.Context(), ann.ID)).or(t)), 0)
	})
}

func TestProjects_ListByNameInPages(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		var ids []platform.ID
		for _, name := range []string{"echo", "alpha", "delta", "bravo", "charlie"} {
			ids = append(ids, project(t, s, name).ID)
		}
		everything := store.ProjectFilter{All: true}
		list, next := get2(s.Projects(t.Context(), everything, store.Page{})).or(t)
		equal(t, "all", names(list, projectName), "alpha bravo charlie default delta echo")
		equal(t, "cursor at the end", next, "")
		list, _ = get2(s.Projects(t.Context(), store.ProjectFilter{IDs: ids[:2]}, store.Page{})).or(t)
		equal(t, "filtered", names(list, projectName), "alpha echo")
		list, next = get2(s.Projects(t.Context(), store.ProjectFilter{}, store.Page{})).or(t)
		equal(t, "none", len(list)+len(next), 0)

		// What comes and goes between two pages moves nothing else.
		first, next := get2(s.Projects(t.Context(), everything, store.Page{Limit: 2})).or(t)
		ok(t, s.DeleteProject(t.Context(), first[1].ID))
		project(t, s, "aaa")
		project(t, s, "bzz")
		second, next := get2(s.Projects(t.Context(), everything, store.Page{Limit: 3, Cursor: next})).or(t)
		third, last := get2(s.Projects(t.Context(), everything, store.Page{Limit: 2, Cursor: next})).or(t)
		equal(t, "pages", names(append(append(first, second...), third...), projectName), "alpha bravo bzz charlie default delta echo")
		equal(t, "cursor at the end", last, "")

		for _, bad := range []string{"x", "!!!", "bnVsbA", strings.Repeat("A", 5000), next + "x"} {
			_, _, err := s.Projects(t.Context(), everything, store.Page{Cursor: bad})
			fails(t, err, platform.Malformed, "bad_cursor")
			_, _, err = s.Audit(t.Context(), store.AuditFilter{All: true}, store.Page{Cursor: bad})
			fails(t, err, platform.Malformed, "bad_cursor")
		}
		_, _, err := s.Users(t.Context(), store.Page{Cursor: next})
		fails(t, err, platform.Malformed, "bad_cursor") // of another list
	})
}

func TestProjects_RenameMovesHostLabels(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		labels := func() string {
			return names(get(s.AllServices(t.Context())).or(t), func(r store.ServiceRef) string { return r.ProjectName + "/" + r.Name + "=" + r.HostLabel })
		}
		p := project(t, s, "x")
		service(t, s, p.ID, "a")
		service(t, s, p.ID, "a-y")
		equal(t, "labels", labels(), "x/a=a-x x/a-y=a-y-x")
		// The first new label is the old one of the other service.
		get(s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "y-x"}, 0)).or(t)
		equal(t, "labels", labels(), "y-x/a=a-y-x y-x/a-y=a-y-y-x")

		other := project(t, s, "c")
		service(t, s, other.ID, "a-b")
		_, err := s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: "b-c"}, 0)
		fails(t, err, platform.Conflict, "host_taken")
		if !strings.Contains(err.Error(), `"a-b"`) || !strings.Contains(err.Error(), `project "c"`) {
			t.Errorf("%q does not name the other service", err)
		}
		_, err = s.UpdateProject(t.Context(), p.ID, platform.ProjectSpec{Name: strings.Repeat("p", 60)}, 0)
		fails(t, err, platform.Invalid, "validation_failed")
		equal(t, "labels after failures", labels(), "c/a-b=a-b-c y-x/a=a-y-x y-x/a-y=a-y-y-x")
		equal(t, "name after failures", get(s.Project(t.Context(), p.ID)).or(t).Name, "y-x")
	})
}
