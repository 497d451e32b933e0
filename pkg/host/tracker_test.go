package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is a host whose interfaces behave like real ones: a link that goes down loses its routes,
// and so does one that loses its last address.
type machine struct {
	Inventory
	indexes int
}

const (
	ours   = "10.99.0.2/16"
	viaLAN = "10.99.0.1"
)

// A host on a LAN, one that also has a management network with a less preferred default route, and
// one with two equal default routes.
const (
	mgmt    = "new mgmt, addr+ mgmt 192.168.77.2/24, route+ mgmt 192.168.77.1 600"
	oneNIC  = "new eth0, addr+ eth0 " + ours + ", route+ eth0 " + viaLAN + " 0"
	twoNICs = oneNIC + ", " + mgmt
	twins   = oneNIC + ", new mgmt, addr+ mgmt 192.168.77.2/24, route+ mgmt 192.168.77.1 0"
)

// newMachine returns a host after changes.
func newMachine(changes string) *machine {
	m := &machine{}
	m.do(changes)
	return m
}

func (m *machine) at(name string) *Iface {
	at := slices.IndexFunc(m.Ifaces, func(i Iface) bool { return i.Name == name })
	if at < 0 {
		return &Iface{}
	}
	return &m.Ifaces[at]
}

func (m *machine) unroute(iface string) {
	m.Routes = slices.DeleteFunc(m.Routes, func(r Route) bool { return r.Iface == iface })
}

// do applies changes of the form "verb iface argument...", separated by commas.
func (m *machine) do(changes string) {
	for change := range strings.SplitSeq(changes, ", ") {
		f := strings.Fields(change)
		i := m.at(f[1])
		switch f[0] {
		case "new":
			m.indexes++
			m.Ifaces = append(m.Ifaces, Iface{Name: f[1], Index: m.indexes, MTU: 1500, Up: true, Running: true})
		case "del":
			m.unroute(f[1])
			m.Ifaces = slices.DeleteFunc(m.Ifaces, func(i Iface) bool { return i.Name == f[1] })
		case "rename":
			m.unroute(f[1])
			i.Name = f[2]
		case "down":
			m.unroute(f[1])
			i.Up, i.Running = false, false
		case "up":
			i.Up, i.Running = true, true
		case "carrier-", "carrier+":
			i.Running = f[0] == "carrier+"
		case "addr-":
			i.Addrs = slices.DeleteFunc(i.Addrs, func(a Addr) bool { return a.Prefix.String() == f[2] })
			if len(i.Addrs) == 0 {
				m.unroute(f[1])
			}
		case "addr+":
			i.Addrs = append(i.Addrs, addr(f[2]))
		case "route-":
			m.unroute(f[1])
		case "route+":
			var metric uint32
			fmt.Sscan(f[3], &metric)
			m.Routes = append(m.Routes, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: f[1], Gateway: netip.MustParseAddr(f[2]), Metric: metric})
		default:
			panic("unknown change " + change)
		}
	}
}

// follow runs a script such as "1s change, change; 2.5s change" for a minute. The tracker is
// updated after each change and when it requests that. It returns the choices after the start, and
// why the uplink is unusable at the end.
func follow(m *machine, sel Selectors, script string) (string, error) {
	begun := time.Unix(1000, 0)
	tracker := Tracker{Selectors: sel, Reach: func(netip.Addr) (string, netip.Addr, error) { return "", netip.Addr{}, errors.New("no route") }}
	choice := tracker.Update(m.Inventory, nil, begun)
	var chosen []string
	ask := func(at time.Duration) {
		before := choice.Uplink
		if choice = tracker.Update(m.Inventory, nil, begun.Add(at)); !choice.Uplink.same(before) {
			chosen = append(chosen, fmt.Sprintf("%v %s %s", at, choice.Uplink.Iface, choice.Uplink.Addr))
		}
		if choice.RetryAfter > 0 {
			choice.RetryAfter += at
		}
	}
	for step := range strings.SplitSeq(script+"; 1m new other", "; ") {
		when, changes, _ := strings.Cut(step, " ")
		at, err := time.ParseDuration(when)
		if err != nil {
			panic(err)
		}
		for choice.RetryAfter > 0 && choice.RetryAfter < at {
			ask(choice.RetryAfter)
		}
		for change := range strings.SplitSeq(changes, ", ") { // each one is a separate event
			m.do(change)
			ask(at)
		}
	}
	return strings.Join(chosen, "; "), choice.Err
}

