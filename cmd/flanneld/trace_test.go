package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/status"
	"flanneld/pkg/trace"
)

// traceCluster is a network of two hosts with a container each, on the first of which things break.
type traceCluster struct {
	*faultCluster
	backend, device string
}

// missing is something that is taken from a host whose daemon does not repair it.
type missing struct {
	name     string
	backends string // for which it is needed
	take     string // shell command on the host; DEVICE and SUBNET stand for its own, PEER and PEERIP for the other host's
	at, said string // the place and a part of the reason
	// remedy is the command that restores it; empty for the one that the trace names.
	remedy string
}

func missings() []missing {
	return []missing{
		{name: "route", backends: "vxlan", take: "ip route del PEER", at: "route", said: "is missing"},
		{name: "route", backends: "direct-routing host-gw", take: "ip route del PEER", at: "route", said: "via PEERIP dev eth0 proto 70 is missing"},
		{name: "route", backends: "udp", take: "ip route del 10.42.0.0/16", at: "route", said: "the route 10.42.0.0/16 dev DEVICE scope global is missing"},
		{name: "route of another program", backends: "alloc", take: "ip route del PEER; ip route add unreachable PEER", at: "route", said: "the backend alloc makes none: another program must lead packets to PEER on PEERIP",
			remedy: "ip route del unreachable PEER; ip route add PEER via PEERIP"},
		{name: "neighbor", backends: "vxlan", take: "ip neigh del $(ip route show PEER | sed 's/.* via \\([0-9.]*\\) .*/\\1/') dev DEVICE", at: "neighbor", said: "the neighbour entry of"},
		{name: "FDB entry", backends: "vxlan", take: "bridge fdb del $(bridge fdb show dev DEVICE | sed -n 's/\\(.*\\) dst PEERIP .*/\\1/p') dev DEVICE", at: "fdb", said: "the FDB entry of"},
		{name: "forward rule", backends: "vxlan direct-routing host-gw udp alloc", take: "iptables-nft -P FORWARD DROP; iptables-nft -F FORWARD", at: "rules",
			said: "new ICMP packets are dropped by the policy of chain FORWARD"},
	}
}

