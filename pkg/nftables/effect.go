package nftables

import (
	"slices"

	"golang.org/x/sys/unix"
)

// effect is what a foreign rule may do to a packet, as far as it matters to our accepts.
type effect struct {
	drops    bool   // it may drop packets itself
	branches bool   // it may jump to another chain, which may drop packets
	jump     string // the chain that it jumps to unconditionally
	family   Family // the family that the rule is limited to; 0: any
}

// parseEffect returns the effect of a rule in any form.
func parseEffect(list []expression) (e effect) {
	always := true // no condition precedes the verdict
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
		case "lookup": // in a verdict map, if the destination is the verdict register
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

// manglePriority is the priority of chains that modify packets and let them pass
// (NF_IP_PRI_MANGLE). They have many jumps, for marks or MSS clamping, which an accept at their
// head would skip.
const manglePriority = -150

// needsAccepts reports whether a chain with these foreign rules may drop forwarded packets of the
// overlay in a family.
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

// goesBeforeAccepts reports whether a jump to a chain must stay ahead of our accepts: the chain of
// the operator's own rules, or one of a program that enforces network policies on the overlay's
// packets.
func goesBeforeAccepts(chain string) bool {
	return slices.Contains([]string{"DOCKER-USER", "cali-FORWARD", "KUBE-ROUTER-FORWARD"}, chain)
}
