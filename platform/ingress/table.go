package ingress

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"strings"
)

// table finds the pool of a host. It is immutable: a change makes a new one
// that shares all shards but those it touches, so that the change of one host
// among 100,000 copies a few hundred entries.
//
// A wildcard, *.example.com, stands in it as ".example.com". No host of a
// request begins with a dot once it has been looked at.
type table struct {
	shards [shardCount]shard
	wild   int // how many wildcards there are: without any, nobody looks for one
}

const shardCount = 256

// shard is a hash table with open addressing and always room: an entry stands
// where its hash says, or in the next place that was free. What a lookup needs
// lies close together, in little memory: where there are many hosts, most of its
// time is waiting for memory.
type shard struct {
	slots []slot
	keys  string // all of them, one after the other
}

type slot struct {
	pool *pool // nil: free
	at   uint32
	size uint16 // of the key, which begins at keys[at]
	tag  uint16 // some of its hash: tells nearly all other keys apart without a look at them
}

func makeShard(entries map[string]*pool) shard {
	s := shard{slots: make([]slot, len(entries)+len(entries)/2+1)}
	var keys strings.Builder
	for key, p := range entries {
		hash := hashOf(key)
		i := s.place(hash)
		for s.slots[i].pool != nil {
			i = s.next(i)
		}
		s.slots[i] = slot{p, uint32(keys.Len()), uint16(len(key)), tagOf(hash)}
		keys.WriteString(key)
	}
	s.keys = strings.Clone(keys.String()) // of the size that it needs
	return s
}

// place takes the upper bits of a hash, tagOf others; the lowest ones have chosen
// the shard.
func (s *shard) place(hash uint64) int {
	place, _ := bits.Mul64(hash, uint64(len(s.slots)))
	return int(place)
}

func tagOf(hash uint64) uint16 { return uint16(hash >> 8) }

func (s *shard) next(i int) int {
	if i++; i == len(s.slots) {
		return 0
	}
	return i
}

func (s *shard) key(at *slot) string { return s.keys[at.at : at.at+uint32(at.size)] }

func (s *shard) entries() map[string]*pool {
	entries := make(map[string]*pool, len(s.slots))
	for i := range s.slots {
		if at := &s.slots[i]; at.pool != nil {
			entries[s.key(at)] = at.pool
		}
	}
	return entries
}

// maxHost is the longest host DNS knows (RFC 1035 §2.3.4), with room for the
// brackets of an IPv6 literal.
const maxHost = 255

// seed is the process's own, so that nobody can choose names for one shard.
var seed = maphash.MakeSeed()

func hashOf(key string) uint64 { return maphash.String(seed, key) }

// lookup returns the pool of host, as it stands in a Host header, or nil. It
// allocates nothing. A route for the host itself goes before a wildcard.
func (t *table) lookup(host string) *pool {
	host = trimHost(host)
	for i := range len(host) {
		if c := host[i]; 'A' <= c && c <= 'Z' {
			return t.lookupFolded(host)
		}
	}
	return t.find(host)
}

func (t *table) lookupFolded(host string) *pool {
	var folded [maxHost]byte
	if len(host) > len(folded) {
		return nil
	}
	for i := range len(host) {
		c := host[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		folded[i] = c
	}
	name := folded[:len(host)]
	if len(name) == 0 || name[0] == '.' {
		return nil
	}
	if p := t.getBytes(name); p != nil || t.wild == 0 {
		return p
	}
	if dot := bytes.IndexByte(name, '.'); dot > 0 {
		return t.getBytes(name[dot:])
	}
	return nil
}

// find looks up a host in lower case, without port and trailing dot.
func (t *table) find(host string) *pool {
	if host == "" || host[0] == '.' {
		return nil
	}
	if p := t.get(host); p != nil || t.wild == 0 {
		return p
	}
	if dot := strings.IndexByte(host, '.'); dot > 0 {
		return t.get(host[dot:])
	}
	return nil
}

func (t *table) get(key string) *pool {
	hash := hashOf(key)
	s := &t.shards[hash%shardCount]
	if len(s.slots) == 0 {
		return nil
	}
	for i := s.place(hash); ; i = s.next(i) {
		if at := &s.slots[i]; at.pool == nil || at.tag == tagOf(hash) && s.key(at) == key {
			return at.pool
		}
	}
}

// getBytes is get for a key that is no string yet, and need not become one.
func (t *table) getBytes(key []byte) *pool {
	hash := maphash.Bytes(seed, key)
	s := &t.shards[hash%shardCount]
	if len(s.slots) == 0 {
		return nil
	}
	for i := s.place(hash); ; i = s.next(i) {
		if at := &s.slots[i]; at.pool == nil || at.tag == tagOf(hash) && s.key(at) == string(key) {
			return at.pool
		}
	}
}

// anyOf returns a key that is routed to p; empty when there is none. It looks
// through the whole table.
func (t *table) anyOf(p *pool) string {
	for i := range t.shards {
		s := &t.shards[i]
		for j := range s.slots {
			if at := &s.slots[j]; at.pool == p {
				return strings.Clone(s.key(at)) // and not all the other keys with it
			}
		}
	}
	return ""
}

// keyOf is where a route's host stands in a table; empty for what is no host.
func keyOf(host string) string {
	host = strings.ToLower(trimHost(host))
	if len(host) > maxHost {
		return ""
	}
	if name, ok := strings.CutPrefix(host, "*"); ok {
		if len(name) < 2 || name[0] != '.' {
			return ""
		}
		return name
	}
	if strings.HasPrefix(host, ".") {
		return ""
	}
	return host
}

// hostOf is the host whose key that is.
func hostOf(key string) string {
	if strings.HasPrefix(key, ".") {
		return "*" + key
	}
	return key
}

// draft is a table in the making: one that exists, and the entries of the
// shards that will not be as they are there.
type draft struct {
	from   *table
	wild   int
	shards [shardCount]map[string]*pool
}

func draftOf(t *table) *draft { return &draft{from: t, wild: t.wild} }

func (d *draft) get(key string) *pool {
	if entries := d.shards[hashOf(key)%shardCount]; entries != nil {
		return entries[key]
	}
	return d.from.get(key)
}

// put routes a key to a pool, to none for nil, and returns the pool it was
// routed to before.
func (d *draft) put(key string, p *pool) (before *pool) {
	if before = d.get(key); before == p {
		return before
	}
	at := hashOf(key) % shardCount
	if d.shards[at] == nil {
		d.shards[at] = d.from.shards[at].entries()
	}
	if p == nil {
		delete(d.shards[at], key)
	} else {
		d.shards[at][key] = p
	}
	if strings.HasPrefix(key, ".") {
		switch {
		case p == nil:
			d.wild--
		case before == nil:
			d.wild++
		}
	}
	return before
}

// table is the finished table.
func (d *draft) table() *table {
	next := *d.from
	next.wild = d.wild
	for at, entries := range d.shards {
		if entries != nil {
			next.shards[at] = makeShard(entries)
		}
	}
	return &next
}

// trimHost cuts the port and the trailing dot of a fully qualified name off.
func trimHost(host string) string {
	// A colon before a closing bracket is part of an IPv6 literal.
	if colon := strings.LastIndexByte(host, ':'); colon >= 0 && strings.IndexByte(host[colon:], ']') < 0 {
		host = host[:colon]
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	return host
}
