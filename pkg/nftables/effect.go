package nftables

import "golang.org/x/sys/unix"

// effect is what somebody else's rule may do to a packet, as far as it matters to guests.
type effect struct {
	drops    bool   // packets, itself
	branches bool   // to another chain, which may drop them
	jump     string // the chain that all packets go to and may return from
	family   Family // whose packets alone the rule is for; 0: any
}

// parseEffect reads a rule of any form.
func parseEffect(list []expression) (e effect) {
	always := true // nothing before the verdict looks at the packet
	head := ruleParser{rest: list}
	if len(list) > 1 && list[0].name == "meta" && head.parseMeta() {
		e.family = head.result.Family
	}
	for _, x := range list {
		switch x.name {
		case "immediate":
			code, chain, ok := x.verdict()
			switch {
			case !ok:
			case code == nfDrop:
				e.drops = true
			case code == unix.NFT_JUMP || code == unix.NFT_GOTO:
				e.branches = true
				if always && code == unix.NFT_JUMP {
					e.jump = chain
				}
			}
		case "reject":
			e.drops = true
		case "target": // of iptables
			e.drops = e.drops || x.data[unix.NFTA_TARGET_NAME].Text() == "REJECT"
			always = false
		case "lookup": // in a map of verdicts, if it leaves one
			to := x.data[unix.NFTA_LOOKUP_DREG]
			e.branches = e.branches || len(to) == 4 && to.Uint32BE() == unix.NFT_REG_VERDICT
			always = false
		case "match":
			always = always && x.data[unix.NFTA_MATCH_NAME].Text() == "comment"
		case "counter":
		default:
			always = false
		}
	}
	return e
}

// manglePriority is that of chains that change packets and let them pass (NF_IP_PRI_MANGLE). They
// branch a lot, to mark or clamp, and an accept at their head would spare the overlay that.
const manglePriority = -150

// needsAccepts tells whether a chain with these rules of others may drop what the overlay forwards
// in a family.
func (f foreign) needsAccepts(family Family, others []listed) bool {
	if f.flags&dormant != 0 {
		return false
	}
	forward := f.place.hook == unix.NF_INET_FORWARD
	if forward && f.policy == nfDrop {
		return true
	}
	for _, l := range others {
		if l.effect.family != 0 && l.effect.family != family {
			continue
		}
		if l.effect.drops || forward && f.place.priority != manglePriority && l.effect.branches {
			return true
		}
	}
	return false
}

// goesBeforeAccepts tells which chains are asked before guests: where the operator's own rules belong, and
// where other programs enforce network policies on the overlay's packets too.
func goesBeforeAccepts(chain string) bool {
	switch chain {
	case "DOCKER-USER", "cali-FORWARD", "KUBE-ROUTER-FORWARD":
		return true
	}
	return false
}
