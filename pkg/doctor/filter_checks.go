package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/firewall"
)

// filterChecks returns the checks of the rules of all packet filters of this host.
func filterChecks() []Check {
	return []Check{
		{ID: aboutForward, Rank: rankFilter, Explains: []string{"packet-filter/chain/"}, Run: func(ctx context.Context, in *Inputs) Result {
			return in.passes(ctx, aboutForward, "containers of this host and of other hosts may send to each other", "this host forwards nothing for the overlay",
				func(w Ways, b firewall.Barrier) string { return b.TrustCommand(w.Network) })
		}},
		{ID: aboutInput, Rank: rankFilter + 1, Explains: []string{"tunnel-port/"}, Run: func(ctx context.Context, in *Inputs) Result {
			return in.passes(ctx, aboutInput, "packets of other hosts reach the tunnel port", "the backend has no tunnel port, or there are no other hosts",
				func(w Ways, b firewall.Barrier) string { return b.OpenCommand(w.Port) })
		}},
		{ID: aboutOutput, Rank: rankFilter + 2, Run: func(ctx context.Context, in *Inputs) Result {
			return in.passes(ctx, aboutOutput, "this host may send to the tunnel port of other hosts", "the backend has no tunnel port, or there are no other hosts",
				func(w Ways, b firewall.Barrier) string { return b.OpenCommand(w.Port) })
		}},
		{ID: aboutNAT, Rank: rankFilter + 5, Run: checkOverlayNAT},
		{ID: aboutOutside, Rank: rankFilter + 6, Run: checkOutsideNAT},
		{ID: aboutBridge, Rank: rankFilter + 4, Run: checkBridgeFilter},
		{ID: "FL-FIREWALL-TOOL", Rank: rankHost + 9, Run: checkFirewallTool},
	}
}

// passages returns what was found about the packets of a check, or the reason why nothing was.
func (in *Inputs) passages(ctx context.Context, about string) (w Ways, all []Passage, r *Result, legacy error) {
	unknown := func(err error) *Result {
		r := unknownf("cannot follow packets through the rules: %v", err)
		return &r
	}
	w, err := in.Ways.Get(ctx)
	if err != nil {
		return w, nil, unknown(err), nil
	}
	found, err := in.Passages.Get(ctx)
	if err != nil {
		return w, nil, unknown(err), nil
	}
	all = slices.DeleteFunc(slices.Clone(found.All), func(p Passage) bool { return p.About != about })
	return w, all, nil, found.Legacy
}

// passes fails if some packets of a check are dropped.
func (in *Inputs) passes(ctx context.Context, about, fine, none string, mend func(Ways, firewall.Barrier) string) Result {
	w, all, r, legacy := in.passages(ctx, about)
	if r != nil {
		return *r
	}
	var dropped, unclear []Passage
	for _, p := range all {
		switch {
		case p.Dropped != nil:
			dropped = append(dropped, p)
		case p.Unclear != nil:
			unclear = append(unclear, p)
		}
	}
	switch {
	case len(dropped) > 0:
		p := dropped[0]
		return failf(mends(dropped, func(b firewall.Barrier) string { return mend(w, b) }), "%s are dropped by %s%s",
			p.What, in.ruleText(ctx, *p.Dropped, p.Dropped.Rule), andOthers(dropped))
	case legacy != nil:
		return unknownf("cannot read all rules: %v", legacy)
	case len(unclear) > 0:
		return in.unclear(ctx, unclear)
	case len(all) == 0:
		return okf("%s", none)
	}
	return okf("%s", fine)
}

// mends returns the commands that mend all barriers, each once.
func mends(dropped []Passage, mend func(firewall.Barrier) string) string {
	var commands []string
	for _, p := range dropped {
		if c := mend(*p.Dropped); !slices.Contains(commands, c) {
			commands = append(commands, c)
		}
	}
	return strings.Join(commands, "\n")
}

// andOthers returns how many other kinds of packets have the same result.
func andOthers(all []Passage) string {
	switch len(all) {
	case 0, 1:
		return ""
	case 2:
		return ", and one other kind of packets"
	}
	return fmt.Sprintf(", and %d other kinds of packets", len(all)-1)
}

func (in *Inputs) unclear(ctx context.Context, all []Passage) Result {
	p := all[0]
	effect := "dropped"
	if p.Unclear.Translates {
		effect = "redirected"
	}
	rule := p.Unclear.Unclear
	if rule == (firewall.RuleRef{}) {
		rule = p.Unclear.Rule
	}
	return unknownf("%s may be %s: the result depends on %s, which cannot be evaluated here%s", p.What, effect, in.ruleText(ctx, *p.Unclear, rule), andOthers(all))
}

// checkOverlayNAT fails if packets between containers of two hosts are masqueraded: the receiver
// sees a host's address.
func checkOverlayNAT(ctx context.Context, in *Inputs) Result {
	w, all, r, legacy := in.passages(ctx, aboutForward)
	if r != nil {
		return *r
	}
	for _, p := range all {
		if b := p.Translated; b != nil {
			return failf(b.ExemptCommand(w.Network, w.Network), "%s get another source address from %s", p.What, in.ruleText(ctx, *b, b.Rule))
		}
	}
	if legacy != nil {
		return unknownf("cannot read all rules: %v", legacy)
	}
	for _, p := range all {
		if b := p.Unclear; b != nil && b.Translates && b.Point == firewall.AtPostRouting {
			return unknownf("%s may get another source address from %s, which cannot be evaluated here", p.What, in.ruleText(ctx, *b, b.Unclear))
		}
	}
	return okf("packets between containers keep their addresses")
}

// checkOutsideNAT fails if packets that leave the network are not masqueraded though this host
// should do it.
func checkOutsideNAT(ctx context.Context, in *Inputs) Result {
	_, all, r, legacy := in.passages(ctx, aboutOutside)
	if r != nil {
		return *r
	}
	env, err := in.Env.Get(ctx)
	for _, p := range all {
		switch {
		case p.Translated != nil:
			return okf("packets that leave the network are masqueraded")
		case legacy != nil:
			return unknownf("cannot read all rules: %v", legacy)
		case p.Unclear != nil || p.Dropped != nil:
			b := p.Unclear
			if b == nil {
				b = p.Dropped
			}
			return unknownf("whether packets that leave the network are masqueraded depends on %s", in.ruleText(ctx, *b, b.Rule))
		case err != nil:
			return unknownf("packets that leave the network are not masqueraded, and the subnet file does not say whether they should be: %v", err)
		case env.IPMasq:
			return failf("systemctl restart flanneld", "packets that leave the network are not masqueraded, though flanneld was started with -ip-masq")
		}
	}
	return okf("packets that leave the network keep their addresses: neither flanneld (-ip-masq) nor docker masquerades them")
}

// checkBridgeFilter fails if packets between containers on one bridge pass the packet filter
// (br_netfilter) and are dropped there.
func checkBridgeFilter(ctx context.Context, in *Inputs) Result {
	values, err := in.Sysctls.Get(ctx)
	switch {
	case err != nil:
		return unknownf("cannot read sysctls: %v", err)
	case values[bridgeFilter] == "":
		return okf("packets between containers of this host do not pass its packet filter: br_netfilter is not loaded")
	case values[bridgeFilter] == "0":
		return okf("packets between containers of this host do not pass its packet filter: %s is 0", bridgeFilter)
	}
	return in.passes(ctx, aboutBridge, "containers of this host may send to each other", "this host has no bridge for containers",
		func(w Ways, b firewall.Barrier) string { return b.TrustCommand(w.Network) })
}
