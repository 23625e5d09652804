package ingress

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Entries wait in memory until Options.Record has taken them. Each service has
// a ring of pieces of text: a small one, because most services have few
// requests at a time, then large ones, of which the oldest makes room.
const (
	smallPiece = 4 << 10
	largePiece = 32 << 10
	maxPieces  = 9        // of one service: about a thousand entries
	maxHeld    = 64 << 20 // of all services, in bytes

	recordEvery   = 500 * time.Millisecond
	complainEvery = time.Minute
)

// Text on the stack has room for nearly every entry.
const usualEntry = 1 << 10

// noted is what an exchange remembers for its entry.
type noted struct {
	began    time.Time
	answered time.Duration // from began until an answer began; 0: none did
	tried    *upstream     // the last, nil for none
	tries    int
	refused  *refusal // what Denia answered, nil when a replica did
	wait     patience
	protocol string // if it is not that of the request
	endless  bool   // a WebSocket or an event stream: its duration says nothing
	gone     bool   // the client took not all of the answer
	broken   bool   // the replica gave not all of it
	whole    bool   // the answer came to its end, or nobody was to hear it
}

// note adds the finished exchange to the entries and counts of its service. It
// is called whichever way the exchange ended.
func (x *exchange) note() {
	now := time.Now()
	took := now.Sub(x.began)
	r := x.pool.recorder()
	e := platform.AccessEntry{
		TS: now, Method: x.r.Method, Protocol: x.r.Proto, Host: x.r.Host, Path: x.r.URL.Path, Query: x.r.URL.RawQuery,
		Status: x.status, BytesIn: x.body.taken.Load(), BytesOut: x.sent,
		Duration: took, Waited: x.wait.waited, ColdStart: x.wait.cold && x.tried != nil,
		RequestID: x.id,
	}
	if agent := x.r.Header["User-Agent"]; len(agent) > 0 {
		e.UserAgent = agent[0]
	}
	if x.protocol != "" {
		e.Protocol = x.protocol
	}
	if x.tried != nil {
		e.Release = x.tried.target.ReleaseID
		upstream := took
		if x.answered > 0 {
			upstream = x.answered
		}
		e.Upstream = max(0, upstream-e.Waited)
		if x.refused == nil {
			e.Replica = x.tried.target.name()
		}
	}
	switch {
	case x.refused != nil:
		e.Error = x.refused.code
	case x.gone, !x.whole && !x.broken && x.r.Context().Err() != nil:
		e.Error = platform.AccessClientGone
	case !x.whole:
		e.Error = platform.AccessBrokenOff
	}
	if x.in.options.Record == nil {
		r.add(x, &e, nil)
		return
	}
	if x.r.URL.RawPath != "" || !isPlainPath(e.Path) {
		e.Path = x.r.URL.EscapedPath()
	}
	e.RemoteIP = x.ip
	var text [usualEntry]byte
	r.add(x, &e, platform.AppendAccess(text[:0], &e))
}

// isPlainPath tells whether a decoded path is surely what the client sent.
func isPlainPath(path string) bool {
	for i := range len(path) {
		c := path[i]
		if (c < 'a' || c > 'z') && (c < '-' || c > '9') && (c < 'A' || c > 'Z') && c != '_' && c != '~' {
			return false
		}
	}
	return true
}

// name is what people call the replica.
func (t *Target) name() string {
	if t.Label != "" {
		return t.Label
	}
	return t.ID
}

// recorder holds the entries of one service that are not handed on, and the
// counts of its releases.
type recorder struct {
	in      *Ingress
	service platform.ID

	writing sync.Mutex // held while pieces are handed on, before mu

	mu     sync.Mutex // guards what follows; held for nothing slow
	pieces [maxPieces]*piece
	n      int
	closed bool
	queued bool // is in the list of those with something to hand on
	counts []*counts

	next *recorder // in that list
}

// piece is the text of some entries.
type piece struct {
	text    []byte // its capacity is the piece's size
	entries int
}

var (
	smallPieces = sync.Pool{New: func() any { return &piece{text: make([]byte, 0, smallPiece)} }}
	largePieces = sync.Pool{New: func() any { return &piece{text: make([]byte, 0, largePiece)} }}
)

// recorder returns the pool's, made with its first request.
func (p *pool) recorder() *recorder {
	if r := p.entries.Load(); r != nil {
		return r
	}
	p.entries.CompareAndSwap(nil, &recorder{in: p.in, service: p.service})
	return p.entries.Load()
}

// add counts an exchange, and keeps its record if there is one.
func (r *recorder) add(x *exchange, e *platform.AccessEntry, record []byte) {
	r.mu.Lock()
	r.of(x.tried).add(x, e)
	if record == nil || r.closed {
		r.mu.Unlock()
		return
	}
	p, fresh := r.room(len(record))
	if p == nil {
		r.mu.Unlock()
		r.in.lost.Add(1)
		return
	}
	p.text = append(p.text, record...)
	p.entries++
	push := !r.queued
	r.queued = true
	hurry := fresh && r.n > 1
	r.mu.Unlock()
	if push {
		r.in.queue(r)
	}
	if hurry {
		wake(r.in.hurry)
	}
}

