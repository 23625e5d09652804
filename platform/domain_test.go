package platform_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
)

const day = 24 * time.Hour

var checkedAt = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func claimTo(hostname, id string) platform.Domain {
	return platform.Domain{ID: platform.ID(id), ServiceID: platform.ID("service-" + id), Hostname: hostname, Token: "token-" + id, Status: platform.DomainPending}
}

func verified(d platform.Domain, at time.Time) platform.Domain {
	next := at.Add(day)
	d.Status, d.VerifiedAt, d.LastCheckAt, d.ProvenAt, d.NextCheckAt = platform.DomainVerified, &at, &at, &at, &next
	return d
}

func found(at time.Time, http bool, txt ...string) platform.DomainCheck {
	return platform.DomainCheck{At: at, Interval: day, HTTP: http, TXT: txt}
}

func missed(at time.Time, disproven bool, txt ...string) platform.DomainCheck {
	return platform.DomainCheck{At: at, Interval: day, TXT: txt, Disproven: disproven, Err: &platform.DomainError{Code: platform.DomainNotFound, Message: "why"}}
}

// Who gets a host name, by what was proven and who has it or what is above it.
func TestWhoGetsAHostname(t *testing.T) {
	const name = "shop.example.com"
	rival := func(hostname, project string) platform.Rival {
		return platform.Rival{Domain: verified(claimTo(hostname, "rival"), checkedAt.Add(-day)), ProjectID: platform.ID(project)}
	}
	for about, c := range map[string]struct {
		hostname string
		check    platform.DomainCheck
		rivals   []platform.Rival
		code     string // of the failure; empty: verified
		loses    bool   // the rival does
	}{
		"by HTTP":                              {check: found(checkedAt, true)},
		"by DNS":                               {check: found(checkedAt, false, "other", "token-me")},
		"by neither":                           {check: missed(checkedAt, true, "other"), code: platform.DomainNotFound},
		"with another's token":                 {check: missed(checkedAt, true, "token-rival"), code: platform.DomainNotFound},
		"a wildcard by HTTP":                   {hostname: "*.example.com", check: found(checkedAt, true), code: platform.DomainUnreachable},
		"a wildcard by DNS":                    {hostname: "*.example.com", check: found(checkedAt, false, "token-me")},
		"taken, by HTTP":                       {check: found(checkedAt, true), rivals: []platform.Rival{rival(name, "mine")}, code: platform.DomainTaken},
		"taken, by DNS":                        {check: found(checkedAt, false, "token-me"), rivals: []platform.Rival{rival(name, "other")}, loses: true},
		"taken, by both":                       {check: found(checkedAt, true, "token-me"), rivals: []platform.Rival{rival(name, "other")}, loses: true},
		"taken, by DNS, and so has the holder": {check: found(checkedAt, true, "token-me", "token-rival"), rivals: []platform.Rival{rival(name, "other")}, code: platform.DomainTaken},
		"below another project's, by HTTP":     {check: found(checkedAt, true), rivals: []platform.Rival{rival("example.com", "other")}, code: platform.DomainNeedsDNS},
		"below another project's wildcard, by HTTP":   {check: found(checkedAt, true), rivals: []platform.Rival{rival("*.example.com", "other")}, code: platform.DomainNeedsDNS},
		"below another project's, by DNS":             {check: found(checkedAt, false, "token-me"), rivals: []platform.Rival{rival("*.example.com", "other")}},
		"below one's own project's, by HTTP":          {check: found(checkedAt, true), rivals: []platform.Rival{rival("*.example.com", "mine")}},
		"taken, and below another project's, by DNS":  {check: found(checkedAt, false, "token-me"), rivals: []platform.Rival{rival("example.com", "third"), rival(name, "other")}, loses: true},
		"Denia's own by now, by DNS":                  {check: platform.DomainCheck{At: checkedAt, Interval: day, TXT: []string{"token-me"}, Reserved: true}, code: platform.DomainNowReserved},
		"taken, and not proven":                       {check: missed(checkedAt, true), rivals: []platform.Rival{rival(name, "other")}, code: platform.DomainNotFound},
		"with an empty TXT record and an empty token": {check: missed(checkedAt, true, ""), code: platform.DomainNotFound},
	} {
		t.Run(about, func(t *testing.T) {
			if c.hostname == "" {
				c.hostname = name
			}
			got, lost := claimTo(c.hostname, "me").Judge(c.check, "mine", c.rivals)
			if (got.Status == platform.DomainVerified) != (c.code == "") {
				t.Fatalf("it is %s: %+v", got.Status, got.LastError)
			}
			if c.code != "" && (got.Status != platform.DomainFailed || got.LastError.Code != c.code || got.VerifiedAt != nil) {
				t.Errorf("it is %s since %v: %+v", got.Status, got.VerifiedAt, got.LastError)
			}
			if c.code == "" && (got.LastError != nil || !got.VerifiedAt.Equal(checkedAt) || !got.NextCheckAt.Equal(checkedAt.Add(day))) {
				t.Errorf("verified as %+v", got)
			}
			if (len(lost) == 1) != c.loses {
				t.Fatalf("lost to it are %+v", lost)
			}
			if c.loses && (lost[0].Hostname != c.hostname || lost[0].Status != platform.DomainFailed || lost[0].LastError.Code != platform.DomainTakenOver || lost[0].VerifiedAt != nil) {
				t.Errorf("the loser is %+v", lost[0])
			}
			if got.LastCheckAt == nil || !got.LastCheckAt.Equal(checkedAt) {
				t.Errorf("checked at %v", got.LastCheckAt)
			}
		})
	}
}

