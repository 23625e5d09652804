//go:build !linux

package registry

// newBlock returns a block, which must not be used once free was called.
func newBlock() (block []byte, free func()) { return heapBlock(), func() {} }
