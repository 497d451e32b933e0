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
	tables, chains, err := c.chains(IPv4)
	i := slices.IndexFunc(tables, func(t table) bool { return t.name == lockTable(l.Network) })
	if err != nil || i < 0 {
		return false, false, err
	}
	sound, err = c.isLock(l, tables[i], chains)
	return true, sound, err
}

func (c *conn) isLock(l firewall.Lock, t table, chains []chain) (bool, error) {
	if t.flags != 0 || t.uses != len(lockChains())+1 { // and the set
		return false, nil
	}
	set, err := c.setAttrs(t, lockSet)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil || set[unix.NFTA_SET_FLAGS].Uint32BE() != 0 || set[unix.NFTA_SET_KEY_LEN].Uint32BE() != 4 {
		return false, err
	}
	for _, want := range lockChains() {
		in := chainName{IPv4, t.name, want.name}
		i := slices.IndexFunc(chains, func(ch chain) bool { return ch.chainName == in })
		if i < 0 || !chains[i].base || chains[i].place != want.at || chains[i].policy != nfAccept {
			return false, nil
		}
		var rules [][]string
		err := c.eachRule(in, func(m map[uint16]netlink.Value) {
			rules = append(rules, describe(parseExpressions(m[unix.NFTA_RULE_EXPRESSIONS])))
		})
		wanted := describe(parseExpressions(want.rule(l)))
		if err != nil || len(rules) != 1 || !slices.Equal(rules[0], wanted) {
			return false, err
		}
	}
	return true, nil
}

// lockPeers lists the set. While the kernel resizes a set that has grown, shortly after the write,
// a list may omit elements. So if peers are missing, it lists again as long as that yields more.
func (c *conn) lockPeers(
	network netip.Prefix, peers map[netip.Addr]struct{},
) (map[netip.Addr]struct{}, error) {
	all := map[netip.Addr]struct{}{}
	for range maxAttempts {
		before := len(all)
		err := c.eachElement(table{family: IPv4, name: lockTable(network)}, lockSet, func(e netlink.Value) {
			if a, ok := elementAddress(e); ok {
				all[a] = struct{}{}
			}
		})
		if err != nil {
			return nil, err
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
// that a lock does not contain are unequal to all of its own.
func describe(list []expression) (all []string) {
	compared := map[string][]uint16{ // the attributes that make a difference
		"meta":    {unix.NFTA_META_KEY, unix.NFTA_META_DREG},
		"payload": {unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN, unix.NFTA_PAYLOAD_DREG},
		"cmp":     {unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA},
		"lookup":  {unix.NFTA_LOOKUP_SET, unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_FLAGS, unix.NFTA_LOOKUP_DREG},
		"ct":      {unix.NFTA_CT_KEY, unix.NFTA_CT_DREG, unix.NFTA_CT_DIRECTION},
		"bitwise": {unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR},
		"counter": {},
	}
	for _, x := range list {
		kinds, known := compared[x.name]
		text := x.name
		if code, chain, ok := x.verdict(); ok {
			text = fmt.Sprintf("verdict %d %s", code, chain)
		} else if !known {
			text = "unknown " + x.name
		}
		for _, kind := range kinds {
			text += fmt.Sprintf(" %x", []byte(x.data[kind]))
		}
		all = append(all, text)
	}
	return all
}
