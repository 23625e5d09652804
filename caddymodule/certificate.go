package caddymodule

import (
	"cmp"
	"context"
	"crypto/x509"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

// entry is what is known of a name's certificate. c.mu guards it.
type entry struct {
	name string
	kind kind
	gone bool // may have none any more; kept for its back-off alone

	free     bool // its certificates cost nothing; of names below wildcards
	stranger bool // it is counted as one
	asked    bool // by a visitor, and not looked at since

	due     time.Time // when it is looked at
	index   int       // in the queue; -1 when it is not
	running bool
	cancel  context.CancelFunc // of the handshake under way

	seen     bool // it was looked at once
	leaf     leaf
	absent   bool // it is known that there is no certificate
	renewal  bool // what failed last was to renew leaf
	failures int  // in a row
	failed   time.Time
	refusals *refusals // nil: none so far
	err      string
	retry    time.Time // not ordered before
	nextTry  time.Time // shown to the owner
}

// leaf is a certificate as the owner sees it.
type leaf struct {
	issuer              string
	serial              string
	notBefore, notAfter time.Time
}

// valid tells whether there is a certificate that has not ended.
func (e *entry) valid(now time.Time) bool { return now.Before(e.leaf.notAfter) }

func (e *entry) succeed() {
	e.failures, e.err, e.failed, e.retry, e.nextTry = 0, "", time.Time{}, time.Time{}, time.Time{}
}

// state tells the owner of a host name about its certificate.
func (c *certificates) state(hostname string) platform.CertificateState {
	_, known := c.names.Load().find(hostname)
	view := c.automation()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[hostname]
	if !known || e == nil || e.gone || view == nil {
		return platform.CertificateState{State: platform.CertificateNone}
	}
	if !e.seen {
		c.reschedule(e, earlier(e.due, time.Now())) // somebody wants to know
	}
	s := platform.CertificateState{Error: e.err}
	if !e.nextTry.IsZero() {
		s.NextTry = pointer(e.nextTry.UTC().Truncate(time.Millisecond))
	}
	if l := e.leaf; !l.notAfter.IsZero() {
		s.Issuer, s.NotBefore, s.NotAfter = l.issuer, pointer(l.notBefore), pointer(l.notAfter)
	}
	switch {
	case e.valid(time.Now()):
		s.State = platform.CertificateIssued
	case e.failures > 0:
		s.State = platform.CertificateFailed
	case e.kind == wildcardName || e.seen && !e.absent && e.leaf.notAfter.IsZero():
		s.State = platform.CertificateNone
	default:
		s.State = platform.CertificatePending
	}
	return s
}

func pointer[T any](v T) *T { return &v }

func newLeaf(c *x509.Certificate) leaf {
	issuer := c.Issuer.CommonName
	if len(c.Issuer.Organization) > 0 {
		issuer = strings.TrimSpace(c.Issuer.Organization[0] + " " + issuer)
	}
	return leaf{
		issuer: cmp.Or(issuer, "unknown"), serial: c.SerialNumber.String(),
		notBefore: c.NotBefore.UTC(), notAfter: c.NotAfter.UTC(),
	}
}

// queue is a heap of entries by the time at which they are due.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q, e.index = (*q)[:last], -1
	return e
}
