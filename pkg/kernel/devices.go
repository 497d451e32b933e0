package kernel

import "flanneld/pkg/dataplane"

// TUN describes a TUN or TAP device (reported by Linux 4.18 and later).
type TUN struct {
	TAP        bool // carries Ethernet frames
	MultiQueue bool
}

// ReadTUN reads a TUN or TAP device. ok is false if there is no such link, or if it is of another
// kind.
func (k *Kernel) ReadTUN(name string) (t TUN, ok bool, err error) {
	found, err := k.existing([]string{name})
	if len(found) == 0 {
		return t, false, err
	}
	return found[0].tun, found[0].link.Kind == dataplane.KindTUN, nil
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

// Port is a bridge or a port of one.
type Port struct {
	Name string
	MTU  int
}

// BridgePorts returns a bridge and its ports. ok is false if there is no such bridge.
func (k *Kernel) BridgePorts(name string) (bridge Port, ports []Port, ok bool, err error) {
	all, err := k.devices()
	index := -1
	for _, d := range all {
		if d.name == name && d.link.Kind == "bridge" {
			bridge, index, ok = Port{d.name, d.link.MTU}, d.index, true
		}
	}
	for _, d := range all {
		if d.master == index {
			ports = append(ports, Port{d.name, d.link.MTU})
		}
	}
	return bridge, ports, ok, err
}
