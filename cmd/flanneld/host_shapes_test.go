package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/wait"
)

const (
	// zooHosts is the number of hosts of each shape.
	zooHosts = 3
	// zooRouter and zooPublicIP are the same in every row.
	zooRouter, zooPublicIP = "10.99.0.1", "10.99.0.$N"
	// zooPace is the time between two events of a boot.
	zooPace = 100 * time.Millisecond
)

// A zooBackend is what a shape is run with.
type zooBackend struct {
	name     string
	options  string // of Backend in the network config
	second   string // more of them, for the second network of a host
	overhead int    // bytes of each packet
	damage   string // command that stops all traffic of the host
	direct   bool   // peers on the uplink's link are reached without a tunnel
	user     bool   // packets are carried by flanneld itself
	local    bool   // programs nothing: containers of other hosts are not reached
}

var zooBackends = []zooBackend{
	{name: "vxlan", options: `"Type":"vxlan"`, second: `"VNI":2`, overhead: 50, damage: "ip link del flannel.1"},
	{name: "direct-routing", options: `"Type":"vxlan","DirectRouting":true`, second: `"VNI":2`, overhead: 50,
		damage: "ip link del flannel.1; ip route flush proto 70", direct: true},
	{name: "udp", options: `"Type":"udp"`, second: `"Port":8286`, overhead: 28, damage: "ip link del flannel0", user: true},
	{name: "host-gw", options: `"Type":"host-gw"`, damage: "ip route flush proto 70", direct: true},
	{name: "alloc", options: `"Type":"alloc"`, local: true},
}

// TestZoo runs flanneld on hosts of each shape. With ZOO=all each shape is run with
// each backend, else most of them with vxlan only.
func TestZoo(t *testing.T) {
	t.Parallel()
	openZoo(t).runRows(func(s shape) bool { return s.needs == "" })
}

// TestZooModules runs the shapes whose links need kernel modules that not every kernel has; "make
// test-vm" uses a kernel with all of them.
func TestZooModules(t *testing.T) {
	t.Parallel()
	z := openZoo(t)
	for kind := range kinds() {
		if !z.knows(kind) {
			t.Skipf("this kernel knows no links of type %s: make test-vm", kind)
		}
	}
	z.runRows(func(s shape) bool { return s.needs != "" })
}

// A zoo is a lab without hosts of its own.
type zoo struct {
	*cluster
	all bool // with every backend
}

func openZoo(t *testing.T) *zoo {
	need(t, "ip", "nft", "iptables", "iptables-nft", "iptables-legacy")
	c := newCluster(t, lab.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), slow(20*time.Minute))
	t.Cleanup(cancel)
	c.ctx = ctx
	return &zoo{c, os.Getenv("ZOO") == "all"}
}

// runRows runs the rows that are wanted, each with its backends, side by side: most of the time is
// waiting.
func (z *zoo) runRows(wanted func(shape) bool) {
	for i, s := range shapes {
		if !wanted(s) {
			continue
		}
		z.t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for n, b := range zooBackends {
				if z.all || n == 0 || s.everyBackend {
					t.Run(b.name, func(t *testing.T) {
						t.Parallel()
						z.runShape(t, s, fmt.Sprintf("s%db%d", i, n), b)
					})
				}
			}
		})
	}
}

// kinds are the kinds of link that rows need.
func kinds() map[string]bool {
	all := map[string]bool{}
	for _, s := range shapes {
		if s.needs != "" {
			all[s.needs] = true
		}
	}
	return all
}

// knows reports whether the kernel supports a kind of link. It runs in a namespace, because the
// test may create a link.
func (z *zoo) knows(kind string) bool {
	var out []byte
	z.must(z.Fabric.Do(func() error {
		out, _ = exec.Command("ip", "link", "add", "zoo0", "type", kind).CombinedOutput()
		exec.Command("ip", "link", "del", "zoo0").Run()
		return nil
	}))
	return !strings.Contains(string(out), "Unknown device type")
}