// TestTracker covers how an uplink goes away and returns.
func TestTracker(t *testing.T) {
	eth0 := Selectors{Ifaces: []string{"eth0"}}
	either := Selectors{Ifaces: []string{"eth0", "mgmt"}}
	expr := Selectors{Regexes: []string{`^10\.`}}
	for _, c := range []struct {
		name   string
		host   string
		sel    Selectors
		script string
		want   string // the choices and their times
		fails  string // why it is unusable at the end; empty if it is usable
	}{
		{"nothing happens", twoNICs, Selectors{}, "1s new veth1", "", ""},
		{"link down and up in 0.1 s", twoNICs, Selectors{}, "1s down eth0; 1.1s up eth0, route+ eth0 10.99.0.1 0", "", ""},
		{"its route comes 2 s later", twoNICs, Selectors{}, "1s down eth0; 1.1s up eth0; 3.1s route+ eth0 10.99.0.1 0", "", ""},
		{"its route does not come", twoNICs, Selectors{}, "1s down eth0; 1.1s up eth0", "4s mgmt 192.168.77.2", ""},
		{"its route comes late", twoNICs, Selectors{}, "1s down eth0; 1.1s up eth0; 9s route+ eth0 10.99.0.1 0", "4s mgmt 192.168.77.2; 12s eth0 10.99.0.2", ""},
		{"flaps again and again", twoNICs, Selectors{}, "1s down eth0; 3.5s up eth0, route+ eth0 10.99.0.1 0; 4s down eth0; 6.5s up eth0, route+ eth0 10.99.0.1 0", "", ""},
		{"back, but never whole for long", twoNICs, Selectors{}, "1s down eth0; 5s up eth0, route+ eth0 10.99.0.1 0; 7s down eth0; 8s up eth0, route+ eth0 10.99.0.1 0; 10s down eth0", "4s mgmt 192.168.77.2", ""},
		{"no carrier for 2 s", twoNICs, Selectors{}, "1s carrier- eth0; 3s carrier+ eth0", "", ""},
		{"no carrier for 10 s", twoNICs, Selectors{}, "1s carrier- eth0; 11s carrier+ eth0", "4s mgmt 192.168.77.2; 14s eth0 10.99.0.2", ""},
		{"no carrier, and no other", oneNIC, Selectors{}, "1s carrier- eth0", "", ""},
		{"no carrier anywhere", twoNICs, Selectors{}, "1s carrier- eth0, carrier- mgmt", "", ""},
		{"another one long after it went", oneNIC, Selectors{}, "1s down eth0; 20s new mgmt, addr+ mgmt 192.168.77.2/24, route+ mgmt 192.168.77.1 600", "20s mgmt 192.168.77.2", ""},
		{"a better one comes", mgmt, Selectors{}, "1s new eth0; 2s addr+ eth0 10.99.0.2/16; 3s route+ eth0 10.99.0.1 0", "6s eth0 10.99.0.2", ""},
		{"as good as another: link down and up", twins, Selectors{}, "1s down eth0; 1.1s up eth0, route+ eth0 10.99.0.1 0", "", ""},
		{"as good as another: route away for 2 s", twins, Selectors{}, "1s route- eth0; 3s route+ eth0 10.99.0.1 0", "", ""},
		{"as good as another: away for 10 s", twins, Selectors{}, "1s down eth0; 11s up eth0, route+ eth0 10.99.0.1 0", "4s mgmt 192.168.77.2; 14s eth0 10.99.0.2", ""},
		{"as good as another: route away for 10 s", twins, Selectors{}, "1s route- eth0; 11s route+ eth0 10.99.0.1 0", "4s mgmt 192.168.77.2; 14s eth0 10.99.0.2", ""},
		{"another one as good comes", oneNIC, Selectors{}, "1s new mgmt, addr+ mgmt 192.168.77.2/24, route+ mgmt 192.168.77.1 0", "", ""},
		{"a better one comes, then as good a one", twoNICs, Selectors{}, "1s new eth1, addr+ eth1 10.98.0.2/16; 2s route- eth0, route+ eth1 10.98.0.1 0, route+ eth0 10.99.0.1 5; 20s route- eth0, route+ eth0 10.99.0.1 0", "5s eth1 10.98.0.2", ""},
		{"a worse one comes", oneNIC, Selectors{}, "1s " + mgmt, "", ""},
		{"the other one goes", twoNICs, Selectors{}, "1s del mgmt", "", ""},
		{"metrics change places", twoNICs, Selectors{}, "1s route- eth0, route+ eth0 10.99.0.1 700", "4s mgmt 192.168.77.2", ""},

		{"address away for 2 s", twoNICs, Selectors{}, "1s addr- eth0 10.99.0.2/16; 3s addr+ eth0 10.99.0.2/16, route+ eth0 10.99.0.1 0", "", ""},
		{"address away for 10 s", twoNICs, Selectors{}, "1s addr- eth0 10.99.0.2/16; 11s addr+ eth0 10.99.0.2/16, route+ eth0 10.99.0.1 0", "4s mgmt 192.168.77.2; 14s eth0 10.99.0.2", ""},
		{"address away for ever, and no other", oneNIC, Selectors{}, "1s addr- eth0 10.99.0.2/16", "", "interface eth0 has no usable IPv4 address"},
		{"new address", twoNICs, Selectors{}, "1s addr- eth0 10.99.0.2/16, addr+ eth0 10.99.0.7/16, route+ eth0 10.99.0.1 0", "1s eth0 10.99.0.7", ""},
		{"new address, 1 s later", twoNICs, Selectors{}, "1s addr- eth0 10.99.0.2/16; 2s addr+ eth0 10.99.0.7/16, route+ eth0 10.99.0.1 0", "2s eth0 10.99.0.7", ""},
		{"new address before the old one goes", oneNIC, Selectors{}, "1s addr+ eth0 10.99.0.7/16; 2s addr- eth0 10.99.0.2/16", "2s eth0 10.99.0.7", ""},
		{"new address, no default route any more", oneNIC, Selectors{}, "1s addr- eth0 10.99.0.2/16; 1.5s addr+ eth0 10.99.0.7/16", "1.5s eth0 10.99.0.7", ""},
		{"a link-local address for want of another", oneNIC, Selectors{}, "1s addr- eth0 10.99.0.2/16, addr+ eth0 169.254.7.7/16; 20s addr- eth0 169.254.7.7/16, addr+ eth0 10.99.0.2/16, route+ eth0 10.99.0.1 0", "", ""},
		{"address away for 2 s, a floating one stays", oneNIC, Selectors{}, "1s addr+ eth0 10.99.9.9/32; 20s addr- eth0 10.99.0.2/16; 22s addr+ eth0 10.99.0.2/16", "", ""},
		{"a floating address comes", oneNIC, Selectors{}, "1s addr+ eth0 10.99.9.9/32", "", ""},

		{"device made anew", oneNIC, Selectors{}, "1s del eth0; 2s new eth0, addr+ eth0 10.99.0.2/16, route+ eth0 10.99.0.1 0", "", ""},
		{"device made anew with another address", twoNICs, Selectors{}, "1s del eth0; 2s new eth0, addr+ eth0 10.99.0.7/16, route+ eth0 10.99.0.1 0", "2s eth0 10.99.0.7", ""},
		{"device made anew, late", twoNICs, Selectors{}, "1s del eth0; 9s new eth0, addr+ eth0 10.99.0.2/16, route+ eth0 10.99.0.1 0", "4s mgmt 192.168.77.2; 12s eth0 10.99.0.2", ""},
		{"device renamed", oneNIC, Selectors{}, "1s down eth0, rename eth0 eth7, up eth7; 1.5s route+ eth7 10.99.0.1 0", "1s eth7 10.99.0.2", ""},
		{"device renamed with another address", twoNICs, Selectors{}, "1s down eth0, rename eth0 eth7, addr- eth7 10.99.0.2/16, addr+ eth7 10.99.0.7/16, up eth7, route+ eth7 10.99.0.1 0", "1s eth7 10.99.0.7", ""},
		{"another device with another address", oneNIC, Selectors{}, "1s del eth0, new eth7, addr+ eth7 10.99.0.7/16, route+ eth7 10.99.0.1 0", "4s eth7 10.99.0.7", ""},
		{"its address moves to a bridge", twoNICs, Selectors{}, "1s new br0, addr- eth0 10.99.0.2/16; 1.5s addr+ br0 10.99.0.2/16, route+ br0 10.99.0.1 0", "1.5s br0 10.99.0.2", ""},

		{"named: link down and up", twoNICs, eth0, "1s down eth0; 9s up eth0", "", ""},
		{"named: gone", twoNICs, eth0, "1s del eth0", "", "no interface fits: iface eth0: there is no such interface; there are mgmt, other"},
		{"named: down for ever", twoNICs, eth0, "1s down eth0", "", "interface eth0 is down"},
		{"named: new address", twoNICs, eth0, "1s addr- eth0 10.99.0.2/16, addr+ eth0 10.99.0.7/16", "1s eth0 10.99.0.7", ""},
		{"two named: no carrier", twoNICs, either, "1s carrier- eth0; 9s carrier+ eth0", "4s mgmt 192.168.77.2; 12s eth0 10.99.0.2", ""},
		{"two named: away for 2 s", twoNICs, either, "1s del eth0; 3s new eth0, addr+ eth0 10.99.0.2/16", "", ""},
		{"expression: another one matches", twoNICs, expr, "1s new net1, addr+ net1 10.5.0.1/16; 2s addr- eth0 10.99.0.2/16; 4s addr+ eth0 10.99.0.2/16", "", ""},
		{"expression: another one matches, device made anew", oneNIC, expr, "1s new net1, addr+ net1 10.5.0.1/16; 2s del eth0; 4s new eth0, addr+ eth0 10.99.0.2/16", "", ""},
		{"expression: another one matches, 10 s", twoNICs, expr, "1s new net1, addr+ net1 10.5.0.1/16; 2s addr- eth0 10.99.0.2/16; 12s addr+ eth0 10.99.0.2/16", "5s net1 10.5.0.1; 15s eth0 10.99.0.2", ""},
		{"expression: the overlay's devices match", twoNICs, expr, "1s new flannel.1, addr+ flannel.1 10.42.7.0/32; 2s addr- eth0 10.99.0.2/16", "", "no address or name matches"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := follow(newMachine(c.host), c.sel, c.script)
			if got != c.want {
				t.Errorf("chosen: %q, want %q", got, c.want)
			}
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("at the end: %v, want %q", err, c.fails)
			}
		})
	}
}

