package registry_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// BenchmarkDurableBlob pushes new blobs of 64 KiB by POST and PUT, over a
// connection. Each is synced, and so is its row, before the answer.
func BenchmarkDurableBlob(b *testing.B) {
	s := newDepot(b)
	server := httptest.NewServer(s)
	b.Cleanup(server.Close)
	content := make([]byte, 64<<10)
	n := uint64(0)
	b.SetBytes(int64(len(content)))
	var took []time.Duration
	for b.Loop() {
		n++
		binary.LittleEndian.PutUint64(content, n)
		d := digest.FromBytes(content).String()
		began := time.Now()
		location := s.send(server, http.MethodPost, uploads, nil, 0, http.StatusAccepted).Get("Location")
		s.send(server, http.MethodPut, location+"?digest="+d, bytes.NewReader(content), int64(len(content)), http.StatusCreated)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
}

// BenchmarkLargeBlob pushes and pulls 256 MiB over a connection.
func BenchmarkLargeBlob(b *testing.B) {
	const size = 256 << 20
	h := digest.SHA256.Digester()
	if _, err := io.Copy(h.Hash(), &zeros{left: size}); err != nil {
		b.Fatal(err)
	}
	d := h.Digest().String()
	for name, run := range map[string]func(s *depot, server *httptest.Server){
		"push": func(s *depot, server *httptest.Server) {
			location := s.send(server, http.MethodPost, uploads, nil, 0, http.StatusAccepted).Get("Location")
			s.send(server, http.MethodPut, location+"?digest="+d, &zeros{left: size}, size, http.StatusCreated)
		},
		"pull": func(s *depot, server *httptest.Server) {
			s.send(server, http.MethodGet, "/v2/team/app/blobs/"+d, nil, 0, http.StatusOK)
		},
	} {
		b.Run(name, func(b *testing.B) {
			s := newDepot(b)
			server := httptest.NewServer(s)
			b.Cleanup(server.Close)
			s.send(server, http.MethodPost, uploads+"?digest="+d, &zeros{left: size}, size, http.StatusCreated)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				run(s, server)
			}
		})
	}
}

// send sends a request and reads the answer to its end.
func (s *depot) send(server *httptest.Server, method, path string, body io.Reader, length int64, status int) http.Header {
	s.t.Helper()
	r, err := http.NewRequest(method, server.URL+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.ContentLength = length
	r.SetBasicAuth("ann", "nna")
	resp, err := server.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != status {
		s.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
	return resp.Header
}

// zeros reads as many zeros.
type zeros struct {
	left int64
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), z.left)
	clear(b[:n])
	z.left -= n
	return int(n), nil
}
