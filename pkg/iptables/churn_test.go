package iptables

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"flanneld/pkg/firewall"
)

// whole is what a listing shows of a hook when our chain is as wanted.
func whole(want []firewall.Chain, a anchor) string {
	var b strings.Builder
	for _, c := range want {
		if c.Hook == a.hook {
			for _, r := range c.Rules {
				b.WriteString(specOf(r, a.hook.Comment()).String() + "\n")
			}
		}
	}
	return b.String()
}

// normalized has the options in our order.
func normalized(rules string) string {
	var b strings.Builder
	for line := range strings.Lines(rules) {
		s, known := parseRule(strings.TrimSuffix(line, "\n"))
		if !known {
			return rules
		}
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// witness lists rules as fast as it can until stop is set. Each listing must contain one of the two
// rulesets completely.
func (b *bed) witness(stop *atomic.Bool, wants ...[]firewall.Chain) (listings int, err error) {
	for ; !stop.Load(); listings++ {
		out, err := exec.Command(filepath.Join(b.bin, "iptables-save")).Output()
		if err != nil {
			return listings, err
		}
		for _, a := range anchors()[:2] {
			jumps := strings.Count(chain(string(out), a.table, a.chain), "-j "+a.own+"\n")
			rules := normalized(chain(string(out), a.table, a.own))
			if jumps != 1 || rules != whole(wants[0], a) && rules != whole(wants[1], a) {
				return listings, fmt.Errorf("seen after %d listings:\n%s", listings, out)
			}
		}
	}
	return listings, nil
}

// TestReplacement lists rules while they are replaced many times, sometimes with a jump that has to
// be moved back.
func TestReplacement(t *testing.T) {
	eachVariant(t, func(b *bed) {
		rounds := 1000
		if !b.legacy() { // each of its transactions waits for the kernel
			rounds = 100
		}
		if testing.Short() {
			rounds = 50
		}
		wants := [][]firewall.Chain{everything(four), everything(other)}
		b.others(strangers)
		b.sync(wants[0])
		var stop atomic.Bool
		listings, done := 0, make(chan error, 1)
		go func() {
			done <- b.ns.Do(func() (err error) {
				listings, err = b.witness(&stop, wants...)
				return err
			})
		}()
		for i := range rounds {
			if i%10 == 0 {
				b.others("iptables -I FORWARD -i eth8 -j DROP")
			}
			if changes := b.sync(wants[(i+1)%2]); len(changes) < 2 {
				t.Fatalf("round %d: %q", i, changes)
			}
			if i%10 == 5 {
				b.others("iptables -D FORWARD -i eth8 -j DROP")
			}
		}
		stop.Store(true)
		err := <-done
		b.t.Logf("%d replacements, %d listings", rounds, listings)
		if err != nil {
			b.t.Error(err)
		}
		if listings < rounds/10 {
			b.t.Errorf("only %d listings", listings)
		}
	})
}
