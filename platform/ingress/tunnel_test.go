package ingress

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// tunnelled runs a tunnel until it ends. The connections are pipes: what is
// written waits for its reader.
func tunnelled(t *testing.T, run func(client, replica net.Conn)) (lasted time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		client, outer := net.Pipe()
		inner, replica := net.Pipe()
		c := &conn{Conn: inner, upstream: &upstream{kick: make(chan struct{}, 1)}}
		tunnel := tunnel{client: outer, replica: c}
		go run(client, replica)
		began := time.Now()
		sent := make(chan struct{})
		go tunnel.send(nil, sent)
		tunnel.receive(bufio.NewReader(c))
		<-sent
		lasted = time.Since(began)
		client.Close()
		replica.Close()
	})
	return lasted
}

// A client that has left is not seen while there is something of it that nobody
// takes, unless there is something to tell it.
func TestTunnelEndsWithItsClientThoughTheReplicaIsStuck(t *testing.T) {
	for _, speaks := range []bool{false, true} {
		most := 2 * time.Minute
		if speaks {
			most = 20 * time.Second
		}
		if lasted := tunnelled(t, func(client, replica net.Conn) {
			_ = client.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = client.Write(make([]byte, 1<<20))
			client.Close()
			if speaks {
				_, _ = replica.Write([]byte("hello"))
			}
		}); lasted > most {
			t.Errorf("it lasted for %v, want at most %v", lasted, most)
		}
	}
}

func TestSlowReplicaIsNotStuck(t *testing.T) {
	const text = "all of this, at the pace of the replica"
	var got strings.Builder
	lasted := tunnelled(t, func(client, replica net.Conn) {
		go func() { _, _ = io.WriteString(client, text) }()
		b := make([]byte, 1)
		for range len(text) {
			time.Sleep(stuckFor - time.Second)
			if _, err := replica.Read(b); err != nil {
				break
			}
			got.Write(b)
		}
		replica.Close()
	})
	if got.String() != text {
		t.Errorf("within %v the replica got %q", lasted, got.String())
	}
}