// TestTrackerInAnyOrder: link, carrier, address and route are lost and return in each order. For
// less than 3 s the uplink is kept. Otherwise another one is chosen, and later the first again.
func TestTrackerInAnyOrder(t *testing.T) {
	ways := []struct{ goes, comes string }{
		{"carrier- eth0", "carrier+ eth0"}, {"down eth0", "up eth0"}, {"addr- eth0 " + ours, "addr+ eth0 " + ours}, {"route- eth0", ""},
	}
	orders := permutations([]int{0, 1, 2, 3})
	for _, host := range []string{oneNIC, twoNICs} {
		for _, away := range []time.Duration{100 * time.Millisecond, 2900 * time.Millisecond, 5 * time.Second} {
			for _, going := range orders {
				for _, coming := range orders {
					var out, in []string
					for n := range ways {
						out = append(out, ways[going[n]].goes)
						if c := ways[coming[n]].comes; c != "" {
							in = append(in, c)
						}
					}
					in = append(in, "route+ eth0 "+viaLAN+" 0") // it requires the others
					m := newMachine(host)
					want := ""
					if len(m.Ifaces) > 1 && away > 3*time.Second {
						want = "4s mgmt 192.168.77.2; 9s eth0 10.99.0.2"
					}
					script := fmt.Sprintf("1s %s; %v %s", strings.Join(out, ", "), time.Second+away, strings.Join(in, ", "))
					if got, err := follow(m, Selectors{}, script); got != want || err != nil {
						t.Fatalf("%s\nchosen: %q, %v; want %q", script, got, err, want)
					}
				}
			}
		}
	}
}

func permutations(of []int) (all [][]int) {
	if len(of) == 0 {
		return [][]int{nil}
	}
	for i := range of {
		for _, rest := range permutations(slices.Concat(of[:i], of[i+1:])) {
			all = append(all, append(rest, of[i]))
		}
	}
	return all
}
