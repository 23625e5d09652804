// Command xcaddy-build builds Caddy with Denia's modules, from this checkout,
// and any further plugins:
//
//	go run ./cmd/xcaddy-build --output ./denia --with github.com/caddy-dns/cloudflare@latest
//
// It needs Go and the module proxy, and takes as long as a cold build does.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caddyserver/xcaddy"
)

const module = "github.com/denia-paas/denia"

type plugins []xcaddy.Dependency

func (p *plugins) String() string { return fmt.Sprint(*p) }

func (p *plugins) Set(value string) error {
	path, version, _ := strings.Cut(value, "@")
	if path == "" {
		return fmt.Errorf("want module[@version], got %q", value)
	}
	*p = append(*p, xcaddy.Dependency{PackagePath: path, Version: version})
	return nil
}

func main() {
	var with plugins
	output := flag.String("output", "denia", "the file to write")
	flag.Var(&with, "with", "a further Caddy plugin, `module[@version]`; may be repeated")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "xcaddy-build: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := build(ctx, *output, with)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "xcaddy-build: %v\n", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, output string, with []xcaddy.Dependency) error {
	root, err := checkout(ctx)
	if err != nil {
		return err
	}
	caddy, err := caddyVersion(ctx, root)
	if err != nil {
		return err
	}
	builder := xcaddy.Builder{
		Compile:      xcaddy.Compile{Cgo: false},
		CaddyVersion: caddy,
		// Without a version xcaddy would ask the module proxy for one; the
		// replacement makes any do.
		Plugins:      append([]xcaddy.Dependency{{PackagePath: module, Version: "v0.0.0"}}, with...),
		Replacements: []xcaddy.Replace{xcaddy.NewReplace(module, root)},
		BuildFlags:   "-trimpath -ldflags '-s -w' -tags nobadger,nomysql,nopgx",
	}
	if err := builder.Build(ctx, output); err != nil {
		return fmt.Errorf("building Caddy %s with Denia: %w", caddy, err)
	}
	return nil
}

// checkout finds the root of the module this program was started in.
func checkout(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("finding Denia's checkout (run this inside it): %w", err)
	}
	return filepath.Abs(strings.TrimSpace(string(out)))
}

// caddyVersion is the one that go.mod names: the one Denia is tested with.
func caddyVersion(ctx context.Context, root string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "github.com/caddyserver/caddy/v2")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("reading Caddy's version from go.mod: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
