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

// inheritedEnv are variables that programs in the lab inherit. GOCOVERDIR collects their coverage.
const inheritedEnv = "PATH HOME TMPDIR GOCOVERDIR"

// A Command is a program to run on a host.
type Command struct {
	Path string   // the binary; empty: Options.Flanneld
	Args []string // without the program's name
	Env  []string // "KEY=value", added to PATH, HOME, TMPDIR, GOCOVERDIR and what the lab sets
	// Stored is the initial descriptor store of the process, taken from an earlier Process. It is
	// passed as systemd does (sd_listen_fds(3)).
	Stored []*os.File
	// Output receives the output of the process instead of its log file; nil: the log file.
	Output *os.File
	// Unit restricts the process. Host.Run uses the lab's unit for flanneld.
	Unit *Unit
}

// A Process is a program that runs inside a namespace. It ends with the program that owns the lab.
type Process struct {
	cmd     *exec.Cmd
	log     string
	started time.Time
	ready   *notifySocket
	done    chan struct{} // closed after the process has been waited for
}

// startProcess starts a program inside ns. Its output goes to the file log.
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
	// The process has its own group, so that Ctrl-C in the terminal does not reach it: the lab
	// stops its processes itself.
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

// passFiles runs the program by a shell, because LISTEN_PID is known only after the fork.
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

// Stored returns the descriptor store that the process leaves to the next one: its initial content,
// and what it has added and not removed (FDSTORE=1 of sd_notify(3)). Call it before the process
// ends, unless KeepStored was called. The name of each File is its name in the store. The caller
// owns the files.
func (p *Process) Stored() []*os.File { return p.ready.takeStored() }

// KeepStored makes the descriptor store outlive the process, as in a restart by systemd. Call
// Stored after Wait.
func (p *Process) KeepStored() {
	p.ready.mu.Lock()
	defer p.ready.mu.Unlock()
	p.ready.keep = true
}

// PID returns the process ID in the namespace of the owner of the lab.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait waits until the process ends and returns its exit code, or 128 plus the signal's number if
// it was killed.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return exitCode(p.cmd.ProcessState), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d to end: %w", p.PID(), ctx.Err())
	}
}

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal. If the process has ended, it returns os.ErrProcessDone.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to process %d: %w", s, p.PID(), err)
	}
	return nil
}

// Pause sends SIGSTOP and waits until all threads have stopped. Send SIGCONT to resume.
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

// Kill sends SIGKILL and waits for the end of the process.
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

// WaitReady waits for READY=1. It fails at once if the process ends first; the error contains the
// end of the log.
func (p *Process) WaitReady(ctx context.Context) error {
	select {
	case <-p.ready.ready:
		return nil
	case <-p.done:
	case <-ctx.Done():
	}
	if p.ReadyAfter() > 0 { // the message arrived just before the end
		return nil
	}
	err := ctx.Err()
	if p.Exited() {
		err = fmt.Errorf("it ended with code %d", exitCode(p.cmd.ProcessState))
	}
	return fmt.Errorf("wait for READY=1 of process %d: %w; its log ends with:\n%s", p.PID(), err, lastLines(p.Logs(), 15))
}

// ReadyAfter returns the time from exec to READY=1, or 0 before READY=1.
func (p *Process) ReadyAfter() time.Duration {
	select {
	case <-p.ready.ready:
		return p.ready.at.Sub(p.started)
	default:
		return 0
	}
}

// Notifications returns all sd_notify messages of the process so far.
func (p *Process) Notifications() []string { return p.ready.all() }

// Logs returns the output of the process so far.
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
