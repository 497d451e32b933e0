package systemd

import (
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Descriptors keeps descriptors open, in this process and in systemd's descriptor store
// (sd_pid_notify_with_fds(3)), so that their objects outlive the process. Without systemd they do
// not.
type Descriptors struct {
	log     *slog.Logger
	program executable
	files   map[string]*os.File // by name; duplicates of them are in use
}

// NewDescriptors returns the descriptors that systemd has kept for this process.
func NewDescriptors(log *slog.Logger) *Descriptors {
	s := &Descriptors{log: log, program: newExecutable(), files: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		s.files[f.Name()] = f
	}
	return s
}

// Close closes the descriptors in this process. Those of systemd remain, unless it will start
// another program next: that would inherit them unknowingly, could not bind a socket's address, and
// would leave a TUN device unserved.
func (s *Descriptors) Close() {
	if len(s.files) > 0 && s.program.replaced() {
		s.log.Info("another program has replaced this executable, releasing the tunnel's device and socket", "path", s.program.paths[0])
		s.RemoveAll()
	}
	for _, f := range s.files {
		f.Close()
	}
}

// Names returns the names of the descriptors, sorted.
func (s *Descriptors) Names() []string { return slices.Sorted(maps.Keys(s.files)) }

// RemoveAll removes all descriptors.
func (s *Descriptors) RemoveAll() {
	for _, name := range s.Names() {
		s.Remove(name)
	}
}

// Take returns a duplicate of a descriptor.
func (s *Descriptors) Take(name string) (fd int, ok bool) {
	f, ok := s.files[name]
	if !ok {
		return 0, false
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return fd, err == nil
}

// Keep stores a duplicate of fd under a name.
func (s *Descriptors) Keep(name string, fd int) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.log.Warn("failed to use systemd's descriptor store", "err", err)
		return
	}
	s.files[name] = os.NewFile(uintptr(dup), name)
	s.notify("FDSTORE=1\nFDNAME="+name, dup)
}

// Remove removes a descriptor.
func (s *Descriptors) Remove(name string) {
	s.files[name].Close()
	delete(s.files, name)
	s.notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// notify sends a notification to systemd, if it listens. A failure is only logged, because its only
// consequence is that the next restart loses a few packets.
func (s *Descriptors) notify(state string, fds ...int) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(socket)
		err = unix.Sendmsg(socket, []byte(state), unix.UnixRights(fds...), &unix.SockaddrUnix{Name: path}, 0)
	}
	if err != nil {
		s.log.Warn("failed to use systemd's descriptor store", "err", err)
	}
}
