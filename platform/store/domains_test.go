package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

const manyDomains = 100

// attach claims a host name for the service, under a token that says both.
func attach(t testing.TB, s *store.Store, service platform.ID, hostname string) platform.Domain {
	t.Helper()
	return get(s.CreateDomain(background, service, hostname, hostname+" for "+string(service), manyDomains)).or(t)
}

// proof is a check that finds the record of these claims, besides the page of
// the one that is looked at.
func proof(records ...platform.Domain) platform.DomainCheck {
	c := platform.DomainCheck{At: time.Now(), Interval: time.Hour, HTTP: true}
	for _, d := range records {
		c.TXT = append(c.TXT, d.Token)
	}
	return c
}

func failure() platform.DomainCheck {
	return platform.DomainCheck{At: time.Now(), Interval: time.Hour, Disproven: true, Err: &platform.DomainError{Code: platform.DomainNotFound, Message: "it is not there"}}
}

func judge(t testing.TB, s *store.Store, d platform.Domain, check platform.DomainCheck) platform.Domain {
	t.Helper()
	after, _ := get2(s.JudgeDomain(background, d.ID, check)).or(t)
	return after
}

func hostname(d platform.Domain) string { return d.Hostname }

func TestDomains_RoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		d := get(s.CreateDomain(t.Context(), v.ID, "shop.example.com", "sesame", manyDomains)).or(t)
		same(t, "domain", d, platform.Domain{
			ID: d.ID, ServiceID: v.ID, Hostname: "shop.example.com", Token: "sesame", Status: platform.DomainPending, CreatedAt: d.CreatedAt,
		})
		same(t, "read", get(s.Domain(t.Context(), v.ID, d.ID)).or(t), d)

		failed := judge(t, s, d, failure())
		equal(t, "status", failed.Status, platform.DomainFailed)
		equal(t, "error", *failed.LastError, platform.DomainError{Code: platform.DomainNotFound, Message: "it is not there"})
		same(t, "read", get(s.Domain(t.Context(), v.ID, d.ID)).or(t), failed)

		verified := judge(t, s, d, proof(d))
		equal(t, "status", verified.Status, platform.DomainVerified)
		same(t, "read", get(s.Domain(t.Context(), v.ID, d.ID)).or(t), verified)

		doubtful := judge(t, s, d, failure())
		equal(t, "status", doubtful.Status, platform.DomainVerified)
		same(t, "read", get(s.Domain(t.Context(), v.ID, d.ID)).or(t), doubtful)
		if doubtful.DisprovenSince == nil || doubtful.LastError == nil {
			t.Errorf("it is %+v", doubtful)
		}

		same(t, "deleted", get(s.DeleteDomain(t.Context(), v.ID, d.ID)).or(t), doubtful)
		_, err := s.Domain(t.Context(), v.ID, d.ID)
		notFound(t, err)
		_, err = s.DeleteDomain(t.Context(), v.ID, d.ID)
		notFound(t, err)
		_, _, err = s.JudgeDomain(t.Context(), d.ID, proof(d))
		notFound(t, err)
	})
}

func TestDomains_BelongToTheirService(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v, other := anyService(t, s), service(t, s, defaultProject(t, s).ID, "other")
		d := attach(t, s, v.ID, "shop.example.com")
		_, err := s.Domain(t.Context(), other.ID, d.ID)
		notFound(t, err)
		_, err = s.DeleteDomain(t.Context(), other.ID, d.ID)
		notFound(t, err)
		_, err = s.CreateDomain(t.Context(), store.NewID(), "shop.example.com", "x", manyDomains)
		notFound(t, err)
		_, err = s.CreateDomain(t.Context(), v.ID, "shop.example.com", "y", manyDomains)
		fails(t, err, platform.Conflict, "domain_exists")
		attach(t, s, other.ID, "shop.example.com")
		ok(t, s.DeleteService(t.Context(), v.ID))
		refs := get(s.AllDomains(t.Context())).or(t)
		equal(t, "left are those of", names(refs, func(d store.DomainRef) string { return string(d.ServiceID) }), string(other.ID))
	})
}

func TestDomains_AreBounded(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		errs := together(6, func(i int) error {
			_, err := s.CreateDomain(background, v.ID, fmt.Sprintf("d%d.example.com", i), fmt.Sprint(i), 4)
			return err
		})
		refused := 0
		for _, err := range errs {
			if err != nil {
				fails(t, err, platform.Conflict, "too_many_domains")
				refused++
			}
		}
		equal(t, "refused", refused, 2)
	})
}

func TestDomains_InPagesByName(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		for _, name := range []string{"c.example.com", "*.example.com", "a.example.com", "b.example.com", "a-a.example.com"} {
			attach(t, s, v.ID, name)
		}
		attach(t, s, service(t, s, defaultProject(t, s).ID, "other").ID, "d.example.com")
		var all []platform.Domain
		for page, more := (store.Page{Limit: 2}), true; more; more = page.Cursor != "" {
			var list []platform.Domain
			list, page.Cursor = get2(s.Domains(t.Context(), v.ID, page)).or(t)
			all = append(all, list...)
		}
		whole, _ := get2(s.Domains(t.Context(), v.ID, store.Page{})).or(t)
		equal(t, "in pages", names(all, hostname), names(whole, hostname))
		found := strings.Fields(names(all, hostname))
		slices.Sort(found) // PostgreSQL's order is that of its collation
		equal(t, "all of them", strings.Join(found, " "), "*.example.com a-a.example.com a.example.com b.example.com c.example.com")
		_, _, err := s.Domains(t.Context(), v.ID, store.Page{Cursor: "x"})
		fails(t, err, platform.Malformed, "bad_cursor")
	})
}

func TestDomains_AnUnverifiedClaimBlocksNobody(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		squatter, owner := anyService(t, s), service(t, s, project(t, s, "shop").ID, "site")
		first := attach(t, s, squatter.ID, "shop.example.com")
		judge(t, s, first, failure())
		d := judge(t, s, attach(t, s, owner.ID, "shop.example.com"), proof())
		equal(t, "the owner's is", d.Status, platform.DomainVerified)
		late := judge(t, s, first, proof())
		equal(t, "the squatter's is", late.LastError.Code, platform.DomainTaken)
		equal(t, "the owner's stays", get(s.Domain(t.Context(), owner.ID, d.ID)).or(t).Status, platform.DomainVerified)
	})
}

// Of many services that prove one host name at the same moment, one gets it.
func TestDomains_OneOfManyWins(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		const n = 8
		var claims []platform.Domain
		for i := range n {
			v := service(t, s, defaultProject(t, s).ID, fmt.Sprintf("s%d", i))
			claims = append(claims, attach(t, s, v.ID, "shop.example.com"))
		}
		after := make([]platform.Domain, n)
		for _, err := range together(n, func(i int) (err error) {
			after[i], _, err = s.JudgeDomain(background, claims[i].ID, proof())
			return err
		}) {
			ok(t, err)
		}
		won := 0
		for _, d := range after {
			if d.Status == platform.DomainVerified {
				won++
			} else if d.LastError.Code != platform.DomainTaken {
				t.Errorf("a loser is told %+v", d.LastError)
			}
		}
		equal(t, "winners", won, 1)
	})
}

func TestDomains_DNSTakesOver(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		holder, owner := anyService(t, s), service(t, s, project(t, s, "shop").ID, "site")
		held := judge(t, s, attach(t, s, holder.ID, "shop.example.com"), proof())
		claim := attach(t, s, owner.ID, "shop.example.com")
		refused := judge(t, s, claim, proof(claim, held))
		equal(t, "while the holder's record is there", refused.LastError.Code, platform.DomainTaken)
		taken, lost := get2(s.JudgeDomain(t.Context(), claim.ID, proof(claim))).or(t)
		equal(t, "the owner's is", taken.Status, platform.DomainVerified)
		equal(t, "lost", names(lost, func(d platform.Domain) string { return string(d.ID) }), string(held.ID))
		was := get(s.Domain(t.Context(), holder.ID, held.ID)).or(t)
		equal(t, "the holder's is", was.Status, platform.DomainFailed)
		equal(t, "because", was.LastError.Code, platform.DomainTakenOver)
	})
}

