// Package docker runs workloads and builds images on a Docker Engine. It is
// the one place that knows the engine's API; everything it makes carries
// labels of one Denia instance, and nothing without them is ever touched.
package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/client"

	"github.com/denia-paas/denia/platform"
)

var (
	_ platform.Runtime = (*Engine)(nil)
	_ platform.Images  = (*Engine)(nil)
)

// Options configure an Engine.
type Options struct {
	Host     string       // e.g. unix:///var/run/docker.sock; empty: DOCKER_HOST and its kin, then the default socket
	Instance string       // identity of this Denia; only what carries it is seen. Required
	Log      *slog.Logger // default: none
}

// Engine is a platform.Runtime and platform.Images on one Docker Engine, 20.10
// (API 1.41) or later. All methods may be called concurrently. While the
// engine cannot be reached every method fails with platform.Unavailable, code
// engine_unavailable, and works again when it is back.
type Engine struct {
	host     string
	instance string
	log      *slog.Logger

	mu     sync.Mutex     // guards the following
	client *client.Client // nil: made at the next call
	closed bool

	dials keyedMutex // one at a time

	networks networks
	pulls    keyedMutex // by reference: see Pull

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines that outlive the call that started them
}

// Info says which engine answers.
type Info struct {
	Host       string // as dialled
	Version    string // e.g. "20.10.24"
	APIVersion string // as negotiated
	OS         string
	Arch       string
}

// Open prepares an Engine. It does not talk to the engine and so does not fail
// while that is down; it fails when the configuration cannot be used at all.
func Open(_ context.Context, o Options) (*Engine, error) {
	if o.Instance == "" {
		return nil, errors.New("opening docker: no instance given")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{host: o.Host, instance: o.Instance, log: o.Log}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.networks.known = map[string]bool{}
	c, err := e.dial()
	if err != nil {
		e.cancel()
		return nil, fmt.Errorf("opening docker: %w", err)
	}
	defer c.Close()
	e.host = c.DaemonHost()
	return e, nil
}

// OnThisMachine tells whether the engine shares this machine's loopback
// interface, as far as its address says so.
func (e *Engine) OnThisMachine() bool { return strings.HasPrefix(e.host, "unix://") }

// Close ends every stream the Engine has open and waits for its goroutines.
// Containers run on.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
	e.renegotiate()
	return nil
}

// begin accounts for a goroutine that outlives the call; it ends when e.ctx
// does and then calls e.wg.Done.
func (e *Engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	e.wg.Add(1)
	return nil
}

// Ping asks the engine who it is.
func (e *Engine) Ping(ctx context.Context) (Info, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	c, err := e.api(ctx)
	if err != nil {
		return Info{}, err
	}
	v, err := c.ServerVersion(ctx)
	if err != nil {
		return Info{}, e.fail(ctx, err, "asking the engine for its version")
	}
	return Info{
		Host: e.host, Version: v.Version, APIVersion: c.ClientVersion(),
		OS: v.Os, Arch: v.Arch,
	}, nil
}

// Bounds on a single call, so that an engine that hangs is reported and not
// waited for. Creating and starting are slow on a loaded machine.
const (
	callTimeout  = 30 * time.Second
	startTimeout = 2 * time.Minute
)

var errClosed = errors.New("docker: the engine's client is closed")

// errHung is why a bounded call was given up, as opposed to its caller's own
// deadline.
var errHung = errors.New("the engine did not answer in time")

func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, errHung)
}

func (e *Engine) dial() (*client.Client, error) {
	opts := []client.Opt{client.WithTLSClientConfigFromEnv(), client.WithVersionFromEnv()}
	if e.host == "" {
		opts = append(opts, client.WithHostFromEnv())
	} else {
		opts = append(opts, client.WithHost(e.host))
	}
	return client.NewClientWithOpts(append(opts, client.WithAPIVersionNegotiation())...)
}

// api returns the client to use for a call, with its API version agreed on: a
// client that agrees by itself at its first call is not safe for concurrent use
// until then.
func (e *Engine) api(ctx context.Context) (*client.Client, error) {
	if c, err := e.ready(); c != nil || err != nil {
		return c, err
	}
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	unlock, err := e.dials.lock(ctx, "")
	if err != nil {
		return nil, e.fail(ctx, err, "waiting for the engine")
	}
	defer unlock()
	if c, err := e.ready(); c != nil || err != nil {
		return c, err
	}
	c, err := e.dial()
	if err != nil {
		return nil, e.unavailable(err)
	}
	ping, err := c.Ping(ctx)
	if err != nil {
		_ = c.Close()
		return nil, e.fail(ctx, err, "agreeing on an API version")
	}
	c.NegotiateAPIVersionPing(ping)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = c.Close()
		return nil, errClosed
	}
	e.client = c
	return c, nil
}

// ready returns the client if there is one.
func (e *Engine) ready() (*client.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	return e.client, nil
}

// renegotiate drops the client: an engine that was upgraded or downgraded may
// no longer speak the version once agreed on, and a client agrees only once.
func (e *Engine) renegotiate() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		_ = e.client.Close()
		e.client = nil
	}
}

// keyedMutex is one mutex a key.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	sem   chan struct{} // holds one token while locked
	users int           // guarded by keyedMutex.mu
}

// lock waits for the key, or for ctx to end. The returned func unlocks.
func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{sem: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case l.sem <- struct{}{}:
		return func() { <-l.sem; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// short is a stable eight-character name for parts, which together are unique.
func short(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:4])
}
