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
)

// Names of what is measured; the report looks for them.
const (
	mHash       = "sha256 alone"
	mPush       = "push, POST+PUT"
	mStream     = "push, POST+PATCH+PUT"
	mParallel   = "push, 4 at once"
	mGet        = "GET blob"
	mDurable    = "push of 64 KiB"
	mImagePush  = "image of ten layers, push"
	mImagePull  = "image of ten layers, pull"
	mHead       = "HEAD by tag"
	mGetTag     = "GET by tag"
	mHeadMany   = "HEAD by tag, one of many"
	mHeadTurn   = "HEAD by tag, many in turn"
	mQuiet      = "neighbour, quiet"
	mDeleting   = "neighbour, during the deletes"
	mCollecting = "neighbour, during the collection"
)

// pushes measures one large blob, beside the hash alone and beside the smallest
// handler.
func (b *bench) pushes(ctx context.Context) error {
	small, err := b.startSmallest(ctx, b.dir)
	if err != nil {
		return err
	}
	defer small.end()
	items := []item{{mHash, thisProgram, b.hash}}
	for _, g := range []*registry{small, b.denia, b.docker} {
		for measure, streamed := range map[string]bool{mPush: false, mStream: true} {
			items = append(items, item{measure, g.name, func(ctx context.Context) (sample, error) { return b.push(ctx, g, streamed) }})
		}
	}
	return b.inTurns(ctx, items)
}

