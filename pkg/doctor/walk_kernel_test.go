package doctor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/lab/netns"
	"flanneld/pkg/nftables"
)

// walkBed is a host with a container behind docker0, a peer's container behind flannel.1, and the
// peer behind eth0. Each is a network namespace. The link flannel.1 is a cable here: what matters
// is that the host forwards.
type walkBed struct {
	t                           *testing.T
	host, container, inner, far *netns.Namespace
	id                          uint16 // of the last packet
	lock                        string // of iptables-legacy
}

// Addresses of the namespaces.
var (
	atContainer, atInner = netip.MustParseAddr("10.42.7.2"), netip.MustParseAddr("10.42.8.2")
	atHost, atFar        = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
)

func newWalkBed(t *testing.T) *walkBed {
	for _, tool := range []string{"ip", "nft", "iptables-nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	b := &walkBed{t: t, host: netns.New(t), container: netns.New(t), inner: netns.New(t), far: netns.New(t), lock: filepath.Join(t.TempDir(), "xtables.lock")}
	cable := func(port, device string, to *netns.Namespace) {
		if err := to.WithFD(func(fd int) error {
			b.sh(b.host, fmt.Sprintf("ip link add %s type veth peer name %s netns /proc/%d/fd/%d", port, device, os.Getpid(), fd))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	b.sh(b.host, "ip link add docker0 type bridge forward_delay 0; ip addr add 10.42.7.1/24 dev docker0; ip link set docker0 up")
	cable("vc", "eth0", b.container)
	b.sh(b.host, "ip link set vc master docker0; ip link set vc up")
	b.sh(b.container, "ip addr add 10.42.7.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.42.7.1")
	cable("flannel.1", "eth0", b.inner)
	b.sh(b.host, "ip addr add 10.42.8.1/24 dev flannel.1; ip link set flannel.1 up")
	b.sh(b.inner, "ip addr add 10.42.8.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.42.8.1")
	cable("eth0", "eth0", b.far)
	b.sh(b.host, "ip addr add 192.0.2.7/24 dev eth0; ip link set eth0 up")
	b.sh(b.far, "ip addr add 192.0.2.8/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.7")
	b.in(b.host, func() {
		for _, name := range []string{"net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"} {
			if err := os.WriteFile("/proc/sys/"+name, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	})
	return b
}

// in runs f in a namespace.
func (b *walkBed) in(n *netns.Namespace, f func()) {
	b.t.Helper()
	if err := n.Do(func() error { f(); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *walkBed) sh(n *netns.Namespace, script string) string {
	b.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+b.lock)
	var out []byte
	var err error
	b.in(n, func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		b.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// reset removes all rules.
func (b *walkBed) reset() {
	script := "nft flush ruleset\n"
	b.in(b.host, func() {
		names, err := iptables.LegacyTables(firewall.IPv4)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, name := range names {
			script += fmt.Sprintf("iptables-legacy -t %[1]s -F; iptables-legacy -t %[1]s -X\n", name)
			if name == "filter" {
				script += "iptables-legacy -P INPUT ACCEPT; iptables-legacy -P FORWARD ACCEPT; iptables-legacy -P OUTPUT ACCEPT\n"
			}
		}
	})
	b.sh(b.host, script)
}

// flow is a kind of packet that is sent.
type flow struct {
	name     string
	from, to func(*walkBed) *netns.Namespace
	packet   firewall.Packet // without ports
	port     uint16
}

func flows() (all []flow) {
	container := func(b *walkBed) *netns.Namespace { return b.container }
	inner := func(b *walkBed) *netns.Namespace { return b.inner }
	far := func(b *walkBed) *netns.Namespace { return b.far }
	host := func(b *walkBed) *netns.Namespace { return b.host }
	for _, protocol := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		all = append(all,
			flow{"out", container, inner, firewall.Packet{In: "docker0", Out: "flannel.1", Src: atContainer, Dst: atInner, Protocol: protocol}, 443},
			flow{"in", inner, container, firewall.Packet{In: "flannel.1", Out: "docker0", Src: atInner, Dst: atContainer, Protocol: protocol}, 443})
	}
	return append(all,
		flow{"tunnel in", far, host, firewall.Packet{In: "eth0", Src: atFar, Dst: atHost, Protocol: unix.IPPROTO_UDP, ToHost: true}, 8472},
		flow{"tunnel out", host, far, firewall.Packet{Out: "eth0", Src: atHost, Dst: atFar, Protocol: unix.IPPROTO_UDP, FromHost: true}, 8472},
		flow{"outside", container, far, firewall.Packet{In: "docker0", Out: "eth0", Src: atContainer, Dst: atFar, Protocol: unix.IPPROTO_UDP}, 443})
}

// fate is what happens to a packet and to its reply.
type fate struct {
	arrives, answered bool
	source            netip.Addr // as the receiver sees it
}

// walked is what the rules say about a new packet and its reply.
type walked struct{ first, reply Passage }

// walk returns what the rules say about packets.
func (b *walkBed) walk(packets ...firewall.Packet) (all []walked) {
	b.t.Helper()
	var err error
	b.in(b.host, func() {
		var legacy *iptables.Listing
		if legacy, err = readLegacy(context.Background()); err != nil {
			return
		}
		var k nftables.Keeper
		defer k.Close()
		err = k.View(context.Background(), firewall.IPv4, func(chains []firewall.BaseChain) (err error) {
			chains = append(chains, legacy.BaseChains()...)
			for _, p := range packets {
				p.Unmarked, p.InBridge, p.OutBridge = true, p.In == "docker0", p.Out == "docker0"
				for device, index := range map[string]*int{p.In: &p.InIndex, p.Out: &p.OutIndex} {
					if i, err := net.InterfaceByName(device); err == nil {
						*index = i.Index
					}
				}
				answer := firewall.Packet{
					In: p.Out, Out: p.In, InIndex: p.OutIndex, OutIndex: p.InIndex, Src: p.Dst, Dst: p.Src, Protocol: p.Protocol,
					SrcPort: p.DstPort, DstPort: p.SrcPort, Reply: true, Unmarked: true, InBridge: p.OutBridge, OutBridge: p.InBridge, ToHost: p.FromHost, FromHost: p.ToHost,
				}
				first, err := firewall.Evaluate(p, chains)
				if err != nil {
					return err
				}
				reply, err := firewall.Evaluate(answer, chains)
				if err != nil {
					return err
				}
				all = append(all, walked{result(first), result(reply)})
			}
			return nil
		})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// journey is a packet on its way, and its reply.
type journey struct {
	flow
	packet firewall.Packet
	id     uint16 // of an echo request
	walked
	got fate

	see, client, server int       // sockets: all packets at the destination, the sender's, the receiver's; -1: none
	answering           bool      // the receiver has answered
	deadline            time.Time // until which the packet, or after it its reply, is waited for
}

// send sends one packet of each flow, and waits until they and their replies have arrived, or for
// as long as they are expected to take.
func (b *walkBed) send(flows []flow, expected func(packets []firewall.Packet) []walked) (all []*journey) {
	b.t.Helper()
	var packets []firewall.Packet
	for _, f := range flows {
		b.id++
		p := f.packet
		if p.Protocol == unix.IPPROTO_ICMP {
			p.ICMPType = 8
		} else {
			p.SrcPort, p.DstPort = 20000+b.id, f.port
		}
		packets = append(packets, p)
		all = append(all, &journey{flow: f, packet: p, id: b.id, see: -1, client: -1, server: -1})
	}
	for i, w := range expected(packets) {
		all[i].walked = w
	}
	var away []*journey
	for _, j := range all {
		defer j.close()
		if b.depart(j) {
			away = append(away, j)
		}
	}
	for len(away) > 0 {
		away = slices.DeleteFunc(away, func(j *journey) bool { return j.ended(b) })
		time.Sleep(time.Millisecond)
	}
	return all
}

// depart sends the packet of a journey, unless the sender's own rules refuse it.
func (b *walkBed) depart(j *journey) bool {
	b.t.Helper()
	p := j.packet
	j.see, j.deadline = b.raw(j.to(b), p.Protocol), patience(j.first)
	if p.Protocol == unix.IPPROTO_ICMP {
		j.client = b.raw(j.from(b), p.Protocol)
		message := []byte{8, 0, 0, 0, byte(j.id >> 8), byte(j.id), 0, 1, 'w', 'a', 'l', 'k'}
		sum := ^checksum(message)
		message[2], message[3] = byte(sum>>8), byte(sum)
		b.must(unix.Sendto(j.client, message, 0, &unix.SockaddrInet4{Addr: p.Dst.As4()}))
		return true
	}
	kind := unix.SOCK_STREAM
	if p.Protocol == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	j.server = b.socket(j.to(b), kind, p.Dst, p.DstPort)
	j.client = b.socket(j.from(b), kind, p.Src, p.SrcPort)
	if kind == unix.SOCK_STREAM {
		b.must(unix.Listen(j.server, 1))
	}
	if err := unix.Connect(j.client, &unix.SockaddrInet4{Port: int(p.DstPort), Addr: p.Dst.As4()}); err != nil && err != unix.EINPROGRESS {
		return false
	}
	if kind == unix.SOCK_DGRAM {
		unix.Write(j.client, []byte("walk")) // refused by this host's own rules
	}
	return true
}

// patience returns until when a packet is waited for, by what is expected of it.
func patience(r Passage) time.Time {
	if r.Dropped != nil || r.Unclear != nil {
		return time.Now().Add(120 * time.Millisecond)
	}
	return time.Now().Add(5 * time.Second)
}

// ended looks whether the packet or its reply has arrived, and reports whether neither is waited
// for any longer.
func (j *journey) ended(b *walkBed) bool {
	late := time.Now().After(j.deadline) // before the look
	if !j.got.arrives {
		if j.got.source, j.got.arrives = j.arrived(b); j.got.arrives {
			j.deadline = patience(j.reply)
			return false
		}
		return late
	}
	j.got.answered = j.answered(b)
	return j.got.answered || late
}

// arrived reports whether the packet has reached its destination, and the source that it has there.
func (j *journey) arrived(b *walkBed) (from netip.Addr, arrived bool) {
	for {
		from, body, ok := b.receive(j.see)
		switch {
		case !ok:
			return from, false
		case len(body) < 8:
		case j.packet.Protocol == unix.IPPROTO_ICMP:
			arrived = body[0] == 8 && binary.BigEndian.Uint16(body[4:]) == j.id
		default:
			// Masquerading keeps the source port if it is free.
			arrived = binary.BigEndian.Uint16(body) == j.packet.SrcPort && binary.BigEndian.Uint16(body[2:]) == j.packet.DstPort
		}
		if arrived {
			return from, true
		}
	}
}

// answered reports whether an echo reply or a datagram has come back, or the connection is
// established. The receiver of a datagram answers here.
func (j *journey) answered(b *walkBed) bool {
	buffer := make([]byte, 64)
	switch j.packet.Protocol {
	case unix.IPPROTO_ICMP:
		for {
			_, body, ok := b.receive(j.client)
			if !ok || len(body) >= 8 && body[0] == 0 && binary.BigEndian.Uint16(body[4:]) == j.id {
				return ok
			}
		}
	case unix.IPPROTO_UDP:
		if !j.answering {
			n, to, err := unix.Recvfrom(j.server, buffer, 0)
			if j.answering = err == nil; j.answering {
				unix.Sendto(j.server, buffer[:n], 0, to) // refused by this host's own rules
			}
		}
		n, _, err := unix.Recvfrom(j.client, buffer, 0)
		return err == nil && n == len("walk")
	default:
		_, err := unix.Getpeername(j.client)
		return err == nil
	}
}

func (j *journey) close() {
	for _, fd := range []int{j.see, j.client, j.server} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (b *walkBed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// raw opens a raw socket that sees all packets of a protocol that reach a namespace.
func (b *walkBed) raw(n *netns.Namespace, protocol uint8) (fd int) {
	b.t.Helper()
	b.in(n, func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		b.must(err)
	})
	return fd
}

func (b *walkBed) socket(n *netns.Namespace, kind int, at netip.Addr, port uint16) (fd int) {
	b.t.Helper()
	b.in(n, func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		b.must(err)
		b.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		b.must(unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: at.As4()}))
	})
	return fd
}

// receive reads a packet from a raw socket: its source and what follows the IP header.
func (b *walkBed) receive(fd int) (from netip.Addr, body []byte, ok bool) {
	buffer := make([]byte, 2048)
	n, _, err := unix.Recvfrom(fd, buffer, 0)
	if err == syscall.EAGAIN || err == syscall.EINTR || n < 20 {
		return from, nil, false
	}
	b.must(err)
	header := int(buffer[0]&0xf) * 4
	if header > n {
		return from, nil, false
	}
	return netip.AddrFrom4([4]byte(buffer[12:16])), buffer[header:n], true
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// TestWalkAgreesWithTheKernel sends packets through a host with many rulesets, made by the tools of
// each packet filter. Where the walk has a result, that is what a real packet experiences; and it
// has no result only where a row says so.
func TestWalkAgreesWithTheKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	for _, tool := range []string{"nft", "iptables-nft", "iptables-legacy"} {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("needs %s", tool)
			}
			b := newWalkBed(t)
			// Neighbours are resolved before, so that no packet waits for that.
			for _, j := range b.send(flows(), func(p []firewall.Packet) []walked { return make([]walked, len(p)) }) {
				if !j.got.arrives || !j.got.answered {
					t.Fatalf("without rules, %s %d does not arrive: %+v", j.name, j.packet.Protocol, j.got)
				}
			}
			for _, c := range walkRulesets() {
				if slices.Contains(c.tools(), tool) {
					t.Run(c.name, func(t *testing.T) {
						b.t = t
						b.reset()
						b.load(tool, c)
						b.compare(c)
					})
				}
			}
		})
	}
}

// load makes the rules of a ruleset with a tool.
func (b *walkBed) load(tool string, c walkRuleset) {
	b.t.Helper()
	if tool != "nft" {
		b.sh(b.host, "iptables() { "+tool+" \"$@\"; }\n"+c.iptables)
		return
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(c.nft)
	var out bytes.Buffer
	cmd.Stderr = &out
	var err error
	b.in(b.host, func() { err = cmd.Run() })
	if err != nil && c.optional {
		b.t.Skipf("not supported here: %s", out.String())
	}
	if err != nil {
		b.t.Fatalf("%v: %s", err, out.String())
	}
}

// compare sends one packet of each flow.
func (b *walkBed) compare(c walkRuleset) {
	b.t.Helper()
	unclear := map[string]bool{}
	for _, j := range b.send(flows(), func(p []firewall.Packet) []walked { return b.walk(p...) }) {
		name := fmt.Sprintf("%s %s", j.name, map[uint8]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[j.packet.Protocol])
		check := func(what string, r Passage, arrived bool) {
			switch {
			case r.Dropped != nil && arrived:
				b.t.Errorf("%s %s arrives, though the walk says that %+v drops it", name, what, *r.Dropped)
			case r.Dropped == nil && r.Unclear == nil && !arrived:
				b.t.Errorf("%s %s does not arrive, though the walk says that nothing drops it", name, what)
			case r.Dropped == nil && r.Unclear != nil:
				unclear[name+" "+what] = true
				if !c.expectsUnclear(name + " " + what) {
					b.t.Errorf("%s %s: the walk has no result because of %+v", name, what, *r.Unclear)
				}
			}
		}
		check("first", j.first, j.got.arrives)
		if j.first.Dropped == nil && j.first.Unclear == nil && j.got.arrives {
			check("reply", j.reply, j.got.answered)
			// Masquerading does not change the source of this host's own packets.
			if translated := j.got.source != j.packet.Src; translated != (j.first.Translated != nil) && (j.name != "tunnel out" || translated) {
				b.t.Errorf("%s comes from %s: translated %v, the walk says %+v", name, j.got.source, translated, j.first.Translated)
			}
		}
	}
	for _, want := range c.unclear {
		found := false
		for name := range unclear {
			found = found || strings.HasPrefix(name, want)
		}
		if !found {
			b.t.Errorf("%s: the walk has a result, though it cannot know", want)
		}
	}
}

// TestReadingMakesNoTables: following packets changes no rules, and creates no tables of either
// packet filter, which the tools of some would do when they list them.
func TestReadingMakesNoTables(t *testing.T) {
	b := newWalkBed(t)
	for _, rules := range []string{"", "iptables-nft -P FORWARD DROP", "nft add table inet t; nft add chain inet t c '{ type filter hook forward priority 0; policy drop; }'"} {
		b.sh(b.host, "nft flush ruleset\n"+rules)
		before := b.sh(b.host, "nft list ruleset")
		first := b.walk(flows()[0].packet)[0].first
		if (first.Dropped != nil) != (rules != "") {
			t.Errorf("%s: %+v", rules, first)
		}
		b.in(b.host, func() {
			in := &Inputs{}
			in.Legacy = newInput(t.Context(), "rules", localLimit, readLegacy)
			if first.Dropped != nil {
				in.ruleText(t.Context(), *first.Dropped, firewall.RuleRef{Chain: first.Dropped.Chain, Number: 1, Handle: 99})
			}
			if names, err := iptables.LegacyTables(firewall.IPv4); err != nil || len(names) > 0 {
				t.Errorf("%s: legacy tables %v, %v", rules, names, err)
			}
		})
		if after := b.sh(b.host, "nft list ruleset"); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", rules, before, after)
		}
	}
}
