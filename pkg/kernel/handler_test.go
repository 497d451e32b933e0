package kernel

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// TestEveryKindHasAHandler: but for tunnel entries, which are in no kernel.
func TestEveryKindHasAHandler(t *testing.T) {
	messages := 0
	for _, kind := range dataplane.Kinds() {
		h := handlers[kind]
		if kind == dataplane.KindTunnel {
			if h != nil {
				t.Errorf("the kernel has a %s", kind)
			}
			continue
		}
		if h == nil || h.read == nil || (h.apply == nil) == (h.request == nil) {
			t.Errorf("a %s is not both read and written in one way", kind)
			continue
		}
		if messages += len(h.messages); len(h.messages) > 0 && h.event == nil {
			t.Errorf("no event of a %s", kind)
		}
	}
	if len(byMessage) != messages {
		t.Errorf("%d messages of %d are told apart", len(byMessage), messages)
	}
}

func TestKindWithoutAHandlerIsRefused(t *testing.T) {
	entry := dataplane.KindTunnel.Put(dataplane.TunnelKey{Link: "flannel0", Subnet: netip.MustParsePrefix("10.5.2.0/24")}, netip.AddrPort{})
	if err := new(Kernel).Apply([]dataplane.Op{entry})[0]; !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("got %v", err)
	}
}
