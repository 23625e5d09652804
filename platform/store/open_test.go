package store_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/denia-paas/denia/internal/testpg"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestOpen_ReopenKeepsEverything(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		first := get(store.Open(t.Context(), dsn, options())).or(t)
		instance := first.InstanceID()
		web := anyService(t, first)
		live := release(t, first, web.ID)
		ok(t, first.Close())
		ok(t, first.Close())

		s := open(t, dsn)
		equal(t, "instance id", s.InstanceID(), instance)
		if len(instance) != 36 {
			t.Errorf("instance id is %q", instance)
		}
		equal(t, "id of default", defaultProject(t, s).ID, web.ProjectID)
		equal(t, "active deployment", get(s.Service(t.Context(), web.ID)).or(t).ActiveDeploymentID, live.ID)
		same(t, "deployment", get(s.Deployment(t.Context(), live.ID)).or(t), live)
	})
}

func TestOpen_AtTheSameTime(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		stores := make([]*store.Store, 6)
		for _, err := range together(len(stores), func(i int) (err error) {
			stores[i], err = store.Open(context.WithoutCancel(t.Context()), dsn, options())
			return err
		}) {
			ok(t, err)
		}
		for _, s := range stores {
			equal(t, "instance id", s.InstanceID(), stores[0].InstanceID())
			equal(t, "id of default", defaultProject(t, s).ID, defaultProject(t, stores[0]).ID)
		}
		for _, s := range stores {
			ok(t, s.Close())
		}
	})
}

func TestOpen_RefusesNewerSchema(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		ok(t, get(store.Open(t.Context(), dsn, options())).or(t).Close())
		db := raw(t, dsn)
		execute(t, db, `INSERT INTO schema_version (version_id, is_applied) VALUES (4711, TRUE)`)
		_, err := store.Open(t.Context(), dsn, options())
		if err == nil {
			t.Fatal("a newer schema was opened")
		}
		for _, part := range []string{"4711", "up to version 3", "newer Denia", "backup"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	})
}

func TestOpen_FailedMigrationLeavesNothing(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		db := raw(t, dsn)
		execute(t, db, `CREATE TABLE leases (stranger TEXT)`) // the last table the migration makes
		if _, err := store.Open(t.Context(), dsn, options()); err == nil {
			t.Fatal("a migration over a stranger's table succeeded")
		}
		if _, err := db.ExecContext(t.Context(), `SELECT 1 FROM projects`); err == nil {
			t.Error("the failed migration left tables")
		}
		execute(t, db, `DROP TABLE leases`)
		equal(t, "default project", defaultProject(t, open(t, dsn)).Name, "default")
	})
}

func TestOpen_UpgradesFromTheFirstSchema(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		first := get(store.Open(t.Context(), dsn, options())).or(t)
		live := release(t, first, anyService(t, first).ID)
		plain := platform.ServiceSpec{Name: "plain", TLS: "off", RunSpec: platform.RunSpec{Env: platform.Env{"tls": "auto"}}}
		get(first.CreateService(t.Context(), defaultProject(t, first).ID, plain)).or(t)
		ok(t, first.Close())
		db := raw(t, dsn)
		for _, table := range []string{"reviews", "edges", "tags", "manifests", "links", "blobs"} {
			execute(t, db, `DROP TABLE registry_`+table)
		}
		for _, table := range []string{"domains", "certificate_files", "certificate_locks"} {
			execute(t, db, `DROP TABLE `+table)
		}
		execute(t, db, `ALTER TABLE services DROP COLUMN tls`)
		execute(t, db, `DELETE FROM schema_version WHERE version_id > 1`)

		execute(t, db, `CREATE TABLE registry_reviews (stranger TEXT)`) // the last table the migration makes
		if _, err := store.Open(t.Context(), dsn, options()); err == nil {
			t.Fatal("a migration over a stranger's table succeeded")
		}
		if _, err := db.ExecContext(t.Context(), `SELECT 1 FROM registry_blobs`); err == nil {
			t.Error("the failed migration left tables")
		}
		execute(t, db, `DROP TABLE registry_reviews`)
		ok(t, db.Close())
		s := open(t, dsn)
		same(t, "deployment", get(s.Deployment(t.Context(), live.ID)).or(t), live)
		commit(t, s.Registry(), "a", "x", noon)
		refs := get(s.AllServices(t.Context())).or(t)
		equal(t, "TLS of the services", names(refs, func(r store.ServiceRef) string { return r.Name + "=" + r.TLS }), "plain=off web=auto")
	})
}

