package kernel

import (
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/driver"
	"flanneld/pkg/netlink"
)

// events returns the events of interest in a datagram.
func (w *Watch) events(b []byte) (e driver.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for h, body := range netlink.Messages(b) {
		// The port of a notification is that of the socket that requested the change.
		ours := h.Pid == w.k.conn.Port()
		if found := w.event(h, body); !ours {
			e |= found
		}
	}
	return e
}

func (w *Watch) event(h unix.NlMsghdr, body []byte) driver.Event {
	if of := byMessage[h.Type]; of != nil {
		return of.event(w, h, body)
	}
	return 0
}

// routeEvent handles routes of any type, because a blackhole may have replaced a route.
func (w *Watch) routeEvent(_ unix.NlMsghdr, body []byte) driver.Event {
	switch dst, ok := mainRoute(body); {
	case ok && w.interest.Inside(dst):
		return driver.Routes
	case ok && dst.Bits() == 0 && dst.Addr().Is4():
		return driver.Candidates
	}
	return 0
}

// nextHopEvent handles nexthop objects. The deletion of an object deletes the routes through it,
// and its replacement changes them. h repeats the flags of the request. Objects of a routing daemon
// are ignored as long as no route of the scope uses one of them.
func (w *Watch) nextHopEvent(h unix.NlMsghdr, body []byte) driver.Event {
	id, _, _, ok := parseNextHop(body)
	through := h.Type == unix.RTM_DELNEXTHOP || h.Flags&unix.NLM_F_REPLACE != 0
	if ok && (w.interest.InRange(id) || through && !w.k.onlyOwnHops.Load()) {
		return driver.Routes
	}
	return 0
}

// addrEvent also records which links have addresses: only these are uplink candidates, among
// possibly thousands of container links.
func (w *Watch) addrEvent(_ unix.NlMsghdr, body []byte) driver.Event {
	a, ok := parseAddr(body)
	if !ok {
		return 0
	}
	e := w.eventFor(a.index, driver.Addrs, driver.Uplink)
	if a.prefix.Addr().Is4() {
		w.hasAddr[a.index] = true
		if e&driver.Addrs == 0 {
			e |= driver.Candidates
		}
	}
	return e
}

func (w *Watch) neighborEvent(h unix.NlMsghdr, body []byte) driver.Event {
	n, ok := parseNeighbor(body)
	switch {
	case !ok:
		return 0
	case n.family == unix.AF_BRIDGE && !n.hasAge:
		// Until Linux 6.13, rtnetlink repeats the driver's notification of every change with less
		// information, for example without the remote (net/core/rtnetlink.c, rtnl_fdb_add).
		return 0
	case n.family == unix.AF_BRIDGE:
		if e := w.eventFor(n.index, driver.FDB, 0); e != 0 && w.k.fdbCache.isNews(h.Type, n) {
			return e
		}
		return 0
	case n.dst.IsMulticast(): // created by the kernel for each joined group
		return 0
	case h.Type == unix.RTM_DELNEIGH && n.state == unix.NUD_FAILED:
		// A requested deletion: before it, the entry was announced as failed, with the port of the
		// requester, which this notification lacks.
		return 0
	}
	return w.eventFor(n.index, driver.Neighs, 0)
}

// eventFor returns own if the link is one of ours, and uplink if it is an uplink.
func (w *Watch) eventFor(index int, own, uplink driver.Event) driver.Event {
	return w.eventForName(w.links[index].name, own, uplink)
}

func (w *Watch) eventForName(name string, own, uplink driver.Event) (e driver.Event) {
	if w.interest.OwnsLink(name) {
		e |= own
	}
	if slices.Contains(w.interest.Underlay, name) {
		e |= uplink
	}
	return e
}

// linkEvent tracks the links that matter: those of interest, by their previous names as well, and
// those with addresses.
func (w *Watch) linkEvent(h unix.NlMsghdr, body []byte) driver.Event {
	now, ok := parseDevice(body)
	if !ok || body[0] == unix.AF_BRIDGE { // a bridge port, not a link
		return 0
	}
	index := now.index
	old := w.links[index]
	numbered := w.hasAddr[index]
	if h.Type == unix.RTM_DELLINK {
		delete(w.hasAddr, index)
		delete(w.links, index)
		now = device{}
	} else if numbered || w.eventForName(now.name, driver.Links, driver.Uplink) != 0 {
		w.links[index] = now
	} else {
		delete(w.links, index)
	}
	if old == now { // only attributes have changed that are not used here
		return 0
	}
	e := w.eventForName(old.name, driver.Links, driver.Uplink) | w.eventForName(now.name, driver.Links, driver.Uplink)
	if old.name != now.name && e != 0 {
		w.setFilter()
	}
	if e&driver.Links == 0 && numbered {
		e |= driver.Candidates
	}
	return e
}
