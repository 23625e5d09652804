package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

var idempotencyKeyShape = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)

// keyed is an Idempotency-Key, and the token it was used with: keys of
// different tokens are different keys, so that none replays what it could not
// have asked for.
type keyed struct{ scope, key string }

// idempotency reads the Idempotency-Key; nil when there is none.
func idempotency(c *call) (*keyed, error) {
	key := c.request.Header.Get("Idempotency-Key")
	if key == "" {
		return nil, nil
	}
	if !idempotencyKeyShape.MatchString(key) {
		return nil, platform.Errorf(platform.Malformed, "bad_idempotency_key", "Idempotency-Key must be 1 to 255 printable ASCII characters without spaces")
	}
	scope := string(c.identity().TokenID)
	if scope == "" {
		scope = adminActor
	}
	return &keyed{scope, key}, nil
}

// reserve claims the key for this request; a stored reply is the answer to it.
// The hash is keyed with the caller's token, which Denia does not keep: a body
// may hold a password, which a plain hash would let somebody guess.
func (a *API) reserve(ctx context.Context, c *call, k *keyed, body []byte) (*store.StoredReply, error) {
	hash := hmac.New(sha256.New, []byte(c.secret))
	fmt.Fprintf(hash, "%s %s\n", c.request.Method, c.request.URL.RequestURI())
	hash.Write(body)
	return a.Store.ReserveIdempotency(ctx, k.scope, k.key, hash.Sum(nil), time.Now())
}

// settle keeps a successful reply for 24 h and forgets any other, so that what
// failed can be tried again.
func (a *API) settle(ctx context.Context, k *keyed, out *reply) {
	ctx = context.WithoutCancel(ctx)
	var err error
	if out.status/100 == 2 {
		kept := store.StoredReply{Status: out.status, Header: map[string]string{}, Body: out.body.Bytes()}
		for _, name := range []string{"Content-Type", "Location", "ETag", "Link"} {
			if value := out.header.Get(name); value != "" {
				kept.Header[name] = value
			}
		}
		err = a.Store.FinishIdempotency(ctx, k.scope, k.key, kept)
	} else {
		err = a.Store.ReleaseIdempotency(ctx, k.scope, k.key)
	}
	if err != nil {
		a.Log.ErrorContext(ctx, "settling an idempotency key failed", "error", err)
	}
}

// once runs a JSON operation, at most once for an Idempotency-Key.
func (a *API) once(rt *route, out *reply, r *http.Request, body []byte) {
	if !rt.creates {
		rt.run(out, r)
		return
	}
	c := callFrom(r.Context())
	k, err := idempotency(c)
	if err != nil {
		fail(out, r, err)
		return
	}
	if k == nil {
		rt.run(out, r)
		return
	}
	stored, err := a.reserve(r.Context(), c, k, body)
	if err != nil {
		fail(out, r, err)
		return
	}
	if stored != nil {
		replay(out, stored)
		return
	}
	defer a.settle(r.Context(), k, out) // after a panic too: the key is free again
	rt.run(out, r)
}

func replay(out http.ResponseWriter, stored *store.StoredReply) {
	for name, value := range stored.Header {
		out.Header().Set(name, value)
	}
	out.Header().Set("Idempotency-Replayed", "true")
	out.WriteHeader(stored.Status)
	_, _ = out.Write(stored.Body) // the client is gone: nobody is left to tell
}
