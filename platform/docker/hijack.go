package docker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/docker/docker/client"
)

// hijack turns a request to the engine into a connection that speaks proto.
// Unlike the client's own it gives up when ctx ends, or when the engine does
// not answer: a build must not outlive its cancelling by a hung dial.
func hijack(ctx context.Context, api *client.Client, path, proto string, header http.Header) (_ net.Conn, err error) {
	conn, err := api.Dialer()(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling the engine: %w", err)
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, err
	}
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Host = client.DummyHost
	for key, values := range header {
		req.Header[http.CanonicalHeaderKey(key)] = values
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", proto)
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("asking the engine for %s: %w", path, err)
	}
	buffered := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buffered, req)
	if err != nil {
		return nil, fmt.Errorf("asking the engine for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("asking the engine for %s: it has no BuildKit, the answer is %s", path, resp.Status)
	}
	if !interrupt() {
		return nil, ctx.Err()
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &hijacked{Conn: conn, r: buffered}, nil
}

// hijacked is a connection whose first bytes may have been read already.
type hijacked struct {
	net.Conn
	r io.Reader
}

func (h *hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }
