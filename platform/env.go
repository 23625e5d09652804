package platform

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// MaxEnvBytes bounds the keys and values of one Env together.
const MaxEnvBytes = 64 << 10

// Env is a set of environment variables.
type Env map[string]string

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (e Env) validate(at string, f *fields) {
	total := 0
	for _, key := range slices.Sorted(maps.Keys(e)) {
		total += len(key) + len(e[key])
		if !envKey.MatchString(key) {
			f.add(at, "bad_key", "key %q must match [A-Za-z_][A-Za-z0-9_]*", key)
		}
		if strings.ContainsRune(e[key], 0) {
			f.add(at+"."+key, "bad_value", "must not hold a NUL byte")
		}
	}
	if total > MaxEnvBytes {
		f.add(at, "too_large", "is %d bytes in all; the limit is %d", total, MaxEnvBytes)
	}
}

// Redact returns e with every value hidden and every key kept.
func (e Env) Redact() Env {
	if e == nil {
		return nil
	}
	hidden := make(Env, len(e))
	for key := range e {
		hidden[key] = Redacted
	}
	return hidden
}

// Restore returns e with each Redacted value replaced by what stored holds
// under the same key, so that an object read by an API client can be written
// back. A Redacted value with no stored counterpart stays as it is.
func (e Env) Restore(stored Env) Env {
	if e == nil {
		return nil
	}
	restored := maps.Clone(e)
	for key, value := range e {
		if old, ok := stored[key]; ok && value == Redacted {
			restored[key] = old
		}
	}
	return restored
}

// MergeEnv lays later sets over earlier ones.
func MergeEnv(sets ...Env) Env {
	merged := Env{}
	for _, set := range sets {
		maps.Copy(merged, set)
	}
	return merged
}
