package caddymodule

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
)

// tlsView is TLS as one of Caddy's configurations has it.
type tlsView struct {
	app     *caddytls.TLS
	server  *tls.Config
	decides bool
}

// newTLSView returns nil for a configuration without TLS.
func newTLSView(ctx caddy.Context, decides bool) (*tlsView, error) {
	module, err := ctx.AppIfConfigured("tls")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	policy := new(caddytls.ConnectionPolicy)
	if err := (caddytls.ConnectionPolicies{policy}).Provision(ctx); err != nil {
		return nil, err
	}
	server := policy.TLSConfig.Clone()
	server.SessionTicketsDisabled = true // nobody would read them from the pipe
	return &tlsView{app: module.(*caddytls.TLS), server: server, decides: decides}, nil
}

// policy is the automation policy that Caddy goes by for a name; nil where its
// default ones do.
func (v *tlsView) policy(name string) *caddytls.AutomationPolicy {
	if v.app.Automation == nil {
		return nil
	}
	for _, policy := range v.app.Automation.Policies {
		subjects := policy.Subjects()
		if len(subjects) == 0 {
			return policy
		}
		for _, subject := range subjects {
			if certmagic.MatchWildcard(name, subject) {
				return policy
			}
		}
	}
	return nil
}

// onDemand tells whether a handshake for the name may order a certificate.
func (v *tlsView) onDemand(name string) bool {
	policy := v.policy(name)
	return policy != nil && policy.OnDemand
}

// decided tells whether Denia alone decides which names may have certificates on
// demand.
func (v *tlsView) decided() bool { return v.decides }

// issues tells whether any issuer can have a certificate for the name: public
// authorities have none for names that exist only here.
func (v *tlsView) issues(name string) bool {
	policy := v.policy(name)
	if policy == nil || certmagic.SubjectQualifiesForPublicCert(name) {
		return true
	}
	for _, issuer := range policy.Issuers {
		if acme, ok := issuer.(interface{ GetACMEIssuer() *caddytls.ACMEIssuer }); !ok || !isPublic(acme.GetACMEIssuer().CA) {
			return true
		}
	}
	return false
}

// isPublic tells the authorities that Caddy goes to by itself.
func isPublic(ca string) bool {
	if ca == "" {
		return true
	}
	for _, known := range []string{"api.letsencrypt.org", "acme.zerossl.com", "api.pki.goog"} {
		if strings.Contains(ca, known) {
			return true
		}
	}
	return false
}

// isFree tells whether certificates for the name come from this process alone,
// so that there is nobody whose limits could be reached.
func (v *tlsView) isFree(name string) bool {
	policy := v.policy(name)
	if policy == nil || len(policy.Issuers) == 0 {
		return false
	}
	for _, issuer := range policy.Issuers {
		if _, ok := issuer.(*caddytls.InternalIssuer); !ok {
			return false
		}
	}
	return true
}

// renewalRatio is what part of a certificate's lifetime is left when it is
// renewed.
func (v *tlsView) renewalRatio(name string) float64 {
	if policy := v.policy(name); policy != nil && policy.RenewalWindowRatio > 0 {
		return policy.RenewalWindowRatio
	}
	return certmagic.DefaultRenewalWindowRatio
}

// handshake does what a visitor does, in memory: the certificate is taken from
// the cache or from storage, or ordered, and renewed if it is time. It returns
// when that has ended or ctx has.
func (v *tlsView) handshake(ctx context.Context, name string) (*x509.Certificate, error) {
	near, far := net.Pipe()
	visitor := tls.Client(far, &tls.Config{
		ServerName:         name,
		InsecureSkipVerify: true, // it is ours; it is looked at below
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = visitor.HandshakeContext(ctx) // the server's error says more
	}()
	err := tls.Server(near, v.server).HandshakeContext(ctx)
	if err == nil {
		<-done // it has what it waits for
	}
	_ = near.Close()
	_ = far.Close()
	<-done
	if err != nil {
		return nil, err
	}
	chain := visitor.ConnectionState().PeerCertificates
	if len(chain) == 0 {
		return nil, errors.New("the handshake ended without a certificate")
	}
	if err := chain[0].VerifyHostname(name); err != nil {
		return nil, fmt.Errorf("another certificate is served: %w", err)
	}
	return chain[0], nil
}
