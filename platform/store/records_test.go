package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

func TestAudit_NewestFirstInPages(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		p, q := store.NewID(), store.NewID()
		start := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
		for i := range 6 {
			entry := platform.AuditEntry{
				At:      start.Add(time.Duration(i/3) * time.Second), // some at the same time
				ActorID: "a", Actor: "ann", TokenID: "t", RemoteIP: "192.0.2.1", Action: fmt.Sprint(i),
				ProjectID: []platform.ID{p, q, ""}[i%3], ResourceID: "r", Status: 201, Code: "c", RequestID: "q",
			}
			ok(t, s.AppendAudit(t.Context(), entry))
		}
		action := func(e platform.AuditEntry) string { return e.Action }
		var all []platform.AuditEntry
		for page, more := (store.Page{Limit: 2}), true; more; more = page.Cursor != "" {
			var list []platform.AuditEntry
			list, page.Cursor = get2(s.Audit(t.Context(), store.AuditFilter{All: true}, page)).or(t)
			ok(t, s.AppendAudit(t.Context(), platform.AuditEntry{Action: "newer"})) // shifts nothing
			all = append(all, list...)
		}
		equal(t, "entries", names(all, action), "5 4 3 2 1 0")
		same(t, "entry", all[5], platform.AuditEntry{
			ID: all[5].ID, At: start, ActorID: "a", Actor: "ann", TokenID: "t", RemoteIP: "192.0.2.1", Action: "0",
			ProjectID: p, ResourceID: "r", Status: 201, Code: "c", RequestID: "q",
		})
		list, _ := get2(s.Audit(t.Context(), store.AuditFilter{Projects: []platform.ID{p, q}}, store.Page{})).or(t)
		equal(t, "of two projects", names(list, action), "4 3 1 0")
		list, _ = get2(s.Audit(t.Context(), store.AuditFilter{}, store.Page{})).or(t)
		equal(t, "of none", len(list), 0)
		ok(t, s.TrimAudit(t.Context(), start.Add(time.Second)))
		list, _ = get2(s.Audit(t.Context(), store.AuditFilter{Projects: []platform.ID{p, q}}, store.Page{})).or(t)
		equal(t, "after the trim", names(list, action), "4 3")
	})
}

func TestAudit_TakesWhatStrangersSend(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		ok(t, s.AppendAudit(t.Context(), platform.AuditEntry{Actor: "x\x00\xff", Action: strings.Repeat("é", 10_000), Status: 401}))
		list, _ := get2(s.Audit(t.Context(), store.AuditFilter{All: true}, store.Page{})).or(t)
		equal(t, "actor", list[0].Actor, "x\uFFFD\uFFFD")
		equal(t, "action", list[0].Action, strings.Repeat("é", 512))
		if list[0].At.IsZero() || list[0].ID == "" {
			t.Error("it has no time or id")
		}
	})
}

func TestIdempotency_SameKeySameReply(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		now := time.Now()
		reserve := func(scope, key, body string, at time.Time) (*store.StoredReply, error) {
			return s.ReserveIdempotency(context.Background(), scope, key, hash(body), at)
		}
		fresh := func(reply *store.StoredReply, err error) {
			t.Helper()
			ok(t, err)
			if reply != nil {
				t.Fatalf("got the reply %+v of a request that was not made", reply)
			}
		}
		fresh(reserve("ann", "k", "body", now))
		_, err := reserve("ann", "k", "body", now)
		fails(t, err, platform.Conflict, "idempotency_in_flight")
		_, err = reserve("ann", "k", "other", now)
		fails(t, err, platform.Invalid, "idempotency_key_reused")
		fresh(reserve("bob", "k", "other", now)) // another's key
		fresh(reserve("annk", "", "other", now)) // does not run together with it

		want := store.StoredReply{Status: 201, Header: map[string]string{"Location": "/x"}, Body: []byte("{\"a\":\"\x00\xff\"}")}
		ok(t, s.FinishIdempotency(t.Context(), "ann", "k", want))
		same(t, "reply", *get(reserve("ann", "k", "body", now)).or(t), want)
		_, err = reserve("ann", "k", "other", now)
		fails(t, err, platform.Invalid, "idempotency_key_reused")
		ok(t, s.ReleaseIdempotency(t.Context(), "ann", "k")) // too late: it was answered
		same(t, "reply", *get(reserve("ann", "k", "body", now)).or(t), want)

		ok(t, s.ReleaseIdempotency(t.Context(), "bob", "k"))
		fresh(reserve("bob", "k", "third", now))

		same(t, "reply", *get(reserve("ann", "k", "body", now.Add(store.IdempotencyTTL-time.Second))).or(t), want)
		fresh(reserve("ann", "k", "other", now.Add(store.IdempotencyTTL)))
		ok(t, s.FinishIdempotency(t.Context(), "ann", "k", want))
		ok(t, s.TrimIdempotency(t.Context(), now.Add(store.IdempotencyTTL+time.Second)))
		fresh(reserve("ann", "k", "fourth", now))
		ok(t, s.FinishIdempotency(t.Context(), "nobody", "k", want))
		fresh(s.ReserveIdempotency(t.Context(), "nil", "k", nil, now))

		oneWins(t, together(8, func(int) error {
			_, err := reserve("ann", "race", "body", now)
			return err
		}), platform.Conflict, "idempotency_in_flight")
	})
}

func TestIdempotency_DeadProcessReleasesItsKeys(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		s := get(store.Open(t.Context(), dsn, options())).or(t)
		now := time.Now()
		get(s.ReserveIdempotency(t.Context(), "ann", "lost", hash("1"), now)).or(t)
		get(s.ReserveIdempotency(t.Context(), "ann", "done", hash("1"), now)).or(t)
		ok(t, s.FinishIdempotency(t.Context(), "ann", "done", store.StoredReply{Status: 201}))
		ok(t, s.Close())
		s = open(t, dsn)
		if reply := get(s.ReserveIdempotency(t.Context(), "ann", "lost", hash("1"), now)).or(t); reply != nil {
			t.Errorf("got %+v", reply)
		}
		equal(t, "status", get(s.ReserveIdempotency(t.Context(), "ann", "done", hash("1"), now)).or(t).Status, 201)
	})
}

func TestLease_OneHolder(t *testing.T) {
	onEach(t, func(t *testing.T, s *store.Store) {
		now := time.Now()
		acquire := func(holder string, at time.Time, want bool) {
			t.Helper()
			equal(t, "held by "+holder, get(s.AcquireLease(t.Context(), "loops", holder, 10*time.Second, at)).or(t), want)
		}
		acquire("a", now, true)
		acquire("b", now.Add(9*time.Second), false)
		acquire("a", now.Add(9*time.Second), true) // renewed
		acquire("b", now.Add(18*time.Second), false)
		acquire("b", now.Add(19*time.Second), true)
		acquire("a", now.Add(20*time.Second), false)
		ok(t, s.ReleaseLease(t.Context(), "loops", "a")) // not a's any more
		acquire("a", now.Add(20*time.Second), false)
		ok(t, s.ReleaseLease(t.Context(), "loops", "b"))
		acquire("a", now.Add(20*time.Second), true)
		equal(t, "another lease", get(s.AcquireLease(t.Context(), "other", "b", time.Second, now)).or(t), true)

		oneWins(t, together(8, func(i int) error {
			held, err := s.AcquireLease(context.Background(), "race", fmt.Sprint(i), time.Minute, now)
			if err == nil && !held {
				err = platform.Errorf(platform.Conflict, "lost", "")
			}
			return err
		}), platform.Conflict, "lost")
	})
}