// TestTraceNamesWhatIsMissing, on the host that lacks it, as sender and as receiver: the first thing
// that is wrong is what was deleted, and its remedy mends it. The other host's trace is not ok.
func TestTraceNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	need(t, "ip", "bridge", "iptables-nft")
	for _, b := range []struct{ name, config, device string }{
		{"vxlan", vxlanConfig, "flannel.1"},
		{"direct-routing", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`, "flannel.1"},
		{"udp", udpConfig, "flannel0"},
		{"host-gw", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, ""},
		{"alloc", `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`, ""},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c := newTraceCluster(t, b.name, b.config, b.device)
			c.wholeEverywhere("with all daemons")
			if b.name == "vxlan" {
				c.otherRoles()
			}
			c.lacksBridge()
			c.holdRepair()
			for _, m := range missings() {
				if slices.Contains(strings.Fields(m.backends), b.name) {
					c.lacks(m)
				}
			}
			c.lacksLease()
			if b.device != "" && b.name != "direct-routing" {
				c.lacksDevice()
			}
		})
	}
}

// newTraceCluster starts the hosts, which serve their status for each other.
func newTraceCluster(t *testing.T, backend, config, device string) *traceCluster {
	c := &traceCluster{faultCluster: &faultCluster{cluster: newCluster(t, lab.Options{Hosts: 2})}, backend: backend, device: device}
	c.h, c.peer = c.Hosts[0], c.Hosts[1]
	c.put("config", config)
	c.must(c.StartAll(c.ctx, "-status-listen=0.0.0.0:9285", "-probe-interval=200ms"))
	c.addContainers()
	if backend == "alloc" { // another program does the routing
		for i, h := range c.Hosts {
			other := c.Hosts[1-i]
			c.sh(h, fmt.Sprintf("ip route add %s via %s", c.subnet(other), other.Addr))
		}
	}
	c.waitAllPairs()
	if backend != "alloc" {
		c.probed()
	}
	return c
}

// trace traces on a host, from a container to another.
func (c *traceCluster) trace(h *lab.Host, src, dst netip.Addr, flags ...string) (tr trace.Trace) {
	c.t.Helper()
	tr, err := c.tryTrace(h, src, dst, flags...)
	c.must(err)
	return tr
}

// tryTrace is trace for several goroutines.
func (c *traceCluster) tryTrace(h *lab.Host, src, dst netip.Addr, flags ...string) (tr trace.Trace, err error) {
	args := append([]string{"trace", "--json", "-subnet-file=" + h.SubnetFile}, flags...)
	if p := h.Flanneld(); p.Exited() {
		args = append(args, "-etcd-endpoints="+c.Etcd.Endpoint())
	}
	began := time.Now()
	out, code, err := c.tryDoctor(h, append(args, src.String(), dst.String())...)
	if err != nil {
		return tr, err
	}
	if err := json.Unmarshal(out, &tr); err != nil || code != map[trace.Verdict]int{trace.OK: traceOK, trace.Broken: traceBroken, trace.Unknown: traceUnknown}[tr.Verdict] {
		return tr, fmt.Errorf("trace on %s: exit code %d, %v: %s", h.Name, code, err, out)
	}
	if took := time.Since(began); took > slow(10*time.Second) {
		return tr, fmt.Errorf("trace on %s took %v", h.Name, took)
	}
	return tr, nil
}

// together runs checks at the same time: a trace spends most of its time waiting for answers to
// pings that do not come.
func together(checks ...func() error) error {
	errs := make([]error, len(checks))
	var running sync.WaitGroup
	for i, check := range checks {
		running.Go(func() { errs[i] = check() })
	}
	running.Wait()
	return errors.Join(errs...)
}

// each returns a check that traces on a host as the sender, and as the receiver.
func (c *traceCluster) each(h *lab.Host, check func(trace.Trace) error) func() error {
	own, other := c.containers[0].Addr, c.containers[1].Addr
	if h == c.peer {
		own, other = other, own
	}
	one := func(src, dst netip.Addr) func() error {
		return func() error {
			tr, err := c.tryTrace(h, src, dst)
			if err == nil {
				err = check(tr)
			}
			if err != nil {
				return fmt.Errorf("on %s from %s to %s: %w:\n%s", h.Name, src, dst, err, traceText(tr))
			}
			return nil
		}
	}
	return func() error { return together(one(own, other), one(other, own)) }
}

func traceText(tr trace.Trace) string {
	var b strings.Builder
	trace.Style{}.Text(&b, tr)
	return b.String()
}

// whole returns an error unless everything is ok.
func whole(tr trace.Trace) error {
	if tr.Verdict != trace.OK || tr.Reason != "" || len(tr.Steps) < 8 || slices.ContainsFunc(tr.Steps, func(s trace.Step) bool { return s.OK == nil || !*s.OK }) {
		return fmt.Errorf("it is %s", tr.Verdict)
	}
	return nil
}

// broken returns a check that the first thing wrong is at a place, for a reason.
func broken(at, said string) func(trace.Trace) error {
	return func(tr trace.Trace) error {
		if tr.Verdict != trace.Broken || !strings.HasPrefix(tr.Reason, at+": ") || !strings.Contains(tr.Reason, said) {
			return fmt.Errorf("want %s: %s", at, said)
		}
		return nil
	}
}

func (c *traceCluster) wholeEverywhere(when string) {
	c.t.Helper()
	c.within(20*time.Second, "everything is ok "+when, func() error {
		return together(c.each(c.h, whole), c.each(c.peer, whole))
	})
}

// otherRoles traces between two containers of one host, also with their bridge's rules in the way,
// and from a host that has neither.
func (c *traceCluster) otherRoles() {
	c.t.Helper()
	first, second := c.containers[0].Addr, c.container(c.h).Addr
	c.within(20*time.Second, "containers of one host", func() error {
		if tr := c.trace(c.h, first, second); tr.Role != trace.Both || tr.Verdict != trace.OK {
			return fmt.Errorf("%s", traceText(tr))
		}
		return nil
	})
	shell("sysctl -qw net.bridge.bridge-nf-call-iptables=1; iptables-nft -I FORWARD -i docker0 -o docker0 -p tcp --dport 80 -j DROP")(c.faultCluster)
	if tr := c.trace(c.h, first, second, "-proto=tcp", "-port=80"); broken("rules", "new TCP packets to port 80 are dropped by rule")(tr) != nil {
		c.t.Errorf("a rule in the way: %s", traceText(tr))
	}
	if tr := c.trace(c.h, first, second, "-proto=tcp", "-port=81"); tr.Verdict != trace.OK {
		c.t.Errorf("a rule for another port: %s", traceText(tr))
	}
	shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0; iptables-nft -D FORWARD -i docker0 -o docker0 -p tcp --dport 80 -j DROP")(c.faultCluster)
	if tr := c.trace(c.peer, first, second); tr.Role != trace.Neither || tr.Verdict != trace.Unknown || len(tr.Steps) != 2 || !strings.Contains(tr.Steps[0].Object, c.subnet(c.h).String()) {
		c.t.Errorf("from another host: %s", traceText(tr))
	}
}

// traceIsBounded traces on a host whose etcd, daemon and tools hang, to a peer that is dead.
func (c *faultCluster) traceIsBounded(h *lab.Host) {
	c.t.Helper()
	began := time.Now()
	out, code := c.runDoctor(h, "trace", "--json", "-subnet-file="+h.SubnetFile, "-peer-status=172.31.201.1:9285", c.subnet(h).Addr().Next().Next().String(), "10.42.1.2")
	var tr trace.Trace
	if err := json.Unmarshal(out, &tr); err != nil || code != traceBroken && code != traceUnknown || tr.Role != trace.Sender {
		c.t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	if took := time.Since(began); took > slow(10*time.Second) {
		c.t.Errorf("the trace took %v", took)
	}
}

// holdRepair ends the first host's daemon, so that nothing is repaired there. That of udp carries
// the packets, so it is only stopped while something is missing.
func (c *traceCluster) holdRepair() {
	c.t.Helper()
	if c.backend == "udp" {
		return
	}
	c.must(c.h.Flanneld().Kill(c.ctx))
	c.wholeEverywhere("without a daemon")
	if tr := c.trace(c.h, c.containers[0].Addr, c.containers[1].Addr, "-peer-status="+c.peer.Addr.String()+":9285"); whole(tr) != nil || !strings.Contains(traceText(tr), "its flanneld says") {
		c.t.Errorf("with -peer-status: %s", traceText(tr))
	}
}

// text replaces what stands for names and addresses.
func (c *traceCluster) text(s string) string {
	return strings.NewReplacer("DEVICE", c.device, "SUBNET", c.subnet(c.h).String(), "PEERIP", c.peer.Addr.String(), "PEER", c.subnet(c.peer).String()).Replace(s)
}

// lacks takes something, traces, and restores it.
func (c *traceCluster) lacks(m missing) {
	c.t.Helper()
	if c.backend == "udp" {
		c.must(c.h.Flanneld().Pause())
	}
	c.sh(c.h, c.text(m.take))
	named := c.remedyOf(m.name, broken(m.at, c.text(m.said)), func() error {
		tr, err := c.tryTrace(c.peer, c.containers[1].Addr, c.containers[0].Addr)
		if err == nil && tr.Verdict == trace.OK {
			err = fmt.Errorf("on the other host, it is ok:\n%s", traceText(tr))
		}
		return err
	})
	if c.sh(c.h, cmp.Or(c.text(m.remedy), named)); c.backend == "udp" {
		c.must(c.h.Flanneld().Signal(syscall.SIGCONT))
	}
	c.wholeEverywhere("again after " + m.name)
	c.sh(c.h, "iptables-nft -P FORWARD ACCEPT")
}

// remedyOf traces on the first host, with another check at the same time, and returns the remedy that
// it names as the sender and as the receiver.
func (c *traceCluster) remedyOf(what string, check func(trace.Trace) error, other func() error) string {
	c.t.Helper()
	var mu sync.Mutex
	var remedies []string
	err := together(other, c.each(c.h, func(tr trace.Trace) error {
		mu.Lock()
		defer mu.Unlock()
		remedies = append(remedies, tr.Remedy)
		return check(tr)
	}))
	if err != nil {
		c.t.Errorf("%s: %v", what, err)
	}
	if slices.Sort(remedies); len(slices.Compact(remedies)) != 1 {
		c.t.Fatalf("%s: remedies %q", what, remedies)
	}
	c.t.Logf("%s: %s", what, remedies[0])
	return remedies[0]
}

// lacksBridge takes docker0's address from the first host while its daemon runs, which does not
// repair it. The other host knows it from what that daemon says, soon after the kernel's event.
func (c *traceCluster) lacksBridge() {
	c.t.Helper()
	served := func(by string) func() error {
		return func() error {
			d, err := c.status(c.h.SubnetFile)
			if err == nil && (d.Bridge == nil || d.Bridge.Device != by) {
				err = fmt.Errorf("it says %+v", d.Bridge)
			}
			return err
		}
	}
	c.within(20*time.Second, "the daemon has read docker0", served("docker0"))
	c.sh(c.h, "ip addr flush dev docker0")
	c.within(5*time.Second, "the daemon misses docker0's address", served(""))
	said := c.text("its flanneld says: no interface of that host has an address of its subnet SUBNET, so it has no way to its containers")
	remedy := c.remedyOf("docker0's address", broken("bridge", c.text("no interface has an address of this host's subnet SUBNET")), c.each(c.peer, broken("peer", said)))
	c.sh(c.h, remedy)
	c.within(5*time.Second, "the daemon has read docker0 again", served("docker0"))
	c.wholeEverywhere("again with docker0's address")
}

// lacksLease deletes the lease of the first host: there it is its own, on the other one the peer's.
func (c *traceCluster) lacksLease() {
	c.t.Helper()
	if c.backend == "udp" {
		c.must(c.h.Flanneld().Pause())
	}
	key, lease := c.lease(c.h)
	c.must(c.keys.Delete(c.ctx, key))
	check := broken("lease", "this host's lease of "+c.subnet(c.h).String()+" is missing")
	if c.backend == "udp" { // as the sender, it is first of all the daemon that is missing
		lease, tunnel := check, broken("tunnel", "flanneld is stopped by a signal")
		check = func(tr trace.Trace) error {
			if tr.Role == trace.Sender {
				return tunnel(tr)
			}
			return lease(tr)
		}
	}
	other := broken("lease", "no host has a lease of a subnet with "+c.containers[0].Addr.String())
	if err := together(c.each(c.h, check), c.each(c.peer, other)); err != nil {
		c.t.Error(err)
	}
	if c.must(c.keys.Put(c.ctx, key, lease.Value, 0)); c.backend == "udp" {
		c.must(c.h.Flanneld().Signal(syscall.SIGCONT))
	}
	c.wholeEverywhere("again with its lease")
}

// lacksDevice deletes the first host's device. The other host sees it only by its silence; and by
// what its daemon says, if this runs and cannot restore it.
func (c *traceCluster) lacksDevice() {
	c.t.Helper()
	c.probedBy(c.peer) // again, since the lease is another one
	if c.backend == "udp" {
		c.must(c.h.Flanneld().Kill(c.ctx)) // the device ends with it
	} else {
		c.sh(c.h, "ip link del "+c.device)
	}
	silent := broken("peer", "it answered pings to "+c.subnet(c.h).Addr().String()+" through the overlay before, and now only at its public IP")
	if err := together(c.each(c.h, broken("device", "it does not exist")), c.each(c.peer, silent)); err != nil {
		c.t.Error(err)
	}
	if c.backend == "udp" {
		return
	}
	c.sh(c.h, "ip link add "+c.device+" type bridge")
	c.launch(c.h, "-status-listen=0.0.0.0:9285")
	c.within(20*time.Second, "what the daemon says of itself", func() error {
		d, err := c.status(c.h.SubnetFile)
		if err == nil && !slices.ContainsFunc(d.Conditions, func(c status.Condition) bool { return strings.HasPrefix(c.ID, "base/") }) {
			err = fmt.Errorf("it says %+v", d.Conditions)
		}
		return err
	})
	c.within(20*time.Second, "what the other daemon says", c.each(c.peer, broken("peer", "its flanneld says: failed to set up the overlay on this host")))
	c.sh(c.h, "ip link del "+c.device)
	c.wholeEverywhere("again with its device")
}
