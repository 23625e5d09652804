// Command denia is Caddy with its standard modules and Denia's.
package main

import (
	_ "time/tzdata"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/denia-paas/denia/caddymodule"
)

func main() { caddycmd.Main() }
