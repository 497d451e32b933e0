// Package presence registers the daemons of one host with each other: each publishes which network
// it serves and which device it uses, for as long as it runs.
//
// The registration is the name of a listening abstract socket (unix(7)). Such a name belongs to the
// network namespace, as devices and rules do, is visible in every container that shares it, and
// disappears with the process. Invariants: no two daemons register overlapping networks or the same
// device at the same time; sockets of unprivileged users are ignored, because everybody may listen.
package presence

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/pace"
)

// namePrefix is the prefix of socket names: flanneld/NETWORK/BITS/DEVICE/NONCE.
const namePrefix = "@flanneld/"

const (
	// lockTimeout limits the wait for a lock that any user can take.
	lockTimeout = time.Second
	lockPoll    = 5 * time.Millisecond
	dialTimeout = time.Second
)

// Daemon is a registered daemon.
type Daemon struct {
	Network netip.Prefix
	Device  string // device with a fixed name; empty if there is none
	PID     int    // 0 if it is in another PID namespace
}

func (h Daemon) String() string {
	s := "the flanneld of network " + h.Network.String()
	if h.PID != 0 {
		s += fmt.Sprintf(" (PID %d)", h.PID)
	}
	return s
}

// ConflictError reports that another daemon of this host conflicts with a registration.
type ConflictError struct {
	Daemon Daemon
	Device string // device of both; empty if the networks overlap
}

func (e *ConflictError) Error() string {
	if e.Device != "" {
		return fmt.Sprintf("device %s is used by %s", e.Device, e.Daemon)
	}
	return fmt.Sprintf("there is %s", e.Daemon)
}

// Register registers that this process serves a network with a device, in the network namespace of
// the calling thread, until the result is closed. The error is a *ConflictError if another daemon
// conflicts.
func Register(network netip.Prefix, device string) (io.Closer, error) {
	holders, unlock, err := Freeze()
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, h := range holders {
		switch {
		case h.Network.Overlaps(network):
			return nil, &ConflictError{Daemon: h}
		case device != "" && h.Device == device:
			return nil, &ConflictError{Daemon: h, Device: device}
		}
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	l, err := net.Listen("unix", fmt.Sprintf("%s%s/%s/%s", namePrefix, network, device, hex.EncodeToString(nonce[:])))
	if err != nil {
		return nil, fmt.Errorf("register with other daemons: %w", err)
	}
	go accept(l)
	return l, nil
}

// accept accepts connections until l is closed. Clients only read the credentials of the listener
// from the kernel. Errors, such as a lack of descriptors, are temporary.
func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			c.Close()
		case errors.Is(err, net.ErrClosed):
			return
		default:
			<-time.After(lockPoll)
		}
	}
}

// Daemons returns the daemons in the network namespace of the calling thread.
func Daemons() ([]Daemon, error) {
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look for other daemons: %w", err)
	}
	var holders []Daemon
	for _, name := range sockets(string(text)) {
		h, ok := parse(name)
		if !ok {
			continue
		}
		if h.PID, ok, err = listener(name); err != nil {
			return nil, fmt.Errorf("look for other daemons: %w", err)
		} else if ok {
			holders = append(holders, h)
		}
	}
	return holders, nil
}

// Freeze returns the registered daemons and delays further registrations until release is called,
// each for lockTimeout at the most.
func Freeze() (holders []Daemon, release func(), err error) {
	if release, err = lock(); err != nil {
		return nil, nil, fmt.Errorf("register with other daemons: %w", err)
	}
	if holders, err = Daemons(); err != nil {
		release()
		return nil, nil, err
	}
	return holders, release, nil
}

// Vacate returns those of the networks that no daemon of this host serves, none if that is unknown.
// What is left of them may be removed until release is called: a daemon that is about to serve one
// registers after that.
func Vacate(networks []netip.Prefix) (vacant []netip.Prefix, release func()) {
	holders, release, err := Freeze()
	if err != nil {
		return nil, func() {}
	}
	return slices.DeleteFunc(slices.Clone(networks), func(n netip.Prefix) bool {
		return slices.ContainsFunc(holders, func(h Daemon) bool { return h.Network == n })
	}), release
}

// sockets returns the names of registrations in /proc/net/unix, each once.
func sockets(text string) (names []string) {
	for line := range strings.Lines(text) {
		if i := strings.Index(line, " "+namePrefix); i >= 0 {
			names = append(names, strings.TrimSuffix(line[i+1:], "\n"))
		}
	}
	slices.Sort(names) // a connection has the name of its listener
	return slices.Compact(names)
}

func parse(name string) (h Daemon, ok bool) {
	parts := strings.Split(strings.TrimPrefix(name, namePrefix), "/")
	if len(parts) != 4 {
		return h, false
	}
	p, err := netip.ParsePrefix(parts[0] + "/" + parts[1])
	if err != nil || p != p.Masked() || p.Bits() == 0 {
		return h, false
	}
	return Daemon{Network: p, Device: parts[2]}, true
}

// listener returns the PID of the process that listens on a name. ok is false if its user may not
// create devices, so that it is neither root nor the user of this process. An error is a local one,
// and means that nothing is known about the listener.
func listener(name string) (pid int, ok bool, err error) {
	c, err := net.DialTimeout("unix", name, dialTimeout)
	switch {
	case pace.IsAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS):
		return 0, false, err
	case err != nil:
		return 0, false, nil // it has ended, or does not accept
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var cred *unix.Ucred
	if control := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); control != nil || err != nil {
		return 0, false, errors.Join(control, err)
	}
	return int(cred.Pid), cred.Uid == 0 || int(cred.Uid) == os.Geteuid(), nil
}

// lock locks the network namespace, so that two daemons do not register at the same time without
// seeing each other.
func lock() (unlock func(), err error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	for began := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || err == unix.EWOULDBLOCK && time.Since(began) > lockTimeout {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock network namespace: %w", err)
		}
		<-time.After(lockPoll)
	}
}
