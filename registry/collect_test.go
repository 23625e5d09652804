package registry_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

func TestCollect_DeletingATagFreesTheDisk(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	shared, own := layerOf("shared", 5000), layerOf("own", 3000)
	going, staying := buildImage("going", shared, own), buildImage("staying", shared)
	mustDo(t, p.push("r", "going", going))
	mustDo(t, p.push("r", "staying", staying))
	mustDo(t, p.remove("r", "going"))

	if run := y.collect(t); run.Scanned != 0 {
		t.Errorf("%+v within the leases", run)
	}
	y.later(2 * yardLease)
	config := going.blobs[2]
	want := registry.Collection{Manifests: 1, Links: 2, Blobs: 2, Bytes: int64(len(own) + len(config))}
	for range 2 {
		run, err := y.Collect(t.Context(), true)
		mustDo(t, err)
		if !run.DryRun || run.StartedAt.IsZero() || run.FinishedAt.IsZero() || !sameCounts(run, want) {
			t.Errorf("a dry run found %+v, not %+v", run, want)
		}
	}
	if there, err := p.has("r", digest.FromBytes(own)); !there || err != nil {
		t.Errorf("after a dry run: %v, %v", there, err)
	}
	y.later(2 * yardLease) // the HEAD gave one
	if run := y.collect(t); !sameCounts(run, want) {
		t.Errorf("a run deleted %+v, not %+v", run, want)
	}
	for _, blob := range [][]byte{own, config} {
		if there, err := p.has("r", digest.FromBytes(blob)); there || err != nil {
			t.Errorf("after the collection: %v, %v", there, err)
		}
	}
	if _, err := p.pull("r", going.digest().String()); !notFound(err) {
		t.Errorf("the deleted image: %v", err)
	}
	if _, err := p.pull("r", "staying"); err != nil {
		t.Error(err)
	}
	y.check(t, true)
}

func sameCounts(a, b registry.Collection) bool {
	return a.Manifests == b.Manifests && a.Links == b.Links && a.Blobs == b.Blobs && a.Bytes == b.Bytes
}

func TestCollect_KeepsWhatIsReferredTo(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	amd, arm := buildImage("amd64", layerOf("amd64", 100)), buildImage("arm64", layerOf("arm64", 100))
	signature := buildReferrer("signature", &arm, layerOf("signature", 100))
	signed := buildReferrer("signature of the signature", &signature)
	index := buildIndex(amd, arm)
	for _, i := range []testImage{amd, arm, signature, signed} {
		mustDo(t, p.push("r", i.digest().String(), i))
	}
	mustDo(t, p.push("r", "index", index))

	y.later(2 * yardLease)
	if run := y.collect(t); run.Manifests+run.Links+run.Blobs > 0 {
		t.Errorf("%+v, though all of it is needed", run)
	}
	for _, reference := range []string{"index", signature.digest().String(), signed.digest().String()} {
		if _, err := p.pull("r", reference); err != nil {
			t.Error(err)
		}
	}
	mustDo(t, p.remove("r", "index"))
	y.later(2 * yardLease)
	dry, err := y.Collect(t.Context(), true)
	mustDo(t, err)
	run := y.collect(t)
	if run.Manifests != 5 || !sameCounts(dry, run) {
		t.Errorf("without the tag: %+v, dry %+v", run, dry)
	}
	y.check(t, true)
	y.checkEmpty(t)
}

func TestCollect_KeepsWhatIsNeededOutside(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	i := buildImage("released", layerOf("released", 100))
	mustDo(t, p.push("r", "latest", i))
	mustDo(t, p.remove("r", "latest"))
	y.keep(i.digest(), true)
	for range 3 {
		y.later(2 * yardLease)
		dry, err := y.Collect(t.Context(), true)
		mustDo(t, err)
		if run := y.collect(t); run.Manifests+run.Blobs+dry.Manifests+dry.Blobs > 0 {
			t.Errorf("%+v, dry %+v", run, dry)
		}
	}
	if _, err := p.pull("r", i.digest().String()); err != nil {
		t.Error(err)
	}
	y.keep(i.digest(), false)
	y.later(3 * yardLease)
	y.collect(t)
	y.checkEmpty(t)
}

