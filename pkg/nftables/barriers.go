package nftables

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// evalTimeout limits the time of one evaluation. Rulesets that take longer to read are not
// evaluated.
const evalTimeout = 2 * time.Second

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) (all []firewall.Barrier, err error) {
	ctx, cancel := context.WithTimeout(ctx, evalTimeout)
	defer cancel()
	err = t.retry(ctx, func() (err error) {
		all, err = t.conn.barriers(ctx, p)
		return err
	})
	return all, err
}

func (c *conn) barriers(ctx context.Context, p firewall.Packet) (all []firewall.Barrier, err error) {
	family, hook := IPv6, uint32(unix.NF_INET_FORWARD)
	if p.Dst.Is4() {
		family = IPv4
	}
	if p.ToHost {
		hook = unix.NF_INET_LOCAL_IN
	}
	_, chains, err := c.chains(family, unix.NFPROTO_INET)
	if err != nil {
		return nil, err
	}
	for _, base := range chains {
		// Our own tables drop no packets of peers.
		if ownTable(base.family, base.table) || base.place.kind != "filter" || base.flags&dormant != 0 ||
			base.place.hook != unix.NF_INET_PRE_ROUTING && base.place.hook != hook {
			continue
		}
		policy := firewall.Passes
		if base.policy == nfDrop {
			policy = firewall.Drops
		}
		in := table{family: base.family, name: base.table}
		v := evaluator{ctx: ctx, conn: c, table: in, packet: p}
		w := firewall.Walk{Steps: v.steps}
		fate, err := w.Base(base.name, policy)
		if err != nil {
			return nil, err
		}
		if fate&firewall.Drops != 0 {
			b := firewall.Barrier{
				Kind: "nftables", Table: in.String(), Chain: base.name,
				Certain: fate == firewall.Drops, Owned: base.flags&owned != 0,
			}
			b.DetectTool(&w)
			all = append(all, b)
		}
	}
	return all, nil
}

// evaluator evaluates the chains of a table for one packet.
type evaluator struct {
	ctx    context.Context
	conn   *conn
	table  table
	packet firewall.Packet
}

func (v *evaluator) steps(chain string) (all []firewall.Step, err error) {
	if v.ctx.Err() != nil {
		return nil, context.Cause(v.ctx)
	}
	if chain == firewall.Input.SharedChain() {
		return nil, nil // ours, written by iptables, which drops no packets of peers
	}
	var rules [][]expression
	err = v.conn.eachRule(chainName{v.table.family, v.table.name, chain}, func(m map[uint16]netlink.Value) {
		// Clone, because the buffer is reused before the rules are evaluated.
		rules = append(rules, parseExpressions(slices.Clone(m[unix.NFTA_RULE_EXPRESSIONS])))
	})
	if err != nil {
		return nil, err
	}
	for _, list := range rules {
		steps, err := v.ruleSteps(list)
		if err != nil {
			return nil, err
		}
		all = append(all, steps...)
	}
	return all, nil
}

// ruleSteps evaluates a rule. It returns several steps if the key of a verdict map is unknown.
func (v *evaluator) ruleSteps(list []expression) ([]firewall.Step, error) {
	met := firewall.Yes
	var r registers
	for _, x := range list {
		switch x.name {
		case "immediate":
			if code, chain, ok := x.verdict(); ok {
				return []firewall.Step{step(met, code, chain)}, nil
			}
			value := x.data[unix.NFTA_IMMEDIATE_DATA].Map()[unix.NFTA_DATA_VALUE]
			r.store(x.data[unix.NFTA_IMMEDIATE_DREG].Uint32BE(), value)
		case "reject":
			return []firewall.Step{{Met: met, Do: firewall.Drop}}, nil
		case "queue":
			return []firewall.Step{{Met: met, Do: firewall.PassOrDrop}}, nil
		case "target":
			if s, ends := compatTarget(met, x.data[unix.NFTA_TARGET_NAME].Text()); ends {
				return []firewall.Step{s}, nil
			}
		case "lookup":
			e, err := v.conn.readSet(v.table, x.data[unix.NFTA_LOOKUP_SET].Text())
			if err != nil {
				return nil, err
			}
			key, known := r.load(x.data[unix.NFTA_LOOKUP_SREG].Uint32BE(), e.keyLength)
			if to := x.data[unix.NFTA_LOOKUP_DREG]; len(to) == 4 {
				if to.Uint32BE() == unix.NFT_REG_VERDICT {
					return e.verdicts(met, key, known), nil
				}
				r.forget(to.Uint32BE())
				met = met.And(firewall.Maybe)
				continue
			}
			not := x.data[unix.NFTA_LOOKUP_FLAGS].Uint32BE()&unix.NFT_LOOKUP_F_INV != 0
			met = met.And(e.contains(key, known, not))
		default:
			met = met.And(v.eval(&r, x))
		}
		if met == firewall.No {
			return nil, nil
		}
	}
	return nil, nil
}

func step(met firewall.Met, code int32, chain string) firewall.Step {
	s := firewall.Step{Met: met, Chain: chain}
	switch code {
	case nfAccept:
		s.Do = firewall.Pass
	case nfDrop:
		s.Do = firewall.Drop
	case unix.NFT_JUMP:
		s.Do = firewall.Jump
	case unix.NFT_GOTO:
		s.Do = firewall.GoTo
	case unix.NFT_RETURN:
		s.Do = firewall.Back
	case unix.NFT_CONTINUE:
		s.Met = firewall.No
	default:
		s.Do = firewall.PassOrDrop
	}
	return s
}
