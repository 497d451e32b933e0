package main

import (
	"os"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestRestart stops and kills the daemon under traffic: nothing is lost,
// nothing is changed.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		forget bool
	}{
		{"SIGTERM", syscall.SIGTERM, false},
		{"SIGKILL", syscall.SIGKILL, false},
		{"SIGTERM without subnet file", syscall.SIGTERM, true},
		{"SIGKILL without subnet file", syscall.SIGKILL, true},
	} {
		t.Run(c.name, func(t *testing.T) { testRestart(t, c.signal, c.forget) })
	}
}

func testRestart(t *testing.T, sig syscall.Signal, forget bool) {
	c := startCluster(t, 2, vxlanConfig)
	h, a, b := c.Hosts[0], c.containers[0], c.containers[1]
	before, index := c.snapshot(h, "10.42.0.0/16", "flannel.1"), c.iface(h, "flannel.1").Index
	subnet := c.subnet(h)
	there := c.pinger(a, b)
	back := c.pinger(b, a)
	file, _ := os.Stat(h.SubnetFile)
	for range 3 {
		if code := c.end(h.Flanneld(), sig); sig == syscall.SIGTERM && code != 0 {
			t.Fatalf("exit code %d", code)
		}
		if forget {
			c.must(os.Remove(h.SubnetFile))
		}
		c.start(h)
		c.said(h.Flanneld(), 0, "ops=")
	}
	for _, p := range []*lab.Pinger{there, back} {
		c.lossless(p)
	}
	if got := c.subnet(h); got != subnet {
		t.Errorf("subnet was %s, is %s", subnet, got)
	}
	if got := c.snapshot(h, "10.42.0.0/16", "flannel.1"); !got.Equal(before) || c.iface(h, "flannel.1").Index != index {
		t.Errorf("the kernel held\n%sand holds\n%s", before.Text(), got.Text())
	}
	if now, _ := os.Stat(h.SubnetFile); !forget && !os.SameFile(file, now) {
		t.Error("the subnet file was rewritten")
	}
}

// TestSignals stops the daemon at every stage of its start: it exits 0 within a
// second.
func TestSignals(t *testing.T) {
	// Not parallel: it measures times.
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	stop := func(stage string, sig syscall.Signal) {
		t.Helper()
		start := time.Now()
		code := c.end(h.Flanneld(), sig)
		if took := time.Since(start); code != 0 || took > time.Second {
			t.Errorf("%s, %v: exit code %d after %v\n%s", stage, sig, code, took, h.Flanneld().Logs())
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c.launch(h, "-etcd-endpoints=http://192.0.2.1:2379") // black hole
		c.says(h.Flanneld(), "chose uplink")
		stop("connecting to etcd", sig)
		c.launch(h)
		c.says(h.Flanneld(), "network config is missing")
		stop("waiting for the config", sig)
	}
	c.put("config", vxlanConfig)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c.launch(h)
		c.must(h.Flanneld().WaitReady(c.ctx))
		stop("in the instant of READY", sig)
	}
	// Wherever the signal comes between the first log line and long after
	// READY.
	for delay := time.Duration(0); delay < 60*time.Millisecond; delay += 3 * time.Millisecond {
		c.launch(h)
		c.says(h.Flanneld(), "starting flanneld")
		pauseFor(c.ctx, delay)
		stop("after "+delay.String(), syscall.SIGTERM)
	}
	if s := c.snapshot(h, "10.42.0.0/16", "flannel.1"); len(s.Links) != 1 {
		t.Error("the device did not stay")
	}
}

// TestEtcdComesLater: neither etcd nor the config need be there first.
func TestEtcdComesLater(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2})
	c.must(c.Etcd.Stop(c.ctx))
	for _, h := range c.Hosts {
		c.launch(h)
		c.says(h.Flanneld(), "registry is unreachable")
	}
	c.must(c.Etcd.Start(c.ctx))
	for _, h := range c.Hosts {
		c.says(h.Flanneld(), "network config is missing")
	}
	c.put("config", `{"Network":"10.42.0.0/33"}`)
	c.says(c.Hosts[0].Flanneld(), `Network: \"10.42.0.0/33\": must be`)
	c.put("config", vxlanConfig)
	start := time.Now()
	for _, h := range c.Hosts {
		c.must(h.Flanneld().WaitReady(c.ctx))
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s joined after %v", h.Name, took)
		}
		for _, words := range []string{"registry is unreachable", "registry is reachable again", "network config is missing"} {
			c.said(h.Flanneld(), 1, words)
		}
	}
	c.connect()
}
