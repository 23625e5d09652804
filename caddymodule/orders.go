package caddymodule

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/net/publicsuffix"
)

// window allows limit orders in any span of time.
type window struct {
	limit int
	span  time.Duration
	taken []time.Time
}

// next is when another order is allowed: zero when it is now.
func (w *window) next(now time.Time) time.Time {
	w.forget(now)
	if len(w.taken) < w.limit {
		return time.Time{}
	}
	return w.taken[0].Add(w.span)
}

func (w *window) take(now time.Time) { w.taken = append(w.taken, now) }

func (w *window) forget(now time.Time) {
	for len(w.taken) > 0 && now.Sub(w.taken[0]) >= w.span {
		w.taken = w.taken[1:]
	}
}

// domainSpan is for how long orders below one registered domain count: public
// authorities count them by the week.
const domainSpan = 7 * 24 * time.Hour

// orders are the new certificates that were ordered lately. Renewals do not
// count: authorities exempt them, and they are as many as there were orders.
type orders struct {
	perDomain int
	all       window
	domains   map[string]*window // by registered domain
}

func newOrders(c Certificates) *orders {
	return &orders{
		perDomain: c.OrdersPerDomain,
		all:       window{limit: c.OrdersPerHour, span: time.Hour},
		domains:   map[string]*window{},
	}
}

// next is when a certificate for name may be ordered: zero when it is now.
func (o *orders) next(name string, now time.Time) time.Time {
	turn := o.all.next(now)
	if w := o.domains[registeredDomain(name)]; w != nil {
		if t := w.next(now); t.After(turn) {
			turn = t
		}
	}
	return turn
}

func (o *orders) take(name string, now time.Time) {
	o.all.take(now)
	for domain, w := range o.domains {
		if w.forget(now); len(w.taken) == 0 {
			delete(o.domains, domain)
		}
	}
	domain := registeredDomain(name)
	w := o.domains[domain]
	if w == nil {
		w = &window{limit: o.perDomain, span: domainSpan}
		o.domains[domain] = w
	}
	w.take(now)
}

// registeredDomain is the part of a name that somebody has bought: the unit in
// which authorities count.
func registeredDomain(name string) string {
	domain, err := publicsuffix.EffectiveTLDPlusOne(strings.TrimPrefix(name, "*."))
	if err != nil {
		return name
	}
	return domain
}

var (
	// afterRefusal keeps below five failed validations of one name in an hour,
	// which is what Let's Encrypt allows: each try fails by HTTP and by TLS.
	afterRefusal = []time.Duration{
		15 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour, 24 * time.Hour,
	}
	// afterTrouble is for what costs nothing: nothing was validated.
	afterTrouble = []time.Duration{
		5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour,
	}
)

// hastened bounds how many tries of a name in a day do not wait for its back-off.
// They count as orders below its registered domain, and a client that goes on
// verifying must not use these up.
const hastened = 5

// refusals are those of a name that count as failed validations.
type refusals struct {
	last  [2]time.Time
	hasty window // tries that did not wait for the back-off
}

func (r *refusals) note(now time.Time) { r.last = [2]time.Time{r.last[1], now} }

// hasten returns when the name may be ordered if it need not wait for its
// back-off, and false if it has to. Two tries in an hour keep below the limit that
// afterRefusal keeps below.
func (r *refusals) hasten(now, retry time.Time) (time.Time, bool) {
	again := later(now, later(r.last[1].Add(afterRefusal[0]), r.last[0].Add(time.Hour)))
	if !again.Before(retry) || !r.hasty.next(now).IsZero() {
		return retry, false
	}
	r.hasty.take(now)
	return again, true
}

// verdict is what an authority has said about an order.
type verdict int

const (
	noVerdict verdict = iota // it has not answered, or not about the order
	refuses                  // because of the name
	isLimited                // because of how many there were
)

func verdictOf(err error) verdict {
	problem, ok := errors.AsType[acme.Problem](err)
	switch {
	case ok && (problem.Status == http.StatusTooManyRequests || problem.Type == acme.ProblemTypeRateLimited):
		return isLimited
	case ok && problem.Status < http.StatusInternalServerError:
		return refuses
	}
	return noVerdict
}

// backOff is how long to wait after a failure, the nth in a row.
func backOff(err error, n int) time.Duration {
	waits := afterTrouble
	switch verdictOf(err) {
	case isLimited:
		waits = afterRefusal[1:]
	case refuses:
		waits = afterRefusal
	}
	return spread(waits[min(n, len(waits))-1])
}

// spread keeps those that fail together from coming again together.
func spread(wait time.Duration) time.Duration { return wait + rand.N(wait/5) }

var userinfo = regexp.MustCompile(`://[^/@\s]+@`)

// reason is an error as the owner of a domain may read it.
func reason(err error) string {
	text := err.Error()
	switch problem, ok := errors.AsType[acme.Problem](err); {
	case ok:
		text = strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:")
		if problem.Detail != "" {
			text += ": " + problem.Detail
		}
		for _, sub := range problem.Subproblems {
			text += "; " + sub.Identifier.Value + ": " + sub.Detail
		}
	case errors.Is(err, errNotPublic):
		text = errNotPublic.Error()
	case errors.Is(err, context.DeadlineExceeded):
		text = "it took too long: " + text
	}
	text = userinfo.ReplaceAllString(text, "://")
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	if runes := []rune(text); len(runes) > 600 {
		text = string(runes[:600]) + "…"
	}
	return text
}
