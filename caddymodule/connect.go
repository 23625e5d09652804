package caddymodule

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	_ "github.com/denia-paas/denia/internal/xconnect" // WebSockets on HTTP/2
)

// endless takes the timeout off a request's body that Caddy has for bodies that
// stall: this one may pause for as long as its sender likes. Answers keep theirs,
// which only runs while the client takes nothing of what there is.
func endless(r *http.Request) {
	if reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context()); reader != nil {
		reader.Override(10*365*24*time.Hour, 0)
	}
}

// whole tells Caddy's server that what is written next is all of the answer. On
// HTTP/2 a deadline is a message to the goroutine that serves the connection, and
// the server sends three for each answer: one before the write, one after it, and
// one for what is still buffered at the end. The first, left in place until the
// stream ends, bounds all of that. What others may write afterwards is bounded as
// always, and so is an answer for which clients get time by its length.
func whole(r *http.Request) (written func()) {
	if r.ProtoMajor != 2 {
		return nil
	}
	_, writer := caddyhttp.IdleTimeoutsFromContext(r.Context())
	if writer == nil || !writer.ClearBetweenWrites || writer.Deadline.MinRate > 0 {
		return nil
	}
	writer.ClearBetweenWrites = false
	return func() { writer.ClearBetweenWrites = true }
}

// sayLast tells the client that this is the last answer on its connection when
// the process is about to end. Servers that shut down close idle connections
// without a word, and what a client is just sending over one is lost. With
// Caddy's shutdown_delay there is time to have every connection that is in use
// end like this instead. (HTTP/3 ends its connections by itself.)
func sayLast(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 3 && caddy.Exiting() {
		w.Header().Set("Connection", "close") // which HTTP/2 takes for GOAWAY
	}
}
