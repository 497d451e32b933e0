package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdtest"
)

// TestUplinkSelectors: what chooses the interface, on a host with two.
func TestUplinkSelectors(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, vxlanConfig)
	for _, f := range []struct {
		args string
		said string // in the log
		code int    // of the exit, when it can't start
	}{
		{"", `iface=eth0 addr=172.31.200.2 reason="default route"`, 0},
		{"-iface=eth0", `reason="iface eth0"`, 0},
		{"-iface=bond7 -iface=172.31.200.2", `reason="iface 172.31.200.2"`, 0},
		{"-iface-regex=^172\\.31\\.", `reason="iface-regex ^172\\.31\\."`, 0},
		{"-iface=bond7 -iface-can-reach=172.31.200.1", `iface=eth0 addr=172.31.200.2 reason="iface-can-reach 172.31.200.1"`, 0},
		{"-public-ip=172.31.200.2", `reason="public-ip 172.31.200.2"`, 0},
		{"-iface=bond7", "there is no such interface; there are lo, eth0", 1},
		{"-iface=lo", "interface lo has no usable IPv4 address", 1},
		{"-etcd-cafile=/nonexistent", "/nonexistent", 1},
		{"-etcd-endpoints=ftp://x", "must be a URL with the scheme http, https or unix", 1},
	} {
		p := c.launch(h, strings.Fields(f.args)...)
		if f.code != 0 {
			code, err := p.Wait(c.ctx)
			if err != nil || code != f.code {
				t.Errorf("%s: exit code %d, %v", f.args, code, err)
			}
		} else {
			c.must(p.WaitReady(c.ctx))
			c.stop(p)
		}
		c.said(h.Flanneld(), 1, f.said)
	}
}

// TestHealth asks /healthz and /readyz before and after READY. A second daemon exits, and logs
// which program uses the port.
func TestHealth(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	answers := func(path string, code int, form string) {
		t.Helper()
		c.within(5*time.Second, path, func() error {
			got, body, err := c.get(h, path)
			if err == nil && (got != code || !regexp.MustCompile(form).MatchString(body)) {
				err = fmt.Errorf("%d %q, want %d %q", got, body, code, form)
			}
			return err
		})
	}
	p := c.launch(h, "-healthz-port=8080", "-healthz-ip=127.0.0.1")
	answers("/healthz", 200, "^flanneld is running$")
	answers("/readyz", 503, "^flanneld is not ready yet\n(?s:.*)network config is missing")
	c.put("config", vxlanConfig)
	c.must(p.WaitReady(c.ctx))
	answers("/healthz", 200, "^flanneld is running$")
	answers("/readyz", 200, "^flanneld is ready$")
	answers("/", 404, "^404 page not found\n$")
	c.must(c.Etcd.Kill(c.ctx))
	answers("/readyz", 200, "degraded: etcd does not answer since 20")

	second := c.launch(h, "-healthz-port=8080", "-healthz-ip=127.0.0.1")
	if code, err := second.Wait(c.ctx); code != 1 || err != nil || logged(h, "ERROR", "address already in use", fmt.Sprintf("pid %d", p.PID()), "-healthz-port") != 1 {
		t.Errorf("the port is taken: exit code %d, %v\n%s", code, err, second.Logs())
	}
}

// TestTLS joins with an etcd that requires a client certificate, with the settings in the
// environment, and does not log the password. Errors in the settings name the flag to set.
func TestTLS(t *testing.T) {
	t.Parallel()
	tls := secured(etcdtest.NewAuthority(t), "etcd")
	c := newCluster(t, lab.Options{Hosts: 1, TLS: tls})
	c.put("config", vxlanConfig)
	h := c.Hosts[0]
	run := func(env ...string) *lab.Process {
		p, err := h.Run(lab.Command{
			Args: []string{"-subnet-file=" + h.SubnetFile},
			Env: append([]string{"FLANNELD_ETCD_USERNAME=flannel", "FLANNELD_ETCD_PASSWORD=hush-hush", "FLANNELD_V=1",
				"FLANNELD_ETCD_ENDPOINTS=" + c.Etcd.Endpoint()}, env...),
		})
		c.must(err)
		return p
	}
	p := run("FLANNELD_ETCD_CAFILE="+tls.CA, "FLANNELD_ETCD_CERTFILE="+tls.ClientCert, "FLANNELD_ETCD_KEYFILE="+tls.ClientKey)
	c.must(p.WaitReady(c.ctx))
	c.stop(p)
	for name, f := range map[string]struct {
		env  string
		code int
		said string
	}{
		"no client certificate": {"FLANNELD_ETCD_CAFILE=" + tls.CA, 0, "set -etcd-certfile and -etcd-keyfile"},
		"another CA":            {"FLANNELD_ETCD_CAFILE=" + tls.ClientCert, 0, "set -etcd-cafile to the CA of etcd's certificate, which is not that in " + tls.ClientCert},
		"no CA":                 {"", 0, "set -etcd-cafile to the CA of etcd's certificate\""},
		"http":                  {"FLANNELD_ETCD_ENDPOINTS=http" + strings.TrimPrefix(c.Etcd.Endpoint(), "https"), 0, "etcd speaks TLS there: write https:// in -etcd-endpoints"},
		"certificate, no key":   {"FLANNELD_ETCD_CERTFILE=" + tls.ClientCert, 1, "etcd-keyfile"},
	} {
		p := run(f.env)
		c.within(5*time.Second, name, func() error {
			if !strings.Contains(p.Logs(), f.said) {
				return fmt.Errorf("said\n%s", p.Logs())
			}
			return nil
		})
		if f.code == 0 {
			c.must(p.Signal(syscall.SIGTERM))
		}
		ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
		if code, err := p.Wait(ctx); err != nil || code != f.code {
			t.Errorf("%s: exit code %d, %v", name, code, err)
		}
		cancel()
		if strings.Contains(p.Logs(), "hush") {
			t.Errorf("%s: the password is in the log:\n%s", name, p.Logs())
		}
	}
}
