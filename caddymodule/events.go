package caddymodule

import (
	"context"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/certmagic"
)

// Caddy's events that concern certificates.
const (
	eventStarted   = "started" // the configuration, as a whole
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
		Events:   []string{eventStarted, eventObtaining, eventObtained, eventFailed},
		Handlers: []caddyevents.Handler{listener{a}},
	})
}

// listener passes events on to the Engine.
type listener struct{ app *App }

// Handle implements caddyevents.Handler.
func (l listener) Handle(_ context.Context, event caddy.Event) error {
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

// Interface guard
var _ caddyevents.Handler = listener{}
