package main

import (
	"context"
	"flanneld/pkg/lab/logs"
	"fmt"
	"net/netip"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lease"
)

// The networks of the section scale. Real hosts lease from the first /16; SubnetLen must leave room
// for all peers.
const (
	manyNetwork  = "10.0.0.0/9"
	manyUnderlay = "100.64.0.0/10" // RFC 6598; for host-gw, peers must be on the uplink's own link
)

// manyOverlay returns a network with a number of peers that exist in etcd only.
func manyOverlay(backend string, peers int) overlay {
	return overlay{
		name: backend, prefix: fmt.Sprintf("/%s-%d", backend, peers), network: netip.MustParsePrefix(manyNetwork), etcdPeers: peers,
		config: fmt.Sprintf(`{"Network":%q,"SubnetLen":24,"SubnetMin":"10.0.1.0","SubnetMax":"10.0.250.0","Backend":{"Type":%q}}`, manyNetwork, backend),
	}
}

// numberedPeer returns peer i, 0 to 32000.
func numberedPeer(i int) peer {
	return peer{
		subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1 + byte(i>>8), byte(i), 0}), 24),
		public: netip.AddrFrom4([4]byte{100, 96, byte(i >> 8), byte(i)}),
		mac:    dataplane.MAC{0x0a, 0, 0, 0, byte(i >> 8), byte(i)},
	}
}

func (p peer) attrs(backend string) lease.Attrs {
	a := lease.Attrs{PublicIP: p.public, BackendType: backend}
	if backend == "vxlan" {
		a.BackendData = fmt.Sprintf(`{"VNI":1,"VtepMAC":"%s"}`, p.mac)
	}
	return a
}

// entry returns the peer's key and value in etcd.
func (p peer) entry(o overlay) (etcdkeys.Entry, error) {
	value, err := p.attrs(o.name).Encode()
	return etcdkeys.Entry{Key: o.prefix + "/subnets/" + p.key(), Value: string(value)}, err
}

// inKernel returns the peer's objects in a kernel, without the nexthop object.
func (p peer) inKernel(backend string) objects {
	all := objects{{kind: dataplane.KindRoute, addr: p.subnet.Addr()}: {}}
	if backend == "vxlan" {
		all[object{kind: dataplane.KindNeigh, addr: p.subnet.Addr()}] = p.mac
		all[object{kind: dataplane.KindFDB, addr: p.public, mac: p.mac}] = dataplane.MAC{}
	}
	return all
}

// deviceOf returns the name of the link of a backend's objects.
func deviceOf(o overlay, h *lab.Host) string {
	if o.name == "vxlan" {
		return vxlanLink
	}
	return h.Uplink
}

// listObjects returns the objects of an overlay on a link in a kernel, to check a monitor with.
func listObjects(k *kernel.Kernel, network netip.Prefix, link string) (objects, error) {
	s, err := k.Snapshot(dataplane.Scope{Networks: []netip.Prefix{network}, Links: []string{link}})
	return objectsOf(s, link), err
}

// objectsOf returns the objects of an overlay on a link.
func objectsOf(s dataplane.State, link string) objects {
	all := objects{}
	for r, route := range s.Routes {
		if r.Link == link && route.Proto != dataplane.ProtoKernel {
			all[object{kind: dataplane.KindRoute, addr: r.Dst.Addr()}] = dataplane.MAC{}
		}
	}
	for n, mac := range s.Neighs {
		all[object{kind: dataplane.KindNeigh, addr: n.IP}] = mac
	}
	for f := range s.FDB {
		all[object{kind: dataplane.KindFDB, addr: f.Dst, mac: f.MAC}] = dataplane.MAC{}
	}
	return all
}

// writeMany writes the config and the leases of an overlay.
func (s *scale) writeMany(ctx context.Context, o overlay) error {
	entries := []etcdkeys.Entry{{Key: o.prefix + "/config", Value: o.config}}
	for i := range o.etcdPeers {
		e, err := numberedPeer(i).entry(o)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	return s.etcd.PutTogether(ctx, entries)
}

// loggedAt returns the time of the first log line whose message begins with one of some texts.
func loggedAt(p *lab.Process, texts ...string) (time.Time, error) {
	for _, text := range texts {
		if found := logs.Find(p.Logs(), `msg="`+text); len(found) > 0 {
			return logs.Time(found[0])
		}
	}
	return time.Time{}, fmt.Errorf("flanneld has not said %q", texts)
}
