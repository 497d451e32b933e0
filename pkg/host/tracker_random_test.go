package host

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTrackerAfterAnything: after any sequence of changes, once the host is in its initial state
// again, the initial uplink is chosen, usable and stable.
func TestTrackerAfterAnything(t *testing.T) {
	addrs := map[string][]string{
		"eth0": {"10.99.0.2/16", "10.99.0.7/16", "169.254.3.3/16", "10.99.0.9/32"},
		"mgmt": {"192.168.77.2/24", "192.168.77.3/24"},
	}
	gateways := map[string]string{"eth0": viaLAN, "mgmt": "192.168.77.1"}
	seeds := uint64(1000)
	if testing.Short() { // on an emulated processor
		seeds = 150
	}
	pauses := []time.Duration{0, 50 * time.Millisecond, time.Second, 4 * time.Second, 20 * time.Second}
	for _, c := range []struct {
		name string
		host string
		sel  Selectors
	}{
		{"one NIC", oneNIC, Selectors{}},
		{"two NICs", twoNICs, Selectors{}},
		{"named", twoNICs, Selectors{Ifaces: []string{"eth0"}}},
	} {
		for seed := range seeds {
			random := rand.New(rand.NewPCG(seed, 1))
			m, now := newMachine(c.host), time.Unix(1000, 0)
			initial := slices.Clone(m.Routes)
			tracker := Tracker{Selectors: c.sel, Reach: func(netip.Addr) (string, netip.Addr, error) { return "", netip.Addr{}, errors.New("no route") }}
			choice := tracker.Update(m.Inventory, nil, now)
			first := choice.Uplink
			var done []string
			do := func(change string) {
				m.do(change)
				choice = tracker.Update(m.Inventory, nil, now)
				done = append(done, fmt.Sprintf("%v %s: %s %s", now.Sub(time.Unix(1000, 0)), change, choice.Uplink.Iface, choice.Uplink.Addr))
			}
			pause := func(d time.Duration) {
				for end := now.Add(d); now.Before(end); {
					step := end.Sub(now)
					if choice.RetryAfter > 0 {
						step = min(step, choice.RetryAfter)
					}
					now = now.Add(step)
					choice = tracker.Update(m.Inventory, nil, now)
				}
			}
			nics := []string{"eth0", "mgmt"}[:len(m.Ifaces)]
			for range 2 + random.IntN(12) {
				nic := nics[random.IntN(len(nics))]
				addr := nic + " " + addrs[nic][random.IntN(len(addrs[nic]))]
				there, routed := m.at(nic).Name != "", m.routed(nic)
				switch what := random.IntN(6); {
				case !there:
					do("new " + nic)
				case what == 0:
					do("del " + nic)
				case what == 1:
					do(map[bool]string{true: "down ", false: "up "}[m.at(nic).Up] + nic)
				case what == 2 && m.at(nic).Up:
					do(map[bool]string{true: "carrier- ", false: "carrier+ "}[m.at(nic).Running] + nic)
				case what == 3 && routed:
					do("route- " + nic)
				case what == 3 && m.at(nic).Up && len(m.at(nic).Addrs) > 0:
					do(fmt.Sprintf("route+ %s %s %d", nic, gateways[nic], 100*random.IntN(8)))
				case what > 3:
					do(map[bool]string{true: "addr- ", false: "addr+ "}[m.at(nic).has(netip.MustParsePrefix(strings.Fields(addr)[1]).Addr())] + addr)
				}
				pause(pauses[random.IntN(len(pauses))])
			}
			for n, nic := range nics {
				if m.at(nic).Name == "" {
					do("new " + nic)
				}
				do("up " + nic)
				for _, addr := range addrs[nic][1:] {
					do("addr- " + nic + " " + addr)
				}
				do("addr- " + nic + " " + addrs[nic][0])
				do("addr+ " + nic + " " + addrs[nic][0])
				do("route- " + nic)
				do(fmt.Sprintf("route+ %s %s %d", nic, gateways[nic], initial[n].Metric))
			}
			pause(20 * time.Second)
			if !choice.Uplink.same(first) || choice.Err != nil || choice.RetryAfter != 0 {
				t.Fatalf("%s, seed %d: the uplink was %v, is %+v after\n%s", c.name, seed, first, choice, strings.Join(done, "\n"))
			}
		}
	}
}

func (m *machine) routed(iface string) bool {
	return slices.ContainsFunc(m.Routes, func(r Route) bool { return r.Iface == iface })
}
