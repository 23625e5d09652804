package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/test/bench"
)

// collection measures what a collection costs another repository: the same
// requests with and without it.
func (b *run) collection(ctx context.Context) error {
	g, err := b.startDenia(ctx, "denia-collecting", "registry {", "\tlease 1s", "}")
	if err != nil {
		return err
	}
	defer g.End()
	config, layers, err := g.small(ctx, "neighbour")
	if err != nil {
		return err
	}
	content := typical(config, layers, "v1")
	if err := g.putManifest(ctx, "neighbour", "v1", content); err != nil {
		return err
	}
	for round := range b.rounds {
		results, err := b.collect(ctx, g, fmt.Sprintf("garbage%d", round), content)
		if err != nil {
			return err
		}
		for _, r := range results {
			bench.Say("%d/%d %-34s %-16s %s", round+1, b.rounds, r.measure, deniaName, r.Sample)
			b.report.Add(r.measure, deniaName, r.Sample)
		}
	}
	return nil
}

type named struct {
	measure string
	bench.Sample
}

// collect fills a repository, deletes everything in it, and has it collected.
func (b *run) collect(ctx context.Context, g *registry, name string, neighbour []byte) (results []named, err error) {
	const writers = 8
	config := []byte("{}")
	manifests := make([]digest.Digest, b.images)
	began := time.Now()
	if err := together(writers, func(i int) error {
		for ; i < len(manifests); i += writers {
			d, err := g.pushImage(ctx, name, i, config)
			if err != nil {
				return err
			}
			manifests[i] = d
		}
		return nil
	}); err != nil {
		return nil, err
	}
	bench.Say("%d images took %.1f s", len(manifests), time.Since(began).Seconds())
	if err := g.settled(ctx, b.images); err != nil {
		return nil, err
	}

	window := func(measure string, work func() error) error {
		var head, put []time.Duration
		s, err := measured(g.Process, func() (err error) {
			head, put, err = g.probe(ctx, neighbour, work)
			return err
		})
		if err != nil {
			return err
		}
		results = append(results, named{measure, s.Latencies("head_", head).Latencies("put_", put)})
		return nil
	}
	if err := window(mDeleting, func() error {
		return together(writers, func(i int) error {
			for ; i < len(manifests); i += writers {
				target := g.url(g.repo(name) + "/manifests/" + manifests[i].String())
				if _, err := g.call(ctx, 202, "DELETE", name, target, nil, 0, ""); err != nil {
					return err
				}
			}
			return nil
		})
	}); err != nil {
		return nil, err
	}
	began = time.Now()
	if err := window(mCollecting, func() error { return g.settled(ctx, 0) }); err != nil {
		return nil, err
	}
	long := time.Since(began)
	return results, window(mQuiet, func() error { return bench.Rest(ctx, long) })
}

// pushImage pushes an image of its own layer. The lease is so short that a
// machine that is busy may lose the layer before its manifest comes.
func (g *registry) pushImage(ctx context.Context, name string, i int, config []byte) (d digest.Digest, err error) {
	for range 5 {
		layer := fmt.Appendf(nil, "layer %d of %s", i, name)
		var c, l digest.Digest
		if c, err = g.pushBytes(ctx, name, config); err != nil {
			return "", err
		}
		if l, err = g.pushBytes(ctx, name, layer); err != nil {
			return "", err
		}
		content := typical(configOf(c, len(config)), []descriptor{layerOf(l, int64(len(layer)))}, fmt.Sprint("v", i))
		if err = g.putManifest(ctx, name, fmt.Sprint("v", i), content); err == nil {
			return digest.FromBytes(content), nil
		}
	}
	return "", err
}

// settled has the registry collect until it holds no more than these many
// manifests and the neighbour's, and blobs for those.
func (g *registry) settled(ctx context.Context, manifests int) error {
	return bench.Until(ctx, 2*time.Minute, 300*time.Millisecond, "everything is collected", func() (bool, error) {
		collected, text, err := g.denia.Ask(ctx, http.MethodPost, "/v1/registry/gc", "", nil)
		if err != nil {
			return false, err
		}
		if collected != http.StatusAccepted && collected != http.StatusConflict { // a conflict with one that runs
			return false, fmt.Errorf("POST /v1/registry/gc: %d: %s", collected, text)
		}
		var holds struct{ Manifests, Blobs int }
		if err := g.denia.Call(ctx, http.MethodGet, "/v1/registry/status", nil, &holds); err != nil {
			return false, err
		}
		// A layer for each image and the neighbour, and one config for all.
		return collected == http.StatusAccepted && holds.Manifests <= manifests+1 && holds.Blobs <= manifests+2, nil
	})
}

// probe asks for a manifest and writes one, in turn, until work has ended. It
// rests in between: a neighbour that takes all it can get would wait for itself.
func (g *registry) probe(ctx context.Context, content []byte, work func() error) (head, put []time.Duration, err error) {
	secret, err := g.bearer(ctx, "neighbour")
	if err != nil {
		return nil, nil, err
	}
	l, err := dial(ctx, g.Address)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	path := g.repo("neighbour") + "/manifests/v1"
	asks := request("HEAD", g.Address, path, secret, nil, "")
	puts := request("PUT", g.Address, path, secret, content, imageType)
	done := make(chan error, 1)
	go func() { done <- work() }()
	for {
		select {
		case err := <-done:
			return head, put, err
		case <-time.After(4 * time.Millisecond):
		}
		began := time.Now()
		if _, err = l.ask(asks, "200"); err == nil {
			head = append(head, time.Since(began))
			began = time.Now()
			_, err = l.ask(puts, "201")
			put = append(put, time.Since(began))
		}
		if err != nil {
			return nil, nil, errors.Join(err, <-done)
		}
	}
}
