package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/test/bench"
)

// transfers of a large blob are what one sample of a GET measures.
const transfers = 4

// pushes measures one large blob, beside the hash alone and beside the smallest
// handler.
func (b *run) pushes(ctx context.Context) error {
	small, err := b.startSmallest(ctx)
	if err != nil {
		return err
	}
	defer small.End()
	items := []bench.Item{{Measure: mHash, Of: thisProgram, Run: b.hash}}
	for _, g := range []*registry{small, b.denia, b.docker} {
		for _, measure := range []string{mPush, mStream} {
			items = append(items, bench.Item{Measure: measure, Of: g.Name, Run: func(ctx context.Context) (bench.Sample, error) {
				return b.push(ctx, g, measure == mStream)
			}})
		}
	}
	return b.inTurns(ctx, items)
}

// hash hashes as many bytes as are pushed, from a buffer that stays in the
// processor's cache.
func (b *run) hash(context.Context) (bench.Sample, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	piece := make([]byte, 256<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(piece) // never fails
	before, err := bench.ThreadCPU()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	hash := sha256.New()
	for range b.size / int64(len(piece)) {
		_, _ = hash.Write(piece) // never fails (hash.Hash)
	}
	wall := time.Since(began)
	after, err := bench.ThreadCPU()
	if err != nil {
		return nil, err
	}
	return perGiB(bench.Sample{"wall_s": wall.Seconds(), "cpu_s": (after - before).Seconds()}, b.size), nil
}

func (b *run) push(ctx context.Context, g *registry, streamed bool) (bench.Sample, error) {
	body, d, err := b.large.next()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if _, err := g.bearer(ctx, "push"); err != nil {
		return nil, err
	}
	if err := warm(b.size); err != nil {
		return nil, err
	}
	s, err := measured(g.Process, func() error {
		if streamed {
			return g.stream(ctx, "push", d, body)
		}
		return g.push(ctx, "push", d, body, b.size)
	})
	if err != nil {
		return nil, err
	}
	return perGiB(s, b.size), g.remove(ctx, "push", []digest.Digest{d})
}

// parallelPushes measures four blobs at once, a quarter of the large one each.
func (b *run) parallelPushes(ctx context.Context) error {
	const clients = 4
	var sources []*source
	for i := range clients {
		source, err := newSource(b.file(fmt.Sprint("part", i)), b.size/clients)
		if err != nil {
			return err
		}
		defer os.Remove(source.path)
		sources = append(sources, source)
	}
	push := func(ctx context.Context, g *registry) (bench.Sample, error) {
		var digests []digest.Digest
		var bodies []*os.File
		for _, source := range sources {
			body, d, err := source.next()
			if err != nil {
				return nil, err
			}
			defer body.Close()
			digests, bodies = append(digests, d), append(bodies, body)
		}
		if _, err := g.bearer(ctx, "parallel"); err != nil {
			return nil, err
		}
		if err := warm(b.size); err != nil {
			return nil, err
		}
		s, err := measured(g.Process, func() error {
			return together(clients, func(i int) error {
				return g.push(ctx, "parallel", digests[i], bodies[i], sources[i].size)
			})
		})
		if err != nil {
			return nil, err
		}
		return perGiB(s, b.size), g.remove(ctx, "parallel", digests)
	}
	var items []bench.Item
	for _, g := range []*registry{b.denia, b.docker} {
		items = append(items, bench.Item{Measure: mParallel, Of: g.Name, Run: func(ctx context.Context) (bench.Sample, error) { return push(ctx, g) }})
	}
	return b.inTurns(ctx, items)
}

// together runs n functions at once and returns the first failure.
func together(n int, work func(i int) error) error {
	var running sync.WaitGroup
	failures := make(chan error, n)
	for i := range n {
		running.Go(func() {
			if err := work(i); err != nil {
				failures <- err
			}
		})
	}
	running.Wait()
	close(failures)
	return <-failures
}

// publish pushes a blob and an image that needs it, so that it stays, and
// returns the blob's path.
func (g *registry) publish(ctx context.Context, name string, source *source) (string, digest.Digest, error) {
	body, d, err := source.next()
	if err != nil {
		return "", "", err
	}
	defer body.Close()
	if err := g.push(ctx, name, d, body, source.size); err != nil {
		return "", "", err
	}
	config, err := g.pushBytes(ctx, name, []byte("{}"))
	if err != nil {
		return "", "", err
	}
	if err := g.putManifest(ctx, name, "v1", newManifest(configOf(config, 2), []descriptor{layerOf(d, source.size)}, nil)); err != nil {
		return "", "", err
	}
	return g.repo(name) + "/blobs/" + d.String(), d, nil
}

// gets measures the download of a large blob. The web servers serve the very
// file that Denia has, so that all send the same pages.
func (b *run) gets(ctx context.Context) error {
	paths := map[*bench.Process]string{b.nginx: "/blob", b.corked: "/blob", b.caddy: "/blob"}
	for _, g := range []*registry{b.denia, b.docker} {
		path, d, err := g.publish(ctx, "get", b.large)
		if err != nil {
			return err
		}
		paths[g.Process] = path
		if g != b.denia {
			continue
		}
		file := g.find(d)
		if file == "" {
			return fmt.Errorf("no file in %s's data is called like the blob", g.Name)
		}
		if err := os.Link(file, filepath.Join(b.static(), "blob")); err != nil {
			return err
		}
	}
	get := func(ctx context.Context, p *bench.Process, times int) (bench.Sample, error) {
		secret := ""
		if p == b.denia.Process {
			var err error
			if secret, err = b.denia.bearer(ctx, "get"); err != nil {
				return nil, err
			}
		}
		l, err := dial(ctx, p.Address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ask := request("GET", p.Address, paths[p], secret, nil, "")
		work := func() error {
			length, err := l.ask(ask, "200")
			if err == nil && length != b.size {
				err = fmt.Errorf("%d bytes came of %d", length, b.size)
			}
			return err
		}
		if times > 1 { // the first has the connection and the pages warm
			if err := work(); err != nil {
				return nil, err
			}
		}
		s, err := measured(p, func() error {
			for range times {
				if err := work(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		return perGiB(s, b.size*int64(times)), nil
	}
	var items []bench.Item
	for _, p := range []*bench.Process{b.nginx, b.denia.Process, b.corked, b.caddy, b.docker.Process} {
		items = append(items, bench.Item{Measure: mGet, Of: p.Name, Run: func(ctx context.Context) (bench.Sample, error) { return get(ctx, p, transfers) }})
	}
	// Those that a promise compares are measured twice in each round, one time
	// in this order and one time in the other.
	if err := b.manyTurns(ctx, 2*b.rounds, items[:2]); err != nil {
		return err
	}
	if err := b.inTurns(ctx, items[2:]); err != nil {
		return err
	}
	for _, p := range []*bench.Process{b.denia.Process, b.caddy, b.nginx} {
		sent, err := traced(ctx, p, func() error {
			_, err := get(ctx, p, 1)
			return err
		})
		if err != nil {
			bench.Say("how %s sends is unknown: %v", p.Name, err)
			continue
		}
		bench.Say("%s sends: %s", p.Name, sent)
		b.report.Add(mTrace, p.Name, sent)
	}
	return nil
}

// durable measures small blobs, one after the other: each 201 says that it is
// on the disk.
func (b *run) durable(ctx context.Context) error {
	noise := rand.NewChaCha8([32]byte{1, byte(time.Now().UnixNano())})
	push := func(ctx context.Context, g *registry) (bench.Sample, error) {
		content := make([]byte, 64<<10)
		digests := make([]digest.Digest, 0, b.smallBlobs)
		took := make([]time.Duration, 0, b.smallBlobs)
		if _, err := g.bearer(ctx, "durable"); err != nil {
			return nil, err
		}
		s, err := measured(g.Process, func() error {
			for range b.smallBlobs {
				_, _ = noise.Read(content) // never fails
				began := time.Now()
				d, err := g.pushBytes(ctx, "durable", content)
				if err != nil {
					return err
				}
				took = append(took, time.Since(began))
				digests = append(digests, d)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		return s.Latencies("", took), g.remove(ctx, "durable", digests)
	}
	items := []bench.Item{{Measure: mDurable, Of: thisProgram, Run: b.durableFiles}}
	for _, g := range []*registry{b.denia, b.docker} {
		items = append(items, bench.Item{Measure: mDurable, Of: g.Name, Run: func(ctx context.Context) (bench.Sample, error) { return push(ctx, g) }})
	}
	return b.inTurns(ctx, items)
}

// durableFiles writes files as carefully as a registry has to.
func (b *run) durableFiles(context.Context) (bench.Sample, error) {
	dir := b.file("files")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	content := make([]byte, 64<<10)
	took := make([]time.Duration, 0, b.smallBlobs)
	for i := range b.smallBlobs {
		began := time.Now()
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := writeDurably(path+".new", path, content); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return bench.Sample{}.Latencies("", took), nil
}

func writeDurably(temporary, path string, content []byte) error {
	f, err := os.Create(temporary)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// image pushes and pulls an image of ten layers with a real client, which
// checks what it gets.
func (b *run) image(ctx context.Context) error {
	const layers = 10
	each := b.size / 46 // 22 MiB of 1 GiB, about what images have
	round := 0
	var items []bench.Item
	for _, g := range []*registry{b.denia, b.docker} {
		auth := remote.WithAuth(authn.Anonymous)
		if g.denia != nil {
			auth = remote.WithAuth(&authn.Basic{Username: "admin", Password: g.denia.Token})
		}
		var pushed name.Reference
		push := func(ctx context.Context) (bench.Sample, error) {
			image, err := random.Image(each, layers)
			if err != nil {
				return nil, err
			}
			if _, err := image.Digest(); err != nil { // hashes everything
				return nil, err
			}
			round++
			if pushed, err = name.ParseReference(fmt.Sprintf("%s/%simage:r%d", g.Address, g.prefix, round)); err != nil {
				return nil, err
			}
			s, err := measured(g.Process, func() error { return remote.Write(pushed, image, auth, remote.WithContext(ctx)) })
			if err != nil {
				return nil, err
			}
			return perGiB(s, each*layers), nil
		}
		pull := func(ctx context.Context) (bench.Sample, error) {
			if pushed == nil {
				if _, err := push(ctx); err != nil {
					return nil, err
				}
			}
			s, err := measured(g.Process, func() error {
				image, err := remote.Image(pushed, auth, remote.WithContext(ctx))
				if err != nil {
					return err
				}
				all, err := image.Layers()
				if err != nil {
					return err
				}
				return together(4, func(i int) error {
					for ; i < len(all); i += 4 {
						if err := read(all[i]); err != nil {
							return err
						}
					}
					return nil
				})
			})
			if err != nil {
				return nil, err
			}
			return perGiB(s, each*layers), nil
		}
		items = append(items, bench.Item{Measure: mImagePush, Of: g.Name, Run: push}, bench.Item{Measure: mImagePull, Of: g.Name, Run: pull})
	}
	return b.inTurns(ctx, items)
}

func read(layer v1.Layer) error {
	content, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, content, make([]byte, 256<<10))
	return err
}
