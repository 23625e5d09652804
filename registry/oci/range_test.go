package oci_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/registry/oci"
)

func TestRanges(t *testing.T) {
	whole := errors.New("whole")
	for _, c := range []struct {
		header        string
		size          int64
		start, length int64
		err           error // whole: everything is sent
	}{
		{"bytes=500-1499", 2048, 500, 1000, nil},
		{"bytes=500-", 2048, 500, 1548, nil},
		{"bytes=-500", 2048, 1548, 500, nil},
		{"bytes=-5000", 2048, 0, 2048, nil},
		{"bytes=2000-5000", 2048, 2000, 48, nil},
		{"bytes=0-", 2048, 0, 2048, nil},
		{"bytes=0-0", 1, 0, 1, nil},
		{"bytes= 1-2 ", 10, 1, 2, nil},
		{"bytes=0-9223372036854775807", 10, 0, 10, nil},
		{"bytes=500-0", 2048, 0, 0, oci.ErrUnsatisfiable},
		{"bytes=5000-10000", 2048, 0, 0, oci.ErrUnsatisfiable},
		{"bytes=2048-", 2048, 0, 0, oci.ErrUnsatisfiable},
		{"bytes=-0", 2048, 0, 0, oci.ErrUnsatisfiable},
		{"bytes=0-", 0, 0, 0, whole},
		{"", 10, 0, 0, whole},
		{"bytes=", 10, 0, 0, whole},
		{"bytes=-", 10, 0, 0, whole},
		{"bytes=a-b", 10, 0, 0, whole},
		{"bytes=+1-2", 10, 0, 0, whole},
		{"bytes=1-2,4-5", 10, 0, 0, whole},
		{"items=0-1", 10, 0, 0, whole},
		{"bytes=9223372036854775808-", 10, 0, 0, whole},
	} {
		r, partial, err := oci.ParseRange(c.header, c.size)
		if err == nil && !partial {
			err = whole
		}
		if !errors.Is(err, c.err) || err == nil && (r.Start != c.start || r.Length != c.length) {
			t.Errorf("%q of %d: got %+v, %v", c.header, c.size, r, err)
		}
	}
}

func TestContentRanges(t *testing.T) {
	for header, want := range map[string]oci.Range{
		"0-0":                               {Start: 0, Length: 1},
		"0-1023":                            {Start: 0, Length: 1024},
		"1024-2047":                         {Start: 1024, Length: 1024},
		"bytes 5-9/10":                      {Start: 5, Length: 5},
		"bytes 5-9/*":                       {Start: 5, Length: 5},
		"0-1099511627775":                   {Start: 0, Length: 1 << 40},
		"9007199254740992-9007199254740992": {Start: 1 << 53, Length: 1},
	} {
		if got, err := oci.ParseContentRange(header); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", header, got, err)
		}
	}
	for _, header := range []string{"", "-", "0-", "-5", "5-4", "a-b", "0--1", " 0-1", "bytes=0-1", "0-9223372036854775807", "0-99999999999999999999"} {
		if got, err := oci.ParseContentRange(header); !errors.Is(err, oci.ErrRange) {
			t.Errorf("%q: got %+v, %v", header, got, err)
		}
	}
}

// FuzzRange compares with what net/http makes of the same header.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=5-", "bytes=-3", "bytes=9-2", "bytes=100-", "bytes=0-1,3-4", "bytes", "bytes=-0", "0-5", "bytes 1-2/3"} {
		f.Add(s, int64(10))
		f.Add(s, int64(0))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if c, err := oci.ParseContentRange(header); err == nil && (c.Start < 0 || c.Length <= 0 || c.Start+c.Length < c.Length) {
			t.Errorf("Content-Range %q gives %+v", header, c)
		}
		size &= 1<<20 - 1
		r, partial, err := oci.ParseRange(header, size)
		if partial && (err != nil || r.Start < 0 || r.Length <= 0 || r.Start+r.Length > size) {
			t.Fatalf("%q of %d gives %+v, %v", header, size, r, err)
		}
		if !partial || strings.ContainsAny(header, "\r\n") {
			return
		}
		w, req := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Range", header)
		http.ServeContent(w, req, "", time.Time{}, strings.NewReader(strings.Repeat("x", int(size))))
		want := "bytes " + strconv.FormatInt(r.Start, 10) + "-" + strconv.FormatInt(r.Start+r.Length-1, 10) + "/" + strconv.FormatInt(size, 10)
		if got := w.Header().Get("Content-Range"); w.Code != http.StatusPartialContent || got != want {
			t.Fatalf("%q of %d: got %s, net/http %d %s", header, size, want, w.Code, got)
		}
	})
}
