package firewall

// OldRuleset is what a range of earlier releases wrote to chains that they share with other
// programs. Before v0.16.2 the rules have no comment, so they are recognised only if all of them
// are present, in this order.
type OldRuleset struct {
	Releases string
	Hook     Hook
	Rules    []Rule
	// Chain, if not empty, is the release's own chain, to which the first rule jumps.
	Chain      string
	ChainRules []Rule
}

// OldComments returns the comments of rules of v0.16.2 and later; the last is a typo of v0.16.3.
func OldComments() []string {
	return []string{PostRouting.Comment(), Forward.Comment(), "flannel masq"}
}

// OldRulesets returns what the releases without chains of their own wrote for an overlay. Random
// ports and comments, which came later, are ignored in the comparison.
func OldRulesets(o Overlay) []OldRuleset {
	n, s := o.Network, o.Subnet
	leaving := Rule{Src: In(n), Dst: NotIn(multicast(n)), Verdict: Masquerade}
	entering := Rule{Src: NotIn(n), Dst: In(n), Verdict: Masquerade}
	staying := Rule{Src: In(n), Dst: In(n), Verdict: Return}
	return []OldRuleset{
		{
			Releases: "v0.8.0 to v0.19", Hook: PostRouting,
			Rules: []Rule{staying, leaving, {Src: NotIn(n), Dst: In(s), Verdict: Return}, entering},
		},
		{Releases: "v0.5.6 to v0.7.1", Hook: PostRouting, Rules: []Rule{staying, leaving, entering}},
		{
			Releases: "v0.5.0 to v0.5.5", Hook: PostRouting,
			Rules:      []Rule{{Src: In(n)}, entering},
			Chain:      "FLANNEL",
			ChainRules: []Rule{{Dst: In(n), Verdict: Accept}, {Dst: NotIn(multicast(n)), Verdict: Masquerade}},
		},
		{
			Releases: "v0.9.1 to v0.19", Hook: Forward,
			Rules: []Rule{{Src: In(n), Verdict: Accept}, {Dst: In(n), Verdict: Accept}},
		},
	}
}
