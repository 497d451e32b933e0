package nftables

import (
	"context"
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

// create returns a message that creates the chain as a base chain.
func (c chainName) create(at place) message {
	body := c.attrs(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME).
		Uint32BE(unix.NFTA_CHAIN_POLICY, nfAccept).
		Nest(unix.NFTA_CHAIN_HOOK, netlink.Attrs{}.
			Uint32BE(unix.NFTA_HOOK_HOOKNUM, at.hook).
			Uint32BE(unix.NFTA_HOOK_PRIORITY, uint32(at.priority))).
		Text(unix.NFTA_CHAIN_TYPE, at.kind)
	return message{unix.NFT_MSG_NEWCHAIN, create, c.family, body}
}

// createTable returns a message that creates a table.
func createTable(family Family, name string) message {
	body := netlink.Attrs{}.Text(unix.NFTA_TABLE_NAME, name).Uint32BE(unix.NFTA_TABLE_FLAGS, 0)
	return message{unix.NFT_MSG_NEWTABLE, create, family, body}
}

// deleteTable returns a message that deletes a table.
func deleteTable(family Family, name string) message {
	return message{unix.NFT_MSG_DELTABLE, 0, family, netlink.Attrs{}.Text(unix.NFTA_TABLE_NAME, name)}
}

// place is the position of a base chain in the kernel.
type place struct {
	kind     string // type
	hook     uint32
	priority int32
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

func (t table) String() string { return t.family.String() + " " + t.name }

// chain is a chain in a listing.
type chain struct {
	chainName
	base   bool
	place  place
	policy uint32
	// devices are those of a chain at ingress or egress; one that ends with "*" stands for all with
	// that prefix.
	devices []string
	flags   uint32   // of its table
	rules   []listed // read only for chains that matter here
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
	hook firewall.Hook
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
	tables, chains, err := c.chains(family, unix.NFPROTO_INET)
	if err != nil {
		return w, err
	}
	for _, ch := range chains {
		own := ch.family == family && ch.table == family.tableName()
		hook, mayNeed := ch.acceptsHook()
		if !own && (!mayNeed || ownTable(ch.family, ch.table)) {
			continue
		}
		if ch.rules, err = c.rules(ch.chainName); err != nil {
			return w, err
		}
		if own {
			w.chains = append(w.chains, ch)
		} else {
			w.foreign = append(w.foreign, foreign{ch, hook})
		}
	}
	if i := slices.IndexFunc(tables, func(t table) bool { return t.family == family && t.name == family.tableName() }); i >= 0 {
		w.table = &tables[i]
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

// list lists the tables of some families.
func (t *Tables) list(families ...Family) (all []table, err error) {
	err = t.retry(context.Background(), func() (err error) {
		all, err = t.conn.tables(families...)
		return err
	})
	return all, err
}

// OwnedTables returns the tables of all families, as "inet firewalld", that only their owner can
// change.
func (t *Tables) OwnedTables() (names []string, err error) {
	all, err := t.list(IPv4, IPv6, unix.NFPROTO_INET)
	for _, table := range all {
		if table.flags&owned != 0 {
			names = append(names, table.String())
		}
	}
	return names, err
}

func (c *conn) tables(families ...Family) (list []table, err error) {
	err = c.dump("tables", unix.NFT_MSG_GETTABLE, nil, func(f Family, m map[uint16]netlink.Value) {
		list = append(list, table{
			family: f, name: m[unix.NFTA_TABLE_NAME].Text(),
			flags: m[unix.NFTA_TABLE_FLAGS].Uint32BE(), uses: int(m[unix.NFTA_TABLE_USE].Uint32BE()),
		})
	}, families...)
	return list, err
}

// chains lists the tables of some families and their chains.
func (c *conn) chains(families ...Family) (tables []table, list []chain, err error) {
	if tables, err = c.tables(families...); err != nil {
		return nil, nil, err
	}
	err = c.dump("chains", unix.NFT_MSG_GETCHAIN, nil, func(f Family, m map[uint16]netlink.Value) {
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
			ch.devices = parseDevices(h)
		}
		list = append(list, ch)
	}, families...)
	if err != nil {
		return nil, nil, err
	}
	for i, ch := range list {
		at := slices.IndexFunc(tables, func(t table) bool { return t.family == ch.family && t.name == ch.table })
		if at < 0 {
			return nil, nil, errChanged
		}
		list[i].flags = tables[at].flags
	}
	return tables, list, nil
}

// parseDevices returns the devices of a hook.
func parseDevices(hook map[uint16]netlink.Value) (names []string) {
	const one, several, name, prefix = unix.NFTA_HOOK_DEV, 4, 1, 2 // NFTA_HOOK_DEVS, NFTA_DEVICE_NAME and _PREFIX
	if device := hook[one].Text(); device != "" {
		names = append(names, device)
	}
	for kind, v := range hook[several].All() {
		switch kind {
		case name:
			names = append(names, v.Text())
		case prefix:
			names = append(names, v.Text()+"*")
		}
	}
	return names
}

// eachRule lists the rules of a chain.
func (c *conn) eachRule(in chainName, each func(map[uint16]netlink.Value)) error {
	return c.dump("rules of "+in.String(), unix.NFT_MSG_GETRULE, in.ruleAttrs(), func(_ Family, m map[uint16]netlink.Value) {
		if m[unix.NFTA_RULE_CHAIN].Text() == in.name && m[unix.NFTA_RULE_TABLE].Text() == in.table {
			each(m)
		}
	}, in.family)
}

func (c *conn) rules(in chainName) (list []listed, err error) {
	err = c.eachRule(in, func(m map[uint16]netlink.Value) {
		expressions := parseExpressions(m[unix.NFTA_RULE_EXPRESSIONS])
		l := listed{handle: m[unix.NFTA_RULE_HANDLE].Uint64BE(), effect: parseEffect(expressions)}
		l.rule, l.ok = parseRule(in.family, expressions, m[unix.NFTA_RULE_USERDATA])
		if !l.ok {
			l.rule = addresses(in.family, expressions)
		}
		list = append(list, l)
	})
	return list, err
}
