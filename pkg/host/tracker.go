package host

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"
)

const (
	// uplinkGrace is how long an uplink may be away before another one is taken, and
	// how long a better one must have been whole.
	uplinkGrace = 3 * time.Second
	// addressMemory is how long an address counts as new after it came, and as known after
	// it went: one that was there beside the uplink's own is not its successor.
	addressMemory = 10 * time.Second
)

// Tracker keeps the choice of the uplink over time. The best one by the selectors is used
// in the end, whatever happened; but a change interrupts traffic, so an uplink that comes
// back in time is kept. The zero value has chosen nothing yet.
type Tracker struct {
	Selectors Selectors
	Reach     Reach

	current        Uplink
	preferred      string                  // the interface that is taken again, if no other is better
	index          int                     // of the current interface, which may be renamed
	seen           map[netip.Addr]sighting // addresses that are, or lately were, there
	wasUp          bool                    // it was up since it was chosen
	downSince      time.Time               // since when it is not; zero: it is
	candidate      Uplink                  // the best one, if that is another; zero: it is not
	candidateSince time.Time               // when that became the best
}

// sighting is when an address came, zero if it was there before, and was last there.
type sighting struct{ came, last time.Time }

// Choice is what a Tracker has decided.
type Choice struct {
	Uplink     Uplink        // zero: there never was one
	Err        error         // why it cannot be used now
	RetryAfter time.Duration // decide again after that time, if nothing changes before; 0: no need
}

// Update takes what the kernel holds now. own are the subnets that this host has or had.
func (t *Tracker) Update(inv Inventory, own []netip.Prefix, now time.Time) Choice {
	best, err := Choose(t.Selectors, inv, own, t.Reach, t.preferred, t.current.Iface)
	if t.current.Iface == "" {
		if err == nil {
			t.switchTo(best, best.Iface, inv, now)
		}
		return Choice{Uplink: t.current, Err: err}
	}
	if errors.Is(err, errNoDefaultRoute) {
		best, err = t.onCurrent(inv, own)
	}
	t.observe(inv, now)
	switch {
	case err != nil || best.same(t.current):
		t.candidate = Uplink{}
	case !best.same(t.candidate):
		t.candidate, t.candidateSince = best, now
	}
	var again time.Duration
	if t.candidate.Iface != "" {
		waited := now.Sub(t.candidateSince)
		if !t.downSince.IsZero() {
			waited = max(waited, now.Sub(t.downSince))
		}
		if again = uplinkGrace - waited; again <= 0 || t.isSuccessor(inv, now) {
			t.switchTo(t.candidate, t.preferredAfter(inv, own), inv, now)
			again = 0
		}
	}
	return Choice{t.current, t.usable(inv, err), again}
}

// onCurrent finds an address of the current interface, for when there is no default route at all:
// then there is no reason to leave it.
func (t *Tracker) onCurrent(inv Inventory, own []netip.Prefix) (Uplink, error) {
	i, ok := t.iface(inv)
	switch {
	case !ok:
		return Uplink{}, fmt.Errorf("interface %s is gone", t.current.Iface)
	case i.Name == t.current.Iface && inv.hasAddr(t.current):
		return t.current, nil
	case i.overlay(own):
		return Uplink{}, fmt.Errorf("interface %s belongs to the overlay", i.Name)
	}
	u, err := inv.addrOf(i)
	if err == nil && u.Addr.IsLinkLocalUnicast() && !t.current.Addr.IsLinkLocalUnicast() {
		err = fmt.Errorf("interface %s has no address but %s", i.Name, u.Addr) // it gave itself that for want of another
	}
	return u, err
}

// iface finds the current interface by its name, or renamed.
func (t *Tracker) iface(inv Inventory) (Iface, bool) {
	if i, ok := inv.iface(t.current.Iface); ok {
		return i, true
	}
	for _, i := range inv.Ifaces {
		if i.Index == t.index {
			return i, true
		}
	}
	return Iface{}, false
}

// observe notes what has become of the current uplink.
func (t *Tracker) observe(inv Inventory, now time.Time) {
	i, ok := t.iface(inv)
	if ok && inv.Has(t.current) {
		t.index, t.wasUp = i.Index, true
	}
	if ok && i.Running && inv.Has(t.current) {
		t.downSince = time.Time{}
	} else if t.downSince.IsZero() {
		t.downSince = now
	}
	for _, a := range i.Addrs {
		s, known := t.seen[a.Prefix.Addr()]
		if !known {
			s.came = now
		}
		s.last = now
		t.seen[a.Prefix.Addr()] = s
	}
	maps.DeleteFunc(t.seen, func(_ netip.Addr, s sighting) bool { return now.Sub(s.last) > addressMemory })
}

// isSuccessor reports whether the rival is the current uplink in another form, for which
// nothing is to be waited: with a new address in place of the old one, or with the old one
// on another interface.
func (t *Tracker) isSuccessor(inv Inventory, now time.Time) bool {
	if inv.hasAddr(t.current) {
		return false
	}
	if t.candidate.Addr == t.current.Addr {
		return true
	}
	i, _ := t.iface(inv)
	came := t.seen[t.candidate.Addr].came
	return t.candidate.Iface == i.Name && !came.IsZero() && now.Sub(came) < addressMemory && !t.candidate.Addr.IsLinkLocalUnicast()
}

// preferredAfter returns what home is after the rival was taken: that, if it is a better one
// than the current one is, or this in another form; else it only stands in for home.
func (t *Tracker) preferredAfter(inv Inventory, own []netip.Prefix) string {
	if t.candidate.Addr == t.current.Addr {
		return t.candidate.Iface
	}
	if i, ok := t.iface(inv); ok && i.Name == t.candidate.Iface {
		return t.candidate.Iface
	}
	others := inv.without("", func(i Iface) bool { return i.Name == t.candidate.Iface })
	if second, err := Choose(t.Selectors, others, own, t.Reach, t.current.Iface); err == nil && second.same(t.current) {
		return t.candidate.Iface
	}
	return t.preferred
}

func (t *Tracker) switchTo(u Uplink, home string, inv Inventory, now time.Time) {
	i, _ := inv.iface(u.Iface)
	*t = Tracker{Selectors: t.Selectors, Reach: t.Reach, current: u, preferred: home, index: i.Index, wasUp: inv.Has(u), seen: map[netip.Addr]sighting{}}
	for _, a := range i.Addrs {
		t.seen[a.Prefix.Addr()] = sighting{last: now}
	}
}

// usable returns why the current uplink cannot be used, nil if it can. One that was
// never up can, as far as that is possible, for nobody says that it should be up.
func (t *Tracker) usable(inv Inventory, choose error) error {
	switch i, ok := inv.iface(t.current.Iface); {
	case !ok || !inv.hasAddr(t.current):
		if choose != nil {
			return choose
		}
		return fmt.Errorf("waiting for %s dev %s to come back", t.current.Addr, t.current.Iface)
	case !i.Up && t.wasUp:
		return fmt.Errorf("interface %s is down", t.current.Iface)
	}
	return nil
}
