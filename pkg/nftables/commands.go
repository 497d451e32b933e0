package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
	"flanneld/pkg/shell"
)

// plan returns what a Sync would change, as commands. It changes nothing itself.
func (t *Tables) plan(ctx context.Context, r firewall.Ruleset) (all []firewall.Change, err error) {
	err = t.retry(ctx, func() error {
		w, err := t.conn.list(familyOf(r.Family))
		if err != nil {
			return err
		}
		p := newPlan(r, w)
		all = nil
		for _, m := range p.messages {
			all = append(all, m.change())
		}
		return p.ownerError()
	})
	return all, err
}

// newChange returns a change whose command is nft with the verb, the kind, the words of the object
// and further ones. There is no command for an object that nft cannot name.
func newChange(verb, kind string, object []string, more ...string) firewall.Change {
	c := firewall.Change{Kind: kind, Verb: verb, Object: kind + " " + strings.Join(object, " ")}
	names := object[:min(len(object), 3)] // behind them is a handle
	if firewall.IsNFTName(names...) {
		c.Command = shell.Command(slices.Concat([]string{"nft", verb, kind}, object, more)...)
	}
	return c
}

// change returns a message as a command of nft(8).
func (m message) change() firewall.Change {
	a, family := m.body.Map(), m.family.String()
	table := []string{family, a[unix.NFTA_TABLE_NAME].Text()}
	chain := []string{family, a[unix.NFTA_CHAIN_TABLE].Text(), a[unix.NFTA_CHAIN_NAME].Text()}
	rule := []string{family, a[unix.NFTA_RULE_TABLE].Text(), a[unix.NFTA_RULE_CHAIN].Text()}
	switch m.kind {
	case unix.NFT_MSG_NEWTABLE:
		return newChange("add", "table", table)
	case unix.NFT_MSG_DELTABLE:
		return newChange("delete", "table", table)
	case unix.NFT_MSG_DELCHAIN:
		return newChange("delete", "chain", chain)
	case unix.NFT_MSG_NEWCHAIN:
		hook, is := a[unix.NFTA_CHAIN_HOOK]
		if !is {
			c := newChange("add", "chain", chain, "{ policy accept; }")
			c.Verb = "change"
			return c
		}
		return newChange("add", "chain", chain, chainText(placeOf(a[unix.NFTA_CHAIN_TYPE], hook)))
	case unix.NFT_MSG_NEWRULE:
		verb := "insert"
		if m.flags&unix.NLM_F_APPEND != 0 {
			verb = "add"
		}
		text := "of an unknown form"
		if r, ok := parseRule(m.family, parseExpressions(a[unix.NFTA_RULE_EXPRESSIONS]), a[unix.NFTA_RULE_USERDATA]); ok {
			text = r.String()
		}
		var at []string
		if behind := a[unix.NFTA_RULE_POSITION].Uint64BE(); behind != 0 {
			at = []string{"handle", strconv.FormatUint(behind, 10)}
		}
		c := newChange(verb, "rule", rule, append(at, ruleWords(text)...)...)
		c.Object += " " + text
		return c
	}
	if handle := a[unix.NFTA_RULE_HANDLE].Uint64BE(); handle != 0 {
		return newChange("delete", "rule", append(rule, "handle", strconv.FormatUint(handle, 10)))
	}
	return newChange("flush", "chain", rule)
}

// placeOf returns the place of a base chain.
func placeOf(kind, hook netlink.Value) place {
	h := hook.Map()
	return place{kind.Text(), h[unix.NFTA_HOOK_HOOKNUM].Uint32BE(), int32(h[unix.NFTA_HOOK_PRIORITY].Uint32BE())}
}

// chainText returns what a base chain is made of, in the syntax of nft(8).
func chainText(p place) string {
	hook := [...]string{
		unix.NF_INET_PRE_ROUTING: "prerouting", unix.NF_INET_LOCAL_IN: "input", unix.NF_INET_FORWARD: "forward",
		unix.NF_INET_LOCAL_OUT: "output", unix.NF_INET_POST_ROUTING: "postrouting",
	}[p.hook]
	return fmt.Sprintf("{ type %s hook %s priority %d; policy accept; }", p.kind, hook, p.priority)
}

// String returns the rule in the syntax of nft(8).
func (r rule) String() string {
	var words []string
	if r.Mark != 0 {
		words = append(words, fmt.Sprintf("meta mark & %#x == %#[1]x", r.Mark))
	}
	for _, a := range []struct {
		name string
		firewall.Match
	}{{"saddr", r.Src}, {"daddr", r.Dst}} {
		if a.Prefix.IsValid() {
			words = append(words, r.Family.String(), a.name)
			if a.Not {
				words = append(words, "!=")
			}
			words = append(words, prefixText(a.Prefix))
		}
	}
	if r.Port != 0 {
		words = append(words, fmt.Sprint("udp dport ", r.Port))
	}
	if r.Counter {
		words = append(words, "counter")
	}
	words = append(words, [...]string{
		firewall.Return: "return", firewall.Accept: "accept", firewall.Discard: "drop",
		firewall.Masquerade: "masquerade", firewall.MasqueradeRandom: "masquerade fully-random",
	}[r.Verdict])
	if r.Comment != "" {
		words = append(words, `comment "`+r.Comment+`"`)
	}
	return strings.Join(words, " ")
}

// prefixText returns a prefix as nft(8) prints it.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// ruleWords splits the text of a rule at spaces, except in a comment, which is its end.
func ruleWords(text string) []string {
	body, comment, has := strings.Cut(text, ` comment "`)
	words := strings.Fields(body)
	if has {
		words = append(words, "comment", `"`+comment)
	}
	return words
}

// PlanLock returns what SyncLock would change, as commands. It changes nothing itself.
func (t *Tables) PlanLock(ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) (all []firewall.Change, err error) {
	err = t.retry(ctx, func() error {
		c, err := t.conn.compareLock(l, peers, prune)
		if err == nil {
			all = c.changes(l)
		}
		return err
	})
	return all, err
}

// PlanUnlock returns what Unlock would change, as commands.
func (t *Tables) PlanUnlock(network netip.Prefix) ([]firewall.Change, error) {
	locked, err := t.Locked(network)
	if err != nil || !locked {
		return nil, err
	}
	return []firewall.Change{newChange("delete", "table", []string{"ip", lockTable(network)})}, nil
}

// changes returns the changes of a lock as commands.
func (c lockChange) changes(l firewall.Lock) (all []firewall.Change) {
	table := []string{"ip", lockTable(l.Network)}
	in := func(name string) []string { return append(slices.Clone(table), name) }
	if c.there && !c.sound {
		all = append(all, newChange("delete", "table", table))
	}
	if !c.sound {
		all = append(all, newChange("add", "table", table), newChange("add", "set", in(lockSet), "{ type ipv4_addr; }"))
		for _, b := range lockChains() {
			rule := newChange("add", "rule", in(b.name), strings.Fields(b.text(l))...)
			rule.Object += " " + b.text(l)
			all = append(all, newChange("add", "chain", in(b.name), chainText(b.at)), rule)
		}
	}
	for _, e := range []struct {
		verb  string
		peers []netip.Addr
	}{{"add", c.add}, {"delete", c.remove}} {
		for some := range slices.Chunk(e.peers, lockBatch) {
			var names []string
			for _, a := range some {
				names = append(names, a.String())
			}
			list := strings.Join(names, ", ")
			change := newChange(e.verb, "element", in(lockSet), "{ "+list+" }")
			change.Object += " " + list
			all = append(all, change)
		}
	}
	return all
}