func TestTouch_IsALease(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	i := buildImage("touched", layerOf("touched", 100))
	if found, err := y.Touch(t.Context(), "r", i.digest()); found || err != nil {
		t.Errorf("touched what is not there: %v, %v", found, err)
	}
	mustDo(t, p.push("r", "latest", i))
	mustDo(t, p.remove("r", "latest"))
	y.later(2 * yardLease)
	if found, err := y.Touch(t.Context(), "r", i.digest()); !found || err != nil {
		t.Errorf("touched: %v, %v", found, err)
	}
	y.later(yardLease - time.Minute)
	y.collect(t)
	if _, err := p.want(http.MethodGet, "/v2/r/manifests/"+i.digest().String(), nil, http.StatusOK); err != nil {
		t.Error(err)
	}
	y.later(2 * yardLease)
	y.collect(t)
	if found, err := y.Touch(t.Context(), "r", i.digest()); found || err != nil {
		t.Errorf("touched what was collected: %v, %v", found, err)
	}
}

func TestDrop_TakesAllBelowAKey(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	i := buildImage("app", layerOf("app", 100))
	for _, repo := range []string{"p/app", "p/app/db", "p/app2", "p"} {
		mustDo(t, p.push(repo, "latest", i))
		if _, err := p.pull(repo, "latest"); err != nil { // remembered
			t.Error(err)
		}
	}
	mustDo(t, y.Drop(t.Context(), "p/app"))
	for repo, there := range map[string]bool{"p/app": false, "p/app/db": false, "p/app2": true, "p": true} {
		_, err := p.pull(repo, "latest")
		if there && err != nil || !there && !notFound(err) {
			t.Errorf("%s: %v", repo, err)
		}
		has, err := p.has(repo, digest.FromBytes(i.blobs[0]))
		if has != there || err != nil {
			t.Errorf("a blob of %s: %v, %v", repo, has, err)
		}
	}
	y.check(t, false)
	mustDo(t, y.Drop(t.Context(), "p"))
	y.collect(t)
	y.checkEmpty(t)
}

func TestCollect_DropsIdleUploads(t *testing.T) {
	y := openYard(t, registry.Options{UploadTTL: 24 * time.Hour})
	p := y.client()
	patch := func(location string, body io.Reader) pushAnswer {
		r, err := http.NewRequest(http.MethodPatch, p.base+location, body)
		mustDo(t, err)
		resp, err := p.http.Do(r)
		mustDo(t, err)
		defer resp.Body.Close()
		return pushAnswer{status: resp.StatusCode, header: resp.Header}
	}
	var locations []string
	for range 3 {
		location, err := p.begin("r")
		mustDo(t, err)
		a := patch(location, strings.NewReader("first"))
		locations = append(locations, a.header.Get("Location"))
	}
	// The first is gone on with now and then, the second a request writes to
	// all the time, the third is left.
	slowBody, slow := io.Pipe()
	slowAnswer := make(chan pushAnswer)
	go func() { slowAnswer <- patch(locations[1], slowBody) }()
	_, err := slow.Write([]byte("slow"))
	mustDo(t, err)

	y.later(23 * time.Hour)
	locations[0] = patch(locations[0], strings.NewReader("more")).header.Get("Location")
	y.later(23 * time.Hour)
	if run := y.collect(t); run.Uploads != 1 {
		t.Errorf("%d uploads were dropped", run.Uploads)
	}
	_, err = p.want(http.MethodGet, locations[0], nil, http.StatusNoContent)
	mustDo(t, err)
	_, err = p.want(http.MethodGet, locations[2], nil, http.StatusNotFound)
	mustDo(t, err)

	_, err = slow.Write([]byte("ly"))
	mustDo(t, errors.Join(err, slow.Close()))
	a := <-slowAnswer
	if a.status != http.StatusAccepted {
		t.Errorf("the slow PATCH was answered with %s", a)
	}
	_, err = p.want(http.MethodPut, atDigest(a.header.Get("Location"), digest.FromString("firstslowly")), nil, http.StatusCreated)
	mustDo(t, err)
	y.later(48 * time.Hour)
	y.collect(t)
	y.checkEmpty(t)
}

