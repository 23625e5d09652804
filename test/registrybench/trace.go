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

	"github.com/denia-paas/denia/test/bench"
)

// A line of strace's: "17 sendfile(12, 14, NULL, 4194304) = 2531220", or the
// second half of one that was interrupted.
var syscallLine = regexp.MustCompile(`\b(sendfile|splice|writev?|sendto)(?:\(| resumed>).*= (\d+)$`)

// traced runs work and returns how many bytes the server moved by which system
// call, in MiB, and how many calls of sendfile that were. sendfile copies from
// the file to the socket inside the kernel; whatever a server reads and writes
// itself shows as write.
func traced(ctx context.Context, p *bench.Process, work func() error) (s bench.Sample, err error) {
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
	for _, pid := range bench.Family(p.PID()) {
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
	if err := bench.Until(ctx, 10*time.Second, 10*time.Millisecond, "strace traces every thread", func() (bool, error) {
		select {
		case <-ended:
			return false, fmt.Errorf("strace: %s", said.String())
		default:
			return isTraced(p), nil
		}
	}); err != nil {
		return nil, err
	}
	return nil, work()
}

// isTraced tells whether all threads are.
func isTraced(p *bench.Process) bool {
	for _, pid := range bench.Family(p.PID()) {
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

func readTrace(path string) (bench.Sample, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bench.Sample{"sendfile_mib": 0, "sendfile_calls": 0, "other_mib": 0}
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
			s["sendfile_mib"] += bench.MiB(n)
			s["sendfile_calls"]++
		} else {
			s["other_mib"] += bench.MiB(n)
		}
	}
	return s, lines.Err()
}
