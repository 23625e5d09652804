package caddymodule

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCaddyfileOfDomains(t *testing.T) {
	app, err := adapt(t, `denia {
		domains {
			allow_private
			resolver 127.0.0.1:5353
			recheck 12h
			challenge_port 8080
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(app.Domains)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"allow_private":true,"resolver":"127.0.0.1:5353","recheck":43200000000000,"challenge_port":8080}`; string(got) != want {
		t.Errorf("adapted to %s, want %s", got, want)
	}
	for line, says := range map[string]string{
		"allow_private yes":          "argument",
		"resolver dns.example.com":   "resolver",
		"resolver 127.0.0.1":         "resolver",
		"resolver":                   "argument",
		"recheck never":              "recheck",
		"challenge_port 70000":       "challenge_port",
		"challenge_port http":        "challenge_port",
		"trust_everybody":            "trust_everybody",
		"resolver 127.0.0.1:53 more": "argument",
	} {
		if _, err := adapt(t, "denia {\n domains {\n "+line+"\n }\n}"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestChallengesGoBeforeEverything(t *testing.T) {
	for path, is := range map[string]bool{
		"/.well-known/denia-challenge/x": true, "/.well-known/denia-challenge/": true,
		"/.well-known/denia-challenge": false, "/.well-known/acme-challenge/x": false, "/": false, "": false, "/a/.well-known/denia-challenge/x": false,
	} {
		if isChallenge(path) != is {
			t.Errorf("%q: %v", path, !is)
		}
	}
}
