// Package denia plugs Denia's modules into Caddy. It exists so that xcaddy,
// which wants a package at a module's root, can build Caddy with Denia:
//
//	xcaddy build --with github.com/denia-paas/denia
package denia

import _ "github.com/denia-paas/denia/caddymodule" // registers the modules
