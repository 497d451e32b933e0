package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

const (
	// lockPrefix begins the name of a network's table for its lock, which has no other purpose.
	// Each network has one, so that no daemon writes what another one keeps.
	lockPrefix = "flannel-lock-"
	lockSet    = "peers"

	// addressType is the data type of IPv4 addresses in nft(8) (TYPE_IPADDR), which shows them by
	// it.
	addressType = 7
	// lockBatch is how many elements a message has; they have 16 bytes each, and an attribute at
	// most 64 KiB.
	lockBatch = 1000
	// vniAt is where a VXLAN packet has its VNI, in bytes from the UDP header.
	vniAt = 8 + 4
)

// lockBase is a base chain of a lock, with its only rule.
type lockBase struct {
	name string
	at   place
	rule func(firewall.Lock) netlink.Attrs
}

// lockChains are before all filters, which then have less to do, and behind source NAT.
func lockChains() []lockBase {
	return []lockBase{
		{"input", place{"filter", unix.NF_INET_LOCAL_IN, -10}, lockInput},
		{"translated", place{"filter", unix.NF_INET_POST_ROUTING, 110}, lockTranslated},
	}
}

// LockTable names the table of a network's lock, for people.
func LockTable(network netip.Prefix) string { return "ip " + lockPrefix + network.String() }

// ownTable reports whether a table is that of a flanneld.
func ownTable(family Family, name string) bool {
	return (family == IPv4 || family == IPv6) && name == family.tableName() ||
		family == IPv4 && strings.HasPrefix(name, lockPrefix)
}

// SyncLock makes the table of a network's lock what it is to be. Unless it prunes, it leaves
// addresses that are no peers'.
func (t *Tables) SyncLock(
	ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool,
) (changes []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range attempts {
		if err := pace.Sleep(ctx, time.Duration(i)*backOff); err != nil {
			return nil, err
		}
		changes, err = t.conn.syncLock(l, peers, prune)
		if !errors.Is(err, errChanged) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return changes, err
}

// EditLock adds peers to a lock, and removes some, without a look at the rest. It fails if the lock
// is damaged.
func (t *Tables) EditLock(network netip.Prefix, add, remove []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := lockElements(network, unix.NFT_MSG_NEWSETELEM, add)
	ms = append(ms, lockElements(network, unix.NFT_MSG_DELSETELEM, remove)...)
	if len(ms) == 0 {
		return nil
	}
	if err := t.conn.commit(0, ms); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Unlock removes the table of a network's lock, if there is one.
func (t *Tables) Unlock(network netip.Prefix) (removed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.conn.commit(0, []message{lockGone(network)})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return err == nil, err
}

// Locked reports whether there is a table for a network's lock.
func (t *Tables) Locked(network netip.Prefix) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tables, err := t.conn.tables(IPv4)
	name := lockPrefix + network.String()
	return slices.ContainsFunc(tables, func(t table) bool { return t.name == name }), err
}

// lockAttrs names the table in a request.
func lockAttrs(network netip.Prefix, kind uint16) netlink.Attrs {
	return netlink.Attrs{}.Text(kind, lockPrefix+network.String())
}

func (c *conn) syncLock(
	l firewall.Lock, peers map[netip.Addr]struct{}, prune bool,
) (changes []string, err error) {
	generation, err := c.generation()
	if err != nil {
		return nil, err
	}
	there, sound, err := c.lockSound(l)
	if err != nil {
		return nil, err
	}
	var ms []message
	have := map[netip.Addr]struct{}{}
	if sound {
		if have, err = c.lockPeers(l.Network, peers); err != nil {
			return nil, err
		}
	} else {
		verb := "made"
		if there {
			verb = "made anew"
			ms = append(ms, lockGone(l.Network))
		}
		ms = append(ms, lockMessages(l)...)
		changes = append(changes, fmt.Sprintf("%s table %s", verb, LockTable(l.Network)))
	}
	add, remove := missing(peers, have), []netip.Addr(nil)
	if prune {
		remove = missing(have, peers)
	}
	if len(add)+len(remove) > 0 {
		changes = append(changes,
			fmt.Sprintf("added %d addresses of peers, removed %d", len(add), len(remove)))
	}
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_NEWSETELEM, add)...)
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_DELSETELEM, remove)...)
	if len(ms) == 0 {
		return nil, nil
	}
	return changes, c.commit(generation, ms)
}

