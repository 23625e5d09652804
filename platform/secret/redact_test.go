package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/denia-paas/denia/platform/secret"
)

func TestRedactor_HidesEveryForm(t *testing.T) {
	for _, value := range []string{"pass", "p@ss word/1?<&>", "a\"b\\c\tdé", "k+/=~._-!*'()"} {
		r := secret.NewRedactor([]string{value})
		quoted, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		for name, form := range map[string]string{
			"raw":              value,
			"base64":           base64.StdEncoding.EncodeToString([]byte(value)),
			"base64 raw":       base64.RawStdEncoding.EncodeToString([]byte(value)),
			"base64 url":       base64.URLEncoding.EncodeToString([]byte(value)),
			"base64 url raw":   base64.RawURLEncoding.EncodeToString([]byte(value)),
			"query":            url.QueryEscape(value),
			"query lower case": strings.ToLower(url.QueryEscape("P")) + url.QueryEscape(value),
			"path":             url.PathEscape(value),
			"json":             string(quoted[1 : len(quoted)-1]),
			"go":               strings.Trim(strconv.Quote(value), `"`),
		} {
			if got := r.String("before " + form + " after"); strings.Contains(got, form) || !strings.Contains(got, "***") {
				t.Errorf("%s of %q stays readable: %q", name, value, got)
			}
		}
	}
}

func TestRedactor_LeavesTheRestAlone(t *testing.T) {
	r := secret.NewRedactor([]string{"", "a", "abc", "s3cret"})
	const text = "a abc abcd s3cre t S3CRET"
	if got := r.String(text); got != text {
		t.Errorf("%q became %q", text, got)
	}
	if got, want := r.String("x=s3cret;"), "x=***;"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRedactor_NilAndEmptyHideNothing(t *testing.T) {
	var none *secret.Redactor
	for _, r := range []*secret.Redactor{none, secret.NewRedactor(nil), secret.NewRedactor([]string{"abc"})} {
		if got := r.String("plain"); got != "plain" {
			t.Errorf("got %q", got)
		}
		var out bytes.Buffer
		w := r.Writer(&out)
		long := strings.Repeat("x", 200_000)
		writeAll(t, w, "plain\nrest"+long)
		if got := out.String(); got != "plain\nrest"+long {
			t.Errorf("got %d bytes", len(got))
		}
	}
}

func TestRedactor_PrefersTheLongerValue(t *testing.T) {
	r := secret.NewRedactor([]string{"abcd", "abcdefgh"})
	if got, want := r.String("abcdefgh abcd"), "*** ***"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRedactor_InsideOfOtherBase64(t *testing.T) {
	const value = "dn_api_0123456789"
	r := secret.NewRedactor([]string{value})
	for _, user := range []string{"", "u", "us", "use"} {
		header := base64.StdEncoding.EncodeToString([]byte(user + ":" + value + "\n"))
		got := r.String("Authorization: Basic " + header)
		_, shown, _ := strings.Cut(got, "Basic ")
		before, after, hidden := strings.Cut(shown, "***")
		if !hidden || len(before)+len(after) > 12 {
			t.Errorf("of user %q's header stays %q", user, got)
		}
	}
}

func TestRedactor_ValuesOfSeveralLines(t *testing.T) {
	value := "-----BEGIN KEY-----\nMIIBVgIBADANBgkq\r\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
	r := secret.NewRedactor([]string{value, "s3cr\n"})
	var out bytes.Buffer
	writeAll(t, r.Writer(&out), "cat key\n"+value+"echo s3cr done\n")
	got := out.String()
	for _, hidden := range []string{"MIIBVgIBADANBgkq", "hkiG9w0BAQEFAASC", "s3cr"} {
		if strings.Contains(got, hidden) {
			t.Errorf("%q stays readable in %q", hidden, got)
		}
	}
	if !strings.HasPrefix(got, "cat key\n") || !strings.HasSuffix(got, " done\n") {
		t.Errorf("other text was changed: %q", got)
	}
}

func writeAll(t *testing.T, w interface {
	Write([]byte) (int, error)
	Close() error
}, text string) {
	t.Helper()
	if n, err := w.Write([]byte(text)); err != nil || n != len(text) {
		t.Fatalf("Write gave %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWriter_HidesValuesSplitOverWrites(t *testing.T) {
	values := []string{"correct horse", "battery", "abcd", "abcdef"}
	r := secret.NewRedactor(values)
	text := strings.Repeat("one correct horse two\nbattery\rabcdefabcd tail ", 40)
	want := r.String(text)
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		var out bytes.Buffer
		w := r.Writer(&out)
		for rest := text; rest != ""; {
			n := min(1+random.IntN(9), len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != want {
			t.Fatalf("seed %d: got %q, want %q", seed, got, want)
		}
	}
}

func TestWriter_PassesLinesOnAtOnce(t *testing.T) {
	var out bytes.Buffer
	w := secret.NewRedactor([]string{"s3cret"}).Writer(&out)
	for _, step := range []struct{ write, sees string }{
		{"line s3", ""},
		{"cret\npart", "line ***\n"},
		{"ial 10%\r", "line ***\npartial 10%\r"},
		{"rest", "line ***\npartial 10%\r"},
	} {
		if _, err := w.Write([]byte(step.write)); err != nil {
			t.Fatal(err)
		}
		if out.String() != step.sees {
			t.Fatalf("after %q: %q, want %q", step.write, out.String(), step.sees)
		}
	}
	if err := w.Close(); err != nil || !strings.HasSuffix(out.String(), "\rrest") {
		t.Errorf("Close left %q, %v", out.String(), err)
	}
}

func TestWriter_EndlessLineTakesBoundedMemory(t *testing.T) {
	for name, line := range map[string]string{
		"values all over":  strings.Repeat("x s3cretvalue y", 20_000),
		"nothing but one":  strings.Repeat("s3cretvalue", 20_000),
		"overlapping ones": strings.Repeat("a", 300_000),
	} {
		t.Run(name, func(t *testing.T) {
			r := secret.NewRedactor([]string{"s3cretvalue", "s3cret", "aaaa"})
			var out bytes.Buffer
			w := r.Writer(&out)
			for i := 0; i < len(line); i += 997 {
				if _, err := w.Write([]byte(line[i:min(i+997, len(line))])); err != nil {
					t.Fatal(err)
				}
				// No value is longer than four times its stars.
				if i > 140_000 && out.Len() < (i-70_000)/4 {
					t.Fatalf("after %d bytes only %d were passed on", i, out.Len())
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(out.String(), "s3cret") || strings.Contains(out.String(), "aaaa") {
				t.Error("a value that lay across a cut stays readable")
			}
			if name != "overlapping ones" && out.String() != r.String(line) {
				t.Error("cutting the line changed the text")
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestWriter_ReportsErrors(t *testing.T) {
	full := errors.New("disk full")
	w := secret.NewRedactor([]string{"s3cret"}).Writer(failing{full})
	if _, err := w.Write([]byte("line\n")); !errors.Is(err, full) {
		t.Errorf("Write gave %v", err)
	}
	if _, err := w.Write([]byte("more\n")); !errors.Is(err, full) {
		t.Errorf("the next Write gave %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("Close gave %v", err)
	}
}

func TestWriter_ConcurrentUse(t *testing.T) {
	var out bytes.Buffer
	w := secret.NewRedactor([]string{"s3cret"}).Writer(&out)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if _, err := w.Write([]byte("a s3cret line\n")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("a *** line\n", 800); out.String() != want {
		t.Error("lines of concurrent writers were mixed up")
	}
}

func FuzzWriter(f *testing.F) {
	f.Add("s3cret", "x s3cret\ny s3cre", uint64(3))
	f.Add("aaaa", "aaaaaaaa", uint64(1))
	f.Add("a b\n", "a b\na b", uint64(2))
	f.Fuzz(func(t *testing.T, value, text string, seed uint64) {
		if strings.ContainsAny(value, "\r\n*") {
			return // of several lines, or made of what it is hidden by: not the same in pieces
		}
		r := secret.NewRedactor([]string{value})
		var out bytes.Buffer
		w := r.Writer(&out)
		random := rand.New(rand.NewPCG(seed, 1))
		for rest := []byte(text); len(rest) > 0; {
			n := 1 + random.IntN(len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, want := out.String(), r.String(text); got != want {
			t.Fatalf("in pieces %q, at once %q", got, want)
		}
	})
}
