package registry

import "golang.org/x/sys/unix"

// hugePage is what a block lies in: then it is in one piece in the machine's
// memory as well, and so is what the kernel tells the disk to write. Of scattered
// pages it makes a list, which for a block is too long for one order to most
// disks.
const hugePage = 2 << 20

// newBlock returns a block, which must not be used once free was called.
func newBlock() (block []byte, free func()) {
	room, err := unix.Mmap(-1, 0, 2*hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return heapBlock(), func() {}
	}
	skip := (hugePage - addressOf(room)%hugePage) % hugePage
	// Where there are none, the block is as good as any.
	_ = unix.Madvise(room[skip:skip+hugePage], unix.MADV_HUGEPAGE)
	return room[skip : skip+blockBytes : skip+blockBytes], func() { _ = unix.Munmap(room) }
}
