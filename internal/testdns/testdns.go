// Package testdns is a DNS server for tests: it knows what it is told, over UDP
// and TCP, and nothing else.
package testdns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Server is a running server. Its methods may be called concurrently.
type Server struct {
	Addr string // ip:port

	mu    sync.Mutex
	hosts map[string][]netip.Addr
	txt   map[string][]string
	zones map[string]bool
	fails map[string]bool
	asked map[string]int

	conns map[net.Conn]bool // nil once the test has ended
	wg    sync.WaitGroup
}

// Start runs a server until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{hosts: map[string][]netip.Addr{}, txt: map[string][]string{}, zones: map[string]bool{}, fails: map[string]bool{}, asked: map[string]int{}, conns: map[net.Conn]bool{}}
	var packets net.PacketConn
	var streams net.Listener
	var listen net.ListenConfig
	var err error
	for range 20 { // a port that is free for both
		if packets, err = listen.ListenPacket(t.Context(), "udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if streams, err = listen.Listen(t.Context(), "tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = packets.LocalAddr().String()
	s.wg.Go(func() { s.servePackets(packets) })
	s.wg.Go(func() { s.serveStreams(streams) })
	t.Cleanup(func() {
		packets.Close()
		streams.Close()
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.conns = nil
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// Host sets the addresses of a name; none takes them away.
func (s *Server) Host(name string, addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []netip.Addr
	for _, a := range addresses {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	s.hosts[key(name)] = addrs
}

// TXT sets the values of a name's TXT records; none takes them away.
func (s *Server) TXT(name string, values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.txt[key(name)] = values
}

// Zone has a name be where a zone begins.
func (s *Server) Zone(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones[key(name)] = true
}

// Fail has questions about a name answered with SERVFAIL, or not any more.
func (s *Server) Fail(name string, fails bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[key(name)] = fails
}

// Asked tells how often somebody asked about a name.
func (s *Server) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[key(name)]
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (s *Server) servePackets(conn net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if answer := s.answer(buf[:n], 1232); answer != nil {
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

func (s *Server) serveStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.conns[conn] = true
		s.wg.Go(func() {
			defer func() {
				conn.Close()
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			}()
			s.serveStream(conn)
		})
		s.mu.Unlock()
	}
}

func (s *Server) serveStream(conn net.Conn) {
	for {
		var size uint16
		if binary.Read(conn, binary.BigEndian, &size) != nil {
			return
		}
		question := make([]byte, size)
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		answer := s.answer(question, 64<<10-1)
		if answer == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer makes the reply to a packed question; one longer than limit is cut to
// nothing, which has the client ask again over TCP.
func (s *Server) answer(packed []byte, limit int) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(packed)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	name := key(q.Name.String())
	s.asked[name]++
	hosts, texts, zone, fails := s.hosts[name], s.txt[name], s.zones[name], s.fails[name]
	s.mu.Unlock()

	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	add := func(body dnsmessage.ResourceBody) {
		reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}, Body: body})
	}
	switch {
	case fails:
		reply.RCode = dnsmessage.RCodeServerFailure
	case zone && q.Type == dnsmessage.TypeSOA:
		add(&dnsmessage.SOAResource{NS: q.Name, MBox: q.Name, Serial: 1, Refresh: 60, Retry: 60, Expire: 60, MinTTL: 1})
	case len(hosts)+len(texts) == 0 && !zone:
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range hosts {
		switch {
		case fails:
		case q.Type == dnsmessage.TypeA && addr.Is4():
			add(&dnsmessage.AResource{A: addr.As4()})
		case q.Type == dnsmessage.TypeAAAA && addr.Is6():
			add(&dnsmessage.AAAAResource{AAAA: addr.As16()})
		}
	}
	for _, text := range texts {
		if q.Type == dnsmessage.TypeTXT && !fails {
			var parts []string
			for len(text) > 255 {
				parts, text = append(parts, text[:255]), text[255:]
			}
			add(&dnsmessage.TXTResource{TXT: append(parts, text)})
		}
	}
	packedReply, err := reply.Pack()
	if err != nil || len(packedReply) > limit {
		reply.Answers, reply.Truncated = nil, true
		packedReply, err = reply.Pack()
	}
	if err != nil {
		return nil
	}
	return packedReply
}
