package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// A hold keeps a flanneld and the programs that it starts from changing anything on their host,
// while it runs and answers. The kernel asks the test about each system call that could change
// something (seccomp_unotify(2)); while the hold is on, those that would do so fail with EPERM.
type hold struct {
	on      atomic.Bool
	refused atomic.Int64
	socket  string
}

// holdVariable tells a test binary to become a program under a hold: the socket of the hold, and the
// path of the program.
const holdVariable = "FLANNELD_TEST_HOLD"

// newHold returns a hold for the processes of one command after the other. It is off.
func newHold(t *testing.T) *hold {
	t.Helper()
	h := &hold{socket: filepath.Join(t.TempDir(), "hold")}
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := h.take(c); err != nil {
				t.Errorf("hold: %v", err)
			}
		}
	}()
	return h
}

// command returns a command that runs under the hold.
func (h *hold) command(t *testing.T, flanneld string, args ...string) lab.Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return lab.Command{Path: self, Args: args, Env: []string{holdVariable + "=" + h.socket + ":" + flanneld}}
}

// take receives the questions about a process that has just put itself under the hold.
func (h *hold) take(c net.Conn) error {
	defer c.Close()
	var said [64]byte
	n, err := c.Read(said[:])
	if err != nil {
		return err
	}
	pidText, fdText, _ := strings.Cut(string(said[:n]), " ")
	pid, errPID := strconv.Atoi(pidText)
	fd, errFD := strconv.Atoi(fdText)
	if err := errors.Join(errPID, errFD); err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	questions, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return err
	}
	go h.answer(questions)
	_, err = c.Write([]byte("go"))
	return err
}

// question is struct seccomp_notif, and verdict is struct seccomp_notif_resp.
type (
	question struct {
		id    uint64
		pid   uint32
		flags uint32
		nr    int32
		arch  uint32
		ip    uint64
		args  [6]uint64
	}
	verdict struct {
		id    uint64
		value int64
		err   int32
		flags uint32
	}
)

// answer answers questions until all processes that could ask have ended.
func (h *hold) answer(questions int) {
	defer unix.Close(questions)
	for {
		ready := []unix.PollFd{{Fd: int32(questions), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			if ready[0].Revents != 0 {
				return
			}
			continue
		}
		var q question
		if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(questions), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&q))); err != 0 {
			continue // the asking thread has ended
		}
		v := verdict{id: q.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if h.on.Load() && q.changes() {
			h.refused.Add(1)
			v = verdict{id: q.id, err: -int32(unix.EPERM)}
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(questions), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&v))) // or it has ended meanwhile
	}
}

// Options of setsockopt(2) with which iptables' legacy variant writes.
const (
	replaceTable = 64 // IPT_SO_SET_REPLACE
	addCounters  = 65 // IPT_SO_SET_ADD_COUNTERS
)

// changes reports whether a system call would change something on the host.
func (q *question) changes() bool {
	switch q.nr {
	case unix.SYS_SENDTO:
		return changesByNetlink(q.read(q.args[1], min(q.args[2], 16)))
	case unix.SYS_SENDMSG:
		header := q.read(q.args[1], 56) // struct msghdr
		if len(header) < 56 {
			return false
		}
		first := q.read(binary.NativeEndian.Uint64(header[16:]), 16) // struct iovec
		if len(first) < 16 {
			return false
		}
		return changesByNetlink(q.read(binary.NativeEndian.Uint64(first), min(binary.NativeEndian.Uint64(first[8:]), 16)))
	case unix.SYS_SETSOCKOPT:
		return q.args[1] == unix.IPPROTO_IP && (q.args[2] == replaceTable || q.args[2] == addCounters)
	case unix.SYS_OPENAT:
		path, _, _ := bytes.Cut(q.read(q.args[1], 256), []byte{0})
		return bytes.HasPrefix(path, []byte("/proc/sys/net/")) || string(path) == "/dev/net/tun" || bytes.Contains(path, []byte("subnet.env"))
	}
	return false
}

// changesByNetlink reports whether a message, by its header, is one of rtnetlink that sets something,
// or begins a batch for nftables, which has the same type.
func changesByNetlink(header []byte) bool {
	if len(header) < 16 || binary.NativeEndian.Uint32(header) < 16 || binary.NativeEndian.Uint32(header) > 1<<20 {
		return false
	}
	kind := binary.NativeEndian.Uint16(header[4:])
	const get = 2 // the last two bits of the types that only read
	return kind >= unix.RTM_NEWLINK && kind <= unix.RTM_NEWNEXTHOP+2 && kind&3 != get
}

// read reads memory of the thread that asks. It may be shorter at the end of a page.
func (q *question) read(at, length uint64) []byte {
	if at == 0 || length == 0 {
		return nil
	}
	b := make([]byte, length)
	n, err := unix.ProcessVMReadv(int(q.pid), []unix.Iovec{{Base: &b[0], Len: length}}, []unix.RemoteIovec{{Base: uintptr(at), Len: int(length)}}, 0)
	if err != nil && length > 64 { // it ends at a page without memory behind it
		return q.read(at, 4096-at%4096)
	}
	return b[:max(n, 0)]
}

// becomeHeld makes this process the program that a hold names. It returns only if there is none, or
// with an error.
func becomeHeld() error {
	text, is := os.LookupEnv(holdVariable)
	if !is {
		return nil
	}
	socket, program, _ := strings.Cut(text, ":")
	os.Unsetenv(holdVariable)
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	fd, err := askBefore(unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SETSOCKOPT)
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if _, err := fmt.Fprintf(c, "%d %d", os.Getpid(), fd); err != nil {
		return err
	}
	var reply [2]byte
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		return err
	}
	return syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// askBefore makes the kernel ask before system calls of this thread, and of the program that it
// becomes: those with the given numbers, and openat(2) for writing. The questions come from fd.
func askBefore(numbers ...int) (fd int, err error) {
	const number, flags = 0, 16 + 2*8 // offsets in struct seccomp_data: of the number, and of the third argument
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	load := func(at uint32) unix.SockFilter { return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, at) }
	ask := statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF)
	allow := statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	filter := []unix.SockFilter{load(number)}
	for _, n := range numbers {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(n)}, ask)
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.SYS_OPENAT},
		load(flags), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.O_WRONLY | unix.O_RDWR}, ask,
		allow)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if failed != 0 {
		return 0, failed
	}
	return int(listener), nil
}
