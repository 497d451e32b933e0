package netlink

import (
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestFilter(t *testing.T) {
	const port = 0x01020304
	for _, c := range []struct {
		kind uint16
		from uint32
		body byte
		want bool
	}{
		{0x0a01, 0, 0, true}, {0x010a, 0, 0, false}, {0x0a02, port, 0, true}, {0x0a02, 0x04030201, 0, false},
		{0x0a02, 0, 9, true}, {0x0a02, 0, 8, false}, {0x0a02, 0, 10, true},
	} {
		var f Filter
		f.LoadType()
		f.Equal16(0x0a01, Pass, "")
		f.Equal16(0x0a02, "more", Drop)
		f.Label("more")
		f.LoadPort()
		f.Equal32(port, Pass, "")
		f.Load(unix.SizeofNlMsghdr, 1)
		f.JumpIf(bpf.JumpGreaterOrEqual, 9, Pass, "")
		var r Requests
		r.Begin(c.kind, 0)
		r.Put8(c.body)
		b := r.Datagram(0, 1, 1)
		copy(b[12:], Attrs{}.Uint32(0, c.from)[4:])
		_, bad := f.Assemble()
		vm, err := bpf.NewVM(f.code)
		if bad != nil || err != nil {
			t.Fatal(bad, err)
		}
		if n, err := vm.Run(b); (n > 0) != c.want || err != nil {
			t.Errorf("%+v: passes %d bytes, %v", c, n, err)
		}
	}
}

func TestFilterOfBadJumps(t *testing.T) {
	var nowhere, back, far Filter
	nowhere.Equal16(1, "nowhere", Drop)
	back.Label("here")
	back.LoadType()
	back.Equal16(1, "here", Drop)
	for range 300 {
		far.Equal16(1, Pass, "")
	}
	for name, f := range map[string]*Filter{"nowhere": &nowhere, "back": &back, "far": &far} {
		if _, err := f.Assemble(); err == nil {
			t.Errorf("%s: assembled", name)
		}
	}
}

// TestFilterOfASocket: if a filter is rejected, the previous one is removed.
func TestFilterOfASocket(t *testing.T) {
	c := dialed(t, unix.NETLINK_ROUTE, RequestBuffer)
	var nothing, far Filter
	if err := c.SetFilter(&nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(getLink("lo")); err == nil { // an answer is filtered, too
		t.Error("a filter that drops all lets an answer pass")
	}
	for range 300 {
		far.Equal16(1, Pass, "")
	}
	if err := c.SetFilter(&far); err == nil {
		t.Error("took a jump that is too far")
	}
	if _, err := c.Get(getLink("lo")); err != nil {
		t.Errorf("without a filter: %v", err)
	}
}
