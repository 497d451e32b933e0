package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"flanneld/pkg/backend"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/registry/etcd"
)

// TestConfigThatTakesWhatTheHostNeeds is refused at the start and while another is in force,
// which itself is not judged again.
func TestConfigThatTakesWhatTheHostNeeds(t *testing.T) {
	k, err := kernel.New()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	d := &daemon{kernel: k, log: slog.New(slog.DiscardHandler)}
	d.needs = newNeeds(etcd.Options{Endpoints: []string{"http://10.200.1.10:2379"}}, func() {})
	d.uplink.Store(&host.Uplink{Iface: "lo", Addr: netip.MustParseAddr("127.0.0.1")})
	config := func(backend, from, to string) []byte {
		return fmt.Appendf(nil, `{"Network":"10.0.0.0/8","SubnetMin":"%s","SubnetMax":"%s","Backend":{"Type":"%s"}}`, from, to, backend)
	}
	admits := func(raw []byte, refused bool) backend.Network {
		t.Helper()
		n, err := d.admit(raw)
		const reason = "network config: SubnetMin, SubnetMax: 10.200.0.0, 10.200.255.0: must be beside what the hosts need themselves: the route 10.200.0.0/16 takes 10.200.1.10, etcd endpoint http://10.200.1.10:2379"
		if refused != (err != nil) || refused && !strings.HasPrefix(err.Error(), reason) {
			t.Errorf("%s: %v, want refused: %v", raw, err, refused)
		}
		return n
	}
	inside, beside := config("udp", "10.200.0.0", "10.200.255.0"), config("udp", "10.42.0.0", "10.42.255.0")
	admits(inside, true)
	admits(config("vxlan", "10.200.0.0", "10.200.255.0"), false) // a route for each peer: leases are refused, one by one
	d.net = admits(beside, false)
	admits(inside, true)
	admits(beside, false)
	if d.net, err = backend.ParseNetwork(inside); err != nil {
		t.Fatal(err)
	}
	admits(inside, false)
}
