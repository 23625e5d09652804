package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
	"github.com/denia-paas/denia/registry/oci"
)

// gate has the upstream send a blob up to a point, and the rest when the
// returned function is called.
func (u *faultyUpstream) gate(d digest.Digest, content []byte, at int) (open func()) {
	gate := make(chan struct{})
	u.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, d.String()) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:at])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-gate:
			_, _ = w.Write(content[at:])
		case <-r.Context().Done():
		}
		return true
	})
	open = sync.OnceFunc(func() { close(gate) })
	u.t.Cleanup(open)
	return open
}

func TestCacheStreamsWhileItFetches(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(1 << 20)
	half := len(content) / 2
	open := w.up.gate(d, content, half)
	path := "p/up/img/blobs/" + d.String()

	var readers []*http.Response
	for range 5 {
		resp := w.open(t.Context(), http.MethodGet, path)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(content)) || resp.Header.Get("Docker-Content-Digest") != d.String() {
			t.Fatalf("status %d, length %d, header %v", resp.StatusCode, resp.ContentLength, resp.Header)
		}
		first := make([]byte, half)
		if _, err := io.ReadFull(resp.Body, first); err != nil || !bytes.Equal(first, content[:half]) {
			t.Fatalf("the first half did not arrive before the upstream sent the second: %v", err)
		}
		readers = append(readers, resp)
	}
	open()
	for _, resp := range readers {
		rest, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(rest, content[half:]) {
			t.Fatalf("second half: %v, %d bytes", err, len(rest))
		}
	}
	if n := w.up.asked(http.MethodGet, "blobs"); n != 1 {
		t.Errorf("the upstream was asked %d times for one blob", n)
	}

	// Once it is there it is served without a word to the upstream.
	w.eventually("the blob is stored", func() bool { return w.status().TotalBytes == int64(len(content)) })
	w.up.answering(http.StatusInternalServerError)
	if a := w.get(path); !bytes.Equal(a.body, content) {
		t.Error("the stored blob differs")
	}
	if asked := w.up.requests(); len(asked) != 0 {
		t.Errorf("the upstream was asked for what is stored: %v", asked)
	}
	s := w.status()
	if s.Misses != 1 || s.Hits != 5 || s.BytesSaved != int64(5*len(content)) {
		t.Errorf("status %+v", s)
	}
}

// meeting lets nobody learn that a blob is not there before n have asked.
type meeting struct {
	oci.Metadata
	mu  sync.Mutex
	n   int
	all chan struct{}
}

func (m *meeting) BlobState(ctx context.Context, d digest.Digest) (oci.Blob, bool, error) {
	m.mu.Lock()
	if m.n--; m.n == 0 {
		close(m.all)
	}
	m.mu.Unlock()
	<-m.all
	return m.Metadata.BlobState(ctx, d)
}

func TestCacheFetchesOnceForAllWhoComeAtOnce(t *testing.T) {
	const clients = 30
	w := newCacheWorld(t, func(c *registry.Config) {
		c.Metadata = &meeting{Metadata: c.Metadata, n: clients, all: make(chan struct{})}
	})
	d, content := w.up.blob(10_000)
	open := w.up.gate(d, content, 100)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			if a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String()); a.err != nil || !bytes.Equal(a.body, content) {
				t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
			}
		})
	}
	w.eventually("the upstream is asked", func() bool { return w.up.asked(http.MethodGet, "blobs") > 0 })
	open()
	all.Wait()
	if n := w.up.asked(http.MethodGet, "blobs"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestCacheServesRangesOfWhatItFetches(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(100_000)
	open := w.up.gate(d, content, 60_000)
	path := "p/up/img/blobs/" + d.String()

	resp := w.open(t.Context(), http.MethodGet, path, "Range", "bytes=50000-")
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != "bytes 50000-99999/100000" || resp.ContentLength != 50_000 {
		t.Fatalf("status %d, length %d, header %v", resp.StatusCode, resp.ContentLength, resp.Header)
	}
	first := make([]byte, 10_000)
	if _, err := io.ReadFull(resp.Body, first); err != nil || !bytes.Equal(first, content[50_000:60_000]) {
		t.Fatalf("the range's first part: %v", err)
	}
	// A range that has arrived in full still waits for its last byte, until
	// the whole is known to be right.
	within := w.open(t.Context(), http.MethodGet, path, "Range", "bytes=10-19")
	defer within.Body.Close()
	nine := make([]byte, 9)
	if _, err := io.ReadFull(within.Body, nine); err != nil || !bytes.Equal(nine, content[10:19]) {
		t.Fatalf("nine of ten bytes: %v", err)
	}
	if a := w.do(http.MethodGet, path, "Range", "bytes=100000-"); a.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range behind the end: %d", a.status)
	}
	open()
	if rest, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(rest, content[60_000:]) {
		t.Errorf("the range's rest: %v", err)
	}
	if last, err := io.ReadAll(within.Body); err != nil || !bytes.Equal(last, content[19:20]) {
		t.Errorf("the tenth byte: %v", err)
	}
	if n := w.up.asked(http.MethodGet, "blobs"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
	w.eventually("the blob is stored", func() bool { return w.status().TotalBytes == int64(len(content)) })
	if a := w.get(path, "Range", "bytes=1-3"); a.status != http.StatusPartialContent || !bytes.Equal(a.body, content[1:4]) {
		t.Errorf("a range of the stored blob: %d, %d bytes", a.status, len(a.body))
	}
}

func TestCacheStreamsWhatHasNoLength(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(100_000)
	gate := make(chan struct{})
	w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		_, _ = rw.Write(content[:50_000])
		_ = http.NewResponseController(rw).Flush()
		<-gate
		_, _ = rw.Write(content[50_000:])
		return true
	})
	path := "p/up/img/blobs/" + d.String()
	resp := w.open(t.Context(), http.MethodGet, path)
	defer resp.Body.Close()
	first := make([]byte, 40_000)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	ranged := make(chan cacheAnswer)
	go func() { ranged <- w.do(http.MethodGet, path, "Range", "bytes=0-9") }()
	close(gate)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(first, rest...), content) {
		t.Errorf("%v, %d bytes", err, len(first)+len(rest))
	}
	if a := <-ranged; a.status != http.StatusPartialContent || !bytes.Equal(a.body, content[:10]) {
		t.Errorf("a range: %d, %d bytes", a.status, len(a.body))
	}
}

