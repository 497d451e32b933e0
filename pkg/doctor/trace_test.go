package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/trace"
)

// traced returns a collector that has read what does not depend on the kernel.
func traced(t *testing.T, f *facts, o TraceOptions) *collector {
	t.Helper()
	if !o.Src.IsValid() {
		o.Src, o.Dst = addr("10.42.7.2"), addr("10.42.9.2")
	}
	c := &collector{in: f.inputs(), TraceOptions: o}
	ctx := t.Context()
	c.f.Src.Addr, c.f.Dst.Addr = o.Src, o.Dst
	c.readDaemon(ctx)
	known, err := c.in.Overlay.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.setOverlay(known)
	c.readLeases(ctx)
	c.readPeer(ctx)
	delivery := trace.Is(host.Decision{Iface: "docker0"})
	if c.f.Src.Here {
		c.f.Src.Delivery = delivery
	}
	if c.f.Dst.Here {
		c.f.Dst.Delivery = delivery
	}
	return c
}

func TestLeasesOfATrace(t *testing.T) {
	bad := registry.InvalidEntry{Key: "10.42.9.0-24", Subnets: lease.SubnetsOf(prefix("10.42.9.0/24")), Err: errors.New("value is no JSON")}
	for _, x := range []struct {
		name   string
		change func(*facts)
		role   trace.Role
		check  func(f *trace.Facts) bool
	}{
		{"healthy", func(*facts) {}, trace.Sender, func(f *trace.Facts) bool {
			return f.Dst.Owner.Value.PublicIP == addr("192.0.2.9") && strings.HasSuffix(f.Dst.Owner.Value.Command, "get /coreos.com/network/subnets/10.42.9.0-24") &&
				f.Src.Owner.Value.PublicIP == addr("192.0.2.7") && f.Want.Is && len(f.Want.Value.Routes) == 2 && f.Device == "flannel.1" && f.Port == 8472 && f.Peer.Entry.Is && len(f.DeviceFaults.Value) == 0 && f.DeviceFaults.Is
		}},
		{"daemon down", func(f *facts) { f.status, f.daemons, f.answer = nil, nil, nobody }, trace.Sender, func(f *trace.Facts) bool {
			return f.Daemon.Down && f.Want.Is && f.Uplink == "eth0" && f.Addr == addr("192.0.2.7") && !f.Peer.Entry.Is
		}},
		{"daemon stopped", func(f *facts) { f.daemons[0].Stopped = true }, trace.Sender, func(f *trace.Facts) bool {
			return f.Daemon.Stopped && f.Daemon.PID == 7 && strings.HasSuffix(f.Daemon.Text, "stopped by a signal")
		}},
		{"no lease of the peer", func(f *facts) { f.v3().Leases = f.v3().Leases[:2] }, trace.Sender, func(f *trace.Facts) bool {
			return f.Dst.Owner.Is && !f.Dst.Owner.Value.Found && strings.Contains(f.Dst.Owner.Value.Command, "get --prefix /coreos.com/network/subnets/")
		}},
		{"damaged lease", func(f *facts) {
			f.v3().Leases, f.v3().Invalid = f.v3().Leases[:2], []registry.InvalidEntry{bad}
		}, trace.Sender, func(f *trace.Facts) bool { return f.Dst.Owner.Value.Damaged == bad.Err }},
		{"etcd away", func(f *facts) { f.unreachable(errors.New("refused")) }, trace.Sender, func(f *trace.Facts) bool {
			return f.Dst.Owner.Value.PublicIP == addr("192.0.2.9") && f.Dst.Owner.Value.Command == "flanneld status --all" && !f.Want.Is && f.Src.Owner.Value.Found
		}},
		{"etcd away and daemon down", func(f *facts) { f.unreachable(errors.New("refused")); f.status = nil }, trace.Sender, func(f *trace.Facts) bool {
			return !f.Dst.Owner.Is && !f.Src.Owner.Is && !f.Want.Is
		}},
		{"skipped, by the plan", func(f *facts) {
			f.status = nil
			f.v3().Leases[2].BackendData = f.v3().Leases[1].BackendData
		}, trace.Sender, func(f *trace.Facts) bool { return strings.Contains(f.Skipped, "VTEP MAC belongs to an older lease") }},
		{"another one is skipped", func(f *facts) { f.v3().Leases[1].BackendData = "{}" }, trace.Sender, func(f *trace.Facts) bool { return f.Skipped == "" }},
		{"skipped, by the daemon", func(f *facts) { f.status.Peers[1].State, f.status.Peers[1].Reason = "skipped", "of another time" }, trace.Sender, func(f *trace.Facts) bool {
			return f.Skipped == "of another time"
		}},
		{"other MAC than the lease has", func(f *facts) { f.v3().Leases[0].BackendData = `{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}` }, trace.Sender, func(f *trace.Facts) bool {
			return len(f.DeviceFaults.Value) == 1 && strings.Contains(f.DeviceFaults.Value[0], "peers send to 02:00:00:00:00:66")
		}},
		{"no device", func(f *facts) { clear(f.local.device.Links) }, trace.Sender, func(f *trace.Facts) bool { return fmt.Sprint(f.DeviceFaults.Value) == "[it does not exist]" }},
	} {
		f := healthy()
		x.change(f)
		c := traced(t, f, TraceOptions{})
		if c.f.Role() != x.role || !x.check(&c.f) {
			t.Errorf("%s: %+v", x.name, c.f)
		}
	}
}