func TestDomains_NamesBelowAnotherProjects(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		shop := project(t, s, "shop")
		owner, sister, stranger := service(t, s, shop.ID, "site"), service(t, s, shop.ID, "api"), anyService(t, s)
		wild := attach(t, s, owner.ID, "*.example.com")
		equal(t, "the wildcard is", judge(t, s, wild, proof(wild)).Status, platform.DomainVerified)
		evil := attach(t, s, stranger.ID, "evil.example.com")
		equal(t, "a stranger's, by HTTP", judge(t, s, evil, proof()).LastError.Code, platform.DomainNeedsDNS)
		deep := attach(t, s, stranger.ID, "a.b.c.example.com")
		equal(t, "a deep one of a stranger's, by HTTP", judge(t, s, deep, proof()).LastError.Code, platform.DomainNeedsDNS)
		equal(t, "a sister's, by HTTP", judge(t, s, attach(t, s, sister.ID, "evil.example.com"), proof()).Status, platform.DomainVerified)
		equal(t, "a stranger's, by DNS", judge(t, s, deep, proof(deep)).Status, platform.DomainVerified)
	})
}

func TestDomains_AllAndDue(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		now := time.Now()
		var want []string
		for i := range 6 {
			d := attach(t, s, v.ID, fmt.Sprintf("d%d.example.com", i))
			if i%2 == 0 {
				check := proof()
				check.At, check.Interval = now, time.Duration(10-i)*time.Minute
				judge(t, s, d, check)
				want = append(want, d.Hostname)
			}
		}
		refs := get(s.AllDomains(t.Context())).or(t)
		equal(t, "all", len(refs), 6)
		var verified []string
		for _, ref := range refs {
			if ref.Verified {
				verified = append(verified, ref.Hostname)
			}
			equal(t, "token", ref.Token, ref.Hostname+" for "+string(v.ID))
		}
		slices.Sort(verified)
		equal(t, "verified", strings.Join(verified, " "), strings.Join(want, " "))

		due := func(after time.Duration, limit int) string {
			at := now.Add(after)
			return names(get(s.DueDomains(t.Context(), at, at.Add(time.Hour), limit)).or(t), hostname)
		}
		equal(t, "due at once", due(time.Minute, 10), "")
		equal(t, "due later", due(time.Hour, 10), "d4.example.com d2.example.com d0.example.com")
		equal(t, "the first of them", due(time.Hour, 1), "d4.example.com")
		equal(t, "due in between", due(7*time.Minute, 10), "d4.example.com")
		// A clock that was an hour ahead, or a day, said when.
		equal(t, "due once it is right", due(-time.Hour+7*time.Minute, 10), "d2.example.com d0.example.com")
		equal(t, "due once it is right", due(-24*time.Hour, 2), "d4.example.com d2.example.com")
	})
}

// A deleted service and a judged domain never meet halfway.
func TestDomains_DeletedWhileJudged(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		for i := range 10 {
			v := service(t, s, defaultProject(t, s).ID, fmt.Sprintf("s%d", i))
			d := attach(t, s, v.ID, "shop.example.com")
			errs := together(2, func(i int) error {
				if i == 0 {
					return s.DeleteService(background, v.ID)
				}
				_, _, err := s.JudgeDomain(background, d.ID, proof())
				return err
			})
			ok(t, errs[0])
			if errs[1] != nil {
				notFound(t, errs[1])
			}
		}
		equal(t, "left", len(get(s.AllDomains(t.Context())).or(t)), 0)
	})
}

func TestDomains_StrangeIDs(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		v := anyService(t, s)
		for _, id := range []platform.ID{"", "x\x00y", "\xff", "'; DROP TABLE domains; --"} {
			_, err := s.Domain(t.Context(), v.ID, id)
			notFound(t, err)
			_, err = s.DeleteDomain(t.Context(), v.ID, id)
			notFound(t, err)
		}
	})
}
