package systemd

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Descriptors keeps descriptors open, here and in systemd's descriptor store
// (sd_pid_notify_with_fds(3)), so that what they stand for outlives the process. Without systemd
// it goes with it.
type Descriptors struct {
	log     *slog.Logger
	program executable
	files   map[string]*os.File // by name; each has duplicates in use
}

// NewDescriptors takes over what systemd has kept for this process.
func NewDescriptors(log *slog.Logger) *Descriptors {
	s := &Descriptors{log: log, program: newExecutable(), files: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		s.files[f.Name()] = f
	}
	return s
}

// Close gives the descriptors up here; systemd's remain, unless what it will start next
// is another program: that would have them without knowing, could not bind a socket's
// address and would leave a TUN device without anybody behind it.
func (s *Descriptors) Close() {
	if len(s.files) > 0 && s.program.replaced() {
		s.log.Info("another program has replaced this executable, releasing the tunnel's device and socket", "path", s.program.paths[0])
		s.RemoveAll()
	}
	for _, f := range s.files {
		f.Close()
	}
}

// Names returns the names of what is kept, sorted.
func (s *Descriptors) Names() []string { return slices.Sorted(maps.Keys(s.files)) }

// RemoveAll gives up all that is kept.
func (s *Descriptors) RemoveAll() {
	for _, name := range s.Names() {
		s.Remove(name)
	}
}

// Take returns a duplicate of what is kept under a name.
func (s *Descriptors) Take(name string) (fd int, ok bool) {
	f, ok := s.files[name]
	if !ok {
		return 0, false
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return fd, err == nil
}

// Keep keeps a duplicate of fd under a name.
func (s *Descriptors) Keep(name string, fd int) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.log.Warn("failed to use systemd's descriptor store", "err", err)
		return
	}
	s.files[name] = os.NewFile(uintptr(dup), name)
	s.notify("FDSTORE=1\nFDNAME="+name, dup)
}

// Remove gives up what is kept under a name.
func (s *Descriptors) Remove(name string) {
	s.files[name].Close()
	delete(s.files, name)
	s.notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// notify tells systemd something, if it listens. What fails is worth no more
// than a line: the next restart will lose a few packets.
func (s *Descriptors) notify(state string, fds ...int) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if err := send(path, state, fds); err != nil {
		s.log.Warn("failed to use systemd's descriptor store", "err", err)
	}
}

func send(path, state string, fds []int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s, []byte(state), rights, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		return fmt.Errorf("notify %s: %w", path, err)
	}
	return nil
}
