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

// An nsID identifies a namespace independent of its name.
type nsID struct{ dev, ino uint64 }

// killInside kills every process in the named namespaces, such as one that a killed flanneld has
// left. It never kills processes in the machine's own namespace or the calling process.
func killInside(ctx context.Context, paths []string) error {
	// Not /proc/self, which is the first thread: Go parks it forever when a goroutine ends on it
	// that has locked it, such as one that has created a namespace. So that thread may be in a
	// namespace of the lab.
	own, err := namespaceOf("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	inside := map[nsID]bool{}
	for _, path := range paths {
		// A file that is not a namespace was never mounted, or is already unmounted.
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

// killProcess kills a process that is still in one of the namespaces and waits until it has ended.
func killProcess(ctx context.Context, pid int, inside map[nsID]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !isIn(pid, inside) { // the number may have been reused before it was opened
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	// A pidfd becomes readable when the process has ended.
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
