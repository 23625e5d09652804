package api

import (
	"container/list"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/denia-paas/denia/platform"
)

// limitClass says which rate limit a route is under.
type limitClass int

const (
	limitCalls  limitClass = iota // by token
	limitLogin                    // by address, few
	limitPublic                   // by address, many
	limitNone
)

// keptBuckets bounds the memory of a limiter. A flood of keys pushes out the
// one not used for longest.
const keptBuckets = 10_000

// limiter holds a token bucket for each key. Safe for concurrent use.
type limiter struct {
	burst int
	every time.Duration // one token comes back in this time

	mu     sync.Mutex
	recent *list.List // of *bucket, last used first
	byKey  map[string]*list.Element
}

type bucket struct {
	key    string
	tokens float64
	at     time.Time
}

func newLimiter(burst int, per time.Duration) *limiter {
	return &limiter{burst: burst, every: per / time.Duration(burst), recent: list.New(), byKey: map[string]*list.Element{}}
}

// fill brings the key's bucket up to now. l.mu must be held.
func (l *limiter) fill(key string, now time.Time) *bucket {
	if e := l.byKey[key]; e != nil {
		b := e.Value.(*bucket)
		b.tokens = min(float64(l.burst), b.tokens+float64(now.Sub(b.at))/float64(l.every))
		b.at = now
		l.recent.MoveToFront(e)
		return b
	}
	if l.recent.Len() >= keptBuckets {
		oldest := l.recent.Back()
		delete(l.byKey, oldest.Value.(*bucket).key)
		l.recent.Remove(oldest)
	}
	b := &bucket{key: key, tokens: float64(l.burst), at: now}
	l.byKey[key] = l.recent.PushFront(b)
	return b
}

// charge takes one token of the key and tells the client what is left; none is
// left: RateLimited.
func (l *limiter) charge(c *call, key string) error {
	l.mu.Lock()
	b := l.fill(key, time.Now())
	ok := b.tokens >= 1
	if ok {
		b.tokens--
	}
	left := b.tokens
	l.mu.Unlock()

	// Of several limits on one call, the tightest speaks.
	if told, err := strconv.Atoi(c.header.Get("RateLimit-Remaining")); ok && err == nil && told < int(left) {
		return nil
	}
	c.header.Set("RateLimit-Limit", strconv.Itoa(l.burst))
	c.header.Set("RateLimit-Remaining", strconv.Itoa(int(left)))
	c.header.Set("RateLimit-Reset", l.seconds(float64(l.burst)-left))
	if ok {
		return nil
	}
	wait := l.seconds(1 - left)
	c.header.Set("Retry-After", wait)
	return platform.Errorf(platform.RateLimited, "rate_limited", "too many requests: try again in %s s", wait)
}

// seconds is how long n tokens take to come back, rounded up to at least 1.
func (l *limiter) seconds(n float64) string {
	s := math.Ceil(n * float64(l.every) / float64(time.Second))
	return strconv.Itoa(max(1, int(s)))
}

// addressKey folds an address to what one customer of a network holds: an IPv6
// host owns a whole /64.
func addressKey(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return "ip/" + ip
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		prefix, err := addr.Prefix(64)
		if err == nil {
			return "ip/" + prefix.String()
		}
	}
	return "ip/" + addr.String()
}
