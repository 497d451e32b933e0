package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A TUN is a TUN device (tuntap.rst in the kernel's documentation). It is not persistent: the
// kernel deletes it when the last descriptor is closed, so that it never outlives the program that
// serves it. Its addresses, routes, MTU and state belong to its owner.
type TUN struct {
	*interrupter
	fd       int
	name     string
	vnet     bool // each packet is preceded by an Offload
	tcp, udp bool
	reading  waiter
	header   [offloadLen]byte
	iovecs   []unix.Iovec // used by Write
	close    func() error
}

var _ Device = (*TUN)(nil)

const clonePath = "/dev/net/tun"

// OpenTUN opens the device of that name, or creates it, in the network namespace of the calling
// thread. A persistent device becomes non-persistent. The error is EBUSY if another program uses
// the device.
func OpenTUN(name string, o Offloads) (*TUN, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	err = attach(fd, name, o.TUN)
	if o.TUN && errors.Is(err, unix.EINVAL) {
		// The kernel does not support the header, or the device is not ours.
		err = attach(fd, name, false)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	t, err := AdoptTUN(fd, o)
	if err != nil {
		unix.Close(fd)
	}
	return t, err
}

func attach(fd int, name string, vnet bool) error {
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if vnet {
		flags |= unix.IFF_VNET_HDR
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("attach to TUN device %q: %w", name, err)
	}
	request.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("attach to TUN device %s: %w", name, err)
	}
	return nil
}

// AdoptTUN returns a TUN for a descriptor that OpenTUN has opened, perhaps in an earlier process.
// The TUN owns it, unless there is an error.
func AdoptTUN(fd int, o Offloads) (*TUN, error) {
	request, err := unix.NewIfreq("")
	if err != nil {
		return nil, fmt.Errorf("adopt TUN descriptor %d: %w", fd, err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, request); err != nil {
		return nil, fmt.Errorf("adopt TUN descriptor %d: %w", fd, err)
	}
	flags := request.Uint16()
	if flags&unix.IFF_TUN == 0 || flags&unix.IFF_NO_PI == 0 {
		return nil, fmt.Errorf("adopt TUN descriptor %d: "+
			"flags %#x of %s are not a TUN device's without packet information", fd, flags, request.Name())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("adopt TUN descriptor %d: %w", fd, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return nil, fmt.Errorf("make TUN device %s non-persistent: %w", request.Name(), err)
	}
	t := &TUN{fd: fd, name: request.Name(), vnet: flags&unix.IFF_VNET_HDR != 0}
	if t.interrupter, err = newInterrupter(); err != nil {
		return nil, err
	}
	t.reading.stop = t.interrupter
	t.iovecs = make([]unix.Iovec, 0, maxRunSegments+1)
	t.close = sync.OnceValue(func() error {
		return errors.Join(unix.Close(t.fd), unix.Close(t.interrupter.fd))
	})
	t.setOffloads(o.TUN && t.vnet)
	return t, nil
}

// setOffloads sets which super-packets the kernel may pass to us. If it supports USO, it also
// accepts such packets from us (Linux 6.2); with this header it always accepts TCP ones.
func (t *TUN) setOffloads(on bool) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
	const udp = unix.TUN_F_USO4 | unix.TUN_F_USO6 // the kernel accepts only both or none
	set := func(flags int) bool { return unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, flags) == nil }
	switch {
	case on && set(tcp|udp):
		t.tcp, t.udp = true, true
	case on && set(tcp):
		t.tcp = true
	default:
		set(0)
	}
}

// Name returns the device's name.
func (t *TUN) Name() string { return t.name }

// FD returns the descriptor, which is valid until Close.
func (t *TUN) FD() int { return t.fd }

// SuperPackets implements Device. The result applies to both reading and writing.
func (t *TUN) SuperPackets() (tcp, udp bool) { return t.tcp, t.udp }

// Close closes the device, which is deleted unless another descriptor of it is open. No other
// method may be running.
func (t *TUN) Close() error { return t.close() }

// Read implements Device. This system call and others that never wait bypass the scheduler, which
// would otherwise check every 20 µs for threads that are long in the kernel, and take their
// processor away.
func (t *TUN) Read(packets []Packet, buf []byte) (n int, err error) {
	if len(packets) == 0 || len(buf) < ReadRoom {
		return 0, errors.New("read from TUN device: no room")
	}
	for used := 0; n < len(packets) && len(buf)-used >= ReadRoom; {
		if err := t.check(); err != nil {
			return 0, err
		}
		length, _, errno := unix.RawSyscall(unix.SYS_READ,
			uintptr(t.fd), uintptr(unsafe.Pointer(&buf[used])), uintptr(len(buf)-used))
		switch {
		case errno == unix.EAGAIN && n > 0:
			return n, nil
		case errno == unix.EAGAIN:
			if err := t.reading.wait(t.fd, unix.POLLIN); err != nil {
				return 0, err
			}
			continue
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return n, deviceError(errno)
		}
		if packets[n].decode(buf[used:used+int(length)], t.vnet) {
			n++
		}
		used += (int(length) + 63) &^ 63
	}
	return n, nil
}

// decode parses what a read has returned.
func (p *Packet) decode(b []byte, vnet bool) bool {
	p.Offload, p.Data = Offload{}, b
	if vnet {
		if len(b) < offloadLen {
			return false
		}
		p.Offload.decode(b)
		p.Data = b[offloadLen:]
	}
	return true
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
