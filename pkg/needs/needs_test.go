package needs

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/registry/etcd"
)

func (n *Etcd) addrs() []string {
	var all []string
	for _, w := range n.Needs() {
		all = append(all, w.Addr.String()+" "+w.What)
	}
	return all
}

// TestNeedsOfEndpoints: addresses are needed from the start, names as they are looked up or
// connected to; this host and sockets are not.
func TestNeedsOfEndpoints(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		t.Setenv(name, "")
	}
	for _, c := range []struct {
		endpoints []string
		connected string
		want      []string
	}{
		{[]string{"http://10.200.1.10:2379"}, "", []string{"10.200.1.10 etcd endpoint http://10.200.1.10:2379"}},
		{[]string{"10.200.1.10:2379", "https://[2001:db8::5]:2379"}, "", []string{"10.200.1.10 etcd endpoint http://10.200.1.10:2379", "2001:db8::5 etcd endpoint https://[2001:db8::5]:2379"}},
		{[]string{"http://127.0.0.1:2379", "http://[::1]:2379", "unix:///run/etcd.sock", "http://0.0.0.0:2379"}, "", nil},
		{[]string{"http://etcd.example:2379"}, "", nil},
		{[]string{"http://etcd.example:2379"}, "10.200.1.10", []string{"10.200.1.10 etcd endpoint http://etcd.example:2379"}},
		{[]string{"http://a.example:2379", "http://b.example:2379"}, "::ffff:10.200.1.10", []string{"10.200.1.10 an address of etcd"}},
		{[]string{"http://etcd.example:2379"}, "127.0.0.1", nil},
		{[]string{"http://user:secret@10.200.1.10:2379"}, "", []string{"10.200.1.10 etcd endpoint http://10.200.1.10:2379"}},
		{[]string{"nonsense://x"}, "", nil},
	} {
		changes := 0
		n := NewEtcd(etcd.Options{Endpoints: c.endpoints}, func() { changes++ })
		if c.connected != "" {
			n.Connecting(netip.MustParseAddr(c.connected))
			n.Connecting(netip.MustParseAddr(c.connected))
		}
		if got := n.addrs(); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.endpoints, got, c.want)
		}
		if want := min(len(c.connected), 1, len(c.want)); changes != want {
			t.Errorf("%q: %d changes, want %d", c.endpoints, changes, want)
		}
	}
}

// TestNeedsForgetOldAddresses: after the name has had others for a while; addresses from the
// options stay.
func TestNeedsForgetOldAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewEtcd(etcd.Options{Endpoints: []string{"http://10.200.1.1:2379"}}, func() {})
		was, is := netip.MustParseAddr("10.200.1.10"), netip.MustParseAddr("10.201.1.10")
		n.record(was, "etcd", time.Now())
		for minute := 1; minute <= 30; minute++ {
			time.Sleep(lookupInterval)
			n.record(is, "etcd", time.Now())
			n.expire(time.Now().Add(-addressTTL))
			kept := slices.ContainsFunc(n.addrs(), func(s string) bool { return s == was.String()+" etcd" })
			if want := minute <= 10; kept != want || len(n.addrs()) != map[bool]int{true: 3, false: 2}[want] {
				t.Fatalf("after %d minutes: %q", minute, n.addrs())
			}
		}
	})
}

// TestNeedsAreBounded, whatever name servers answer.
func TestNeedsAreBounded(t *testing.T) {
	n := NewEtcd(etcd.Options{Endpoints: []string{"http://10.200.1.1:2379"}}, func() {})
	for i := range 10 * maxAddresses {
		n.record(netip.MustParseAddr(fmt.Sprintf("10.%d.%d.9", i/256, i%256)), "etcd", time.Now())
	}
	if got := len(n.Needs()); got != maxAddresses {
		t.Errorf("%d addresses", got)
	}
}

// TestNeedsLookUpNames by the resolver of the system.
func TestNeedsLookUpNames(t *testing.T) {
	changes := 0
	n := NewEtcd(etcd.Options{Endpoints: []string{"http://localhost:2379", "http://no..name:2379"}}, func() { changes++ })
	n.record(netip.MustParseAddr("10.200.1.10"), "etcd", time.Now().Add(-time.Hour))
	changes = 0
	n.lookup(t.Context())
	if got := n.addrs(); len(got) != 1 || changes != 0 {
		t.Errorf("a name that cannot be looked up: %q, %d changes", got, changes)
	}
}

func TestNameServers(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 10.9.9.9\nnameserver 192.0.2.53 # second\nsearch example\n": "[10.9.9.9 192.0.2.53]",
		"# nameserver 10.9.9.9\n;nameserver 10.9.9.9\nnameserver\n":             "[]",
		"nameserver 127.0.0.53\noptions edns0\n":                                "[]",
		"\tnameserver   fe80::1%eth0\n":                                         "[fe80::1]",
		"nameserver x\nnameserver 10.9.9.9":                                     "[10.9.9.9]",
	} {
		if got := fmt.Sprint(Addrs(parseNameServers(text))); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
