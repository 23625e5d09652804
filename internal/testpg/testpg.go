// Package testpg gives tests a real PostgreSQL.
package testpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Env names the environment variable with the address of a server to use, as
// in postgres://user:password@127.0.0.1/postgres. Its user must be allowed to
// create databases.
const Env = "DENIA_TEST_POSTGRES"

// Start returns the address of an empty database that is tb's own and is
// dropped when tb ends. The server is the one named by Env; without it, one
// that the test binary starts from Debian's packages and that goes away with
// it, however it ends. Tests that need PostgreSQL fail where there is neither.
func Start(tb testing.TB) (dsn string) {
	tb.Helper()
	server := os.Getenv(Env)
	if server == "" {
		var err error
		if server, err = cluster(); err != nil {
			tb.Fatalf("starting PostgreSQL: %v", err)
		}
	}
	address, err := url.Parse(server)
	if err != nil {
		tb.Fatalf("%s is no URL", Env)
	}
	name := "denia_test_" + strings.ToLower(rand.Text())
	run(tb, server, "CREATE DATABASE "+name+" TEMPLATE template0")
	tb.Cleanup(func() { run(tb, server, "DROP DATABASE "+name+" WITH (FORCE)") })
	address.Path = "/" + name
	return address.String()
}

func run(tb testing.TB, server, statement string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		tb.Fatalf("connecting to PostgreSQL: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		tb.Fatalf("%s: %v", statement, err)
	}
}

// watch runs a server until its standard input ends, which it does when the
// test binary is gone, be it killed, and removes what the server left.
const watch = `"$0" -D "$1/data" -k "$1" -c listen_addresses= -c fsync=off -c shared_buffers=16MB -c max_connections=100 &
server=$!
cat >/dev/null
kill -INT $server
wait $server
rm -rf "$1"`

// cluster starts a server of this test binary's own, on a Unix socket.
var cluster = sync.OnceValues(func() (address string, err error) {
	postgres, err := newestPostgres()
	if err != nil {
		return "", err
	}
	owner, err := serverAccount()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "denia-pg-")
	if err != nil {
		return "", err
	}
	watched := false
	defer func() {
		if !watched {
			os.RemoveAll(dir)
		}
	}()
	if owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return "", err
		}
	}
	initdb := exec.Command(filepath.Join(filepath.Dir(postgres), "initdb"),
		"--pgdata", filepath.Join(dir, "data"), "--username=denia", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", err
	}
	defer log.Close()
	var stdin *os.File
	if stdin, held, err = os.Pipe(); err != nil {
		return "", err
	}
	defer stdin.Close()
	server := exec.Command("/bin/sh", "-c", watch, postgres, dir)
	server.Dir, server.Stdin, server.Stdout, server.Stderr = dir, stdin, log, log
	// Its own process group: an interrupt from the terminal is for the tests,
	// the server follows when they have ended.
	server.SysProcAttr = &syscall.SysProcAttr{Credential: owner, Setpgid: true}
	if err := server.Start(); err != nil {
		return "", err
	}
	watched = true
	address = "postgres://denia@/postgres?sslmode=disable&host=" + url.QueryEscape(dir)
	if err := ready(address); err != nil {
		text, _ := os.ReadFile(log.Name())
		return "", fmt.Errorf("%w\n%s", err, text)
	}
	return address, nil
})

// held keeps the writing end of the server's standard input open as long as
// this process lives: a file that nothing refers to would be closed.
var held *os.File //nolint:unused // holding it is its use

func ready(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, address)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not accept connections: %w", err)
		case <-tick.C:
		}
	}
}

func newestPostgres() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errors.New("the tests need a real PostgreSQL: install Debian's package postgresql, or set " + Env + " to the address of a server")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // 0 for a name that is no number
		return n
	}
	return slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }), nil
}

// serverAccount returns the account to run the server under: PostgreSQL
// refuses to run as root. Nil means the present one.
func serverAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
