package ingress

import (
	"io"
	"net"
	"runtime"
	"testing"
)

// pair is a connection to a replica and the replica's end of it.
func pair(t *testing.T) (ours *conn, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close(); accepted.Close() })
	return &conn{Conn: raw, upstream: &upstream{kick: make(chan struct{}, 1)}}, accepted.(*net.TCPConn)
}

// answered has one request and its answer go over the connection.
func answered(t *testing.T, ours *conn, theirs *net.TCPConn) (sent int64) {
	t.Helper()
	b := make([]byte, 5)
	if _, err := ours.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(theirs, b); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ours, b); err != nil {
		t.Fatal(err)
	}
	return ours.sent.Load()
}

func TestConnKnowsThatPeerClosedBeforeTheRequest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("only Linux tells")
		return
	}
	for _, reused := range []bool{false, true} {
		ours, theirs := pair(t)
		var sent int64
		if reused {
			sent = answered(t, ours, theirs)
		}
		theirs.Close()
		// Whether this fails depends on how far the peer's end has come.
		_, _ = ours.Write([]byte("second"))
		if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("reused %v: reading gave %v, want EOF", reused, err)
		}
		if !ours.untouchedSince(sent) {
			t.Errorf("reused %v: the request counts as possibly received, accepted %d, sent %d", reused, ours.accepted.Load(), sent)
		}
	}
}

func TestConnKnowsThatPeerMayHaveTheRequest(t *testing.T) {
	for _, reused := range []bool{false, true} {
		ours, theirs := pair(t)
		var sent int64
		if reused {
			sent = answered(t, ours, theirs)
		}
		if !ours.untouchedSince(sent) {
			t.Errorf("reused %v: nothing was written, yet it counts as sent", reused)
		}
		before := ours.traffic()
		ours.Write([]byte("second"))
		if ours.untouchedSince(sent) {
			t.Errorf("reused %v: a written request counts as not sent", reused)
		}
		if _, err := io.ReadFull(theirs, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		theirs.Close() // read, and then died
		ours.Read(make([]byte, 1))
		if ours.untouchedSince(sent) || ours.unreadSince(before) {
			t.Errorf("reused %v: a request that was read counts as not sent, or not read", reused)
		}
	}
}

func TestConnKnowsThatPeerDidNotReadAll(t *testing.T) {
	for name, part := range map[string]int{"reset": 3, "closed before the rest": 6} {
		ours, theirs := pair(t)
		ours.Write([]byte("second"))
		if _, err := io.ReadFull(theirs, make([]byte, part)); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		if part == 6 {
			if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
				t.Fatal(err)
			}
			ours.Write([]byte("more"))
			ours.Write([]byte("and more"))
		} else {
			ours.Read(make([]byte, 1))
		}
		if ours.untouchedSince(0) {
			t.Errorf("%s: what was read in part counts as not sent", name)
		}
		if !ours.unreadSince(traffic{}) {
			t.Errorf("%s: what was read in part counts as read", name)
		}
	}
}

func TestFramesKnowWhereOneEnds(t *testing.T) {
	long := append([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 1<<16)...)
	middle := append([]byte{0x82, 126, 1, 0}, make([]byte, 256)...)
	masked := []byte{0x81, 0x83, 1, 2, 3, 4, 'a', 'b', 'c'}
	empty := []byte{0x89, 0}
	for name, frame := range map[string][]byte{"long": long, "middle": middle, "masked": masked, "empty": empty} {
		for _, step := range []int{1, 3, 1000, len(frame)} {
			var f frames
			for at := 0; at < len(frame); at += step {
				if (at == 0) != f.between() {
					t.Fatalf("%s in steps of %d: between() = %v at %d", name, step, f.between(), at)
				}
				f.advance(frame[at:min(at+step, len(frame))])
			}
			if !f.between() {
				t.Errorf("%s in steps of %d: its end was not seen", name, step)
			}
		}
	}
	var f frames
	f.advance([]byte{0x88, 0})
	if f.between() {
		t.Error("after a close frame nothing may follow")
	}
}

func TestConditionFollowsProbes(t *testing.T) {
	for _, c := range []struct {
		from        condition
		ok, refused bool
		misses      int
		to          condition
	}{
		{starting, true, false, 0, ready},
		{starting, false, true, 9, starting},
		{ready, false, false, 1, ready},
		{ready, false, false, 2, failing},
		{ready, false, true, 1, down},
		{failing, false, false, 5, failing},
		{failing, false, true, 5, down},
		{failing, true, false, 0, ready},
		{down, false, false, 3, down},
		{down, true, false, 0, ready},
	} {
		if got := c.from.after(c.ok, c.refused, c.misses); got != c.to {
			t.Errorf("%d after ok=%v refused=%v misses=%d: %d, want %d", c.from, c.ok, c.refused, c.misses, got, c.to)
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	in := New(Options{})
	defer in.Close()
	p := newPool(in, "service")
	v := &view{changed: make(chan struct{})}
	for range 4 {
		v.targets = append(v.targets, &upstream{pool: p})
	}
	p.view.Store(v)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var wait patience
		for pb.Next() {
			u, _ := p.acquire(in.ctx, &wait, nil)
			u.release()
		}
	})
}
