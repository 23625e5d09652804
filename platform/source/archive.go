package source

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/denia-paas/denia/platform"
)

// entry is one thing to make when an archive is unpacked.
type entry struct {
	*node
	kind     kind
	replaced bool  // a file or link of the same name came before
	to       *node // the file a hard link names
	header   *tar.Header
}

// visitor makes what a checked entry says. data gives a regular file's
// content; what it leaves unread is read and checked all the same.
type visitor func(e entry, data io.Reader) error

// walk reads the whole archive from packed, applies every rule to it, and
// calls visit for each entry once it has passed. declared is the format the
// sender named, empty to go by the first bytes. It returns the tree the
// archive describes.
func walk(packed *packedReader, declared format, limits Limits, visit visitor) (*tree, error) {
	buffered := bufio.NewReaderSize(packed, readAhead)
	first, err := buffered.Peek(4)
	if packed.err != nil {
		return nil, packed.err
	}
	if err != nil {
		if packed.count == 0 {
			return nil, platform.Errorf(platform.Invalid, "empty_archive", "the upload is empty; send a tar of the directory that holds the Dockerfile")
		}
		return nil, truncated(nil)
	}
	found := sniff(first)
	if declared != "" && declared != found {
		return nil, platform.Errorf(platform.Invalid, "bad_archive", "the upload is sent as %s (%s) but looks like %s (%s)", string(declared), declared, found, string(found))
	}
	unpacked, closeDecoder, err := decompress(buffered, found)
	if err != nil {
		return nil, explain(err, packed, nil, found)
	}
	defer closeDecoder()
	stream := &tarReader{from: unpacked, packed: packed, limits: limits}
	t, err := walkTar(stream, limits, visit)
	if err != nil {
		return nil, explain(err, packed, stream, found)
	}
	return t, nil
}

func walkTar(stream *tarReader, limits Limits, visit visitor) (*tree, error) {
	t := newTree(limits.Entries)
	archive := tar.NewReader(stream)
	content := &contentReader{archive: archive, stream: stream}
	buffer := make([]byte, 64<<10)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			// "git archive" writes one; it names nothing.
			if err := t.count(); err != nil {
				return nil, err
			}
			continue
		}
		e, err := check(t, header, limits)
		if err != nil {
			return nil, naming(header.Name, err)
		}
		if visit != nil {
			if err := visit(e, content); err != nil {
				return nil, naming(header.Name, err)
			}
		}
		if err := drain(content, buffer); err != nil {
			return nil, naming(header.Name, err)
		}
	}
	if stream.finished {
		// Two blocks of zeros end a tar. Without them it may have been cut
		// between two entries, and the build would miss files.
		return nil, truncated(nil)
	}
	if err := padding(stream, buffer); err != nil {
		return nil, err
	}
	return t, t.finish()
}

// check applies the rules to one header.
func check(t *tree, header *tar.Header, limits Limits) (entry, error) {
	var k kind
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		k = file
	case tar.TypeDir:
		k = dir
	case tar.TypeSymlink:
		k = symlink
	case tar.TypeLink:
		k = hardlink
	default:
		return entry{}, notAllowed(header.Name, "is %s; only files, directories and links are taken", typeName(header.Typeflag))
	}
	// The mode can contradict the type: sockets have no type of their own.
	const typeBits, fifo, char, block, socket = 0o170000, 0o010000, 0o020000, 0o060000, 0o140000
	switch header.Mode & typeBits {
	case fifo, char, block, socket:
		return entry{}, notAllowed(header.Name, "has the mode of a device, fifo or socket; only files, directories and links are taken")
	}
	if k == file && (header.Size < 0 || header.Size > limits.UnpackedBytes) {
		return entry{}, platform.Errorf(platform.TooLarge, "unpacked_too_large",
			"entry %s says it is %d bytes large; the archive may unpack to %s", quote(header.Name), header.Size, size(limits.UnpackedBytes))
	}
	n, replaced, to, err := t.add(header.Name, k, header.Linkname)
	if err != nil {
		return entry{}, err
	}
	if k == dir {
		n.perm, n.mtime = permissions(header, k), header.ModTime
	}
	return entry{node: n, kind: k, replaced: replaced, to: to, header: header}, nil
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeChar:
		return "a character device"
	case tar.TypeBlock:
		return "a block device"
	case tar.TypeFifo:
		return "a fifo"
	}
	return fmt.Sprintf("of the unknown type %q", string(rune(flag)))
}

// permissions drops set-uid, set-gid and sticky, and keeps what Denia itself
// needs to read the tree and to remove it.
func permissions(header *tar.Header, k kind) uint32 {
	perm := uint32(header.Mode) & 0o777
	if k == dir {
		return perm | 0o700
	}
	return perm | 0o400
}

// contentReader reads the current entry's content. It holds the limits on
// contents too, which are larger than the stream where a file has holes.
type contentReader struct {
	archive *tar.Reader
	stream  *tarReader
	count   int64
}

func (r *contentReader) Read(p []byte) (int, error) {
	n, err := r.archive.Read(p)
	r.count += int64(n)
	if over := r.stream.limits.check(r.count, r.stream.packed.count); over != nil {
		return 0, over
	}
	return n, err
}

func drain(r io.Reader, buffer []byte) error {
	for {
		if _, err := r.Read(buffer); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// padding reads what follows the end marker: zeros up to the size of a tape
// record, and the decoder's own end with its checksum.
func padding(stream io.Reader, buffer []byte) error {
	for {
		n, err := stream.Read(buffer)
		for _, b := range buffer[:n] {
			if b != 0 {
				return platform.Errorf(platform.Invalid, "trailing_data", "the archive goes on after its end; tars put one after another are not taken")
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
