package main

import (
	crand "crypto/rand"
	"crypto/sha256"
	"encoding"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// source is a file that becomes another blob by its last bytes, so that a new
// large one costs nothing to make.
type source struct {
	path   string
	size   int64
	prefix []byte // state of SHA-256 before the last bytes
}

const stampSize = 64

// newSource makes a file of noise.
func newSource(path string, size int64) (*source, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &source{path: path, size: size}
	hash := sha256.New()
	noise := io.LimitReader(rand.NewChaCha8([32]byte{}), size-stampSize)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, hash)}, noise, make([]byte, 1<<20)); err != nil {
		return nil, fmt.Errorf("making content to push: %w", err)
	}
	if s.prefix, err = hash.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return nil, err
	}
	return s, f.Sync()
}

// next makes another blob of the source, and opens it.
func (s *source) next() (*os.File, digest.Digest, error) {
	stamp := make([]byte, stampSize)
	_, _ = crand.Read(stamp) // never fails (crypto/rand)
	hash := sha256.New()
	if err := hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.prefix); err != nil {
		return nil, "", err
	}
	_, _ = hash.Write(stamp) // never fails (hash.Hash)
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	if _, err := f.WriteAt(stamp, s.size-stampSize); err != nil {
		_ = f.Close()
		return nil, "", err
	}
	return f, digest.NewDigest(digest.SHA256, hash), nil
}

// warm has free memory backed for real, as much as a blob of that size takes. A
// virtual machine may have handed memory that was free for some seconds back
// to its host, and who uses it next pays for getting it again: with more than
// it costs to hash what is written into it.
func warm(size int64) error {
	memory, err := syscall.Mmap(-1, 0, int(size+size/2), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("warming up memory: %w", err)
	}
	return syscall.Munmap(memory)
}
