package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
)

// silence is longer than the ingress lets clients stall.
const silence = 2*patience + patience/2

// What is open to both sides for as long as they like may be silent for as long as
// they like, and so may an application until it answers, over every version of
// HTTP. What has only to be sent is not.
func TestSilence(t *testing.T) {
	e := startEdge(t, impatient)
	e.running("app", "hello", nil)
	e.runningGRPC()
	var all sync.WaitGroup
	defer all.Wait()
	for _, v := range e.versions(t) {
		for name, test := range map[string]func(*testing.T, version){
			"WebSocket":       silentSocket,
			"event stream":    silentEvents,
			"gRPC":            silentCall,
			"answer":          silentAnswer,
			"stalled request": stalledRequest,
		} {
			all.Go(func() { t.Run(name+" over "+v.name, func(t *testing.T) { test(t, v) }) })
		}
	}
}

func silentSocket(t *testing.T, v version) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, v.base+"/ws", &websocket.DialOptions{HTTPClient: v.sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	for n := range 3 {
		if n > 0 {
			<-time.After(silence)
		}
		if err := c.Write(ctx, websocket.MessageText, []byte("still there?")); err != nil {
			t.Fatalf("after %d silences: %v", n, err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != "still there?" {
			t.Fatalf("after %d silences: %q, %v", n, got, err)
		}
	}
}

func silentEvents(t *testing.T, v version) {
	for _, method := range []string{"GET", "POST"} {
		var body io.Reader
		if method == "POST" {
			body = struct{ io.Reader }{strings.NewReader("what about?")} // of unknown length
		}
		res, err := v.Do(v.request(t, method, fmt.Sprintf("/sse?ms=%d", silence.Milliseconds()), body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		const want = "data: 0\n\ndata: 1\n\n"
		got := make([]byte, len(want))
		if n, err := io.ReadFull(res.Body, got); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", method, got[:n], err)
		}
	}
}

// silentCall is a gRPC call in which both sides speak in turn.
func silentCall(t *testing.T, v version) {
	message, err := proto.Marshal(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("still there?")}})
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{0, 0, 0, 0, byte(len(message))}, message...)
	body, feed := io.Pipe()
	defer feed.Close()
	r := v.request(t, "POST", "/grpc.testing.TestService/FullDuplexCall", body)
	r.URL.Host = strings.Replace(r.URL.Host, "app.", "grpc.", 1)
	r.Host = r.URL.Host
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	go func() {
		for n := range 3 {
			if n > 0 {
				<-time.After(silence)
			}
			if _, err := feed.Write(frame); err != nil {
				return
			}
		}
		<-time.After(silence)
		feed.Close()
	}()
	res, err := v.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || bytes.Count(got, []byte("still there?")) != 3 || res.Trailer.Get("Grpc-Message") != "the end" {
		t.Errorf("got %q, %v, trailer %v", got, err, res.Trailer)
	}
}

func silentAnswer(t *testing.T, v version) {
	for _, size := range []int{0, 5, 200_000} {
		r := v.request(t, "POST", fmt.Sprintf("/slow?ms=%d", silence.Milliseconds()), bytes.NewReader(make([]byte, size)))
		if _, text := v.do(t, r, http.StatusOK); text != "slow" {
			t.Errorf("after %d bytes: %q", size, text)
		}
	}
}

// stalledRequest is one of which nothing more comes.
func stalledRequest(t *testing.T, v version) {
	body, feed := io.Pipe()
	defer feed.Close()
	go io.WriteString(feed, "begun")
	began := time.Now()
	res, err := v.Do(v.request(t, "POST", "/echo", body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if took := time.Since(began); res.StatusCode != http.StatusRequestTimeout || took > 2*patience {
		t.Errorf("got %d after %v", res.StatusCode, took)
	}
}
