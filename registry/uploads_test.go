package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/denia-paas/denia/registry"
)

const uploads = "/v2/team/app/blobs/uploads/"

// start begins an upload in team/app and returns its Location.
func (s *depot) start(query string) string {
	s.t.Helper()
	a := s.do(http.MethodPost, uploads+query, nil).want(s.t, http.StatusAccepted, "").header(s.t, "Range", "0-0")
	location := a.Header.Get("Location")
	if !strings.HasPrefix(location, uploads) || len(location) < len(uploads)+16 {
		s.t.Fatalf("Location %q", location)
	}
	return location
}

func (s *depot) patch(location, content string, headers ...string) answer {
	s.t.Helper()
	return s.do(http.MethodPatch, location, strings.NewReader(content), headers...)
}

func (s *depot) finish(location string, d digest.Digest, content string, headers ...string) answer {
	s.t.Helper()
	return s.do(http.MethodPut, location+"?digest="+d.String(), strings.NewReader(content), headers...)
}

// wantBlob checks that a blob can be pulled from a repository.
func (s *depot) wantBlob(repo string, d digest.Digest, content string) {
	s.t.Helper()
	path := "/v2/" + repo + "/blobs/" + d.String()
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		a := s.do(method, path, nil).want(s.t, http.StatusOK, "").
			header(s.t, "Content-Length", strconv.Itoa(len(content))).
			header(s.t, "Docker-Content-Digest", d.String()).
			header(s.t, "Content-Type", "application/octet-stream")
		if method == http.MethodGet && string(a.body) != content {
			s.t.Errorf("pulled %d other bytes", len(a.body))
		}
		if method == http.MethodHead && len(a.body) > 0 {
			s.t.Error("HEAD with a body")
		}
	}
}

// pushed stores a blob in a repository.
func (s *depot) pushed(repo, content string) digest.Digest {
	s.t.Helper()
	d := digest.FromString(content)
	s.do(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), strings.NewReader(content)).want(s.t, http.StatusCreated, "")
	return d
}

func (s *depot) wantNoUploads() {
	s.t.Helper()
	list, err := s.storage.Uploads(s.t.Context())
	if err != nil || len(list) > 0 {
		s.t.Errorf("uploads are left behind: %+v, %v", list, err)
	}
}

func (s *depot) wantNoContent() {
	s.t.Helper()
	s.wantNoUploads()
	err := s.storage.Walk(s.t.Context(), func(d digest.Digest) error { return errors.New(d.String() + " is left behind") })
	if err != nil {
		s.t.Error(err)
	}
}

func TestPushInEveryWay(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 20<<10)
	for _, content := range []string{"", "x", "content", large} {
		for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			d := a.FromString(content)
			third := len(content) / 3
			chunkOf := func(from, to int) []string {
				return []string{"Content-Range", fmt.Sprintf("%d-%d", from, to-1)}
			}
			for name, push := range map[string]func(s *depot) answer{
				"one POST": func(s *depot) answer {
					return s.do(http.MethodPost, uploads+"?digest="+d.String(), strings.NewReader(content))
				},
				"POST and PUT": func(s *depot) answer { return s.finish(s.start(""), d, content) },
				"POST with algorithm and PUT": func(s *depot) answer {
					return s.finish(s.start("?digest-algorithm="+a.String()), d, content)
				},
				"stream": func(s *depot) answer {
					l := s.start("")
					s.do(http.MethodPatch, l, io.MultiReader(strings.NewReader(content))).want(t, http.StatusAccepted, "")
					return s.finish(l, d, "")
				},
				"chunks": func(s *depot) answer {
					l := s.start("")
					if len(content) < 3 {
						return s.finish(l, d, content)
					}
					for i := range 3 {
						from, to := i*third, (i+1)*third
						if i == 2 {
							to = len(content)
						}
						a := s.patch(l, content[from:to], chunkOf(from, to)...).want(t, http.StatusAccepted, "").
							header(t, "Range", "0-"+strconv.Itoa(to-1))
						l = a.Header.Get("Location")
						s.get(l).want(t, http.StatusNoContent, "").header(t, "Range", "0-"+strconv.Itoa(to-1)).header(t, "Location", l)
					}
					return s.finish(l, d, "")
				},
				"the last chunk in PUT": func(s *depot) answer {
					l := s.start("?digest-algorithm=" + a.String())
					if len(content) < 3 {
						return s.finish(l, d, content)
					}
					s.patch(l, content[:third], chunkOf(0, third)...).want(t, http.StatusAccepted, "")
					return s.finish(l, d, content[third:], chunkOf(third, len(content))...)
				},
			} {
				t.Run(fmt.Sprintf("%s, %d bytes, %s", name, len(content), a), func(t *testing.T) {
					s := newDepot(t)
					location := "/v2/team/app/blobs/" + d.String()
					for range 2 { // what is there already is pushed likewise
						push(s).want(t, http.StatusCreated, "").header(t, "Location", location).header(t, "Docker-Content-Digest", d.String())
						s.wantBlob("team/app", d, content)
						s.wantNoUploads()
					}
				})
			}
		}
	}
}

