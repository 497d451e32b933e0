package nftables

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// chainName identifies a chain in the network namespace.
type chainName struct {
	family      Family
	table, name string
}

func (c chainName) String() string { return c.family.String() + " " + c.table + " " + c.name }

// attrs returns attributes that identify the chain, of the given kinds for table and name.
func (c chainName) attrs(table, name uint16) netlink.Attrs {
	return netlink.Attrs{}.Text(table, c.table).Text(name, c.name)
}

// ruleAttrs returns attributes that identify the chain in a request about rules.
func (c chainName) ruleAttrs() netlink.Attrs {
	return c.attrs(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN)
}

// in returns the index of the chain's table, or a negative number if it is not among tables.
func (c chainName) in(tables []table) int {
	return slices.IndexFunc(tables, func(t table) bool {
		return t.family == c.family && t.name == c.table
	})
}

// place is the position of a base chain in the kernel.
type place struct {
	kind     string // type
	hook     uint32
	priority int32
}

// hookAttrs returns the attributes of a place in a request.
func (p place) hookAttrs() netlink.Attrs {
	return netlink.Attrs{}.
		Uint32BE(unix.NFTA_HOOK_HOOKNUM, p.hook).
		Uint32BE(unix.NFTA_HOOK_PRIORITY, uint32(p.priority))
}

// Flags of tables.
const (
	dormant = unix.NFT_TABLE_F_DORMANT
	owned   = 2 // NFT_TABLE_F_OWNER (Linux 5.12): only the socket that created it may change it
)

// table is a table in a listing.
type table struct {
	family Family
	name   string
	flags  uint32
	uses   int // chains, sets and other objects in it
}

// chain is a chain in a listing.
type chain struct {
	chainName
	base   bool
	place  place
	policy uint32
	rules  []listed // read only for chains that matter here
}

// listed is a rule of a chain.
type listed struct {
	handle uint64
	effect effect
	rule   rule // parsed if ok, otherwise only addresses are set
	ok     bool // the rule has a form that this package can write
}

// ruleset is everything that matters for one family, as of one generation.
type ruleset struct {
	generation uint32
	table      *table    // our own; nil if there is none
	chains     []chain   // chains of our table
	foreign    []foreign // base chains of other tables
}

// foreign is another program's base chain that may need our accepts.
type foreign struct {
	chain
	hook  firewall.Hook
	flags uint32 // of the table
}

// tableName returns the name of our own table, which is also the original's.
func (f Family) tableName() string {
	if f == IPv4 {
		return "flannel-ipv4"
	}
	return "flannel-ipv6"
}

// list reads the ruleset. Of other programs' rules it reads only those of base chains that may need
// our accepts, because tables with thousands of rules have most of them in other chains.
func (c *conn) list(family Family) (w ruleset, err error) {
	if w.generation, err = c.generation(); err != nil {
		return w, err
	}
	tables, err := c.tables(family, unix.NFPROTO_INET)
	if err != nil {
		return w, err
	}
	chains, err := c.chains(family, unix.NFPROTO_INET)
	if err != nil {
		return w, err
	}
	for _, ch := range chains {
		i := ch.in(tables)
		if i < 0 {
			return w, errChanged
		}
		own := tables[i].family == family && tables[i].name == family.tableName()
		hook, isForeign := ch.acceptsHook()
		isForeign = isForeign && !ownTable(ch.family, ch.table)
		if own || isForeign {
			if ch.rules, err = c.rules(ch.chainName); err != nil {
				return w, err
			}
		}
		switch {
		case own:
			w.chains = append(w.chains, ch)
		case isForeign:
			w.foreign = append(w.foreign, foreign{ch, hook, tables[i].flags})
		}
	}
	for _, t := range tables {
		if t.family == family && t.name == family.tableName() {
			w.table = &t
		}
	}
	now, err := c.generation()
	if err == nil && now != w.generation {
		err = errChanged
	}
	return w, err
}

// acceptsHook returns the hook whose accepts the chain may need, if it may need any.
func (c chain) acceptsHook() (firewall.Hook, bool) {
	switch {
	case !c.base || c.place.kind != "filter":
	case c.place.hook == unix.NF_INET_FORWARD:
		return firewall.Forward, true
	case c.place.hook == unix.NF_INET_PRE_ROUTING:
		return firewall.PreRouting, true
	}
	return 0, false
}

// tableNames returns the names of a family's tables.
func (t *Tables) tableNames(family Family) (names []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []table
	err = errChanged
	for i := 0; i < maxAttempts && retryable(err); i++ {
		all, err = t.conn.tables(family)
	}
	for _, table := range all {
		names = append(names, table.name)
	}
	return names, err
}

// OwnedTables returns the tables of all families, as "inet firewalld", that only their owner can
// change.
func (t *Tables) OwnedTables() (names []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.conn.tables(IPv4, IPv6, unix.NFPROTO_INET)
	for _, table := range all {
		if table.flags&owned != 0 {
			names = append(names, table.family.String()+" "+table.name)
		}
	}
	return names, err
}

func (c *conn) tables(families ...Family) (list []table, err error) {
	err = c.dump(unix.NFT_MSG_GETTABLE, nil, func(f Family, m map[uint16]netlink.Value) {
		list = append(list, table{
			family: f, name: m[unix.NFTA_TABLE_NAME].Text(),
			flags: m[unix.NFTA_TABLE_FLAGS].Uint32BE(), uses: int(m[unix.NFTA_TABLE_USE].Uint32BE()),
		})
	}, families...)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return list, nil
}

func (c *conn) chains(families ...Family) (list []chain, err error) {
	err = c.dump(unix.NFT_MSG_GETCHAIN, nil, func(f Family, m map[uint16]netlink.Value) {
		name := chainName{f, m[unix.NFTA_CHAIN_TABLE].Text(), m[unix.NFTA_CHAIN_NAME].Text()}
		ch := chain{chainName: name}
		if hook, ok := m[unix.NFTA_CHAIN_HOOK]; ok {
			h := hook.Map()
			ch.base = true
			ch.place = place{
				kind: m[unix.NFTA_CHAIN_TYPE].Text(), hook: h[unix.NFTA_HOOK_HOOKNUM].Uint32BE(),
				priority: int32(h[unix.NFTA_HOOK_PRIORITY].Uint32BE()),
			}
			ch.policy = m[unix.NFTA_CHAIN_POLICY].Uint32BE()
		}
		list = append(list, ch)
	}, families...)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	return list, nil
}

func (c *conn) rules(in chainName) (list []listed, err error) {
	err = c.dump(unix.NFT_MSG_GETRULE, in.ruleAttrs(), func(_ Family, m map[uint16]netlink.Value) {
		if m[unix.NFTA_RULE_CHAIN].Text() != in.name || m[unix.NFTA_RULE_TABLE].Text() != in.table {
			return
		}
		expressions := parseExpressions(m[unix.NFTA_RULE_EXPRESSIONS])
		l := listed{handle: m[unix.NFTA_RULE_HANDLE].Uint64BE(), effect: parseEffect(expressions)}
		l.rule, l.ok = parseRule(in.family, expressions, m[unix.NFTA_RULE_USERDATA])
		if !l.ok {
			l.rule = addresses(in.family, expressions)
		}
		list = append(list, l)
	}, in.family)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", in, err)
	}
	return list, nil
}
