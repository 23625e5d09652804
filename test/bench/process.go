package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Command is a server to start.
type Command struct {
	Name    string // what the report calls it
	Address string // host:port it serves plain HTTP on
	Secure  string // host:port it serves TLS on; empty: it does not
	Admin   string // host:port of Caddy's admin endpoint; empty: none
	Dir     string // it runs in
	Env     []string
	Program string
	Args    []string
}

// Process is a server that was started for a run.
type Process struct {
	Command
	cmd  *exec.Cmd
	done chan struct{}
	log  *tail
}

// Start starts a server and returns when it listens. It goes on until End, also
// when the context ends or somebody presses Ctrl-C: there may be something to
// take away with its help.
func Start(ctx context.Context, c Command) (*Process, error) {
	p := &Process{Command: c}
	return p, p.start(ctx)
}

func (p *Process) start(ctx context.Context) error {
	p.log = new(tail)
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), installed(p.Program), p.Args...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for its whole group
	p.cmd.Dir = p.Dir
	p.cmd.Env = append(os.Environ(), p.Env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.done = done
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(done)
	}()
	err := Until(ctx, 30*time.Second, 10*time.Millisecond, p.Name+" listens", func() (bool, error) {
		select {
		case <-done:
			return false, fmt.Errorf("%s ended at its start", p.Name)
		default:
			return Listens(ctx, p.Address) && (p.Secure == "" || Listens(ctx, p.Secure)), nil
		}
	})
	if err != nil {
		p.End()
		return fmt.Errorf("%w\n%s", err, p.log)
	}
	// For those who want to look on, with a profile for example.
	Say("%-18s is process %d on %s %s %s", p.Name, p.PID(), p.Address, p.Secure, p.Admin)
	return nil
}

// installed finds a program also where only root's PATH leads.
func installed(program string) string {
	if _, err := exec.LookPath(program); err != nil && filepath.Base(program) == program {
		return filepath.Join("/usr/sbin", program)
	}
	return program
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Usage is what the process and its children have used.
func (p *Process) Usage() (Usage, error) {
	u, err := UsageOf(p.PID())
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", p.Name, err, p.log)
	}
	return u, err
}

// Log is the end of what the process has written.
func (p *Process) Log() string { return p.log.String() }

// Restart ends the process and starts it anew, with the same command.
func (p *Process) Restart(ctx context.Context) error {
	p.End()
	return p.start(ctx)
}

// End stops the process and waits for it. It may be repeated.
func (p *Process) End() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail keeps the end of a process's output.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 8<<10; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// Listens tells whether somebody accepts connections on an address.
func Listens(ctx context.Context, address string) bool {
	dialer := &net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// FreeAddresses finds addresses on loopback on which nobody listens yet.
func FreeAddresses(ctx context.Context, into ...*string) error {
	for _, address := range into {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close() // when all are found, so that they differ
		*address = l.Addr().String()
	}
	return nil
}

// Port is the port of an address.
func Port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
