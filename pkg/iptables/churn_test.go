package iptables

import (
	"errors"
	"testing"

	"flanneld/pkg/firewall"
)

// isComplete reports whether a listing has one jump to a hook's chain, and the wanted rules in it.
func isComplete(l listing, want firewall.Chain) bool {
	var rules []spec
	for _, r := range want.Rules {
		rules = append(rules, specOf(r, want.Hook.Comment()))
	}
	have, own := l[want.Hook.Table()], want.Hook.SharedChain()
	return have.references(own) == 1 && equal(have[own], rules)
}

// TestReplacement lists rules while they are replaced many times, every other time with a jump that
// has to be moved back. In each listing, the first two chains must be completely as in one of the rulesets.
func TestReplacement(t *testing.T) {
	eachVariant(t, func(b *bed) {
		rounds := 200
		if !b.legacy() { // each of its transactions waits for the kernel
			rounds = 50
		}
		if testing.Short() {
			rounds = 50
		}
		wants := [][]firewall.Chain{everything(four), everything(other)}
		b.others(strangers)
		b.sync(wants[0])
		listings := b.whileListing(func() {
			for i := range rounds {
				if i%2 == 0 {
					b.others("iptables -I FORWARD -i eth8 -j DROP")
				}
				if changes := b.sync(wants[(i+1)%2]); len(changes) < 2 {
					b.t.Errorf("round %d: %q", i, changes)
				}
				if i%2 == 1 {
					b.others("iptables -D FORWARD -i eth8 -j DROP")
				}
			}
		}, func(l listing) error {
			for i, old := range wants[0][:2] {
				if !isComplete(l, old) && !isComplete(l, wants[1][i]) {
					return errors.New("neither the old nor the new rules are complete")
				}
			}
			return nil
		})
		b.t.Logf("%d replacements, %d listings", rounds, listings)
		if listings < rounds/10 {
			b.t.Errorf("only %d listings", listings)
		}
	})
}
