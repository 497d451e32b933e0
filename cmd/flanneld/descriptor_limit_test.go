package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// waits reports whether a process has logged that it waits for descriptors. With some limits, it
// only fails to connect to one of etcd's APIs.
func waits(p *lab.Process) bool {
	return lines(p, "too many open files")+lines(p, "waiting for it") > 0
}

// TestNoStartEndsForWantOfDescriptors: with any limit of descriptors, the daemon logs the failure
// and retries.
func TestNoStartEndsForWantOfDescriptors(t *testing.T) {
	t.Parallel()
	const least, most = 8, 18 // enough for the Go runtime; for all of a start
	daemon, err := built()
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, lab.Options{Hosts: most - least})
	c.put("config", vxlanConfig)
	for i, h := range c.Hosts {
		p, err := h.Run(lab.Command{Path: "/bin/sh", Args: []string{"-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, least+i),
			daemon, "-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + h.SubnetFile, "-healthz-port=8080"}})
		c.must(err)
		c.within(10*time.Second, fmt.Sprintf("%d descriptors", least+i), func() error {
			if p.ReadyAfter() > 0 || waits(p) {
				return nil
			}
			return errors.New("it says nothing:\n" + p.Logs())
		})
		if p.Exited() {
			t.Errorf("with %d descriptors it ends:\n%s", least+i, p.Logs())
		}
	}
}

// TestStartGoesOnWithDescriptors: a start that lacks descriptors continues once there are some.
func TestStartGoesOnWithDescriptors(t *testing.T) {
	t.Parallel()
	for _, config := range []string{vxlanConfig, `{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`} {
		c := newCluster(t, lab.Options{Hosts: 8})
		limit := func(p *lab.Process, n int) {
			t.Helper()
			limit := unix.Rlimit{Cur: uint64(n), Max: 1024}
			c.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &limit, nil))
		}
		for i, h := range c.Hosts {
			p := c.launch(h)
			c.says(p, "network config is missing")
			used := c.usage(p)
			limit(p, used.Files+i)
		}
		c.put("config", config)
		stuck := 0
		for _, h := range c.Hosts {
			c.within(10*time.Second, "a start", func() error {
				switch p := h.Flanneld(); {
				case lines(p, "too many open files") > 0:
					stuck++
				case p.ReadyAfter() == 0:
					return errors.New(p.Logs())
				}
				return nil
			})
		}
		if stuck < len(c.Hosts)/2 {
			t.Errorf("only %d lack descriptors", stuck)
		}
		for _, h := range c.Hosts {
			limit(h.Flanneld(), 1024)
		}
		for _, h := range c.Hosts {
			c.must(h.Flanneld().WaitReady(c.ctx))
		}
		c.connect()
	}
}
