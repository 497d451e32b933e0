package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// checkLock reports whether a network's lock table exists, and whether it is as createLock writes
// it, regardless of the elements of the set.
func (c *conn) checkLock(l firewall.Lock) (there, sound bool, err error) {
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
	plain, err := c.checkLockSet(name)
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
		wanted := describe(parseExpressions(want.rule(l)))
		if err != nil || len(rules) != 1 || !slices.Equal(rules[0], wanted) {
			return true, false, err
		}
	}
	return true, true, nil
}

// lockRules returns the rules of a chain of a lock, as describe formats them.
func (c *conn) lockRules(in chainName) (rules [][]string, err error) {
	err = c.dump(unix.NFT_MSG_GETRULE, in.ruleAttrs(), func(_ Family, m map[uint16]netlink.Value) {
		if m[unix.NFTA_RULE_TABLE].Text() == in.table && m[unix.NFTA_RULE_CHAIN].Text() == in.name {
			rules = append(rules, describe(parseExpressions(m[unix.NFTA_RULE_EXPRESSIONS])))
		}
	}, IPv4)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", in, err)
	}
	return rules, nil
}

// checkLockSet reports whether the set is a plain set of IPv4 addresses.
func (c *conn) checkLockSet(table string) (bool, error) {
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

// lockPeers lists the set. While the kernel resizes a set that has grown, shortly after the write,
// a list may omit elements. So if peers are missing, it lists again as long as that yields more.
func (c *conn) lockPeers(
	network netip.Prefix, peers map[netip.Addr]struct{},
) (map[netip.Addr]struct{}, error) {
	all := map[netip.Addr]struct{}{}
	body := lockAttrs(network, unix.NFTA_SET_ELEM_LIST_TABLE).
		Text(unix.NFTA_SET_ELEM_LIST_SET, lockSet)
	for range maxAttempts {
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

// describe returns expressions in a form in which equal expressions are equal strings. Expressions
// that a lock does not contain are unequal to all others.
func describe(list []expression) (all []string) {
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
