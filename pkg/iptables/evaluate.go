package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// stepOf evaluates a rule for a packet. Conditions and targets that are not known are Maybe and
// PassOrDrop.
func stepOf(w words, chains table, p firewall.Packet) firewall.Step {
	s := firewall.Step{Met: firewall.Yes, Do: firewall.Next}
	if !w.ok {
		s.Met = firewall.Maybe
	}
	var match string // that the options belong to
	// An unknown option came before, and no other match after it. Its value may look like an option.
	var strange, after bool
	for list := w.list; len(list) > 0; {
		not := list[0] == "!"
		if not {
			list = list[1:]
		}
		if len(list) == 0 {
			s.Met = s.Met.And(firewall.Maybe)
			break
		}
		if option := list[0]; (option == "-j" || option == "-g") && len(list) > 1 {
			rest := list[2:]
			if strange && (slices.Contains(rest, "-j") || slices.Contains(rest, "-g")) {
				s.Do = firewall.PassOrDrop
				return s
			}
			target(&s, option, list[1], rest, chains)
			return s // the rest are options of the target
		}
		met, n := firewall.Maybe, 0
		if match == "" || isPlain(match) || !strings.HasPrefix(list[0], "--") {
			met, n = condition(list, p)
		}
		if n == 0 {
			met, n, strange, after = firewall.Maybe, 1, true, true
		} else if list[0] == "-m" {
			match, after = list[1], false
		}
		if not {
			met = firewall.Yes - met
		}
		if after {
			met = firewall.Maybe
		}
		if s.Met = s.Met.And(met); s.Met == firewall.No {
			return s
		}
		list = list[n:]
	}
	return s
}

// target sets the action of a target with its options.
func target(s *firewall.Step, option, name string, options []string, chains table) {
	if do, chain, ends := actionOf(option, name, chains); ends {
		s.Do, s.Chain = do, chain
		return
	}
	if _, s.Sets = firewall.TargetAction(name); name == "CT" && !slices.Contains(options, "--notrack") {
		s.Sets = 0
	}
}

// actionOf returns the action of a target. ends is false if packets continue with the next rule.
func actionOf(option, target string, chains table) (do firewall.Action, chain string, ends bool) {
	if chains.has(target) {
		if option == "-g" {
			return firewall.GoTo, target, true
		}
		return firewall.Jump, target, true
	}
	do, _ = firewall.TargetAction(target)
	return do, "", do != firewall.Next
}

// isPlain reports whether a match always applies, apart from its options.
func isPlain(match string) bool {
	switch match {
	case "tcp", "udp", "icmp", "icmp6", "comment", "conntrack", "state", "multiport", "addrtype", "mark", "iprange", "pkttype":
		return true
	}
	return false
}

// protocolNumber returns the number of a protocol that may be in listings by name.
func protocolNumber(name string) (number uint8, known bool) {
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		return uint8(n), true
	}
	switch name {
	case "all":
		return 0, true
	case "tcp":
		return unix.IPPROTO_TCP, true
	case "udp":
		return unix.IPPROTO_UDP, true
	case "icmp":
		return unix.IPPROTO_ICMP, true
	case "udplite":
		return unix.IPPROTO_UDPLITE, true
	case "esp":
		return unix.IPPROTO_ESP, true
	case "ah":
		return unix.IPPROTO_AH, true
	case "sctp":
		return unix.IPPROTO_SCTP, true
	case "gre":
		return unix.IPPROTO_GRE, true
	case "ipv6-icmp", "icmpv6":
		return unix.IPPROTO_ICMPV6, true
	case "ipv6":
		return unix.IPPROTO_IPV6, true
	case "dccp":
		return unix.IPPROTO_DCCP, true
	case "igmp":
		return unix.IPPROTO_IGMP, true
	case "ipip", "ipencap":
		return unix.IPPROTO_IPIP, true
	case "ospf":
		return 89, true
	case "vrrp":
		return 112, true
	}
	return 0, false
}

// condition evaluates the condition at the head of list for a packet, and returns the number of its
// words; 0 if the option is unknown.
func condition(list []string, p firewall.Packet) (met firewall.Met, words int) {
	switch list[0] {
	case "--syn":
		return tcpFlags("FIN,SYN,RST,ACK", "SYN", p), 1
	case "-f": // a fragment that is not the first
		return firewall.No, 1
	case "--tcp-flags":
		if len(list) > 2 {
			return tcpFlags(list[1], list[2], p), 3
		}
	}
	if len(list) < 2 {
		return firewall.Maybe, 0
	}
	met, known := conditionOf(list[0], list[1], p)
	if !known {
		return firewall.Maybe, 0
	}
	return met, 2
}

