package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

// runStatus runs "flanneld status" for a subnet file, and returns its output and its exit code.
func (c *cluster) runStatus(file string, args ...string) (out string, code int) {
	c.t.Helper()
	path, err := built()
	c.must(err)
	text, err := exec.CommandContext(c.ctx, path, append([]string{"status", "-subnet-file=" + file}, args...)...).Output()
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		if len(failed.Stderr) > 0 {
			c.t.Errorf("flanneld status %q says %s", args, failed.Stderr)
		}
		return string(text), failed.ExitCode()
	case err != nil:
		c.t.Fatal(err)
	}
	return string(text), 0
}

// status returns the status of the daemon with a subnet file, or why it is wrong in itself.
func (c *cluster) status(file string) (d status.Document, err error) {
	c.t.Helper()
	out, code := c.runStatus(file, "-json")
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		return d, fmt.Errorf("%w: %s", err, out)
	}
	want := map[status.Verdict]int{status.VerdictOK: 0, status.VerdictDegraded: 1, status.VerdictDown: 2}
	if n, known := want[d.Verdict]; !known || n != code || d.Version != 1 {
		return d, fmt.Errorf("exit code %d with\n%s", code, out)
	}
	return d, nil
}

// shows waits until the status of a host has a verdict, a reason that contains words, and what
// check wants.
func (c *cluster) shows(h *lab.Host, v status.Verdict, words string, check func(d status.Document) error) (d status.Document) {
	c.t.Helper()
	c.within(20*time.Second, fmt.Sprintf("the status %s %q", v, words), func() (err error) {
		if d, err = c.status(h.SubnetFile); err != nil {
			return err
		}
		if d.Verdict != v || !strings.Contains(d.Reason, words) {
			err = errors.New("verdict")
		} else if check != nil {
			err = check(d)
		}
		if err != nil {
			text, _ := json.MarshalIndent(d, "", " ")
			return fmt.Errorf("%w: it shows\n%s", err, text)
		}
		return nil
	})
	return d
}

// TestStatusCommand: with each backend, on a healthy host.
func TestStatusCommand(t *testing.T) {
	t.Parallel()
	for _, b := range []struct{ config, device, programmed string }{
		{`{"Type":"vxlan"}`, "flannel.1", "fdb, neighbour, route on flannel.1"},
		{`{"Type":"vxlan","DirectRouting":true}`, "flannel.1", "route on eth0"},
		{`{"Type":"host-gw"}`, "", "route on eth0"},
		{`{"Type":"udp"}`, "flannel0", "tunnel entry on flannel0"},
		{`{"Type":"alloc"}`, "", ""},
	} {
		t.Run(b.config, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			h, other := c.Hosts[0], c.Hosts[1]
			c.put("config", `{"Network":"10.42.0.0/16","Backend":`+b.config+`}`)
			c.must(c.StartAll(c.ctx, "-ip-masq"))
			d := c.shows(h, status.VerdictOK, "", func(d status.Document) error {
				if len(d.Peers) != 1 || d.Filter.Keeper == "" || d.Store.ViewAge == nil {
					return errors.New("something is missing")
				}
				return nil
			})
			p := d.Peers[0]
			if p.Subnet != c.subnet(other) || p.PublicIP != other.Addr || p.State != status.OK || p.Reason != "" || p.Programmed != b.programmed {
				t.Errorf("the peer: %+v", p)
			}
			left := time.Until(*d.Lease.Expires)
			if d.Lease.Subnet != c.subnet(h) || left < 23*time.Hour || left > 24*time.Hour || d.Lease.Lost {
				t.Errorf("the lease: %+v", d.Lease)
			}
			if s := d.Store; s.API != "v2" || s.Prefix != defaultPrefix || s.Up == nil || !*s.Up || *s.ViewAge > 120 {
				t.Errorf("the store: %+v", s)
			}
			if u := d.Uplink; u.Interface != "eth0" || u.Address != h.Addr || u.PublicIP != h.Addr || u.MTU != 1500 {
				t.Errorf("the uplink: %+v", u)
			}
			env, err := h.ReadSubnet()
			c.must(err)
			if x := d.Backend; !strings.Contains(b.config, `"`+x.Type+`"`) || x.Device != b.device || x.MTU != env.MTU {
				t.Errorf("the backend: %+v", x)
			}
			if *d.Drift != 0 || !d.Filter.Masquerade || !d.Daemon.Ready {
				t.Errorf("the rest: %+v", d)
			}
			text, code := c.runStatus(h.SubnetFile)
			if first, rest, _ := strings.Cut(text, "\n"); first != "ok" || code != 0 || !strings.Contains(rest, "1 peer: 1 fine") || strings.Contains(text, "\x1b") {
				t.Errorf("exit code %d with\n%s", code, text)
			}
			if all, _ := c.runStatus(h.SubnetFile, "-all"); !strings.Contains(all, c.subnet(other).String()+"\t"+other.Addr.String()+"\tok\t") {
				t.Errorf("all:\n%s", all)
			}
		})
	}
}