// A digest comes percent-encoded from many clients, and with other parameters.
// Large uploads go past the page cache where the disk can do that; what a test
// usually writes to may be memory, which has no other way.
func TestPushOfManyBytes(t *testing.T) {
	for _, where := range []string{os.TempDir(), "/var/tmp"} {
		dir, err := os.MkdirTemp(where, "denia-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		s := newDepot(t, func(c *registry.Config) {
			storage, err := registry.NewDisk(dir)
			if err != nil {
				t.Fatal(err)
			}
			c.Storage = storage
		})
		noise := make([]byte, 4<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
		for _, n := range []int{1 << 20, 1<<20 + 1, 3<<20 - 4096, 3<<20 + 4097} {
			content := string(noise[:n])
			d := digest.FromString(content)
			for _, first := range []int{0, 4096, 100, 1 << 20} {
				location := s.start("")
				if first > 0 {
					location = s.patch(location, content[:first]).want(t, http.StatusAccepted, "").Header.Get("Location")
				}
				s.finish(location, d, content[first:]).want(t, http.StatusCreated, "")
				s.wantBlob("team/app", d, content)
				s.do(http.MethodDelete, "/v2/team/app/blobs/"+d.String(), nil).want(t, http.StatusAccepted, "")
			}
		}
	}
}

func TestPushWithAnEncodedDigest(t *testing.T) {
	s := newDepot(t)
	d := digest.FromString("content")
	l := s.start("")
	s.do(http.MethodPut, l+"?x=y&digest="+strings.ReplaceAll(d.String(), ":", "%3A"), strings.NewReader("content")).want(t, http.StatusCreated, "")
	s.wantBlob("team/app", d, "content")
}

