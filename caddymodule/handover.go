package caddymodule

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

func init() { caddy.RegisterModule(new(Handover)) }

// Handover is `caddy.listeners.denia`, for sockets that the process was given
// and that outlive it (fd/3). As soon as the process is about to end, it leaves
// new connections in the socket for the next process: net/http drops those whose
// first request arrives just as its server shuts down. And it leaves them there
// until the configuration has started: Caddy listens before it reads its
// certificates, and handshakes fail meanwhile.
type Handover struct {
	started chan struct{}
}

// CaddyModule returns the module's id and constructor.
func (*Handover) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.listeners.denia", New: func() caddy.Module { return new(Handover) }}
}

// Provision subscribes to the start of the configuration.
func (h *Handover) Provision(ctx caddy.Context) error {
	module, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the app events: %w", err)
	}
	h.started = make(chan struct{})
	return module.(*caddyevents.App).On(eventStarted, starter{h})
}

// starter hears that the configuration has started.
type starter struct{ handover *Handover }

// Handle implements caddyevents.Handler.
func (s starter) Handle(context.Context, caddy.Event) error {
	close(s.handover.started)
	return nil
}

// WrapListener implements caddy.ListenerWrapper.
func (h *Handover) WrapListener(l net.Listener) net.Listener {
	return &leavingListener{Listener: l, started: h.started, closed: make(chan struct{})}
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler; there are no options.
func (*Handover) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.ArgErr()
	}
	return nil
}

type leavingListener struct {
	net.Listener
	started <-chan struct{}
	once    sync.Once
	closed  chan struct{}
}

func (l *leavingListener) Accept() (net.Conn, error) {
	select {
	case <-l.started:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	if caddy.Exiting() {
		<-l.closed
		return nil, net.ErrClosed
	}
	return l.Listener.Accept()
}

func (l *leavingListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handover)(nil)
	_ caddy.ListenerWrapper = (*Handover)(nil)
	_ caddyfile.Unmarshaler = (*Handover)(nil)
)
