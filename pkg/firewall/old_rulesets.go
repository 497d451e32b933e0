package firewall

// OldRuleset is what one generation of the original has left in chains that it
// shares with others. Its rules bear no mark of their own before v0.16.2, so
// they are known by being all there, in this order.
type OldRuleset struct {
	Releases string
	Hook     Hook
	Rules    []Rule
	// Chain, if not empty, is a chain of the generation's own, to which the
	// first rule jumps instead of giving a verdict.
	Chain      string
	ChainRules []Rule
}

// OldComments mark rules of v0.16.2 and later; the last was a slip of v0.16.3.
func OldComments() []string {
	return []string{PostRouting.Comment(), Forward.Comment(), "flannel masq"}
}

// OldRulesets gives what the generations before chains of their own have left
// for an overlay. Ports at random and comments came later and make no
// difference here.
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
