package iptables

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	l, drops, err := t.list(ctx)
	return barriers(t.command, l, drops, p), err
}

func barriers(command string, l listing, drops policies, p firewall.Packet) (all []firewall.Barrier) {
	last := "FORWARD"
	if p.ToHost {
		last = "INPUT"
	}
	for _, base := range [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"mangle", last}, {"filter", last}} {
		table, chain := base[0], base[1]
		if !l[table].has(chain) {
			continue
		}
		w := firewall.Walk{Steps: func(chain string) (steps []firewall.Step, err error) {
			if chain == firewall.Input.SharedChain() {
				return nil, nil // ours, which drops no packets of peers
			}
			for _, rule := range l[table][chain] {
				if s, ends := stepOf(rule, l[table], p); ends && s.Met != firewall.No {
					steps = append(steps, s)
				}
			}
			return steps, nil
		}}
		policy := firewall.Passes
		if drops[table+" "+chain] {
			policy = firewall.Drops
		}
		if fate, _ := w.Base(chain, policy); fate&firewall.Drops != 0 { // Steps cannot fail
			b := firewall.Barrier{Kind: command, Table: table, Chain: chain, Certain: fate == firewall.Drops}
			b.DetectTool(&w)
			all = append(all, b)
		}
	}
	return all
}

// stepOf evaluates a rule for a packet. ends is false if the rule only counts or marks.
func stepOf(text string, chains table, p firewall.Packet) (s firewall.Step, ends bool) {
	words, ok := split(text)
	s.Met = firewall.Yes
	if !ok {
		s.Met = firewall.Maybe
	}
	for i := 0; i < len(words); {
		not := words[i] == "!"
		if not {
			i++
		}
		if i+1 >= len(words) {
			break
		}
		option, value := words[i], words[i+1]
		i += 2
		if option == "-j" || option == "-g" {
			s.Do, s.Chain, ends = actionOf(option, value, chains)
			return s, ends // the rest are options of the target
		}
		met, known := conditionOf(option, value, p)
		switch {
		case !known:
			i-- // may be an option without a value
		case not:
			met = firewall.Yes - met
		}
		s.Met = s.Met.And(met)
	}
	return s, false
}

func actionOf(option, target string, chains table) (do firewall.Action, chain string, ends bool) {
	if chains.has(target) {
		if option == "-g" {
			return firewall.GoTo, target, true
		}
		return firewall.Jump, target, true
	}
	switch target {
	case "ACCEPT":
		return firewall.Pass, "", true
	case "DROP", "REJECT":
		return firewall.Drop, "", true
	case "RETURN":
		return firewall.Back, "", true
	case "LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CT", "NOTRACK", "TOS", "DSCP", "TTL", "CHECKSUM", "TCPMSS", "SET", "AUDIT":
		return 0, "", false
	}
	return firewall.PassOrDrop, "", true
}

// conditionOf evaluates a condition for a packet, and reports whether it is known to be an option
// with a value.
func conditionOf(option, value string, p firewall.Packet) (met firewall.Met, known bool) {
	among := func(one string) bool { return slices.Contains(strings.Split(value, ","), one) }
	var holds, certain bool
	switch option {
	case "-m", "--comment":
		holds, certain = true, true
	case "-s":
		holds, certain = containsAddress(value, p.Src)
	case "-d":
		holds, certain = containsAddress(value, p.Dst)
	case "-i":
		holds, certain = matchesDevice(value, p.In), p.In != ""
	case "-o":
		holds, certain = matchesDevice(value, p.Out), p.Out != ""
	case "-p":
		holds, certain = value == "all" || value == "udp" || value == "17", p.Protocol == unix.IPPROTO_UDP
	case "--dport", "--dports", "--destination-ports":
		holds, certain = inPorts(value, p.DstPort), p.DstPort != 0
	case "--sport", "--sports", "--source-ports":
		holds, certain = inPorts(value, p.SrcPort), p.SrcPort != 0
	case "--ctstate", "--state":
		holds, certain = among("NEW"), true
	case "--dst-type":
		holds, certain = among("LOCAL"), p.ToHost
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
	return !m.Prefix.IsValid() || m.Prefix.Contains(a), ok && a.IsValid()
}

func matchesDevice(pattern, device string) bool {
	if start, all := strings.CutSuffix(pattern, "+"); all {
		return strings.HasPrefix(device, start)
	}
	return pattern == device
}

// inPorts reports whether a port is among ports and ranges: 53,8000:9000.
func inPorts(list string, port uint16) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(s string) bool {
		low, high, ranged := strings.Cut(s, ":")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		return err == nil && err2 == nil && from <= uint64(port) && uint64(port) <= to
	})
}
