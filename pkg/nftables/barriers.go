package nftables

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

// evalTimeout limits the time of one evaluation. Rulesets that take longer to read are not
// evaluated.
const evalTimeout = 2 * time.Second

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) (all []firewall.Barrier, err error) {
	ctx, cancel := context.WithTimeout(ctx, evalTimeout)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range maxAttempts {
		if pace.Sleep(ctx, time.Duration(i)*backOff) != nil {
			return nil, context.Cause(ctx)
		}
		all, err = t.conn.barriers(ctx, p)
		if !retryable(err) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return all, err
}

// hooks returns the hooks that a packet passes.
func hooks(p firewall.Packet) []uint32 {
	if p.ToHost {
		return []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN}
	}
	return []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD}
}

func (c *conn) barriers(ctx context.Context, p firewall.Packet) (all []firewall.Barrier, err error) {
	families := []Family{IPv6, unix.NFPROTO_INET}
	if p.Dst.Is4() {
		families[0] = IPv4
	}
	tables, err := c.tables(families...)
	if err != nil {
		return nil, err
	}
	chains, err := c.chains(families...)
	if err != nil {
		return nil, err
	}
	for _, base := range chains {
		i := base.in(tables)
		if i < 0 {
			return nil, errChanged
		}
		if ownTable(base.family, base.table) {
			continue // it drops no packets of peers
		}
		if !base.base || base.place.kind != "filter" || tables[i].flags&dormant != 0 ||
			!slices.Contains(hooks(p), base.place.hook) {
			continue
		}
		policy := firewall.Passes
		if base.policy == nfDrop {
			policy = firewall.Drops
		}
		v := evaluator{ctx: ctx, conn: c, family: base.family, table: base.table, packet: p}
		w := firewall.Walk{Steps: v.steps}
		fate, err := w.Base(base.name, policy)
		if err != nil {
			return nil, err
		}
		if fate&firewall.Drops != 0 {
			b := firewall.Barrier{
				Kind: "nftables", Table: base.family.String() + " " + base.table, Chain: base.name,
				Certain: fate == firewall.Drops, Owned: tables[i].flags&owned != 0,
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
	family Family
	table  string
	packet firewall.Packet
}

func (v *evaluator) steps(chain string) (all []firewall.Step, err error) {
	if v.ctx.Err() != nil {
		return nil, context.Cause(v.ctx)
	}
	if chain == firewall.Input.SharedChain() {
		return nil, nil // ours, written by iptables, which drops no packets of peers
	}
	in := chainName{v.family, v.table, chain}
	var rules [][]expression
	err = v.conn.dump(unix.NFT_MSG_GETRULE, in.ruleAttrs(), func(_ Family, m map[uint16]netlink.Value) {
		if m[unix.NFTA_RULE_CHAIN].Text() == chain && m[unix.NFTA_RULE_TABLE].Text() == v.table {
			// Clone, because the buffer is reused before the rules are evaluated.
			rules = append(rules, parseExpressions(slices.Clone(m[unix.NFTA_RULE_EXPRESSIONS])))
		}
	}, v.family)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", in, err)
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
			e, err := v.readSet(x.data[unix.NFTA_LOOKUP_SET].Text())
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
