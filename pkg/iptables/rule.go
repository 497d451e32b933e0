package iptables

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"flanneld/pkg/firewall"
)

// spec is a rule in normal form, so that equivalent rules are equal however iptables prints them.
// The rule's verdict is not set; target replaces it.
type spec struct {
	rule    firewall.Rule
	target  string // a verdict or a chain
	random  bool   // with random source ports
	comment string
	// protocol is set if and only if there is a port.
	protocol string
}

const (
	randomPorts = "--random-fully"
	udp         = "udp"
)

// specOf returns the normal form of a wanted rule.
func specOf(r firewall.Rule, comment string) spec {
	s := spec{rule: r, comment: comment, random: r.Verdict == firewall.MasqueradeRandom}
	s.target = [...]string{
		firewall.Return: "RETURN", firewall.Accept: "ACCEPT", firewall.Discard: "DROP",
		firewall.Masquerade: "MASQUERADE", firewall.MasqueradeRandom: "MASQUERADE",
	}[r.Verdict]
	if r.Port != 0 {
		s.protocol = udp
	}
	s.rule.Verdict = 0
	s.rule.Src, s.rule.Dst = normalize(r.Src), normalize(r.Dst)
	return s
}

// normalize removes what iptables does not print.
func normalize(m firewall.Match) firewall.Match {
	if m.Prefix.Bits() == 0 && !m.Not {
		return firewall.Match{}
	}
	return m
}

// String returns the rule in the syntax of iptables.
func (s spec) String() string {
	var b strings.Builder
	if m := s.rule.Mark; m != 0 {
		fmt.Fprintf(&b, "-m mark --mark %#x/%#x ", m, m)
	}
	for _, a := range []struct {
		option string
		firewall.Match
	}{{"-s", s.rule.Src}, {"-d", s.rule.Dst}} {
		if a.Not {
			b.WriteString("! ")
		}
		if a.Prefix.IsValid() {
			b.WriteString(a.option + " " + a.Prefix.String() + " ")
		}
	}
	if s.rule.Port != 0 {
		fmt.Fprintf(&b, "-p %[1]s -m %[1]s --dport %[2]d ", udp, s.rule.Port)
	}
	if s.comment != "" {
		b.WriteString(`-m comment --comment "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s.comment) + `" `)
	}
	b.WriteString("-j " + s.target)
	if s.random {
		b.WriteString(" " + randomPorts)
	}
	return b.String()
}

// parseRule parses a rule from iptables-save, without its "-A CHAIN". Of a rule in an unknown form,
// only the target is set.
func parseRule(text string) (s spec, known bool) {
	words, known := split(text)
	for len(words) > 0 {
		not := words[0] == "!"
		if not {
			words = words[1:]
		}
		n, ok := s.option(words, not)
		known = known && ok
		words = words[n:]
	}
	return s, known && s.target != "" && (s.protocol != "") == (s.rule.Port != 0)
}

// option parses one option and its argument at the head of words, and returns the number of words.
// An unknown option counts as one word, so that a target after it is found.
func (s *spec) option(words []string, not bool) (n int, ok bool) {
	if len(words) == 0 {
		return 0, false
	}
	if words[0] == randomPorts && s.target == "MASQUERADE" && !not {
		s.random = true
		return 1, true
	}
	if len(words) == 1 {
		return 1, false
	}
	option, value, n := words[0], words[1], 2
	if value == "!" && !not && len(words) > 2 { // as releases before 1.4.3 print it
		not, value, n = true, words[2], 3
	}
	switch {
	case option == "-s":
		ok = readMatch(&s.rule.Src, value, not)
	case option == "-d":
		ok = readMatch(&s.rule.Dst, value, not)
	case option == "-j" || option == "-g":
		ok = option == "-j" && s.target == ""
		s.target = value
	case option == "-m":
		ok = value == "mark" || value == "comment" || value == udp
	case option == "-p":
		ok = value == udp && s.protocol == ""
		s.protocol = value
	case option == "--dport":
		port, err := strconv.ParseUint(value, 10, 16)
		ok = err == nil && s.rule.Port == 0
		s.rule.Port = uint16(port)
	case option == "--mark":
		ok = s.readMark(value)
	case option == "--comment":
		ok = s.comment == ""
		s.comment = value
	default:
		return 1, false
	}
	return n, ok && (!not || option == "-s" || option == "-d")
}

// readMark parses a mark whose mask has the same bits.
func (s *spec) readMark(value string) bool {
	mark, mask, both := strings.Cut(value, "/")
	m, err := strconv.ParseUint(mark, 0, 32)
	k, err2 := strconv.ParseUint(mask, 0, 32)
	if !both || err != nil || err2 != nil || m != k || m == 0 || s.rule.Mark != 0 {
		return false
	}
	s.rule.Mark = uint32(m)
	return true
}

// readMatch parses an address, alone or with a prefix length or a mask.
func readMatch(m *firewall.Match, value string, not bool) bool {
	address, length, _ := strings.Cut(value, "/")
	addr, err := netip.ParseAddr(address)
	if err != nil || addr.Zone() != "" || m.Prefix.IsValid() {
		return false
	}
	bits := addr.BitLen()
	if mask, err := netip.ParseAddr(length); err == nil && mask.BitLen() == bits {
		if bits = ones(mask.AsSlice()); bits < 0 {
			return false
		}
	} else if length != "" {
		if bits, err = strconv.Atoi(length); err != nil {
			return false
		}
	}
	p, err := addr.Prefix(bits)
	*m = normalize(firewall.Match{Prefix: p, Not: not})
	return err == nil
}

// ones returns the number of leading ones of a mask, or -1 if it has others.
func ones(mask []byte) int {
	n, _ := net.IPMask(mask).Size()
	if n == 0 && slices.Max(mask) > 0 {
		return -1
	}
	return n
}

// split splits a rule into words, at spaces outside quotes.
func split(text string) (words []string, ok bool) {
	var word strings.Builder
	var begun, quoted bool
	for i := 0; i <= len(text); i++ {
		switch {
		case i == len(text) || !quoted && (text[i] == ' ' || text[i] == '\t'):
			if begun && !quoted {
				words = append(words, word.String())
			}
			begun = false
			word.Reset()
			continue
		case text[i] == '"':
			quoted = !quoted
		case quoted && text[i] == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
		default:
			word.WriteByte(text[i])
		}
		begun = true
	}
	return words, !quoted
}
