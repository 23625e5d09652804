package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/denia-paas/denia/platform"
)

// maxWindow bounds what a zstd frame makes the decoder hold in memory.
const maxWindow = 32 << 20

// readAhead is how much of the packed stream is read at once at most. What a
// Read of the body gives goes to disk at once, whether it fills this or not.
const readAhead = 64 << 10

type format string

const (
	formatTar  format = "application/x-tar"
	formatZstd format = "application/zstd"
	formatGzip format = "application/gzip"
)

func (f format) String() string {
	switch f {
	case formatZstd:
		return "tar.zst"
	case formatGzip:
		return "tar.gz"
	}
	return "tar"
}

func parseContentType(contentType string) (format, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err == nil || errors.Is(err, mime.ErrInvalidMediaParameter) {
		switch f := format(media); f {
		case formatTar, formatZstd, formatGzip:
			return f, nil
		}
	}
	return "", platform.Errorf(platform.Unsupported, "unsupported_media_type",
		"a build context is sent as application/zstd (tar.zst), application/gzip (tar.gz) or application/x-tar, not as %s", quote(contentType))
}

// sniff tells the format by the first bytes. A tar can begin with these bytes
// only in the name of its first file; Receive refuses such a one, so that
// Unpack, which has no content type, always decides as Receive did.
func sniff(b []byte) format {
	switch {
	case len(b) >= 2 && b[0] == 0x1f && b[1] == 0x8b:
		return formatGzip
	case len(b) >= 4 && b[0] == 0x28 && b[1] == 0xb5 && b[2] == 0x2f && b[3] == 0xfd,
		len(b) >= 4 && b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18: // skippable frame
		return formatZstd
	}
	return formatTar
}

// packedReader reads the archive as sent, hands every byte to sink in order,
// and remembers why it stopped: decoders on top of it lose the cause.
type packedReader struct {
	ctx   context.Context
	from  io.Reader
	sink  func([]byte) error // may be nil
	limit int64
	doing string
	count int64
	err   error
}

func (r *packedReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.err = ended(r.ctx, r.doing); r.err != nil {
		return 0, r.err
	}
	n, err := r.from.Read(p)
	r.count += int64(n)
	switch {
	case r.count > r.limit:
		r.err = platform.Errorf(platform.TooLarge, "packed_too_large",
			"the upload is larger than %s; leave out what the build does not need", size(r.limit))
		return 0, r.err
	case n > 0 && r.sink != nil:
		if r.err = r.sink(p[:n]); r.err != nil {
			return 0, r.err
		}
	}
	if err != nil && err != io.EOF {
		r.err = r.cause(err)
		err = r.err
	}
	return n, err
}

func (r *packedReader) cause(err error) error {
	// A body that ends early is the sender's doing, even where the server also
	// calls the request off because of it.
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return truncated(err)
	}
	if over := ended(r.ctx, r.doing); over != nil {
		return over
	}
	if _, ok := errors.AsType[*platform.Error](err); ok {
		return err
	}
	return fmt.Errorf("%s: %w", r.doing, err)
}

// tarReader reads the unpacked stream and holds the limits on it.
type tarReader struct {
	from     io.Reader
	packed   *packedReader
	limits   Limits
	count    int64
	finished bool // the end was asked for and there was nothing more
	err      error
}

func (r *tarReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.from.Read(p)
	r.count += int64(n)
	if over := r.limits.check(r.count, r.packed.count); over != nil {
		r.err = over
		return 0, over
	}
	if n > 0 && err == io.EOF {
		err = nil // it comes again, alone
	}
	if err == io.EOF {
		r.finished = true
	} else if err != nil {
		r.err = err
	}
	return n, err
}

func (l Limits) check(unpacked, packed int64) error {
	if unpacked > l.UnpackedBytes {
		return platform.Errorf(platform.TooLarge, "unpacked_too_large",
			"the archive unpacks to more than %s; leave out what the build does not need", size(l.UnpackedBytes))
	}
	// Division, because a product could overflow.
	if unpacked > RatioGraceBytes && unpacked/int64(l.Ratio) > packed {
		return platform.Errorf(platform.TooLarge, "ratio_exceeded",
			"the archive unpacks to more than %d times its size (%s from %s so far); leave out large files of nothing but repetition", l.Ratio, size(unpacked), size(packed))
	}
	return nil
}

// decompress puts the decoder for the format on top of r. close frees it.
func decompress(r *bufio.Reader, f format) (io.Reader, func(), error) {
	switch f {
	case formatZstd:
		// Concurrency 1 decodes in the caller's goroutine, one block at a time.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return d, d.Close, nil
	case formatGzip:
		d, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		return d, func() {}, nil
	}
	return r, func() {}, nil
}

// explain gives the cause of an error that came up through the layers, lowest
// layer first.
func explain(err error, packed *packedReader, tar *tarReader, f format) error {
	if _, ok := errors.AsType[*platform.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*makeError](err); ok {
		return err
	}
	if packed.err != nil {
		return packed.err
	}
	if tar != nil && tar.err != nil {
		err = tar.err
		if _, ok := errors.AsType[*platform.Error](err); ok {
			return err
		}
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return truncated(nil)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return platform.Wrap(err, platform.Invalid, "window_too_large",
			"the zstd stream needs a window of more than %s; pack it with level 20 or below and without --long", size(maxWindow))
	}
	return platform.Errorf(platform.Invalid, "bad_archive", "the upload is no intact %s archive: %v", f, err)
}

func truncated(err error) error {
	return &platform.Error{Kind: platform.Invalid, Code: "truncated", Message: "the archive ends before it is complete; send it again", Err: err}
}
