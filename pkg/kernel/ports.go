package kernel

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder is the owner of a socket, as far as this process may see it.
type Holder struct {
	Addr    netip.AddrPort
	UID     int
	PID     int    // 0: unknown or none
	Program string // name of the process
	// Kernel is set if no process has the socket. Then it is the kernel's own, as for VXLAN, FOU or
	// WireGuard.
	Kernel bool
}

func (h Holder) String() string {
	switch {
	case h.PID != 0:
		return fmt.Sprintf("%s (pid %d, uid %d)", h.Program, h.PID, h.UID)
	case h.Kernel:
		return "the kernel"
	}
	return fmt.Sprintf("a process of uid %d, or the kernel", h.UID)
}

// flanneld is the name of a process that is preferred as the owner of a socket: systemd has the
// sockets in the descriptor store of a unit too.
const flanneld = "flanneld"

// Holders returns the sockets of a protocol, "udp" or "tcp", that prevent binding to an address:
// those of this network namespace with the same port and an overlapping address, and for TCP those
// that listen. The process of a socket is known only if this process may list other processes'
// descriptors.
func (k *Kernel) Holders(protocol string, local netip.AddrPort) ([]Holder, error) {
	sockets, sees := map[string]Holder{}, seesAllProcesses() // by inode
	err := k.ns.Do(func() error {
		for _, suffix := range []string{"", "6"} {
			err := readTable("/proc/thread-self/net/"+protocol+suffix, func(h Holder, listens bool, inode string) {
				if h.Addr.Port() == local.Port() && addrsConflict(h.Addr.Addr(), local.Addr()) && (protocol == "udp" || listens) {
					h.Kernel = sees
					sockets[inode] = h
				}
			})
			if err != nil && !(suffix == "6" && errors.Is(err, os.ErrNotExist)) {
				return fmt.Errorf("list %s sockets: %w", protocol, err)
			}
		}
		return nil
	})
	if err != nil || len(sockets) == 0 {
		return nil, err
	}
	eachDescriptor(func(pid int, target string) {
		inode, _ := strings.CutPrefix(target, "socket:[")
		inode = strings.TrimSuffix(inode, "]")
		if h, ok := sockets[inode]; ok && (h.PID == 0 || h.Program != flanneld) {
			name := program(pid)
			if h.PID == 0 || name == flanneld {
				h.PID, h.Program, h.Kernel = pid, name, false
			}
			sockets[inode] = h
		}
	})
	return slices.Collect(maps.Values(sockets)), nil
}

// addrsConflict reports whether two addresses conflict for one port. The unspecified IPv6 address
// includes IPv4, unless the socket is IPV6_V6ONLY.
func addrsConflict(a, b netip.Addr) bool {
	a, b = a.Unmap(), b.Unmap()
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}

// readTable parses a table of /proc/net (proc_net(5)).
func readTable(path string, each func(h Holder, listens bool, inode string)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return readSockets(f, each)
}

func readSockets(table io.Reader, each func(h Holder, listens bool, inode string)) error {
	const listening = "0A" // TCP_LISTEN
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text()) // sl local remote st queues timer retransmits uid timeout inode ...
		if len(fields) < 10 {
			continue
		}
		addr, err1 := socketAddr(fields[1])
		uid, err2 := strconv.Atoi(fields[7])
		if err1 == nil && err2 == nil { // skips the heading
			each(Holder{Addr: addr, UID: uid}, fields[3] == listening, fields[9])
		}
	}
	return lines.Err()
}

// socketAddr parses 0100007F:2118: the address in words in host byte order, then the port.
func socketAddr(s string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(words)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is not a socket's address", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// initPID is the inode of the first PID namespace (PROC_PID_INIT_INO of linux/proc_ns.h).
const initPID = "pid:[4026531836]"

// seesAllProcesses reports whether the descriptors of all processes can be listed. Listing is
// refused to processes that may not trace the other process, as with ProtectProc= of
// systemd.exec(5), and a PID namespace hides processes outside.
func seesAllProcesses() bool {
	ns, err := os.Readlink("/proc/self/ns/pid")
	_, denied := os.Readlink("/proc/1/exe") // root can list the directory without permission to read the link
	return err == nil && ns == initPID && denied == nil
}

// eachDescriptor calls each with the open descriptors of all visible processes. Processes that are
// gone meanwhile, or that may not be read, have none.
func eachDescriptor(each func(pid int, target string)) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		pid, _ := strconv.Atoi(filepath.Base(process))
		descriptors, _ := filepath.Glob(process + "/fd/*")
		for _, d := range descriptors {
			if target, err := os.Readlink(d); err == nil {
				each(pid, target)
			}
		}
	}
}

// program returns the name of a process.
func program(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a program"
	}
	return strings.TrimSpace(string(name))
}