func TestCollect_OneAtATime(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	mustDo(t, p.push("r", "latest", buildImage("app", layerOf("app", 100))))
	mustDo(t, p.remove("r", "latest"))
	y.later(2 * yardLease)
	stopped, goOn := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	y.onStep(func(step string) {
		if step == "gc.trashed" && once.CompareAndSwap(false, true) {
			close(stopped)
			<-goOn
		}
	})
	first := make(chan registry.Collection)
	go func() {
		run, err := y.Collect(context.Background(), false)
		if err != nil {
			t.Error(err)
		}
		first <- run
	}()
	<-stopped
	if _, err := y.Collect(t.Context(), false); !errors.Is(err, registry.ErrCollecting) {
		t.Errorf("a second collection: %v", err)
	}
	if _, err := y.Collect(t.Context(), true); err != nil {
		t.Errorf("a dry run: %v", err)
	}
	status, err := y.Status(t.Context())
	mustDo(t, err)
	if status.Collecting == nil || status.Collecting.Manifests != 1 || !status.Collecting.FinishedAt.IsZero() || status.LastCollection != nil {
		t.Errorf("status during the collection: %+v", status)
	}
	close(goOn)
	run := <-first
	status, err = y.Status(t.Context())
	mustDo(t, err)
	if status.Collecting != nil || status.LastCollection == nil || !sameCounts(*status.LastCollection, run) || status.FreeBytes <= 0 {
		t.Errorf("status after it: %+v", status)
	}
	if _, err := y.Collect(t.Context(), false); err != nil {
		t.Errorf("another collection: %v", err)
	}
}

func TestCollect_StopsWithItsContext(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	for _, tag := range []string{"one", "two"} {
		mustDo(t, p.push("r", tag, buildImage(tag, layerOf(tag, 100))))
		mustDo(t, p.remove("r", tag))
	}
	y.later(2 * yardLease)
	for _, step := range append(collectorSteps, collectorSteps...) {
		y.later(2 * time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		y.onStep(func(name string) {
			if name == step {
				cancel()
			}
		})
		if _, err := y.Collect(ctx, false); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("broken off at %s: %v", step, err)
		}
		cancel()
		y.onStep(nil)
		y.check(t, false)
	}
	y.later(time.Hour)
	y.collect(t)
	y.check(t, true)
	y.checkEmpty(t)
}

func TestCollector_WorksByItself(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	gone := make(chan struct{}, 100)
	y.onStep(func(step string) {
		if step == "gc.emptied" {
			gone <- struct{}{}
		}
	})
	mustDo(t, p.push("r", "latest", buildImage("app", layerOf("app", 100))))
	y.Start()
	y.later(2 * yardLease)
	mustDo(t, p.remove("r", "latest"))
	<-gone
	y.collect(t)
	y.checkEmpty(t)
	status, err := y.Status(t.Context())
	mustDo(t, err)
	if status.LastCollection == nil {
		t.Error("no collection is remembered")
	}
}

// stubborn is a disk that refuses to put one blob aside.
type stubborn struct {
	registry.Storage
	blob    digest.Digest
	refuses atomic.Bool
}

func (s *stubborn) Trash(ctx context.Context, d digest.Digest, gen int64) error {
	if d == s.blob && s.refuses.Load() {
		return errors.New("the disk is stubborn")
	}
	return s.Storage.Trash(ctx, d, gen)
}

