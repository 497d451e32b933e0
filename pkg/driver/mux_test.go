package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"flanneld/pkg/dataplane"
)

// recorder is a driver that notes the batches it gets, and refuses objects on demand.
type recorder struct {
	name    string
	journal *[]string
	refuse  map[string]error // by object
	reads   func(*dataplane.State) error
	events  *Mailbox
}

func (r *recorder) Snapshot(_ dataplane.Scope, s *dataplane.State) error { return r.reads(s) }

func (r *recorder) Apply(ops []dataplane.Op) []error {
	var words []string
	errs := make([]error, len(ops))
	for i, op := range ops {
		words = append(words, fmt.Sprintf("%s %s", op.Verb, op.Object()))
		errs[i] = r.refuse[op.Object()]
	}
	*r.journal = append(*r.journal, r.name+": "+strings.Join(words, ", "))
	return errs
}

func (r *recorder) Events() <-chan Event { return r.events.Events() }

func newBed(ctx context.Context) (mux *Mux, base, part *recorder, journal *[]string) {
	journal = &[]string{}
	base = &recorder{name: "base", journal: journal, refuse: map[string]error{}, events: NewMailbox()}
	part = &recorder{name: "part", journal: journal, refuse: map[string]error{}, events: NewMailbox()}
	return NewMux(ctx, base, Part{Driver: part, Kinds: []dataplane.Kind{dataplane.KindTunnel}, CreatesLinks: dataplane.KindTUN}), base, part, journal
}

var (
	tun   = dataplane.KindLink.Put("flannel0", dataplane.Link{Kind: dataplane.KindTUN})
	vxlan = dataplane.KindLink.Put("flannel.1", dataplane.Link{Kind: dataplane.KindVXLAN})
	addr  = dataplane.KindAddr.Put(dataplane.Addr{Link: "flannel0", Prefix: netip.MustParsePrefix("10.42.7.0/32")}, struct{}{})
	entry = dataplane.KindTunnel.Put(dataplane.TunnelKey{Link: "flannel0", Subnet: netip.MustParsePrefix("10.42.9.0/24")}, netip.AddrPort{})
	route = dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.MustParsePrefix("10.42.9.0/24"), Link: "flannel.1"}, dataplane.Route{})
)

func TestEachKindGoesToItsDriver(t *testing.T) {
	entryDel := dataplane.KindTunnel.Del(dataplane.KindTunnel.Of(entry))
	tunDel := dataplane.KindLink.Del(dataplane.KindLink.Of(tun))
	for _, c := range []struct {
		name    string
		ops     []dataplane.Op
		refuse  string
		journal string
		failed  string
	}{
		{name: "nothing"},
		{name: "one batch each, in order", ops: []dataplane.Op{vxlan, addr, entry, entry, route, entryDel}, journal: `
base: replace link flannel.1, replace address 10.42.7.0/32 dev flannel0
part: replace tunnel entry 10.42.9.0/24 dev flannel0, replace tunnel entry 10.42.9.0/24 dev flannel0
base: replace route 10.42.9.0/24 dev flannel.1
part: delete tunnel entry 10.42.9.0/24 dev flannel0`},
		{name: "a link that a driver makes is there for the base", ops: []dataplane.Op{tun, addr}, journal: `
part: replace link flannel0
base: change link flannel0
base: replace address 10.42.7.0/32 dev flannel0`},
		{name: "the base deletes it", ops: []dataplane.Op{tunDel, tun}, journal: `
base: delete link flannel0
part: replace link flannel0
base: change link flannel0`},
		{name: "what is on a link that cannot be made", ops: []dataplane.Op{vxlan, tun, addr, entry, route}, refuse: "link flannel0", journal: `
base: replace link flannel.1
part: replace link flannel0
base: replace route 10.42.9.0/24 dev flannel.1`, failed: "link flannel0, address 10.42.7.0/32 dev flannel0, tunnel entry 10.42.9.0/24 dev flannel0"},
		{name: "one that fails alone", ops: []dataplane.Op{addr, entry, route}, refuse: "tunnel entry 10.42.9.0/24 dev flannel0", journal: `
base: replace address 10.42.7.0/32 dev flannel0
part: replace tunnel entry 10.42.9.0/24 dev flannel0
base: replace route 10.42.9.0/24 dev flannel.1`, failed: "tunnel entry 10.42.9.0/24 dev flannel0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, _, part, journal := newBed(t.Context())
			part.refuse[c.refuse] = errors.New("no")
			var failed []string
			for i, err := range m.Apply(c.ops) {
				if err != nil {
					failed = append(failed, c.ops[i].Object())
				}
			}
			if got := strings.Join(*journal, "\n"); got != strings.TrimSpace(c.journal) {
				t.Errorf("got\n%s\nwant%s", got, c.journal)
			}
			if got := strings.Join(failed, ", "); got != c.failed {
				t.Errorf("failed: %s, want %s", got, c.failed)
			}
		})
	}
}

