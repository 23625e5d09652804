package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	proofTimeout = 5 * time.Second // for each of the two proofs, names and connections included
	hostPatience = 2 * time.Second // for the host, once DNS has proven the claim
	proofBytes   = 1 << 10         // of an answer
	proofHops    = 3               // redirects that are followed
)

// prover looks for the proofs of claims. It talks to hosts that tenants name:
// everything it does is bounded, and the address it dials is judged after the
// name was resolved, so that no name can lead it to where it must not go.
type prover struct {
	port         int
	allowPrivate bool
	resolver     *net.Resolver
	client       *http.Client
}

func newProver(o DomainOptions) *prover {
	v := &prover{port: o.ChallengePort, allowPrivate: o.AllowPrivate, resolver: &net.Resolver{PreferGo: true}}
	if v.port == 0 {
		v.port = 80
	}
	if o.Resolver != "" {
		v.resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, o.Resolver)
		}
	}
	dialer := &net.Dialer{Timeout: proofTimeout, Resolver: v.resolver, Control: v.judgeAddress}
	v.client = &http.Client{
		Transport: &http.Transport{
			// Without Proxy: a proxy would resolve names itself.
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				// With the root's dot no search list is tried.
				return dialer.DialContext(ctx, network, net.JoinHostPort(host+".", port))
			},
			// The certificate comes after the proof, so there may be none yet
			// where a host redirects to https. Nothing is sent that is secret.
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: v.judgeRedirect,
	}
	return v
}

var (
	errRefusedAddress  = errors.New("private, loopback, link-local or otherwise no public address")
	errRefusedRedirect = errors.New("redirected to another host or port, or too often")
)

// judgeAddress is a net.Dialer's Control: it sees the address that is dialled.
func (v *prover) judgeAddress(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("reading the address to dial: %w", err)
	}
	addr := at.Addr()
	if platform.PublicAddress(addr) || v.allowPrivate && !addr.IsMulticast() && !addr.IsUnspecified() {
		return nil
	}
	return errRefusedAddress
}

// judgeRedirect follows redirects on the same host, such as those from http to
// https.
func (v *prover) judgeRedirect(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	samePort := r.URL.Scheme == "http" && r.URL.Port() == first.Port() || r.URL.Scheme == "https" && (r.URL.Port() == "" || r.URL.Port() == "443")
	if len(via) > proofHops || !strings.EqualFold(r.URL.Hostname(), first.Hostname()) || !samePort || r.URL.User != nil {
		return errRefusedRedirect
	}
	return nil
}

// miss says why a proof was not there. A final one was looked for in vain; one
// that is not could not be looked for.
type miss struct {
	code, message string
	final         bool
}

// look looks for both proofs of a claim. Where the context ends, what it
// returns means nothing.
func (v *prover) look(ctx context.Context, hostname, token string) platform.DomainCheck {
	var c platform.DomainCheck
	var record *miss
	if platform.IsWildcard(hostname) {
		c.TXT, record = v.lookUp(ctx, hostname, token)
		if record != nil {
			c.Err, c.Disproven = &platform.DomainError{Code: record.code, Message: record.message}, record.final
		}
		return c
	}
	fetching, enough := context.WithCancel(ctx)
	defer enough()
	var page *miss
	var both sync.WaitGroup
	both.Go(func() { page = v.fetch(fetching, hostname, token) })
	c.TXT, record = v.lookUp(ctx, hostname, token)
	if record == nil {
		// DNS says more than the host; whether that leads here by now is worth
		// a moment.
		defer time.AfterFunc(hostPatience, enough).Stop()
	}
	both.Wait()
	c.HTTP = page == nil
	if page != nil && record != nil {
		c.Err = &platform.DomainError{Code: page.code, Message: page.message + "; and " + record.message}
		c.Disproven = page.final && record.final
	}
	return c
}