func TestChunksOutOfOrder(t *testing.T) {
	s := newDepot(t)
	const content = "0123456789"
	d := digest.FromString(content)
	l := s.start("")
	for _, bad := range []string{"5-9", "1-5"} {
		s.patch(l, content[5:], "Content-Range", bad).want(t, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID").
			header(t, "Location", l).header(t, "Range", "0-0")
		s.get(l).want(t, http.StatusNoContent, "").header(t, "Range", "0-0").header(t, "Location", l)
	}
	s.finish(l, d, content[5:], "Content-Range", "5-9").want(t, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID")
	s.patch(l, content[:5], "Content-Range", "0-4").want(t, http.StatusAccepted, "").header(t, "Range", "0-4")

	// The same once more, as after a lost answer; a gap; what cannot be read;
	// what contradicts itself.
	s.patch(l, content[:5], "Content-Range", "0-4").want(t, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID").header(t, "Range", "0-4")
	s.patch(l, content[6:], "Content-Range", "6-9").want(t, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID")
	s.patch(l, content[5:], "Content-Range", "five").want(t, http.StatusBadRequest, "BLOB_UPLOAD_INVALID")
	s.patch(l, content[5:], "Content-Range", "5-20").want(t, http.StatusBadRequest, "SIZE_INVALID")
	unsized := func(content string) io.Reader { return io.MultiReader(strings.NewReader(content)) }
	for _, wrong := range []string{"5678", "56789x", "56789" + strings.Repeat("x", 1<<20)} {
		s.do(http.MethodPatch, l, unsized(wrong), "Content-Range", "5-9").want(t, http.StatusBadRequest, "SIZE_INVALID")
		s.get(l).want(t, http.StatusNoContent, "").header(t, "Range", "0-4")
	}

	s.do(http.MethodPatch, l, unsized(content[5:]), "Content-Range", "5-9").want(t, http.StatusAccepted, "").header(t, "Range", "0-9")
	s.finish(l, d, "").want(t, http.StatusCreated, "")
	s.wantBlob("team/app", d, content)
}

func TestWrongBytesLeaveNothing(t *testing.T) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		s := newDepot(t)
		wrong := a.FromString("something else")
		s.do(http.MethodPost, uploads+"?digest="+wrong.String(), strings.NewReader("content")).want(t, http.StatusBadRequest, "DIGEST_INVALID")
		s.finish(s.start(""), wrong, "content").want(t, http.StatusBadRequest, "DIGEST_INVALID")
		l := s.start("")
		s.patch(l, "content").want(t, http.StatusAccepted, "")
		s.finish(l, wrong, "").want(t, http.StatusBadRequest, "DIGEST_INVALID")
		s.get(l).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		s.get("/v2/team/app/blobs/"+wrong.String()).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
		s.wantNoContent()
	}
}

func TestInvalidDigests(t *testing.T) {
	s := newDepot(t)
	for _, d := range []string{"", "sha256:baddigeststring", "latest", "md5:0123", "sha256:../../x"} {
		s.do(http.MethodPost, uploads+"?digest="+d, strings.NewReader("x")).want(t, http.StatusBadRequest, "DIGEST_INVALID")
		l := s.start("")
		s.finish(l, digest.Digest(d), "x").want(t, http.StatusBadRequest, "DIGEST_INVALID")
		s.get(l).want(t, http.StatusNoContent, "")
	}
	s.do(http.MethodPut, s.start(""), strings.NewReader("x")).want(t, http.StatusBadRequest, "DIGEST_INVALID")
	s.do(http.MethodPost, uploads+"?mount=sha256:x&from=team/lib", nil).want(t, http.StatusBadRequest, "DIGEST_INVALID")
	s.do(http.MethodPost, uploads+"?digest-algorithm=md5", nil).want(t, http.StatusBadRequest, "DIGEST_INVALID")
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		s.do(method, "/v2/team/app/blobs/sha256:baddigeststring", nil).want(t, http.StatusBadRequest, "DIGEST_INVALID")
	}
	s.wantNoContent()
}

func TestUploadsEnd(t *testing.T) {
	s := newDepot(t)
	gone := func(l string) {
		t.Helper()
		d := digest.FromString("x")
		s.get(l).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		s.patch(l, "x").want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		s.finish(l, d, "x").want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		s.do(http.MethodDelete, l, nil).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	}
	fresh, begun, finished := s.start(""), s.start(""), s.start("")
	s.patch(begun, "x").want(t, http.StatusAccepted, "")
	s.finish(finished, digest.FromString("x"), "x").want(t, http.StatusCreated, "")
	s.do(http.MethodDelete, fresh, nil).want(t, http.StatusNoContent, "")
	s.do(http.MethodDelete, begun, nil).want(t, http.StatusNoContent, "")
	for _, l := range []string{fresh, begun, finished, uploads + "nonsense", uploads + strings.Repeat("A", 26), uploads + "..", uploads + "%2e%2e"} {
		gone(l)
	}
	s.wantNoUploads()
}

// An upload belongs to the repository in which it was begun.
func TestUploadsOfAnotherRepository(t *testing.T) {
	s := newDepot(t)
	l := s.start("")
	s.patch(l, "x").want(t, http.StatusAccepted, "")
	elsewhere := strings.Replace(l, "team/app", "open/app", 1)
	s.get(elsewhere).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.finish(elsewhere, digest.FromString("x"), "").want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.do(http.MethodDelete, elsewhere, nil).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.finish(l, digest.FromString("x"), "").want(t, http.StatusCreated, "")
}

// A process that is killed leaves its uploads as they were after the last
// request that was answered.
func TestUploadsOutliveTheProcess(t *testing.T) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		s := newDepot(t)
		l := s.start("?digest-algorithm=" + a.String())
		s.patch(l, "first ").want(t, http.StatusAccepted, "")
		id := strings.TrimPrefix(l, uploads)
		// What a request that did not end had written.
		u, err := s.storage.Resume(t.Context(), id, 6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(u, "torn"); err != nil {
			t.Fatal(err)
		}
		u.Close()

		s.restart()
		s.get(l).want(t, http.StatusNoContent, "").header(t, "Range", "0-5")
		s.patch(l, "second").want(t, http.StatusAccepted, "").header(t, "Range", "0-11")
		s.restart()
		d := a.FromString("first second")
		s.finish(l, d, "").want(t, http.StatusCreated, "")
		s.wantBlob("team/app", d, "first second")
		s.restart()
		s.get(l).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		s.wantBlob("team/app", d, "first second")
	}
}

