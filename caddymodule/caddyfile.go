package caddymodule

import (
	"math"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("denia", parseGlobal)
	for name, make := range map[string]func() caddyhttp.MiddlewareHandler{
		"denia":          func() caddyhttp.MiddlewareHandler { return new(Handler) },
		"denia_api":      func() caddyhttp.MiddlewareHandler { return new(APIHandler) },
		"denia_ingress":  func() caddyhttp.MiddlewareHandler { return new(IngressHandler) },
		"denia_registry": func() caddyhttp.MiddlewareHandler { return new(RegistryHandler) },
	} {
		httpcaddyfile.RegisterHandlerDirective(name, func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
			h.Next() // the directive's name
			if h.NextArg() {
				return nil, h.ArgErr()
			}
			for h.NextBlock(0) {
				return nil, h.Errf("%s takes no block; options belong in the global option denia", name)
			}
			return make(), nil
		})
		httpcaddyfile.RegisterDirectiveOrder(name, httpcaddyfile.Before, "respond")
	}
}

// parseGlobal reads the global option:
//
//	denia {
//		data_dir       <path>
//		database       sqlite|<postgres url>
//		docker_host    <address>
//		base_domain    <host>
//		control_domain <host>
//		admin_token    <token>
//		uploads {
//			max_packed   <size>
//			max_unpacked <size>
//			max_entries  <number>
//			max_ratio    <number>
//		}
//		builds {
//			workers       <number>
//			timeout       <duration>
//			pull_timeout  <duration>
//			reserve       <size>
//			keep_releases <number>
//		}
//		ingress {
//			wait_timeout  <duration>
//			max_waiting   <number>
//			dial_timeout  <duration>
//			requests_size <size>
//		}
//		logs {
//			max_size <size>
//		}
//		registry {
//			lease         <duration>
//			upload_ttl    <duration>
//			max_manifest  <size>
//			cache_size    <size>
//			cache_ttl     <duration>
//			scrub_per_day <size>
//		}
//		domains {
//			allow_private
//			resolver       <ip:port>
//			recheck        <duration>
//			challenge_port <number>
//		}
//		certificates {
//			orders_per_hour   <number>
//			orders_per_domain <number>
//		}
//	}
func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		return nil, d.Err("the option denia is there twice")
	}
	d.Next() // the option's name
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	var app App
	text := map[string]*string{
		"data_dir": &app.DataDir, "database": &app.Database, "docker_host": &app.DockerHost,
		"base_domain": &app.BaseDomain, "control_domain": &app.ControlDomain, "admin_token": &app.AdminToken,
	}
	blocks := map[string]map[string]func(*caddyfile.Dispenser) error{
		"uploads": {
			"max_packed":   size(&app.Uploads.MaxPackedBytes),
			"max_unpacked": size(&app.Uploads.MaxUnpackedBytes),
			"max_entries":  number(&app.Uploads.MaxEntries),
			"max_ratio":    number(&app.Uploads.MaxRatio),
		},
		"builds": {
			"workers":       number(&app.Builds.Workers),
			"timeout":       duration(&app.Builds.Timeout),
			"pull_timeout":  duration(&app.Builds.PullTimeout),
			"reserve":       size(&app.Builds.ReserveBytes),
			"keep_releases": number(&app.Builds.KeepReleases),
		},
		"ingress": {
			"wait_timeout":  duration(&app.Ingress.WaitTimeout),
			"max_waiting":   number(&app.Ingress.MaxWaiting),
			"dial_timeout":  duration(&app.Ingress.DialTimeout),
			"requests_size": size(&app.Ingress.RequestsBytes),
		},
		"logs": {"max_size": size(&app.Logs.MaxBytes)},
		"registry": {
			"lease":         duration(&app.Registry.Lease),
			"upload_ttl":    duration(&app.Registry.UploadTTL),
			"max_manifest":  size(&app.Registry.MaxManifestBytes),
			"cache_size":    size(&app.Registry.CacheBytes),
			"cache_ttl":     duration(&app.Registry.CacheTTL),
			"scrub_per_day": size(&app.Registry.ScrubBytes),
		},
		"domains": {
			"allow_private":  flag(&app.Domains.AllowPrivate),
			"resolver":       word(&app.Domains.Resolver),
			"recheck":        duration(&app.Domains.Recheck),
			"challenge_port": number(&app.Domains.ChallengePort),
		},
		"certificates": {
			"orders_per_hour":   number(&app.Certificates.OrdersPerHour),
			"orders_per_domain": number(&app.Certificates.OrdersPerDomain),
		},
	}
	for d.NextBlock(0) {
		name := d.Val()
		if field, ok := text[name]; ok {
			if !d.Args(field) || d.NextArg() {
				return nil, d.ArgErr()
			}
			continue
		}
		block, ok := blocks[name]
		if !ok {
			return nil, d.Errf("unknown option %q of denia", name)
		}
		if d.NextArg() {
			return nil, d.ArgErr()
		}
		for d.NextBlock(1) {
			set, ok := block[d.Val()]
			if !ok {
				return nil, d.Errf("unknown option %q of denia's %s", d.Val(), name)
			}
			if err := set(d); err != nil {
				return nil, err
			}
		}
	}
	if err := app.validatePlaceholders(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "denia", Value: caddyconfig.JSON(&app, nil)}, nil
}

// validatePlaceholders checks early what can be checked, so that the error
// names the file and the line.
func (a *App) validatePlaceholders(d *caddyfile.Dispenser) error {
	replaced := App{Database: a.Database, BaseDomain: a.BaseDomain, ControlDomain: a.ControlDomain, AdminToken: a.AdminToken, Uploads: a.Uploads, Builds: a.Builds, Ingress: a.Ingress, Logs: a.Logs, Registry: a.Registry, Certificates: a.Certificates, Domains: a.Domains}
	replaced.replace()
	if err := replaced.validate(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// replace resolves placeholders such as {env.NAME}.
func (a *App) replace() {
	r := caddy.NewReplacer()
	for _, field := range []*string{&a.DataDir, &a.Database, &a.DockerHost, &a.BaseDomain, &a.ControlDomain, &a.AdminToken} {
		*field = r.ReplaceAll(*field, "")
	}
}

func argument(d *caddyfile.Dispenser) (string, error) {
	var value string
	if !d.Args(&value) || d.NextArg() {
		return "", d.ArgErr()
	}
	return value, nil
}

func flag(into *bool) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		*into = true
		return nil
	}
}

func word(into *string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) (err error) {
		*into, err = argument(d)
		return err
	}
}

func size(into *int64) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := argument(d)
		if err != nil {
			return err
		}
		n, err := humanize.ParseBytes(value)
		if err != nil || n > math.MaxInt64 {
			return d.Errf("%s: %q is no size; write for example 512MiB", name, value)
		}
		*into = int64(n)
		return nil
	}
}

func number(into *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := argument(d)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return d.Errf("%s: %q is no number above zero", name, value)
		}
		*into = n
		return nil
	}
}

func duration(into *caddy.Duration) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := argument(d)
		if err != nil {
			return err
		}
		parsed, err := caddy.ParseDuration(value)
		if err != nil || parsed <= 0 {
			return d.Errf("%s: %q is no duration above zero; write for example 30s", name, value)
		}
		*into = caddy.Duration(parsed)
		return nil
	}
}
