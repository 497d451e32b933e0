package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/wait"
)

// Tests run in parallel: each has its own hosts, etcd, files and names, and waits most of its time.
// A test that does not call t.Parallel runs alone, before the others, because it measures times or
// needs all processors, or the lock under which the kernel changes networks; a comment says which.
// TestMain collects garbage less often than usual: this process sends and receives the traffic of
// many hosts at a time.
func TestMain(m *testing.M) {
	if err := becomeHeld(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	debug.SetGCPercent(400)
	os.Exit(lab.Main(m.Run))
}

const (
	defaultPrefix = "/coreos.com/network"
	vxlanConfig   = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`
	// upperConfig leaves the subnets below 10.42.128.0 for peers that a test invents.
	upperConfig = `{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":"vxlan"}}`
)

// built is the daemon under test: the one that FLANNELD names, or one built
// from this tree.
var built = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("FLANNELD"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "flanneld-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "flanneld")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build flanneld: %w\n%s", err, out)
	}
	return path, nil
})

// cluster is a lab whose hosts run flanneld.
type cluster struct {
	*lab.Lab
	t          *testing.T
	ctx        context.Context
	prefix     string
	api        string           // of etcd: that of the network
	keys       etcdkeys.Store   // through that API
	path       string           // PATH of flanneld and of shells; empty: that of this process
	containers []*lab.Container // one a host, in order
}

// newCluster creates hosts and etcd, and starts nothing yet.
func newCluster(t *testing.T, o lab.Options) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces; run it with sudo")
	}
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	o.Flanneld = path
	if strings.HasPrefix(t.Name(), underTheUnit) {
		if o.Unit, err = unit(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), slow(5*time.Minute))
	l, err := lab.New(ctx, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c := &cluster{Lab: l, t: t, ctx: ctx, prefix: defaultPrefix}
	c.use("v2")
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.Hosts {
				if p := h.Flanneld(); p != nil {
					t.Logf("log of flanneld on %s:\n%s", h.Name, p.Logs())
				}
			}
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return c
}

// use has the network in one of etcd's APIs.
func (c *cluster) use(api string) { c.api, c.keys = api, c.Etcd.Store(api) }

// oneHost creates a cluster of one host, with a config.
func oneHost(t *testing.T, config string) (*cluster, *lab.Host) {
	t.Helper()
	c := newCluster(t, lab.Options{Hosts: 1})
	c.put("config", config)
	return c, c.Hosts[0]
}

// startCluster starts hosts with a config and a container each, and waits until
// all containers reach each other.
func startCluster(t *testing.T, hosts int, config string, args ...string) *cluster {
	t.Helper()
	c := newCluster(t, lab.Options{Hosts: hosts})
	c.join(config, args...)
	return c
}

// join starts all hosts with a config and a container each, as startCluster does.
func (c *cluster) join(config string, args ...string) {
	c.t.Helper()
	c.put("config", config)
	c.must(c.StartAll(c.ctx, args...))
	c.connect()
}

// connect adds a container to each host, or to each of some, and waits until all containers reach
// each other.
func (c *cluster) connect(some ...*lab.Host) {
	c.t.Helper()
	c.addContainers(some...)
	c.waitAllPairs()
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// eachAPI runs a test with each of etcd's APIs, side by side, on hosts that have not started yet.
func eachAPI(t *testing.T, o lab.Options, test func(t *testing.T, c *cluster)) {
	for _, api := range []string{"v2", "v3"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, o)
			c.use(api)
			test(t, c)
		})
	}
}

// launch starts flanneld on a host.
func (c *cluster) launch(h *lab.Host, args ...string) *lab.Process {
	c.t.Helper()
	return c.launchCommand(h, lab.Command{Args: args})
}

func (c *cluster) launchCommand(h *lab.Host, command lab.Command) *lab.Process {
	c.t.Helper()
	if c.path != "" {
		command.Env = append([]string{"PATH=" + c.path}, command.Env...)
	}
	p, err := h.StartCommand(command)
	c.must(err)
	return p
}

// start starts flanneld on a host and waits until it is ready.
func (c *cluster) start(h *lab.Host, args ...string) *lab.Process {
	c.t.Helper()
	return c.startCommand(h, lab.Command{Args: args})
}

func (c *cluster) startCommand(h *lab.Host, command lab.Command) *lab.Process {
	c.t.Helper()
	p := c.launchCommand(h, command)
	c.must(p.WaitReady(c.ctx))
	return p
}

