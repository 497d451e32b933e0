package plan

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
)

// TestDocumentIsAScript: its text has the commands in order, everything else is a comment, and a
// shell accepts it, whatever the objects are called.
func TestDocumentIsAScript(t *testing.T) {
	d := New()
	d.AddOps(slices.Values([]dataplane.Op{
		dataplane.KindLink.Put("flannel0", dataplane.Link{Kind: dataplane.KindTUN, MTU: 1472, Up: true, Local: netip.MustParseAddr("192.0.2.7"), Port: 8285}),
		dataplane.KindTunnel.Put(dataplane.TunnelKey{Link: "flannel0", Subnet: netip.MustParsePrefix("10.42.9.0/24")}, netip.MustParseAddrPort("192.0.2.9:8285")),
		dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.MustParsePrefix("10.42.9.0/24"), Link: "$(exit 1)"}, dataplane.Route{Via: netip.MustParseAddr("192.0.2.9"), Proto: 70}),
		dataplane.KindSysctl.Put("net/ipv6/conf/flannel.1/accept_ra", "0"),
	}))
	d.AddChanges([]firewall.Change{{Kind: "chain", Verb: "add", Object: "chain filter FLANNEL-FWD", Command: "iptables -w -t filter -N FLANNEL-FWD"}})
	d.Note("two\nlines; exit 1")
	d.Failed("packet filter rules", errors.New("a\nb"))
	d.Failed("nothing", nil)
	const want = `ip tuntap add flannel0 mode tun && ip link set flannel0 mtu 1472 up
# flanneld itself: replace tunnel entry 10.42.9.0/24 dev flannel0
ip route replace 10.42.9.0/24 via 192.0.2.9 dev '$(exit 1)' proto 70
sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
iptables -w -t filter -N FLANNEL-FWD
# note: two\nlines; exit 1
# unknown: packet filter rules: a; b
`
	if got := d.Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	script := "ip() { echo ip \"$@\" | wc -l; }; sysctl() { :; }; iptables() { :; }\nset -e\n" + d.Text()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "1\n1\n1" {
		t.Errorf("%v: %s", err, out)
	}
	b, err := json.Marshal(d)
	if err != nil || !strings.HasPrefix(string(b), `{"version":1,"operations":[{"kind":"link","verb":"replace","object":"link flannel0","command":"ip tuntap`) {
		t.Errorf("%v, %s", err, b)
	}
	if b, _ := json.Marshal(New()); string(b) != `{"version":1,"operations":[],"notes":[],"unknown":[]}` {
		t.Errorf("%s", b)
	}
}
