package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/telemetry"
)

const shop = platform.ID("0198c0de-0000-7000-8000-000000000002")

// asked makes the i-th entry: i seconds after start.
func asked(i int, change ...func(*platform.AccessEntry)) platform.AccessEntry {
	e := platform.AccessEntry{
		TS: start.Add(time.Duration(i) * time.Second), Replica: "1.0", Release: "release", Method: "GET", Protocol: "HTTP/1.1",
		Host: "shop.test", Path: fmt.Sprintf("/items/%d", i), Status: 200, BytesOut: int64(i), RequestID: fmt.Sprint("r", i),
	}
	for _, f := range change {
		f(&e)
	}
	return e
}

func records(entries ...platform.AccessEntry) []byte {
	var b []byte
	for i := range entries {
		b = platform.AppendAccess(b, &entries[i])
	}
	return b
}

func wantRead(t *testing.T, r *telemetry.Requests, q telemetry.RequestQuery, before telemetry.Cursor, ids ...string) telemetry.Cursor {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	got, next, err := r.Read(shop, q, before)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range got {
		have = append(have, e.RequestID)
	}
	if !slices.Equal(have, ids) {
		t.Errorf("%+v gives %v, want %v", q, have, ids)
	}
	return next
}

func TestRequestsAreReadNewestFirst(t *testing.T) {
	dir := t.TempDir()
	logs := open(t, dir, telemetry.LogOptions{})
	r := telemetry.NewRequests(logs, nil)
	wantRead(t, r, telemetry.RequestQuery{}, "")
	all := []platform.AccessEntry{
		asked(0), asked(1, func(e *platform.AccessEntry) { e.Status = 503; e.Replica = ""; e.Error = "no_ready_replica" }),
		asked(2, func(e *platform.AccessEntry) { e.Method = "POST" }), asked(3, func(e *platform.AccessEntry) { e.Status = 404 }),
		asked(4, func(e *platform.AccessEntry) { e.Path = "/other"; e.Status = 502 }),
	}
	if err := r.Append(shop, records(all[:2]...)); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(shop, records(all[2:]...)); err != nil {
		t.Fatal(err)
	}
	got, next, err := r.Read(shop, telemetry.RequestQuery{Limit: 5}, "")
	if err != nil || next != "" {
		t.Fatalf("next %q, %v", next, err)
	}
	slices.Reverse(got)
	if !slices.Equal(got, all) {
		t.Errorf("got %+v, want %+v", got, all)
	}
	for _, c := range []struct {
		q    telemetry.RequestQuery
		want []string
	}{
		{telemetry.RequestQuery{}, []string{"r4", "r3", "r2", "r1", "r0"}},
		{telemetry.RequestQuery{Limit: 2}, []string{"r4", "r3"}},
		{telemetry.RequestQuery{Status: 404}, []string{"r3"}},
		{telemetry.RequestQuery{Class: 5}, []string{"r4", "r1"}},
		{telemetry.RequestQuery{Class: 5, Path: "/items/"}, []string{"r1"}},
		{telemetry.RequestQuery{Method: "POST"}, []string{"r2"}},
		{telemetry.RequestQuery{Method: "GE"}, nil},
		{telemetry.RequestQuery{Path: "/other"}, []string{"r4"}},
		{telemetry.RequestQuery{Since: start.Add(3 * time.Second)}, []string{"r4", "r3"}},
		{telemetry.RequestQuery{Since: start.Add(time.Hour)}, nil},
	} {
		wantRead(t, r, c.q, "", c.want...)
	}

	// Page by page, also across a restart.
	next = wantRead(t, r, telemetry.RequestQuery{Limit: 2, Path: "/items"}, "", "r3", "r2")
	if err := r.Append(shop, records(asked(5))); err != nil {
		t.Fatal(err)
	}
	if err := logs.Close(); err != nil {
		t.Fatal(err)
	}
	r = telemetry.NewRequests(open(t, dir, telemetry.LogOptions{}), nil)
	if next = wantRead(t, r, telemetry.RequestQuery{Limit: 2, Path: "/items"}, next, "r1", "r0"); next != "" {
		t.Errorf("there is a page after the last: %q", next)
	}
	if _, _, err := r.Read(shop, telemetry.RequestQuery{Limit: 1}, "x"); platform.CodeOf(err) != "bad_cursor" {
		t.Errorf("a bad cursor gives %v", err)
	}
}

func TestRequestsAreCapped(t *testing.T) {
	dir := t.TempDir()
	r := telemetry.NewRequests(open(t, dir, telemetry.LogOptions{RequestBytes: 20_000}), nil)
	for i := range 1000 {
		if err := r.Append(shop, records(asked(i))); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "requests", string(shop), "*"))
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 20_000 || size < 10_000 {
		t.Errorf("%d bytes in %d segments, the cap is 20000", size, len(files))
	}
	wantRead(t, r, telemetry.RequestQuery{Limit: 2}, "", "r999", "r998")
}

func TestRequestsThatCannotBeWritten(t *testing.T) {
	logs := open(t, t.TempDir(), telemetry.LogOptions{})
	left := atomic.Int64{}
	left.Store(int64(len(records(asked(0)))) + 20)
	telemetry.FailWrites(logs, &left, syscall.ENOSPC)
	var unwritten []byte
	r := telemetry.NewRequests(logs, func(platform.ID) []byte { return unwritten })
	if err := r.Append(shop, records(asked(0))); err != nil {
		t.Fatal(err)
	}
	unwritten = records(asked(1), asked(2))
	if err := r.Append(shop, unwritten); platform.CodeOf(err) != "disk_full" || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk gives %v", err)
	}
	// What lies in memory yet is read like the rest.
	wantRead(t, r, telemetry.RequestQuery{}, "", "r2", "r1", "r0")
	next := wantRead(t, r, telemetry.RequestQuery{Limit: 2}, "", "r2", "r1")
	wantRead(t, r, telemetry.RequestQuery{}, next, "r0")
	left.Store(1 << 20)
	if err := r.Append(shop, unwritten); err != nil {
		t.Fatal(err)
	}
	unwritten = nil
	wantRead(t, r, telemetry.RequestQuery{}, "", "r2", "r1", "r0")
}

func TestRequestsAreFollowed(t *testing.T) {
	r := telemetry.NewRequests(open(t, t.TempDir(), telemetry.LogOptions{}), nil)
	if err := r.Append(shop, records(asked(0), asked(1), asked(2))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	follow := func(after telemetry.Cursor, q telemetry.RequestQuery) *telemetry.Follower {
		t.Helper()
		f, err := r.Follow(ctx, shop, after, q)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	want := func(f *telemetry.Follower, id string) telemetry.Cursor {
		t.Helper()
		cursor, line, err := f.Next(ctx)
		e, ok := telemetry.RequestOf(line)
		if err != nil || !ok || e.RequestID != id || e.Replica != "1.0" {
			t.Fatalf("got %+v, %t, %v, want %s", e, ok, err, id)
		}
		return cursor
	}
	posts := follow("", telemetry.RequestQuery{Method: "POST"})
	last := follow("", telemetry.RequestQuery{Limit: 1, Path: "/items/1"})
	one := want(last, "r1")
	if err := r.Append(shop, records(asked(3), asked(4, func(e *platform.AccessEntry) { e.Method = "POST" }))); err != nil {
		t.Fatal(err)
	}
	want(posts, "r4")
	again := follow(one, telemetry.RequestQuery{})
	want(again, "r2")
	want(again, "r3")
	want(again, "r4")
}
