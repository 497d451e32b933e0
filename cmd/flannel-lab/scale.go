package main

import (
	"context"
	"errors"
	"net/netip"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// A scale measures one host among many. It has a lab of its own, whose uplinks are on a network with room for all peers,
// and where nothing else runs.
type scale struct {
	lab      *lab.Lab
	etcd     *etcdkeys.Session
	plan     plan
	progress func(format string, args ...any)

	used      int                 // hosts
	baselines map[string]baseline // by the prefix of an overlay
	watched   watchedHost         // the host that stays among the most peers
}

var errNotWatched = errors.New("no flanneld runs among many peers")

// sections are measured in this order, since later ones take up what earlier ones have left.
func (s *scale) sections() []section {
	return []section{
		{"scale", "Start among many peers, from exec to all objects in the kernel, beside ip -batch and bridge -batch writing the same", s.starts},
		{"scale", "One change among " + plural(s.most(), "peer") + ", backend vxlan, from etcd's commit to the kernel", s.changes},
		{"scale", "Restart among " + plural(s.most(), "peer") + ", backend vxlan, with everything in place", s.restarts},
		{"scale", "Faults among " + plural(s.most(), "peer") + ", backend vxlan, from the end of the fault to its repair", s.repairsAmongMany},
		{"scale", "Faults among 3 peers, backend vxlan, from the begin of the fault to its repair", s.repairsAmongFew},
	}
}

func (s *scale) most() int { return s.plan.sizes[len(s.plan.sizes)-1] }

// scaleHosts is how many it takes: each start and each baseline has one that nothing was done on before. Two more are a real peer
// and the one among few.
func (p plan) scaleHosts() int { return 2*2*len(p.sizes)*p.launches + 2 }

// build makes the lab.
func (s *scale) build(ctx context.Context, flanneld string) (err error) {
	s.baselines = map[string]baseline{}
	underlay := netip.MustParsePrefix(manyUnderlay)
	if s.lab, err = lab.New(ctx, lab.Options{Hosts: s.plan.scaleHosts(), Flanneld: flanneld, Underlay: underlay}); err != nil {
		return err
	}
	s.etcd, err = s.lab.Etcd.V3().Open(ctx)
	return err
}

func (s *scale) close() error {
	if s.watched.monitor != nil {
		s.watched.monitor.close()
	}
	if s.etcd != nil {
		s.etcd.Close()
	}
	if s.lab == nil {
		return nil
	}
	return s.lab.Close()
}

// next gives a host that nothing was done on.
func (s *scale) next() *lab.Host {
	h := s.lab.Hosts[s.used]
	s.used++
	return h
}