// A scenario is a shape with a backend.
type scenario struct {
	*cluster // of the lab; without hosts of its own
	shape
	backend zooBackend
	site    *lab.Site
	nodes   []*node
}

// A node is a flanneld on a host; a host of two networks has two.
type node struct {
	*scenario
	host      *lab.Host
	prefix    string // in etcd
	file      string // subnet file
	bridge    string // of docker
	runs      []*lab.Process
	container *lab.Container
	subnet    netip.Prefix
}

// runShape builds a shape's hosts and runs all events on them.
func (z *zoo) runShape(t *testing.T, s shape, name string, b zooBackend) {
	own := *z.cluster
	own.t = t
	ctx, cancel := context.WithTimeout(z.ctx, slow(2*time.Minute))
	defer cancel()
	own.ctx = ctx
	s.complete()
	x := &scenario{cluster: &own, shape: s, backend: b}
	if s.routed && b.name == "host-gw" {
		x.warns = append(slices.Clone(x.warns), "is not on the link of")
	}
	x.build(name)
	if text, ok := s.refused[b.name]; ok {
		x.refuses(text)
		return
	}
	begin := time.Now()
	stage := func(name string, do func()) {
		if t.Failed() {
			return
		}
		do()
		t.Logf("%-8s %v", name, time.Since(begin).Round(10*time.Millisecond))
		begin = time.Now()
	}
	stage("start", x.start)
	stage("restart", x.restart)
	stage("log", x.quiet)
	stage("repair", x.repair)
	stage("flap", x.flaps)
	stage("reboot", x.reboot)
	stage("stay", x.stayed)
}

// complete fills in what a row leaves out.
func (s *shape) complete() {
	if s.nics == nil {
		s.nics = oneNIC
	}
	s.router, s.up = cmp.Or(s.router, oneRouter), cmp.Or(s.up, oneAddress)
	s.overlay = cmp.Or(s.overlay, `"Network":"10.42.0.0/16"`)
	s.uplink = cmp.Or(s.uplink, "eth0")
	s.addr = cmp.Or(s.addr, zooPublicIP)
	s.mtu = cmp.Or(s.mtu, 1500)
	s.flap = cmp.Or(s.flap, "ip link set "+s.uplink+" down\nip link set "+s.uplink+" up")
}

// build creates the router and the hosts.
func (x *scenario) build(name string) {
	site, err := x.NewSite(name)
	x.must(err)
	x.site = site
	x.t.Cleanup(func() {
		if x.t.Failed() {
			x.tell()
		}
		if err := site.Remove(context.WithoutCancel(x.ctx)); err != nil {
			x.t.Errorf("remove the site: %v", err)
		}
	})
	networks := []string{fmt.Sprintf(`{%s,"Backend":{%s}}`, x.overlay, x.backend.options)}
	if x.second {
		options := strings.TrimSuffix(x.backend.options+","+x.backend.second, ",")
		networks = append(networks, fmt.Sprintf(`{"Network":"10.43.0.0/16","Backend":{%s}}`, options))
	}
	for range zooHosts {
		h, err := site.AddHost(x.nics...)
		x.must(err)
		h.Addr = netip.MustParseAddr(x.of(h, x.addr))
		for i := range networks {
			n := &node{scenario: x, host: h, prefix: fmt.Sprintf("/zoo/%s/%d", name, i), bridge: fmt.Sprintf("docker%d", i), file: h.SubnetFile}
			if i > 0 {
				n.file = filepath.Join(filepath.Dir(h.SubnetFile), fmt.Sprintf("subnet%d.env", i))
			}
			x.nodes = append(x.nodes, n)
		}
	}
	for i, config := range networks {
		x.must(x.Etcd.Put(x.ctx, x.nodes[i].prefix+"/config", config, 0))
	}
	_, err = site.Shell(x.ctx, x.router)
	x.must(err)
}

// of replaces the host's number in a text.
func (x *scenario) of(h *lab.Host, text string) string {
	return strings.ReplaceAll(text, "$N", fmt.Sprint(h.Number))
}

