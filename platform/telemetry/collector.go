package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	firstDelay = 250 * time.Millisecond
	maxDelay   = 15 * time.Second

	// quiet and drainLimit bound how long Stop reads on in an output that
	// does not end by itself.
	quiet      = 500 * time.Millisecond
	drainLimit = 5 * time.Second
)

// OpenFunc opens the output of a replica from since on, the zero time for all
// of it, and follows it: platform.Runtime.Logs.
type OpenFunc func(ctx context.Context, replica string, since time.Time) (platform.LogReader, error)

// Collector copies the output of replicas into logs while it happens. After an
// interruption, be it of the engine or of this process, it goes on where the
// log ends: nothing is missed that the engine still has, nothing comes twice.
//
// It runs one goroutine for each replica, from Start to Stop or Close. Its
// methods may be called concurrently.
type Collector struct {
	logs *Logs
	open OpenFunc
	log  *slog.Logger
	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	replicas map[string]*collection
	closed   bool
}

// collection is the work on one replica.
type collection struct {
	replica, key, label string

	ctx      context.Context
	cancel   context.CancelFunc
	stopping chan struct{} // closed: end with the output
	nudge    chan struct{} // of size 1: try again soon
	progress chan struct{} // of size 1: something was read
	done     chan struct{}

	stop sync.Once
	tail tail // used by run only
}

// NewCollector returns a Collector that appends to logs and owns what it
// starts; open may be called concurrently.
func NewCollector(logs *Logs, open OpenFunc, log *slog.Logger) *Collector {
	ctx, cancel := context.WithCancel(context.Background())
	return &Collector{logs: logs, open: open, log: log, ctx: ctx, end: cancel, replicas: map[string]*collection{}}
}

// Start collects the output of a replica into the log of key, each line marked
// with label ("3.0"). For a replica that is being collected it does nothing
// but shorten the wait before a next attempt: call it again when the replica
// has started anew. Collection ends by itself when open answers NotFound.
func (c *Collector) Start(replica, key, label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if w := c.replicas[replica]; w != nil {
		notify(w.nudge)
		return
	}
	w := &collection{
		replica: replica, key: key, label: label,
		stopping: make(chan struct{}), nudge: make(chan struct{}, 1),
		progress: make(chan struct{}, 1), done: make(chan struct{}),
	}
	w.ctx, w.cancel = context.WithCancel(c.ctx)
	c.replicas[replica] = w
	c.wg.Go(func() {
		c.run(w)
		w.cancel()
		c.mu.Lock()
		delete(c.replicas, replica)
		c.mu.Unlock()
		close(w.done)
	})
}

// Stop ends the collection of replicas, all at the same time, and returns when
// it has. Output that ends, because the replica has, is read to its end;
// other output until it is quiet for half a second. It takes 5 s at most.
// Replicas that are not collected are passed over.
func (c *Collector) Stop(replicas ...string) {
	var waits sync.WaitGroup
	defer waits.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, replica := range replicas {
		if w := c.replicas[replica]; w != nil {
			w.stop.Do(func() { close(w.stopping) })
			waits.Go(w.drain)
		}
	}
}

// Close ends all collection at once and waits for it. What is not read yet is
// there for the next Collector.
func (c *Collector) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.wg.Wait()
}

// drain waits for the end of the output, or makes it.
func (w *collection) drain() {
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	still := time.NewTimer(quiet)
	defer still.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-w.progress:
			still.Reset(quiet)
			continue
		case <-still.C:
		case <-limit.C:
		}
		w.cancel()
		<-w.done
		return
	}
}

func (c *Collector) run(w *collection) {
	delay := firstDelay
	for {
		news, err := c.collect(w)
		if news {
			delay = firstDelay
		}
		ended := errors.Is(err, io.EOF)
		switch {
		case w.ctx.Err() != nil, platform.KindOf(err) == platform.NotFound:
			return
		case !ended:
			c.log.Warn("collecting output of replica interrupted", "replica", w.replica, "key", w.key, "retry_in", delay, "error", err)
		}
		if stopping := w.wait(delay); stopping {
			if !ended && w.ctx.Err() == nil {
				// What came since the interruption.
				if _, err := c.collect(w); err != nil && !errors.Is(err, io.EOF) && w.ctx.Err() == nil {
					c.log.Warn("last output of replica not collected", "replica", w.replica, "key", w.key, "error", err)
				}
			}
			return
		}
		delay = min(2*delay, maxDelay)
	}
}

// wait returns after d, sooner on a nudge, or at once when there will be no
// next attempt.
func (w *collection) wait(d time.Duration) (stopping bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	nudge := w.nudge
	for {
		select {
		case <-w.ctx.Done():
			return true
		case <-w.stopping:
			return true
		case <-timer.C:
			return false
		case <-nudge:
			// Not at once: nudges may come faster than attempts fail.
			timer.Reset(min(d, firstDelay))
			nudge = nil
		}
	}
}

// collect copies the output until it ends, io.EOF, or fails. news tells that
// something came that was not in the log yet.
func (c *Collector) collect(w *collection) (news bool, err error) {
	if !w.tail.known {
		if w.tail, err = c.logs.tail(w.key, w.label); err != nil {
			return false, err
		}
	}
	seen := w.tail.overlap()
	reader, err := c.open(w.ctx, w.replica, seen.since)
	if err != nil {
		return false, fmt.Errorf("opening output: %w", err)
	}
	closeReader := sync.OnceValue(reader.Close)
	unhook := context.AfterFunc(w.ctx, func() { _ = closeReader() })
	defer func() {
		unhook()
		_ = closeReader() // nothing was written: there is nothing to lose
	}()
	for {
		line, err := reader.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return news, io.EOF
			}
			return news, fmt.Errorf("reading output: %w", err)
		}
		line.Replica = w.label
		if fresh := seen.without(line); len(fresh) > 0 {
			if err := c.logs.Append(w.key, fresh...); err != nil {
				w.tail = tail{} // some of it may have been kept
				return news, err
			}
			news = true
			w.tail.add(fresh)
		}
		notify(w.progress)
	}
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