// TestWhatTheBaseRefusesOfAMadeLink: the link is not as wanted, so nothing is done on it.
func TestWhatTheBaseRefusesOfAMadeLink(t *testing.T) {
	m, base, _, journal := newBed(t.Context())
	base.refuse["link flannel0"] = errors.New("no")
	errs := m.Apply([]dataplane.Op{tun, addr})
	if errs[0] == nil || errs[1] != errs[0] || len(*journal) != 2 {
		t.Errorf("%v after\n%s", errs, strings.Join(*journal, "\n"))
	}
}

func TestSnapshotOfAll(t *testing.T) {
	m, base, part, _ := newBed(t.Context())
	var order []string
	reads := func(r *recorder, err error) {
		r.reads = func(s *dataplane.State) error {
			order = append(order, r.name)
			s.Sysctls[r.name] = fmt.Sprint(len(s.Sysctls))
			return err
		}
	}
	reads(base, nil)
	reads(part, nil)
	s := dataplane.NewState()
	if err := m.Snapshot(dataplane.Scope{}, &s); err != nil || s.Text() != "sysctl base = 0\nsysctl part = 1\n" {
		t.Errorf("%v, read\n%s", err, s.Text())
	}
	for _, r := range []*recorder{part, base} {
		reads(r, errors.New("interrupted"))
		order = nil
		if err := m.Snapshot(dataplane.Scope{}, &s); err == nil || order[len(order)-1] != r.name {
			t.Errorf("%v of %v, %s failed", err, order, r.name)
		}
	}
}

// TestEventsAreOneSet: from all sources, however late they are received; and they end.
func TestEventsAreOneSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m, base, part, _ := newBed(ctx)
		for _, e := range []Event{Links, Routes, Links} {
			base.events.Report(e)
			part.events.Report(DeviceTaken)
			synctest.Wait()
		}
		if e := <-m.Events(); e != Links|Routes|DeviceTaken || e.String() != "links+routes+taken" {
			t.Errorf("got %s", e)
		}
		base.events.Close()
		base.events.Close()
		base.events.Report(Overflow) // too late
		part.events.Report(Uplink)
		if e := <-m.Events(); e != Uplink {
			t.Errorf("got %s", e)
		}
		cancel()
		if e, ok := <-m.Events(); ok {
			t.Errorf("got %s after the end", e)
		}
	})
}

// TestMailboxLosesNothing: of what several report at a time, all arrives.
func TestMailboxLosesNothing(t *testing.T) {
	m, all := NewMailbox(), []Event{Links, Addrs, FDB, Neighs, Routes, Uplink, Candidates, DeviceTaken, Overflow}
	for _, e := range all {
		go m.Report(e)
	}
	var seen Event
	for want := Event(1<<len(all) - 1); seen != want; {
		seen |= <-m.Events()
	}
	if words := strings.Split(seen.String(), "+"); len(words) != len(all) || slices.Contains(words, "") {
		t.Errorf("%v", words)
	}
}
