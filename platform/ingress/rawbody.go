package ingress

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
)

const (
	// maxChunkLine bounds the line before a chunk: a size and what nobody
	// uses, extensions.
	maxChunkLine = 512

	// maxOverhead bounds how much more the lines before chunks may add up to
	// than their size warrants, so that an answer is not all lines.
	maxOverhead = 16 << 10
)

var (
	errChunkSize    = errors.New("malformed answer: the size of a chunk")
	errChunkLine    = errors.New("malformed answer: the line before a chunk is too long")
	errChunkEnd     = errors.New("malformed answer: a chunk does not end where it should")
	errOverhead     = errors.New("malformed answer: its chunks are all overhead")
	errTrailersLong = errors.New("malformed answer: its trailers are too long")

	// errClient tells that it is the client who does not take more.
	errClient = errors.New("the client is gone")
)

// copyBody hands the whole body on.
func (h *hop) copyBody() error {
	switch {
	case h.head.chunked:
		return h.copyChunks()
	case h.head.untilEOF:
		err := h.copyBytes(math.MaxInt64, false)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		return err
	}
	return h.copyBytes(h.head.length, true)
}

// copyBytes hands n bytes on. exact tells that nothing is to be read beyond
// them.
func (h *hop) copyBytes(n int64, exact bool) error {
	for n > 0 {
		if h.r == h.w {
			if err := h.more(n, exact); err != nil {
				return err
			}
		}
		piece := h.buf[h.r:h.w]
		if int64(len(piece)) > n {
			piece = piece[:n]
		}
		h.r += len(piece)
		n -= int64(len(piece))
		if err := h.give(piece); err != nil {
			return err
		}
	}
	return nil
}

// give writes to the client.
func (h *hop) give(piece []byte) error {
	h.unflushed = true
	n, err := h.x.w.Write(piece)
	h.x.sent += int64(n)
	if err != nil {
		return errClient
	}
	return nil
}

// flush has the client get what was written.
func (h *hop) flush() error {
	h.unflushed = false
	err := http.NewResponseController(h.x.w).Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return errClient
	}
	return nil
}

// more reads more of the body, of which n bytes are missing. The end of the
// connection is io.ErrUnexpectedEOF.
func (h *hop) more(n int64, exact bool) error {
	if h.r == h.w {
		h.r, h.w = 0, 0
	}
	// A long answer is worth a large buffer. One that trickles in is not.
	if n > int64(len(h.buf)) && (h.filled || exact) {
		h.enlarge()
	}
	// Where the end is not known, every piece may be the last for long. What
	// comes right after it may go with it.
	if h.streamed && h.unflushed && (!h.filled || !h.c.pending()) {
		if err := h.flush(); err != nil {
			return err
		}
	}
	if h.r > 0 {
		h.w = copy(h.buf, h.buf[h.r:h.w])
		h.r = 0
	}
	end := len(h.buf)
	if exact {
		end = int(min(int64(end), int64(h.w)+n))
	}
	err := h.read(end)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// enlarge goes over to the largest buffer there is.
func (h *hop) enlarge() {
	if len(h.buf) >= copyBuffer {
		return
	}
	h.large = copyBuffers.Get().(*[]byte)
	h.w = copy(*h.large, h.buf[h.r:h.w])
	h.r = 0
	h.buf = *h.large
}

// copyChunks hands a chunked body on (RFC 9112 §7.1), and keeps its trailers.
func (h *hop) copyChunks() error {
	overhead := 0
	for {
		line, err := h.line(maxChunkLine, errChunkLine)
		if err != nil {
			return err
		}
		size, err := chunkSize(line)
		if err != nil {
			return err
		}
		if size == 0 {
			return h.readTrailers()
		}
		if overhead = max(0, overhead+len(line)-16-int(min(2*size, maxOverhead))); overhead > maxOverhead {
			return errOverhead
		}
		if err := h.copyBytes(size, false); err != nil {
			return err
		}
		for h.w-h.r < 2 {
			if err := h.more(2, false); err != nil {
				return err
			}
		}
		if h.buf[h.r] != '\r' || h.buf[h.r+1] != '\n' {
			return errChunkEnd
		}
		h.r += 2
	}
}

// line returns the next line without its end. It is good until the next read.
func (h *hop) line(limit int, tooLong error) ([]byte, error) {
	for {
		unread := h.buf[h.r:h.w]
		if end := bytes.IndexByte(unread, '\n'); end >= 0 {
			if end == 0 || unread[end-1] != '\r' {
				return nil, errLineEnd
			}
			if end-1 > limit {
				return nil, tooLong
			}
			h.r += end + 1
			return unread[:end-1], nil
		}
		if len(unread) > limit+1 {
			return nil, tooLong
		}
		if len(unread) == len(h.buf) {
			if err := h.grow(); err != nil {
				return nil, tooLong
			}
		}
		if err := h.more(1, false); err != nil {
			return nil, err
		}
	}
}

// chunkSize reads the line before a chunk.
func chunkSize(line []byte) (int64, error) {
	var size int64
	at := 0
	for ; at < len(line); at++ {
		c := line[at]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return size, chunkExtension(line, at)
		}
		if at == 15 { // more digits might not fit
			return 0, errChunkSize
		}
		size = size<<4 | int64(c)
	}
	if at == 0 {
		return 0, errChunkSize
	}
	return size, nil
}

// chunkExtension looks at what follows the size, which ends at at: nothing but
// white space, or a semicolon at once. It must not be what anybody could take
// for the end of the line, or for more of the size.
func chunkExtension(line []byte, at int) error {
	if at == 0 {
		return errChunkSize
	}
	rest := bytes.TrimRight(line[at:], " \t")
	if len(rest) > 0 && rest[0] != ';' {
		return errChunkSize
	}
	for _, c := range rest {
		if bytesAre[c]&isValue == 0 {
			return errChunkSize
		}
	}
	return nil
}

// readTrailers reads the fields after the last chunk.
func (h *hop) readTrailers() error {
	h.trailers = h.trailers[:0]
	for left := maxHead; ; {
		line, err := h.line(left, errTrailersLong)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		if left -= len(line) + 2; left < 0 {
			return errTrailersLong
		}
		f, err := parseField(string(line))
		if err != nil {
			return err
		}
		if trailable(f.name) {
			if len(h.trailers) == maxListed {
				return errTrailers
			}
			h.trailers = append(h.trailers, f)
		}
	}
}
