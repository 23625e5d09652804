package platform_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/denia-paas/denia/platform"
)

func TestParseHostname(t *testing.T) {
	label := strings.Repeat("a", 63)
	longest := strings.Join([]string{label, label, label, strings.Repeat("a", 61)}, ".")
	for text, want := range map[string]string{
		"shop.example.com":               "shop.example.com",
		"Shop.EXAMPLE.com.":              "shop.example.com",
		"bücher.example":                 "xn--bcher-kva.example",
		"BÜCHER.example":                 "xn--bcher-kva.example",
		"xn--bcher-kva.example":          "xn--bcher-kva.example",
		"XN--BCHER-KVA.example":          "xn--bcher-kva.example",
		"straße.example":                 "xn--strae-oqa.example",
		"例え.テスト":                         "xn--r8jz45g.xn--zckzah",
		"shop。example。com":               "shop.example.com",
		"ｓｈｏｐ.example.com":               "shop.example.com",
		"*.example.com":                  "*.example.com",
		"*.Bücher.example":               "*.xn--bcher-kva.example",
		"1.2.3.example":                  "1.2.3.example",
		"a-1.b--c.example":               "a-1.b--c.example",
		label + ".example":               label + ".example",
		longest:                          longest,
		longest + ".":                    longest,
		longest + "a":                    "",
		"*." + longest:                   "",
		label + "a.example":              "",
		strings.Repeat("ü", 60) + ".com": "",
		strings.Repeat("a.", 3000) + "a": "",
		"":                               "",
		".":                              "",
		"*.":                             "",
		"*":                              "",
		"*.com":                          "",
		"localhost":                      "",
		"com.":                           "",
		"example..com":                   "",
		".example.com":                   "",
		"example.com..":                  "",
		"-a.example.com":                 "",
		"a-.example.com":                 "",
		"a_b.example.com":                "",
		"a.*.example.com":                "",
		"*a.example.com":                 "",
		"*.*.example.com":                "",
		"**.example.com":                 "",
		"http://example.com":             "",
		"example.com:80":                 "",
		"example.com/path":               "",
		"user@example.com":               "",
		"exam ple.com":                   "",
		"example.com\n":                  "",
		"exam\x00ple.com":                "",
		"exam\xffple.com":                "",
		"127.0.0.1":                      "",
		"127.1":                          "",
		"example.0x7f":                   "",
		"example.0x":                     "",
		"1.2.3.4.":                       "",
		"１２７.0.0.1":                      "",
		"*.0.0.1":                        "",
		"[::1]":                          "",
		"::1":                            "",
		"[::1]:80":                       "",
		"127.0.0.1:80":                   "",
		"xn--a.example.com":              "", // no Punycode that means anything
		"xn--.example.com":               "",
		"\u200dab.example.com":           "", // a joiner where none may be
		"אa.example.com":                 "", // both directions in one label
	} {
		got, err := platform.ParseHostname(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.80q: %q, %v; want %q", text, got, err, want)
		}
		if err != nil && (platform.KindOf(err) != platform.Invalid || !slices.Equal(fieldsOf(err), []string{"hostname"})) {
			t.Errorf("%.80q: the error is %v with the fields %v", text, err, fieldsOf(err))
		}
	}
}

// Whatever is put in, what comes out is a name of RFC 1123, and is read as
// itself.
func TestParsedHostnamesAreNamesAndStayTheSame(t *testing.T) {
	alphabet := []rune("abcxyzABC019-._*xn--:/@ üßåﬁ例。．ａא١\u00ad\u200c\u200d\x00")
	random := rand.New(rand.NewPCG(1, 2))
	parsed := 0
	for range 50_000 {
		var text strings.Builder
		for range 1 + random.IntN(12) {
			text.WriteRune(alphabet[random.IntN(len(alphabet))])
		}
		text.WriteString(".example")
		name, err := platform.ParseHostname(text.String())
		if err != nil {
			continue
		}
		parsed++
		checkHostname(t, text.String(), name)
	}
	if parsed < 1000 {
		t.Errorf("only %d of the texts were names: the test says little", parsed)
	}
}

func FuzzParseHostname(f *testing.F) {
	for _, seed := range []string{"shop.example.com", "*.bücher.example.", "xn--bcher-kva.example", "127.0.0.1", "a..b", "例え。テスト"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if name, err := platform.ParseHostname(text); err == nil {
			checkHostname(t, text, name)
		}
	})
}

func checkHostname(t *testing.T, text, name string) {
	t.Helper()
	if again, err := platform.ParseHostname(name); err != nil || again != name {
		t.Fatalf("%q is read as %q, and that as %q, %v", text, name, again, err)
	}
	if len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.*") != "" {
		t.Fatalf("%q is read as %q", text, name)
	}
	for _, label := range strings.Split(strings.TrimPrefix(name, "*."), ".") {
		if len(label) < 1 || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") || strings.Contains(label, "*") {
			t.Fatalf("%q is read as %q, with the label %q", text, name, label)
		}
	}
}

func TestAncestors(t *testing.T) {
	for name, want := range map[string]string{
		"example.com":       "[]",
		"*.example.com":     "[]",
		"a.example.com":     "[example.com *.example.com]",
		"*.a.example.com":   "[example.com *.example.com]",
		"b.a.example.co.uk": "[a.example.co.uk *.a.example.co.uk example.co.uk *.example.co.uk co.uk *.co.uk]",
	} {
		if got := fmt.Sprint(platform.Ancestors(name)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestReservedHostnames(t *testing.T) {
	const base, control = "apps.example.com", "denia.example.org"
	for name, reserved := range map[string]bool{
		"apps.example.com":        true,
		"web.apps.example.com":    true,
		"a.web.apps.example.com":  true,
		"*.apps.example.com":      true,
		"*.web.apps.example.com":  true,
		"*.example.com":           true, // stands for the base domain
		"denia.example.org":       true,
		"*.example.org":           true, // stands for the control domain
		"example.com":             false,
		"www.example.com":         false,
		"myapps.example.com":      false,
		"apps.example.com.evil.x": false,
		"sub.denia.example.org":   false,
		"*.denia.example.org":     false,
		"*.org.example":           false,
	} {
		if err := platform.CheckReserved(name, base, control); (err != nil) != reserved || err != nil && platform.CodeOf(err) != "hostname_reserved" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"a.localhost", "*.a.localhost"} {
		if platform.CheckReserved(name, "localhost", "") == nil {
			t.Errorf("%s below localhost is free", name)
		}
	}
	if err := platform.CheckReserved("a.example.com", "", ""); err != nil {
		t.Errorf("nothing is reserved: %v", err)
	}
}
