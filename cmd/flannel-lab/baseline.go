package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

// A baseline is the time that ip(8) and bridge(8) need in batch mode to write the objects of an
// overlay, by kind. It shows what the machine can do with a program that knows the objects in
// advance.
type baseline struct{ fdb, neighs, hops, routes time.Duration }

func (b baseline) all() time.Duration { return b.fdb + b.neighs + b.hops + b.routes }

// medianBaseline returns the median of each kind.
func medianBaseline(all []baseline) (m baseline) {
	m.fdb = medianOf(all, func(b baseline) time.Duration { return b.fdb })
	m.neighs = medianOf(all, func(b baseline) time.Duration { return b.neighs })
	m.hops = medianOf(all, func(b baseline) time.Duration { return b.hops })
	m.routes = medianOf(all, func(b baseline) time.Duration { return b.routes })
	return m
}

// baseline writes the objects of an overlay on a host that has none, measures it, and removes them.
// The creation of the device is not measured.
func (s *scale) baseline(ctx context.Context, o overlay, h *lab.Host) (b baseline, err error) {
	k, err := openKernel(h)
	if err != nil {
		return b, err
	}
	defer k.Close()
	link, onlink := deviceOf(o, h), ""
	if o.name == "vxlan" {
		onlink = " onlink"
		err := errors.Join(k.Apply([]dataplane.Op{
			dataplane.KindLink.Put(link, dataplane.Link{
				Kind: dataplane.KindVXLAN, VNI: 1, Parent: h.Uplink, Local: h.Addr, Port: 8472, MAC: dataplane.MAC{2, 1, 2, 3, 4, 5}, MTU: 1450, Up: true,
			}),
			dataplane.KindAddr.Put(dataplane.Addr{Link: link, Prefix: netip.MustParsePrefix("10.0.1.0/32")}, struct{}{}),
		})...)
		if err != nil {
			return b, err
		}
	}
	var fdb, neighs, hops, routes strings.Builder
	for i := range o.etcdPeers {
		p := numberedPeer(i)
		via := p.public
		if o.name == "vxlan" {
			via = p.subnet.Addr()
			fmt.Fprintf(&fdb, "fdb add %s dev %s dst %s self permanent\n", p.mac, link, p.public)
			fmt.Fprintf(&neighs, "neigh add %s lladdr %s dev %s nud permanent\n", via, p.mac, link)
		}
		fmt.Fprintf(&hops, "nexthop add id %d via %s dev %s%s\n", i+1, via, link, onlink)
		fmt.Fprintf(&routes, "route add %s nhid %d\n", p.subnet, i+1)
	}
	for _, w := range []struct {
		program string
		lines   *strings.Builder
		took    *time.Duration
	}{{"bridge", &fdb, &b.fdb}, {"ip", &neighs, &b.neighs}, {"ip", &hops, &b.hops}, {"ip", &routes, &b.routes}} {
		if w.lines.Len() == 0 {
			continue
		}
		if *w.took, err = s.batch(ctx, h, w.program, w.lines.String()); err != nil {
			return b, err
		}
	}
	have, err := listObjects(k, o.network, link)
	if want := o.etcdPeers * len(numberedPeer(0).inKernel(o.name)); err == nil && len(have) != want {
		err = fmt.Errorf("the baseline has %d objects of %d in the kernel of %s", len(have), want, h.Name)
	}
	if err != nil {
		return b, err
	}
	return b, s.clear(ctx, o, h)
}

// batch runs commands on a host with the batch mode of a program.
func (s *scale) batch(ctx context.Context, h *lab.Host, program, commands string) (time.Duration, error) {
	path := filepath.Join(s.lab.Dir, "batch")
	if err := os.WriteFile(path, []byte(commands), 0o600); err != nil {
		return 0, err
	}
	return command(ctx, h, program+" -batch "+path)
}

// command runs a command on a host and returns its duration.
func command(ctx context.Context, h *lab.Host, line string) (time.Duration, error) {
	words := strings.Fields(line)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	var out []byte
	start := time.Now()
	err := h.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	took := time.Since(start)
	if err != nil {
		const most = 200
		return took, fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out[:min(len(out), most)])))
	}
	return took, nil
}

// clear removes an overlay's objects from a host. The order and the sysctl matter: if a link is
// removed before its nexthop objects, the kernel searches all routes for each of them; and ip(8)
// flushes such routes only if the kernel does not report their links.
func (s *scale) clear(ctx context.Context, o overlay, h *lab.Host) error {
	errs := []error{h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte("0"), 0) })}
	link := deviceOf(o, h)
	for _, line := range []string{"ip route flush root " + o.network.String(), "ip nexthop flush dev " + link, "ip link del " + link} {
		_, err := command(ctx, h, line)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
