package kernel

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// Every change of the FDB by another program is reported, and none of our own.
func TestForeignFDBChangesAreTold(t *testing.T) {
	b, _, want := watched(t)
	w := b.watch(dataplane.Scope{Networks: b.networks, Links: []string{overlay}})
	f := someFDB(want)
	elsewhere, unknown := f, f
	elsewhere.Dst = netip.MustParseAddr("203.0.113.77")
	unknown.MAC = dataplane.MAC{2, 7, 7, 7, 7, 7}
	fleeting := fdbEntry(b.index(), f)
	fleeting.State = unix.NUD_REACHABLE
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"added", func() error { return b.other.NeighSet(fdbEntry(b.index(), unknown)) }},
		{"deleted", func() error { return b.other.NeighDel(fdbEntry(b.index(), f)) }},
		{"replaced", func() error { return b.other.NeighSet(fdbEntry(b.index(), elsewhere)) }},
		{"for everything, with two remotes", func() error {
			all, too := elsewhere, f
			all.MAC, too.MAC = dataplane.MAC{}, dataplane.MAC{}
			return errors.Join(b.other.NeighAppend(fdbEntry(b.index(), all)), b.other.NeighAppend(fdbEntry(b.index(), too)))
		}},
		{"no longer permanent", func() error { return b.other.NeighSet(fleeting) }},
		{"with a VNI of its own", func() error {
			e := fdbEntry(b.index(), f)
			e.VNI = 99
			return b.other.NeighSet(e)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.must(c.do())
			await(t, w, driver.FDB)
			if len(b.pass(want)) == 0 {
				t.Error("the pass found no damage")
			}
			b.settled(want)
			b.quietBut(w, driver.FDB, func() {}) // if a MAC has several remotes, every change is reported
			// What was read and repaired is known again.
			less := maps.Clone(want.FDB)
			delete(less, f)
			all := want.FDB
			for _, want.FDB = range []map[dataplane.FDB]struct{}{less, all} {
				b.pass(want)
				b.quiet(w)
			}
		})
	}
}

// Entries of a link that was just created are in the cache, too.
func TestFDBOfANewLinkIsKnown(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 200)
	w := b.watch(want.ScopeOf(b.networks))
	b.pass(want)
	b.quietBut(w, ^(driver.FDB | driver.Overflow), func() {})
}

// With any concurrent changes, every lasting difference between the cache, from readings and own
// operations, and the kernel is reported by an event.
func TestForwardingMissesNothing(t *testing.T) {
	b, want := withPeers(t, 0)
	r := chance(t)
	scope := want.ScopeOf(b.networks)
	w := b.watch(scope)
	entry := func(n uint64) dataplane.FDB {
		return dataplane.FDB{Link: overlay, MAC: dataplane.MAC{2, 5: byte(n % 5)}, Dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(n / 5 % 3)})}
	}
	readings := 0
	for range 60 {
		done := make(chan struct{})
		go b.meddle(entry, r.Uint64(), done)
		have := b.snapshot(scope)
		for busy := true; busy; {
			select {
			case <-done:
				busy = false
			default:
			}
			if drain(w) != 0 {
				have = b.snapshot(scope)
				readings++
			}
			b.putAlone(have, entry(r.Uint64()), r.IntN(3) == 0)
		}
		// Events arrive in order: none of the FDB comes after that of the probe.
		b.quietBut(w, driver.FDB, func() { have = b.snapshot(scope) })
		if now := b.snapshot(scope); !maps.Equal(now.FDB, have.FDB) {
			t.Fatalf("no event told of the difference between what is known:\n%s\nand what there is:\n%s", have.Text(), now.Text())
		}
	}
	t.Logf("%d readings", readings)
}

// meddle makes changes as another program.
func (b *bed) meddle(entry func(uint64) dataplane.FDB, seed uint64, done chan struct{}) {
	defer close(done)
	index := b.index()
	for i := range uint64(20) {
		e := fdbEntry(index, entry(seed>>i))
		switch seed >> (i + 20) % 4 {
		case 0: // of what is not there, an error
			_ = b.other.NeighDel(e)
		case 1:
			_ = b.other.NeighAppend(e)
		default:
			if err := b.other.NeighSet(e); err != nil {
				b.t.Error(err)
			}
		}
	}
}

// putAlone makes e the only entry of its address, or deletes it with del, by the content of have,
// and updates have.
func (b *bed) putAlone(have dataplane.State, e dataplane.FDB, del bool) {
	var ops []dataplane.Op
	if !del {
		ops = append(ops, dataplane.KindFDB.Put(e, struct{}{}))
	}
	for f := range have.FDB {
		if f.MAC == e.MAC && (del || f != e) {
			ops = append(ops, dataplane.KindFDB.Del(f, struct{}{}))
		}
	}
	for i, err := range b.k.Apply(ops) {
		b.must(err)
		have.Update(ops[i])
	}
}
