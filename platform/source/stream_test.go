package source_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
)

// newNoise is an endless stream that does not compress.
func newNoise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// counter counts what is read of a body.
type counter struct {
	io.Reader
	n    int64
	each func()
}

func (c *counter) Read(p []byte) (int, error) {
	if c.each != nil {
		c.each()
	}
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// endless repeats b.
type endless struct {
	b  []byte
	at int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[e.at:])
	e.at = (e.at + n) % len(e.b)
	return n, nil
}

func header(t testing.TB, h tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReceiveStoresWhatWasSent(t *testing.T) {
	archive := pack(t, reg("Dockerfile", "FROM scratch\n"), reg("data", randomText(300_000)))
	for media, sent := range map[string][]byte{mediaTar: archive, mediaZstd: toZstd(t, archive), mediaGzip: toGzip(t, archive)} {
		upload, got, err := receive(t, bytes.NewReader(sent), media, source.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if want := (source.Received{SizeBytes: int64(len(sent)), Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(sent))}); got != want {
			t.Errorf("received %v, want %v", got, want)
		}
		if b, err := os.ReadFile(upload); err != nil || !bytes.Equal(b, sent) {
			t.Errorf("%s: the file differs from what was sent, %v", media, err)
		}
		if info, err := os.Stat(upload); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v: want mode 0600", info, err)
		}
	}
}

func TestBodyThatBreaksOffIsTruncated(t *testing.T) {
	archive := toZstd(t, pack(t, reg("data", randomText(300_000))))
	for _, cause := range []error{io.ErrUnexpectedEOF, syscall.ECONNRESET} {
		body := io.MultiReader(bytes.NewReader(archive[:200_000]), readerFunc(func([]byte) (int, error) { return 0, cause }))
		_, _, err := receive(t, body, mediaZstd, source.Limits{})
		if platform.CodeOf(err) != "truncated" || !errors.Is(err, cause) {
			t.Errorf("%v: %v", cause, err)
		}
	}
	// After the archive, but before the body is over.
	body := io.MultiReader(bytes.NewReader(archive), readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }))
	if _, _, err := receive(t, body, mediaZstd, source.Limits{}); platform.CodeOf(err) != "truncated" {
		t.Errorf("a body shorter than announced: %v", err)
	}
}

func TestUploadIsOnDiskWhileItArrives(t *testing.T) {
	dir := t.TempDir()
	archive := pack(t, reg("data", randomText(1<<20)))
	sent := 0
	body := readerFunc(func(p []byte) (int, error) {
		// Everything given so far has been written when more is asked for.
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
		if info, err := entries[0].Info(); err != nil || info.Size() != int64(sent) || info.Mode().Perm() != 0o600 {
			t.Fatalf("after %d bytes sent there is %v, %v", sent, info, err)
		}
		if sent == len(archive) {
			return 0, io.EOF
		}
		n := copy(p, archive[sent:min(sent+1000, len(archive))])
		sent += n
		return n, nil
	})
	if _, err := source.Receive(t.Context(), body, mediaTar, filepath.Join(dir, "upload"), source.Limits{}); err != nil {
		t.Error(err)
	}
}

func TestEndlessBodiesAreRefusedEarly(t *testing.T) {
	fileHeader := header(t, tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: 3 << 30})
	zeros := make([]byte, 1<<20)
	bomb := func(pack func(testing.TB, []byte) []byte) io.Reader {
		return io.MultiReader(bytes.NewReader(pack(t, fileHeader)), &endless{b: pack(t, zeros)})
	}
	entries := &endless{b: header(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"})}
	metadata := edit(header(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 512}), 0, 156, "x")
	metadata = append(metadata, append([]byte("12 path=abc\n"), make([]byte, 500)...)...)
	for name, tc := range map[string]struct {
		body    io.Reader
		media   string
		limits  source.Limits
		code    string
		atMost  int64 // bytes read
		andMore string
	}{
		"zstd bomb":     {bomb(func(t testing.TB, b []byte) []byte { return toZstd(t, b) }), mediaZstd, source.Limits{}, "ratio_exceeded", 1 << 20, ""},
		"gzip bomb":     {bomb(toGzip), mediaGzip, source.Limits{}, "ratio_exceeded", 1 << 20, ""},
		"entries":       {entries, mediaTar, source.Limits{Entries: 30_000}, "too_many_entries", 30_000*512 + 1<<17, ""},
		"metadata":      {&endless{b: metadata}, mediaTar, source.Limits{UnpackedBytes: 8 << 20}, "", 9 << 20, "bad_archive unpacked_too_large"},
		"packed":        {io.MultiReader(bytes.NewReader(fileHeader), newNoise(2)), mediaTar, source.Limits{PackedBytes: 10 << 20}, "packed_too_large", 11 << 20, ""},
		"empty frames":  {&endless{b: toZstd(t, nil, zstd.WithZeroFrames(true))}, mediaZstd, source.Limits{PackedBytes: 1 << 18}, "packed_too_large", 1 << 20, ""},
		"zeros for tar": {&endless{b: zeros}, mediaTar, source.Limits{PackedBytes: 10 << 20}, "packed_too_large", 11 << 20, ""},
	} {
		t.Run(name, func(t *testing.T) {
			body := &counter{Reader: tc.body}
			_, _, err := receive(t, body, tc.media, tc.limits)
			if code := platform.CodeOf(err); code != tc.code && !strings.Contains(tc.andMore, code) {
				t.Errorf("error %v", err)
			}
			if body.n > tc.atMost {
				t.Errorf("%d bytes were read before it was refused, %d would do", body.n, tc.atMost)
			}
		})
	}
}

