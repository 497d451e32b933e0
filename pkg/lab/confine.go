package lab

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confineVariable holds a Unit. A program that runs through Main applies it to itself and then
// executes another program.
const confineVariable = "FLANNEL_LAB_UNIT"

// apply makes cmd run under u.
func (u *Unit) apply(cmd *exec.Cmd) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	text, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("encode unit: %w", err)
	}
	cmd.Args = append([]string{self, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	cmd.Env = append(cmd.Env, confineVariable+"="+string(text))
	return nil
}

// confine applies a Unit and executes the program of os.Args[1:]. It returns only if that fails.
// All restrictions are of the calling thread, the one that remains after execve(2).
func confine(text string) error {
	runtime.LockOSThread()
	var u Unit
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		return fmt.Errorf("decode unit: %w", err)
	}
	if err := os.Unsetenv(confineVariable); err != nil {
		return err
	}
	if u.Files != 0 {
		var here unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NOFILE, &here)
		here.Max = min(here.Max, u.Files)
		here.Cur = here.Max
		if err = cmp.Or(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &here)); err != nil {
			return fmt.Errorf("limit open files: %w", err)
		}
	}
	if err := u.mount(); err != nil {
		return err
	}
	for c := range 64 {
		if u.Capabilities&(1<<c) != 0 {
			continue
		}
		// At execve, root gets the capabilities of the bounding set (capabilities(7)).
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // after the last capability
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if u.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	for _, program := range u.filters() {
		f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		if _, _, err := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f))); err != 0 {
			return fmt.Errorf("filter system calls: %w", err)
		}
	}
	return fmt.Errorf("run %s: %w", os.Args[1], syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
}

// mount creates a mount namespace in which only a few paths are writable.
func (u *Unit) mount() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	steps := []func() error{func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") }}
	add := func(yes bool, step func() error) {
		if yes {
			steps = append(steps, step)
		}
	}
	add(u.HideProcs, func() error {
		return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=invisible")
	})
	add(u.ReadOnly, func() error { return writable("/", false) })
	for _, path := range []string{"/dev", "/proc", "/sys"} {
		add(u.ReadOnly, func() error { return writable(path, true) })
	}
	for _, path := range []string{"/proc/sys", "/sys"} {
		add(u.Tunables, func() error { return bind(path, false) })
	}
	for _, path := range u.Writable {
		add(true, func() error { return bind(path, true) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("restrict mounts: %w", err)
		}
	}
	return nil
}

// bind makes a path a mount point.
func bind(path string, write bool) error {
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return writable(path, write)
}

// writable makes all mounts at and below a path writable or read-only.
func writable(path string, write bool) error {
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if write {
		a = unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &a); err != nil {
		return fmt.Errorf("make %s writable: %t: %w", path, write, err)
	}
	return nil
}

// filters returns the seccomp programs of a unit, as systemd writes them. The kernel runs all of
// them and takes the strictest result.
func (u *Unit) filters() [][]unix.SockFilter {
	var all [][]unix.SockFilter
	if len(u.Families) > 0 {
		f := append(begin(), equal(unix.SYS_SOCKET, 1, 0), allow(), argument(0))
		for _, family := range u.Families {
			f = append(f, equal(family, 0, 1), allow())
		}
		all = append(all, append(f, refuse(unix.EAFNOSUPPORT)))
	}
	if u.NoNamespaces {
		const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
		flags := 0
		if runtime.GOARCH == "s390x" {
			flags = 1
		}
		all = append(all, append(begin(), equal(unix.SYS_SETNS, 0, 1), refuse(unix.EPERM), equal(unix.SYS_UNSHARE, 0, 1), refuse(unix.EPERM),
			// clone3 has its flags in memory, where seccomp cannot read them.
			equal(unix.SYS_CLONE3, 0, 1), refuse(unix.ENOSYS),
			equal(unix.SYS_CLONE, 1, 0), allow(), argument(flags), anyOf(namespaces, 0, 1), refuse(unix.EPERM), allow()))
	}
	if u.Mmap != 0 && runtime.GOARCH != "s390x" { // mmap has its arguments in memory there
		all = append(all,
			append(begin(), equal(u.Mmap, 1, 0), allow(), argument(2), anyOf(unix.PROT_WRITE, 1, 0), allow(), anyOf(unix.PROT_EXEC, 0, 1), refuse(unix.EPERM), allow()),
			append(begin(), equal(unix.SYS_MPROTECT, 2, 0), equal(unix.SYS_PKEY_MPROTECT, 1, 0), allow(), argument(2), anyOf(unix.PROT_EXEC, 0, 1), refuse(unix.EPERM), allow()))
	}
	if len(u.Syscalls) > 0 { // must be the last one: it may forbid to add another
		f := begin()
		for _, n := range u.Syscalls {
			f = append(f, equal(n, 0, 1), allow())
		}
		all = append(all, append(f, refuse(unix.EPERM)))
	}
	return all
}

// begin loads the number of the system call (struct seccomp_data of seccomp(2)).
func begin() []unix.SockFilter { return []unix.SockFilter{load(0)} }

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// argument loads the lower half of an argument.
func argument(n int) unix.SockFilter {
	low := uint32(16 + 8*n)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
		low += 4
	}
	return load(low)
}

// equal and anyOf skip the first number of instructions if the value is k, or has a bit of k, else
// the second number.
func equal(k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func anyOf(k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func allow() unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
}

func refuse(e unix.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(e)}
}
