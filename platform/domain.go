package platform

import (
	"slices"
	"strings"
	"time"
)

// DomainStatus is how far a claim to a host name has come.
type DomainStatus string

// The statuses. Only a verified domain is routed.
const (
	DomainPending  DomainStatus = "pending"  // claimed, never looked at
	DomainVerified DomainStatus = "verified" // proven, and proven again each day
	DomainFailed   DomainStatus = "failed"   // not proven, or not any more
)

// Domain is a service's claim to a host name. Any number of services may claim
// one host name; at most one of the claims is verified.
type Domain struct {
	ID        ID
	ServiceID ID
	Hostname  string // as ParseHostname returns it
	Token     string // random; where it appears, the claim is proven
	Status    DomainStatus
	CreatedAt time.Time

	VerifiedAt  *time.Time   // since when it is verified; nil unless it is
	LastCheckAt *time.Time   // when its proof was last looked for
	LastError   *DomainError // why that failed; nil when it did not

	// Of the checks since VerifiedAt, the last that found the proof, and the first
	// after it that found something else in its place. Both move on by the time in
	// which nobody looked.
	ProvenAt       *time.Time
	DisprovenSince *time.Time
	NextCheckAt    *time.Time // nil unless verified
}

// DomainError says why a claim is not proven.
type DomainError struct {
	Code    string `json:"code"`    // stable snake_case
	Message string `json:"message"` // the cause, and what to do next
}

// Codes of DomainError.
const (
	DomainNotFound     = "host_not_found"     // the name has no address and no TXT record
	DomainRefused      = "address_refused"    // its address is private, loopback, link-local or the like
	DomainUnreachable  = "unreachable"        // no connection, no answer in time, or DNS does not work
	DomainWrongAnswer  = "wrong_answer"       // something else answers there
	DomainNoRecord     = "txt_record_missing" // wildcards: the TXT record is not there
	DomainTaken        = "hostname_taken"     // another service has proven it
	DomainNeedsDNS     = "dns_proof_required" // another project has proven a name above it
	DomainTakenOver    = "taken_over"         // another service has proven it by DNS
	DomainNowReserved  = "hostname_reserved"  // it has become one of Denia's own
	challengeDNSPrefix = "_denia-challenge."
)

// ChallengePath is what HTTP proofs are served below.
const ChallengePath = "/.well-known/denia-challenge/"

// ChallengeDNSName is the name whose TXT record proves a claim to hostname.
func ChallengeDNSName(hostname string) string {
	return challengeDNSPrefix + strings.TrimPrefix(hostname, "*.")
}

// A verified domain is checked again each interval, and a check that failed is
// repeated sooner. It is lost after disprovenFor intervals in which something
// else was found in the proof's place, and after unprovenFor in which nothing
// could be found out at all: a DNS server or an uplink that is down says
// nothing about whose a name is. Where there are more than unwatchedFor between
// two checks, Denia was not there to look, and that time counts for neither.
const (
	disprovenFor  = 3
	unprovenFor   = 30
	unwatchedFor  = 2
	retriesPerGap = 24
)

// DomainCheck is what one look for the proofs of a claim has found.
type DomainCheck struct {
	At       time.Time
	Interval time.Duration // to the next one

	HTTP bool     // the host answered with the token
	TXT  []string // the values at ChallengeDNSName

	// Reserved tells that the host name is Denia's own by now: no proof counts.
	Reserved bool

	// Err says why neither proof was there. Disproven tells that both were
	// looked for in vain, rather than not reached.
	Err       *DomainError
	Disproven bool
}

// Rival is a verified claim to the same host name, or to one of its ancestors.
type Rival struct {
	Domain
	ProjectID ID
}

// Judge returns what d, a claim of a service in the project, becomes by the
// check, and the rivals that lose their host name to it.
//
// A proof by HTTP says that the host points to where the token is served; here
// that is Denia itself for every claim to a host that points to it. So it
// decides only between a claim and nobody. A proof by DNS says who controls the
// name: it alone takes a host name over, from a rival whose own record is not
// there too, and it alone gives one below a name of another project's.
func (d Domain) Judge(c DomainCheck, project ID, rivals []Rival) (Domain, []Domain) {
	d = d.catchUp(c)
	d.LastCheckAt = &c.At
	byDNS := slices.Contains(c.TXT, d.Token)
	if c.Reserved {
		return d.lose(c.At, DomainError{DomainNowReserved, "the host name has become one of Denia's own: choose another"}), nil
	}
	if byHTTP := c.HTTP && !IsWildcard(d.Hostname); !byDNS && !byHTTP {
		return d.unproven(c), nil
	}
	if d.Status != DomainVerified {
		lost, err := d.contest(c, byDNS, project, rivals)
		if err != nil {
			return d.lose(c.At, *err), nil
		}
		d.Status, d.VerifiedAt = DomainVerified, &c.At
		return d.proven(c), lost
	}
	return d.proven(c), nil
}