// rawZstd packs what it reads into a zstd frame of raw blocks, with a window of
// 8 MiB, as incompressible data comes out of any encoder.
type rawZstd struct {
	from    io.Reader
	pending []byte
	last    bool
}

func (z *rawZstd) Read(p []byte) (int, error) {
	if len(z.pending) == 0 {
		if z.last {
			return 0, io.EOF
		}
		if z.pending == nil {
			z.pending = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3} // 2^(10+13) bytes
		}
		block := make([]byte, 128<<10)
		n, err := io.ReadFull(z.from, block)
		head := n << 3
		if z.last = err != nil; z.last {
			head |= 1
		}
		z.pending = append(z.pending, byte(head), byte(head>>8), byte(head>>16))
		z.pending = append(z.pending, block[:n]...)
	}
	n := copy(p, z.pending)
	z.pending = z.pending[n:]
	return n, nil
}

func TestMemoryStaysFlat(t *testing.T) {
	const total = 256 << 20
	archive := io.MultiReader(
		bytes.NewReader(header(t, tar.Header{Typeflag: tar.TypeReg, Name: "noise", Size: total, Mode: 0o600})),
		io.LimitReader(newNoise(3), total),
		bytes.NewReader(make([]byte, 1024)))
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak, reads := uint64(0), 0
	body := &counter{Reader: &rawZstd{from: archive}, each: func() {
		if reads++; reads%256 == 0 {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}}
	_, got, err := receive(t, body, mediaZstd, source.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got.SizeBytes < total {
		t.Errorf("%d bytes were sent", got.SizeBytes)
	}
	// The window, the blocks this test makes, and what is not collected yet.
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	} else {
		t.Logf("the heap grew by %d MiB", grown>>20)
	}
}

func TestDigests(t *testing.T) {
	sent := pack(t, reg("f", "x"))
	sum256, sum512 := sha256.Sum256(sent), sha512.Sum512(sent)
	field := func(name string, sum []byte) string {
		return name + "=:" + base64.StdEncoding.EncodeToString(sum) + ":"
	}
	good256, good512 := field("sha-256", sum256[:]), field("sha-512", sum512[:])
	bad256 := field("sha-256", make([]byte, 32))
	for name, tc := range map[string]struct {
		values []string
		count  int
		parse  string // code of the error
		match  bool
	}{
		"none":                  {nil, 0, "", true},
		"empty":                 {[]string{""}, 0, "", true},
		"sha-256":               {[]string{good256}, 1, "", true},
		"sha-512":               {[]string{good512}, 1, "", true},
		"both in one":           {[]string{good256 + " ,\t" + good512}, 2, "", true},
		"both in two":           {[]string{good256, good512}, 2, "", true},
		"with a parameter":      {[]string{good256 + ";q=1"}, 1, "", true},
		"another algorithm too": {[]string{"md5=:AAAA:, unixsum=30637, " + good256}, 1, "", true},
		"another algorithm":     {[]string{"md5=:AAAA:"}, 0, "", true},
		"wrong":                 {[]string{bad256}, 1, "", false},
		"one of two wrong":      {[]string{good512 + "," + bad256}, 2, "", false},
		"short":                 {[]string{field("sha-256", sum256[:31])}, 0, "bad_digest", false},
		"no base64":             {[]string{"sha-256=:***:"}, 0, "bad_digest", false},
		"hexadecimal":           {[]string{fmt.Sprintf("sha-256=%x", sum256)}, 0, "bad_digest", false},
		"no value":              {[]string{"sha-256"}, 0, "bad_digest", false},
		"one colon":             {[]string{"sha-256=:"}, 0, "bad_digest", false},
	} {
		t.Run(name, func(t *testing.T) {
			digests, err := source.ParseDigests(tc.values...)
			if tc.parse != "" {
				if platform.CodeOf(err) != tc.parse || platform.KindOf(err) != platform.Malformed {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || len(digests) != tc.count {
				t.Fatalf("%d digests, %v", len(digests), err)
			}
			_, _, err = receive(t, bytes.NewReader(sent), mediaTar, source.Limits{}, digests...)
			if tc.match && err != nil || !tc.match && platform.CodeOf(err) != "digest_mismatch" {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, _, err := receive(t, bytes.NewReader(sent), mediaTar, source.Limits{}, source.Digest{Algorithm: "md5"}); platform.CodeOf(err) != "bad_digest" {
		t.Errorf("error %v", err)
	}
}

func TestFullDiskIsSaidInNumbers(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		err := source.DiskError(&os.PathError{Op: "write", Path: "x", Err: cause}, filepath.Join(t.TempDir(), "x"), 5<<20, "writing upload")
		if platform.KindOf(err) != platform.Unavailable || platform.CodeOf(err) != "disk_full" || !errors.Is(err, cause) {
			t.Errorf("error %v", err)
		}
		if message := err.Error(); !strings.Contains(message, "5 MiB") || !strings.Contains(message, "free") {
			t.Errorf("message %q", message)
		}
	}
	if err := source.DiskError(syscall.EIO, "/", 0, "writing upload"); platform.KindOf(err) != platform.Internal || !errors.Is(err, syscall.EIO) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkReceive(b *testing.B) {
	archive := pack(b, reg("data", randomText(32<<20)))
	for name, sent := range map[string][]byte{mediaTar: archive, mediaZstd: toZstd(b, archive), mediaGzip: toGzip(b, archive)} {
		b.Run(strings.TrimPrefix(name, "application/"), func(b *testing.B) {
			dst := filepath.Join(b.TempDir(), "upload")
			b.SetBytes(int64(len(sent)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := source.Receive(b.Context(), bytes.NewReader(sent), name, dst, source.Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
