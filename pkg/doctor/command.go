package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// maxOutput limits what is kept of a command's output. A host with many services has some
	// megabytes of packet filter rules.
	maxOutput = 8 << 20
	// exitDelay limits the wait for children of a killed command that keep its output open.
	exitDelay = 200 * time.Millisecond
)

// errNoCommand means that a command is not installed.
var errNoCommand = errors.New("not installed")

// output runs a command until ctx ends, and returns what it writes to its standard output, up to
// maxOutput. The error has the command's first line of standard error. errNoCommand means that it
// is not installed.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := lookUp(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	running, end := context.WithCancel(ctx)
	defer end()
	c := exec.CommandContext(running, path, args...)
	// The group is killed with the command, so that no child of a script outlives the doctor.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = exitDelay
	c.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
	var out, errs limitedBuffer
	out.room, errs.room, out.full = maxOutput, 4<<10, end
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	switch {
	case out.cut:
		return out.kept, fmt.Errorf("%s: more than %d bytes of output", name, maxOutput)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: no answer in time", name)
	case err != nil:
		first, _, _ := strings.Cut(strings.TrimSpace(string(errs.kept)), "\n")
		return out.kept, fmt.Errorf("%s: %w: %s", name, err, first)
	}
	return out.kept, nil
}

// lookUp returns the path of a command. The administrator's directories may be missing in PATH.
func lookUp(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", errNoCommand
}

// limitedBuffer keeps the begin of what is written to it. It has no method ReadFrom, which would
// read without a limit.
type limitedBuffer struct {
	kept []byte
	room int
	cut  bool
	full func() // called by a write for which there is no room; may be nil
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), b.room)
	b.cut = b.cut || n < len(p)
	b.room -= n
	b.kept = append(b.kept, p[:n]...)
	if b.cut && b.full != nil {
		b.full()
	}
	return len(p), nil
}
