package tunnel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A TUN is a TUN device (tuntap.rst in the kernel's documentation). It is not persistent: the
// kernel deletes it when the last descriptor is closed, so that it never outlives the program that
// serves it. Its addresses, routes, MTU and state belong to its owner.
type TUN struct {
	descriptor
	name     string
	vnet     bool // each packet is preceded by an Offload
	tcp, udp bool
	header   [offloadLen]byte
	iovecs   []unix.Iovec // used by Write
}

var _ Device = (*TUN)(nil)

const clonePath = "/dev/net/tun"

// OpenTUN opens the device of that name, or creates it, in the network namespace of the calling
// thread. A persistent device becomes non-persistent. The error is EBUSY if another program uses
// the device.
func OpenTUN(name string, o Offloads) (*TUN, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("attach to TUN device %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if o.TUN {
		flags |= unix.IFF_VNET_HDR
	}
	request.SetUint16(flags)
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	var t *TUN
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		err = fmt.Errorf("attach to TUN device %s: %w", name, err)
	} else {
		t, err = AdoptTUN(fd, o)
	}
	if err != nil {
		unix.Close(fd)
	}
	return t, err
}

// AdoptTUN returns a TUN for a descriptor that OpenTUN has opened, perhaps in an earlier process.
// The TUN owns it, unless there is an error.
func AdoptTUN(fd int, o Offloads) (*TUN, error) {
	request, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, request)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt TUN descriptor %d: %w", fd, err)
	}
	flags := request.Uint16()
	if flags&unix.IFF_TUN == 0 || flags&unix.IFF_NO_PI == 0 {
		return nil, fmt.Errorf("adopt TUN descriptor %d: "+
			"flags %#x of %s are not a TUN device's without packet information", fd, flags, request.Name())
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return nil, fmt.Errorf("make TUN device %s non-persistent: %w", request.Name(), err)
	}
	t := &TUN{
		name: request.Name(), vnet: flags&unix.IFF_VNET_HDR != 0,
		iovecs: make([]unix.Iovec, 0, maxRunSegments+1),
	}
	if err := t.open(fd); err != nil {
		return nil, err
	}
	t.setOffloads(o.TUN && t.vnet)
	return t, nil
}

// setOffloads sets which super-packets the kernel may pass to us. If it supports USO, it also
// accepts such packets from us (Linux 6.2); with this header it always accepts TCP ones.
func (t *TUN) setOffloads(on bool) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
	const udp = unix.TUN_F_USO4 | unix.TUN_F_USO6 // the kernel accepts only both or none
	set := func(flags int) bool { return unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, flags) == nil }
	t.udp = on && set(tcp|udp)
	t.tcp = t.udp || on && set(tcp)
	if !t.tcp {
		set(0)
	}
}

// Name returns the device's name.
func (t *TUN) Name() string { return t.name }

// SuperPackets implements Device. The result applies to both reading and writing.
func (t *TUN) SuperPackets() (tcp, udp bool) { return t.tcp, t.udp }

// Read implements Device. This system call and others that never wait bypass the scheduler, which
// would otherwise check every 20 µs for threads that are long in the kernel, and take their
// processor away.
func (t *TUN) Read(packets []Packet, buf []byte) (n int, err error) {
	for used := 0; n < len(packets) && len(buf)-used >= readRoom; {
		if err := t.check(); err != nil {
			return 0, err
		}
		length, _, errno := unix.RawSyscall(unix.SYS_READ,
			uintptr(t.fd), uintptr(unsafe.Pointer(&buf[used])), uintptr(len(buf)-used))
		switch {
		case errno == unix.EAGAIN && n > 0:
			return n, nil
		case errno == unix.EAGAIN:
			if err := t.wait(unix.POLLIN); err != nil {
				return 0, err
			}
			continue
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return n, deviceError(errno)
		}
		packets[n].decode(buf[used:used+int(length)], t.vnet)
		n++
		used += (int(length) + 63) &^ 63
	}
	return n, nil
}

// decode parses what a read has returned. The kernel never omits the header.
func (p *Packet) decode(b []byte, vnet bool) {
	p.Offload, p.Data = Offload{}, b
	if vnet {
		p.Offload.decode(b)
		p.Data = b[offloadLen:]
	}
}

// Write implements Device.
func (t *TUN) Write(o Offload, parts [][]byte) error {
	iovecs := t.iovecs[:0]
	if t.vnet {
		o.encode(t.header[:])
		iovecs = appendIovec(iovecs, t.header[:])
	}
	for _, p := range parts {
		iovecs = appendIovec(iovecs, p)
	}
	t.iovecs = iovecs
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV,
			uintptr(t.fd), uintptr(unsafe.Pointer(&iovecs[0])), uintptr(len(iovecs)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return deviceError(errno)
	}
}

// deviceError wraps ErrDeviceGone for errors of a deleted device: EFAULT while it is being deleted,
// EBADFD afterwards.
func deviceError(err error) error {
	switch err {
	case unix.EBADFD, unix.EFAULT, unix.ENODEV, unix.ENXIO:
		return fmt.Errorf("%w: %w", ErrDeviceGone, err)
	}
	return err
}

func appendIovec(iovecs []unix.Iovec, b []byte) []unix.Iovec {
	if len(b) == 0 {
		return iovecs
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(iovecs, v)
}
