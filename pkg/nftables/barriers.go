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

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it,
// apart from flanneld's own rules.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) (all []firewall.Barrier, err error) {
	ctx, cancel := context.WithTimeout(ctx, evalTimeout)
	defer cancel()
	family := IPv6
	if p.Dst.Is4() {
		family = IPv4
	}
	err = t.retry(ctx, func() error {
		chains, err := t.conn.baseChains(ctx, family, true)
		if err != nil {
			return err
		}
		all, err = firewall.Dropping(p, chains)
		return err
	})
	return all, err
}

// view implements Keeper.View.
func (t *Tables) view(ctx context.Context, f firewall.Family, use func([]firewall.BaseChain) error) error {
	return t.retry(ctx, func() error {
		before, err := t.conn.generation()
		if err != nil {
			return err
		}
		chains, err := t.conn.baseChains(ctx, familyOf(f), false)
		if err != nil {
			return err
		}
		if err := use(chains); err != nil {
			return err
		}
		after, err := t.conn.generation()
		if err == nil && after != before {
			err = errChanged
		}
		return err
	})
}

const inetIngress = 5 // NF_INET_INGRESS (5.10)

// point returns where a base chain is attached.
func (c chain) point() (p firewall.Point, ok bool) {
	if c.family == unix.NFPROTO_NETDEV {
		return [...]firewall.Point{firewall.AtIngress, firewall.AtEgress}[c.place.hook&1], c.place.hook <= 1
	}
	switch c.place.hook {
	case unix.NF_INET_PRE_ROUTING:
		return firewall.AtPreRouting, true
	case unix.NF_INET_LOCAL_IN:
		return firewall.AtInput, true
	case unix.NF_INET_FORWARD:
		return firewall.AtForward, true
	case unix.NF_INET_LOCAL_OUT:
		return firewall.AtOutput, true
	case unix.NF_INET_POST_ROUTING:
		return firewall.AtPostRouting, true
	case inetIngress:
		return firewall.AtIngress, c.family == unix.NFPROTO_INET
	}
	return 0, false
}

// baseChains returns the base chains that see packets of a family. foreign leaves out flanneld's
// own rules, which drop no packets of peers, and the chains of bridges.
func (c *conn) baseChains(ctx context.Context, family Family, foreign bool) (all []firewall.BaseChain, err error) {
	families := []Family{family, unix.NFPROTO_INET, unix.NFPROTO_NETDEV}
	if !foreign {
		families = append(families, unix.NFPROTO_BRIDGE)
	}
	_, chains, err := c.chains(families...)
	if err != nil {
		return nil, err
	}
	r := reader{ctx: ctx, conn: c, foreign: foreign, rules: map[chainName][]rawRule{}, sets: map[setName]elements{}}
	for _, ch := range chains {
		at, known := ch.point()
		own := ownTable(ch.family, ch.table)
		if !ch.base || !known || ch.flags&dormant != 0 || own && foreign {
			continue
		}
		in := table{family: ch.family, name: ch.table}
		b := firewall.BaseChain{
			Kind: "nftables", Table: in.String(), Name: ch.name, Point: at, Priority: ch.place.priority,
			NAT: ch.place.kind == "nat", Bridge: ch.family == unix.NFPROTO_BRIDGE, Policy: firewall.Passes,
			Owned: ch.flags&owned != 0,
			Steps: func(p firewall.Packet, chain string) ([]firewall.Step, error) {
				v := evaluator{reader: &r, table: in, packet: p}
				return v.steps(chain)
			},
		}
		if ch.policy == nfDrop {
			b.Policy = firewall.Drops
		}
		if at != firewall.AtIngress && at != firewall.AtEgress {
			all = append(all, b)
		}
		for _, b.Device = range ch.devices {
			all = append(all, b)
		}
	}
	return all, nil
}

// reader reads rules and sets of one generation, each once.
type reader struct {
	ctx     context.Context
	conn    *conn
	foreign bool // leave out flanneld's own rules; for one packet
	rules   map[chainName][]rawRule
	sets    map[setName]elements
}

// rawRule is a rule with its expressions as the kernel sends them, which are smaller than parsed, and
// parsed if it is evaluated for many packets.
type rawRule struct {
	handle      uint64
	expressions netlink.Value
	parsed      []expression
}

type setName struct {
	table
	name string
}

func (r *reader) chain(name chainName) (rules []rawRule, err error) {
	if rules, known := r.rules[name]; known {
		return rules, nil
	}
	if r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	err = r.conn.eachRule(name, func(m map[uint16]netlink.Value) {
		// Clone, because the buffer is reused before the rules are evaluated.
		rule := rawRule{handle: m[unix.NFTA_RULE_HANDLE].Uint64BE(), expressions: slices.Clone(m[unix.NFTA_RULE_EXPRESSIONS])}
		if !r.foreign {
			rule.parsed = parseExpressions(rule.expressions)
		}
		rules = append(rules, rule)
	})
	if err == nil {
		r.rules[name] = rules
	}
	return rules, err
}

func (r *reader) set(in table, name string) (e elements, err error) {
	if e, known := r.sets[setName{in, name}]; known {
		return e, nil
	}
	if r.ctx.Err() != nil {
		return e, context.Cause(r.ctx)
	}
	if e, err = r.conn.readSet(in, name); err == nil {
		r.sets[setName{in, name}] = e
	}
	return e, err
}

