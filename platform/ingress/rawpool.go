package ingress

import (
	"sync"
	"time"
)

const (
	// idleFor is how long a connection to a replica is kept for the next
	// request. It is shorter than the shortest keep-alive of common servers
	// (Node.js: 5s), so that it is this side that gives idle connections up,
	// and never with a request on the way.
	idleFor = 4 * time.Second

	// maxIdle bounds the connections that are kept for one replica.
	maxIdle = 512
)

// idleConns are the connections to one replica that wait for a request. The
// one that was used last is used next, so that those not needed grow old.
type idleConns struct {
	mu    sync.Mutex
	list  []idleConn // by age, the oldest first
	timer *time.Timer
	armed bool
	ended bool
}

type idleConn struct {
	*conn
	since time.Time
}

// take returns a connection, nil when there is none. now is the time. Who takes
// it finds out whether it is still quiet.
func (p *idleConns) take(now time.Time) *conn {
	for {
		p.mu.Lock()
		last := len(p.list) - 1
		if last < 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.list[last]
		p.list[last] = idleConn{}
		p.list = p.list[:last]
		p.mu.Unlock()
		if now.Sub(c.since) < idleFor {
			return c.conn
		}
		c.Close()
	}
}

// put keeps c, which is as the last answer left it.
func (p *idleConns) put(c *conn) {
	p.mu.Lock()
	if p.ended || len(p.list) >= maxIdle {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.list = append(p.list, idleConn{c, time.Now()})
	if !p.armed {
		p.armed = true
		if p.timer == nil {
			p.timer = time.AfterFunc(idleFor, p.expire)
		} else {
			p.timer.Reset(idleFor)
		}
	}
	p.mu.Unlock()
}

// expire closes what has waited for too long.
func (p *idleConns) expire() {
	p.mu.Lock()
	p.armed = false
	now := time.Now()
	old := 0
	for old < len(p.list) && now.Sub(p.list[old].since) >= idleFor {
		old++
	}
	expired := append([]idleConn(nil), p.list[:old]...)
	left := copy(p.list, p.list[old:])
	clear(p.list[left:])
	p.list = p.list[:left]
	if left > 0 && !p.ended {
		p.armed = true
		p.timer.Reset(idleFor - now.Sub(p.list[0].since))
	}
	p.mu.Unlock()
	for _, c := range expired {
		c.Close()
	}
}

// end keeps nothing from now on. Who has dialled the connections closes them.
func (p *idleConns) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.list = true, nil
	if p.timer != nil {
		p.timer.Stop()
	}
}
