package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

const connections = 32

// small is an image of one layer in a repository, but for its manifest.
func (g *registry) small(ctx context.Context, name string) (config descriptor, layers []descriptor, err error) {
	c, err := g.pushBytes(ctx, name, []byte("{}"))
	if err != nil {
		return descriptor{}, nil, err
	}
	content := bytes.Repeat([]byte("layer "), 200)
	l, err := g.pushBytes(ctx, name, content)
	return configOf(c, 2), []descriptor{layerOf(l, int64(len(content)))}, err
}

// typical is a manifest of 1.8 kB, about what ten layers make.
func typical(config descriptor, layers []descriptor, tag string) []byte {
	text := newManifest(config, layers, map[string]string{"tag": tag, "padding": ""})
	return newManifest(config, layers, map[string]string{"tag": tag, "padding": strings.Repeat("x", max(0, 1800-len(text)))})
}

// requests measures small requests on kept connections.
func (b *run) requests(ctx context.Context) error {
	tags := make([]string, b.tags)
	for i := range tags {
		tags[i] = fmt.Sprintf("t%04d", i)
	}
	var content []byte
	for _, g := range []*registry{b.denia, b.docker} {
		config, layers, err := g.small(ctx, "few")
		if err != nil {
			return err
		}
		content = typical(config, layers, "t0000")
		if err := g.putManifest(ctx, "few", "t0000", content); err != nil {
			return err
		}
		if config, layers, err = g.small(ctx, "many"); err != nil {
			return err
		}
		began := time.Now()
		const writers = 8
		if err := together(writers, func(i int) error {
			for ; i < len(tags); i += writers {
				if err := g.putManifest(ctx, "many", tags[i], typical(config, layers, tags[i])); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		bench.Say("%s took %.1f s for %d tags", g.Name, time.Since(began).Seconds(), len(tags))
	}
	if err := os.WriteFile(filepath.Join(b.static(), "manifest.json"), content, 0o600); err != nil {
		return err
	}

	ask := func(measure, method string, p *bench.Process, paths ...string) bench.Item {
		return bench.Item{Measure: measure, Of: p.Name, Run: func(ctx context.Context) (bench.Sample, error) {
			secret := ""
			if p == b.denia.Process {
				name, _, _ := strings.Cut(strings.TrimPrefix(paths[0], "/v2/"+b.denia.prefix), "/")
				var err error
				if secret, err = b.denia.bearer(ctx, name); err != nil {
					return nil, err
				}
			}
			var requests [][]byte
			for _, path := range paths {
				requests = append(requests, request(method, p.Address, path, secret, nil, ""))
			}
			var took []time.Duration
			s, err := measured(p, func() (err error) {
				took, err = flood(ctx, p.Address, requests, connections, b.seconds)
				return err
			})
			if err != nil {
				return nil, err
			}
			return perRequest(s, len(took)).Latencies("", took), nil
		}}
	}
	var items []bench.Item
	for _, p := range []*bench.Process{b.nginx, b.caddy} {
		items = append(items, ask(mHead, "HEAD", p, "/manifest.json"), ask(mGetTag, "GET", p, "/manifest.json"))
	}
	for _, g := range []*registry{b.denia, b.docker} {
		few, many := g.repo("few")+"/manifests/t0000", g.repo("many")+"/manifests/"
		all := make([]string, len(tags))
		for i, tag := range tags {
			all[i] = many + tag
		}
		items = append(items,
			ask(mHead, "HEAD", g.Process, few), ask(mHeadMany, "HEAD", g.Process, all[len(all)/2]),
			ask(mHeadTurn, "HEAD", g.Process, all...), ask(mGetTag, "GET", g.Process, few))
	}
	return b.inTurns(ctx, items)
}