func (d Domain) contest(c DomainCheck, byDNS bool, project ID, rivals []Rival) (lost []Domain, err *DomainError) {
	for _, r := range rivals {
		switch {
		case r.ID == d.ID:
		case r.Hostname != d.Hostname:
			if !byDNS && r.ProjectID != project {
				return nil, &DomainError{DomainNeedsDNS, "another project has proven " + r.Hostname + ", so only DNS proves this one: make the TXT record " + ChallengeDNSName(d.Hostname) + ", then verify again"}
			}
		case !byDNS:
			return nil, &DomainError{DomainTaken, "another service has proven this host name: detach it there, or make the TXT record " + ChallengeDNSName(d.Hostname) + " and verify again"}
		case slices.Contains(c.TXT, r.Token):
			return nil, &DomainError{DomainTaken, "another service has proven this host name, and its TXT record is still there: remove that record or detach the host name there, then verify again"}
		default:
			lost = append(lost, r.lose(c.At, DomainError{DomainTakenOver, "another service has proven this host name by its TXT record; to have it back, put this domain's record in its place and verify again"}))
		}
	}
	return lost, nil
}

// catchUp leaves out of what counts against d the time in which nobody looked,
// and what lies ahead of the check: a clock was wrong then.
func (d Domain) catchUp(c DomainCheck) Domain {
	var unwatched time.Duration
	if d.LastCheckAt != nil && c.At.Sub(*d.LastCheckAt) > unwatchedFor*c.Interval {
		unwatched = c.At.Sub(*d.LastCheckAt)
	}
	for _, at := range []**time.Time{&d.ProvenAt, &d.DisprovenSince} {
		if *at != nil {
			moved := (*at).Add(unwatched)
			if moved.After(c.At) {
				moved = c.At
			}
			*at = &moved
		}
	}
	return d
}

func (d Domain) proven(c DomainCheck) Domain {
	next := c.At.Add(c.Interval)
	d.ProvenAt, d.NextCheckAt, d.DisprovenSince, d.LastError = &c.At, &next, nil, nil
	return d
}

func (d Domain) unproven(c DomainCheck) Domain {
	err := DomainError{DomainUnreachable, "no proof was found"}
	if c.Err != nil {
		err = *c.Err
	}
	if d.Status != DomainVerified {
		return d.lose(c.At, err)
	}
	if c.Disproven && d.DisprovenSince == nil {
		d.DisprovenSince = &c.At
	}
	disproven := c.Disproven && c.At.Sub(*d.DisprovenSince) >= disprovenFor*c.Interval
	unproven := d.ProvenAt == nil || c.At.Sub(*d.ProvenAt) >= unprovenFor*c.Interval
	if disproven || unproven {
		return d.lose(c.At, err)
	}
	next := c.At.Add(c.Interval / retriesPerGap)
	d.LastError, d.NextCheckAt = &err, &next
	return d
}

func (d Domain) lose(at time.Time, err DomainError) Domain {
	d.Status, d.LastCheckAt, d.LastError = DomainFailed, &at, &err
	d.VerifiedAt, d.ProvenAt, d.DisprovenSince, d.NextCheckAt = nil, nil, nil, nil
	return d
}

// DomainName is a verified host name as certificates need it.
type DomainName struct {
	Hostname  string
	ServiceID ID
	TLS       string // the service's: "auto" or "off"
}

// States of a certificate.
const (
	CertificateNone    = "none"    // nobody is getting one
	CertificatePending = "pending" // it is being fetched
	CertificateIssued  = "issued"
	CertificateFailed  = "failed" // the last try failed, and there is none that is valid
)

// CertificateState is what is known of the certificate for a host name.
type CertificateState struct {
	State     string // one of the constants above
	Issuer    string
	NotBefore *time.Time
	NotAfter  *time.Time
	Error     string     // of the last try
	NextTry   *time.Time // when it is tried again by itself
}
