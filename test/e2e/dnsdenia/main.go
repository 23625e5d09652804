// Command dnsdenia is Denia with a DNS provider built in, as its users build it
// with theirs. This one tells a test which records it is to have.
package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/libdns/libdns"

	_ "github.com/denia-paas/denia/caddymodule"
)

func init() { caddy.RegisterModule(new(provider)) }

func main() { caddycmd.Main() }

// provider is `dns.providers.test`.
type provider struct {
	URL string `json:"url"`
}

// CaddyModule returns the module's id and constructor.
func (*provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "dns.providers.test", New: func() caddy.Module { return new(provider) }}
}

// UnmarshalCaddyfile takes the address of the test.
func (p *provider) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&p.URL) {
		return d.ArgErr()
	}
	return nil
}

// AppendRecords implements libdns.RecordAppender.
func (p *provider) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.tell(ctx, http.MethodPut, zone, records)
}

// DeleteRecords implements libdns.RecordDeleter.
func (p *provider) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.tell(ctx, http.MethodDelete, zone, records)
}

func (p *provider) tell(ctx context.Context, method, zone string, records []libdns.Record) error {
	for _, record := range records {
		rr := record.RR()
		what := url.Values{"name": {libdns.AbsoluteName(rr.Name, zone)}, "value": {rr.Data}}
		request, err := http.NewRequestWithContext(ctx, method, p.URL+"?"+what.Encode(), nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("telling the test: %s", answer.Status)
		}
	}
	return nil
}
