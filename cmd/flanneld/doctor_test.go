package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/doctor"
	"flanneld/pkg/lab"
)

// TestDoctorOfHealthyHosts: on five hosts with each backend, nothing fails, with the daemon and
// without it; what is unknown has a reason.
func TestDoctorOfHealthyHosts(t *testing.T) {
	t.Parallel()
	for _, b := range []struct{ name, config string }{
		{"vxlan", vxlanConfig},
		{"direct-routing", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`},
		{"udp", udpConfig},
		{"host-gw", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`},
		{"alloc", `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c := &faultCluster{cluster: newCluster(t, lab.Options{Hosts: 5})}
			c.put("config", b.config)
			c.must(c.StartAll(c.ctx))
			if c.addContainers(); b.name != "alloc" {
				c.waitAllPairs()
			}
			c.within(20*time.Second, "a healthy host", func() error { return healthy(c.doctor(c.Hosts[0])) })
			for _, h := range c.Hosts[1:] {
				if err := healthy(c.doctor(h)); err != nil {
					t.Errorf("%s: %v", h.Name, err)
				}
			}
			r := c.doctor(c.Hosts[0])
			t.Logf("%s", text(r))
			// What a daemon knows is unknown without it.
			c.must(c.Hosts[0].Flanneld().Kill(c.ctx))
			r = c.doctor(c.Hosts[0])
			down := fault{id: "FL-DAEMON-DOWN"}
			if b.name == "udp" {
				down.also = []string{"FL-DEVICE-CHANGED"} // its device ends with the daemon
			}
			if err := down.check(r); err != nil {
				t.Errorf("without the daemon: %v", err)
			}
		})
	}
}

// healthy returns an error if something fails, or is unknown without a reason.
func healthy(r doctor.Report) error {
	if r.Failed() {
		return errors.New(text(r))
	}
	for _, f := range r.Findings {
		if f.Status == doctor.Unknown && len(f.Summary) < 10 {
			return fmt.Errorf("%s is unknown: %q", f.ID, f.Summary)
		}
	}
	return nil
}

// TestDoctorIsBounded: with an etcd that does not answer, a hundred peers that are dead, and tools
// that hang, the doctor ends within 10 seconds, and writes what it has into a bundle without secrets.
func TestDoctorIsBounded(t *testing.T) {
	t.Parallel()
	const secret = "hush-hush-hush"
	c := &faultCluster{cluster: newCluster(t, lab.Options{Hosts: 1})}
	h := c.Hosts[0]
	c.put("config", upperConfig)
	for i := range 100 {
		c.put(fmt.Sprintf("subnets/10.42.%d.0-24", i+1), phantomValue(fmt.Sprintf("172.31.201.%d", i+1), fmt.Sprintf("0a:00:00:00:00:%02x", i+1)))
	}
	c.start(h, "-etcd-username=flannel", "-etcd-password="+secret)
	c.peers(h, 10*time.Second, 100)
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-save", "iptables-nft-save", "iptables-legacy-save", "nft", "docker", "ip", "bridge", "journalctl", "systemctl", "ss"} {
		c.must(os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nsleep 1000\n"), 0o755))
	}
	c.path = dir + ":" + os.Getenv("PATH") // from now on
	c.must(c.Etcd.Pause())
	for _, daemon := range []string{"running", "stopped"} {
		if daemon == "stopped" {
			c.must(h.Flanneld().Pause())
		}
		bundle := filepath.Join(dir, daemon+".tar.gz")
		began := time.Now()
		out, code := c.runDoctor(h, "doctor", "--json", "--bundle="+bundle, "-subnet-file="+h.SubnetFile)
		if took := time.Since(began); took > slow(10*time.Second) {
			t.Errorf("%s: took %v", daemon, took)
		}
		var r doctor.Report
		if err := json.Unmarshal(out, &r); err != nil || code != doctorProblem {
			t.Fatalf("exit code %d, %v: %s", code, err, out)
		}
		want := map[string]string{"running": "FL-ETCD-DOWN", "stopped": "FL-DAEMON-HUNG"}[daemon]
		if r.Findings[0].ID != want {
			t.Errorf("%s: first is not %s:\n%s", daemon, want, text(r))
		}
		t.Logf("%s", text(r))
		c.traceIsBounded(h)
		unpacked := t.TempDir()
		if out, err := exec.Command("tar", "-xzf", bundle, "-C", unpacked, "--strip-components=1").CombinedOutput(); err != nil {
			t.Fatalf("unpack the bundle: %v: %s", err, out)
		}
		files := map[string]string{}
		entries, err := os.ReadDir(unpacked)
		c.must(err)
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(unpacked, e.Name()))
			c.must(err)
			files[e.Name()] = string(content)
		}
		for name, content := range files {
			if strings.Contains(content, secret) {
				t.Errorf("%s: the secret is in %s", daemon, name)
			}
		}
		if !strings.Contains(files["index.txt"], "nftables.txt: missing: nftables.txt: no answer within") || !strings.Contains(files["settings.txt"], "etcd-username: flannel") {
			t.Errorf("%s: index %s\nsettings %s", daemon, files["index.txt"], files["settings.txt"])
		}
	}
}

// TestDoctorOverridesFlags: the flags of the doctor replace those of the daemon.
func TestDoctorOverridesFlags(t *testing.T) {
	for _, c := range []struct{ daemon, doctor, env, want string }{
		{"-v=1 -iface=eth0 --iface eth1 -etcd-prefix /a", "", "", "-v=1 -iface=eth0 --iface eth1 -etcd-prefix /a"},
		{"-v=1 -iface=eth0 --iface eth1 -etcd-prefix /a -ip-masq", "--iface=eth2 --json", "", "-v=1 -etcd-prefix /a -ip-masq --iface=eth2"},
		{"-etcd-prefix /a -etcd-endpoints=x", "-etcd-prefix=/b -subnet-file=/s --bundle=/x", "", "-etcd-endpoints=x --etcd-prefix=/b --subnet-file=/s"},
		{"-etcd-prefix /a -etcd-endpoints=x", "", "FLANNELD_ETCD_PREFIX=/b FLANNELD_ETCD_ENDPOINTS=", "-etcd-endpoints=x"},
	} {
		f := newFlags("")
		o := doctorFlags(f)
		if err := parseFlags(f, strings.Fields(c.doctor)); err != nil {
			t.Fatal(err)
		}
		got, want := o.override(strings.Fields(c.daemon), strings.Fields(c.env)), strings.Fields(c.want)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s with %s: %q, want %q", c.daemon, c.doctor, got, want)
		}
	}
}
