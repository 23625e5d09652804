package caddymodule

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// relay is a slog.Handler that passes on to the newest configuration's logger:
// each belongs to one configuration, the Engine outlives them. Attributes and
// groups are kept and laid on again.
type relay struct {
	current *atomic.Pointer[slog.Handler]
	wrap    []func(slog.Handler) slog.Handler
}

func newRelay(log *slog.Logger) *relay {
	r := &relay{current: new(atomic.Pointer[slog.Handler])}
	r.use(log)
	return r
}

func (r *relay) use(log *slog.Logger) {
	handler := log.Handler()
	r.current.Store(&handler)
}

func (r *relay) Enabled(ctx context.Context, level slog.Level) bool {
	return (*r.current.Load()).Enabled(ctx, level)
}

func (r *relay) Handle(ctx context.Context, record slog.Record) error {
	handler := *r.current.Load()
	for _, wrap := range r.wrap {
		handler = wrap(handler)
	}
	return handler.Handle(ctx, record)
}

func (r *relay) with(wrap func(slog.Handler) slog.Handler) slog.Handler {
	return &relay{current: r.current, wrap: append(r.wrap[:len(r.wrap):len(r.wrap)], wrap)}
}

func (r *relay) WithAttrs(attrs []slog.Attr) slog.Handler {
	return r.with(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (r *relay) WithGroup(name string) slog.Handler {
	return r.with(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}
