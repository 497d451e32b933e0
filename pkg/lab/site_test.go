package lab

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/wait"
)

// shape sets the addresses of the hosts of a test's site.
func shape(t *testing.T, s *Site, h *Host) {
	t.Helper()
	script := `ip link set eth0 up; ip addr add 10.99.0.$N/24 dev eth0; ip route add default via 10.99.0.1
		ip link set ppp0 up; ip addr add 10.98.0.$N peer 10.98.0.1 dev ppp0`
	if _, err := h.Shell(t.Context(), script); err != nil {
		t.Fatal(err)
	}
	h.Addr = netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", h.Number))
}

func TestSitesHaveTheSameAddresses(t *testing.T) {
	ctx, l := newTestLab(t, Options{})
	var sites []*Site
	for _, name := range []string{"a", "b"} {
		s, err := l.NewSite(name)
		must(t, err)
		for range 2 {
			h, err := s.AddHost(NIC{Name: "eth0", LAN: "lan"}, NIC{Name: "ppp0"})
			must(t, err)
			shape(t, s, h)
		}
		_, err = s.Shell(ctx, `ip addr add 10.99.0.1/24 dev lan
			for N in $HOSTS; do ip link set h$N.ppp0 up; ip addr add 10.98.0.1 peer 10.98.0.$N dev h$N.ppp0; done`)
		if err != nil {
			t.Fatal(err)
		}
		sites = append(sites, s)
	}
	for _, s := range sites {
		for _, to := range []string{"10.99.0.1", "10.99.0.3", "10.98.0.1"} {
			if _, err := s.Hosts[0].WaitPing(ctx, netip.MustParseAddr(to)); err != nil {
				t.Error(err)
			}
		}
		client := &http.Client{Transport: &http.Transport{DialContext: s.Hosts[1].NS.DialContext, DisableKeepAlives: true}}
		r, err := client.Get("http://10.99.0.1:2379/version")
		must(t, err)
		if body, err := io.ReadAll(r.Body); !strings.Contains(string(body), "etcdserver") {
			t.Errorf("etcd's version: %s, %v", body, err)
		}
		r.Body.Close()
	}
	if err := sites[0].Remove(ctx); err != nil {
		t.Error(err)
	}
	if _, err := sites[1].Hosts[0].Ping(ctx, netip.MustParseAddr("10.99.0.3"), PingOptions{}); err != nil {
		t.Error(err)
	}
}

func TestPowerOffForgetsEverything(t *testing.T) {
	ctx, l := newTestLab(t, Options{})
	s, err := l.NewSite("s")
	must(t, err)
	h, err := s.AddHost(NIC{Name: "eth0", LAN: "lan"}, NIC{Name: "ppp0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Shell(ctx, "ip addr add 10.99.0.1/24 dev lan"); err != nil {
		t.Fatal(err)
	}
	reach := func() {
		t.Helper()
		if _, err := h.WaitPing(ctx, netip.MustParseAddr("10.99.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	links := func() string {
		t.Helper()
		out, err := h.Shell(ctx, "ip -o link | sed 's/@[^:]*//' | cut -d ' ' -f 2; ip -o link show eth0 | grep -o 'link/ether [^ ]*'; ip -4 -o addr show scope global")
		must(t, err)
		return out
	}
	bare := links()
	shape(t, s, h)
	reach()
	os.WriteFile(h.SubnetFile, []byte("FLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\n"), 0o644)
	if _, err := h.AddContainer(); err != nil {
		t.Fatal(err)
	}
	p, err := h.Run(Command{Path: "/bin/sleep", Args: []string{"60"}})
	must(t, err)
	for range 2 {
		must(t, h.PowerOff(ctx))
		if code, err := p.Wait(ctx); code != 128+9 || err != nil {
			t.Errorf("a program on the host: exit code %d, %v", code, err)
		}
		if files, _ := filepath.Glob(h.SubnetFile + "*"); len(files) > 0 {
			t.Errorf("there are %v", files)
		}
		must(t, h.PowerOn())
		if now := links(); now != bare {
			t.Errorf("the host has\n%sat first it had\n%s", now, bare)
		}
		shape(t, s, h)
		reach()
	}
	for _, card := range []string{"eth0", "ppp0"} {
		must(t, h.Replug(card))
		err := wait.Until(ctx, func() error {
			out, err := h.Shell(ctx, "ip -o addr show dev "+card)
			if err == nil && strings.Contains(out, "inet ") {
				err = errors.New(out)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s was not taken out: %v", card, err)
		}
	}
	if _, err := h.Ping(ctx, netip.MustParseAddr("10.99.0.1"), PingOptions{Timeout: 50 * time.Millisecond}); err == nil {
		t.Error("the router is reached without an address")
	}
	if err := h.Replug("eth7"); err == nil {
		t.Error("a card that is not there was replugged")
	}
}
