package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// An authorised transport costs two or three requests to make, and holds a
	// token, so it is kept while it is in use, and so is what is known of the
	// upstream's health.
	upstreamsKept    = 256
	upstreamIdle     = 15 * time.Minute
	upstreamRedirect = 10
	upstreamAgent    = "denia"

	backOffFirst = 15 * time.Second
	backOffLast  = 5 * time.Minute
)

// upstreams are the registries the cache has spoken with lately. It may be used
// concurrently.
type upstreams struct {
	now     func() time.Time
	patient time.Duration // for a handshake

	anywhere *http.Transport // refuses link-local addresses only
	outside  *http.Transport // refuses private addresses

	mu    sync.Mutex
	known map[Upstream]*upstream
}

func newUpstreams(now func() time.Time, patient time.Duration) *upstreams {
	return &upstreams{
		now:      now,
		patient:  patient,
		anywhere: newTransport(patient, refuseLinkLocal),
		outside:  newTransport(patient, refusePrivate),
		known:    map[Upstream]*upstream{},
	}
}

// close ends the idle connections; nothing may be asked any more.
func (s *upstreams) close() {
	s.anywhere.CloseIdleConnections()
	s.outside.CloseIdleConnections()
}

func newTransport(patient time.Duration, control func(network, address string, c syscall.RawConn) error) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: control}
	return &http.Transport{
		// No proxy, whatever the environment says: a proxy would resolve names
		// and dial in Denia's place, and control would see only its address.
		Proxy:                 nil,
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: patient,
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       60 * time.Second,
		DisableCompression:    true, // a blob is the bytes its digest names
	}
}

// of returns the upstream u describes. It fails with an *upstreamError when
// there cannot be one.
func (s *upstreams) of(u Upstream) (*upstream, error) {
	u.Fetch = false // says who may, not where
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if known := s.known[u]; known != nil {
		known.used = now
		return known, nil
	}
	registry, err := name.NewRegistry(u.Host, name.StrictValidation)
	if err != nil {
		return nil, &upstreamError{host: u.Host, cause: fmt.Errorf("reading the registry's name: %w", err)}
	}
	auth := authn.Anonymous
	if u.Username != "" || u.Password != "" {
		auth = &authn.Basic{Username: u.Username, Password: u.Password}
	}
	s.forget(now)
	made := &upstream{
		upstreams: s,
		host:      u.Host,
		repo:      registry.Repo(u.Repository),
		auth:      auth,
		route:     &route{host: registry.RegistryStr(), anywhere: s.anywhere, outside: s.outside},
		shaking:   make(chan struct{}, 1),
		used:      now,
		shut:      map[string]time.Time{},
	}
	s.known[u] = made
	return made, nil
}

// forget drops what is idle, and the longest idle one if there still are too
// many. s.mu must be held.
func (s *upstreams) forget(now time.Time) {
	var oldest Upstream
	var since time.Time
	for key, u := range s.known {
		switch {
		case now.Sub(u.used) > upstreamIdle:
			delete(s.known, key)
		case since.IsZero() || u.used.Before(since):
			oldest, since = key, u.used
		}
	}
	if len(s.known) >= upstreamsKept {
		delete(s.known, oldest)
	}
}

// upstream is one repository of another registry, with one set of credentials.
type upstream struct {
	upstreams *upstreams
	host      string // as the user wrote it
	repo      name.Repository
	auth      authn.Authenticator
	route     *route
	used      time.Time // guarded by upstreams.mu

	shaking chan struct{} // holds one token while client is read or made
	client  *http.Client  // nil: the handshake is to be made (again)

	mu       sync.Mutex           // guards what is below
	failures int                  // in a row
	notUntil time.Time            // what is stored is not compared before
	last     *upstreamError       // why
	shut     map[string]time.Time // by kind: nothing is asked before, since the upstream said so
}

// ask sends a request for what ref names; kind is "manifests" or "blobs". Any
// answer but 200 is an *upstreamError, and so is every failure, except that of
// ctx.
func (u *upstream) ask(ctx context.Context, method, kind, ref string, header http.Header) (*http.Response, error) {
	if wait := u.refusing(kind); wait > 0 {
		return nil, &upstreamError{host: u.host, status: http.StatusTooManyRequests, retry: wait, cause: errors.New("it asked to be left alone for a while")}
	}
	resp, err := u.send(ctx, method, kind, ref, header)
	var failed *upstreamError
	switch {
	case err == nil:
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, ctx.Err()
	case errors.As(err, &failed) && failed.down():
		u.failed(kind, failed)
	}
	return resp, err
}