// startEach starts flanneld on hosts at the same time, and waits until all are ready.
func (c *cluster) startEach(command lab.Command, hosts ...*lab.Host) (all []*lab.Process) {
	c.t.Helper()
	for _, h := range hosts {
		all = append(all, c.launchCommand(h, command))
	}
	for _, p := range all {
		c.must(p.WaitReady(c.ctx))
	}
	return all
}

// share returns how much of a processor the busiest of some processes uses for some time.
func (c *cluster) share(d time.Duration, processes ...*lab.Process) (most float64) {
	c.t.Helper()
	return slices.Max(c.shares(d, processes...))
}

// shares returns how much of a processor each of some processes uses for some time.
func (c *cluster) shares(d time.Duration, processes ...*lab.Process) (all []float64) {
	c.t.Helper()
	var before []time.Duration
	for _, p := range processes {
		before = append(before, c.usage(p).CPU)
	}
	start := time.Now()
	pauseFor(c.ctx, d)
	for i, p := range processes {
		all = append(all, (c.usage(p).CPU-before[i]).Seconds()/time.Since(start).Seconds())
	}
	return all
}

// sideBySide calls f for 0 to n-1 at the same time.
func sideBySide(n int, f func(i int) error) error {
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// stop ends a flanneld in good order.
func (c *cluster) stop(p *lab.Process) {
	c.t.Helper()
	c.end(p, syscall.SIGTERM)
}

// end ends a process by a signal, and returns its exit code.
func (c *cluster) end(p *lab.Process, s syscall.Signal) int {
	c.t.Helper()
	if err := p.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		c.must(err)
	}
	code, err := p.Wait(c.ctx)
	c.must(err)
	return code
}

// prints waits until a command prints what it printed before.
func (c *cluster) prints(h *lab.Host, d time.Duration, command, want string) time.Duration {
	c.t.Helper()
	return c.within(d, command, func() error {
		if now, err := c.try(h, command); err != nil || now != want {
			return fmt.Errorf("it prints\n%s\nand not\n%s\n%w", now, want, err)
		}
		return nil
	})
}

// given returns the value of an environment variable, or the default of a short run.
func given[T any](t *testing.T, name, otherwise string, parse func(string) (T, error)) T {
	t.Helper()
	v, err := parse(cmp.Or(os.Getenv(name), otherwise))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// need skips a test that needs a program which is not there.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
}

// sh runs a shell command on a host and returns what it prints.
func (c *cluster) sh(h *lab.Host, command string) string {
	c.t.Helper()
	out, err := c.try(h, command)
	if err != nil {
		c.t.Fatalf("%s on %s: %v", command, h.Name, err)
	}
	return out
}

func (c *cluster) try(h *lab.Host, command string) (string, error) {
	env := []string{"XTABLES_LOCKFILE=" + filepath.Join(c.Dir, h.Name, "xtables.lock")}
	if c.path != "" {
		env = append(env, "PATH="+c.path)
	}
	return h.NS.Shell(c.ctx, command, env...)
}

// put writes a key below the prefix, without a TTL.
func (c *cluster) put(key, value string) {
	c.t.Helper()
	c.must(c.keys.Put(c.ctx, c.prefix+"/"+key, value, 0))
}

// del deletes a key below the prefix.
func (c *cluster) del(key string) {
	c.t.Helper()
	c.must(c.keys.Delete(c.ctx, c.prefix+"/"+key))
}

// leaseKey returns the key of the lease of a subnet.
func leaseKey(prefix string, subnet netip.Prefix) string {
	return prefix + "/subnets/" + strings.Replace(subnet.String(), "/", "-", 1)
}

// container adds a container to a host, whose docker takes over a subnet file that has changed.
func (c *cluster) container(h *lab.Host) *lab.Container {
	c.t.Helper()
	return c.containerTo(h, "docker0", h.SubnetFile)
}

func (c *cluster) containerTo(h *lab.Host, bridge, subnetFile string) *lab.Container {
	c.t.Helper()
	k, err := h.AddContainerTo(bridge, subnetFile)
	c.must(err)
	return k
}

// addContainers adds a container to each host, or to each of some.
func (c *cluster) addContainers(some ...*lab.Host) {
	c.t.Helper()
	if some == nil {
		some = c.Hosts
	}
	for _, h := range some {
		c.containers = append(c.containers, c.container(h))
	}
}

