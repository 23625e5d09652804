package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// A line of strace's: "17 sendfile(12, 14, NULL, 4194304) = 2531220", or the
// second half of one that was interrupted.
var syscallLine = regexp.MustCompile(`\b(sendfile|splice|writev?|sendto)(?:\(| resumed>).*= (\d+)$`)

// traced runs work and returns how many bytes the server moved by which system
// call, in MiB, and how many calls of sendfile that were. sendfile copies from
// the file to the socket inside the kernel; whatever a server reads and writes
// itself shows as write.
func (p *process) traced(ctx context.Context, work func() error) (s sample, err error) {
	program, err := exec.LookPath("strace")
	if err != nil {
		return nil, errors.New("strace is not installed")
	}
	dir, err := os.MkdirTemp("", "registrybench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "calls")
	args := []string{"-f", "-q", "-e", "trace=sendfile,splice,write,writev,sendto", "-e", "signal=none", "-s", "0", "-o", out}
	for _, pid := range p.family() {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	var said bytes.Buffer
	tracer := exec.CommandContext(ctx, program, args...)
	tracer.Stderr = &said
	if err := tracer.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = tracer.Wait()
		close(ended)
	}()
	defer func() {
		_ = tracer.Process.Signal(os.Interrupt)
		<-ended
		if err == nil {
			s, err = readTrace(out)
		}
	}()
	for !p.isTraced() {
		select {
		case <-ended:
			return nil, fmt.Errorf("strace: %s", said.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil, work()
}

// isTraced tells whether all threads are.
func (p *process) isTraced() bool {
	for _, pid := range p.family() {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return false
		}
		for _, thread := range threads {
			if status, err := os.ReadFile(thread); err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) {
				return false
			}
		}
	}
	return true
}

func readTrace(path string) (sample, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := sample{"sendfile_mib": 0, "sendfile_calls": 0, "other_mib": 0}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		found := syscallLine.FindStringSubmatch(lines.Text())
		if found == nil {
			continue
		}
		n, err := strconv.ParseInt(found[2], 10, 64)
		if err != nil {
			return nil, err
		}
		if found[1] == "sendfile" {
			s["sendfile_mib"] += mib(n)
			s["sendfile_calls"]++
		} else {
			s["other_mib"] += mib(n)
		}
	}
	return s, lines.Err()
}
