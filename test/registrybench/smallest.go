package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// smallest is what no registry in Go can do with less: it takes a blob by POST,
// PATCH and PUT, hashes and writes it in one go, and syncs the file. It has no
// names, no tokens, no metadata, and forgets everything.
type smallest struct {
	dir string

	mu      sync.Mutex
	uploads map[string]*upload
	made    int
}

type upload struct {
	file *os.File
	hash hash.Hash
}

// serveSmallest serves it until an interrupt.
func serveSmallest(ctx context.Context, address, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	server := &http.Server{Handler: &smallest{dir: dir, uploads: map[string]*upload{}}} //nolint:gosec // its only client is this program
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *smallest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	status := http.StatusCreated
	switch r.Method {
	case http.MethodPost:
		status = http.StatusAccepted
		err = s.begin(w, r)
	case http.MethodPatch:
		status = http.StatusAccepted
		w.Header().Set("Location", r.URL.Path)
		err = s.receive(r)
	case http.MethodPut:
		if err = s.receive(r); err == nil {
			err = s.commit(r)
		}
	default:
		status = http.StatusMethodNotAllowed
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
}

func (s *smallest) begin(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	id := fmt.Sprint(s.made)
	f, err := os.OpenFile(filepath.Join(s.dir, id), os.O_CREATE|os.O_WRONLY|syscall.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	s.uploads[id] = &upload{f, sha256.New()}
	w.Header().Set("Location", r.URL.Path+id)
	return nil
}

func (s *smallest) find(r *http.Request) (*upload, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := path.Base(r.URL.Path)
	if u := s.uploads[id]; u != nil {
		return u, id, nil
	}
	return nil, "", fmt.Errorf("there is no upload %s", id)
}

func (s *smallest) receive(r *http.Request) error {
	u, _, err := s.find(r)
	if err != nil {
		return err
	}
	const align = 4096 // of what is written past the page cache
	const huge = 2 << 20
	room, err := unix.Mmap(-1, 0, 2*huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(room) }()
	page := room[(huge-int(uintptr(unsafe.Pointer(&room[0]))%huge))%huge:][:huge]
	if err := unix.Madvise(page, unix.MADV_HUGEPAGE); err != nil {
		return err
	}
	piece := page[:1<<20]
	for {
		n, reading := io.ReadFull(r.Body, piece)
		_, _ = u.hash.Write(piece[:n]) // never fails (hash.Hash)
		if n%align != 0 {
			if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, u.file.Fd(), syscall.F_SETFL, 0); errno != 0 {
				return errno
			}
		}
		if _, err := u.file.Write(piece[:n]); err != nil {
			return err
		}
		switch {
		case errors.Is(reading, io.EOF), errors.Is(reading, io.ErrUnexpectedEOF):
			return nil
		case reading != nil:
			return reading
		}
	}
}

func (s *smallest) commit(r *http.Request) error {
	u, id, err := s.find(r)
	if err != nil {
		return err
	}
	defer u.file.Close()
	got := "sha256:" + hex.EncodeToString(u.hash.Sum(nil))
	if want := r.URL.Query().Get("digest"); got != want {
		return fmt.Errorf("the digest is %s and not %s", got, want)
	}
	if err := u.file.Sync(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, id)
	return os.Rename(u.file.Name(), filepath.Join(s.dir, strings.TrimPrefix(got, "sha256:")))
}