// tell logs the state of the first host and the logs of all, for a row that fails.
func (x *scenario) tell() {
	if len(x.site.Hosts) == 0 {
		return
	}
	h := x.site.Hosts[0]
	out, err := h.Shell(context.WithoutCancel(x.ctx), "ip addr | head -n 60; ip rule; ip route show table all | grep -v 'table local' | head -n 60; ip -d link show type vxlan; ip neigh; iptables-save")
	x.t.Logf("%s: %v\n%s", h.Name, err, out)
	for _, n := range x.nodes {
		for i, p := range n.runs[max(0, len(n.runs)-3):] {
			x.t.Logf("log of %s on %s, %d of the last:\n%s", filepath.Base(n.file), n.host.Name, i+1, p.Logs())
		}
	}
}

// commands runs lines of a shell one by one on a host.
func (x *scenario) commands(h *lab.Host, lines string, after func()) {
	x.t.Helper()
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		var err error
		if card, replug := strings.CutPrefix(line, "replug "); replug {
			err = h.Replug(card)
		} else {
			_, err = h.Shell(x.ctx, line)
		}
		x.must(err)
		if after != nil {
			after()
		}
	}
}

// run starts a flanneld with the stored descriptors of the previous one, as systemd does.
func (n *node) run(stored ...*os.File) {
	n.t.Helper()
	args := []string{
		"-etcd-endpoints=http://" + zooRouter + ":2379", "-etcd-prefix=" + n.prefix, "-etcd-api=v2", "-subnet-file=" + n.file, "-ip-masq=true",
	}
	var env []string
	if n.filter != "" {
		env = append(env, "PATH="+pathWith(n.t, n.filter))
	}
	p, err := n.host.Run(lab.Command{Args: append(args, strings.Fields(n.of(n.host, n.args))...), Env: env, Stored: stored})
	n.must(err)
	n.runs = append(n.runs, p)
}

func (n *node) process() *lab.Process { return n.runs[len(n.runs)-1] }

// alive restarts flanneld if it has ended, as the unit does.
func (n *node) alive() {
	if n.process().Exited() {
		n.run()
	}
}

// ready waits until flanneld is ready, and for its subnet.
func (n *node) ready() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, slow(20*time.Second))
	defer cancel()
	n.must(wait.Until(ctx, func() error {
		n.alive()
		return n.process().WaitReady(ctx)
	}))
}

// on returns the nodes of a host.
func (x *scenario) on(h *lab.Host) (all []*node) {
	for _, n := range x.nodes {
		if n.host == h {
			all = append(all, n)
		}
	}
	return all
}

// boot starts flanneld on an unconfigured host, and then configures the host, one event after
// another.
func (x *scenario) boot(h *lab.Host) {
	x.t.Helper()
	for _, n := range x.on(h) {
		n.run()
	}
	x.commands(h, x.once+"\n"+x.up, func() {
		time.Sleep(zooPace)
		for _, n := range x.on(h) {
			n.alive()
		}
	})
}

func (x *scenario) start() {
	for _, h := range x.site.Hosts {
		if x.late {
			x.boot(h)
			continue
		}
		x.commands(h, x.once+"\n"+x.up, nil)
		_, err := h.WaitPing(x.ctx, netip.MustParseAddr(zooRouter))
		x.must(err)
		for _, n := range x.on(h) {
			n.run()
		}
	}
	for _, n := range x.nodes {
		n.ready()
		n.subnet = n.leased()
	}
	x.within(5*time.Second, "warnings", x.warned)
	for _, n := range x.nodes {
		n.addContainer()
	}
	x.sound()
	for _, n := range x.nodes {
		if want := x.mtu - x.backend.overhead; n.container.MTU != want {
			x.t.Errorf("%s: containers have MTU %d, want %d", n.host.Name, n.container.MTU, want)
		}
		if out := x.outside; out != "" && n.subnet.Overlaps(netip.MustParsePrefix(out)) {
			x.t.Errorf("%s has the subnet %s, which lies in %s", n.host.Name, n.subnet, out)
		}
		if x.backend.direct {
			x.direct(n)
		}
	}
}