// evaluator evaluates the chains of a table for one packet.
type evaluator struct {
	*reader
	table  table
	packet firewall.Packet
}

func (v *evaluator) steps(chain string) (all []firewall.Step, err error) {
	if v.foreign && chain == firewall.Input.SharedChain() {
		return nil, nil // ours, written by iptables
	}
	rules, err := v.chain(chainName{v.table.family, v.table.name, chain})
	if err != nil {
		return nil, err
	}
	for i, rule := range rules {
		list := rule.parsed
		if list == nil {
			list = parseExpressions(rule.expressions)
		}
		steps, err := v.ruleSteps(list)
		if err != nil {
			return nil, err
		}
		for _, s := range steps {
			s.Number, s.Handle = i+1, rule.handle
			all = append(all, s)
		}
	}
	return all, nil
}

// ruleSteps evaluates a rule. It returns several steps if the key of a verdict map is unknown.
func (v *evaluator) ruleSteps(list []expression) ([]firewall.Step, error) {
	met := firewall.Yes
	var sets firewall.Effects
	var r registers
	end := func(do firewall.Action) ([]firewall.Step, error) {
		return []firewall.Step{{Met: met, Do: do, Sets: sets}}, nil
	}
	for _, x := range list {
		sets |= x.sets()
		switch x.name {
		case "immediate":
			if code, chain, ok := x.verdict(); ok {
				if code == unix.NFT_CONTINUE {
					break
				}
				s := step(met, code, chain)
				s.Sets = sets
				return []firewall.Step{s}, nil
			}
			value := x.data[unix.NFTA_IMMEDIATE_DATA].Map()[unix.NFTA_DATA_VALUE]
			r.store(x.data[unix.NFTA_IMMEDIATE_DREG].Uint32BE(), value)
		case "reject":
			return end(firewall.Drop)
		case "masq", "nat", "redir":
			return end(firewall.Translate)
		case "queue", "synproxy", "fwd":
			return end(firewall.PassOrDrop)
		case "tproxy":
			met = firewall.Maybe
			return end(firewall.PassOrDrop)
		case "target":
			do, effects := compatTarget(x.data)
			if sets |= effects; do != firewall.Next {
				return end(do)
			}
		case "lookup":
			steps, ended, err := v.lookup(&r, &met, x)
			for i := range steps {
				steps[i].Sets = sets
			}
			if err != nil || len(steps) > 0 {
				return steps, err
			}
			if ended { // no element matches
				met = firewall.No
			}
		case "objref":
			kind, err := v.object(x)
			if err != nil {
				return nil, err
			}
			if kind == unix.NFT_OBJECT_SYNPROXY {
				return end(firewall.PassOrDrop)
			}
			met = met.And(objectMet(kind))
		default:
			result, known := v.eval(&r, x)
			if met = met.And(result); !known { // it may drop the packet
				return end(firewall.PassOrDrop)
			}
		}
		if met == firewall.No {
			break
		}
	}
	if sets != 0 { // some were set before a condition was not met
		met = firewall.Maybe
		return end(firewall.Next)
	}
	return nil, nil
}

// object returns the kind of the object that a rule uses, by itself or by a map of objects.
func (v *evaluator) object(x expression) (kind uint32, err error) {
	if kind = x.data[unix.NFTA_OBJREF_IMM_TYPE].Uint32BE(); kind != 0 {
		return kind, nil
	}
	e, err := v.set(v.table, x.data[unix.NFTA_OBJREF_SET_NAME].Text())
	if kind = e.object; kind != unix.NFT_OBJECT_SYNPROXY {
		kind = 0 // there may be no object for the packet
	}
	return kind, err
}

// objectMet reports whether the rule continues after an object of a kind.
func objectMet(kind uint32) firewall.Met {
	switch kind {
	case unix.NFT_OBJECT_COUNTER, unix.NFT_OBJECT_CT_HELPER, unix.NFT_OBJECT_CT_TIMEOUT, unix.NFT_OBJECT_CT_EXPECT, unix.NFT_OBJECT_SECMARK:
		return firewall.Yes
	}
	return firewall.Maybe // a limit or quota may be exceeded
}

// lookup evaluates a set, or a map of verdicts, which ends the rule, or of other values.
func (v *evaluator) lookup(r *registers, met *firewall.Met, x expression) (steps []firewall.Step, ended bool, err error) {
	e, err := v.set(v.table, x.data[unix.NFTA_LOOKUP_SET].Text())
	if err != nil {
		return nil, false, err
	}
	key, known := r.loadKnown(x.data[unix.NFTA_LOOKUP_SREG].Uint32BE(), e.keyLength)
	if to := x.data[unix.NFTA_LOOKUP_DREG]; len(to) == 4 {
		if to.Uint32BE() == unix.NFT_REG_VERDICT {
			return e.verdicts(*met, key, known), true, nil
		}
		r.forget(to.Uint32BE())
		*met = met.And(firewall.Maybe)
		return nil, false, nil
	}
	not := x.data[unix.NFTA_LOOKUP_FLAGS].Uint32BE()&unix.NFT_LOOKUP_F_INV != 0
	*met = met.And(e.contains(key, known, not))
	return nil, false, nil
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
