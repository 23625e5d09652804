package ingress

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"slices"
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
// where its hash says, or in the next place that was free. Where there are many
// hosts, a lookup is little more than waiting for memory, and so it waits once:
// a key is in its slot, and can be fetched before it is known what the slot holds.
type shard struct {
	slots []slot
	long  []byte // the keys that no slot has room for, one after the other
}

type slot struct {
	pool *pool        // nil: free
	tag  uint16       // some of the hash: tells nearly all other keys apart without a look at them
	size uint8        // of the key
	text [inSlot]byte // the key, or for a longer one where in long it begins
}

// inSlot is how long a key may be to have its place in a slot, which is three
// quarters of a cache line then.
const inSlot = 37

func makeShard(entries map[string]*pool) shard {
	s := shard{slots: make([]slot, len(entries)+len(entries)/3+1)}
	for key, p := range entries {
		hash := hashOf(key)
		i := s.place(hash)
		for s.slots[i].pool != nil {
			i = s.next(i)
		}
		at := &s.slots[i]
		at.pool, at.tag, at.size = p, tagOf(hash), uint8(len(key)) //nolint:gosec // at most maxHost
		if copy(at.text[:], key) < len(key) {
			binary.NativeEndian.PutUint32(at.text[:], uint32(len(s.long))) //nolint:gosec // at most maxHost for each entry
			s.long = append(s.long, key...)
		}
	}
	s.long = slices.Clip(slices.Clone(s.long)) // of the size that it needs
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

func (s *shard) key(at *slot) []byte {
	if at.size <= inSlot {
		return at.text[:at.size]
	}
	return s.long[binary.NativeEndian.Uint32(at.text[:]):][:at.size]
}

func (s *shard) entries() map[string]*pool {
	entries := make(map[string]*pool, len(s.slots))
	for i := range s.slots {
		if at := &s.slots[i]; at.pool != nil {
			entries[string(s.key(at))] = at.pool
		}
	}
	return entries
}

// lookIn returns the pool of the key with that hash, or nil.
func lookIn[text string | []byte](s *shard, hash uint64, key text) *pool {
	if len(s.slots) == 0 {
		return nil
	}
	for i := s.place(hash); ; i = s.next(i) {
		if at := &s.slots[i]; at.pool == nil || at.tag == tagOf(hash) && string(s.key(at)) == string(key) {
			return at.pool
		}
	}
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
	return lookIn(&t.shards[hash%shardCount], hash, key)
}

// getBytes is get for a key that is no string yet, and need not become one.
func (t *table) getBytes(key []byte) *pool {
	hash := maphash.Bytes(seed, key)
	return lookIn(&t.shards[hash%shardCount], hash, key)
}

// anyOf returns a key that is routed to p; empty when there is none. It looks
// through the whole table.
func (t *table) anyOf(p *pool) string {
	for i := range t.shards {
		s := &t.shards[i]
		for j := range s.slots {
			if at := &s.slots[j]; at.pool == p {
				return string(s.key(at))
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
