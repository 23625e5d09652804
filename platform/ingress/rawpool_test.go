package ingress

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"time"
)

func TestIdleConnectionsGrowOldAndFew(t *testing.T) {
	var pool idleConns
	ours, theirs := pair(t)
	other, _ := pair(t)
	now := time.Now()

	pool.put(other)
	pool.put(ours)
	if c := pool.take(now); c != ours {
		t.Error("not the one that was used last")
	}
	pool.put(ours)
	pool.list[0].since, pool.list[1].since = now.Add(-idleFor), now.Add(-idleFor+time.Second)
	pool.expire()
	if len(pool.list) != 1 || pool.list[0].conn != ours || !pool.armed {
		t.Errorf("%d are left, armed %v", len(pool.list), pool.armed)
	}
	if c := pool.take(now.Add(idleFor)); c != nil {
		t.Error("a connection was used that is too old, though nobody has closed it yet")
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("and it was not closed: %v", err)
	}

	pool.list = make([]idleConn, maxIdle)
	for i := range pool.list {
		pool.list[i].since = now
	}
	third, theirEnd := pair(t)
	pool.put(third)
	if _, err := theirEnd.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more than may be was kept: %v", err)
	}
	pool.list = nil

	pool.end()
	fourth, theirEnd := pair(t)
	pool.put(fourth)
	if _, err := theirEnd.Read(make([]byte, 1)); err != io.EOF || len(pool.list) > 0 {
		t.Errorf("one was kept after the end: %v", err)
	}
}

func TestConnectionThatIsNotQuietIsNotUsed(t *testing.T) {
	for name, disturb := range map[string]func(*testing.T, io.WriteCloser){
		"closed": func(t *testing.T, theirs io.WriteCloser) { theirs.Close() },
		"bytes": func(t *testing.T, theirs io.WriteCloser) {
			io.WriteString(theirs, "HTTP/1.1 408 Request Timeout\r\n\r\n")
		},
	} {
		ours, theirs := pair(t)
		answered(t, ours, theirs)
		before := ours.traffic()
		disturb(t, theirs)
		arrived, err := ours.Conn.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := arrived.Read(func(uintptr) bool { return !ours.quiet() }); err != nil {
			t.Fatal(err)
		}
		asked, err := ours.ask([]byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 1), true)
		if asked || !errors.Is(err, errDisturbed) || ours.traffic() != before {
			t.Errorf("%s: it was used: %v", name, err)
		}
		if len(ours.upstream.kick) != 1 {
			t.Errorf("%s: nobody looks after the replica", name)
		}
	}
}
