package netlink

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
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
	code   []bpf.Instruction
	labels map[string]int
	jumps  []jump
}

type jump struct {
	at              int
	ifTrue, ifFalse string
}

// Add appends an instruction.
//
//go:noinline
func (f *Filter) Add(i bpf.Instruction) { f.code = append(f.code, i) }

// Load loads a number of 1, 2 or 4 bytes.
func (f *Filter) Load(offset uint32, size int) { f.Add(bpf.LoadAbsolute{Off: offset, Size: size}) }

// LoadType loads the type of the message, for Equal16.
func (f *Filter) LoadType() { f.Load(uint32(unsafe.Offsetof(unix.NlMsghdr{}.Type)), 2) }

// LoadPort loads the port of the socket that caused the notification, for Equal32.
func (f *Filter) LoadPort() { f.Load(uint32(unsafe.Offsetof(unix.NlMsghdr{}.Pid)), 4) }

// Label sets a label at the next instruction.
//
//go:noinline
func (f *Filter) Label(name string) {
	if f.labels == nil {
		f.labels = map[string]int{}
	}
	f.labels[name] = len(f.code)
}

// JumpIf compares the loaded value.
//
//go:noinline
func (f *Filter) JumpIf(test bpf.JumpTest, value uint32, ifTrue, ifFalse string) {
	f.jumps = append(f.jumps, jump{len(f.code), ifTrue, ifFalse})
	f.Add(bpf.JumpIf{Cond: test, Val: value})
}

// Equal16 compares the two loaded bytes with a number in host byte order; BPF loads them in network
// byte order.
func (f *Filter) Equal16(v uint16, ifTrue, ifFalse string) {
	order := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
	f.JumpIf(bpf.JumpEqual, uint32(order), ifTrue, ifFalse)
}

// Equal32 is Equal16 for four bytes.
func (f *Filter) Equal32(v uint32, ifTrue, ifFalse string) {
	order := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
	f.JumpIf(bpf.JumpEqual, order, ifTrue, ifFalse)
}

// Assemble returns the program. It fails if a label is undefined, or too far from a jump.
func (f *Filter) Assemble() ([]bpf.RawInstruction, error) {
	f.Label(Drop)
	f.Add(bpf.RetConstant{Val: 0})
	f.Label(Pass)
	f.Add(bpf.RetConstant{Val: 1 << 30})
	var bad error
	skip := func(from int, label string) uint8 {
		if label == "" {
			return 0
		}
		n := f.labels[label] - from - 1
		if n < 0 || n > 255 {
			bad = fmt.Errorf("jump over %d instructions to %q", n, label)
		}
		return uint8(n)
	}
	for _, j := range f.jumps {
		i := f.code[j.at].(bpf.JumpIf)
		i.SkipTrue, i.SkipFalse = skip(j.at, j.ifTrue), skip(j.at, j.ifFalse)
		f.code[j.at] = i
	}
	if bad != nil {
		return nil, bad
	}
	return bpf.Assemble(f.code)
}