// lookUp reads the values of the TXT record; the miss is nil when the token is
// among them.
func (v *prover) lookUp(ctx context.Context, hostname, token string) ([]string, *miss) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	name := platform.ChallengeDNSName(hostname)
	values, err := v.resolver.LookupTXT(ctx, name+".")
	var failed *net.DNSError
	switch {
	case err == nil && slices.Contains(values, token):
		return values, nil
	case err == nil:
		return values, &miss{platform.DomainNoRecord, "the TXT record " + name + " has other values: add " + token + " to them", true}
	case errors.As(err, &failed) && failed.IsNotFound:
		return nil, &miss{platform.DomainNoRecord, "there is no TXT record " + name + ": make one with the value " + token, true}
	}
	return nil, &miss{platform.DomainUnreachable, "DNS gave no answer about the TXT record " + name + ": try again later", false}
}

// fetch asks the host for the challenge; nil when it answers with the token. A
// host that does so for a token nobody has ever made answers with whatever it
// is asked for, and proves nothing.
func (v *prover) fetch(ctx context.Context, hostname, token string) *miss {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	if missed := v.ask(ctx, hostname, token); missed != nil {
		return missed
	}
	switch missed := v.ask(ctx, hostname, newToken()); {
	case missed == nil:
		return &miss{platform.DomainWrongAnswer, v.url(hostname, "…") + " answers with whatever token it is asked for, which proves nothing", true}
	case ctx.Err() != nil:
		return missed // there was no time to find out
	}
	return nil
}

// ask asks the host once; nil when it answers with the token.
func (v *prover) ask(ctx context.Context, hostname, token string) *miss {
	at := v.url(hostname, token)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return &miss{platform.DomainWrongAnswer, at + " is no URL", true}
	}
	r.Header.Set("User-Agent", "Denia (domain verification)")
	reply, err := v.client.Do(r)
	if err != nil {
		return v.missOf(ctx, at, hostname, err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return &miss{platform.DomainWrongAnswer, fmt.Sprintf("%s answers %d: let it answer 200 with the token, or point the host name to Denia", at, reply.StatusCode), reply.StatusCode < 500}
	}
	body, err := io.ReadAll(io.LimitReader(reply.Body, proofBytes+1))
	switch {
	case err != nil:
		return v.missOf(ctx, at, hostname, err)
	case len(body) > proofBytes:
		return &miss{platform.DomainWrongAnswer, fmt.Sprintf("%s answers with more than %d bytes: the token alone is the right answer", at, proofBytes), true}
	case strings.TrimSuffix(strings.TrimSuffix(string(body), "\n"), "\r") != token:
		return &miss{platform.DomainWrongAnswer, at + " answers with something else than the token: does the host name point to Denia?", true}
	}
	return nil
}

// missOf tells the causes apart that a person can do something about. What the
// name resolved to is not told: it may be a name inside the operator's network.
func (v *prover) missOf(ctx context.Context, at, hostname string, err error) *miss {
	var dns *net.DNSError
	switch {
	case errors.Is(err, errRefusedAddress):
		return &miss{platform.DomainRefused, hostname + " has an address that is " + errRefusedAddress.Error() + ": point it to Denia's public address", true}
	case errors.Is(err, errRefusedRedirect):
		return &miss{platform.DomainWrongAnswer, at + " " + errRefusedRedirect.Error() + ": let it answer itself", true}
	case errors.As(err, &dns) && dns.IsNotFound:
		return &miss{platform.DomainNotFound, hostname + " has no address: make an A, AAAA or CNAME record that points to Denia", true}
	case errors.As(err, &dns):
		return &miss{platform.DomainUnreachable, "DNS gave no answer about " + hostname + ": try again later", false}
	case ctx.Err() != nil, isTimeout(err):
		return &miss{platform.DomainUnreachable, fmt.Sprintf("%s did not answer within %s", at, proofTimeout), false}
	}
	return &miss{platform.DomainUnreachable, at + " cannot be reached, or breaks the connection off", false}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// url is where the host is asked.
func (v *prover) url(hostname, token string) string {
	u := url.URL{Scheme: "http", Host: hostname, Path: platform.ChallengePath + token}
	if v.port != 80 {
		u.Host = net.JoinHostPort(hostname, strconv.Itoa(v.port))
	}
	return u.String()
}
