package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

const mPromote = "promote"

// promote deploys a service again and measures how long it takes from when its
// release is promoted, as the deployment says, until a request that was routed
// to the new replica has its answer. One client asks all the time, and every
// answer has to be one.
func (b *run) promote(ctx context.Context, s *service) (bench.Sample, error) {
	var took []time.Duration
	asked := 0
	for range 3 {
		before, err := b.who(ctx, s)
		if err != nil {
			return nil, err
		}
		type switched struct {
			at    time.Time
			asked int
			err   error
		}
		found := make(chan switched, 1)
		asking, stop := context.WithCancel(ctx)
		go func() {
			var seen switched
			for now := before; now == before && seen.err == nil; seen.asked++ {
				now, seen.err = b.who(asking, s)
				seen.at = time.Now()
			}
			found <- seen
		}()
		d, err := b.release(ctx, s, map[string]any{"type": "redeploy", "deployment_id": s.release})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			stop()
			<-found
			return nil, err
		}
		select {
		case seen := <-found:
			stop()
			if seen.err != nil {
				return nil, fmt.Errorf("while a release was promoted: %w", seen.err)
			}
			took = append(took, seen.at.Sub(d.FinishedAt))
			asked += seen.asked
		case <-time.After(10 * time.Second):
			stop()
			return nil, errors.Join(errors.New("the new replica gets no requests"), (<-found).err)
		}
	}
	return bench.Sample{"requests": float64(asked)}.Latencies("first_", took), nil
}

// who asks which replica answers.
func (b *run) who(ctx context.Context, s *service) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.denia.Address+"/who", nil)
	if err != nil {
		return "", err
	}
	r.Host = s.host
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", reply.Status, text)
	}
	return string(text), err
}
