package doctor

import "strings"

// walkRuleset is a ruleset, in the language of iptables or of nft.
type walkRuleset struct {
	name          string
	iptables, nft string
	unclear       []string // beginnings of the packets for which the walk cannot have a result
	optional      bool     // some kernels and tools do not support it
}

func (c walkRuleset) tools() []string {
	if c.nft != "" {
		return []string{"nft"}
	}
	return []string{"iptables-nft", "iptables-legacy"}
}

func (c walkRuleset) expectsUnclear(name string) bool {
	for _, prefix := range c.unclear {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// walkRulesets returns the rulesets of TestWalkAgreesWithTheKernel.
func walkRulesets() []walkRuleset {
	return append(iptablesRulesets(), nftRulesets()...)
}

func iptablesRulesets() []walkRuleset {
	return []walkRuleset{
		{name: "policy", iptables: "iptables -P FORWARD DROP"},
		{name: "accepts", iptables: "iptables -P FORWARD DROP; iptables -A FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables -A FORWARD -d 10.42.0.0/16 -j ACCEPT"},
		{name: "one way", iptables: "iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -A FORWARD -i flannel.1 -j DROP"},
		{name: "replies only from one side", iptables: "iptables -A FORWARD -i flannel.1 -m state --state ESTABLISHED -j DROP"},
		{name: "reject UDP", iptables: "iptables -A FORWARD -i flannel.1 -p udp -j REJECT"},
		{name: "echo requests", iptables: "iptables -A FORWARD -p icmp --icmp-type 8 -j DROP"},
		{name: "echo replies", iptables: "iptables -A FORWARD -p icmp --icmp-type echo-reply -j DROP"},
		{name: "any ICMP", iptables: "iptables -A FORWARD -p icmp -m icmp --icmp-type any -j DROP"},
		{name: "SYN", iptables: "iptables -A FORWARD -p tcp --syn -j DROP"},
		{name: "SYN and ACK", iptables: "iptables -A FORWARD -p tcp --tcp-flags SYN,ACK SYN,ACK -j DROP"},
		{name: "not SYN", iptables: "iptables -A FORWARD -p tcp ! --syn -j DROP"},
		{name: "ports", iptables: "iptables -A FORWARD -p tcp -m multiport --dports 80,440:450 -j DROP; iptables -A FORWARD -p udp ! --dport 443 -j DROP"},
		{name: "source ports", iptables: "iptables -A FORWARD -p tcp --sport 443 -j DROP; iptables -A FORWARD -p udp -m multiport --ports 443 -j DROP"},
		{name: "chains", iptables: "iptables -N A; iptables -N B; iptables -A A -p icmp -j RETURN; iptables -A A -g B; iptables -A B -p udp -j ACCEPT; iptables -A FORWARD -j A; iptables -A FORWARD -p tcp -j DROP"},
		{name: "mark", iptables: "iptables -A FORWARD -m mark ! --mark 0 -j DROP; iptables -A FORWARD -p udp -m mark --mark 0/0xff -j DROP"},
		{name: "mark is set", iptables: "iptables -t mangle -A PREROUTING -p udp -j MARK --set-mark 7; iptables -A FORWARD -m mark --mark 7 -j DROP", unclear: []string{"out udp", "in udp", "outside"}},
		{name: "raw", iptables: "iptables -t raw -A PREROUTING -i flannel.1 -p udp -j DROP"},
		{name: "raw state", iptables: "iptables -t raw -A PREROUTING -p udp -m conntrack --ctstate INVALID -j DROP; iptables -t raw -A PREROUTING -p tcp -m conntrack --ctstate NEW -j DROP"},
		{name: "no tracking", iptables: "iptables -t raw -A PREROUTING -p udp -j NOTRACK; iptables -A FORWARD -p udp -m conntrack --ctstate NEW -j DROP", unclear: []string{"out udp", "in udp", "outside"}},
		{name: "mangle", iptables: "iptables -t mangle -A FORWARD -o flannel.1 -p tcp -j DROP; iptables -t mangle -A POSTROUTING -o docker0 -p icmp -j DROP"},
		{name: "security", iptables: "iptables -t security -A FORWARD -p tcp -j DROP"},
		{name: "input policy", iptables: "iptables -P INPUT DROP; iptables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT; iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -p tcp --dport 22 -j ACCEPT"},
		{name: "input opened", iptables: "iptables -P INPUT DROP; iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables -A INPUT -s 192.0.2.8 -p udp --dport 8472 -j ACCEPT"},
		{name: "output", iptables: "iptables -A OUTPUT -p udp --dport 8472 -j DROP"},
		{name: "output rejects", iptables: "iptables -A OUTPUT -p udp --dport 8472 -o eth0 -j REJECT"},
		{name: "postrouting", iptables: "iptables -t mangle -A POSTROUTING -p udp --dport 8472 -j DROP"},
		{name: "docker masquerades", iptables: "iptables -t nat -A POSTROUTING -s 10.42.7.0/24 ! -o docker0 -j MASQUERADE"},
		{name: "flannel masquerades", iptables: "iptables -t nat -A POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j RETURN; iptables -t nat -A POSTROUTING -s 10.42.0.0/16 -j MASQUERADE"},
		{name: "SNAT", iptables: "iptables -t nat -A POSTROUTING -o flannel.1 -j SNAT --to-source 10.42.8.1"},
		{name: "redirected", iptables: "iptables -t nat -A PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 80", unclear: []string{"out tcp", "in tcp"}},
		{name: "DNAT of others", iptables: "iptables -t nat -N DOCKER; iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER; iptables -t nat -A DOCKER ! -i docker0 -p tcp --dport 443 -j DNAT --to 10.42.7.2"},
		{name: "types of addresses", iptables: "iptables -A INPUT -m addrtype --dst-type LOCAL -p udp -j DROP; iptables -A FORWARD -m addrtype ! --dst-type LOCAL -p tcp -j DROP; iptables -A FORWARD -m addrtype --src-type LOCAL -j DROP"},
		{name: "ranges", iptables: "iptables -A FORWARD -m iprange --src-range 10.42.7.1-10.42.7.9 -p tcp -j DROP"},
		{name: "bridge port", iptables: "iptables -A FORWARD -m physdev --physdev-in vc -j DROP", unclear: []string{"out", "in", "outside"}},
		{name: "limit", iptables: "iptables -A FORWARD -p icmp -m limit --limit 1/hour --limit-burst 1 -j DROP", unclear: []string{"out icmp", "in icmp"}},
		{name: "decided after what is unknown", iptables: "iptables -A FORWARD -m statistic --mode random --probability 0.5 -j DROP; iptables -A FORWARD -j DROP"},
		{name: "decided before what is unknown", iptables: "iptables -A FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables -A FORWARD -m statistic --mode random --probability 0.5 -j DROP", unclear: []string{"outside udp reply"}},
		{name: "log", iptables: "iptables -A FORWARD -j LOG; iptables -A FORWARD -o flannel.1 -j DROP"},
		{name: "devices", iptables: "iptables -A FORWARD ! -i dock+ -j DROP"},
		{name: "direction", iptables: "iptables -A FORWARD -m conntrack --ctdir REPLY -j DROP"},
		{name: "unicast", iptables: "iptables -A INPUT -m pkttype --pkt-type unicast -j DROP"},
		{name: "docker", iptables: `iptables -P FORWARD DROP
			for c in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do iptables -N $c; done
			iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
			iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables -A FORWARD -o docker0 -j DOCKER; iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
			iptables -A DOCKER-USER -j RETURN; iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
			iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN; iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP; iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
			iptables -t nat -A POSTROUTING -s 10.42.7.0/24 ! -o docker0 -j MASQUERADE`},
		{name: "both variants", iptables: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -p udp -j ACCEPT; iptables-nft -A FORWARD -i flannel.1 -p udp -j DROP"},
	}
}

func nftRulesets() []walkRuleset {
	forward := func(rules string) string {
		return "table inet t {\n chain c { type filter hook forward priority 0; " + rules + "\n }\n}\n"
	}
	return []walkRuleset{
		{name: "policy", nft: forward("policy drop;")},
		{name: "an accept ends only its chain", nft: "table inet a {\n chain c { type filter hook forward priority -10; accept\n }\n}\n" + forward("meta l4proto udp drop")},
		{name: "a drop is final", nft: "table inet a {\n chain c { type filter hook forward priority 10; accept\n }\n}\n" + forward("meta l4proto udp drop")},
		{name: "dormant", nft: "table inet t {\n flags dormant\n chain c { type filter hook forward priority 0; policy drop;\n }\n}\n"},
		{name: "states", nft: forward("ct state vmap { established : accept, related : accept, invalid : drop }; iifname flannel.1 drop")},
		{name: "map of devices", nft: forward("policy drop; iifname vmap { docker0 : accept, eth0 : drop }")},
		{name: "indexes", nft: forward("iif lo accept; iif docker0 oif flannel.1 drop")},
		{name: "index of lo in input", nft: "table inet t {\n chain c { type filter hook input priority 0; policy drop; iif lo accept; ct state established accept\n }\n}\n"},
		{name: "sets", nft: "table inet t {\n set s { type inet_proto . ifname; elements = { udp . flannel.1, tcp . docker0 }\n }\n chain c { type filter hook forward priority 0; meta l4proto . iifname @s drop\n }\n}\n"},
		{name: "intervals", nft: "table ip t {\n set s { type ipv4_addr; flags interval; elements = { 10.42.8.0/24 }\n }\n chain c { type filter hook forward priority 0; ip saddr @s meta l4proto { tcp, icmp } drop\n }\n}\n"},
		{name: "flags of TCP", nft: forward("tcp flags & (fin|syn|rst|ack) == syn drop")},
		{name: "flags of the reply", nft: forward("tcp flags & (syn|ack) == (syn|ack) drop")},
		{name: "types of ICMP", nft: forward("icmp type echo-reply drop")},
		{name: "th ports", nft: forward("meta l4proto { tcp, udp } th dport 443 drop")},
		{name: "ingress", nft: "table netdev t {\n chain c { type filter hook ingress device flannel.1 priority 0; ip protocol udp drop\n }\n}\n"},
		{name: "ingress of the uplink", nft: "table netdev t {\n chain c { type filter hook ingress device eth0 priority 0; udp dport 8472 drop\n }\n}\n"},
		{name: "ingress of inet", nft: "table inet t {\n chain c { type filter hook ingress device docker0 priority 0; meta l4proto tcp drop\n }\n}\n", optional: true},
		{name: "egress", nft: "table netdev t {\n chain c { type filter hook egress device flannel.1 priority 0; ip protocol icmp drop\n }\n}\n", optional: true},
		{name: "prerouting before conntrack", nft: "table inet t {\n chain c { type filter hook prerouting priority -300; ct state invalid drop\n }\n}\n"},
		{name: "prerouting after conntrack", nft: "table inet t {\n chain c { type filter hook prerouting priority -150; ct state invalid drop; ct state new meta l4proto udp drop\n }\n}\n"},
		{name: "notrack", nft: "table inet t {\n chain p { type filter hook prerouting priority -300; meta l4proto udp notrack\n }\n chain c { type filter hook forward priority 0; ct state new drop\n }\n}\n", unclear: []string{"out udp", "in udp", "outside"}},
		{name: "status", nft: forward("ct status dnat accept; ct direction reply drop"), unclear: []string{"out icmp reply", "out tcp reply", "out udp reply", "in icmp reply", "in tcp reply", "in udp reply", "outside udp reply"}},
		{name: "masquerade", nft: "table ip t {\n chain c { type nat hook postrouting priority 100; oifname flannel.1 masquerade\n }\n}\n"},
		{name: "masquerade, except", nft: "table ip t {\n chain c { type nat hook postrouting priority 100; ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 return; ip saddr 10.42.0.0/16 masquerade\n }\n}\n"},
		{name: "two NAT chains", nft: "table ip a {\n chain c { type nat hook postrouting priority 90; ip daddr 10.42.0.0/16 accept\n }\n}\ntable ip t {\n chain c { type nat hook postrouting priority 100; oifname != docker0 masquerade\n }\n}\n"},
		{name: "a drop in a NAT chain", nft: "table ip t {\n chain c { type nat hook postrouting priority 100; oifname flannel.1 meta l4proto tcp drop\n }\n}\n", unclear: []string{"out tcp"}},
		{name: "local addresses", nft: "table inet t {\n chain c { type filter hook prerouting priority -150; fib daddr type local udp dport 8472 drop; fib daddr type != local meta l4proto tcp drop\n }\n}\n"},
		{name: "mark", nft: forward("meta mark != 0 drop; meta mark 0 meta l4proto tcp drop")},
		{name: "mark is set", nft: forward("meta l4proto udp meta mark set 7; meta mark 7 drop"), unclear: []string{"out udp", "in udp", "outside"}},
		{name: "destination is set", nft: "table ip t {\n chain c { type filter hook prerouting priority -300; iifname docker0 udp dport 443 ip daddr set 10.42.8.9\n }\n}\n", unclear: []string{"out udp", "outside"}},
		{name: "random", nft: forward("ip saddr 10.42.0.0/16 numgen random mod 2 == 0 drop"), unclear: []string{"out", "in", "outside"}},
		{name: "random, decided after", nft: forward("policy drop; ip saddr 192.0.2.0/24 numgen random mod 2 == 0 accept")},
		{name: "limit", nft: forward("meta l4proto icmp limit rate over 1/hour drop"), unclear: []string{"out icmp", "in icmp"}},
		{name: "quota", nft: "table inet t {\n quota q { over 1 bytes\n }\n chain c { type filter hook forward priority 0; meta l4proto tcp quota name q drop\n }\n}\n", unclear: []string{"out tcp", "in tcp"}},
		{name: "goto and return", nft: "table inet t {\n chain a { meta l4proto udp return; drop\n }\n chain b { goto a\n }\n chain c { type filter hook forward priority 0; jump b; meta l4proto udp iifname flannel.1 drop\n }\n}\n"},
		{name: "output", nft: "table inet t {\n chain c { type filter hook output priority 0; oifname eth0 udp dport 8472 reject\n }\n}\n"},
		{name: "route", nft: "table ip t {\n chain c { type route hook output priority -150; udp dport 8472 drop\n }\n}\n"},
		{name: "bridge", nft: "table bridge t {\n chain c { type filter hook input priority 0; drop\n }\n}\n", unclear: []string{"out icmp first", "out tcp first", "out udp first", "in icmp reply", "in tcp reply", "in udp reply", "outside"}},
		{name: "concatenated ranges", nft: forward("ip saddr . meta l4proto { 10.42.8.0/24 . tcp } drop"), unclear: []string{"out tcp", "in tcp", "out icmp", "in icmp", "out udp", "in udp", "outside"}, optional: true},
		{name: "map of verdicts by port", nft: forward("th dport vmap { 443 : drop }"), unclear: []string{"out icmp", "in icmp"}},
		{name: "counter, log, comment", nft: forward("counter log prefix \"x\" meta l4proto udp drop comment \"drop\"")},
		{name: "wildcard", nft: forward("iifname \"flan*\" drop")},
	}
}