func (u *upstream) send(ctx context.Context, method, kind, ref string, header http.Header) (*http.Response, error) {
	client, err := u.authorised(ctx)
	if err != nil {
		return nil, u.error(err, true)
	}
	address := url.URL{
		Scheme: u.repo.Scheme(),
		Host:   u.repo.RegistryStr(),
		Path:   "/v2/" + u.repo.RepositoryStr() + "/" + kind + "/" + ref,
	}
	req, err := http.NewRequestWithContext(ctx, method, address.String(), nil)
	if err != nil {
		return nil, u.error(err, false)
	}
	for key, values := range header {
		req.Header[key] = values
	}
	resp, err := client.Do(req)
	if err != nil {
		err := u.error(err, false)
		if err.denied() {
			u.unauthorise(client)
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	// A little of the body is read so that the connection can be used again;
	// what it says is nobody's business.
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
	return nil, &upstreamError{
		host: u.host, status: resp.StatusCode, retry: u.retryAfter(resp),
		cause: fmt.Errorf("%s of %s/%s/%s answered %d", method, u.repo.RepositoryStr(), kind, ref, resp.StatusCode),
	}
}

// authorised returns a client that is through the handshake: it knows the
// scheme and what credentials the upstream asks for. Only one call makes it,
// the others wait.
func (u *upstream) authorised(ctx context.Context) (*http.Client, error) {
	select {
	case u.shaking <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-u.shaking }()
	if u.client != nil {
		return u.client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, u.upstreams.patient)
	defer cancel()
	base := transport.NewUserAgent(u.route, upstreamAgent)
	tr, err := transport.NewWithContext(ctx, u.repo.Registry, u.auth, base, []string{u.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	u.client = &http.Client{Transport: tr, CheckRedirect: checkRedirect}
	return u.client, nil
}

// unauthorise drops a client whose token could not be renewed.
func (u *upstream) unauthorise(client *http.Client) {
	u.shaking <- struct{}{}
	defer func() { <-u.shaking }()
	if u.client == client {
		u.client = nil
	}
}

// refusing tells for how long the upstream does not want to be asked for that kind
// of thing. Some count manifests only.
func (u *upstream) refusing(kind string) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.shut[kind].Sub(u.upstreams.now())
}

// resting tells whether the upstream is being left alone after a failure, and
// after which: what is stored is not compared meanwhile.
func (u *upstream) resting() (after *upstreamError, resting bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, u.upstreams.now().Before(u.notUntil)
}

// broke makes an error of an answer that ended before it was whole, lied of one
// that is not what was asked for. Both are failures of the upstream.
func (u *upstream) broke(kind string, err error) *upstreamError {
	failed := u.error(err, false)
	u.failed(kind, failed)
	return failed
}

func (u *upstream) lied(kind string, err error) *upstreamError {
	failed := &upstreamError{host: u.host, bad: true, cause: err}
	u.failed(kind, failed)
	return failed
}

// answered ends the pauses after failures: the upstream gave what it was asked
// for.
func (u *upstream) answered(kind string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failures, u.notUntil = 0, time.Time{}
	delete(u.shut, kind)
}

// failed leaves the upstream alone for a while that doubles with each failure,
// and for at least as long as it asked for.
func (u *upstream) failed(kind string, err *upstreamError) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.upstreams.now()
	wait := min(backOffFirst<<min(u.failures, 10), backOffLast)
	u.failures++
	u.notUntil, u.last = now.Add(max(wait, err.retry)), err
	if err.retry > 0 {
		u.shut[kind] = now.Add(err.retry)
	}
}

// retryAfter is how long the answer asks to wait, zero if it does not say.
func (u *upstream) retryAfter(resp *http.Response) time.Duration {
	said := resp.Header.Get("Retry-After")
	if said == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.Atoi(said); err == nil {
		wait = time.Duration(min(seconds, 1<<20)) * time.Second
	} else if at, err := http.ParseTime(said); err == nil {
		wait = at.Sub(u.upstreams.now())
	}
	// However long an upstream wants to rest, it is tried now and then.
	return min(max(wait, 0), backOffLast)
}

// error makes an *upstreamError of what the client or the handshake failed
// with. Its text holds no URL, since those of CDNs are signed, and nothing the
// upstream wrote.
func (u *upstream) error(err error, handshake bool) *upstreamError {
	failed := &upstreamError{host: u.host}
	var answer *transport.Error
	var network net.Error
	switch {
	case errors.As(err, &answer):
		failed.status = answer.StatusCode
		if handshake && failed.unknown() {
			failed.status = http.StatusBadGateway // it is no registry
		}
		failed.cause = fmt.Errorf("asking for access was answered with %d", answer.StatusCode)
		return failed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		failed.timeout = true
	}
	// A *url.Error quotes its URL; what it wraps does not.
	var quoted *url.Error
	for errors.As(err, &quoted) {
		err = quoted.Err
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	if strings.Contains(text, "://") {
		text = "it answered with an address that is refused"
	}
	failed.cause = errors.New(text[:min(len(text), 300)])
	return failed
}

// upstreamError is why an upstream did not give what it was asked for.
type upstreamError struct {
	host    string
	status  int           // that it answered; zero: none that counts
	timeout bool          // it took too long
	bad     bool          // it sent something else than it was asked for
	retry   time.Duration // it wants to be left alone for so long; zero: it did not say
	cause   error         // for the log
}

func (e *upstreamError) Error() string { return fmt.Sprintf("asking %s: %v", e.host, e.cause) }
func (e *upstreamError) Unwrap() error { return e.cause }

func (e *upstreamError) unknown() bool {
	return e.status == http.StatusNotFound || e.status == http.StatusGone
}

func (e *upstreamError) denied() bool {
	return e.status == http.StatusUnauthorized || e.status == http.StatusForbidden
}

func (e *upstreamError) limited() bool { return e.status == http.StatusTooManyRequests }

// down tells that nothing can be concluded from the failure: another time the
// answer may be there.
func (e *upstreamError) down() bool { return !e.unknown() && !e.denied() }

// route sends what goes to the host and port the upstream was named by
// anywhere, since somebody who may do so named it, and what the upstream causes
// beside that (to a CDN it redirects to, to its token server) to public
// addresses only, wherever the upstream itself is: another registry must not
// make Denia ask machines only Denia can reach.
type route struct {
	host     string
	anywhere http.RoundTripper
	outside  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *route) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.away(r) {
		return t.outside.RoundTrip(r)
	}
	return t.anywhere.RoundTrip(r)
}

// away tells whether a request goes to another host or port than the
// upstream's.
func (t *route) away(r *http.Request) bool { return r.URL.Host != t.host }

var (
	// shared is the address space of carriers and overlay networks (RFC 6598).
	shared = netip.MustParsePrefix("100.64.0.0/10")

	// translated holds the IPv4 addresses that a NAT64 translates to (RFC 6052),
	// local those of a network's own translation (RFC 8215).
	translated = netip.MustParsePrefix("64:ff9b::/96")
	local      = netip.MustParsePrefix("64:ff9b:1::/48")
)

// meant is the address that is reached by addr: the IPv4 address that an IPv6
// address stands for, if it does.
func meant(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if translated.Contains(addr) {
		whole := addr.As16()
		return netip.AddrFrom4([4]byte(whole[12:]))
	}
	return addr
}

func private(addr netip.Addr) bool {
	addr = meant(addr)
	return !addr.IsGlobalUnicast() || addr.IsPrivate() || shared.Contains(addr) || local.Contains(addr)
}

// refusePrivate is a net.Dialer's Control: it sees the address after names were
// resolved.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("reading the address to dial: %w", err)
	}
	if private(addr.Addr()) {
		return errors.New("a registry referred to a private address")
	}
	return nil
}

// refuseLinkLocal is a net.Dialer's Control, too. No registry lives at a
// link-local address, but the metadata services of clouds do, which give
// credentials to whoever can ask.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("reading the address to dial: %w", err)
	}
	if meant(addr.Addr()).IsLinkLocalUnicast() {
		return errors.New("a registry has a link-local address")
	}
	return nil
}

// checkRedirect follows redirects, but not from https to http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= upstreamRedirect {
		return fmt.Errorf("stopped after %d redirects", upstreamRedirect)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("refused a redirect from https to http")
	}
	return nil
}
