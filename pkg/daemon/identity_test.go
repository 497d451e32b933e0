package daemon

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnet"
)

// TestOlderLeaseWaitsForAnotherMAC is about when a host changes a MAC that a peer has,
// too: at once if the peer's lease is older, else when the peer has had its time; and not
// again and again.
func TestOlderLeaseWaitsForAnotherMAC(t *testing.T) {
	const created = 5
	older, newer := []uint64{3}, []uint64{7}
	for _, c := range []struct {
		name   string
		rivals func(after time.Duration) []uint64 // when their leases were created
		want   []time.Duration                    // when the MAC is changed
	}{
		{"nobody has it", func(time.Duration) []uint64 { return nil }, nil},
		{"an older lease", func(time.Duration) []uint64 { return older }, []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second}},
		{"a newer lease that changes", func(after time.Duration) []uint64 {
			if after < 5*time.Second {
				return newer
			}
			return nil
		}, nil},
		{"a newer lease that does not change", func(after time.Duration) []uint64 {
			if after < 31*time.Second {
				return newer
			}
			return nil
		}, []time.Duration{30 * time.Second}},
		{"one of each", func(after time.Duration) []uint64 {
			if after < time.Second {
				return slices.Concat(newer, older)
			}
			return newer
		}, []time.Duration{0, 30 * time.Second, 40 * time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, err := backend.ParseNetwork([]byte(`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`))
				if err != nil {
					t.Fatal(err)
				}
				here := netip.MustParseAddr("198.51.100.7")
				facts := host.Facts{Uplink: "eth0", MTU: 1500, Addr: here, PublicIP: here, MACs: map[string][6]byte{"flannel.1": {2, 0, 0, 0, 0, 7}}}
				d := &daemon{net: n, log: slog.New(slog.DiscardHandler)}
				d.facts.read = func() (host.Facts, error) { return facts, nil }
				d.loop = reconcile.New(reconcile.Config{Backend: n.Backend, Network: n.Network, Log: d.log})
				d.terms.news = make(chan subnet.Terms, 1)
				own := lease.Lease{Subnet: netip.MustParsePrefix("10.42.7.0/24"), Created: created}
				if own.Attrs, err = n.Attrs(facts, lease.Attrs{}, nil); err != nil {
					t.Fatal(err)
				}
				d.terms.now.Attrs = own.Attrs
				var changes []time.Duration
				for start := time.Now(); time.Since(start) < 45*time.Second; <-time.After(time.Second / 2) {
					d.view.Store(&lease.View{Own: own})
					var rivals []lease.Lease
					for _, at := range c.rivals(time.Since(start)) {
						rivals = append(rivals, lease.Lease{Subnet: netip.MustParsePrefix("10.42.9.0/24"), Attrs: own.Attrs, Created: at})
					}
					d.contest(rivals)
					select {
					case t := <-d.terms.news:
						changes = append(changes, time.Since(start))
						own.Attrs = t.Attrs // and the rivals follow
					default:
					}
				}
				if !slices.Equal(changes, c.want) {
					t.Errorf("the MAC was changed after %v, want %v", changes, c.want)
				}
			})
		})
	}
}
