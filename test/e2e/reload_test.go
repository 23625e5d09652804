package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// Reloads of Caddy in the middle of a deployment, an upload, a log stream and
// a proxied WebSocket cut none of them.
func TestReloadCutsNothing(t *testing.T) {
	s := start(t)
	id := s.running("app", "hello", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	client := s.client()
	defer client.CloseIdleConnections()
	socket, _, err := websocket.Dial(ctx, "ws://app.localhost/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: client.Transport}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.CloseNow() }()
	echo := func(text string) {
		t.Helper()
		if err := socket.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatalf("the WebSocket was cut: %v", err)
		}
		if _, got, err := socket.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("the WebSocket answered %q, %v", got, err)
		}
	}
	echo("before")

	lines := make(chan string, 1000)
	logs, err := s.stream(ctx, "/v1/services/"+id+"/logs/stream?tail=0")
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(logs); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()

	archive := appContext("uploaded").archive(t)
	body, feed := io.Pipe()
	uploaded := make(chan error, 1)
	go func() {
		request, _ := http.NewRequestWithContext(ctx, "POST", s.url("/v1/services/"+id+"/uploads"), body)
		request.Header.Set("Authorization", "Bearer "+s.token)
		request.Header.Set("Content-Type", "application/zstd")
		reply, err := http.DefaultClient.Do(request)
		if err == nil {
			defer reply.Body.Close()
			if reply.StatusCode != http.StatusCreated {
				text, _ := io.ReadAll(reply.Body)
				err = fmt.Errorf("%d %s", reply.StatusCode, text)
			}
		}
		uploaded <- err
	}()
	if _, err := feed.Write(archive[:len(archive)/2]); err != nil {
		t.Fatal(err)
	}
	deployment := s.deployFiles(id, appContext("deployed"))

	for i := range 5 {
		s.writeCaddyfile(fmt.Sprintf("control_domain denia%d.test", i))
		s.host = fmt.Sprintf("denia%d.test", i)
		if out, err := s.reload(); err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
		echo(fmt.Sprint("reload ", i))
	}
	if _, err := io.Copy(feed, bytes.NewReader(archive[len(archive)/2:])); err != nil {
		t.Fatal(err)
	}
	_ = feed.Close()
	if err := <-uploaded; err != nil {
		t.Errorf("the upload was cut: %v", err)
	}
	s.get("app.localhost", "/print?line=still-streaming")
	s.healthy(deployment)
	deadline := time.After(20 * time.Second)
	for found := false; !found; {
		select {
		case line, open := <-lines:
			if !open {
				t.Fatal("the log stream was cut")
			}
			found = strings.Contains(line, "still-streaming")
		case <-deadline:
			t.Fatal("the log stream is silent")
		}
	}
	s.answers("app.localhost", "deployed")
}

// A reload leaves the streams of every version of HTTP alone, and does so for
// longer than requests have at the end of the process.
func TestReloadCutsNoVersion(t *testing.T) {
	e := startEdge(t)
	e.running("app", "hello", nil)
	reload := func(n int) {
		t.Helper()
		e.serve("1s", fmt.Sprintf("http://unrelated.test:%d {\n\tbind 127.0.0.1\n\trespond %d\n}\n", e.port, n))
		if out, err := e.reload(); err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
		if status, _ := e.get("unrelated.test", "/"); status != n {
			t.Fatalf("the other site answers %d, want %d", status, n)
		}
	}
	reload(600)
	type stream struct {
		name   string
		events *bufio.Scanner
		seen   int
		socket *websocket.Conn
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var streams []*stream
	for _, v := range e.versions(t) {
		answer, err := v.Do(v.request(t, "GET", "/sse?ms=50", nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		socket, _, err := websocket.Dial(ctx, v.base+"/ws", &websocket.DialOptions{HTTPClient: v.sockets})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = socket.CloseNow() }()
		streams = append(streams, &stream{v.name, bufio.NewScanner(answer.Body), 0, socket})
	}
	goOn := func(events int) {
		t.Helper()
		for _, s := range streams {
			for until := s.seen + events; s.seen < until && s.events.Scan(); {
				if text, ok := strings.CutPrefix(s.events.Text(), "data: "); ok {
					if text != fmt.Sprint(s.seen) {
						t.Fatalf("%s: event %q, want %d", s.name, text, s.seen)
					}
					s.seen++
				}
			}
			if err := s.events.Err(); err != nil {
				t.Errorf("%s: cut after %d events: %v", s.name, s.seen, err)
			}
			if err := s.socket.Write(ctx, websocket.MessageText, []byte("on")); err != nil {
				t.Errorf("%s: the WebSocket was cut: %v", s.name, err)
			} else if _, got, err := s.socket.Read(ctx); err != nil || string(got) != "on" {
				t.Errorf("%s: the WebSocket answers %q, %v", s.name, got, err)
			}
		}
	}
	goOn(1)
	reload(601)
	goOn(60) // which take three times what requests have at the end
	for _, v := range e.versions(t) {
		v.do(t, v.request(t, "GET", "/", nil), http.StatusOK)
	}
}

// stream opens an API stream.
func (s *server) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, "GET", s.url(path), nil)
	if err != nil {
		return nil, err
	}
	request.Host = s.host
	request.Header.Set("Authorization", "Bearer "+s.token)
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	if reply.StatusCode != http.StatusOK {
		defer reply.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", path, reply.Status)
	}
	return reply.Body, nil
}

// The protocols of the first cut: WebSocket, server-sent events, and requests
// streamed both ways.
func TestStreamingThroughTheIngress(t *testing.T) {
	s := start(t)
	s.running("app", "hello", nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := s.client()
	defer client.CloseIdleConnections()

	request, _ := http.NewRequestWithContext(ctx, "GET", "http://app.localhost/sse", nil)
	reply, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	events := bufio.NewScanner(reply.Body)
	for n := 0; n < 3 && events.Scan(); {
		if strings.HasPrefix(events.Text(), "data: ") {
			n++
		}
	}
	if err := events.Err(); err != nil {
		t.Errorf("server-sent events: %v", err)
	}
	_ = reply.Body.Close()

	// Raw, so that the answer to each line is awaited before the next is sent.
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "POST /lines HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
	from := bufio.NewReader(conn)
	for _, word := range []string{"one", "two", "three"} {
		fmt.Fprintf(conn, "%x\r\n%s\n\r\n", len(word)+1, word)
		for {
			line, err := from.ReadString('\n')
			if err != nil {
				t.Fatalf("after %s: %v", word, err)
			}
			if strings.TrimSpace(line) == "got "+word {
				break
			}
		}
	}
	fmt.Fprint(conn, "0\r\n\r\n")
}
