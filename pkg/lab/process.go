package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inheritedEnv names the variables that programs in the lab share with its owner; GOCOVERDIR collects their coverage.
const inheritedEnv = "PATH HOME TMPDIR GOCOVERDIR"

// A Command says which program a host is to run.
type Command struct {
	Path string   // the binary; empty means Options.Flanneld
	Args []string // without the program's name
	Env  []string // "KEY=value", added to PATH, HOME, TMPDIR, GOCOVERDIR and what the lab sets
	// Stored is the descriptor store that the process begins with, passed to it as systemd does (sd_listen_fds(3)): that of
	// an earlier Process.
	Stored []*os.File
	// Output takes what the process prints instead of its log file; nil: it goes there.
	Output *os.File
	// Unit restricts the process. Host.Run takes that of the lab for flanneld.
	Unit *Unit
}

// A Process is a program running inside a namespace. It dies with the program that owns the lab, however that ends.
type Process struct {
	cmd     *exec.Cmd
	log     string
	started time.Time
	ready   *notifySocket
	done    chan struct{} // closed once the process has been waited for
}

// startProcess starts a program inside ns with its output going to the file log.
func (l *Lab) startProcess(ns *Namespace, c Command, log string) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer out.Close()
	ready, err := listenNotify(l.state.socketPath(), c.Stored)
	if err != nil {
		return nil, err
	}
	p := &Process{log: log, ready: ready, done: make(chan struct{})}
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if c.Output != nil {
		p.cmd.Stdout, p.cmd.Stderr = c.Output, c.Output
	}
	for _, key := range strings.Fields(inheritedEnv) {
		if value, ok := os.LookupEnv(key); ok {
			p.cmd.Env = append(p.cmd.Env, key+"="+value)
		}
	}
	p.cmd.Env = append(append(p.cmd.Env, "NOTIFY_SOCKET="+ready.path), c.Env...)
	if c.Unit != nil {
		if err := c.Unit.apply(p.cmd); err != nil {
			ready.close()
			return nil, err
		}
	}
	if len(c.Stored) > 0 {
		p.passFiles(c.Stored)
	}
	// An own process group keeps the terminal's Ctrl-C away: the lab stops its processes itself.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	err = l.spawner.run(func() error {
		p.started = time.Now()
		return ns.Do(p.cmd.Start)
	})
	if err != nil {
		ready.close()
		return nil, fmt.Errorf("start %s in %s: %w", c.Path, ns.Name, err)
	}
	go func() {
		p.cmd.Wait() // its error is the exit code, read from ProcessState
		ready.close()
		close(p.done)
	}()
	l.track(p)
	return p, nil
}

// passFiles puts a shell before the program, because LISTEN_PID is known only after the fork.
func (p *Process) passFiles(files []*os.File) {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name()
	}
	p.cmd.ExtraFiles = files
	p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	p.cmd.Args = append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, p.cmd.Args...)
	p.cmd.Path = "/bin/sh"
}

// Stored gives the descriptor store that the process leaves to the next one: what it began with, and what it has put there
// and not removed (FDSTORE=1 of sd_notify(3)). It must be taken before the process ends, unless KeepStored was called. Each File has its name in the store,
// and is the caller's from now on.
func (p *Process) Stored() []*os.File { return p.ready.takeStored() }

// KeepStored makes the descriptor store outlive the process, as in a restart by systemd. What the process leaves there is
// to be had from Stored once Wait has returned.
func (p *Process) KeepStored() {
	p.ready.mu.Lock()
	defer p.ready.mu.Unlock()
	p.ready.keep = true
}

// PID is the process id, as seen by the owner of the lab.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait waits for the process to end and returns its exit code: 128 plus the signal's number for one that was killed.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return exitCode(p.cmd.ProcessState), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d to end: %w", p.PID(), ctx.Err())
	}
}

// Exited tells whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal; to a process that has ended it returns os.ErrProcessDone.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to process %d: %w", s, p.PID(), err)
	}
	return nil
}

// Pause sends SIGSTOP and waits until every thread has stopped. SIGCONT ends it.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WSTOPPED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pause process %d: %w", p.PID(), err)
		}
		return nil
	}
}

// Stop sends SIGTERM and returns the exit code.
func (p *Process) Stop(ctx context.Context) (int, error) { return p.end(ctx, syscall.SIGTERM) }

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill(ctx context.Context) error {
	_, err := p.end(ctx, syscall.SIGKILL)
	return err
}

func (p *Process) end(ctx context.Context, s os.Signal) (int, error) {
	if err := p.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	return p.Wait(ctx)
}

// WaitReady waits for READY=1. It fails at once when the process ends before that; the error holds the end of the log.
func (p *Process) WaitReady(ctx context.Context) error {
	select {
	case <-p.ready.ready:
		return nil
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for READY=1 of process %d: %w; its log ends with:\n%s",
			p.PID(), ctx.Err(), lastLines(p.Logs(), 15))
	}
	select { // the datagram may have come just before the end
	case <-p.ready.ready:
		return nil
	default:
		return fmt.Errorf("wait for READY=1: process %d ended with code %d; its log ends with:\n%s",
			p.PID(), exitCode(p.cmd.ProcessState), lastLines(p.Logs(), 15))
	}
}

// ReadyAfter is the time from exec to READY=1, or 0 when that has not come yet.
func (p *Process) ReadyAfter() time.Duration {
	select {
	case <-p.ready.ready:
		return p.ready.at.Sub(p.started)
	default:
		return 0
	}
}

// Notifications returns every sd_notify datagram the process has sent so far.
func (p *Process) Notifications() []string { return p.ready.all() }

// Logs returns what the process has written to stdout and stderr so far.
func (p *Process) Logs() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func exitCode(s *os.ProcessState) int {
	if status, ok := s.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return s.ExitCode()
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