// A verified domain is lost only when something else was in the proof's place
// for three days, or nothing could be found out for thirty. Days in which Denia
// did not run are none of them.
func TestAVerifiedDomainOutlivesHiccups(t *testing.T) {
	type step struct {
		after time.Duration // all checks that are due in it find the same
		what  string        // ok, wrong (disproven), dark (nothing could be found out) or off (none are made)
		want  platform.DomainStatus
	}
	const up, down = platform.DomainVerified, platform.DomainFailed
	for about, steps := range map[string][]step{
		"something else is there":            {{day, "wrong", up}, {2 * day, "wrong", up}, {day, "wrong", down}},
		"it came back":                       {{day, "wrong", up}, {2 * day, "wrong", up}, {time.Hour, "ok", up}, {2 * day, "wrong", up}, {day, "wrong", up}, {day, "wrong", down}},
		"the uplink is gone for four weeks":  {{7 * day, "dark", up}, {7 * day, "dark", up}, {14 * day, "dark", up}, {time.Hour, "wrong", up}, {time.Hour, "ok", up}},
		"the uplink is gone for good":        {{day, "dark", up}, {28 * day, "dark", up}, {day, "dark", down}},
		"wrong once, then nothing found out": {{day, "wrong", up}, {10 * day, "dark", up}, {time.Hour, "wrong", down}},
		"Denia was off, then so is DNS":      {{100 * day, "off", up}, {0, "dark", up}, {29 * day, "dark", up}, {day, "dark", down}},
		"DNS was, then Denia":                {{10 * day, "dark", up}, {100 * day, "off", up}, {19 * day, "dark", up}, {day, "dark", down}},
		"Denia was off, then it is wrong":    {{day, "wrong", up}, {5 * day, "off", up}, {0, "wrong", up}, {2 * day, "wrong", up}, {day, "wrong", down}},
		"Denia was off for a night":          {{2 * day, "wrong", up}, {day, "off", up}, {day, "wrong", down}},
		"Denia was off every other day":      {{day, "dark", up}, {50 * day, "off", up}, {0, "dark", up}, {50 * day, "off", up}, {0, "dark", up}, {time.Hour, "ok", up}},
	} {
		t.Run(about, func(t *testing.T) {
			d, at := verified(claimTo("shop.example.com", "me"), checkedAt), checkedAt
			look := func(what string) {
				check := map[string]platform.DomainCheck{"ok": found(at, true), "wrong": missed(at, true), "dark": missed(at, false)}[what]
				d, _ = d.Judge(check, "mine", nil)
			}
			for i, s := range steps {
				end := at.Add(s.after)
				if s.what == "off" {
					at = end
					continue
				}
				for d.NextCheckAt != nil && d.NextCheckAt.Before(end) {
					if d.NextCheckAt.After(at) {
						at = *d.NextCheckAt
					}
					if look(s.what); d.Status != up {
						t.Fatalf("in step %d it is %s %s before its end", i, d.Status, end.Sub(at))
					}
				}
				at = end
				look(s.what)
				if d.Status != s.want {
					t.Fatalf("after step %d it is %s", i, d.Status)
				}
				switch {
				case s.want == down:
					if d.VerifiedAt != nil || d.NextCheckAt != nil || d.LastError == nil {
						t.Errorf("lost as %+v", d)
					}
				case s.what == "ok":
					if d.LastError != nil || !d.NextCheckAt.Equal(at.Add(day)) {
						t.Errorf("proven as %+v", d)
					}
				default:
					if d.LastError == nil || !d.NextCheckAt.Equal(at.Add(time.Hour)) || !d.VerifiedAt.Equal(checkedAt) {
						t.Errorf("after step %d: %+v", i, d)
					}
				}
			}
		})
	}
}