// TestStatusOfEtcdAway: the outage is named, before there is a config as well; a restart with etcd
// away keeps the subnet, so the host is not down.
func TestStatusOfEtcdAway(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, vxlanConfig)
	c.must(c.Etcd.Stop(c.ctx))
	away := func(d status.Document) error {
		if d.Store.Up == nil || *d.Store.Up || d.Store.DownSince == nil {
			return errors.New("the store is not down")
		}
		return nil
	}
	c.launch(h)
	c.shows(h, status.VerdictDown, "etcd does not answer", away)
	c.must(c.Etcd.Start(c.ctx))
	subnet := c.shows(h, status.VerdictOK, "", nil).Lease.Subnet
	c.must(c.Etcd.Stop(c.ctx))
	c.shows(h, status.VerdictDegraded, "etcd does not answer", away)
	c.stop(h.Flanneld())
	c.launch(h)
	d := c.shows(h, status.VerdictDegraded, "etcd does not answer", away)
	if d.Lease.Subnet != subnet || d.Daemon.Ready {
		t.Errorf("after the restart: %+v", d)
	}
	c.must(c.Etcd.Start(c.ctx))
	c.shows(h, status.VerdictOK, "", nil)
}

// TestStatusBeforeTheSubnet: there is no daemon, then no config.
func TestStatusBeforeTheSubnet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	d := c.shows(h, status.VerdictDown, "flanneld is not running", nil)
	if d.Peers == nil || d.Conditions == nil || d.Drift != nil || d.Store.Up != nil {
		t.Errorf("without a daemon: %+v", d)
	}
	if text, code := c.runStatus(h.SubnetFile); code != 2 || !strings.HasPrefix(text, "down: flanneld is not running") || strings.Count(text, "\n") != 2 {
		t.Errorf("without a daemon: exit code %d with %s", code, text)
	}
	c.launch(h)
	c.shows(h, status.VerdictDown, "this host has no subnet: network config is missing", func(d status.Document) error {
		if len(d.Conditions) != 1 || !strings.Contains(d.Conditions[0].Remedy, "etcdctl") {
			return errors.New("conditions")
		}
		return nil
	})
	c.put("config", vxlanConfig)
	c.shows(h, status.VerdictOK, "", nil)
}