// missing returns what is in a, and not in b.
func missing(a, b map[netip.Addr]struct{}) (all []netip.Addr) {
	for k := range a {
		if _, ok := b[k]; !ok {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// lockGone deletes the table.
func lockGone(network netip.Prefix) message {
	return message{unix.NFT_MSG_DELTABLE, 0, IPv4, lockAttrs(network, unix.NFTA_TABLE_NAME)}
}

// lockMessages make the table with an empty set.
func lockMessages(l firewall.Lock) (ms []message) {
	add := func(kind, flags uint16, body netlink.Attrs) {
		ms = append(ms, message{kind, flags, IPv4, body})
	}
	add(unix.NFT_MSG_NEWTABLE, create, lockAttrs(l.Network, unix.NFTA_TABLE_NAME).
		Uint32BE(unix.NFTA_TABLE_FLAGS, 0))
	add(unix.NFT_MSG_NEWSET, create, lockAttrs(l.Network, unix.NFTA_SET_TABLE).
		Text(unix.NFTA_SET_NAME, lockSet).
		Uint32BE(unix.NFTA_SET_FLAGS, 0).
		Uint32BE(unix.NFTA_SET_KEY_TYPE, addressType).
		Uint32BE(unix.NFTA_SET_KEY_LEN, 4).
		Uint32BE(unix.NFTA_SET_ID, 1))
	for _, c := range lockChains() {
		add(unix.NFT_MSG_NEWCHAIN, create, lockAttrs(l.Network, unix.NFTA_CHAIN_TABLE).
			Text(unix.NFTA_CHAIN_NAME, c.name).
			Uint32BE(unix.NFTA_CHAIN_POLICY, nfAccept).
			Nest(unix.NFTA_CHAIN_HOOK, c.at.hookAttrs()).
			Text(unix.NFTA_CHAIN_TYPE, c.at.kind))
		rule := lockAttrs(l.Network, unix.NFTA_RULE_TABLE).
			Text(unix.NFTA_RULE_CHAIN, c.name).
			Nest(unix.NFTA_RULE_EXPRESSIONS, c.rule(l))
		add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, rule)
	}
	return ms
}

// expressions is a list that grows.
type expressions struct{ netlink.Attrs }

func (x *expressions) add(name string, data netlink.Attrs) {
	e := netlink.Attrs{}.Text(unix.NFTA_EXPR_NAME, name)
	x.Attrs = x.Nest(unix.NFTA_LIST_ELEM, e.Nest(unix.NFTA_EXPR_DATA, data))
}

// tunnel is met by what only the network's tunnel takes, at a port of a host.
func (x *expressions) tunnel(l firewall.Lock) {
	matchPort(x.add, l.Port)
	if !l.Bound {
		x.add("payload", payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, vniAt, 3))
		x.add("cmp", compare(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint32(nil, l.VNI)[1:]))
	}
}

// peer is met if an address is, or is not, in the set.
func (x *expressions) peer(offset int, flags uint32) {
	x.add("payload", payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 4))
	x.add("lookup", netlink.Attrs{}.
		Text(unix.NFTA_LOOKUP_SET, lockSet).
		Uint32BE(unix.NFTA_LOOKUP_SREG, register).
		Uint32BE(unix.NFTA_LOOKUP_FLAGS, flags))
}

func (x *expressions) drop() netlink.Attrs {
	x.add("counter", counter())
	x.add("immediate", verdict(nfDrop))
	return x.Attrs
}

// lockInput is the rule for what comes to this host, as nft(8) writes it:
//
//	udp dport 8472 @th,96,24 1 ip saddr != @peers counter drop
//	ip daddr 192.0.2.7 udp dport 8285 ip saddr != @peers counter drop
func lockInput(l firewall.Lock) netlink.Attrs {
	var x expressions
	if l.Bound {
		matchAddress(x.add, firewall.In(netip.PrefixFrom(l.Local, l.Local.BitLen())), IPv4.destination())
	}
	x.tunnel(l)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	return x.drop()
}