func TestIdleUploadsExpire(t *testing.T) {
	s := newDepot(t)
	ctx := t.Context()
	fresh, begun, used := s.start(""), s.start(""), s.start("")
	s.patch(begun, "x").want(t, http.StatusAccepted, "")
	s.patch(used, "x").want(t, http.StatusAccepted, "")
	s.clock.pass(23 * time.Hour)
	s.patch(used, "y").want(t, http.StatusAccepted, "")
	s.clock.pass(2 * time.Hour)
	if c, err := s.Collect(ctx, false); err != nil || c.Uploads != 2 {
		t.Errorf("collected %+v, %v", c, err)
	}
	s.get(fresh).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.get(begun).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.get(used).want(t, http.StatusNoContent, "")

	// The same for one that another process began.
	s.restart()
	if c, err := s.Collect(ctx, false); err != nil || c.Uploads != 0 {
		t.Errorf("collected %+v, %v", c, err)
	}
	s.clock.pass(25 * time.Hour)
	s.restart()
	if c, err := s.Collect(ctx, false); err != nil || c.Uploads != 1 {
		t.Errorf("collected %+v, %v", c, err)
	}
	s.get(used).want(t, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	s.wantNoUploads()
}

func TestMounts(t *testing.T) {
	s := newDepot(t)
	mount := func(query string, headers ...string) answer {
		t.Helper()
		return s.do(http.MethodPost, uploads+query, nil, headers...)
	}
	d := s.pushed("open/lib", "content")
	missing := digest.FromString("missing")

	mount("?mount="+d.String()+"&from=open/lib").want(t, http.StatusCreated, "").
		header(t, "Location", "/v2/team/app/blobs/"+d.String()).header(t, "Docker-Content-Digest", d.String())
	s.wantBlob("team/app", d, "content")

	// 202 says nothing about why, and begins an upload that works.
	for _, from := range []string{"open/lib", "team/none", "other/private", "BAD", "../x"} {
		a := mount("?mount="+missing.String()+"&from="+from).want(t, http.StatusAccepted, "")
		s.finish(a.Header.Get("Location"), missing, "missing").want(t, http.StatusCreated, "")
		s.do(http.MethodDelete, "/v2/team/app/blobs/"+missing.String(), nil).want(t, http.StatusAccepted, "")
	}

	// Of a repository that may not be read, nothing is learnt, though the blob
	// is there.
	secret := digest.FromString("secret")
	if err := s.Metadata.CommitBlob(t.Context(), "key:other/private", secret, 6, s.clock.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"&from=other/private", "&from=open/lib", ""} {
		mount("?mount="+secret.String()+query).want(t, http.StatusAccepted, "")
	}

	// Without a source: from where the same subject pushed it lately.
	s.do(http.MethodDelete, "/v2/team/app/blobs/"+d.String(), nil).want(t, http.StatusAccepted, "")
	mine := s.pushed("open/lib", "mine")
	mount("?mount="+mine.String()).want(t, http.StatusCreated, "")
	s.wantBlob("team/app", mine, "mine")
	mount("?mount="+mine.String()).want(t, http.StatusCreated, "")
	s.do(http.MethodDelete, "/v2/team/app/blobs/"+mine.String(), nil).want(t, http.StatusAccepted, "")
	s.do(http.MethodDelete, "/v2/open/lib/blobs/"+mine.String(), nil).want(t, http.StatusAccepted, "")
	mount("?mount="+mine.String()).want(t, http.StatusAccepted, "")

	// Who may not push learns nothing at all.
	mount("?mount="+d.String()+"&from=open/lib", "Authorization", "").want(t, http.StatusUnauthorized, "UNAUTHORIZED")
}

// Bytes that another push has made durable are never replaced by ones that
// are not.
func TestPushOfWhatIsThereKeepsTheFile(t *testing.T) {
	s := newDepot(t)
	d := s.pushed("team/app", "content")
	file, err := s.storage.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before, err := file.(*os.File).Stat()
	if err != nil {
		t.Fatal(err)
	}
	s.pushed("open/app", "content")
	again, err := s.storage.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	after, err := again.(*os.File).Stat()
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
	s.wantBlob("open/app", d, "content")
}

func TestManyPushTheSameBlob(t *testing.T) {
	s := newDepot(t)
	content := strings.Repeat("content", 100_000)
	d := digest.FromString(content)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			repo := fmt.Sprintf("team/app%d", i%4)
			r := httptest.NewRequest(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), strings.NewReader(content))
			r.SetBasicAuth("ann", "nna")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != http.StatusCreated {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	for i := range 4 {
		s.wantBlob(fmt.Sprintf("team/app%d", i), d, content)
	}
	s.wantNoUploads()
}

func TestUploadsAreFew(t *testing.T) {
	s := newDepot(t, func(c *registry.Config) {
		c.Authenticate = func(_ *http.Request, username, _ string) (string, error) { return username, nil }
		c.Authorize = func(context.Context, string, string) (registry.Grant, error) {
			return registry.Grant{Repo: "key:team/app", Pull: true, Push: true, Delete: true}, nil
		}
	})
	begin := func(user int) answer {
		t.Helper()
		return s.do(http.MethodPost, uploads, nil, "Authorization", basic(fmt.Sprint("user", user), ""))
	}
	var locations []string
	for range 200 {
		locations = append(locations, begin(0).want(t, http.StatusAccepted, "").Header.Get("Location"))
	}
	full := func(a answer) {
		t.Helper()
		a.want(t, http.StatusTooManyRequests, "TOOMANYREQUESTS").header(t, "Retry-After", "60")
	}
	full(begin(0))
	d := digest.FromString("x")
	full(s.do(http.MethodPost, uploads+"?digest="+d.String(), strings.NewReader("x"), "Authorization", basic("user0", "")))

	// Whatever ends one makes place for another.
	s.do(http.MethodDelete, locations[0], nil).want(t, http.StatusNoContent, "")
	begin(0).want(t, http.StatusAccepted, "")
	s.finish(locations[1], d, "x").want(t, http.StatusCreated, "")
	begin(0).want(t, http.StatusAccepted, "")
	s.finish(locations[2], d, "y").want(t, http.StatusBadRequest, "DIGEST_INVALID")
	begin(0).want(t, http.StatusAccepted, "")
	full(begin(0))

	for i := range 4096 - 200 {
		begin(1+i/200).want(t, http.StatusAccepted, "")
	}
	full(begin(1000))
	s.clock.pass(25 * time.Hour)
	if run, err := s.Collect(t.Context(), false); err != nil || run.Uploads != 4096 {
		t.Fatalf("%d uploads were dropped, %v", run.Uploads, err)
	}
	begin(1000).want(t, http.StatusAccepted, "")
	begin(0).want(t, http.StatusAccepted, "")
}

func TestUploadsAreCountedAfterARestart(t *testing.T) {
	s := newDepot(t)
	for range 200 {
		s.patch(s.start(""), "x").want(t, http.StatusAccepted, "")
	}
	s.restart()
	if _, err := s.Collect(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	s.do(http.MethodPost, uploads, nil).want(t, http.StatusTooManyRequests, "TOOMANYREQUESTS")
}

func TestUploadsNeedSpace(t *testing.T) {
	s := newDepot(t, func(c *registry.Config) {
		c.Storage, c.ReserveBytes = &fullDisk{Storage: c.Storage, room: 9 << 20}, 10<<20
	})
	s.do(http.MethodPost, uploads, nil).want(t, http.StatusServiceUnavailable, "UNAVAILABLE").header(t, "Retry-After", "60")
}