func TestOpen_BadDataSources(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	ok(t, os.WriteFile(garbage, bytes.Repeat([]byte("no database "), 1000), 0o600))
	for name, tc := range map[string]struct{ dsn, says string }{
		"empty":          {"", "sqlite:<path>"},
		"no path":        {"sqlite:", "sqlite:<path>"},
		"other database": {"mysql://u:hunter2@host/db", "postgres://"},
		"no port":        {"postgres://u:hunter2@host:port/db", "parse"},
		"nobody there":   {"postgres://u:hunter2@127.0.0.1:1/db", "127.0.0.1"},
		"garbage":        {"sqlite:" + garbage, garbage},
		"a directory":    {"sqlite:" + dir, dir},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			_, err := store.Open(t.Context(), tc.dsn, options())
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
	if _, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "x.db"), store.Options{}); err == nil {
		t.Error("Open went without a seal")
	}
}

func TestOpen_SQLiteFilesArePrivate(t *testing.T) {
	// A path may hold what means something in a URL.
	path := filepath.Join(t.TempDir(), "a dir?x=1#é%41", "denia.db")
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(t, os.WriteFile(path, nil, 0o644))
	s := open(t, "sqlite:"+path)
	anyService(t, s)
	files := get(os.ReadDir(filepath.Dir(path))).or(t)
	if len(files) != 3 {
		t.Errorf("the directory holds %v, want the database, its log and index", files)
	}
	for _, file := range files {
		equal(t, "mode of "+file.Name(), get(file.Info()).or(t).Mode().Perm(), 0o600)
	}
	var mode string
	db := raw(t, "sqlite:file:"+strings.NewReplacer("?", "%3f", "#", "%23", "%", "%25").Replace(path))
	ok(t, db.QueryRow(`PRAGMA journal_mode`).Scan(&mode))
	equal(t, "journal mode", mode, "wal")
	ok(t, db.Close())
	ok(t, s.Close())
	equal(t, "number of files after Close", len(get(os.ReadDir(filepath.Dir(path))).or(t)), 1)
}

func TestOpen_EndsWithItsContext(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := store.Open(ctx, dsn, options()); err == nil {
			t.Error("Open succeeded in an ended context")
		}
	})
}

func TestStore_MethodsEndWithTheirContext(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.CreateProject(ctx, platform.ProjectSpec{Name: "late"}); err == nil {
			t.Error("a write succeeded in an ended context")
		}
		if _, err := s.ProjectByName(ctx, "default"); err == nil {
			t.Error("a read succeeded in an ended context")
		}
		_, err := s.ProjectByName(t.Context(), "late")
		notFound(t, err)
	})
}

// relay passes connections on to a server until it is cut.
type relay struct {
	listener net.Listener
	to       func() (net.Conn, error)
	mu       sync.Mutex
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newRelay(t *testing.T, address string, to func() (net.Conn, error)) *relay {
	t.Helper()
	r := &relay{listener: get(net.Listen("tcp", address)).or(t), to: to}
	r.wg.Go(func() {
		for {
			from, err := r.listener.Accept()
			if err != nil {
				return
			}
			server, err := r.to()
			if err != nil {
				from.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, from, server)
			r.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, server}, {server, from}} {
				r.wg.Go(func() {
					_, _ = io.Copy(way[0], way[1]) // ends with either side
					way[0].Close()
				})
			}
		}
	})
	t.Cleanup(r.cut)
	return r
}

