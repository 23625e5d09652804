package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/denia-paas/denia/platform/api"
)

const command = "denia"

func init() {
	if caddy.CustomBinaryName == "" && programName() == command {
		caddy.CustomBinaryName = command
	}
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  command,
		Short: "Denia's own commands",
		Long:  "Denia's own commands. In a binary named denia the first word may be left out: denia health.",
		CobraFunc: func(root *cobra.Command) {
			root.AddCommand(healthCommand(), tokenCommand(), openapiCommand(), referenceCommand(), versionCommand())
		},
	})
	// In a binary called denia, `denia health` means `denia denia health`.
	if programName() == command && len(os.Args) > 1 && slices.Contains(ownCommands, os.Args[1]) {
		os.Args = slices.Insert(slices.Clone(os.Args), 1, command)
	}
}

// ownCommands are the words that are Denia's and not Caddy's. Caddy has a
// version command of its own: Denia's stays behind the word denia.
var ownCommands = []string{"health", "admin-token", "openapi", "api-reference"}

func programName() string {
	if len(os.Args) == 0 {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
}

func healthCommand() *cobra.Command {
	var url string
	c := &cobra.Command{
		Use: "health", Short: "Asks a running Denia whether it is well; exit code 1 when it is not", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), 5*time.Second)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/healthz", nil)
			if err != nil {
				return fmt.Errorf("reading --url: %w", err)
			}
			reply, err := http.DefaultClient.Do(request)
			if err != nil {
				return fmt.Errorf("asking %s: %w", url, err)
			}
			defer reply.Body.Close()
			body, err := io.ReadAll(io.LimitReader(reply.Body, 1<<10))
			if err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
			if reply.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answered %s", url, reply.Status)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), strings.TrimSpace(string(body)))
			return err
		},
	}
	c.Flags().StringVar(&url, "url", "http://localhost:8080", "where Denia listens")
	return c
}

func tokenCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "admin-token", Short: "Prints the admin token kept in the data directory", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no admin token in %s: Denia has not been started there, or takes it from its configuration", dir)
			}
			if err != nil {
				return fmt.Errorf("reading the admin token: %w", err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), strings.TrimSpace(string(token)))
			return err
		},
	}
	c.Flags().StringVar(&dir, "data-dir", "./data", "the data directory")
	return c
}

func openapiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "openapi", Short: "Prints the OpenAPI document of the API", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			document, err := api.OpenAPI()
			if err != nil {
				return fmt.Errorf("making the document: %w", err)
			}
			var indented bytes.Buffer
			if err := json.Indent(&indented, document, "", "  "); err != nil {
				return fmt.Errorf("formatting the document: %w", err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), indented.String())
			return err
		},
	}
}

func referenceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "api-reference", Short: "Prints the API reference as Markdown", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return api.WriteReference(c.OutOrStdout()) },
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Prints Denia's version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), Version())
			return err
		},
	}
}

// Version is Denia's version as the build recorded it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == "github.com/denia-paas/denia" && m.Version != "" && m.Version != "(devel)" {
			return m.Version
		}
	}
	return "devel"
}
