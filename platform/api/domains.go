package api

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/denia-paas/denia/platform"
)

// domain is a service's claim to a host name.
type domain struct {
	Hostname    string          `json:"hostname" doc:"As A-labels, in lower case."`
	ID          platform.ID     `json:"id"`
	ServiceID   platform.ID     `json:"service_id"`
	Status      string          `json:"status" enum:"pending,verified,failed" doc:"Only a verified one is routed."`
	Challenge   domainChallenge `json:"challenge" doc:"How to prove it: by either, a wildcard by DNS only."`
	VerifiedAt  *timestamp      `json:"verified_at" nullable:"true" doc:"Since when it is verified; null unless it is."`
	LastCheckAt *timestamp      `json:"last_check_at" nullable:"true"`
	LastError   *domainError    `json:"last_error" doc:"Why the last check found no proof; null when it found one. A verified domain stays so while a failure is new."`
	TLS         domainTLS       `json:"tls" doc:"Its certificate."`
	CreatedAt   timestamp       `json:"created_at"`
}

type domainChallenge struct {
	Token    string  `json:"token"`
	HTTPURL  *string `json:"http_url" doc:"Has to answer with the token alone. Denia answers it by itself once the host name points to it. Null for a wildcard."`
	DNSName  string  `json:"dns_name" doc:"The name of a TXT record …"`
	DNSValue string  `json:"dns_value" doc:"… that has to have this value, among others if need be."`
}

type domainError struct {
	Code    string `json:"code" enum:"host_not_found,address_refused,unreachable,wrong_answer,txt_record_missing,hostname_taken,dns_proof_required,taken_over,hostname_reserved"`
	Message string `json:"message" doc:"The cause, and what to do next."`
}

type domainTLS struct {
	State     string     `json:"state" enum:"none,pending,issued,failed"`
	Issuer    *string    `json:"issuer"`
	NotBefore *timestamp `json:"not_before" nullable:"true"`
	NotAfter  *timestamp `json:"not_after" nullable:"true"`
	Error     *string    `json:"error" doc:"Of the last try."`
	NextTry   *timestamp `json:"next_try" nullable:"true" doc:"When it is tried again by itself."`
}

func (a *API) domainView(d platform.Domain) domain {
	v := domain{
		Hostname: d.Hostname, ID: d.ID, ServiceID: d.ServiceID, Status: string(d.Status), CreatedAt: timestamp{d.CreatedAt},
		Challenge:  domainChallenge{Token: d.Token, DNSName: platform.ChallengeDNSName(d.Hostname), DNSValue: d.Token},
		VerifiedAt: timestampOf(d.VerifiedAt), LastCheckAt: timestampOf(d.LastCheckAt), LastError: (*domainError)(d.LastError),
		TLS: domainTLS{State: platform.CertificateNone},
	}
	if !platform.IsWildcard(d.Hostname) {
		at := url.URL{Scheme: "http", Host: d.Hostname, Path: platform.ChallengePath + d.Token}
		if a.ChallengePort != 0 && a.ChallengePort != 80 {
			at.Host = net.JoinHostPort(d.Hostname, strconv.Itoa(a.ChallengePort))
		}
		text := at.String()
		v.Challenge.HTTPURL = &text
	}
	if a.Certificate != nil && d.Status == platform.DomainVerified {
		c := a.Certificate(d.Hostname)
		v.TLS = domainTLS{
			State: c.State, Issuer: textOf(c.Issuer), NotBefore: timestampOf(c.NotBefore), NotAfter: timestampOf(c.NotAfter),
			Error: textOf(c.Error), NextTry: timestampOf(c.NextTry),
		}
	}
	return v
}

func textOf(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (a *API) shownDomain(d platform.Domain) *object[domain] {
	v := a.domainView(d)
	return &object[domain]{ETag: contentTag(v), Body: v}
}

type domainsInput struct {
	ServiceRef
	Paging
}

func (a *API) listDomains(ctx context.Context, in *domainsInput) (*listing[domain], error) {
	c := callFrom(ctx)
	rows, next, err := a.Store.Domains(ctx, c.service.ID, in.page())
	if err != nil {
		return nil, err
	}
	return listed(c, rows, next, a.domainView), nil
}

type attachInput struct {
	ServiceRef
	Body struct {
		Hostname string `json:"hostname" maxLength:"1024" doc:"A host name such as shop.example.com, or *.example.com. International names are taken as they are written."`
	} `nameHint:"NewDomain"`
}

func (a *API) attachDomain(ctx context.Context, in *attachInput) (*created[domain], error) {
	c := callFrom(ctx)
	d, err := a.Plane.AttachDomain(ctx, c.service.ID, in.Body.Hostname)
	if err != nil {
		return nil, err
	}
	c.touch(c.service.ProjectID, d.ID)
	v := a.domainView(d)
	return &created[domain]{
		Location: "/v1/services/" + string(d.ServiceID) + "/domains/" + string(d.ID), ETag: contentTag(v), Body: v,
	}, nil
}

// DomainRef is {domain_id} below a service.
type DomainRef struct {
	ServiceRef
	DomainID platform.ID `path:"domain_id" doc:"The domain's id."`
}

type domainInput struct{ DomainRef }

func (a *API) getDomain(ctx context.Context, in *domainInput) (*object[domain], error) {
	d, err := a.Store.Domain(ctx, callFrom(ctx).service.ID, in.DomainID)
	if err != nil {
		return nil, noSuchDomain(err)
	}
	return a.shownDomain(d), nil
}

func (a *API) verifyDomain(ctx context.Context, in *domainInput) (*object[domain], error) {
	c := callFrom(ctx)
	d, err := a.Plane.VerifyDomain(ctx, c.service.ID, in.DomainID)
	if err != nil {
		return nil, noSuchDomain(err)
	}
	c.touch(c.service.ProjectID, d.ID)
	return a.shownDomain(d), nil
}

func (a *API) detachDomain(ctx context.Context, in *domainInput) (*nothing, error) {
	c := callFrom(ctx)
	if err := a.Plane.DetachDomain(ctx, c.service.ID, in.DomainID); err != nil {
		return nil, noSuchDomain(err)
	}
	c.touch(c.service.ProjectID, in.DomainID)
	return nil, nil
}

func noSuchDomain(err error) error {
	if platform.KindOf(err) == platform.NotFound {
		return platform.NotFoundf("the service has no such domain")
	}
	return err
}

// ServeChallenge answers a request for the challenge of a claim to the very
// host that is asked, whichever that is, and tells whether it did. It has
// written nothing when it did not. It asks no database.
func (a *API) ServeChallenge(w http.ResponseWriter, r *http.Request) bool {
	token, below := strings.CutPrefix(r.URL.Path, platform.ChallengePath)
	if !below || r.Method != http.MethodGet && r.Method != http.MethodHead || !a.Plane.Challenge(r.Host, token) {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(token)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write([]byte(token)) // the client is gone: nobody is left to tell
	return true
}

func (a *API) serveChallenge(w http.ResponseWriter, r *http.Request) {
	if !a.ServeChallenge(w, r) {
		fail(w, r, platform.NotFoundf("this host has no such challenge"))
	}
}

func documentChallenge(_ huma.Registry, o *huma.Operation) {
	o.Parameters = append(o.Parameters, &huma.Param{Name: "token", In: "path", Required: true, Description: "The token of the challenge.", Schema: &huma.Schema{Type: huma.TypeString}})
	o.Responses["200"] = &huma.Response{
		Description: "The token.",
		Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
}