func (c *cluster) waitAllPairs() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, slow(10*time.Second))
	defer cancel()
	for _, a := range c.containers {
		for _, b := range c.containers {
			if a != b {
				if _, err := a.WaitPing(ctx, b.Addr); err != nil {
					c.t.Fatalf("%s does not reach %s: %v", a.Name, b.Name, err)
				}
			}
		}
	}
}

// slow is a deadline for this machine; see wait.Slow.
func slow(d time.Duration) time.Duration { return d * time.Duration(wait.Slow()) }

// transfer sends n bytes from each container to each other.
func (c *cluster) transfer(n int64) {
	c.t.Helper()
	n /= int64(wait.Slow())
	for _, a := range c.containers {
		for _, b := range c.containers {
			if a != b {
				if _, err := a.Transfer(c.ctx, &b.Endpoint, n); err != nil {
					c.t.Errorf("%d bytes from %s to %s: %v", n, a.Name, b.Name, err)
				}
			}
		}
	}
}

// within waits until check succeeds.
func (c *cluster) within(d time.Duration, what string, check func() error) time.Duration {
	c.t.Helper()
	return wait.For(c.t, d, what, check)
}

func (c *cluster) subnet(h *lab.Host) netip.Prefix {
	c.t.Helper()
	env, err := h.ReadSubnet()
	c.must(err)
	return env.Subnet.Masked()
}

// snapshot reads the objects of an overlay in the kernel of a host.
func (c *cluster) snapshot(h *lab.Host, network string, links ...string) dataplane.State {
	c.t.Helper()
	var s dataplane.State
	c.must(h.Do(func() error {
		k, err := kernel.New()
		if err != nil {
			return err
		}
		defer k.Close()
		s, err = k.Snapshot(dataplane.Scope{Networks: []netip.Prefix{netip.MustParsePrefix(network)}, Links: links})
		return err
	}))
	return s
}

// lease reads a host's value in etcd.
func (c *cluster) lease(h *lab.Host) (key string, e etcdkeys.Entry) {
	c.t.Helper()
	key = leaseKey(c.prefix, c.subnet(h))
	e, err := c.keys.Get(c.ctx, key)
	c.must(err)
	return key, e
}

// peers waits until a host has entries for so many peers.
func (c *cluster) peers(h *lab.Host, d time.Duration, want int) {
	c.t.Helper()
	c.within(d, "the peers", func() error {
		if n := len(c.snapshot(h, "10.42.0.0/16", "flannel.1").FDB); n != want {
			return fmt.Errorf("%d, want %d", n, want)
		}
		return nil
	})
}

// iface returns a device of a host.
func (c *cluster) iface(h *lab.Host, name string) (i *net.Interface) {
	c.t.Helper()
	c.must(h.Do(func() (err error) {
		i, err = net.InterfaceByName(name)
		return err
	}))
	return i
}

// usage returns what a process has used.
func (c *cluster) usage(p *lab.Process) lab.Usage {
	c.t.Helper()
	u, err := p.Usage()
	c.must(err)
	return u
}

// pinger has one container ping another until Stop, or lossless, is called.
func (c *cluster) pinger(from, to *lab.Container) *lab.Pinger {
	c.t.Helper()
	p, err := from.StartPinger(to.Addr, 10*time.Millisecond)
	c.must(err)
	return p
}

// traffic is pings both ways between neighbours.
func (c *cluster) traffic(along ...*lab.Container) (pings []*lab.Pinger) {
	c.t.Helper()
	for i := 1; i < len(along); i++ {
		pings = append(pings, c.pinger(along[i-1], along[i]), c.pinger(along[i], along[i-1]))
	}
	return pings
}

// lossless ends pings, and wants every one answered.
func (c *cluster) lossless(pings ...*lab.Pinger) {
	c.t.Helper()
	for i, p := range pings {
		if s := p.Stop(); s.Lost > 0 || s.Sent == 0 {
			c.t.Errorf("pinger %d lost %d of %d pings, for %v", i, s.Lost, s.Sent, s.Outage)
		}
	}
}

// get asks the daemon of a host at its health port, from the host itself.
func (c *cluster) get(h *lab.Host, path string) (status int, body string, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: h.NS.DialContext, DisableKeepAlives: true}, Timeout: slow(3 * time.Second)}
	r, err := client.Get("http://127.0.0.1:8080" + path)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return r.StatusCode, string(text), err
}
