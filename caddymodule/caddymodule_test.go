package caddymodule

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/denia-paas/denia/internal/leak"
	"github.com/denia-paas/denia/platform/ingress"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { leak.Main(m) }

func adapt(t *testing.T, text string) (*App, error) {
	t.Helper()
	app := new(App)
	value, err := parseGlobal(caddyfile.NewTestDispenser(text), nil)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(value.(httpcaddyfile.App).Value, app); err != nil {
		t.Fatal(err)
	}
	return app, nil
}

func TestCaddyfile(t *testing.T) {
	app, err := adapt(t, `denia {
		data_dir /srv/denia
		database postgres://user:pass@db/denia
		docker_host unix:///run/docker.sock
		base_domain apps.example.com
		control_domain denia.example.com
		admin_token 0123456789abcdef
		uploads {
			max_packed 2GiB
			max_unpacked 8GiB
			max_entries 1000
			max_ratio 50
		}
		builds {
			workers 2
			timeout 10m
			pull_timeout 5m
			reserve 1GiB
			keep_releases 3
		}
		ingress {
			wait_timeout 10s
			max_waiting 50
			dial_timeout 1s
			requests_size 5MiB
		}
		logs {
			max_size 10MiB
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(app)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"data_dir":"/srv/denia","database":"postgres://user:pass@db/denia","docker_host":"unix:///run/docker.sock",` +
		`"base_domain":"apps.example.com","control_domain":"denia.example.com","admin_token":"0123456789abcdef",` +
		`"uploads":{"max_packed_bytes":2147483648,"max_unpacked_bytes":8589934592,"max_entries":1000,"max_ratio":50},` +
		`"builds":{"workers":2,"timeout":600000000000,"pull_timeout":300000000000,"reserve_bytes":1073741824,"keep_releases":3},` +
		`"ingress":{"wait_timeout":10000000000,"max_waiting":50,"dial_timeout":1000000000,"requests_bytes":5242880},"logs":{"max_bytes":10485760}}`
	if string(got) != want {
		t.Errorf("adapted to\n%s\nwant\n%s", got, want)
	}
}

// What is wrong is named together with its line, and no password is repeated.
func TestCaddyfileErrorsNameTheLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"an unknown option", "denia {\n\tdata_dir x\n\tcolour blue\n}", `unknown option "colour"`},
		{"an unknown option of a block", "denia {\n\tbuilds {\n\t\tspeed 9\n\t}\n}", `unknown option "speed" of denia's builds`},
		{"no value", "denia {\n\tdata_dir\n}", "wrong argument count"},
		{"two values", "denia {\n\tbase_domain a b\n}", "wrong argument count"},
		{"no size", "denia {\n\tlogs {\n\t\tmax_size many\n\t}\n}", `"many" is no size`},
		{"no number", "denia {\n\tbuilds {\n\t\tworkers none\n\t}\n}", `"none" is no number`},
		{"no duration", "denia {\n\tbuilds {\n\t\ttimeout soon\n\t}\n}", `"soon" is no duration`},
		{"no host", "denia {\n\tbase_domain http://x\n}", "is no host name"},
		{"an address as control domain", "denia {\n\tcontrol_domain 10.0.0.1\n}", "leave it out to use IP addresses"},
		{"another database", "denia {\n\tdatabase mysql://u:hunter2@h/d\n}", "postgres://"},
		{"a short token", "denia {\n\tadmin_token short\n}", "at least 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := adapt(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "Testfile:") {
				t.Errorf("got %v, want an error with %q and the line", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
}

// Who gets a request is decided by host, before any path is looked at.
func TestOwnerOfAHost(t *testing.T) {
	in := ingress.New(ingress.Options{})
	t.Cleanup(in.Close)
	in.SetRoutes([]ingress.Route{{Host: "app.localhost", ServiceID: "1"}, {Host: "app.example.com", ServiceID: "1"}})
	for _, c := range []struct {
		control, host string
		want          owner
	}{
		{"", "localhost", controlHost},
		{"", "localhost:8080", controlHost},
		{"", "LocalHost.", controlHost},
		{"", "127.0.0.1:8080", controlHost},
		{"", "[::1]:8080", controlHost},
		{"", "::1", controlHost},
		{"", "app.localhost:8080", serviceHost},
		{"", "1password.example.com", nobody},
		{"", "", nobody},
		{"denia.example.com", "denia.example.com", controlHost},
		{"denia.example.com", "DENIA.example.com.:443", controlHost},
		{"denia.example.com", "localhost", nobody},
		{"denia.example.com", "10.0.0.1", nobody},
		{"denia.example.com", "app.example.com", serviceHost},
		{"denia.example.com", "evil-denia.example.com", nobody},
	} {
		e := &Engine{ingress: in}
		e.controlDomain.Store(&c.control)
		if got := e.owner(c.host); got != c.want {
			t.Errorf("control domain %q: %q belongs to %d, want %d", c.control, c.host, got, c.want)
		}
	}
}

func TestReloadTellsWhatNeedsARestart(t *testing.T) {
	before := (&App{Database: "sqlite", BaseDomain: "localhost"}).settings("/d")
	for want, app := range map[string]*App{
		"":            {Database: "sqlite", BaseDomain: "localhost", ControlDomain: "denia.example.com"},
		"database":    {Database: "postgres://h/d", BaseDomain: "localhost"},
		"base_domain": {Database: "sqlite", BaseDomain: "example.com"},
		"builds":      {Database: "sqlite", BaseDomain: "localhost", Builds: Builds{Workers: 2}},
	} {
		if got := before.needsRestart(app.settings("/d")); got != want {
			t.Errorf("changed to %+v: %q needs a restart, want %q", app.settings("/d"), got, want)
		}
	}
}

func TestADataDirectoryHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second lock gives %v, want an error that names the directory", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("after the first owner ended: %v", err)
	}
	_ = again.Close()
}

