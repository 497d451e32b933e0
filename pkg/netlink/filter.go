package netlink

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Labels that every Filter has.
const (
	Pass = "pass"
	Drop = "drop"
)

// Filter is a classic BPF program for one notification (kernel documentation, "Linux Socket
// Filtering aka Berkeley Packet Filter"), with labels to jump to. Jumps are forward only; the empty
// label is the next instruction. The default is to drop. As with Attrs, what appends is not inlined.
type Filter struct {
	code   []unix.SockFilter
	labels map[string]int
	jumps  []jump
}

type jump struct {
	at              int
	ifTrue, ifFalse string
}

// Add appends an instruction with an operand.
//
//go:noinline
func (f *Filter) Add(code uint16, k uint32) {
	f.code = append(f.code, unix.SockFilter{Code: code, K: k})
}

// Load loads a number whose size is unix.BPF_B, unix.BPF_H or unix.BPF_W: 1, 2 or 4 bytes.
func (f *Filter) Load(offset uint32, size uint16) { f.Add(unix.BPF_LD|unix.BPF_ABS|size, offset) }

// LoadType loads the type of the message, for Equal16.
func (f *Filter) LoadType() { f.Load(uint32(unsafe.Offsetof(unix.NlMsghdr{}.Type)), unix.BPF_H) }

// LoadPort loads the port of the socket that caused the notification, for Equal32.
func (f *Filter) LoadPort() { f.Load(uint32(unsafe.Offsetof(unix.NlMsghdr{}.Pid)), unix.BPF_W) }

// Label sets a label at the next instruction.
//
//go:noinline
func (f *Filter) Label(name string) {
	if f.labels == nil {
		f.labels = map[string]int{}
	}
	f.labels[name] = len(f.code)
}

// JumpIf compares the loaded value by a test such as unix.BPF_JEQ.
//
//go:noinline
func (f *Filter) JumpIf(test uint16, value uint32, ifTrue, ifFalse string) {
	f.jumps = append(f.jumps, jump{len(f.code), ifTrue, ifFalse})
	f.Add(unix.BPF_JMP|test, value)
}

// Equal16 compares the two loaded bytes with a number in host byte order; BPF loads them in network
// byte order.
func (f *Filter) Equal16(v uint16, ifTrue, ifFalse string) {
	order := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
	f.JumpIf(unix.BPF_JEQ, uint32(order), ifTrue, ifFalse)
}

// Equal32 is Equal16 for four bytes.
func (f *Filter) Equal32(v uint32, ifTrue, ifFalse string) {
	order := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
	f.JumpIf(unix.BPF_JEQ, order, ifTrue, ifFalse)
}

// Assemble returns the program. It fails if a label is undefined, or too far from a jump.
func (f *Filter) Assemble() ([]unix.SockFilter, error) {
	f.Label(Drop)
	f.Add(unix.BPF_RET, 0)
	f.Label(Pass)
	f.Add(unix.BPF_RET, 1<<30)
	for _, j := range f.jumps {
		i := &f.code[j.at]
		for _, to := range []struct {
			label string
			skip  *uint8
		}{{j.ifTrue, &i.Jt}, {j.ifFalse, &i.Jf}} {
			if to.label == "" {
				continue
			}
			skip := f.labels[to.label] - j.at - 1
			if skip < 0 || skip > 255 {
				return nil, fmt.Errorf("jump over %d instructions to %q", skip, to.label)
			}
			*to.skip = uint8(skip)
		}
	}
	return f.code, nil
}