// TestPacketsOfATrace: which packets are followed, and what the rules of a host do with them.
func TestPacketsOfATrace(t *testing.T) {
	for _, x := range []struct {
		name    string
		options TraceOptions
		change  func(*facts)
		want    string
	}{
		{"healthy", TraceOptions{}, func(*facts) {}, "out: new ICMP packets, new TCP packets, new UDP packets; in: reply ICMP packets, reply TCP packets, reply UDP packets; tunnel out: tunnel packets; tunnel in: tunnel packets"},
		{"receiver", TraceOptions{Src: addr("10.42.9.2"), Dst: addr("10.42.7.2"), Protocol: "tcp", Port: 80}, func(*facts) {}, "out: reply TCP packets from port 80; in: new TCP packets to port 80; tunnel out: tunnel packets; tunnel in: tunnel packets"},
		{"ports", TraceOptions{Port: 53}, func(*facts) {}, "out: new TCP packets to port 53, new UDP packets to port 53; in: reply TCP packets from port 53, reply UDP packets from port 53; tunnel out: tunnel packets; tunnel in: tunnel packets"},
		{"one port is dropped", TraceOptions{Port: 53}, func(f *facts) { f.local.filter("-A FORWARD -p udp -m udp --dport 53 -j DROP") },
			`out: new TCP packets to port 53, new UDP packets to port 53 DROPPED by rule "-A FORWARD -p udp -m udp --dport 53 -j DROP" in iptables-legacy table filter (iptables-legacy -t filter -S FORWARD; iptables-legacy -t filter -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -t filter -I FORWARD -d 10.42.0.0/16 -j ACCEPT); in: reply TCP packets from port 53, reply UDP packets from port 53; tunnel out: tunnel packets; tunnel in: tunnel packets`},
		{"the tunnel's port", TraceOptions{Protocol: "icmp"}, func(f *facts) { f.local.filter("-A INPUT -p udp -m udp --dport 8472 -s 192.0.2.9/32 -j DROP") },
			`out: new ICMP packets; in: reply ICMP packets; tunnel out: tunnel packets; tunnel in: tunnel packets DROPPED by rule "-A INPUT -p udp -m udp --dport 8472 -s 192.0.2.9/32 -j DROP" in iptables-legacy table filter (iptables-legacy -t filter -S INPUT; iptables-legacy -t filter -I INPUT -p udp --dport 8472 -j ACCEPT)`},
		{"that of another peer", TraceOptions{Protocol: "icmp"}, func(f *facts) { f.local.filter("-A INPUT -p udp -m udp --dport 8472 -s 192.0.2.8/32 -j DROP") },
			"out: new ICMP packets; in: reply ICMP packets; tunnel out: tunnel packets; tunnel in: tunnel packets"},
		{"masqueraded", TraceOptions{Protocol: "icmp"}, func(f *facts) {
			f.local.rules = strings.Replace(f.local.rules, "-A POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j RETURN\n", "", 1)
		}, `out: new ICMP packets TRANSLATED by rule "-A POSTROUTING -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully" in iptables-legacy table nat (iptables-legacy -t nat -S POSTROUTING; iptables-legacy -t nat -I POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT); in: reply ICMP packets; tunnel out: tunnel packets; tunnel in: tunnel packets`},
		{"unclear", TraceOptions{Protocol: "tcp"}, func(f *facts) { f.local.filter("-A FORWARD -m set --match-set bad src -j DROP") },
			`out: new TCP packets UNCLEAR by rule "-A FORWARD -m set --match-set bad src -j DROP" in iptables-legacy table filter (iptables-legacy -t filter -S FORWARD; ); in: reply TCP packets UNCLEAR by rule "-A FORWARD -m set --match-set bad src -j DROP" in iptables-legacy table filter (iptables-legacy -t filter -S FORWARD; ); tunnel out: tunnel packets; tunnel in: tunnel packets`},
	} {
		f := healthy()
		x.change(f)
		c := traced(t, f, x.options)
		packets := c.packets()
		legacy, err := c.in.Legacy.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := packets.follow(legacy.BaseChains()); err != nil {
			t.Fatal(err)
		}
		c.setRules(t.Context(), &packets, nil)
		var parts []string
		for _, r := range []struct {
			name  string
			rules trace.Known[[]trace.Filtered]
		}{{"out", c.f.OutRules}, {"in", c.f.InRules}, {"tunnel out", c.f.TunnelOut}, {"tunnel in", c.f.TunnelIn}} {
			var words []string
			for _, one := range r.rules.Value {
				word := one.What
				if one.Fate != trace.Passes {
					word += fmt.Sprintf(" %s by %s (%s; %s)", []string{"", "DROPPED", "UNCLEAR", "TRANSLATED"}[one.Fate], one.Rule, one.Command, one.Remedy)
				}
				words = append(words, word)
			}
			parts = append(parts, r.name+": "+strings.Join(words, ", "))
		}
		if got := strings.Join(parts, "; "); got != x.want {
			t.Errorf("%s:\n%s\nwant\n%s", x.name, got, x.want)
		}
	}
}