// room returns a piece with room for n bytes, and whether it was added; nil
// when there is none to be had. r.mu must be held.
func (r *recorder) room(n int) (p *piece, fresh bool) {
	if r.n > 0 {
		if p := r.pieces[r.n-1]; cap(p.text)-len(p.text) >= n {
			return p, false
		}
	}
	pool, size := &smallPieces, smallPiece
	if r.n > 0 || n > smallPiece {
		pool, size = &largePieces, largePiece
	}
	if r.n == maxPieces {
		r.dropOldest()
	}
	for !r.in.hold(size) {
		if r.n == 0 {
			return nil, false
		}
		r.dropOldest()
	}
	p = pool.Get().(*piece)
	r.pieces[r.n] = p
	r.n++
	return p, true
}

// dropOldest loses entries. r.mu must be held.
func (r *recorder) dropOldest() {
	p := r.pieces[0]
	copy(r.pieces[:], r.pieces[1:r.n])
	r.n--
	r.pieces[r.n] = nil
	r.in.lost.Add(uint64(p.entries))
	r.in.free(p)
}

// hold accounts for a piece; false when there may be no more.
func (in *Ingress) hold(size int) bool {
	if in.held.Add(int64(size)) > maxHeld {
		in.held.Add(-int64(size))
		return false
	}
	return true
}

func (in *Ingress) free(p *piece) {
	size := cap(p.text)
	in.held.Add(-int64(size))
	p.text, p.entries = p.text[:0], 0
	if size == smallPiece {
		smallPieces.Put(p)
	} else {
		largePieces.Put(p)
	}
}

// write hands on what there is. After an error the rest stays.
func (r *recorder) write() error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	pieces, n, closed := r.pieces, r.n, r.closed
	r.pieces, r.n = [maxPieces]*piece{}, 0
	r.mu.Unlock()
	for i, p := range pieces[:n] {
		if !closed {
			if err := r.in.options.Record(r.service, p.text); err != nil {
				r.putBack(pieces[i:n])
				return err
			}
		}
		r.in.free(p)
	}
	return nil
}

// putBack puts pieces before those that came meanwhile, as far as there is
// room.
func (r *recorder) putBack(pieces []*piece) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for over := len(pieces) + r.n - maxPieces; over > 0; over-- {
		r.in.lost.Add(uint64(pieces[0].entries))
		r.in.free(pieces[0])
		pieces = pieces[1:]
	}
	copy(r.pieces[len(pieces):], r.pieces[:r.n])
	copy(r.pieces[:], pieces)
	r.n += len(pieces)
}

// close drops what there is and what comes, and returns when nothing is being
// handed on any more.
func (r *recorder) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	_ = r.write() // of a closed one: it drops
}

func (r *recorder) reopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
}

// unwritten is a copy of what was not handed on.
func (r *recorder) unwritten() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []byte
	for _, p := range r.pieces[:r.n] {
		all = append(all, p.text...)
	}
	return all
}

// queue adds r to those with something to hand on. It takes no lock: all
// services meet here, though each only once in a while.
func (in *Ingress) queue(r *recorder) {
	for {
		first := in.toRecord.Load()
		r.next = first
		if in.toRecord.CompareAndSwap(first, r) {
			if first == nil {
				wake(in.fresh)
			}
			return
		}
	}
}

// record hands entries on, some at a time, until the Ingress closes.
func (in *Ingress) record() {
	gather := time.NewTimer(0)
	defer gather.Stop()
	failed := false
	for {
		select {
		case <-in.ctx.Done():
			return
		case <-in.fresh:
		}
		gather.Reset(recordEvery)
		hurry := in.hurry
		if failed {
			hurry = nil // whoever takes no entries is not asked all the time
		}
		select {
		case <-in.ctx.Done():
			return
		case <-gather.C:
		case <-hurry:
		}
		failed = !in.recordAll()
	}
}

// recordAll hands on what there is of all services, and tells whether all was
// taken. One goroutine may call it at a time.
func (in *Ingress) recordAll() bool {
	ok := true
	for r := in.toRecord.Swap(nil); r != nil; {
		r.mu.Lock()
		next := r.next
		r.next, r.queued = nil, false
		r.mu.Unlock()
		if err := r.write(); err != nil {
			ok = false
			if now := time.Now(); now.Sub(in.complained) >= complainEvery {
				in.complained = now
				in.options.Log.Error("access entries cannot be written; the newest stay in memory", "service", r.service, "lost", in.lost.Load(), "error", err)
			}
			r.mu.Lock()
			push := !r.queued && r.n > 0
			r.queued = r.queued || push
			r.mu.Unlock()
			if push {
				in.queue(r)
			}
		}
		r = next
	}
	return ok
}

// Unwritten hands the entries of a service on, and returns those that
// Options.Record does not take, as it would get them.
func (in *Ingress) Unwritten(service platform.ID) []byte {
	in.mu.Lock()
	p := in.pools[service]
	in.mu.Unlock()
	if p == nil || in.options.Record == nil {
		return nil
	}
	r := p.entries.Load()
	if r == nil || r.write() == nil {
		return nil
	}
	return r.unwritten()
}

// wake wakes whoever waits for the channel, which has room for one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// recording is what an Ingress needs to hand entries on.
type recording struct {
	toRecord   atomic.Pointer[recorder] // the first of a list
	fresh      chan struct{}            // size 1: the list has a first
	hurry      chan struct{}            // size 1: somebody has much
	held       atomic.Int64             // bytes of pieces
	lost       atomic.Uint64            // entries
	unknown    atomic.Uint64            // requests for hosts that are not routed
	complained time.Time
}

// countingWriter counts what a page of Denia's own has.
type countingWriter struct {
	http.ResponseWriter
	written int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.written += int64(n)
	return n, err
}
