package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/presence"
	"flanneld/pkg/subnetenv"
)

// Daemon is a running flanneld of this network namespace.
type Daemon struct {
	PID       int
	Args, Env []string // without the program's name; nil if they may not be read
	Stopped   bool     // by a signal
	Foreign   bool     // whose network namespace may not be read: it may be that of another host
}

// maxComm is more than the length of the name of a process.
const maxComm = 64

// maxProcesses limits how many processes are read.
const maxProcesses = 1 << 17

// Daemons returns the processes called flanneld in the network namespace of this process, without
// this process and other subcommands.
func Daemons(ctx context.Context) ([]Daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, localLimit)
	defer cancel()
	return newInput(ctx, "list of processes", localLimit, listDaemons).Get(ctx)
}

func listDaemons(ctx context.Context) (found []Daemon, err error) {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		return nil, errors.Join(errors.New("/proc cannot be read"), err)
	}
	parents := map[int]int{}
	for i, dir := range dirs {
		if ctx.Err() != nil || i > maxProcesses {
			return nil, fmt.Errorf("too many processes: %d", len(dirs))
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		comm, err := readStart(filepath.Join(dir, "comm"), maxComm)
		if err != nil || strings.TrimSpace(string(comm)) != "flanneld" {
			continue
		}
		// A process that ends loses its arguments first, then its namespaces, and becomes a zombie
		// last. Before Linux 5.18, a program may have no arguments, but no flanneld is started so.
		args, unread := readStart(filepath.Join(dir, "cmdline"), 1<<20)
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		switch {
		case unread == nil && len(args) == 0, err != nil && !errors.Is(err, fs.ErrPermission):
			continue // it ends
		case err == nil && ns != here:
			continue
		}
		d := Daemon{PID: pid, Foreign: err != nil}
		if d.Args = words(args); len(d.Args) > 0 {
			d.Args = d.Args[1:]
		}
		if env, err := readStart(filepath.Join(dir, "environ"), 1<<20); err == nil {
			d.Env = words(env)
		}
		stat, _ := readStart(filepath.Join(dir, "stat"), 4<<10)
		state, parent := processState(stat)
		parents[pid], d.Stopped = parent, state == 'T'
		if state == 'Z' || state == 'X' || len(d.Args) > 0 && !strings.HasPrefix(d.Args[0], "-") && !strings.HasPrefix(d.Args[0], "/") {
			continue // it has ended, or is a subcommand
		}
		found = append(found, d)
	}
	// A child has its parent's name until it executes another program.
	found = slices.DeleteFunc(found, func(d Daemon) bool {
		return slices.ContainsFunc(found, func(p Daemon) bool { return p.PID == parents[d.PID] })
	})
	slices.SortFunc(found, func(a, b Daemon) int { return a.PID - b.PID })
	if len(found) > 0 {
		return found, nil
	}
	// A daemon in another PID namespace is visible by its registration only.
	registered, err := presence.Daemons()
	for _, r := range registered {
		found = append(found, Daemon{PID: r.PID})
	}
	if _, hidden := readStart("/proc/1/comm", maxComm); hidden != nil && len(found) == 0 && err == nil {
		err = errors.New("processes of other users are hidden (hidepid of proc(5)); run the doctor as root")
	}
	return found, err
}

// readStart returns the begin of a file.
func readStart(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(localLimit)) // of no effect on most files
	return io.ReadAll(io.LimitReader(f, int64(most)))
}

// words splits arguments or an environment in the form of /proc.
func words(b []byte) []string {
	if b = bytes.TrimRight(b, "\x00"); len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// processState returns the state and the parent in /proc/PID/stat (proc_pid_stat(5)); the name
// before them may contain anything.
func processState(stat []byte) (state byte, parent int) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(string(fields[1])) // 0 is no process
	return fields[0][0], parent
}

// SubnetFile returns the subnet file of a daemon.
func (d Daemon) SubnetFile() string { return d.setting("subnet-file", subnetenv.DefaultFile) }

// setting returns the value of a flag in the arguments or the environment of a daemon, or a default.
func (d Daemon) setting(flag, otherwise string) string {
	variable := "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_")) + "="
	for _, kv := range d.Env {
		if v, ok := strings.CutPrefix(kv, variable); ok && v != "" {
			otherwise = v
		}
	}
	for i, word := range d.Args {
		name, value, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
		switch {
		case name != flag || !strings.HasPrefix(word, "-"):
		case has:
			otherwise = value
		case i+1 < len(d.Args):
			otherwise = d.Args[i+1]
		}
	}
	return otherwise
}