func TestCollect_OneBrokenBlobHoldsUpNothing(t *testing.T) {
	broken, fine := layerOf("broken", 100), layerOf("fine", 100)
	disk := &stubborn{blob: digest.FromBytes(broken)}
	y := openYard(t, registry.Options{})
	y.wrap = func(s registry.Storage) registry.Storage {
		disk.Storage = s
		return disk
	}
	y.reopen(t, registry.Options{})
	p := y.client()
	i := buildImage("app", broken, fine)
	mustDo(t, p.push("r", "latest", i))
	mustDo(t, p.remove("r", "latest"))
	y.later(2 * yardLease)
	disk.refuses.Store(true)
	run, err := y.Collect(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "stubborn") || run.Blobs != 2 {
		t.Errorf("%+v, %v", run, err)
	}
	if there, err := p.has("r", digest.FromBytes(broken)); there || err != nil {
		t.Errorf("the condemned blob is there: %v, %v", there, err)
	}
	// It can be pushed again at any time, and be collected again.
	mustDo(t, p.push("r", "latest", i))
	if _, err := p.pull("r", "latest"); err != nil {
		t.Error(err)
	}
	mustDo(t, p.remove("r", "latest"))
	y.later(2 * yardLease)
	if _, err := y.Collect(t.Context(), false); err == nil {
		t.Error("the disk refuses, and nobody says so")
	}
	disk.refuses.Store(false)
	y.later(2 * time.Minute)
	y.collect(t)
	y.check(t, true)
	y.checkEmpty(t)
}

// fileOf is where a blob lies.
func (y *yard) fileOf(blob []byte) string {
	d := digest.FromBytes(blob)
	return filepath.Join(y.dir, "registry", "blobs", "sha256", d.Encoded()[:2], d.Encoded())
}

// Files that were gone at one start and are there at the next, with a disk that
// was not mounted or by a power loss, are content again if their bytes are right.
func TestHeal_LooksAtTheBytesThatCameBack(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	right := buildImage("right", []byte("the bytes it had.."))
	wrong := buildImage("wrong", []byte("these are others.."))
	files := map[string][]byte{}
	for tag, i := range map[string]testImage{"right": right, "wrong": wrong} {
		mustDo(t, p.push("r", tag, i))
		files[y.fileOf(i.blobs[0])] = i.blobs[0]
	}
	for file := range files {
		mustDo(t, os.Remove(file))
	}
	y.reopen(t, registry.Options{})
	p = y.client()
	for _, i := range []testImage{right, wrong} {
		if there, err := p.has("r", digest.FromBytes(i.blobs[0])); there || err != nil {
			t.Errorf("a blob without a file is there: %v, %v", there, err)
		}
	}
	files[y.fileOf(wrong.blobs[0])] = make([]byte, len(wrong.blobs[0]))
	for file, content := range files {
		mustDo(t, os.WriteFile(file, content, 0o600))
	}
	y.reopen(t, registry.Options{})
	p = y.client()
	done := make(chan struct{})
	y.onStep(func(step string) {
		if step == "heal.done" {
			close(done)
		}
	})
	y.Start()
	<-done
	if _, err := p.pull("r", "right"); err != nil {
		t.Error(err)
	}
	if there, err := p.has("r", digest.FromBytes(wrong.blobs[0])); there || err != nil {
		t.Errorf("a blob with wrong bytes is there: %v, %v", there, err)
	}
	mustDo(t, p.push("r", "wrong", wrong))
	if _, err := p.pull("r", "wrong"); err != nil {
		t.Error(err)
	}
	y.check(t, true)
}