// refuses expects flanneld to end and to say why.
func (x *scenario) refuses(text string) {
	h := x.site.Hosts[0]
	x.commands(h, x.once+"\n"+x.up, nil)
	for _, n := range x.on(h) {
		n.run()
		if code, err := n.process().Wait(x.ctx); code != 1 || err != nil || lines(n.process(), text) == 0 {
			x.t.Errorf("exit code %d, %v, want 1 and %q in\n%s", code, err, text, n.process().Logs())
		}
	}
}

// leased reads the leased subnet of a host.
func (n *node) leased() netip.Prefix {
	n.t.Helper()
	env, err := lab.ReadSubnet(n.file)
	n.must(err)
	return env.Subnet.Masked()
}

// addContainer starts docker and a container.
func (n *node) addContainer() {
	n.t.Helper()
	k := n.containerTo(n.host, n.bridge, n.file)
	n.container = k
}

// connected reports whether containers of different hosts can reach each other at all.
func (x *scenario) connected() bool {
	return !x.backend.local && !(x.routed && x.backend.name == "host-gw")
}

// sound checks the expectations of the row on every host, and that all containers of a network
// reach each other with packets of the maximum size.
func (x *scenario) sound() {
	x.t.Helper()
	x.within(15*time.Second, "the hosts as the row says", func() error {
		for _, n := range x.nodes {
			if err := n.right(); err != nil {
				return fmt.Errorf("%s: %w", n.host.Name, err)
			}
		}
		return nil
	})
	if !x.connected() {
		return
	}
	ctx, cancel := context.WithTimeout(x.ctx, slow(15*time.Second))
	defer cancel()
	for _, a := range x.nodes {
		for _, b := range x.nodes {
			if a == b || a.prefix != b.prefix {
				continue
			}
			err := wait.Until(ctx, func() error {
				_, err := a.container.Ping(ctx, b.container.Addr, lab.PingOptions{Size: a.container.MTU, DF: true, Timeout: 250 * time.Millisecond})
				return err
			})
			if err != nil {
				x.t.Fatalf("container of %s does not reach that of %s: %v", a.host.Name, b.host.Name, err)
			}
		}
	}
}

// right returns what of a host's uplink and lease is not as it should be.
func (n *node) right() error {
	uplink, addr := n.chosen()
	if want := n.of(n.host, n.addr); uplink != n.uplink || addr != want {
		return fmt.Errorf("the uplink is %s with %s, want %s with %s", uplink, addr, n.uplink, want)
	}
	e, err := n.Etcd.Get(n.ctx, leaseKey(n.prefix, n.subnet))
	if err != nil {
		return err
	}
	var lease struct{ PublicIP string }
	if err := json.Unmarshal([]byte(e.Value), &lease); err != nil {
		return err
	}
	if want := n.of(n.host, zooPublicIP); lease.PublicIP != want {
		return fmt.Errorf("the lease says %s, want %s", e.Value, want)
	}
	return nil
}

// chosen returns the uplink in the last log line about it.
func (n *node) chosen() (iface, addr string) {
	for line := range strings.Lines(n.process().Logs()) {
		if !choosesUplink(line) {
			continue
		}
		for _, f := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(f, "iface="); ok {
				iface = v
			}
			if v, ok := strings.CutPrefix(f, "addr="); ok {
				addr = v
			}
		}
	}
	return iface, addr
}

func choosesUplink(line string) bool {
	return strings.Contains(line, "chose uplink") || strings.Contains(line, "uplink changed")
}

// direct expects plain routes to peers on the same link, and none to others.
func (x *scenario) direct(n *node) {
	x.t.Helper()
	for _, p := range x.nodes {
		if p == n || p.prefix != n.prefix {
			continue
		}
		out, err := n.host.Shell(x.ctx, "ip -4 route get "+p.container.Addr.String())
		x.must(err)
		plain := strings.Contains(out, " via "+p.host.Addr.String()+" dev "+x.uplink+" ")
		if plain == x.routed {
			x.t.Errorf("%s reaches %s by %s", n.host.Name, p.host.Name, out)
		}
	}
}

