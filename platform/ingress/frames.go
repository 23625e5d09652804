package ingress

import "encoding/binary"

// frames follows the frames of one direction of a WebSocket (RFC 6455 §5.2)
// without holding any: it only knows where one ends.
type frames struct {
	head   [14]byte
	have   int    // bytes of head read
	left   uint64 // bytes of payload to come
	closed bool   // a close frame went by, the last there may be
}

// advance takes the next bytes. A nil frames takes no notice.
func (f *frames) advance(b []byte) {
	if f == nil {
		return
	}
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, uint64(len(b)))
			f.left -= n
			b = b[n:]
			continue
		}
		f.head[f.have] = b[0]
		f.have++
		b = b[1:]
		f.finishHead()
	}
}

// finishHead begins the payload once head is whole.
func (f *frames) finishHead() {
	if f.have < 2 {
		return
	}
	size := 2
	switch f.head[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	extended := size
	if f.head[1]&0x80 != 0 {
		size += 4 // the mask
	}
	if f.have < size {
		return
	}
	switch extended {
	case 4:
		f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 10:
		f.left = binary.BigEndian.Uint64(f.head[2:])
	default:
		f.left = uint64(f.head[1] & 0x7f)
	}
	f.closed = f.closed || f.head[0]&0x0f == 8
	f.have = 0
}

// between tells whether another frame may stand here.
func (f *frames) between() bool {
	return f.have == 0 && f.left == 0 && !f.closed
}
