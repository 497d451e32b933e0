package configdiff

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/golden"
	"flanneld/pkg/lease"
)

// host returns the lease of a host that expires, or its reservation.
func host(subnet, ip string, reserved bool) lease.Lease {
	l := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix(subnet)), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip)}}
	if !reserved {
		l.Expires = time.Unix(1, 0)
	}
	return l
}

const stored = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

// TestReports: what is shown for changes of a network with four hosts, of which one has a
// reservation and one is leaving.
func TestReports(t *testing.T) {
	hosts := []lease.Lease{
		host("10.42.7.0/24", "192.0.2.7", false), host("10.42.9.0/24", "192.0.2.9", false),
		host("10.42.200.0/24", "192.0.2.200", true), host("10.42.250.0/24", "192.0.2.250", false),
	}
	hosts[3].Leaving = true
	many := []lease.Lease{}
	for i := range 20 {
		many = append(many, host(fmt.Sprintf("10.42.%d.0/24", i+1), fmt.Sprintf("192.0.2.%d", i+1), false))
	}
	var all strings.Builder
	for _, c := range []struct {
		name   string
		leases []lease.Lease
		before string // "-": none
		after  string
	}{
		{"the first config", nil, "-", stored},
		{"the same in another form", hosts, stored, "{\n\t\"Network\": \"10.42.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}\n"},
		{"the same with defaults", hosts, stored, `{"Network":"10.42.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}`},
		{"settings that are applied", hosts, stored, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.5.0","SubnetLeaseTTL":3600,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}`},
		{"leases outside", hosts, stored, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.8.0","SubnetMax":"10.42.99.0","Backend":{"Type":"vxlan"}}`},
		{"another network", hosts, stored, `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`},
		{"other lengths for many hosts", many, stored, `{"Network":"10.42.0.0/20","SubnetLen":22,"Backend":{"Type":"vxlan"}}`},
		{"another backend", hosts, stored, `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`},
		{"other options of the backend", hosts, stored, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`},
		{"udp over the hosts' own addresses", []lease.Lease{host("10.42.7.0/24", "10.42.1.7", false)}, stored, `{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`},
		{"udp beside them", []lease.Lease{host("10.42.7.0/24", "10.42.1.7", false)}, stored, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.4.0","Backend":{"Type":"udp"}}`},
		{"unknown keys", hosts, stored, `{"Network":"10.42.0.0/16","SubnetLenght":24,"Backend":{"Type":"vxlan","Vnis":1}}`},
		{"invalid", hosts, stored, `{"Network":"10.42.0.0/16","SubnetLen":99,"SubnetLeaseTTL":1,"EnableIPv6":true,"Backend":{"Type":"vxlan","VNI":-1,"Port":99999,"GBP":"x"}}`},
		{"two invalid bounds", hosts, stored, `{"Network":"10.42.0.0/16","SubnetMin":"10.41.0.0","SubnetMax":"10.43.0.0"}`},
		{"repeated keys", hosts, stored, `{"Network":"10.42.0.0/16","network":"10.42.0.0/16","Backend":{"Type":"udp","type":"vxlan","VNI":1,"VNI":1}}`},
		{"no JSON", hosts, stored, `Network: 10.42.0.0/16`},
		{"nothing", hosts, stored, ``},
		{"an unknown type", hosts, stored, `{"Network":"10.42.0.0/29","Backend":{"Type":"pigeon"}}`},
		{"a comma too many", hosts, stored, "{\n\t\"Network\": \"10.42.0.0/16\",\n}"},
		{"instead of one that the original cannot read", hosts, "\ufeff" + stored, stored},
		{"instead of an invalid one", hosts, "nonsense\nof two lines", stored},
	} {
		in := Input{After: []byte(c.after), Leases: c.leases, Needed: map[string]bool{"10.42.2.9": true, "etcd.example": true}}
		if c.before != "-" {
			in.Before = []byte(c.before)
		}
		r := Compare(in)
		fmt.Fprintf(&all, "# %s\n", c.name)
		for _, l := range r.Diff {
			fmt.Fprintf(&all, "%c %s\n", l.Op, l.Text)
		}
		for _, err := range r.Problems {
			fmt.Fprintf(&all, "invalid: %v\n", err)
		}
		for _, text := range r.Warnings {
			fmt.Fprintf(&all, "warning: %s\n", text)
		}
		for _, e := range r.Effects {
			fmt.Fprintf(&all, "%s: %s\n", map[bool]string{true: "dangerous", false: "note"}[e.Dangerous], e.Text)
		}
		all.WriteString("\n")
	}
	golden.Equal(t, "testdata/reports.txt", all.String())
}

// TestDeepConfigIsShort: what is shown of a config is about as long as the config.
func TestDeepConfigIsShort(t *testing.T) {
	deep := []byte(`{"Network":"10.42.0.0/16","x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}")
	for _, in := range []Input{{Before: deep, After: []byte(stored)}, {Before: []byte(stored), After: deep}} {
		shown := 0
		for _, l := range Compare(in).Diff {
			shown += len(l.Text)
		}
		if most := len(in.Before) + len(in.After); shown > 2*most {
			t.Errorf("%d bytes are shown of %d", shown, most)
		}
	}
}

// TestDiffIsApplied: the lines that are kept and removed are the old text, those that are kept and
// added the new one, and there are no lines if both are equal.
func TestDiffIsApplied(t *testing.T) {
	long := strings.Repeat("x\n", 3000)
	for _, c := range [][2]string{
		{"", ""}, {"", "a"}, {"a", ""}, {"a\nb\nc", "a\nc"}, {"a\nb\nc\nd", "b\nd\ne"}, {"a\na\na", "a\na"}, {"[1,2]", "[1,3,2]"},
		{long + "y", "z\n" + long}, {"y\n" + long + "y", "z\n" + strings.Repeat("w\n", 3000) + "z"},
	} {
		var was, is []string
		all := diff([]byte(c[0]), []byte(c[1]))
		for _, l := range all {
			if l.Op != Add {
				was = append(was, l.Text)
			}
			if l.Op != Remove {
				is = append(is, l.Text)
			}
		}
		same := strings.Join(lines([]byte(c[0])), "\n") == strings.Join(lines([]byte(c[1])), "\n")
		if same != (len(all) == 0) {
			t.Errorf("%.20q and %.20q: %d lines", c[0], c[1], len(all))
		}
		if !same && (strings.Join(was, "\n") != strings.Join(lines([]byte(c[0])), "\n") || strings.Join(is, "\n") != strings.Join(lines([]byte(c[1])), "\n")) {
			t.Errorf("%.20q and %.20q: %q and %q", c[0], c[1], was, is)
		}
	}
}

// FuzzCompare: any two texts are compared without a panic, and a valid config has no problems.
func FuzzCompare(f *testing.F) {
	f.Add([]byte(stored), []byte(`{"Network":"10.42.0.0/28","Backend":{"Type":"udp"}}`))
	f.Add([]byte("x"), []byte(`{"Backend":{"Backend":{}}}`))
	f.Fuzz(func(_ *testing.T, before, after []byte) {
		Compare(Input{Before: before, After: after, Leases: []lease.Lease{host("10.42.7.0/24", "10.42.7.1", false)}})
	})
}