func TestAdminTokenIsMadeOnceAndPrivate(t *testing.T) {
	dir := t.TempDir()
	first, err := adminToken(settings{dataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "admin.token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v; want mode 0600", info, err)
	}
	if again, err := adminToken(settings{dataDir: dir}); err != nil || again != first {
		t.Errorf("the second start has %q, %v; want the token of the first", again, err)
	}
	if _, err := adminToken(settings{dataDir: dir, adminToken: "short"}); err == nil {
		t.Error("a short configured token is taken")
	}
}

func TestRegistryOfAnotherDatabaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if err := belongsTo(dir, "one"); err != nil {
			t.Fatal(err)
		}
	}
	if err := belongsTo(dir, "two"); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "instance one") {
		t.Errorf("another database's registry gives %v, want an error that names directory and owner", err)
	}
}

func TestEngineFindsTheRegistryWhereItWas(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registry.port")
	first, err := listenAgain(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := listenAgain(t.Context(), filepath.Join(t.TempDir(), "registry.port"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := first.Addr().String()
	_ = first.Close()
	again, err := listenAgain(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Addr().String() != address {
		t.Errorf("listens on %s after a restart, was on %s", again.Addr(), address)
	}
	other, err := listenAgain(t.Context(), file)
	if err != nil {
		t.Fatalf("the port is taken: %v, want another one", err)
	}
	_ = other.Close()
}

// A logger made from one configuration writes to the next one's, with its
// attributes.
func TestRelayFollowsTheConfiguration(t *testing.T) {
	var first, second bytes.Buffer
	r := newRelay(slog.New(slog.NewTextHandler(&first, nil)))
	log := slog.New(r).With("service", "app").WithGroup("g").With("k", 1)
	log.Info("one")
	r.use(slog.New(slog.NewTextHandler(&second, nil)))
	log.Info("two")
	if !strings.Contains(first.String(), "msg=one service=app g.k=1") || !strings.Contains(second.String(), "msg=two service=app g.k=1") {
		t.Errorf("first has %q, second %q", first.String(), second.String())
	}
}
