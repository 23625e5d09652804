package registry

import "unsafe"

const (
	// blockBytes is what large uploads are written in: past the page cache,
	// where the storage can do that. The cache would copy every byte once more
	// and then be written out by a sync that waits for it, which takes about as
	// much time of the processor as hashing the bytes.
	blockBytes = 1 << 20

	// blockAlign is the alignment, in memory and in the file, that every file
	// system is content with.
	blockAlign = 4096

	// maxBlocks bounds how many uploads have a block at a time. Others do with a
	// buffer.
	maxBlocks = 8
)

// blocks holds something for each block in use. Those that are not are not kept:
// to make one costs an upload of its size next to nothing, and they would be most
// of what the registry has in memory at rest.
var blocks = make(chan struct{}, maxBlocks)

// takeBlock returns what to receive at least so many bytes into: a block if they
// fill one and not all are in use, else a buffer. Call the result's second part
// when done.
func takeBlock(least int64) ([]byte, func()) {
	if least >= blockBytes {
		select {
		case blocks <- struct{}{}:
			block, free := newBlock()
			return block, func() {
				free()
				<-blocks
			}
		default:
		}
	}
	buf := takeBuffer()
	return *buf, func() { giveBuffer(buf) }
}

// heapBlock is a block as Go has memory.
func heapBlock() []byte {
	room := make([]byte, blockBytes+blockAlign)
	skip := (blockAlign - addressOf(room)%blockAlign) % blockAlign
	return room[skip : skip+blockBytes : skip+blockBytes]
}

// aligned tells whether the kernel can write p to a file at that offset without
// a copy of its own.
func aligned(p []byte, offset int64) bool {
	return len(p) > 0 && len(p)%blockAlign == 0 && offset%blockAlign == 0 && addressOf(p)%blockAlign == 0
}

func addressOf(p []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }
