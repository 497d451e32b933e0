package iptables

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"flanneld/pkg/firewall"
)

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	text, err := t.run(ctx, "", t.save)
	if err != nil {
		return nil, err
	}
	l, err := parseListing(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.save, err)
	}
	return barriers(t.command, l, policies(text), p), nil
}

func barriers(command string, l listing, policies map[string]string, p firewall.Packet) (all []firewall.Barrier) {
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
		if policies[table+" "+chain] == "DROP" {
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

// policies returns the policies in a listing, by table and chain.
func policies(text string) map[string]string {
	all := map[string]string{}
	table := ""
	for text != "" {
		var line string
		line, text = nextLine(text)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			if f := strings.Fields(line[1:]); len(f) > 1 {
				all[table+" "+f[0]] = f[1]
			}
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
	switch {
	case chains.has(target) && option == "-g":
		return firewall.GoTo, target, true
	case chains.has(target):
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
	sure := func(met, known bool) (firewall.Met, bool) {
		switch {
		case !known:
			return firewall.Maybe, true
		case met:
			return firewall.Yes, true
		}
		return firewall.No, true
	}
	among := func(one string) (firewall.Met, bool) {
		return sure(slices.Contains(strings.Split(value, ","), one), true)
	}
	switch option {
	case "-m", "--comment":
		return firewall.Yes, true
	case "-s", "-d":
		address := p.Src
		if option == "-d" {
			address = p.Dst
		}
		var m firewall.Match
		ok := readMatch(&m, value, false)
		return sure(!m.Prefix.IsValid() || m.Prefix.Contains(address), ok && address.IsValid())
	case "-i":
		return sure(matchesDevice(value, p.In), p.In != "")
	case "-o":
		return sure(matchesDevice(value, p.Out), p.Out != "")
	case "-p":
		return sure(value == "all" || value == "udp" || value == "17", p.Protocol == protocolUDP)
	case "--dport", "--dports", "--destination-ports":
		return sure(inPorts(value, p.DstPort), p.DstPort != 0)
	case "--sport", "--sports", "--source-ports":
		return sure(inPorts(value, p.SrcPort), p.SrcPort != 0)
	case "--ctstate", "--state":
		return among("NEW")
	case "--dst-type":
		met, _ := among("LOCAL")
		return sure(met == firewall.Yes, p.ToHost)
	}
	return firewall.Maybe, false
}

// protocolUDP is the only protocol of packets that are evaluated.
const protocolUDP = 17

func matchesDevice(pattern, device string) bool {
	if start, all := strings.CutSuffix(pattern, "+"); all {
		return strings.HasPrefix(device, start)
	}
	return pattern == device
}

// inPorts reports whether a port is among ports and ranges: 53,8000:9000.
func inPorts(list string, port uint16) bool {
	for _, s := range strings.Split(list, ",") {
		low, high, ranged := strings.Cut(s, ":")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err == nil && err2 == nil && from <= uint64(port) && uint64(port) <= to {
			return true
		}
	}
	return false
}