// restart stops and starts flanneld on a host whose containers communicate with the others.
func (x *scenario) restart() {
	for _, n := range x.on(x.site.Hosts[0]) {
		var pings []*lab.Pinger
		for _, p := range x.nodes {
			if p != n && p.prefix == n.prefix && x.connected() {
				ping, err := p.container.StartPinger(n.container.Addr, slow(10*time.Millisecond))
				x.must(err)
				pings = append(pings, ping)
			}
		}
		stored := n.process().Stored()
		code, err := n.process().Stop(x.ctx)
		if err != nil || code != 0 {
			x.t.Fatalf("exit code %d, %v", code, err)
		}
		n.run(stored...)
		n.ready()
		for _, ping := range pings {
			x.replies(ping, 5) // what has waited is on its way
			if s := ping.Stop(); s.Lost > 0 {
				x.t.Errorf("%d of %d pings lost, outage %v", s.Lost, s.Sent, s.Outage)
			}
		}
		if !x.backend.user && lines(n.process(), "ops=") > 0 {
			x.t.Errorf("the restart has changed something:\n%s", n.process().Logs())
		}
	}
	x.sound()
}

// repair damages a host and waits until it is as it was.
func (x *scenario) repair() {
	if !x.connected() {
		return
	}
	n := x.nodes[0]
	_, err := n.host.Shell(x.ctx, x.backend.damage)
	x.must(err)
	x.sound()
}

// flaps takes the uplink of a host down for a moment, after which the network is configured again
// as at boot. It does so on another host than the restart, so that there is time for checks.
func (x *scenario) flaps() {
	h := x.site.Hosts[1]
	x.commands(h, x.flap, func() { time.Sleep(zooPace) })
	x.commands(h, x.up, nil)
	x.sound()
}

// stayed expects that nothing has ever moved on the host that has flapped.
func (x *scenario) stayed() {
	for _, n := range x.on(x.site.Hosts[1]) {
		for line := range strings.Lines(n.process().Logs()) {
			if choosesUplink(line) && !strings.Contains(line, " iface="+x.uplink+" ") {
				x.t.Errorf("%s has left its uplink: %s", n.host.Name, line)
			}
		}
		if s := n.leased(); s != n.subnet {
			x.t.Errorf("%s has the subnet %s, had %s", n.host.Name, s, n.subnet)
		}
	}
}

// reboot takes a host's power away. What its kernel and its /run held is gone, and
// flanneld is there before the network.
func (x *scenario) reboot() {
	h := x.site.Hosts[0]
	x.must(h.PowerOff(x.ctx))
	for _, n := range x.on(h) {
		if _, err := n.process().Wait(x.ctx); err != nil {
			x.t.Fatal(err)
		}
	}
	x.must(h.PowerOn())
	x.boot(h)
	for _, n := range x.on(h) {
		n.ready()
		if s := n.leased(); s != n.subnet {
			x.t.Errorf("%s has the subnet %s, had %s", h.Name, s, n.subnet)
			n.subnet = s
		}
		n.addContainer()
	}
	x.sound()
}

// warned expects the warnings that the row names in the logs of all hosts.
func (x *scenario) warned() error {
	for _, n := range x.nodes {
		for _, w := range x.warns {
			if lines(n.process(), w) == 0 {
				return fmt.Errorf("%s says nothing of %q", n.host.Name, w)
			}
		}
	}
	return nil
}

// quiet expects no other warnings than those in the logs.
func (x *scenario) quiet() {
	for _, n := range x.nodes {
		for line := range strings.Lines(n.process().Logs()) {
			loud := strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")
			if strings.Contains(line, "br_netfilter is not loaded") {
				continue // of the machine, not of the hosts
			}
			if loud && !slices.ContainsFunc(x.warns, func(w string) bool { return strings.Contains(line, w) }) {
				x.t.Errorf("%s says %s", n.host.Name, line)
			}
		}
	}
}
