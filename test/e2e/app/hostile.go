package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// hostile is what no server should do, by the path below /hostile/.
func hostile(mux *http.ServeMux) {
	deeds := map[string]func(net.Conn, *bufio.ReadWriter){
		"silent":  func(_ net.Conn, rw *bufio.ReadWriter) { _, _ = rw.Discard(1 << 30) },
		"close":   func(net.Conn, *bufio.ReadWriter) {},
		"garbage": func(c net.Conn, _ *bufio.ReadWriter) { fmt.Fprint(c, strings.Repeat("\x00\xffSSH-2.0\r\n\r\n", 1000)) },
		"length": func(c net.Conn, _ *bufio.ReadWriter) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", strings.Repeat("begun", 10_000))
		},
		"chunks": func(c net.Conn, _ *bufio.ReadWriter) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n10000\r\nand")
		},
		"head": func(c net.Conn, _ *bufio.ReadWriter) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
			for line := "X-Endless: " + strings.Repeat("x", 1000) + "\r\n"; ; {
				if _, err := fmt.Fprint(c, line); err != nil {
					return
				}
			}
		},
	}
	mux.HandleFunc("/hostile/{deed}", func(w http.ResponseWriter, r *http.Request) {
		deed, known := deeds[r.PathValue("deed")]
		if !known {
			http.NotFound(w, r)
			return
		}
		c, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		deed(c, buffered)
	})
}
