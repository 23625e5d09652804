package caddymodule

import (
	"net"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(Handover{}) }

// Handover is `caddy.listeners.denia`, for sockets that the process was given
// and that outlive it (fd/3): as soon as the process is about to end, it leaves
// new connections in the socket for the next process. Without it, net/http drops
// those whose first request arrives just as its server shuts down.
type Handover struct{}

// CaddyModule returns the module's id and constructor.
func (Handover) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.listeners.denia", New: func() caddy.Module { return new(Handover) }}
}

// WrapListener implements caddy.ListenerWrapper.
func (Handover) WrapListener(l net.Listener) net.Listener {
	return &leavingListener{Listener: l, closed: make(chan struct{})}
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler; there are no options.
func (Handover) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.ArgErr()
	}
	return nil
}

type leavingListener struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *leavingListener) Accept() (net.Conn, error) {
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
	_ caddy.ListenerWrapper = Handover{}
	_ caddyfile.Unmarshaler = Handover{}
)