// What is wrong or not whole never looks whole to a client, and leaves nothing
// behind; the next try starts from nothing.
func TestCacheCutsWhatIsWrong(t *testing.T) {
	send := func(w http.ResponseWriter, content []byte) {
		_, _ = w.Write(content[:len(content)/2])
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(content[len(content)/2:])
	}
	for name, fault := range map[string]func(w http.ResponseWriter, content []byte){
		"another byte at the end": func(w http.ResponseWriter, content []byte) {
			content[len(content)-1] ^= 1
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			send(w, content)
		},
		"another byte in the middle, no length": func(w http.ResponseWriter, content []byte) {
			content[len(content)/2] ^= 1
			send(w, content)
		},
		"cut off": func(w http.ResponseWriter, content []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			send(w, content[:len(content)-10])
			panic(http.ErrAbortHandler)
		},
		"cut off, no length": func(w http.ResponseWriter, content []byte) {
			send(w, content[:len(content)-10])
			panic(http.ErrAbortHandler)
		},
		"too short, no length": func(w http.ResponseWriter, content []byte) {
			send(w, content[:len(content)-10])
		},
		"too long": func(w http.ResponseWriter, content []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)+1))
			send(w, append(content, 'x'))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCacheWorld(t)
			d, content := w.up.blob(300_000)
			w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				fault(rw, bytes.Clone(content))
				return true
			})
			path := "p/up/img/blobs/" + d.String()
			for _, header := range [][]string{nil, {"Range", "bytes=0-999"}} {
				a := w.do(http.MethodGet, path, header...)
				if a.err == nil && a.status/100 == 2 {
					t.Errorf("a client took %d bytes for whole", len(a.body))
				}
				w.eventually("nothing is left", func() bool { return len(w.left()) == 0 })
			}
			w.up.misbehave(nil)
			if a := w.get(path); !bytes.Equal(a.body, content) {
				t.Error("the next try did not get it")
			}
		})
	}
}

