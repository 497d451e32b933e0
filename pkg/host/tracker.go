package host

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"
)

const (
	// uplinkGrace is how long an uplink may be unusable before another one is chosen, and how long
	// a better uplink must have been usable before it is chosen.
	uplinkGrace = 3 * time.Second
	// addressMemory is how long an address counts as new after it was added, and as known after it
	// was removed. An address that existed together with the uplink's own does not replace it.
	addressMemory = 10 * time.Second
)

// Tracker keeps the choice of the uplink over time. It converges to the best uplink by the
// selectors. Because a change interrupts traffic, an uplink that returns within uplinkGrace is
// kept. The zero value has not chosen an uplink yet.
type Tracker struct {
	Selectors Selectors
	Reach     Reach

	current        Uplink
	preferred      string                  // the interface to return to, unless another is better
	index          int                     // ifindex of the current interface, which may be renamed
	seen           map[netip.Addr]sighting // addresses that exist or existed recently
	wasUp          bool                    // the uplink has been up since it was chosen
	downSince      time.Time               // since when the uplink is down; zero if it is up
	candidate      Uplink                  // the best uplink, if it is not the current one
	candidateSince time.Time               // since when it is the best
}

// sighting records when an address was added, zero if it existed before, and when it was last seen.
type sighting struct{ came, last time.Time }

// Choice is the decision of a Tracker.
type Choice struct {
	Uplink     Uplink        // zero if none was chosen yet
	Err        error         // why the uplink is unusable now
	RetryAfter time.Duration // call Update again after this time, unless something changes before; 0 if not needed
}

// Update returns the choice for the current inventory. own are the subnets that this host has or
// had.
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

// onCurrent returns an address of the current interface, if there is no default route at all. Then
// there is no reason to leave the interface.
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
		err = fmt.Errorf("interface %s has no address but %s", i.Name, u.Addr) // it was assigned because the interface had no other
	}
	return u, err
}

// iface returns the current interface by its name, or by its index if it was renamed.
func (t *Tracker) iface(inv Inventory) (Iface, bool) {
	if i, ok := inv.iface(t.current.Iface); ok {
		return i, true
	}
	return find(inv.Ifaces, func(i Iface) bool { return i.Index == t.index })
}

// observe records the state of the current uplink.
func (t *Tracker) observe(inv Inventory, now time.Time) {
	i, _ := t.iface(inv)
	up := inv.Has(t.current)
	if up {
		t.index, t.wasUp = i.Index, true
	}
	if up && i.Running {
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

// isSuccessor reports whether the candidate is the current uplink in another form, which is chosen
// without waiting: a new address replaced the old one on the same interface, or the old address
// moved to another interface.
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

// preferredAfter returns the preferred interface after the switch to the candidate. It is the
// candidate's interface, if that is better than the current one or is the current uplink in another
// form. Otherwise the candidate is temporary and the preferred interface is unchanged.
func (t *Tracker) preferredAfter(inv Inventory, own []netip.Prefix) string {
	i, ok := t.iface(inv)
	others := inv.without("is the candidate", func(i Iface) bool { return i.Name == t.candidate.Iface })
	second, err := Choose(t.Selectors, others, own, t.Reach, t.current.Iface)
	if t.candidate.Addr == t.current.Addr || ok && i.Name == t.candidate.Iface || err == nil && second.same(t.current) {
		return t.candidate.Iface
	}
	return t.preferred
}

func (t *Tracker) switchTo(u Uplink, preferred string, inv Inventory, now time.Time) {
	i, _ := inv.iface(u.Iface)
	*t = Tracker{Selectors: t.Selectors, Reach: t.Reach, current: u, preferred: preferred, index: i.Index, wasUp: inv.Has(u), seen: map[netip.Addr]sighting{}}
	for _, a := range i.Addrs {
		t.seen[a.Prefix.Addr()] = sighting{last: now}
	}
}

// usable returns why the current uplink cannot be used, or nil if it can. An interface that was
// never up counts as usable, because it may be down on purpose.
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
