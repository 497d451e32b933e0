package main

import (
	"context"
	"errors"
	"net/netip"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// A scale measures one host with many peers. It has its own lab, whose uplinks are on a network
// with room for all peers, and in which nothing else runs.
type scale struct {
	lab      *lab.Lab
	etcd     etcdkeys.V3 // with one connection
	plan     plan
	progress func(format string, args ...any)

	used      int                 // number of hosts used so far
	baselines map[string]baseline // by prefix of the overlay
	watched   watchedHost         // the host that stays with most peers
}

var errNotWatched = errors.New("no flanneld runs among many peers")

// sections returns the sections in the order of measurement. Later ones use the host that earlier
// ones leave.
func (s *scale) sections() []section {
	return []section{
		{"scale", "Start among many peers, from exec to all objects in the kernel, beside ip -batch and bridge -batch writing the same", s.starts},
		{"scale", "One change among " + plural(s.most(), "peer") + ", backend vxlan, from etcd's commit to the kernel", s.changes},
		{"scale", "Answers among " + plural(s.most(), "peer") + ", backend vxlan, of the daemon's socket", s.answers},
		{"scale", "Restart among " + plural(s.most(), "peer") + ", backend vxlan, with everything in place", s.restarts},
		{"scale", "Faults among " + plural(s.most(), "peer") + ", backend vxlan, from the end of the fault to its repair", s.repairsAmongMany},
		{"scale", "Faults among 3 peers, backend vxlan, from the begin of the fault to its repair", s.repairsAmongFew},
	}
}

func (s *scale) most() int { return s.plan.sizes[len(s.plan.sizes)-1] }

// scaleHosts returns the number of hosts. Each start and each baseline has a host that was not used
// before; two more are a real peer and the host with few peers.
func (p plan) scaleHosts() int { return 2*2*len(p.sizes)*p.launches + 2 }

// build creates the lab.
func (s *scale) build(ctx context.Context, flanneld string) (err error) {
	s.baselines = map[string]baseline{}
	underlay := netip.MustParsePrefix(manyUnderlay)
	if s.lab, err = lab.New(ctx, lab.Options{Hosts: s.plan.scaleHosts(), Flanneld: flanneld, Underlay: underlay}); err != nil {
		return err
	}
	s.etcd, err = s.lab.Etcd.V3().Keep(ctx)
	return err
}

func (s *scale) close() error {
	if s.watched.monitor != nil {
		s.watched.monitor.close()
	}
	if s.lab == nil {
		return nil
	}
	return s.lab.Close()
}

// next returns a host that was not used before.
func (s *scale) next() *lab.Host {
	h := s.lab.Hosts[s.used]
	s.used++
	return h
}
