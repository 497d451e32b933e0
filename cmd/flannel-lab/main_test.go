package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/vishvananda/netlink"
	"go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab"
)

// The test binary is also the lab's etcd and, when it is given flanneld's first flag, a stand-in for flanneld.
func TestMain(m *testing.M) {
	os.Exit(lab.Main(func() int {
		if len(os.Args) < 3 || !strings.HasPrefix(os.Args[1], "-etcd-endpoints=") {
			return m.Run()
		}
		_, endpoint, _ := strings.Cut(os.Args[1], "=")
		_, file, _ := strings.Cut(os.Args[2], "=")
		if err := standIn(endpoint, file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}))
}

// standIn is host-gw at its simplest: subnet 10.42.<last byte of the host's address>.0/24, no renewing, no removing.
func standIn(endpoint, file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	uplink, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	addrs, err := uplink.Addrs()
	if err != nil {
		return err
	}
	own := addrs[0].(*net.IPNet).IP.To4()
	c, err := client.New(client.Config{Endpoints: []string{endpoint}, Transport: &http.Transport{}})
	if err != nil {
		return err
	}
	keys := client.NewKeysAPI(c)
	config, err := keys.Get(ctx, configKey, nil)
	if err != nil {
		return err
	}
	if !strings.Contains(config.Node.Value, "host-gw") {
		return errors.New("unknown backend type in " + config.Node.Value)
	}
	if _, err := keys.Set(ctx, "/coreos.com/network/subnets/"+own.String(), "", nil); err != nil {
		return err
	}
	env := fmt.Sprintf("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.%d.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n", own[3])
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(env), 0o644)); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	for ctx.Err() == nil {
		list, err := keys.Get(ctx, "/coreos.com/network/subnets", nil)
		if err != nil {
			return err
		}
		for _, n := range list.Node.Nodes {
			peer := net.ParseIP(filepath.Base(n.Key)).To4()
			if peer.Equal(own) {
				continue
			}
			dst := &net.IPNet{IP: net.IPv4(10, 42, peer[3], 0), Mask: net.CIDRMask(24, 32)}
			if err := netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: peer}); err != nil {
				return err
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

func TestParse(t *testing.T) {
	self := "--flanneld=" + os.Args[0]
	for _, test := range []struct {
		args string
		code int
		out  string
	}{
		{"--help", 0, "--backend"},
		{"demo --help", 0, "Usage: flannel-lab"},
		{self + " --hosts 0", 2, "--hosts is 0"},
		{self + " --hosts x", 2, "invalid argument"},
		{self + " --what", 2, "--what"},
		{self + " demo more", 2, `"more"`},
		{"--flanneld=/nowhere", 2, "/nowhere"},
		{"--flanneld=/", 2, "not a program"},
	} {
		var out bytes.Buffer
		if code := run(strings.Fields(test.args), &out, &out); code != test.code || !strings.Contains(out.String(), test.out) {
			t.Errorf("%s: code %d, output:\n%s", test.args, code, out.String())
		}
	}
}

func TestDemo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := demo(ctx, settings{hosts: 2, backend: "host-gw", flanneld: self}, newReport(&out)); err != nil {
		t.Errorf("demo: %v", err)
	}
	t.Log(out.String())
	for _, want := range []string{"h2     172.31.200.3", "✓", "bare link", "route 10.42.3.0/24 via 172.31.200.3 dev eth0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not show %q", want)
		}
	}
	err = demo(ctx, settings{hosts: 1, backend: "none", flanneld: self}, newReport(&out))
	if err == nil || !strings.Contains(err.Error(), "unknown backend type") {
		t.Errorf("demo with a flanneld that fails: %v", err)
	}
}
