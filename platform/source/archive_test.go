package source_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/source"
)

const (
	mediaTar  = "application/x-tar"
	mediaZstd = "application/zstd"
	mediaGzip = "application/gzip"
)

var mtime = time.Date(2024, 2, 29, 12, 30, 0, 123456789, time.UTC)

func reg(name, content string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644, ModTime: mtime, Linkname: content}
}

func folder(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: mtime}
}

func link(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: mtime}
}

func hard(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: mtime}
}

// pack makes a tar. A regular file's content stands in its Linkname.
func pack(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h, content := *h, ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func toZstd(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func toGzip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// edit changes a header block of a tar, at the given offset in it, and makes
// its checksum right again.
func edit(archive []byte, block, offset int, value string) []byte {
	archive = bytes.Clone(archive)
	h := archive[block*512 : (block+1)*512]
	copy(h[offset:], value)
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return archive
}

// pax makes a tar of one file with the given records, which archive/tar's own
// writer would refuse.
func pax(t testing.TB, file *tar.Header, records ...string) []byte {
	t.Helper()
	var body strings.Builder
	for _, r := range records {
		size := len(r) + 3
		for len(fmt.Sprint(size))+len(r)+2 != size {
			size = len(fmt.Sprint(size)) + len(r) + 2
		}
		fmt.Fprintf(&body, "%d %s\n", size, r)
	}
	extended := pack(t, reg("pax", body.String()))
	extended = edit(extended, 0, 156, "x")
	return append(extended[:len(extended)-1024], pack(t, file)...)
}

// receive calls Receive with a fresh directory and checks that it leaves
// either the upload or nothing.
func receive(t testing.TB, body io.Reader, media string, l source.Limits, want ...source.Digest) (string, source.Received, error) {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "upload")
	got, err := source.Receive(t.Context(), body, media, dst, l, want...)
	entries, dirErr := os.ReadDir(filepath.Dir(dst))
	if dirErr != nil {
		t.Fatal(dirErr)
	}
	switch {
	case err != nil && len(entries) != 0:
		t.Errorf("after %v, %s is left behind", err, entries[0].Name())
	case err == nil && (len(entries) != 1 || entries[0].Name() != "upload"):
		t.Errorf("in the directory of the upload: %v", entries)
	}
	return dst, got, err
}

// refuse checks that both Receive and Unpack refuse an archive for the same
// reason, naming what is at fault, and that nothing is left of it anywhere.
func refuse(t *testing.T, archive []byte, media, code, mention string, l source.Limits) {
	t.Helper()
	_, _, received := receive(t, bytes.NewReader(archive), media, l)
	outer := t.TempDir()
	upload, outside, dir := filepath.Join(outer, "upload"), filepath.Join(outer, "outside"), filepath.Join(outer, "in", "dir")
	if err := errors.Join(os.WriteFile(upload, archive, 0o600), os.WriteFile(outside, []byte("untouched"), 0o600), os.Mkdir(filepath.Dir(dir), 0o700)); err != nil {
		t.Fatal(err)
	}
	unpacked := source.Unpack(t.Context(), upload, dir, l)
	for who, err := range map[string]error{"Receive": received, "Unpack": unpacked} {
		if platform.CodeOf(err) != code {
			t.Errorf("%s: %v (%s), want code %s", who, err, platform.CodeOf(err), code)
			continue
		}
		if kind := platform.KindOf(err); kind != platform.Invalid && kind != platform.TooLarge {
			t.Errorf("%s: kind %v", who, kind)
		}
		if message := err.Error(); !strings.Contains(message, mention) || len(message) > 600 || strings.ContainsAny(message, "\x00\n\x1b") {
			t.Errorf("%s says %q, which should mention %q", who, message, mention)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left after a failed Unpack: %v", err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("a file outside reads %q, %v", b, err)
	}
	for at, want := range map[string]int{outer: 3, filepath.Dir(dir): 0} {
		if entries, err := os.ReadDir(at); err != nil || len(entries) != want {
			t.Errorf("%v, %v beside the directory", entries, err)
		}
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	long := strings.Repeat("n", 300)
	deep := strings.Repeat("d/", 200) + "f"
	for name, tc := range map[string]struct {
		archive       []byte
		code, mention string
	}{
		"absolute path":            {pack(t, reg("ok", ""), reg("/etc/passwd", "x")), "entry_outside_root", `"/etc/passwd"`},
		"dot dot":                  {pack(t, reg("../../etc/passwd", "x")), "entry_outside_root", `"../../etc/passwd"`},
		"dot dot that stays in":    {pack(t, folder("a"), reg("a/../b", "x")), "entry_outside_root", `"a/../b"`},
		"PAX path overrides":       {pax(t, reg("innocent", "x"), "path=../evil"), "entry_outside_root", `"../evil"`},
		"PAX sparse name":          {pax(t, reg("innocent", "x"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1", "GNU.sparse.size=1", "GNU.sparse.name=../evil"), "entry_outside_root", `"../evil"`},
		"NUL in PAX sparse name":   {pax(t, reg("innocent", "x"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1", "GNU.sparse.size=1", "GNU.sparse.name=a\x00b"), "bad_name", `"a\x00b"`},
		"NUL in PAX path":          {pax(t, reg("innocent", "x"), "path=a\x00b"), "bad_archive", "tar"},
		"invalid UTF-8":            {edit(pack(t, reg("name", "x")), 0, 0, "na\xffe"), "bad_name", `\xff`},
		"control characters":       {pack(t, reg("../\x1b[31m\nred", "x")), "entry_outside_root", `\x1b[31m\nred`},
		"no name":                  {edit(pack(t, reg("n", "x")), 0, 0, "\x00"), "bad_name", "no name"},
		"long component":           {pack(t, reg(long, "x")), "bad_name", "300 bytes"},
		"long path":                {pack(t, reg(strings.Repeat(strings.Repeat("n", 200)+"/", 15)+"f", "x")), "bad_name", "2048"},
		"deep path":                {pack(t, reg(deep, "x")), "bad_name", "201 directories"},
		"file named like a folder": {edit(pack(t, reg("a/b", "")), 0, 0, "a/b/"), "bad_name", `"a/b/"`},
		"root as a file":           {pack(t, reg("./.", "x")), "entry_conflict", `"./."`},
		"root as a link":           {pack(t, link(".", "x")), "entry_conflict", `"."`},

		"character device": {pack(t, &tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}), "entry_not_allowed", `"dev/null" is a character device`},
		"block device":     {pack(t, &tar.Header{Typeflag: tar.TypeBlock, Name: "sda"}), "entry_not_allowed", "block device"},
		"fifo":             {pack(t, &tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}), "entry_not_allowed", "fifo"},
		"socket by mode":   {edit(pack(t, reg("sock", "")), 0, 100, "0140755\x00"), "entry_not_allowed", "socket"},
		"unknown type":     {edit(pack(t, reg("what", "")), 0, 156, "Z"), "entry_not_allowed", "unknown type"},

		"symlink absolute":                  {pack(t, link("l", "/etc")), "entry_outside_root", `"l"`},
		"symlink out":                       {pack(t, folder("a"), link("a/l", "../../x")), "entry_outside_root", `"a/l"`},
		"symlink to the parent":             {pack(t, link("l", "..")), "entry_outside_root", `"l"`},
		"symlink out and in again":          {pack(t, link("l", "../dir/x")), "entry_outside_root", `"l"`},
		"symlink out through a link":        {pack(t, link("a", "."), link("a/b", "..")), "entry_outside_root", `"a/b"`},
		"symlink out through a chain":       {pack(t, folder("d/e"), link("x", "d/e"), link("y", "x/.."), link("z", "y/../..")), "entry_outside_root", `"z"`},
		"symlink that later entries turn":   {pack(t, link("l", "d/../../x"), reg("f", "")), "entry_outside_root", `"l"`},
		"symlink that a later link turns":   {pack(t, link("l", "p/q/../../x"), link("p", "."), reg("f", "")), "entry_outside_root", `"l"`},
		"symlink turned out by later links": {pack(t, link("l", "p/q/r/../../x"), folder("s"), link("p", "s/.."), link("q", "p")), "entry_outside_root", `"l"`},
		"symlink escapes once complete":     {pack(t, link("l", "p/q/.."), link("p", "."), link("q", "p"), reg("f", "")), "entry_outside_root", `"l"`},
		"write through a symlink out":       {pack(t, link("etc", "/etc"), reg("etc/cron.d/evil", "x")), "entry_outside_root", `"etc"`},
		"symlink loop":                      {pack(t, link("a", "b"), link("b", "a")), "link_loop", `"a"`},
		"symlink to itself":                 {pack(t, link("a", "a")), "link_loop", `"a"`},
		"entry below a loop":                {pack(t, link("a", "b"), link("b", "c"), link("c", "a"), reg("a/x", "")), "link_loop", ""},
		"symlink with no target":            {edit(pack(t, link("l", "x")), 0, 157, "\x00"), "bad_name", `"l"`},
		"symlink to invalid UTF-8":          {edit(pack(t, link("l", "xx")), 0, 157, "\xff\xfe"), "bad_name", `"l"`},
		"entry below a dangling symlink":    {pack(t, link("l", "nowhere"), reg("l/x", "")), "entry_conflict", `"l/x"`},
		"entry below a file":                {pack(t, reg("f", "x"), reg("f/x", "")), "entry_conflict", `"f/x"`},
		"entry below a symlink to a file":   {pack(t, reg("f", "x"), link("l", "f"), reg("l/x", "")), "entry_conflict", `"l/x"`},

		"file, then folder":       {pack(t, reg("a", "x"), folder("a/")), "entry_conflict", `"a/"`},
		"folder, then file":       {pack(t, reg("a/b", "x"), reg("a", "x")), "entry_conflict", `"a"`},
		"folder, then symlink":    {pack(t, folder("a"), link("a", ".")), "entry_conflict", `"a"`},
		"symlink, then folder":    {pack(t, folder("b"), link("a", "b"), folder("a")), "entry_conflict", `"a"`},
		"hard link out":           {pack(t, hard("l", "../x")), "entry_outside_root", `"l"`},
		"hard link absolute":      {pack(t, hard("l", "/etc/passwd")), "entry_outside_root", `"/etc/passwd"`},
		"hard link to nothing":    {pack(t, hard("l", "x/y"), reg("x/y", "")), "link_target_missing", `"x/y"`},
		"hard link to a folder":   {pack(t, folder("d"), hard("l", "d")), "entry_not_allowed", `"l"`},
		"hard link to the root":   {pack(t, hard("l", ".")), "entry_not_allowed", `"l"`},
		"hard link to a symlink":  {pack(t, reg("f", ""), link("s", "f"), hard("l", "s")), "entry_not_allowed", `"l"`},
		"hard link to itself":     {pack(t, reg("f", ""), hard("f", "./f")), "entry_not_allowed", `"f"`},
		"hard link over a folder": {pack(t, reg("f", ""), folder("d"), hard("d", "f")), "entry_conflict", `"d"`},

		"negative size":            {edit(pack(t, reg("f", "x")), 0, 124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0"), "bad_archive", "tar"},
		"huge size":                {edit(pack(t, reg("f", "x")), 0, 124, "77777777777\x00"), "unpacked_too_large", `"f"`},
		"huge sparse size":         {pax(t, reg("f", "x"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1", "GNU.sparse.size=99999999999", "GNU.sparse.name=f"), "unpacked_too_large", `"f"`},
		"sparse bomb":              {pax(t, reg("f", "x"), "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1", "GNU.sparse.size=4000000000", "GNU.sparse.name=f"), "ratio_exceeded", "200 times"},
		"bad checksum":             {append([]byte("x"), pack(t, reg("f", "x"))[1:]...), "bad_archive", "tar"},
		"no archive":               {bytes.Repeat([]byte("hello, world\n"), 1000), "bad_archive", "tar"},
		"no end marker":            {pack(t, reg("f", "x"))[:1024], "truncated", ""},
		"half an end marker":       {pack(t, reg("f", "x"))[:1536], "truncated", ""},
		"only an end marker":       {pack(t), "empty_archive", ""},
		"only the root":            {pack(t, folder("./")), "empty_archive", ""},
		"data after the end":       {append(pack(t, reg("f", "x")), "garbage"...), "trailing_data", ""},
		"another tar after it":     {append(pack(t, reg("f", "x")), pack(t, reg("../g", "x"))...), "trailing_data", ""},
		"zeros, then data after":   {append(append(pack(t, reg("f", "x")), make([]byte, 100_000)...), 1), "trailing_data", ""},
		"name that looks like zst": {pack(t, reg("P*M\x18", "x")), "bad_archive", "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "name that looks like zst" {
				if _, _, err := receive(t, bytes.NewReader(tc.archive), mediaTar, source.Limits{}); platform.CodeOf(err) != tc.code {
					t.Error(err)
				}
				return
			}
			refuse(t, tc.archive, mediaTar, tc.code, tc.mention, source.Limits{})
			refuse(t, toZstd(t, tc.archive), mediaZstd, tc.code, "", source.Limits{})
			refuse(t, toGzip(t, tc.archive), mediaGzip, tc.code, "", source.Limits{})
		})
	}
}

func TestChainsOfLinksAreBounded(t *testing.T) {
	chain := []*tar.Header{reg("l0", "x")}
	for i := 1; i <= 42; i++ {
		chain = append(chain, link(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i-1)))
	}
	// l41 goes through 40 other links, as far as the kernel would follow.
	if _, _, err := receive(t, bytes.NewReader(pack(t, chain[:42]...)), mediaTar, source.Limits{}); err != nil {
		t.Error(err)
	}
	refuse(t, pack(t, chain...), mediaTar, "link_loop", `"l42"`, source.Limits{})
}

func TestBrokenCompressionIsRefused(t *testing.T) {
	archive := pack(t, reg("Dockerfile", "FROM scratch\n"), reg("random", randomText(50_000)))
	z, g := toZstd(t, archive), toGzip(t, archive)
	flipped := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-3] ^= 0x55 // in the checksum
		return b
	}
	var window bytes.Buffer
	w, err := zstd.NewWriter(&window, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(archive)
	if err := errors.Join(err, w.Flush(), w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		archive     []byte
		media, code string
	}{
		"zstd checksum": {flipped(z), mediaZstd, "bad_archive"},
		"gzip checksum": {flipped(g), mediaGzip, "bad_archive"},
		"zstd garbage":  {append(bytes.Clone(z), "garbage, garbage"...), mediaZstd, "bad_archive"},
		"gzip garbage":  {append(bytes.Clone(g), "garbage, garbage"...), mediaGzip, "bad_archive"},
		"second zstd":   {append(bytes.Clone(z), z...), mediaZstd, "trailing_data"},
		"second gzip":   {append(bytes.Clone(g), g...), mediaGzip, "trailing_data"},
		"large window":  {window.Bytes(), mediaZstd, "window_too_large"},
		"empty zstd":    {toZstd(t, nil, zstd.WithZeroFrames(true)), mediaZstd, "truncated"},
		"empty":         {nil, mediaZstd, "empty_archive"},
		"three bytes":   {z[:3], mediaZstd, "truncated"},
	} {
		t.Run(name, func(t *testing.T) { refuse(t, tc.archive, tc.media, tc.code, "", source.Limits{}) })
	}
	for declared, sent := range map[string][]byte{mediaZstd: g, mediaGzip: z, mediaTar: z} {
		if _, _, err := receive(t, bytes.NewReader(sent), declared, source.Limits{}); platform.CodeOf(err) != "bad_archive" || !strings.Contains(err.Error(), "looks like") {
			t.Errorf("sent as %s: %v", declared, err)
		}
	}
}

func TestFramesTogetherAreOneStream(t *testing.T) {
	archive := pack(t, reg("Dockerfile", "FROM scratch\n"), reg("random", randomText(5_000)))
	skippable := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "note"...)
	var z []byte
	for _, part := range [][]byte{archive[:100], archive[100:3000], archive[3000:]} {
		z = append(append(z, skippable...), toZstd(t, part)...)
	}
	z = append(z, skippable...)
	g := append(toGzip(t, archive[:777]), toGzip(t, archive[777:])...)
	for media, sent := range map[string][]byte{mediaZstd: z, mediaGzip: g} {
		upload, _, err := receive(t, bytes.NewReader(sent), media, source.Limits{})
		if err != nil {
			t.Fatal(media, err)
		}
		dir := filepath.Join(t.TempDir(), "d")
		if err := source.Unpack(t.Context(), upload, dir, source.Limits{}); err != nil {
			t.Error(media, err)
		}
	}
}

// TestEveryPrefixIsTruncated cuts an archive everywhere: none of its parts is
// taken for the whole.
func TestEveryPrefixIsTruncated(t *testing.T) {
	archive := pack(t, reg("f", "content"))
	for media, sent := range map[string][]byte{mediaTar: archive, mediaZstd: toZstd(t, archive), mediaGzip: toGzip(t, archive)} {
		dst := filepath.Join(t.TempDir(), "upload")
		for n := 4; n < len(sent); n++ {
			if _, err := source.Receive(t.Context(), bytes.NewReader(sent[:n]), media, dst, source.Limits{}); platform.CodeOf(err) != "truncated" {
				t.Fatalf("the first %d of %d bytes of %s: %v", n, len(sent), media, err)
			}
		}
		if entries, _ := os.ReadDir(filepath.Dir(dst)); len(entries) != 0 {
			t.Errorf("left behind: %v", entries)
		}
	}
}

func TestLimits(t *testing.T) {
	var many []*tar.Header
	for i := range 50 {
		many = append(many, reg(fmt.Sprintf("f%d", i), "0123456789"))
	}
	archive := pack(t, many...)
	deep := pack(t, reg("a/b/c/d/e/f", ""))
	global := pack(t, append(many[:3:3], &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}})...)
	var steps []*tar.Header
	for range 2000 {
		steps = append(steps, reg(strings.Repeat("d/", 120)+"f", ""))
	}
	if got := (source.Limits{PackedBytes: 1 << 30, UnpackedBytes: 4 << 30, Entries: 200_000, Ratio: 200}); got != source.DefaultLimits {
		t.Errorf("the documented defaults are %v, not %v", got, source.DefaultLimits)
	}
	for name, tc := range map[string]struct {
		archive []byte
		limits  source.Limits
		code    string
	}{
		"packed":                     {archive, source.Limits{PackedBytes: 10_000}, "packed_too_large"},
		"packed, exactly":            {archive, source.Limits{PackedBytes: int64(len(archive))}, ""},
		"unpacked":                   {archive, source.Limits{UnpackedBytes: 30_000}, "unpacked_too_large"},
		"unpacked, exactly":          {archive, source.Limits{UnpackedBytes: int64(len(archive))}, ""},
		"entries":                    {archive, source.Limits{Entries: 49}, "too_many_entries"},
		"entries, exactly":           {archive, source.Limits{Entries: 50}, ""},
		"directories in between":     {deep, source.Limits{Entries: 5}, "too_many_entries"},
		"directories in between, ok": {deep, source.Limits{Entries: 6}, ""},
		"global headers count":       {global, source.Limits{Entries: 3}, "too_many_entries"},
		"global headers":             {global, source.Limits{Entries: 4}, ""},
		"paths that take long":       {pack(t, steps...), source.Limits{Entries: 2200}, "too_many_entries"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.code != "" {
				refuse(t, tc.archive, mediaTar, tc.code, "", tc.limits)
				return
			}
			upload, _, err := receive(t, bytes.NewReader(tc.archive), mediaTar, tc.limits)
			if err == nil {
				err = source.Unpack(t.Context(), upload, filepath.Join(t.TempDir(), "d"), tc.limits)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNamesInMemoryAreBounded sends names and targets that would fill memory
// long before there are too many of them.
func TestNamesInMemoryAreBounded(t *testing.T) {
	var links []*tar.Header
	for i := range 10_000 {
		links = append(links, link(fmt.Sprintf("l%d", i), strings.Repeat("t/", 2000)))
	}
	if _, _, err := receive(t, bytes.NewReader(pack(t, links...)), mediaTar, source.Limits{}); platform.CodeOf(err) != "too_many_entries" || !strings.Contains(err.Error(), "32 MiB") {
		t.Errorf("error %v", err)
	}
}

func TestWhatOtherToolsPackIsTaken(t *testing.T) {
	old := edit(edit(pack(t, reg("legacy", "")), 0, 0, "legacy/"), 0, 156, "\x00") // V7: a folder by its slash
	for name, archive := range map[string][]byte{
		"git archive": pack(t, &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "c0ffee"}}, reg("f", "x")),
		"record size": append(pack(t, reg("f", "x")), make([]byte, 8192)...),
		"dot slash":   pack(t, folder("./"), folder("./a/"), reg("./a//b", "x"), hard("./c", "./a/b")),
		"V7":          old,
		"links":       pack(t, folder("a/b"), link("a/b/up", ".."), link("a/b/root", "../.."), link("here", "."), link("dangling", "a/nothing/x"), reg("a/b/up/f", "x"), hard("h", "a/b/up/f")),
		"update":      pack(t, reg("f", "old"), reg("f", "new"), link("f", "g"), reg("f", "newest")),
	} {
		upload, _, err := receive(t, bytes.NewReader(archive), mediaTar, source.Limits{})
		if err == nil {
			err = source.Unpack(t.Context(), upload, filepath.Join(t.TempDir(), "d"), source.Limits{})
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnsupportedMediaType(t *testing.T) {
	archive := pack(t, reg("f", "x"))
	for _, media := range []string{"", "application/zip", "text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "\x00"} {
		_, _, err := receive(t, bytes.NewReader(archive), media, source.Limits{})
		if platform.KindOf(err) != platform.Unsupported {
			t.Errorf("%q: %v", media, err)
			continue
		}
		for _, taken := range []string{mediaTar, mediaZstd, mediaGzip} {
			if !strings.Contains(err.Error(), taken) {
				t.Errorf("%v does not name %s", err, taken)
			}
		}
	}
	for _, media := range []string{"application/x-tar; charset=binary", "Application/X-Tar", " application/x-tar ;", "application/x-tar; broken"} {
		if _, _, err := receive(t, bytes.NewReader(archive), media, source.Limits{}); err != nil {
			t.Errorf("%q: %v", media, err)
		}
	}
}

func TestCancelledReceiveLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dst := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(dst, []byte("former"), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := pack(t, reg("f", randomText(1<<20)))
	body := io.MultiReader(bytes.NewReader(archive[:500_000]), readerFunc(func(p []byte) (int, error) {
		cancel()
		return copy(p, archive[500_000:]), nil
	}))
	if _, err := source.Receive(ctx, body, mediaTar, dst, source.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(dst); err != nil || string(b) != "former" {
		t.Errorf("the former upload reads %q, %v", b, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(dst)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func randomText(n int) string {
	b := make([]byte, n)
	newNoise(1).Read(b)
	return string(b)
}
