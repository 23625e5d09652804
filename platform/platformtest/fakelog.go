package platformtest

import (
	"context"
	"fmt"
	"io"

	"github.com/denia-paas/denia/platform"
)

// Logs implements platform.Runtime.
func (f *Fake) Logs(ctx context.Context, replica string, opt platform.LogOptions) (platform.LogReader, error) {
	if err := f.available(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.replicas[replica]
	if r == nil {
		return nil, platform.NotFoundf("there is no replica %s", replica)
	}
	ctx, cancel := context.WithCancel(ctx)
	return &fakeLog{ctx: ctx, cancel: cancel, fake: f, replica: r, opt: opt, outage: f.outage}, nil
}

type fakeLog struct {
	ctx     context.Context
	cancel  context.CancelFunc
	fake    *Fake
	replica *fakeReplica
	opt     platform.LogOptions
	outage  chan struct{}
	next    int
}

func (l *fakeLog) Close() error {
	l.cancel()
	return nil
}

func (l *fakeLog) Next() (platform.LogLine, error) {
	for {
		l.fake.mu.Lock()
		for l.next < len(l.replica.lines) {
			line := l.replica.lines[l.next]
			l.next++
			if !line.TS.Before(l.opt.Since) {
				l.fake.mu.Unlock()
				return line, nil
			}
		}
		ended := !l.opt.Follow || l.replica.gone || l.replica.State == platform.ReplicaExited
		changed := l.replica.changed
		l.fake.mu.Unlock()
		if ended {
			return platform.LogLine{}, io.EOF
		}
		select {
		case <-changed:
		case <-l.outage:
			return platform.LogLine{}, errDown()
		case <-l.ctx.Done():
			return platform.LogLine{}, fmt.Errorf("reading the output: %w", l.ctx.Err())
		}
	}
}
