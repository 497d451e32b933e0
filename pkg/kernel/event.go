package kernel

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// events tells what of a datagram is of interest.
func (w *Watch) events(b []byte) (e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for h, body := range messages(b) {
		// The sender of a notification is who asked for the change.
		ours := h.Pid == w.k.conn.port
		if found := w.event(h.Type, body); !ours {
			e |= found
		}
	}
	return e
}

func (w *Watch) event(kind uint16, body []byte) Event {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkEvent(kind, body)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if _, index, _, ok := parseAddr(body); ok {
			return w.by(index, Addrs, Uplink)
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(body) >= unix.SizeofNdMsg {
			what := Neighs
			if body[0] == unix.AF_BRIDGE {
				what = FDB
			}
			return w.by(int(int32(binary.NativeEndian.Uint32(body[4:]))), what, 0)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// Of whatever type: a blackhole may have taken the place of a route.
		if dst, ok := mainRoute(body); ok && w.interest.Scope.Inside(dst) {
			return Routes
		}
	}
	return 0
}

// by gives own when the link is one of ours, and uplink when it is an uplink.
func (w *Watch) by(index int, own, uplink Event) Event {
	return w.named(w.links[index].name, own, uplink)
}

func (w *Watch) named(name string, own, uplink Event) (e Event) {
	if w.interest.Scope.OwnsLink(name) {
		e |= own
	}
	if slices.Contains(w.interest.Uplinks, name) {
		e |= uplink
	}
	return e
}

// linkEvent follows the names of all links.
func (w *Watch) linkEvent(kind uint16, body []byte) Event {
	d, ok := parseDevice(body)
	if !ok || body[0] == unix.AF_BRIDGE { // a bridge port, not a link
		return 0
	}
	old := w.links[d.index]
	now := linkState{d.name, d.link.Up, d.link.MTU}
	if kind == unix.RTM_DELLINK {
		now = linkState{}
		delete(w.links, d.index)
	} else {
		w.links[d.index] = now
	}
	if old.name != now.name {
		w.filter()
	}
	if old == now { // counters, queues, carrier
		return w.named(now.name, Links, 0)
	}
	return w.named(old.name, Links, Uplink) | w.named(now.name, Links, Uplink)
}
