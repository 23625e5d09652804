package caddymodule

// How many names below wildcards are remembered that may be made up: enough for
// many visitors at once after a start, when none is known, and little memory.
const (
	mostStrangers     = 10_000
	strangersOfDomain = 1_000 // below one registered domain
)

// strangers counts the names below wildcards for which nothing was spent of what
// an authority allows: those without a certificate, and those whose certificates
// cost nothing. Anybody can make them up, and orders do not bound them.
type strangers struct {
	all int
	of  map[string]int // by registered domain
}

// note takes over whether e is one.
func (s *strangers) note(e *entry) {
	is := e.kind == childName && !e.gone && (e.free || e.leaf.notAfter.IsZero())
	if is == e.stranger {
		return
	}
	e.stranger = is
	domain := registeredDomain(e.name)
	if !is {
		s.all--
		if s.of[domain]--; s.of[domain] == 0 {
			delete(s.of, domain)
		}
		return
	}
	if s.of == nil {
		s.of = map[string]int{}
	}
	s.all++
	s.of[domain]++
}

// full tells whether there is no room for another below name's registered
// domain.
func (s *strangers) full(name string) bool {
	return s.all >= mostStrangers || s.of[registeredDomain(name)] >= strangersOfDomain
}