// lockTranslated is the rule for what leaves with an address that is not its own. The tunnel's own
// packets may have got one, and so may those of peers that this host routes for:
//
//	udp dport 8472 @th,96,24 1 ip daddr @peers ip saddr != @peers ct status snat
//	    ct original ip saddr != 192.0.2.7 counter drop
func lockTranslated(l firewall.Lock) netlink.Attrs {
	const snat = 1 << 4 // IPS_SRC_NAT of enum ip_conntrack_status
	var x expressions
	x.tunnel(l)
	x.peer(IPv4.destination(), 0)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	x.add("ct", load(unix.NFTA_CT_DREG).Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS))
	x.add("bitwise", and(binary.NativeEndian.AppendUint32(nil, snat)))
	x.add("cmp", compare(unix.NFT_CMP_NEQ, make([]byte, 4)))
	x.add("ct", load(unix.NFTA_CT_DREG).
		Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_SRC_IP).
		Bytes(unix.NFTA_CT_DIRECTION, []byte{0}))
	x.add("cmp", compare(unix.NFT_CMP_NEQ, l.Local.AsSlice()))
	return x.drop()
}

// lockElements add addresses to the set, or remove them.
func lockElements(network netip.Prefix, kind uint16, peers []netip.Addr) (ms []message) {
	m := message{kind: kind, family: IPv4}
	if kind == unix.NFT_MSG_NEWSETELEM {
		m.flags = unix.NLM_F_CREATE
	}
	for some := range slices.Chunk(peers, lockBatch) {
		var list netlink.Attrs
		for _, a := range some {
			key := netlink.Attrs{}.Addr(unix.NFTA_DATA_VALUE, a)
			list = list.Nest(unix.NFTA_LIST_ELEM, netlink.Attrs{}.Nest(unix.NFTA_SET_ELEM_KEY, key))
		}
		m.body = lockAttrs(network, unix.NFTA_SET_ELEM_LIST_TABLE).
			Text(unix.NFTA_SET_ELEM_LIST_SET, lockSet).
			Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		ms = append(ms, m)
	}
	return ms
}

// lockSound reports whether there is a table for a network's lock, and whether it is as
// lockMessages makes it, whatever the set holds.
func (c *conn) lockSound(l firewall.Lock) (there, sound bool, err error) {
	name := lockPrefix + l.Network.String()
	tables, err := c.tables(IPv4)
	if err != nil {
		return false, false, err
	}
	i := slices.IndexFunc(tables, func(t table) bool { return t.name == name })
	if i < 0 {
		return false, false, nil
	}
	if tables[i].flags != 0 || tables[i].uses != len(lockChains())+1 { // and the set
		return true, false, nil
	}
	chains, err := c.chains(IPv4)
	if err != nil {
		return true, false, err
	}
	plain, err := c.lockSetPlain(name)
	if err != nil || !plain {
		return true, false, err
	}
	for _, want := range lockChains() {
		in := chainName{IPv4, name, want.name}
		i := slices.IndexFunc(chains, func(ch chain) bool { return ch.chainName == in })
		if i < 0 || !chains[i].base || chains[i].place != want.at || chains[i].policy != nfAccept {
			return true, false, nil
		}
		rules, err := c.lockRules(in)
		wanted := described(parseExpressions(want.rule(l)))
		if err != nil || len(rules) != 1 || !slices.Equal(rules[0], wanted) {
			return true, false, err
		}
	}
	return true, true, nil
}

// lockRules lists a chain of a lock.
func (c *conn) lockRules(in chainName) (rules [][]string, err error) {
	err = c.dump(unix.NFT_MSG_GETRULE, in.ruleAttrs(), func(_ Family, m map[uint16]netlink.Value) {
		if m[unix.NFTA_RULE_TABLE].Text() == in.table && m[unix.NFTA_RULE_CHAIN].Text() == in.name {
			rules = append(rules, described(parseExpressions(m[unix.NFTA_RULE_EXPRESSIONS])))
		}
	}, IPv4)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", in, err)
	}
	return rules, nil
}

