package subnet_test

import (
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

// avoiding is a fixture with four subnets, 10.42.0.0/24 to 10.42.3.0/24.
func (f *fixture) avoiding(prefixes ...string) {
	f.Pool = pool("10.42.0.0/16", 24, "10.42.0.0", "10.42.3.0")
	f.Avoid = func() ([]netip.Prefix, error) {
		var all []netip.Prefix
		for _, p := range prefixes {
			all = append(all, prefix(p))
		}
		return all, nil
	}
}

func TestNewSubnetIsInNobodysWay(t *testing.T) {
	for _, c := range []struct {
		name     string
		avoid    []string
		puts     map[string]string
		publicIP string
		previous string
		want     string
	}{
		{name: "a network that the host reaches", avoid: []string{"10.42.0.0/23", "10.42.2.0/24"}, want: "10.42.3.0/24"},
		{name: "part of a subnet", avoid: []string{"10.42.0.64/26", "10.42.1.0/30", "10.42.3.255/32"}, want: "10.42.2.0/24"},
		{name: "this host's public IP", avoid: []string{"10.42.0.0/23"}, publicIP: "10.42.2.9", want: "10.42.3.0/24"},
		{name: "a peer's public IP", avoid: []string{"10.42.0.0/23"}, puts: map[string]string{"10.43.9.0-24": value(netip.MustParseAddr("10.42.3.9"), 9)}, want: "10.42.2.0/24"},
		{name: "leases, too", avoid: []string{"10.42.0.0/23"}, puts: map[string]string{"10.42.2.0-24": value(them, 9)}, want: "10.42.3.0/24"},
		{name: "what covers the network leaves the choice", avoid: []string{"10.0.0.0/8", "10.42.0.0/16", "10.42.0.0/23", "10.42.3.0/24"}, want: "10.42.2.0/24"},
		// A host keeps an existing subnet, because its containers are there.
		{name: "the own lease", avoid: []string{"10.42.0.0/17"}, puts: map[string]string{"10.42.1.0-24": value(me, 5)}, want: "10.42.1.0/24"},
		{name: "the previous subnet", avoid: []string{"10.42.0.0/17"}, previous: "10.42.1.0/24", want: "10.42.1.0/24"},
		{name: "the previous subnet, taken", avoid: []string{"10.42.0.0/24", "10.42.2.0/24"}, previous: "10.42.1.0/24",
			puts: map[string]string{"10.42.1.0-24": value(them, 9)}, want: "10.42.3.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 8 { // without it, the random choice could pass
				in(t, func(f *fixture) {
					f.avoiding(c.avoid...)
					for k, v := range c.puts {
						f.reg.Put(k, v, ttl)
					}
					if c.publicIP != "" {
						f.PublicIP = netip.MustParseAddr(c.publicIP)
					}
					if c.previous != "" {
						f.Previous = prefix(c.previous)
					}
					if l := f.mustAcquire(); l.Subnets != ipv4(c.want) {
						t.Errorf("leased %s, want %s", l.Subnets, c.want)
					}
				})
			}
		})
	}
}

// If every free subnet overlaps something, that is logged, and the host waits.
func TestNoSubnetThatIsInNobodysWay(t *testing.T) {
	in(t, func(f *fixture) {
		f.avoiding("10.42.0.0/23", "10.42.2.7/32")
		f.reg.Put("10.42.3.0-24", value(them, 9), ttl)
		done := make(chan lease.Lease, 1)
		go func() { done <- f.mustAcquire() }()
		elapse(time.Minute)
		f.says("no subnet can be used: network 10.42.0.0/16 has 4 subnets of length 24 (10.42.0.0 to 10.42.3.0), 1 are leased, and each of the others "+
			"overlaps a network or an address that this host or a peer has, such as 10.42.0.0/23, 10.42.2.7/32", 1)
		f.reg.Remove("10.42.3.0-24")
		if l := <-done; l.Subnets != ipv4("10.42.3.0/24") {
			t.Errorf("leased %s", l.Subnets)
		}
	})
}

// A host that has lost its subnet applies the same rules to the next one.
func TestLaterSubnetIsInNobodysWay(t *testing.T) {
	for range 4 {
		in(t, func(f *fixture) {
			f.avoiding("10.42.1.0/24", "10.42.2.0/24")
			f.Previous = prefix("10.42.0.0/24")
			w := f.follow()
			w.take()
			w.reg.Remove("10.42.0.0-24")
			w.reg.Put("10.42.0.0-24", value(them, 70), ttl)
			elapse(5 * time.Second)
			if v := w.newest(); v.Own.Subnets != ipv4("10.42.3.0/24") {
				t.Errorf("view %+v\n%s", v, f.log)
			}
		})
	}
}

// A subnet that contains an address this host needs is not used, even if the host had it before or
// an operator reserved it.
func TestSubnetDoesNotCoverWhatTheHostNeeds(t *testing.T) {
	const line = "own subnet contains an address this host needs"
	for _, c := range []struct {
		name     string
		puts     map[string]string
		ttl      time.Duration // of these
		previous string
		want     string
		gone     string // that is released
		said     int
	}{
		{name: "nothing", want: "10.42.3.0/24"},
		{name: "its lease elsewhere", puts: map[string]string{"10.42.0.0-24": value(me, 5)}, ttl: ttl, want: "10.42.0.0/24"},
		{name: "its lease", puts: map[string]string{"10.42.1.0-24": value(me, 5)}, ttl: ttl, want: "10.42.3.0/24", gone: "10.42.1.0/24", said: 1},
		{name: "one of its leases", puts: map[string]string{"10.42.1.0-24": value(me, 5), "10.42.2.0-24": value(me, 5)}, ttl: ttl, want: "10.42.2.0/24", said: 1},
		{name: "a reservation for it", puts: map[string]string{"10.42.1.0-24": value(me, 5)}, want: "10.42.3.0/24", said: 1},
		{name: "the previous subnet", previous: "10.42.1.0/24", want: "10.42.3.0/24", said: 1},
		{name: "another host's lease", puts: map[string]string{"10.42.1.0-24": value(them, 9)}, ttl: ttl, want: "10.42.3.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				f.avoiding("10.42.0.0/24", "10.42.1.9/32", "10.42.2.0/24")
				f.Needed = func(s netip.Prefix) string {
					if s.Contains(netip.MustParseAddr("10.42.1.9")) {
						return "10.42.1.9 is etcd"
					}
					return ""
				}
				for k, v := range c.puts {
					f.reg.Put(k, v, c.ttl)
				}
				if c.previous != "" {
					f.Previous = prefix(c.previous)
				}
				if l := f.mustAcquire(); l.Subnets != ipv4(c.want) {
					t.Errorf("leased %s, want %s", l.Subnets, c.want)
				}
				f.says(line, c.said)
				if c.said > 0 {
					f.says("10.42.1.9 is etcd", 1)
				}
				for k := range c.puts {
					subnet, _ := lease.ParseKey(k)
					ev, err := f.reg.Get(t.Context(), subnet)
					if err != nil || (ev.Deleted || ev.Lease.Leaving) != (subnet.String() == c.gone) {
						t.Errorf("%s: %+v, %v", subnet, ev, err)
					}
				}
			})
		})
	}
}
