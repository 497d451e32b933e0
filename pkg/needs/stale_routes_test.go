package needs

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
)

// fake is a kernel with objects of an earlier run.
type fake struct {
	inventory       host.Inventory
	state           dataplane.State
	unread, refuses error
	done            []string
}

func (f *fake) Inventory(kernel.Wanted) (host.Inventory, error) { return f.inventory, f.unread }
func (f *fake) Snapshot(dataplane.Scope) (dataplane.State, error) {
	s := f.state
	s.Routes = maps.Clone(s.Routes) // the caller's
	return s, f.unread
}
func (f *fake) Apply(ops []dataplane.Op) []error {
	for _, op := range ops {
		f.done = append(f.done, op.String())
	}
	return []error{f.refuses}
}

// TestStaleRoutes removes the route of an earlier run's device to etcd, and nothing else.
func TestStaleRoutes(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	network := prefix("192.0.2.0/24")
	etcd, beside := host.Need{Addr: addr("192.0.2.10"), What: "etcd"}, host.Need{Addr: addr("198.51.100.10"), What: "etcd"}
	const deletion = "ip route del 192.0.2.8/29 via 192.0.2.8 dev flannel.1 onlink"
	for _, c := range []struct {
		name    string
		network netip.Prefix
		need    host.Need
		stamped bool // the route is an overlay's
		refuses error
		unread  error
		over    bool
		done    string
		says    string
	}{
		{name: "in the way", network: network, need: etcd, stamped: true, done: deletion, says: "removed stale route"},
		{name: "cannot be removed", network: network, need: etcd, stamped: true, refuses: errors.New("no"), done: deletion, says: "failed to remove stale route"},
		{name: "another route is longer", network: network, need: etcd},
		{name: "needed beside the network", network: network, need: beside, stamped: true},
		{name: "no earlier run", need: etcd, stamped: true},
		{name: "the loop runs", network: network, need: etcd, stamped: true, over: true},
		{name: "unreadable", network: network, need: etcd, stamped: true, unread: errors.New("no buffer space"), says: "failed to check for stale routes"},
	} {
		f := &fake{state: dataplane.NewState(), unread: c.unread, refuses: c.refuses}
		f.inventory = host.Inventory{
			Ifaces: []host.Iface{{Name: "flannel.1"}, {Name: "eth0"}},
			Routes: []host.Route{{Dst: prefix("192.0.2.8/29"), Iface: "flannel.1", Gateway: addr("192.0.2.8")}},
		}
		if !c.stamped {
			f.inventory.Routes = append(f.inventory.Routes, host.Route{Dst: prefix("192.0.2.8/30"), Iface: "eth0"}, host.Route{Dst: prefix("192.0.2.10/32"), Iface: "eth0"})
		}
		f.state.Links["flannel.1"] = dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1}
		f.state.Addrs[dataplane.Addr{Link: "flannel.1", Prefix: prefix("192.0.2.128/32")}] = struct{}{}
		f.state.Routes[dataplane.RouteKey{Dst: prefix("192.0.2.8/29"), Link: "flannel.1"}] = dataplane.Route{Via: addr("192.0.2.8"), OnLink: true, Proto: dataplane.ProtoBoot}
		var lines bytes.Buffer
		log := slog.New(slog.NewTextHandler(&lines, nil))
		conditions := condition.NewList(log)
		l := &StaleRoutes{Kernel: f, Network: c.network, Conditions: conditions, Log: log}
		if c.over {
			l.Stop()
		}
		l.WarnAbout([]host.Need{c.need})
		if warns := strings.Contains(lines.String(), "leads to a name server"); warns != (c.done != "" || c.over) {
			t.Errorf("%s: said\n%s", c.name, &lines)
		}
		if f.unread == nil {
			lines.Reset()
		}
		l.RemoveFor([]host.Need{c.need})
		if got := strings.Join(f.done, "; "); got != c.done || !strings.Contains(lines.String(), c.says) || c.says == "" && lines.Len() > 0 {
			t.Errorf("%s: done %q, want %q; said\n%s", c.name, got, c.done, &lines)
		}
		l.Stop()
		if len(conditions.Current()) > 0 {
			t.Errorf("%s: conditions %v", c.name, conditions.Current())
		}
	}
}
