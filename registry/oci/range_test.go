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
	const size = 2048
	for header, want := range map[string]oci.Range{
		"bytes=500-1499":              {Start: 500, Length: 1000},
		"bytes=500-":                  {Start: 500, Length: 1548},
		"bytes=-500":                  {Start: 1548, Length: 500},
		"bytes=-5000":                 {Start: 0, Length: size},
		"bytes=2000-5000":             {Start: 2000, Length: 48},
		"bytes=0-":                    {Start: 0, Length: size},
		"bytes=0-0":                   {Start: 0, Length: 1},
		"bytes=2047-2047":             {Start: 2047, Length: 1},
		"bytes=0-9223372036854775807": {Start: 0, Length: size},
	} {
		if got, partial, err := oci.ParseRange(header, size); err != nil || !partial || got != want {
			t.Errorf("%q: got %+v, %v, %v", header, got, partial, err)
		}
	}
	const spaced = "bytes= 1-2 "
	if got, partial, err := oci.ParseRange(spaced, size); err != nil || !partial || got != (oci.Range{Start: 1, Length: 2}) {
		t.Errorf("%q: got %+v, %v, %v", spaced, got, partial, err)
	}
	for _, header := range []string{"bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0"} {
		if got, _, err := oci.ParseRange(header, size); !errors.Is(err, oci.ErrUnsatisfiable) {
			t.Errorf("%q: got %+v, %v", header, got, err)
		}
	}
	for _, header := range []string{
		"", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes=1-2,4-5", "items=0-1", "bytes=9223372036854775808-",
	} {
		if got, partial, err := oci.ParseRange(header, size); err != nil || partial {
			t.Errorf("%q: got %+v of the whole, %v", header, got, err)
		}
	}
	if got, partial, err := oci.ParseRange("bytes=0-", 0); err != nil || partial {
		t.Errorf("of nothing: got %+v, %v", got, err)
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