// TestStatusFollowsTheHost: a peer is skipped, an address of another device is in the way, the device
// is deleted and repaired, the uplink loses its address.
func TestStatusFollowsTheHost(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, upperConfig)
	c.must(c.StartAll(c.ctx))
	c.shows(h, status.VerdictOK, "", nil)

	peer := func(d status.Document, subnet string) (status.Peer, error) {
		for _, p := range d.Peers {
			if p.Subnet == netip.MustParsePrefix(subnet) {
				return p, nil
			}
		}
		return status.Peer{}, fmt.Errorf("no peer %s", subnet)
	}
	state := func(subnet string, s status.PeerState, words string) func(d status.Document) error {
		return func(d status.Document) error {
			p, err := peer(d, subnet)
			if err == nil && (p.State != s || !strings.Contains(p.Reason, words) || p.Changed == nil || time.Since(*p.Changed) > time.Minute) {
				err = fmt.Errorf("peer %s is %s: %s", p.Subnet, p.State, p.Reason)
			}
			return err
		}
	}
	c.put("subnets/10.42.1.0-24", phantomValue("172.31.200.91", "02:00:00:00:00:91"))
	c.shows(h, status.VerdictOK, "", state("10.42.1.0/24", status.OK, ""))
	c.put("subnets/10.42.2.0-24", phantomValue(h.Addr.String(), "02:00:00:00:00:92"))
	c.shows(h, status.VerdictDegraded, "of 2 peers, 1 skipped", state("10.42.2.0/24", status.Skipped, "public IP is our own"))
	text, _ := c.runStatus(h.SubnetFile)
	if !strings.HasPrefix(text, "degraded: ") || !strings.Contains(text, "10.42.2.0/24") || strings.Contains(text, "10.42.1.0/24") {
		t.Errorf("it lists the peers that are fine:\n%s", text)
	}
	c.del("subnets/10.42.2.0-24")
	c.shows(h, status.VerdictOK, "", nil)

	c.sh(h, "ip link add foreign type bridge && ip link set foreign up && ip addr add 10.42.3.1/24 dev foreign")
	c.put("subnets/10.42.3.0-24", phantomValue("172.31.200.93", "02:00:00:00:00:93"))
	c.shows(h, status.VerdictDegraded, "", func(d status.Document) error {
		if d.Drift == nil || *d.Drift == 0 || d.DriftKinds["route"] == 0 {
			return errors.New("no drift")
		}
		return state("10.42.3.0/24", status.Unprogrammed, "route")(d)
	})
	c.sh(h, "ip link del foreign")
	c.shows(h, status.VerdictOK, "", state("10.42.3.0/24", status.OK, ""))

	before := time.Now()
	c.sh(h, "ip link del flannel.1")
	c.shows(h, status.VerdictOK, "", func(d status.Document) error {
		if d.LastRepair == nil || d.LastRepair.At.Before(before) || !strings.Contains(d.LastRepair.What, "+1 link") {
			return errors.New("no repair")
		}
		return nil
	})
	gateway := strings.Fields(c.sh(h, "ip route show default"))[2]
	c.sh(h, "ip -4 addr flush dev eth0")
	c.shows(h, status.VerdictDown, "uplink is unusable", nil)
	c.sh(h, "ip addr add "+h.Addr.String()+"/16 dev eth0 && ip route add default via "+gateway)
	c.shows(h, status.VerdictOK, "", nil)
}

