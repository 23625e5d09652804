package ingress

import (
	"errors"
	"net/http"
)

const (
	// A request that breaks a replica must not go on to break them all.
	maxBroken = 2
	// Each of these met a replica that passed its probe and then accepted no
	// connection; the waiting room's time usually ends it before.
	maxAttempts = 32
)

// exchange is one request on its way.
type exchange struct {
	in     *Ingress
	pool   *pool
	w      http.ResponseWriter
	rc     *http.ResponseController
	r      *http.Request
	id     string
	header http.Header // to send upstream
	body   requestBody
}

// failure is why an attempt got no answer.
type failure struct {
	err    error
	view   *bodyView // what the attempt read, nil for nothing
	unsent bool      // surely nothing of the request reached the replica
	unread bool      // some of the request was never read by the replica
	final  bool      // another attempt would fail the same way
}

// ServeHTTP forwards the request to the service of its host. When the replica
// breaks off in the midst of its answer, it panics with http.ErrAbortHandler,
// so that the client can tell.
func (in *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := exchange{in: in, w: w, r: r, id: requestID(r)}
	x.pool = in.hosts.Load().lookup(r.Host)
	switch {
	case x.pool == nil:
		x.refuse(refuseUnknown)
	case r.Method == http.MethodConnect:
		x.refuse(refuseConnect)
	default:
		x.serve()
	}
}

func (x *exchange) refuse(f *refusal) { f.write(x.w, x.r, x.id) }

func (x *exchange) serve() {
	x.rc = http.NewResponseController(x.w)
	x.header = x.in.requestHeader(x.r, x.id)
	x.body.src, x.body.length = x.r.Body, x.r.ContentLength
	defer x.body.done()

	ctx := x.r.Context()
	wait := patience{total: x.in.options.WaitTimeout}
	broken := 0
	var avoid *upstream
	for attempts := 1; ; attempts++ {
		u, refused := x.pool.acquire(ctx, &wait, avoid)
		if refused != nil {
			x.refuse(refused)
			return
		}
		failed := x.attempt(u)
		if failed == nil {
			return
		}
		if !failed.unsent {
			broken++
		}
		switch {
		case u.ended.Load() && x.body.failure() != nil:
			// The read was ended here, because u was cut, not by the client.
			x.refuse(refuseBroken(x.pool.name(), false))
		case ctx.Err() != nil:
			x.refuse(refuseGone)
		case x.body.failure() != nil:
			x.refuse(refuseBodyError(x.body.failure()))
		case failed.final || !x.body.replayable(failed.view) || broken > maxBroken || !failed.unsent && !x.repeatable(u, failed):
			x.in.options.Log.Warn("a replica did not answer", "service", x.pool.name(), "replica", u.target.ID,
				"method", x.r.Method, "error", failed.err, "request_id", x.id)
			x.refuse(refuseBroken(x.pool.name(), broken > 1))
		case attempts >= maxAttempts || wait.left() <= 0:
			x.refuse(refuseTimeout(x.pool.name(), wait.total))
		default:
			avoid = u
			if !failed.unsent {
				x.pool.settle(ctx, u, &wait)
			}
			continue
		}
		return
	}
}

// attempt sends the request to u, which has been claimed, and releases it. It
// returns nil when the client has been answered.
func (x *exchange) attempt(u *upstream) *failure {
	defer u.release()
	if protocol := upgradeTo(x.r); protocol != "" {
		return x.upgrade(u, protocol)
	}
	return x.forward(u)
}

// repeatable tells whether a request that may have reached u may be sent again:
// where the method says so, and where u has died before it had read all of it.
// What was read in part only is no request yet (RFC 9112 §8).
func (x *exchange) repeatable(u *upstream, failed *failure) bool {
	return idempotent(x.r) || failed.unread && u.isDead()
}

func refuseBodyError(err error) *refusal {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuseTooLarge(tooLarge.Limit)
	}
	return refuseBody
}
