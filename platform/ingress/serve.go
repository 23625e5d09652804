package ingress

import (
	"errors"
	"net/http"
	"os"
	"time"
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
	in   *Ingress
	pool *pool
	w    http.ResponseWriter
	r    *http.Request
	id   string
	body requestBody

	ip      string // the client's
	trusted bool   // the peer is a proxy that is believed

	status int   // of the answer the client was given, 0 before
	sent   int64 // bytes of its body
	noted        // for the access entry

	// What plain requests do not need is made when it is needed.
	rc     *http.ResponseController
	header http.Header // to send upstream
	bridge *bridge     // of a WebSocket that is no connection, else nil
}

// failure is why an attempt got no answer.
type failure struct {
	err    error
	view   *bodyView // what the attempt read, nil for nothing
	unsent bool      // surely nothing of the request reached the replica
	unread bool      // some of the request was never read by the replica
	final  bool      // there must be no other attempt, or it would fail the same way
	twice  bool      // it was sent again, and both times something may have arrived

	refused *refusal // what to tell the client, as it is at fault; else nil
}

// ServeHTTP forwards the request to the service of its host. When the replica
// breaks off in the midst of its answer, it panics with http.ErrAbortHandler,
// so that the client can tell.
func (in *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := exchange{in: in, w: w, r: r, id: requestID(r)}
	x.body.src, x.body.length = r.Body, r.ContentLength
	x.began = time.Now()
	x.pool = in.hosts.Load().lookup(r.Host)
	if x.pool == nil {
		in.unknown.Add(1)
		x.refuse(refuseUnknown)
		return
	}
	x.ip, x.trusted = in.options.Client(r)
	defer x.note()
	var refused *refusal
	if r.Method == http.MethodConnect {
		refused = x.connect()
	}
	if refused != nil {
		x.refuse(refused)
	} else {
		x.serve()
	}
	x.whole = true
}

// Redirect sends the client to location for good, in place of the service of its
// host: the request has its access entry there.
func (in *Ingress) Redirect(w http.ResponseWriter, r *http.Request, location string) {
	x := exchange{in: in, w: w, r: r, id: requestID(r), pool: in.hosts.Load().lookup(r.Host)}
	x.began = time.Now()
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // the client goes elsewhere, and may leave a body unsent
	}
	w.Header().Set("Location", location)
	x.status = http.StatusPermanentRedirect
	w.WriteHeader(x.status)
	if x.pool != nil { // else it was taken away meanwhile
		x.whole = true
		x.ip, x.trusted = in.options.Client(r)
		x.note()
	}
}

func (x *exchange) refuse(f *refusal) {
	x.status, x.refused = f.status, f
	x.leaveUnread()
	page := countingWriter{ResponseWriter: x.w}
	f.write(&page, x.r, x.id)
	if x.r.Method != http.MethodHead {
		x.sent = page.written
	}
}

func (x *exchange) serve() {
	if !validRequest(x.r) {
		x.refuse(refuseRequest)
		return
	}
	x.body.src, x.body.length = x.r.Body, x.r.ContentLength // connect has made another request
	defer x.body.done()

	ctx := x.r.Context()
	wait := &x.wait
	wait.total = x.in.options.WaitTimeout
	broken := 0
	var avoid *upstream
	for attempts := 1; ; attempts++ {
		u, refused := x.pool.acquire(ctx, wait, avoid)
		if refused != nil {
			x.refuse(refused)
			return
		}
		failed := x.attempt(u)
		if failed == nil {
			u.answered()
			return
		}
		if !failed.unsent {
			if broken++; failed.twice {
				broken++
			}
		}
		switch {
		case failed.refused != nil:
			x.refuse(failed.refused)
		case x.body.isCut():
			// The read was ended here, because u was cut, not by the client.
			x.refuse(refuseBroken(x.pool.name(), false))
		case errors.Is(x.body.failure(), os.ErrDeadlineExceeded):
			// The server takes this for the client's end, but the client is there.
			x.refuse(refuseStalled)
		case ctx.Err() != nil:
			x.refuse(refuseGone)
		case x.body.failure() != nil:
			x.refuse(refuseBodyError(x.body.failure()))
		case failed.final || !x.body.replayable(failed.view) || broken > maxBroken || !failed.unsent && !x.repeatable(u, failed):
			x.in.options.Log.Warn("a replica did not answer", "service", x.pool.name(), "replica", u.target.ID,
				"method", x.r.Method, "error", failed.err, "request_id", x.id)
			if !failed.unsent {
				u.failed()
			}
			x.refuse(refuseBroken(x.pool.name(), broken > 1))
		case attempts >= maxAttempts || wait.left() <= 0:
			x.refuse(refuseTimeout(x.pool.name(), wait.total))
		default:
			avoid = u
			if !failed.unsent {
				u.failed()
				x.pool.settle(ctx, u, wait)
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
	x.tried = u
	x.tries++
	protocol := x.upgradeTo()
	if protocol == "" {
		if err := x.body.fetch(x.r); err != nil {
			return &failure{err: err}
		}
		if x.isPlain(u) {
			return x.forwardPlain(u)
		}
	}
	if x.header == nil {
		header, err := x.requestHeader()
		if err != nil {
			return &failure{err: err, refused: refuseRequest}
		}
		x.header, x.rc = header, http.NewResponseController(x.w)
	}
	if protocol != "" {
		return x.upgrade(u, protocol)
	}
	return x.forward(u)
}

// asItCame keeps servers from guessing what kind an answer is that does not say
// so: the guess would depend on how much of it is there at a time.
func asItCame(h http.Header) {
	if _, said := h["Content-Type"]; !said {
		h["Content-Type"] = nil
	}
}

// begin begins the answer. Its header is set.
func (x *exchange) begin(status int) {
	x.status, x.answered = status, time.Since(x.began)
	x.leaveUnread()
	x.w.WriteHeader(status)
	if x.r.ProtoMajor == 3 && (status == http.StatusNoContent || status == http.StatusNotModified || x.r.Method == http.MethodHead) {
		// Else the server says, as soon as we return, that there is an empty body.
		_ = http.NewResponseController(x.w).Flush()
	}
}

// leaveUnread makes an answer that begins before the request has ended the last
// on its connection. What is left of the body must not be taken for a request:
// the server sees to that by itself, but not where middleware has wrapped the
// body (which Caddy does) and the answer may begin early.
func (x *exchange) leaveUnread() {
	if x.r.ProtoMajor == 1 && x.body.unread() {
		x.w.Header()["Connection"] = []string{"close"}
	}
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