func TestCacheClientsDoNotHoldEachOther(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(16 << 20) // more than sockets buffer
	open := w.up.gate(d, content, 1000)
	path := "p/up/img/blobs/" + d.String()

	leaving, leave := context.WithCancel(t.Context())
	gone := w.open(leaving, http.MethodGet, path)
	defer gone.Body.Close()
	slow := w.open(t.Context(), http.MethodGet, path)
	defer slow.Body.Close()
	leave()
	open()
	// The one that began it has gone, another one reads nothing.
	if a := w.get(path); !bytes.Equal(a.body, content) {
		t.Error("the third client got something else")
	}
	if body, err := io.ReadAll(slow.Body); err != nil || !bytes.Equal(body, content) {
		t.Errorf("the slow client got something else, or %v", err)
	}
	if n := w.up.asked(http.MethodGet, "blobs"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestCacheFetchesOnThoughAllClientsHaveGone(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(1 << 20)
	open := w.up.gate(d, content, 1000)
	ctx, leave := context.WithCancel(t.Context())
	resp := w.open(ctx, http.MethodGet, "p/up/img/blobs/"+d.String())
	leave()
	resp.Body.Close()
	open()
	w.eventually("the blob is stored", func() bool { return w.status().TotalBytes == int64(len(content)) })
}

func TestCacheBreaksOffWhatStalls(t *testing.T) {
	w := newCacheWorld(t)
	registry.SetCachePatience(w.g, 5*time.Second, 50*time.Millisecond)
	d, content := w.up.blob(100_000)
	w.up.gate(d, content, 1000)
	a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String())
	if a.err == nil {
		t.Errorf("status %d and a whole body of %d bytes", a.status, len(a.body))
	}
	w.eventually("nothing is left", func() bool { return len(w.left()) == 0 })
}

func TestCacheCloseBreaksOffDownloads(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(100_000)
	w.up.gate(d, content, 1000)
	resp := w.open(t.Context(), http.MethodGet, "p/up/img/blobs/"+d.String())
	defer resp.Body.Close()
	if err := w.g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the client got a whole body")
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCacheRemovesWhatACrashLeft(t *testing.T) {
	w := newCacheWorld(t)
	up, err := w.storage.Create(t.Context(), "cache-00000000000000000000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = up.Write([]byte("half a blob"))
	up.Close()
	if _, err := w.g.CacheCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Content that is there because of somebody else is given out only after the
// upstream has it for whoever asks now, and is not fetched twice then.
func TestCacheProvesAccessToWhatIsThere(t *testing.T) {
	w := newCacheWorld(t)
	w.grant("q/up/img", func(*registry.Grant) {})
	d, content := w.up.blob(50_000)
	w.get("p/up/img/blobs/" + d.String())
	w.eventually("the blob is stored", func() bool { return len(w.left()) == 1 && w.status().TotalBytes > 0 })

	other := "q/up/img/blobs/" + d.String()
	w.up.answering(http.StatusUnauthorized)
	for range 2 {
		a := w.do(http.MethodGet, other)
		if a.status != http.StatusForbidden || a.code(t) != "DENIED" {
			t.Fatalf("without a right: %d %s", a.status, a.body)
		}
	}
	w.up.misbehave(nil)
	if a := w.get(other); !bytes.Equal(a.body, content) {
		t.Error("with the right: something else")
	}
	if w.up.asked(http.MethodHead, "blobs") != 1 || w.up.asked(http.MethodGet, "blobs") != 0 {
		t.Errorf("the upstream was asked %v", w.up.requests())
	}
	w.get(other)
	if n := len(w.up.requests()); n > 2 {
		t.Errorf("the upstream was asked again: %v", w.up.requests())
	}
}

func TestCacheProvesAccessToWhatIsBeingFetched(t *testing.T) {
	w := newCacheWorld(t)
	w.grant("q/up/img", func(g *registry.Grant) { g.Upstream.Username, g.Upstream.Password = "q", "secret-q" })
	w.grant("closed/up/img", func(g *registry.Grant) { g.Upstream.Fetch = false })
	d, content := w.up.blob(50_000)
	open := w.up.gate(d, content, 1000)
	first := w.open(t.Context(), http.MethodGet, "p/up/img/blobs/"+d.String())
	defer first.Body.Close()

	if a := w.do(http.MethodGet, "closed/up/img/blobs/"+d.String()); a.status != http.StatusNotFound || a.code(t) != "BLOB_UNKNOWN" {
		t.Errorf("who may not fetch: %d", a.status)
	}
	second := w.open(t.Context(), http.MethodGet, "q/up/img/blobs/"+d.String())
	defer second.Body.Close()
	open()
	for _, resp := range []*http.Response{first, second} {
		if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, content) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
	}
	if w.up.asked(http.MethodHead, "blobs") != 1 || w.up.asked(http.MethodGet, "blobs") != 1 {
		t.Errorf("the upstream was asked %v", w.up.requests())
	}
	for _, repo := range []string{w.key("p/up/img"), w.key("q/up/img")} {
		w.eventually(repo+" has its link", func() bool {
			_, found, err := w.metadata.Blob(t.Context(), repo, d)
			return found && err == nil
		})
	}
	if _, found, _ := w.metadata.Blob(t.Context(), w.key("closed/up/img"), d); found {
		t.Error("who may not fetch has a link")
	}
}

func TestCacheHeadOfABlobFetchesNothing(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(5000)
	a := w.do(http.MethodHead, "p/up/img/blobs/"+d.String())
	if a.status != http.StatusOK || a.header.Get("Content-Length") != strconv.Itoa(len(content)) || a.header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("%d %v", a.status, a.header)
	}
	if n := w.up.asked(http.MethodGet, "blobs"); n != 0 {
		t.Errorf("%d downloads", n)
	}
	absent := digest.FromString("absent")
	if a := w.do(http.MethodHead, "p/up/img/blobs/"+absent.String()); a.status != http.StatusNotFound {
		t.Errorf("of what is not there: %d", a.status)
	}
}

// A damaged blob is fetched anew, and is whole again for everybody.
func TestCacheHealsDamage(t *testing.T) {
	w := newCacheWorld(t)
	d, content := w.up.blob(5000)
	path := "p/up/img/blobs/" + d.String()
	w.get(path)
	w.eventually("the blob is stored", func() bool { return w.status().TotalBytes > 0 })
	if ok, err := w.metadata.Quarantine(t.Context(), d); !ok || err != nil {
		t.Fatal(ok, err)
	}
	w.grant("q/up/img", func(*registry.Grant) {})
	if a := w.get("q/up/img/blobs/" + d.String()); !bytes.Equal(a.body, content) {
		t.Error("something else")
	}
	w.eventually("it is live", func() bool {
		b, _, err := w.metadata.BlobState(t.Context(), d)
		return err == nil && b.State == "live"
	})
}

func TestCacheRefusesWhatTheDiskHasNoRoomFor(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.ReserveBytes = 1 << 60 })
	d, _ := w.up.blob(5000)
	a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String())
	if a.status != http.StatusServiceUnavailable || a.code(t) != "UNAVAILABLE" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// brokenStorage fails to write at some point.