// hash hashes as many bytes as are pushed, from a buffer that stays in the
// processor's cache.
func (b *bench) hash(context.Context) (sample, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	piece := make([]byte, 256<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(piece) // never fails
	before, err := ownCPU(rusageThread)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	hash := sha256.New()
	for range b.size / int64(len(piece)) {
		_, _ = hash.Write(piece) // never fails (hash.Hash)
	}
	wall := time.Since(began)
	after, err := ownCPU(rusageThread)
	if err != nil {
		return nil, err
	}
	return sample{"wall_s": wall.Seconds(), "cpu_s": (after - before).Seconds()}.perGiB(b.size), nil
}

func (b *bench) push(ctx context.Context, g *registry, streamed bool) (sample, error) {
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
	s, err := g.measured(func() error {
		if streamed {
			return g.stream(ctx, "push", d, body)
		}
		return g.push(ctx, "push", d, body, b.size)
	})
	if err != nil {
		return nil, err
	}
	return s.perGiB(b.size), g.remove(ctx, "push", []digest.Digest{d})
}

// parallelPushes measures four blobs at once, a quarter of the large one each.
func (b *bench) parallelPushes(ctx context.Context) error {
	const clients = 4
	var sources []*source
	for i := range clients {
		source, err := newSource(filepath.Join(b.dir, fmt.Sprint("part", i)), b.size/clients)
		if err != nil {
			return err
		}
		defer os.Remove(source.path)
		sources = append(sources, source)
	}
	push := func(ctx context.Context, g *registry) (sample, error) {
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
		s, err := g.measured(func() error {
			return together(clients, func(i int) error {
				return g.push(ctx, "parallel", digests[i], bodies[i], sources[i].size)
			})
		})
		if err != nil {
			return nil, err
		}
		return s.perGiB(b.size), g.remove(ctx, "parallel", digests)
	}
	var items []item
	for _, g := range []*registry{b.denia, b.docker} {
		items = append(items, item{mParallel, g.name, func(ctx context.Context) (sample, error) { return push(ctx, g) }})
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
func (b *bench) gets(ctx context.Context) error {
	paths := map[*process]string{b.nginx: "/blob", b.caddy: "/blob"}
	for _, g := range []*registry{b.denia, b.docker} {
		path, d, err := g.publish(ctx, "get", b.large)
		if err != nil {
			return err
		}
		paths[g.process] = path
		if g != b.denia {
			continue
		}
		file := g.find(d)
		if file == "" {
			return fmt.Errorf("no file in %s's data is called like the blob", g.name)
		}
		if err := os.Link(file, filepath.Join(b.static(), "blob")); err != nil {
			return err
		}
	}
	get := func(ctx context.Context, p *process, times int) (sample, error) {
		secret := ""
		if p == b.denia.process {
			var err error
			if secret, err = b.denia.bearer(ctx, "get"); err != nil {
				return nil, err
			}
		}
		l, err := dial(ctx, p.address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ask := request("GET", p.address, paths[p], secret, nil, "")
		s, err := p.measured(func() error {
			for range times {
				if length, err := l.ask(ask, "200"); err != nil || length != b.size {
					return fmt.Errorf("%d bytes came of %d: %w", length, b.size, err)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		return s.perGiB(b.size * int64(times)), nil
	}
	var items []item
	for _, p := range []*process{b.nginx, b.denia.process, b.caddy, b.docker.process} {
		if _, err := get(ctx, p, 1); err != nil { // everything is in memory from now on
			return fmt.Errorf("%s: %w", p.name, err)
		}
		items = append(items, item{mGet, p.name, func(ctx context.Context) (sample, error) { return get(ctx, p, 3) }})
	}
	if err := b.inTurns(ctx, items); err != nil {
		return err
	}
	for _, p := range []*process{b.denia.process, b.caddy, b.nginx} {
		sent, err := p.traced(ctx, func() error {
			_, err := get(ctx, p, 1)
			return err
		})
		if err != nil {
			b.say("how %s sends is unknown: %v", p.name, err)
			continue
		}
		b.say("%s sends: %s", p.name, sent)
		b.report.add(mTrace, p.name, sent)
	}
	return nil
}

// durable measures small blobs, one after the other: each 201 says that it is
// on the disk.
func (b *bench) durable(ctx context.Context) error {
	noise := rand.NewChaCha8([32]byte{1, byte(time.Now().UnixNano())})
	push := func(ctx context.Context, g *registry) (sample, error) {
		content := make([]byte, 64<<10)
		digests := make([]digest.Digest, 0, b.smallBlobs)
		took := make([]time.Duration, 0, b.smallBlobs)
		if _, err := g.bearer(ctx, "durable"); err != nil {
			return nil, err
		}
		s, err := g.measured(func() error {
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
		return s.latencies("", took), g.remove(ctx, "durable", digests)
	}
	items := []item{{mDurable, thisProgram, b.durableFiles}}
	for _, g := range []*registry{b.denia, b.docker} {
		items = append(items, item{mDurable, g.name, func(ctx context.Context) (sample, error) { return push(ctx, g) }})
	}
	return b.inTurns(ctx, items)
}

// durableFiles writes files as carefully as a registry has to.
func (b *bench) durableFiles(context.Context) (sample, error) {
	dir := filepath.Join(b.dir, "files")
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
	return sample{}.latencies("", took), nil
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
func (b *bench) image(ctx context.Context) error {
	const layers = 10
	each := b.size / 46 // 22 MiB of 1 GiB, about what images have
	round := 0
	var items []item
	for _, g := range []*registry{b.denia, b.docker} {
		auth := remote.WithAuth(authn.Anonymous)
		if g.password != "" {
			auth = remote.WithAuth(&authn.Basic{Username: "admin", Password: g.password})
		}
		var pushed name.Reference
		push := func(ctx context.Context) (sample, error) {
			image, err := random.Image(each, layers)
			if err != nil {
				return nil, err
			}
			if _, err := image.Digest(); err != nil { // hashes everything
				return nil, err
			}
			round++
			if pushed, err = name.ParseReference(fmt.Sprintf("%s/%simage:r%d", g.address, g.prefix, round)); err != nil {
				return nil, err
			}
			s, err := g.measured(func() error { return remote.Write(pushed, image, auth, remote.WithContext(ctx)) })
			if err != nil {
				return nil, err
			}
			return s.perGiB(each * layers), nil
		}
		pull := func(ctx context.Context) (sample, error) {
			if pushed == nil {
				if _, err := push(ctx); err != nil {
					return nil, err
				}
			}
			s, err := g.measured(func() error {
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
			return s.perGiB(each * layers), nil
		}
		items = append(items, item{mImagePush, g.name, push}, item{mImagePull, g.name, pull})
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