// TestStatusSockets: two daemons have two sockets; that of a killed daemon is replaced, and one that
// was deleted is created again. A second daemon with the same subnet file leaves it alone.
func TestStatusSockets(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	one, two := c.network("/one", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan","VNI":43}}`), c.network("/two", `{"Network":"10.44.0.0/16","Backend":{"Type":"vxlan","VNI":44}}`)
	first, second := one.start(h, nil), two.start(h, nil)
	c.must(first.WaitReady(c.ctx))
	c.must(second.WaitReady(c.ctx))
	inNetwork := func(n network, second byte, p *lab.Process) {
		t.Helper()
		c.within(20*time.Second, "the status of "+n.prefix, func() error {
			d, err := c.status(n.file(h))
			if err != nil || d.Daemon.PID != p.PID() || !d.Lease.Subnet.IsValid() || d.Lease.Subnet.Addr().As4()[1] != second || d.Store.Prefix != n.prefix {
				return fmt.Errorf("%+v, %w", d, err)
			}
			return nil
		})
	}
	inNetwork(one, 43, first)
	inNetwork(two, 44, second)
	file, err := os.Lstat(subnetenv.SocketPath(one.file(h)))
	c.must(err)
	if got := file.Mode(); got != fs.ModeSocket|0o660 {
		t.Errorf("mode %v", got)
	}
	c.must(first.Kill(c.ctx))
	c.within(5*time.Second, "the status after a kill", func() error {
		d, err := c.status(one.file(h))
		if err == nil && d.Verdict != status.VerdictDown {
			err = fmt.Errorf("%+v", d)
		}
		return err
	})
	inNetwork(two, 44, second)
	first = one.start(h, nil)
	inNetwork(one, 43, first)
	c.must(os.Remove(subnetenv.SocketPath(one.file(h))))
	inNetwork(one, 43, first)

	third := two.start(h, nil) // waits for the first one to stop
	c.says(third, "cannot serve the socket for flanneld status", "another flanneld answers on it")
	inNetwork(two, 44, second)
	c.stop(second)
	inNetwork(two, 44, third)
	c.stop(third)
	if left, _ := filepath.Glob(two.file(h) + "*.sock"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestStatusPortChangesNothing: no request over TCP has an effect, and the health port shows no
// addresses.
func TestStatusPortChangesNothing(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	c.launch(h, "-status-listen=127.0.0.1:8081", "-healthz-port=8080", "-healthz-ip=127.0.0.1")
	ask := func(port int, method, path string) (answer string, code int) {
		t.Helper()
		out, err := c.try(h, fmt.Sprintf("curl -s -m 5 --path-as-is -X %s -d x=y -w '\\n%%{http_code}' 'http://127.0.0.1:%d%s'", method, port, path))
		c.must(err)
		out = strings.TrimSpace(out)
		i := strings.LastIndex(out, "\n")
		fmt.Sscan(out[i+1:], &code)
		return out[:max(i, 0)], code
	}
	c.says(h.Flanneld(), "network config is missing")
	if answer, code := ask(8081, "GET", "/readyz"); code != 503 || !strings.Contains(answer, `"ready":false`) || !strings.Contains(answer, "network-config") {
		t.Errorf("before the config: %d %s", code, answer)
	}
	c.put("config", upperConfig)
	c.put("subnets/10.42.1.0-24", phantomValue(h.Addr.String(), "02:00:00:00:00:91"))
	c.shows(h, status.VerdictDegraded, "1 skipped", nil)
	before := c.snapshot(h, "10.42.0.0/16", "flannel.1").Text()
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE"} {
		for _, path := range []string{"/", "/events", "/status", "/readyz", "/healthz", "/metrics", "/cleanup", "/status/../../etc/passwd", "/debug/pprof/", "/status?all=1"} {
			if method == "HEAD" || method == "GET" && path == "/events" {
				continue // curl waits for a body that does not come, or does not end
			}
			answer, code := ask(8081, method, path)
			if served := code == 200; served && method != "GET" {
				t.Errorf("%s %s: %d %s", method, path, code, answer)
			}
			if strings.Contains(answer, "root:") {
				t.Errorf("%s %s: %s", method, path, answer)
			}
			if answer, _ := ask(8080, method, path); strings.Contains(answer, "10.42.") || strings.Contains(answer, "172.31.") {
				t.Errorf("the health port: %s %s: %s", method, path, answer)
			}
		}
	}
	if answer, code := ask(8081, "GET", "/readyz"); code != 200 || !strings.Contains(answer, `"degraded":[]`) {
		t.Errorf("/readyz: %d %s", code, answer)
	}
	if answer, code := ask(8081, "GET", "/status"); code != 200 || !strings.Contains(answer, `"subnet":"10.42.1.0/24"`) {
		t.Errorf("/status: %d %s", code, answer)
	}
	if answer, code := ask(8080, "POST", "/readyz"); code != 200 || answer != "flanneld is ready" {
		t.Errorf("the health port: %d %s", code, answer)
	}
	if after := c.snapshot(h, "10.42.0.0/16", "flannel.1").Text(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if h.Flanneld().Exited() {
		t.Error("the daemon has ended")
	}
}

// TestTakenStatusPortIsANotice: a daemon whose -status-listen is taken starts and works, names the
// program that has the port, and serves when it is free.
func TestTakenStatusPortIsANotice(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	c, h := oneHost(t, vxlanConfig)
	other, err := h.NS.Listen(c.ctx, "tcp", "127.0.0.1:8081")
	c.must(err)
	defer other.Close()
	c.start(h, "-status-listen=127.0.0.1:8081")
	c.shows(h, status.VerdictOK, "", func(d status.Document) error {
		if len(d.Conditions) != 1 || d.Conditions[0].Severity != status.Notice ||
			!strings.Contains(d.Conditions[0].Text, fmt.Sprintf("(pid %d,", os.Getpid())) {
			return fmt.Errorf("conditions %+v", d.Conditions)
		}
		return nil
	})
	other.Close()
	c.within(20*time.Second, "the status at the port", func() error {
		_, err := c.try(h, "curl -sf -m 5 -o /dev/null http://127.0.0.1:8081/status")
		return err
	})
	c.shows(h, status.VerdictOK, "", func(d status.Document) error {
		if len(d.Conditions) > 0 {
			return fmt.Errorf("conditions %+v", d.Conditions)
		}
		return nil
	})
}

// TestStatusPortUnderLoad: 1,000 connections that ask for the status of 2,000 peers and do not read
// it, and 10 MB requests, cost little memory, and a repair takes no longer than without them.
func TestStatusPortUnderLoad(t *testing.T) {
	// Not parallel: it measures times.
	c, h := oneHost(t, `{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}`)
	var puts []etcdkeys.Entry
	for i := range 2000 {
		puts = append(puts, etcdkeys.Entry{
			Key:   fmt.Sprintf("%s/subnets/10.%d.%d.0-24", c.prefix, 1+i>>8, i&255),
			Value: phantomValue(fmt.Sprintf("192.0.%d.%d", 2+i>>8, i&255), fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255)),
		})
	}
	c.must(sideBySide(len(puts), func(i int) error { return c.keys.Put(c.ctx, puts[i].Key, puts[i].Value, 0) }))
	p := c.start(h, "-status-listen=0.0.0.0:8081")
	c.shows(h, status.VerdictOK, "", nil)
	repaired := func() (worst time.Duration) {
		t.Helper()
		for range 5 {
			c.sh(h, "ip neigh flush dev flannel.1 nud permanent")
			worst = max(worst, c.within(10*time.Second, "the repair", func() error {
				if n := len(c.snapshot(h, "10.0.0.0/8", "flannel.1").Neighs); n != len(puts) {
					return fmt.Errorf("%d neighbours", n)
				}
				return nil
			}))
		}
		return worst
	}
	alone, before := repaired(), c.usage(p)
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	var writers sync.WaitGroup
	defer writers.Wait()
	for i := range 1000 {
		conn, err := h.NS.DialContext(c.ctx, "tcp", "127.0.0.1:8081")
		c.must(err)
		open = append(open, conn)
		writers.Go(func() {
			if i%10 == 0 {
				io.WriteString(conn, "GET /status HTTP/1.1\r\nX: "+strings.Repeat("x", 10<<20))
			} else {
				io.WriteString(conn, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
			}
		})
	}
	loaded, after := repaired(), c.usage(p)
	t.Logf("repair: %v alone, %v under load; memory: %d MB, then %d MB", alone, loaded, before.RSS>>20, after.HWM>>20)
	if loaded > 2*alone+slow(500*time.Millisecond) {
		t.Errorf("repaired after %v, and without load after %v", loaded, alone)
	}
	if grown := after.HWM - before.HWM; grown > 24<<20 {
		t.Errorf("%d MB more memory", grown>>20)
	}
	c.shows(h, status.VerdictOK, "", nil) // the socket answers meanwhile
}

// TestStatusOfAHungDaemon: it is down, and the command ends.
func TestStatusOfAHungDaemon(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, vxlanConfig)
	c.must(c.StartAll(c.ctx))
	c.must(h.Flanneld().Signal(syscall.SIGSTOP))
	defer h.Flanneld().Signal(syscall.SIGCONT)
	d, err := c.status(h.SubnetFile)
	if err != nil || d.Verdict != status.VerdictDown || !strings.Contains(d.Reason, "does not answer") {
		t.Errorf("%+v, %v", d, err)
	}
	c.must(h.Flanneld().Signal(syscall.SIGCONT))
	c.shows(h, status.VerdictOK, "", nil)
}
