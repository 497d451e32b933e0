package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

// An nsID identifies a namespace whatever its name.
type nsID struct{ dev, ino uint64 }

// killInside ends every process in the named namespaces: what a killed flanneld has left running, for example. The
// machine's own namespace and the calling process are never touched, whatever the files stand for.
func killInside(ctx context.Context, paths []string) error {
	// Not /proc/self: Go parks the process's first thread for ever when a goroutine ends on it that has locked it, as the
	// one that makes a namespace does, so that thread may stand in one of the lab's.
	own, err := namespaceOf("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	inside := map[nsID]bool{}
	for _, path := range paths {
		// A file that is not a namespace is one whose mount was never made or is already undone.
		if id, err := namespaceOf(path); err == nil && id != own {
			inside[id] = true
		}
	}
	if len(inside) == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !isIn(pid, inside) {
			continue
		}
		if err := killProcess(ctx, pid, inside); err != nil {
			return err
		}
	}
	return nil
}

// killProcess kills a process that still lives in one of the namespaces and waits until it is gone.
func killProcess(ctx context.Context, pid int, inside map[nsID]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !isIn(pid, inside) { // the number may have been given to another process before it was opened
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	// A descriptor of a process becomes readable when the process has ended.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return wait.Until(ctx, func() error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10)
		if n > 0 {
			return nil
		}
		return fmt.Errorf("process %d does not end: %w", pid, errors.Join(err, os.ErrDeadlineExceeded))
	})
}

func isIn(pid int, inside map[nsID]bool) bool {
	id, err := namespaceOf(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && inside[id]
}

func namespaceOf(path string) (nsID, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(path, &fs), unix.Stat(path, &st)); err != nil {
		return nsID{}, fmt.Errorf("read namespace %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nsID{}, fmt.Errorf("read namespace %s: not a namespace", path)
	}
	return nsID{dev: uint64(st.Dev), ino: st.Ino}, nil
}
