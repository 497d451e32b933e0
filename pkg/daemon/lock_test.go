package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
)

func leaseOf(subnet, publicIP string) *lease.Lease {
	return &lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(publicIP)}}
}

// TestLockWithoutNFTables: a kernel that has none is said, with the command, and nothing waits for it.
func TestLockWithoutNFTables(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		t.Run(fmt.Sprintf("wanted=%t", wanted), func(t *testing.T) {
			var text bytes.Buffer
			log := slog.New(slog.NewTextHandler(&text, nil))
			l := &lock{
				wanted: wanted, network: netip.MustParsePrefix("10.42.0.0/16"),
				open:       func() (*nftables.Tables, error) { return nil, fmt.Errorf("kernel without nftables: %w", unix.EINVAL) },
				spec:       func() (firewall.Lock, bool) { return firewall.Lock{Local: netip.MustParseAddr("192.0.2.7")}, true },
				conditions: condition.NewList(log), log: log,
				views: make(chan lease.View, 1), asked: make(chan chan struct{}), soon: newAlarm(), ready: make(chan struct{}),
				peers: map[netip.Addr]int{},
			}
			l.follow(lease.View{Complete: true})
			ctx, cancel := context.WithCancel(t.Context())
			tried, ended := make(chan struct{}), make(chan struct{})
			go func() {
				l.run(ctx, func() { close(tried) })
				close(ended)
			}()
			<-tried
			if wanted {
				l.follow(lease.View{Peers: []*lease.Lease{leaseOf("10.42.9.0/24", "192.0.2.9")}, Complete: true})
				l.admit()
				cancel()
			} else {
				close(l.ready)
			}
			<-ended
			cancel()
			said := strings.Contains(text.String(), `level=WARN msg="the underlay lock cannot be kept`) && strings.Contains(text.String(), `command="modprobe nf_tables"`)
			if said != wanted || strings.Count(text.String(), "\n") > 1 {
				t.Errorf("the log says:\n%s", &text)
			}
		})
	}
}

// TestLockCountsAddresses: an address is let in for as long as any lease has it.
func TestLockCountsAddresses(t *testing.T) {
	l := &lock{peers: map[netip.Addr]int{}}
	a, b, a2 := leaseOf("10.42.1.0/24", "192.0.2.1"), leaseOf("10.42.2.0/24", "192.0.2.2"), leaseOf("10.42.3.0/24", "192.0.2.1")
	for i, step := range []struct {
		peers       []*lease.Lease
		add, remove string
	}{
		{[]*lease.Lease{a, b}, "[192.0.2.1 192.0.2.2]", "[]"},
		{[]*lease.Lease{a, b, a2}, "[]", "[]"},
		{[]*lease.Lease{b, a2}, "[]", "[]"},
		{[]*lease.Lease{b, leaseOf("10.42.3.0/24", "192.0.2.3")}, "[192.0.2.3]", "[192.0.2.1]"},
		{[]*lease.Lease{leaseOf("10.42.2.0/24", "192.0.2.3"), leaseOf("10.42.3.0/24", "192.0.2.2")}, "[]", "[]"},
		{nil, "[]", "[192.0.2.2 192.0.2.3]"},
	} {
		add, remove := l.take(lease.View{Peers: step.peers})
		slices.SortFunc(add, netip.Addr.Compare)
		slices.SortFunc(remove, netip.Addr.Compare)
		if fmt.Sprint(add) != step.add || fmt.Sprint(remove) != step.remove {
			t.Errorf("step %d: added %v, removed %v", i, add, remove)
		}
	}
	if len(l.peers) > 0 {
		t.Errorf("left: %v", l.peers)
	}
}
