package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"flanneld/pkg/firewall"
)

// legacyTables returns the names of the legacy tables that the kernel has. It does not call the
// commands, because they create the tables that they list.
func legacyTables(f firewall.Family) (names []string, err error) {
	file := [...]string{"ip_tables_names", "ip6_tables_names"}[f]
	text, err := os.ReadFile("/proc/thread-self/net/" + file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel module is not loaded
	}
	if err != nil {
		return nil, fmt.Errorf("look for tables of the legacy iptables: %w", err)
	}
	return strings.Fields(string(text)), nil
}

// SyncAccepts is Sync if another keeper holds the overlay's rules: our chains hold only accepts,
// and only where a policy or rules of others may drop forwarded packets of the overlay.
func (t *Tables) SyncAccepts(ctx context.Context, owner firewall.Owner, want []firewall.Chain) (changes []string, err error) {
	return t.syncChains(ctx, owner, func(l listing, drops policies) []firewall.Chain { return neededAccepts(want, l, drops) })
}

// neededAccepts returns the accepts of chains that are needed where other chains may drop packets.
func neededAccepts(want []firewall.Chain, l listing, drops policies) []firewall.Chain {
	return slices.DeleteFunc(firewall.Accepts(want), func(c firewall.Chain) bool {
		return c.Hook != firewall.PreRouting && !(c.Hook == firewall.Forward && forwardMayDrop(l["filter"], drops))
	})
}

// forwardMayDrop reports whether chain FORWARD may drop packets by rules that are not ours.
func forwardMayDrop(filter table, drops policies) bool {
	return drops["filter FORWARD"] || slices.ContainsFunc(filter["FORWARD"], func(rule string) bool {
		s, _ := parseRule(rule)
		do, _, ends := actionOf("-j", s.target, filter)
		return ends && do != firewall.Pass && do != firewall.Back && s.target != firewall.Forward.SharedChain()
	})
}
