package caddymodule

import (
	"context"
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
)

// Caddy's events that concern configurations and certificates.
const (
	eventStarted   = "started"  // the configuration, as a whole
	eventStopping  = "stopping" // before any of its apps is told to
	eventObtaining = "cert_obtaining"
	eventObtained  = "cert_obtained"
	eventFailed    = "cert_failed"
)

// listen subscribes to what Caddy tells about its configuration and its
// certificates.
func (a *App) listen(ctx caddy.Context) error {
	module, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the app events: %w", err)
	}
	return module.(*caddyevents.App).Subscribe(&caddyevents.Subscription{
		Events:   []string{eventStarted, eventStopping, eventObtaining, eventObtained, eventFailed},
		Handlers: []caddyevents.Handler{listener{a}},
	})
}

// listener passes events on to the Engine.
type listener struct{ app *App }

// Handle implements caddyevents.Handler.
func (l listener) Handle(_ context.Context, event caddy.Event) error {
	if event.Name() == eventStopping {
		return l.app.outlive()
	}
	engine := l.app.current()
	if engine == nil {
		return nil
	}
	name, _ := event.Data["identifier"].(string)
	renewal, _ := event.Data["renewal"].(bool)
	switch event.Name() {
	case eventStarted:
		var view automation
		if l.app.tls != nil {
			view = l.app.tls
		}
		engine.certificates.useView(view)
	case eventObtaining:
		if err := engine.certificates.obtaining(name, renewal); err != nil {
			return fmt.Errorf("%w: %w", caddy.ErrEventAborted, certmagic.ErrNoRetry{Err: err})
		}
	case eventObtained:
		engine.certificates.obtained(name)
	case eventFailed:
		if err, ok := event.Data["error"].(error); ok {
			engine.certificates.failure(name, renewal, err)
		}
	}
	return nil
}

// outlive has requests and streams live on after a reload, over HTTP/3 as well:
// after the grace period Caddy closes the connections of that protocol alone. The
// period is for the end of the process.
func (a *App) outlive() error {
	if caddy.Exiting() {
		return nil
	}
	module, err := a.ctx.AppIfConfigured("http")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil
	}
	if err != nil {
		return err
	}
	module.(*caddyhttp.App).GracePeriod = 0 // none
	return nil
}

// Interface guard
var _ caddyevents.Handler = listener{}