// A clock that was a year ahead for one check neither costs a domain nor keeps
// one that is not proven any more for a year.
func TestAClockThatWasWrong(t *testing.T) {
	for about, c := range map[string]struct {
		ahead, then func(at time.Time) platform.DomainCheck
		days        int // until it is lost
	}{
		"proven, then nothing found out": {func(at time.Time) platform.DomainCheck { return found(at, true) }, func(at time.Time) platform.DomainCheck { return missed(at, false) }, 30},
		"proven, then wrong":             {func(at time.Time) platform.DomainCheck { return found(at, true) }, func(at time.Time) platform.DomainCheck { return missed(at, true) }, 3},
		"nothing found out":              {func(at time.Time) platform.DomainCheck { return missed(at, false) }, func(at time.Time) platform.DomainCheck { return missed(at, false) }, 30},
		"wrong":                          {func(at time.Time) platform.DomainCheck { return missed(at, true) }, func(at time.Time) platform.DomainCheck { return missed(at, true) }, 3},
	} {
		t.Run(about, func(t *testing.T) {
			d := verified(claimTo("shop.example.com", "me"), checkedAt)
			d, _ = d.Judge(c.ahead(checkedAt.AddDate(1, 0, 0)), "mine", nil)
			at := checkedAt.Add(time.Hour) // it is right again
			for days := range c.days + 1 {
				if d.Status != platform.DomainVerified {
					t.Fatalf("after %d days it is %s", days, d.Status)
				}
				d, _ = d.Judge(c.then(at.Add(time.Duration(days)*day)), "mine", nil)
			}
			if d.Status != platform.DomainFailed {
				t.Errorf("after %d days it is %s", c.days, d.Status)
			}
		})
	}
}

// Whatever is found in whatever order, there is never more than one verified
// claim to a host name, and one without a proof never becomes verified.
func TestOneClaimIsVerified(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	names := []string{"example.com", "a.example.com", "*.example.com"}
	for range 500 {
		var all []platform.Domain
		for i := range 6 {
			all = append(all, claimTo(names[i%len(names)], string(rune('a'+i))))
		}
		project := func(d platform.Domain) platform.ID { return d.ID[:1] }
		at := checkedAt
		for range 60 {
			at = at.Add(time.Duration(random.Int64N(int64(5 * day))))
			i := random.IntN(len(all))
			check := platform.DomainCheck{At: at, Interval: day, HTTP: random.IntN(2) == 0, Disproven: random.IntN(2) == 0}
			for _, d := range all {
				if random.IntN(4) == 0 {
					check.TXT = append(check.TXT, d.Token)
				}
			}
			var rivals []platform.Rival
			for _, d := range all {
				if d.Status == platform.DomainVerified {
					rivals = append(rivals, platform.Rival{Domain: d, ProjectID: project(d)})
				}
			}
			before := all[i].Status
			var lost []platform.Domain
			all[i], lost = all[i].Judge(check, project(all[i]), rivals)
			proof := check.HTTP && !platform.IsWildcard(all[i].Hostname)
			for _, value := range check.TXT {
				proof = proof || value == all[i].Token
			}
			if before != platform.DomainVerified && all[i].Status == platform.DomainVerified && !proof {
				t.Fatalf("verified without a proof: %+v", all[i])
			}
			for _, loser := range lost {
				for j := range all {
					if all[j].ID == loser.ID {
						all[j] = loser
					}
				}
			}
			held := map[string]int{}
			for _, d := range all {
				if d.Status == platform.DomainVerified {
					held[d.Hostname]++
				}
			}
			for name, n := range held {
				if n > 1 {
					t.Fatalf("%d verified claims to %s", n, name)
				}
			}
		}
	}
}
