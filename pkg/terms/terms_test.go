package terms

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/subnet"
)

func network(t *testing.T, raw string) backend.Network {
	t.Helper()
	n, err := backend.ParseNetwork([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const vxlan = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

func factsOf(addr string) host.Facts {
	a := netip.MustParseAddr(addr)
	return host.Facts{Uplink: "eth0", MTU: 1500, Addr: a, PublicIP: a, MACs: map[string][6]byte{"flannel.1": {2, 0, 0, 0, 0, 7}}}
}

// next returns the terms that have changed, if they have.
func next(k *Keeper) (t subnet.Terms, changed bool) {
	select {
	case t = <-k.Changes():
		return t, true
	default:
		return t, false
	}
}

// TestLeaseFollowsTheAddress of the uplink, once there is a lease, and keeps its MAC.
func TestLeaseFollowsTheAddress(t *testing.T) {
	n := network(t, vxlan)
	var lines bytes.Buffer
	k := keeper(n, slog.New(slog.NewTextHandler(&lines, nil)))
	defer k.Close()
	k.SetFacts(factsOf("198.51.100.7"), nil)
	if _, changed := next(k); changed {
		t.Error("terms before there is a lease")
	}
	k.SetOwn(lease.Lease{}) // there is none yet
	attrs, err := n.Attrs(factsOf("198.51.100.6"), lease.Attrs{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	own := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Attrs: attrs}
	k.SetOwn(own) // which was written when the address was another one
	for _, step := range []struct {
		facts string
		err   error
		want  string // the public IP that is published; empty: no other than before
	}{
		{"198.51.100.7", nil, "198.51.100.7"},
		{"198.51.100.7", nil, ""},
		{"198.51.100.8", errors.New("the uplink is away"), ""},
		{"198.51.100.8", nil, "198.51.100.8"},
		{"198.51.100.7", nil, "198.51.100.7"}, // before anybody has written the former
	} {
		k.SetFacts(factsOf(step.facts), step.err)
		got, changed := next(k)
		if changed != (step.want != "") || changed && got.Attrs.PublicIP.String() != step.want {
			t.Errorf("%s, %v: published %v, %t; want %q", step.facts, step.err, got.Attrs.PublicIP, changed, step.want)
		}
		if changed && got.Attrs.BackendData != attrs.BackendData {
			t.Errorf("%s: another MAC %s", step.facts, got.Attrs.BackendData)
		}
	}
	if lines.Len() > 0 {
		t.Errorf("said\n%s", &lines)
	}
}

// TestLatestTermsCount: a slow reader receives only the latest terms.
func TestLatestTermsCount(t *testing.T) {
	k := keeper(network(t, vxlan), slog.New(slog.DiscardHandler))
	defer k.Close()
	k.SetFacts(factsOf("198.51.100.7"), nil)
	k.SetOwn(lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7")}})
	later := network(t, `{"Network":"10.42.0.0/16","SubnetMax":"10.42.99.0","Backend":{"Type":"vxlan"}}`)
	if k.SetConfig(network(t, vxlan)) || !k.SetConfig(later) || k.SetConfig(later) {
		t.Error("changes of the config are not told apart")
	}
	k.SetFacts(factsOf("198.51.100.8"), nil)
	got, changed := next(k)
	if !changed || got.Pool != later.V4 || got.Attrs.PublicIP.String() != "198.51.100.8" {
		t.Errorf("terms %+v", got)
	}
	if _, again := next(k); again {
		t.Error("terms twice")
	}
}

// keeper returns a keeper that logs its conditions.
func keeper(n backend.Network, log *slog.Logger) *Keeper { return New(n, condition.NewList(log), log) }

// refusing is a backend that cannot publish anything any more.
type refusing struct{ backend.Backend }

func (refusing) Attrs(host.Facts, lease.Attrs, []lease.Lease) (lease.Attrs, error) {
	return lease.Attrs{}, errors.New("no room for it")
}

func TestLeaseThatCannotFollowIsSaidOnce(t *testing.T) {
	n := network(t, vxlan)
	n.Backend = refusing{n.Backend}
	var lines bytes.Buffer
	k := keeper(n, slog.New(slog.NewTextHandler(&lines, nil)))
	defer k.Close()
	k.SetOwn(lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7")}})
	for range 3 {
		k.SetFacts(factsOf("198.51.100.8"), nil)
	}
	const text = "cannot update lease to the uplink's new address"
	if _, changed := next(k); changed || strings.Count(lines.String(), text) != 1 {
		t.Errorf("changed %t, said\n%s", changed, &lines)
	}
	k.SetFacts(factsOf("198.51.100.7"), nil) // it is back
	if strings.Count(lines.String(), "no longer: "+text) != 1 {
		t.Errorf("said\n%s", &lines)
	}
}

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
		for _, known := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := keeper(network(t, vxlan), slog.New(slog.DiscardHandler))
					defer k.Close()
					facts := factsOf("198.51.100.7")
					own := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Created: created}
					var err error
					if own.Attrs, err = k.backend.Attrs(facts, lease.Attrs{}, nil); err != nil {
						t.Fatal(err)
					}
					if known {
						k.SetFacts(facts, nil)
					}
					var changes []time.Duration
					var last []uint64
					for start := time.Now(); time.Since(start) < 45*time.Second; <-time.After(time.Second / 2) {
						synctest.Wait() // for the keeper's own timer
						if terms, changed := next(k); changed {
							changes = append(changes, time.Since(start))
							own.Attrs = terms.Attrs // and the rivals follow
							last = nil
						}
						k.SetOwn(own)
						now := c.rivals(time.Since(start))
						if slices.Equal(now, last) {
							continue // the loop makes no pass where nothing happens
						}
						last = now
						var rivals []lease.Lease
						for _, at := range now {
							rivals = append(rivals, lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.9.0/24")), Attrs: own.Attrs, Created: at})
						}
						k.SetRivals(rivals)
						if terms, changed := next(k); changed {
							changes = append(changes, time.Since(start))
							own.Attrs = terms.Attrs
							last = nil
						}
					}
					want := c.want
					if !known {
						want = nil
					}
					if !slices.Equal(changes, want) {
						t.Errorf("the MAC was changed after %v, want %v", changes, want)
					}
				})
			})
		}
	}
}
