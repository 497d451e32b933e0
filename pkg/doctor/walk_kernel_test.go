package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
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

// walk returns what the rules say about a new packet and its reply.
func (b *walkBed) walk(p firewall.Packet) (first, reply Passage) {
	b.t.Helper()
	p.Unmarked, p.InBridge, p.OutBridge = true, p.In == "docker0", p.Out == "docker0"
	var err error
	b.in(b.host, func() {
		for device, index := range map[string]*int{p.In: &p.InIndex, p.Out: &p.OutIndex} {
			if i, err := net.InterfaceByName(device); err == nil {
				*index = i.Index
			}
		}
		var legacy *iptables.Listing
		if legacy, err = readLegacy(context.Background()); err != nil {
			return
		}
		var k nftables.Keeper
		defer k.Close()
		err = k.View(context.Background(), firewall.IPv4, func(chains []firewall.BaseChain) (err error) {
			chains = append(chains, legacy.BaseChains()...)
			var path firewall.Path
			if path, err = firewall.Evaluate(p, chains); err != nil {
				return err
			}
			first = result(path)
			answer := firewall.Packet{
				In: p.Out, Out: p.In, InIndex: p.OutIndex, OutIndex: p.InIndex, Src: p.Dst, Dst: p.Src, Protocol: p.Protocol,
				SrcPort: p.DstPort, DstPort: p.SrcPort, Reply: true, Unmarked: true, InBridge: p.OutBridge, OutBridge: p.InBridge, ToHost: p.FromHost, FromHost: p.ToHost,
			}
			path, err = firewall.Evaluate(answer, chains)
			reply = result(path)
			return err
		})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return first, reply
}

// send sends a packet of a flow, and waits until it and its answer have arrived, or for as long as
// they are expected to take.
func (b *walkBed) send(f flow, p firewall.Packet, wait, answerWait time.Duration) (r fate) {
	b.t.Helper()
	see, answer := b.raw(f.to(b), p.Protocol), -1
	defer unix.Close(see)
	switch p.Protocol {
	case unix.IPPROTO_ICMP:
		answer = b.raw(f.from(b), p.Protocol)
		defer unix.Close(answer)
		message := []byte{8, 0, 0, 0, byte(b.id >> 8), byte(b.id), 0, 1, 'w', 'a', 'l', 'k'}
		sum := ^checksum(message)
		message[2], message[3] = byte(sum>>8), byte(sum)
		b.must(unix.Sendto(answer, message, 0, &unix.SockaddrInet4{Addr: p.Dst.As4()}))
	default:
		kind := unix.SOCK_STREAM
		if p.Protocol == unix.IPPROTO_UDP {
			kind = unix.SOCK_DGRAM
		}
		server := b.socket(f.to(b), kind, p.Dst, p.DstPort)
		defer unix.Close(server)
		client := b.socket(f.from(b), kind, p.Src, p.SrcPort)
		defer unix.Close(client)
		if kind == unix.SOCK_STREAM {
			b.must(unix.Listen(server, 1))
		}
		if err := unix.Connect(client, &unix.SockaddrInet4{Port: int(p.DstPort), Addr: p.Dst.As4()}); err != nil && err != unix.EINPROGRESS {
			return r // refused at once, by this host's own rules
		}
		if kind == unix.SOCK_DGRAM {
			unix.Write(client, []byte("walk")) // refused by this host's own rules
		}
		defer func() {
			if !r.arrives {
				return
			}
			if kind == unix.SOCK_DGRAM {
				buffer := make([]byte, 64)
				_, to, err := unix.Recvfrom(server, buffer, 0)
				b.must(err)
				unix.Sendto(server, buffer[:4], 0, to) // refused by this host's own rules
			}
			r.answered = b.answered(client, kind, answerWait)
		}()
	}
	r.arrives = poll(wait, func() bool {
		from, body, ok := b.receive(see)
		hit := ok && len(body) >= 8
		switch {
		case !hit:
		case p.Protocol == unix.IPPROTO_ICMP:
			hit = body[0] == 8 && body[4] == byte(b.id>>8) && body[5] == byte(b.id)
		default:
			// Masquerading keeps the source port if it is free.
			hit = uint16(body[2])<<8|uint16(body[3]) == p.DstPort && uint16(body[0])<<8|uint16(body[1]) == p.SrcPort
		}
		if hit {
			r.source = from
		}
		return hit
	})
	if p.Protocol == unix.IPPROTO_ICMP && r.arrives {
		r.answered = poll(answerWait, func() bool {
			_, body, ok := b.receive(answer)
			return ok && len(body) >= 8 && body[0] == 0 && body[4] == byte(b.id>>8) && body[5] == byte(b.id)
		})
	}
	return r
}

// answered reports whether a connection is established, or a datagram comes back.
func (b *walkBed) answered(client, kind int, wait time.Duration) bool {
	if kind == unix.SOCK_DGRAM {
		return poll(wait, func() bool {
			n, _, err := unix.Recvfrom(client, make([]byte, 64), 0)
			return err == nil && n == 4
		})
	}
	return poll(wait, func() bool {
		_, err := unix.Getpeername(client)
		return err == nil
	})
}

func (b *walkBed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// poll calls f until it returns true or the time is over.
func poll(limit time.Duration, f func() bool) bool {
	for end := time.Now().Add(limit); ; {
		if f() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(time.Millisecond)
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
	b := newWalkBed(t)
	// Neighbours are resolved before, so that no packet waits for that.
	for _, f := range flows() {
		b.id++
		p := f.packet
		p.SrcPort, p.DstPort = 20000+b.id, f.port
		if r := b.send(f, p, 10*time.Second, 10*time.Second); !r.arrives || !r.answered {
			t.Fatalf("without rules, %s %d does not arrive: %+v", f.name, p.Protocol, r)
		}
	}
	for _, c := range walkRulesets() {
		for _, tool := range c.tools() {
			t.Run(tool+"/"+c.name, func(t *testing.T) {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("needs %s", tool)
				}
				b.t = t
				b.reset()
				if tool == "nft" {
					cmd := exec.Command("nft", "-f", "-")
					cmd.Stdin = strings.NewReader(c.nft)
					var out bytes.Buffer
					cmd.Stderr = &out
					var err error
					b.in(b.host, func() { err = cmd.Run() })
					if err != nil && c.optional {
						t.Skipf("not supported here: %s", out.String())
					}
					if err != nil {
						t.Fatalf("%v: %s", err, out.String())
					}
				} else {
					b.sh(b.host, "iptables() { "+tool+" \"$@\"; }\n"+c.iptables)
				}
				b.compare(c)
			})
		}
	}
}

// compare sends one packet of each flow.
func (b *walkBed) compare(c walkRuleset) {
	b.t.Helper()
	unclear := map[string]bool{}
	for _, f := range flows() {
		b.id++
		p := f.packet
		if p.Protocol != unix.IPPROTO_ICMP {
			p.SrcPort, p.DstPort = 20000+b.id, f.port
		} else {
			p.ICMPType = 8
		}
		first, reply := b.walk(p)
		name := fmt.Sprintf("%s %s", f.name, map[uint8]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[p.Protocol])
		const long, short = 5 * time.Second, 120 * time.Millisecond
		wait := func(r Passage) time.Duration {
			if r.Dropped != nil || r.Unclear != nil {
				return short
			}
			return long
		}
		got := b.send(f, p, wait(first), wait(reply))
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
		check("first", first, got.arrives)
		if first.Dropped == nil && first.Unclear == nil && got.arrives {
			check("reply", reply, got.answered)
			// Masquerading does not change the source of this host's own packets.
			if translated := got.source != p.Src; translated != (first.Translated != nil) && (f.name != "tunnel out" || translated) {
				b.t.Errorf("%s comes from %s: translated %v, the walk says %+v", name, got.source, translated, first.Translated)
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
		first, _ := b.walk(flows()[0].packet)
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