// lockSetPlain reports whether the set is one of IPv4 addresses without more.
func (c *conn) lockSetPlain(table string) (bool, error) {
	body := netlink.Attrs{}.Text(unix.NFTA_SET_TABLE, table).Text(unix.NFTA_SET_NAME, lockSet)
	a, err := c.get(message{kind: unix.NFT_MSG_GETSET, family: IPv4, body: body})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read set %s of ip %s: %w", lockSet, table, err)
	}
	m := a.Map()
	return m[unix.NFTA_SET_FLAGS].Uint32BE() == 0 && m[unix.NFTA_SET_KEY_LEN].Uint32BE() == 4, nil
}

// lockPeers lists the set. While the kernel makes room in one that has grown, which it does a moment
// after the writing, a list may leave addresses out. So one without some of the peers is completed by
// others, as long as they find more.
func (c *conn) lockPeers(
	network netip.Prefix, peers map[netip.Addr]struct{},
) (map[netip.Addr]struct{}, error) {
	all := map[netip.Addr]struct{}{}
	body := lockAttrs(network, unix.NFTA_SET_ELEM_LIST_TABLE).
		Text(unix.NFTA_SET_ELEM_LIST_SET, lockSet)
	for range attempts {
		before := len(all)
		err := c.dump(unix.NFT_MSG_GETSETELEM, body, func(_ Family, m map[uint16]netlink.Value) {
			for _, e := range m[unix.NFTA_SET_ELEM_LIST_ELEMENTS].All() {
				if a, ok := elementAddress(e); ok {
					all[a] = struct{}{}
				}
			}
		}, IPv4)
		if err != nil {
			return nil, fmt.Errorf("list set %s of %s: %w", lockSet, LockTable(network), err)
		}
		if len(all) == before || len(missing(peers, all)) == 0 {
			break
		}
	}
	return all, nil
}

func elementAddress(element netlink.Value) (netip.Addr, bool) {
	for kind, key := range element.All() {
		if kind != unix.NFTA_SET_ELEM_KEY {
			continue
		}
		for kind, v := range key.All() {
			if kind == unix.NFTA_DATA_VALUE {
				a, ok := netip.AddrFromSlice(v)
				return a, ok && a.Is4()
			}
		}
	}
	return netip.Addr{}, false
}

// described returns expressions in a form in which equal effects compare equal. Expressions that a
// lock does not have compare equal to none.
func described(list []expression) (all []string) {
	for _, x := range list {
		u := func(kind uint16) uint32 { return x.data[kind].Uint32BE() }
		value := func(kind uint16) []byte { return x.data[kind].Map()[unix.NFTA_DATA_VALUE] }
		text := "unknown " + x.name
		switch x.name {
		case "meta":
			text = fmt.Sprint("meta ", u(unix.NFTA_META_KEY), u(unix.NFTA_META_DREG))
		case "payload":
			text = fmt.Sprint("payload ", u(unix.NFTA_PAYLOAD_BASE), u(unix.NFTA_PAYLOAD_OFFSET),
				u(unix.NFTA_PAYLOAD_LEN), u(unix.NFTA_PAYLOAD_DREG))
		case "cmp":
			text = fmt.Sprintf("cmp %d %d %x",
				u(unix.NFTA_CMP_SREG), u(unix.NFTA_CMP_OP), value(unix.NFTA_CMP_DATA))
		case "lookup":
			text = fmt.Sprintf("lookup %s %d %d %x", x.data[unix.NFTA_LOOKUP_SET].Text(),
				u(unix.NFTA_LOOKUP_SREG), u(unix.NFTA_LOOKUP_FLAGS), []byte(x.data[unix.NFTA_LOOKUP_DREG]))
		case "ct":
			text = fmt.Sprintf("ct %d %d %x",
				u(unix.NFTA_CT_KEY), u(unix.NFTA_CT_DREG), []byte(x.data[unix.NFTA_CT_DIRECTION]))
		case "bitwise":
			text = fmt.Sprintf("bitwise %d %d %x %x",
				u(unix.NFTA_BITWISE_SREG), u(unix.NFTA_BITWISE_DREG),
				value(unix.NFTA_BITWISE_MASK), value(unix.NFTA_BITWISE_XOR))
		case "counter":
			text = "counter"
		case "immediate":
			if code, chain, ok := x.verdict(); ok {
				text = fmt.Sprintf("verdict %d %s", code, chain)
			}
		}
		all = append(all, text)
	}
	return all
}