func TestScrub_QuarantinesWhatIsDamaged(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"flipped": func(file string) error {
			return os.WriteFile(file, []byte("as long as before!"), 0o600)
		},
		"cut":  func(file string) error { return os.Truncate(file, 3) },
		"gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			y := openYard(t, registry.Options{ScrubBytes: 1 << 50})
			p := y.client()
			i := buildImage("app", []byte("the bytes it had.."), layerOf("whole", 200_000))
			mustDo(t, p.push("r", "latest", i))
			mustDo(t, damage(y.fileOf(i.blobs[0])))
			found := make(chan struct{}, 1)
			y.onStep(func(step string) {
				if step == "scrub.quarantined" {
					found <- struct{}{}
				}
			})
			y.Start()
			<-found
			d := digest.FromBytes(i.blobs[0])
			if there, err := p.has("r", d); there || err != nil {
				t.Errorf("the damaged blob is there: %v, %v", there, err)
			}
			if !strings.Contains(y.log.String(), "level=ERROR") || !strings.Contains(y.log.String(), d.String()) {
				t.Errorf("nobody said that it is damaged: %s", y.log)
			}
			// An image that needs it cannot be stored, and a push heals.
			if err := p.put("r", "other", i.manifest); !refused(err) && err != nil {
				t.Error(err)
			}
			mustDo(t, p.push("r", "latest", i))
			if _, err := p.pull("r", "latest"); err != nil {
				t.Error(err)
			}
			y.check(t, true)
		})
	}
}

func TestOpen_BringsTheStoreIntoOrder(t *testing.T) {
	y := openYard(t, registry.Options{})
	p := y.client()
	i := buildImage("app", layerOf("one", 1000), layerOf("two", 1000))
	mustDo(t, p.push("r", "latest", i))

	lost, stray := y.fileOf(i.blobs[1]), y.fileOf([]byte("stray"))
	mustDo(t, os.Remove(lost))
	mustDo(t, os.MkdirAll(filepath.Dir(stray), 0o700))
	mustDo(t, os.WriteFile(stray, []byte("stray"), 0o600))
	mustDo(t, os.WriteFile(filepath.Join(y.dir, "registry", "trash", "sha256."+rand.Text()), nil, 0o600))
	y.reopen(t, registry.Options{})
	p = y.client()
	y.check(t, true)
	if there, err := p.has("r", digest.FromBytes(i.blobs[1])); there || err != nil {
		t.Errorf("the blob without file is there: %v, %v", there, err)
	}
	if !strings.Contains(y.log.String(), "level=ERROR") || !strings.Contains(y.log.String(), digest.FromBytes(i.blobs[1]).String()) {
		t.Errorf("nobody said that a blob is lost: %s", y.log)
	}

	// Somebody pushes again.
	mustDo(t, p.push("r", "latest", i))
	if _, err := p.pull("r", "latest"); err != nil {
		t.Errorf("after another push: %v", err)
	}

	// What is quarantined is collected like anything else.
	mustDo(t, os.Remove(lost))
	y.reopen(t, registry.Options{})
	p = y.client()
	mustDo(t, p.remove("r", "latest"))
	y.later(3 * yardLease)
	y.collect(t)
	y.check(t, true)
	y.checkEmpty(t)
}

// BenchmarkOpen measures how long a store of 100,000 blobs takes to open: each
// of its rows and files is looked at.
func BenchmarkOpen(b *testing.B) {
	const blobs = 100_000
	y := openYard(b, registry.Options{})
	tx, err := y.behind.Begin()
	mustDo(b, err)
	for n := range blobs {
		sum := sha256.Sum256(binary.AppendUvarint(nil, uint64(n)))
		_, err := tx.Exec(`INSERT INTO registry_blobs (digest, size, state, gen) VALUES ($1, 0, 'live', 0)`, append([]byte{1}, sum[:]...))
		mustDo(b, err)
		name := hex.EncodeToString(sum[:])
		file := filepath.Join(y.dir, "registry", "blobs", "sha256", name[:2], name)
		mustDo(b, os.MkdirAll(filepath.Dir(file), 0o700))
		mustDo(b, os.WriteFile(file, nil, 0o600))
	}
	mustDo(b, tx.Commit())
	for b.Loop() {
		mustDo(b, errors.Join(y.close(), y.open(b.Context(), registry.Options{})))
	}
	if y.count(b, `SELECT COUNT(*) FROM registry_blobs WHERE state = 'live'`) != blobs {
		b.Error("not all blobs are live")
	}
}