type brokenStorage struct {
	registry.Storage
	after int
}

type brokenUpload struct {
	registry.Upload
	left int
}

func (s brokenStorage) Create(ctx context.Context, id string) (registry.Upload, error) {
	u, err := s.Storage.Create(ctx, id)
	return &brokenUpload{u, s.after}, err
}

func (u *brokenUpload) Write(p []byte) (int, error) {
	if u.left -= len(p); u.left < 0 {
		return 0, errors.New("this disk is broken")
	}
	return u.Upload.Write(p)
}

func TestCacheCutsWhenTheDiskFails(t *testing.T) {
	w := newCacheWorld(t, func(c *registry.Config) { c.Storage = brokenStorage{c.Storage, 1 << 20} })
	d, _ := w.up.blob(4 << 20)
	a := w.do(http.MethodGet, "p/up/img/blobs/"+d.String())
	if a.err == nil && a.status/100 == 2 {
		t.Errorf("a whole body of %d bytes", len(a.body))
	}
	w.eventually("nothing is left", func() bool { return len(w.left()) == 0 })
}

// The upstream's credentials and tokens go to the upstream, and nowhere else.
func TestCacheKeepsCredentialsToTheirHost(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			w := newCacheWorld(t)
			registry.AllowCacheRedirects(w.g)
			w.grant("p/up/img", func(g *registry.Grant) { g.Upstream.Username, g.Upstream.Password = "me", "my-password" })
			var mu sync.Mutex
			var seen []string
			contents := map[string][]byte{}
			cdn := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				for _, name := range []string{"Authorization", "Cookie"} {
					seen = append(seen, r.Header.Get(name))
				}
				_, _ = rw.Write(contents[r.URL.Path])
			}))
			t.Cleanup(cdn.Close)
			var digests []digest.Digest
			for range 3 {
				d, content := w.up.blob(2000)
				mu.Lock()
				contents["/"+d.String()] = content
				mu.Unlock()
				digests = append(digests, d)
			}
			w.up.misbehave(func(rw http.ResponseWriter, r *http.Request) bool {
				if user, password, _ := r.BasicAuth(); r.URL.Path == "/token" && user == "me" && password == "my-password" {
					fmt.Fprint(rw, `{"token":"a-token"}`)
					return true
				}
				user, password, _ := r.BasicAuth()
				switch {
				case scheme == "Basic" && user == "me" && password == "my-password":
				case scheme == "Bearer" && r.Header.Get("Authorization") == "Bearer a-token":
				case scheme == "Basic":
					rw.Header().Set("WWW-Authenticate", `Basic realm="up"`)
					rw.WriteHeader(http.StatusUnauthorized)
					return true
				default:
					rw.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="up"`, r.Host))
					rw.WriteHeader(http.StatusUnauthorized)
					return true
				}
				if strings.Contains(r.URL.Path, "/blobs/") {
					http.Redirect(rw, r, cdn.URL+"/"+r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]+"?signature=signed-for-me", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			for _, d := range digests {
				if a := w.get("p/up/img/blobs/" + d.String()); digest.FromBytes(a.body) != d {
					t.Error("something else")
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if len(seen) != 6 || slices.ContainsFunc(seen, func(s string) bool { return s != "" }) {
				t.Errorf("the other host was sent %q", seen)
			}
			handshakes := 0
			for _, line := range w.up.requests() {
				if !strings.Contains(line, "/blobs/") {
					handshakes++
				}
			}
			if handshakes > 2 {
				t.Errorf("%d requests for access for three blobs: %v", handshakes, w.up.requests())
			}
		})
	}
}
