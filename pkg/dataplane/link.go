package dataplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"flanneld/pkg/shell"
)

// Links are changed in place as far as possible and deleted only to be recreated, because all
// objects on them are deleted with them.

// diffLinks returns the operations on links and records for the other kinds which links are
// blocked, recreated or get a new MAC.
func diffLinks(d *differ, kind *Descriptor[string, Link]) (put, del list) {
	var changes ops
	for _, name := range slices.Sorted(maps.Keys(d.want.Links)) {
		want := d.want.Links[name]
		have, exists := d.have.Links[name]
		switch {
		case !exists:
			d.links[name] = linkRecreated
			changes = append(changes, kind.Put(name, want))
		case have.Kind != want.Kind:
			d.links[name] = linkBlocked
			d.Conflicts = append(d.Conflicts, Conflict{
				Op:     kind.Put(name, want),
				Reason: fmt.Sprintf("another device of that name and of type %s exists", have.Kind),
			})
		case !have.reusable(want):
			d.links[name] = linkRecreated
			changes = append(changes, kind.Del(name, have), kind.Put(name, want))
		case !have.satisfies(want):
			if want.MAC != (MAC{}) && want.MAC != have.MAC {
				d.links[name] = linkNewMAC
			}
			changes = append(changes, kind.Put(name, want).changing(have))
		}
	}
	return changes, ops(nil)
}

// reusable reports whether l can be changed into want in place.
func (l Link) reusable(want Link) bool {
	return l.VNI == want.VNI && l.Parent == want.Parent && l.Local == want.Local && l.Port == want.Port && l.GBP == want.GBP
}

// satisfies reports whether l already is as want requires.
func (l Link) satisfies(want Link) bool {
	if want.MAC == (MAC{}) {
		want.MAC = l.MAC
	}
	return l == want
}

func linkText(name string, l Link) string {
	s := name
	if l.MTU > 0 {
		s += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.MAC != (MAC{}) {
		s += " address " + l.MAC.String()
	}
	switch l.Kind {
	case KindVXLAN:
	case KindTUN:
		s += " type tun"
		if l.Local.IsValid() { // the kernel does not know the socket of a TUN device
			s += fmt.Sprintf(" local %s port %d", l.Local, l.Port)
		}
		if l.AnySource {
			s += " open"
		}
		if l.NoOffload {
			s += " plain"
		}
		return s
	default:
		return s + " type " + l.Kind
	}
	s += fmt.Sprintf(" type vxlan id %d local %s dev %s dstport %d %s", l.VNI, l.Local, shell.Word(l.Parent), l.Port, learningText(l.Learning))
	if l.GBP {
		s += " gbp"
	}
	return s
}

func upText(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func learningText(on bool) string {
	if on {
		return "learning"
	}
	return "nolearning"
}

func linkCommand(verb string, name string, l Link) string {
	if verb == "del" {
		return "ip link del " + name
	}
	s := "ip link add " + linkText(name, l)
	if l.Kind == KindTUN { // without what only the process with its other end knows
		s = fmt.Sprintf("ip tuntap add %s mode tun && ip link set %[1]s mtu %d", name, l.MTU)
		if l.Up {
			s += " up"
		}
		return s
	}
	if l.Up {
		s += " && ip link set " + name + " up"
	}
	return s
}

// changeCommand returns the command that changes a link from was to l.
func changeCommand(name string, l, was Link) string {
	set := "ip link set " + name
	var parts []string
	general := ""
	if l.MAC != (MAC{}) && l.MAC != was.MAC {
		general += " address " + l.MAC.String()
	}
	if l.MTU != was.MTU {
		general += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.Up != was.Up {
		general += " " + upText(l.Up)
	}
	if general != "" {
		parts = append(parts, set+general)
	}
	if l.Learning != was.Learning { // ip(8) accepts no general options after the type
		parts = append(parts, set+" type vxlan "+learningText(l.Learning))
	}
	return strings.Join(parts, " && ")
}
