package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// An action is something bad that happens to a host or to etcd.
type action struct {
	name string
	asks bool // etcd, which must be there
	do   func(m *mayhem, v *victim)
}

var actions = []action{
	{"kill -9 flanneld", false, (*mayhem).kill},
	{"kill -9 flanneld and start it", false, func(m *mayhem, v *victim) { m.kill(v); m.start(v) }},
	{"SIGSTOP flanneld", false, func(m *mayhem, v *victim) { m.signal(v, syscall.SIGSTOP) }},
	{"SIGCONT flanneld", false, func(m *mayhem, v *victim) { m.signal(v, syscall.SIGCONT) }},
	{"wipe etcd", false, (*mayhem).wipe},
	{"kill -9 etcd", false, (*mayhem).killEtcd},
	{"kill -9 etcd and start it", false, func(m *mayhem, v *victim) { m.killEtcd(v); m.healEtcd(v) }},
	{"SIGSTOP etcd", true, (*mayhem).pauseEtcd},
	{"SIGCONT etcd", false, (*mayhem).healEtcd},
	{"forget history", true, (*mayhem).forget},
	{"cut off from etcd", false, func(m *mayhem, v *victim) { m.sh(v.Host, cutOff) }},
	{"unplug", false, func(m *mayhem, v *victim) { m.must(v.Unplug()) }},
	{"delete the lease", true, (*mayhem).deleteLease},
	{"change the uplink's address", false, (*mayhem).readdress},
	{"replace the uplink", false, (*mayhem).replaceUplink},
	{"damage the kernel's objects", false, (*mayhem).damage},
	{"damage the kernel's objects", false, (*mayhem).damage}, // there are many kinds
}

// cutOff silently drops packets between a host and etcd.
const cutOff = `nft 'add table ip chaos; delete table ip chaos; table ip chaos {
	chain out { type filter hook output priority 0; tcp dport 2379 drop; }
	chain in  { type filter hook input priority 0; tcp sport 2379 drop; }
}'`

func (m *mayhem) start(v *victim) {
	m.t.Helper()
	c := lab.Command{Args: []string{
		"-etcd-endpoints=" + m.Etcd.Endpoint(), "-etcd-prefix=" + v.network.prefix, "-etcd-api=" + m.api,
		"-subnet-file=" + v.file, "-ip-masq=true",
	}}
	if f := v.shape.filter; f != "" {
		c.Env = []string{"PATH=" + pathWith(m.t, f)}
	}
	p, err := v.Run(c)
	m.must(err)
	v.daemon, v.killed = p, false
}

func (m *mayhem) kill(v *victim) {
	m.t.Helper()
	m.must(v.daemon.Kill(m.ctx))
	v.killed = true
}

func (m *mayhem) signal(v *victim, s syscall.Signal) {
	m.t.Helper()
	if !v.killed {
		m.must(v.daemon.Signal(s))
	}
}

func (m *mayhem) wipe(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Wipe(m.ctx))
	m.etcdDown = false
	m.putConfig()
}

func (m *mayhem) killEtcd(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Kill(m.ctx))
	m.etcdDown = true
}

func (m *mayhem) pauseEtcd(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Pause())
	m.etcdDown = true
}

// healEtcd ends a pause or a death.
func (m *mayhem) healEtcd(*victim) {
	m.t.Helper()
	err := m.Etcd.Resume()
	if errors.Is(err, os.ErrProcessDone) {
		err = m.Etcd.Start(m.ctx)
	}
	m.must(err)
	m.etcdDown = false
}

// forget removes etcd's history.
func (m *mayhem) forget(*victim) {
	m.t.Helper()
	m.must(m.keys.ForgetHistory(m.ctx))
}

func (m *mayhem) deleteLease(v *victim) {
	m.t.Helper()
	if err := m.keys.Delete(m.ctx, leaseKey(v.network.prefix, v.subnet)); !errors.Is(err, etcdkeys.ErrNoKey) {
		m.must(err)
	}
}

// newAddress returns one that no host has had.
func (m *mayhem) newAddress(v *victim) netip.Addr {
	m.addresses++
	v.addr = netip.AddrFrom4([4]byte{10, 99, 201 + byte(m.addresses/250), byte(m.addresses % 250)})
	m.note("\t%s", v.addr)
	return v.addr
}

// readdress does as DHCP does.
func (m *mayhem) readdress(v *victim) {
	m.t.Helper()
	addr := m.newAddress(v)
	m.sh(v.Host, fmt.Sprintf("ip -4 addr flush dev %[1]s && ip addr add %[2]s/16 dev %[1]s && ip route replace default via %[3]s dev %[1]s", v.uplink, addr, m.gateway))
}

// replaceUplink has the address and the way to everywhere on another device.
func (m *mayhem) replaceUplink(v *victim) {
	m.t.Helper()
	before, addr := v.uplink, m.newAddress(v)
	v.uplink = map[string]string{"eth0": "eth7", "eth7": "eth0", "br0": "br7", "br7": "br0"}[before]
	m.sh(v.Host, fmt.Sprintf("ip link set %[1]s down && ip link set %[1]s name %[2]s && ip addr flush dev %[2]s && ip addr add %[3]s/16 dev %[2]s && ip link set %[2]s up && ip route replace default via %[4]s dev %[2]s",
		before, v.uplink, addr, m.gateway))
}

func (m *mayhem) damage(v *victim) {
	m.t.Helper()
	if m.backend.direct || m.backend.local { // the routes are on the uplink, beside others
		m.note("\tip route flush")
		m.sh(v.Host, "ip route flush proto 70; true")
		return
	}
	device := v.network.vxlan
	if m.backend.user {
		device = cmp.Or(strings.Join(m.tunDevices(v), ""), "flannel0")
	}
	d := damages[m.random.IntN(len(damages))]
	m.note("\t%s of %s", d.name, device)
	err := v.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			err = d.do(l)
		}
		return err
	})
	if err != nil { // it was gone already, or the daemon was repairing it just then
		m.note("\t%v", err)
	}
}
