package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// TUN describes a TUN or TAP device (reported by Linux 4.18 and later).
type TUN struct {
	TAP        bool // carries Ethernet frames
	MultiQueue bool
}

// ReadTUN reads a TUN or TAP device. ok is false if there is no such link, or if it is of another
// kind.
func (k *Kernel) ReadTUN(name string) (t TUN, ok bool, err error) {
	r := linkRequest(0)
	r.Text(unix.IFLA_IFNAME, name)
	b, err := k.conn.Get(&r.Requests)
	if errors.Is(err, unix.ENODEV) {
		return t, false, nil
	}
	if err != nil {
		return t, false, fmt.Errorf("read link %s: %w", name, err)
	}
	for kind, v := range netlink.After(b, unix.SizeofIfInfomsg).All() {
		if kind != unix.IFLA_LINKINFO {
			continue
		}
		for kind, v := range v.All() {
			switch kind {
			case unix.IFLA_INFO_KIND:
				ok = v.Text() == dataplane.KindTUN
			case unix.IFLA_INFO_DATA:
				t.parse(v)
			}
		}
	}
	return t, ok, nil
}

func (t *TUN) parse(b []byte) {
	for kind, v := range netlink.Attrs(b).All() {
		switch kind {
		case unix.IFLA_TUN_TYPE:
			t.TAP = v.Number() == unix.IFF_TAP
		case unix.IFLA_TUN_MULTI_QUEUE:
			t.MultiQueue = v.Number() != 0
		}
	}
}

// VXLAN is a VXLAN device, created by any program.
type VXLAN struct {
	Name      string
	VNI, Port int
}

// VXLANs lists the VXLAN devices of this network namespace.
func (k *Kernel) VXLANs() ([]VXLAN, error) {
	devices, err := k.devices()
	if err != nil {
		return nil, err
	}
	var all []VXLAN
	for _, d := range devices {
		if d.link.Kind == dataplane.KindVXLAN {
			all = append(all, VXLAN{Name: d.name, VNI: d.link.VNI, Port: d.link.Port})
		}
	}
	return all, nil
}