// conditionOf evaluates a condition with one value, and reports whether the option is known.
func conditionOf(option, value string, p firewall.Packet) (met firewall.Met, known bool) {
	var holds, certain bool
	switch option {
	case "-m":
		holds, certain = true, isPlain(value)
	case "--comment":
		holds, certain = true, true
	case "-s":
		holds, certain = containsAddress(value, p.Src)
	case "-d":
		holds, certain = containsAddress(value, p.Dst)
	case "--src-range":
		holds, certain = inRange(value, p.Src)
	case "--dst-range":
		holds, certain = inRange(value, p.Dst)
	case "-i":
		holds, certain = matchesDevice(value, p.In), p.In != ""
	case "-o":
		holds, certain = matchesDevice(value, p.Out), p.Out != ""
	case "-p":
		holds, certain = isProtocol(value, p.Protocol)
	case "--dport", "--dports", "--destination-ports":
		holds, certain = inPorts(value, p.DstPort)
	case "--sport", "--sports", "--source-ports":
		holds, certain = inPorts(value, p.SrcPort)
	case "--ports":
		source, ok := inPorts(value, p.SrcPort)
		destination, ok2 := inPorts(value, p.DstPort)
		holds, certain = source && ok || destination && ok2, source && ok || destination && ok2 || ok && ok2
	case "--icmp-type":
		holds, certain = isICMPType(value, p)
	case "--mark":
		holds, certain = isMark(value, p)
	case "--ctstate", "--state":
		return inState(strings.Split(value, ","), p), true
	case "--ctdir":
		holds, certain = (value == "REPLY") == p.Reply, p.Tracking == firewall.Tracked
	case "--dst-type":
		holds, certain = isType(value, p.ToHost, p.Dst)
	case "--src-type":
		holds, certain = isType(value, p.FromHost, p.Src)
	case "--pkt-type":
		holds, certain = value == "unicast" || value == "host", !p.FromHost
	default:
		return firewall.Maybe, false
	}
	switch {
	case !certain:
		return firewall.Maybe, true
	case holds:
		return firewall.Yes, true
	}
	return firewall.No, true
}

// containsAddress reports whether a prefix contains an address, and whether that is certain.
func containsAddress(prefix string, a netip.Addr) (contains, certain bool) {
	var m firewall.Match
	ok := readMatch(&m, prefix, false)
	return !m.Prefix.IsValid() || m.Prefix.Contains(a), ok && (a.IsValid() || !m.Prefix.IsValid())
}

func inRange(value string, a netip.Addr) (within, certain bool) {
	low, high, _ := strings.Cut(value, "-")
	from, err := netip.ParseAddr(low)
	to, err2 := netip.ParseAddr(high)
	return from.Compare(a) <= 0 && a.Compare(to) <= 0, err == nil && err2 == nil && a.IsValid()
}

func matchesDevice(pattern, device string) bool {
	if start, all := strings.CutSuffix(pattern, "+"); all {
		return strings.HasPrefix(device, start)
	}
	return pattern == device
}

func isProtocol(value string, protocol uint8) (holds, certain bool) {
	number, known := protocolNumber(value)
	if known && number == 0 {
		return true, true
	}
	return number == protocol, known && protocol != 0
}

// inPorts reports whether a port is among ports and ranges: 53,8000:9000.
func inPorts(list string, port uint16) (holds, certain bool) {
	certain = port != 0
	for s := range strings.SplitSeq(list, ",") {
		low, high, ranged := strings.Cut(s, ":")
		if !ranged {
			high = low
		}
		if ranged && high == "" {
			high = "65535"
		}
		if ranged && low == "" {
			low = "0"
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		certain = certain && err == nil && err2 == nil
		holds = holds || from <= uint64(port) && uint64(port) <= to
	}
	return holds, certain
}

func isICMPType(value string, p firewall.Packet) (holds, certain bool) {
	if value == "any" || value == "255" {
		return true, true
	}
	kind, code, coded := strings.Cut(value, "/")
	k, err := strconv.ParseUint(kind, 10, 8)
	if !coded {
		code = "0"
	}
	c, err2 := strconv.ParseUint(code, 10, 8)
	return uint8(k) == p.ICMPType && c == 0, err == nil && err2 == nil && p.Protocol == unix.IPPROTO_ICMP
}

// isMark compares the mark, which is 0 or unknown.
func isMark(value string, p firewall.Packet) (holds, certain bool) {
	mark, mask, masked := strings.Cut(value, "/")
	m, err := strconv.ParseUint(mark, 0, 32)
	k := uint64(1<<32 - 1)
	var err2 error
	if masked {
		k, err2 = strconv.ParseUint(mask, 0, 32)
	}
	return m == 0, err == nil && err2 == nil && (p.Unmarked || k == 0)
}

// inState evaluates a list of states of the connection.
func inState(states []string, p firewall.Packet) firewall.Met {
	among := func(s string) bool { return slices.Contains(states, s) }
	switch {
	case p.Tracking == firewall.MayTracked:
		return firewall.Maybe
	case p.Tracking == firewall.NotYet && among("INVALID") || p.Tracking == firewall.Tracked && p.Reply && among("ESTABLISHED") ||
		p.Tracking == firewall.Tracked && !p.Reply && among("NEW"):
		return firewall.Yes
	case p.Tracking == firewall.Tracked && p.Reply && (among("SNAT") || among("DNAT")):
		return firewall.Maybe
	}
	return firewall.No
}

// isType evaluates a list of types of an address (RTN_* in the kernel).
func isType(value string, local bool, a netip.Addr) (holds, certain bool) {
	is := "UNICAST"
	if local {
		is = "LOCAL"
	}
	return slices.Contains(strings.Split(value, ","), is), local || a.IsValid()
}

// tcpFlags evaluates which of the flags in mask are set: exactly those of want.
func tcpFlags(mask, want string, p firewall.Packet) firewall.Met {
	m, ok := parseTCPFlags(mask)
	w, ok2 := parseTCPFlags(want)
	switch {
	case p.Protocol != unix.IPPROTO_TCP || !ok || !ok2:
		return firewall.Maybe
	case p.TCPFlags()&m == w:
		return firewall.Yes
	}
	return firewall.No
}

func parseTCPFlags(list string) (flags uint8, ok bool) {
	for name := range strings.SplitSeq(list, ",") {
		i := slices.Index([]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"}, name)
		switch {
		case i >= 0:
			flags |= 1 << i
		case name == "ALL":
			flags |= 0x3f
		case name != "NONE":
			return 0, false
		}
	}
	return flags, true
}
