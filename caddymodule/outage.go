package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// manyNames is how many names have to fail, and none to succeed, until it is
// taken for the authority's failure rather than theirs.
const manyNames = 3

var errOutage = errors.New("the certificate authority does not answer")

// authorityOutage is a time in which the authority does not answer. One name at a time
// finds out, later and later, whether that has ended, and all others wait for
// it: else each would go on by itself, and there may be thousands.
type authorityOutage struct {
	names    map[string]struct{} // that have failed; few, as no more are tried
	failures int                 // in a row, once it is an outage; 0: it is none
	until    time.Time           // no orders before
	probe    string              // the name that finds out
}

// next is when another order is allowed: zero when it is now.
func (o *authorityOutage) next(now time.Time) time.Time {
	if now.Before(o.until) {
		return o.until
	}
	return time.Time{}
}

// begin is told of an order that next has allowed.
func (o *authorityOutage) begin(name string, now time.Time) {
	if o.failures > 0 {
		o.probe, o.until = name, now.Add(patience)
	}
}

// failed is told of an order that the authority did not answer. Those that were
// under way when the outage began say nothing new.
func (o *authorityOutage) failed(name string, now time.Time) {
	if o.failures > 0 && name != o.probe {
		return
	}
	if o.names == nil {
		o.names = map[string]struct{}{}
	}
	if o.names[name] = struct{}{}; len(o.names) < manyNames {
		return
	}
	o.failures++
	o.probe, o.until = "", now.Add(spread(afterTrouble[min(o.failures, len(afterTrouble))-1]))
}

// end is told that the authority has answered. It tells whether that was an
// outage's end.
func (o *authorityOutage) end() bool {
	was := o.failures > 0
	*o = authorityOutage{}
	return was
}

// unanswered tells whether an order failed because the authority did not answer,
// or did not know what. Validations that take too long are not the authority's
// failure: owners of domains must not be able to stop all orders.
func unanswered(err error) bool {
	if problem, ok := errors.AsType[acme.Problem](err); ok {
		return problem.Status >= http.StatusInternalServerError
	}
	_, sent := errors.AsType[*url.Error](err)
	return sent && !errors.Is(err, context.Canceled)
}

// answered has the names go on that wait for an outage's end.
func (c *certificates) answered() {
	if !c.outage.end() {
		return
	}
	c.log.Info("the certificate authority answers again")
	due := time.Now()
	for _, e := range c.entries {
		if e.err != errOutage.Error() {
			continue
		}
		e.err, e.retry, e.nextTry = "", time.Time{}, time.Time{}
		if e.kind.eager() && !e.gone {
			c.reschedule(e, due)
			due = due.Add(pace)
		}
	}
}
