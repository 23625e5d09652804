package registry

// LockAwaited tells whether somebody waits for the lock of a digest.
func (g *Registry) LockAwaited() bool {
	g.locks.mu.Lock()
	defer g.locks.mu.Unlock()
	for _, e := range g.locks.held {
		if e.users > 1 {
			return true
		}
	}
	return false
}