func (r *relay) cut() {
	r.listener.Close()
	r.mu.Lock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func TestPostgres_ComesBack(t *testing.T) {
	checkGoroutines(t)
	address := get(url.Parse(testpg.Start(t))).or(t)
	query := address.Query()
	network, server := "tcp", address.Host
	if server == "" {
		network, server = "unix", filepath.Join(query.Get("host"), ".s.PGSQL.5432")
	}
	dial := func() (net.Conn, error) { return net.Dial(network, server) }
	first := newRelay(t, "127.0.0.1:0", dial)
	query.Del("host")
	address.Host, address.RawQuery = first.listener.Addr().String(), query.Encode()
	s := open(t, address.String())
	p := defaultProject(t, s)

	first.cut()
	_, err := s.Project(t.Context(), p.ID)
	fails(t, err, platform.Unavailable, "database_unavailable")
	_, err = s.CreateProject(t.Context(), platform.ProjectSpec{Name: "late"})
	fails(t, err, platform.Unavailable, "database_unavailable")

	newRelay(t, first.listener.Addr().String(), dial)
	project(t, s, "late")
	equal(t, "project", get(s.Project(t.Context(), p.ID)).or(t).ID, p.ID)
}

func TestNewID_SortsByTime(t *testing.T) {
	last := platform.ID("")
	for range 1000 {
		id := store.NewID()
		if id <= last || len(id) != 36 || id[14] != '7' || strings.ToLower(string(id)) != string(id) {
			t.Fatalf("%s came after %s", id, last)
		}
		last = id
	}
}

// Everything a user calls a secret must be unreadable in the files.
func TestStore_SealsSecrets(t *testing.T) {
	const plain = "correct-horse-battery"
	onEachDSN(t, func(t *testing.T, dsn string) {
		s := get(store.Open(t.Context(), dsn, options())).or(t)
		env := platform.Env{"PASSWORD": plain}
		source := platform.Source{Type: platform.SourceUpload, Build: &platform.BuildOptions{Args: platform.Env{"V": "visible"}, Secrets: env}}
		p := get(s.CreateProject(t.Context(), platform.ProjectSpec{Name: "vault", SharedSecretEnv: env})).or(t)
		p = get(s.UpdateProject(t.Context(), p.ID, p.ProjectSpec, 0)).or(t)
		spec := platform.ServiceSpec{Name: "web", Source: &source, RunSpec: platform.RunSpec{SecretEnv: env}}
		v := get(s.CreateService(t.Context(), p.ID, spec)).or(t)
		v = get(s.UpdateService(t.Context(), v.ID, v.ServiceSpec, 0)).or(t)
		ok(t, s.SetSource(t.Context(), v.ID, source))
		d, _ := get2(s.CreateDeployment(t.Context(), platform.Deployment{
			ServiceID: v.ID, Source: source, Config: &platform.ReleaseConfig{RunSpec: spec.RunSpec},
		})).or(t)
		get(s.Advance(t.Context(), d.ID, platform.Pending, platform.Building, nil)).or(t)
		get(s.ReserveIdempotency(t.Context(), "tokens", "key", hash("x"), time.Now())).or(t)
		ok(t, s.FinishIdempotency(t.Context(), "tokens", "key", store.StoredReply{Status: 201, Body: []byte(`{"token":"` + plain + `"}`)}))

		equal(t, "caller's source", source.Build.Secrets["PASSWORD"], plain)
		equal(t, "caller's spec", spec.SecretEnv["PASSWORD"], plain)
		p = get(s.Project(t.Context(), p.ID)).or(t)
		equal(t, "shared secret", p.SharedSecretEnv["PASSWORD"], plain)
		v = get(s.Service(t.Context(), v.ID)).or(t)
		equal(t, "secret", v.SecretEnv["PASSWORD"], plain)
		equal(t, "build secret", v.Source.Build.Secrets["PASSWORD"], plain)
		equal(t, "build arg", v.Source.Build.Args["V"], "visible")
		d = get(s.Deployment(t.Context(), d.ID)).or(t)
		equal(t, "frozen secret", d.Config.SecretEnv["PASSWORD"], plain)
		equal(t, "frozen build secret", d.Source.Build.Secrets["PASSWORD"], plain)

		content := everyByte(t, dsn)
		for _, form := range []string{plain, plain[:8], "correct"} {
			if bytes.Contains(content, []byte(form)) {
				t.Errorf("the open database shows %q", form)
			}
		}
		if !bytes.Contains(content, []byte("visible")) {
			t.Error("the test does not see what is in the database")
		}
		ok(t, s.Close())
		if bytes.Contains(everyByte(t, dsn), []byte(plain)) {
			t.Error("the closed database shows a secret")
		}

		wrong := options()
		wrong.Unseal = func([]byte) ([]byte, error) { return nil, errTest }
		s = get(store.Open(t.Context(), dsn, wrong)).or(t)
		defer s.Close()
		if _, err := s.Service(t.Context(), v.ID); err == nil || strings.Contains(err.Error(), plain) {
			t.Errorf("with another key: %v", err)
		}
	})
}

// everyByte returns what the files hold, or on PostgreSQL every column of
// every table, bytes taken as text.
func everyByte(t *testing.T, dsn string) []byte {
	t.Helper()
	var all bytes.Buffer
	if path, found := strings.CutPrefix(dsn, "sqlite:"); found {
		for _, file := range get(filepath.Glob(path + "*")).or(t) {
			all.Write(get(os.ReadFile(file)).or(t))
		}
		return all.Bytes()
	}
	db := raw(t, dsn)
	defer db.Close()
	for _, table := range []string{"projects", "services", "deployments", "idempotency"} {
		rows := get(db.Query(`SELECT * FROM ` + table)).or(t)
		for rows.Next() {
			cells := make([]any, len(get(rows.Columns()).or(t)))
			for i := range cells {
				cells[i] = new([]byte)
			}
			ok(t, rows.Scan(cells...))
			for _, cell := range cells {
				all.Write(*cell.(*[]byte))
			}
		}
		ok(t, rows.Close())
	}
	return all.Bytes()
}
