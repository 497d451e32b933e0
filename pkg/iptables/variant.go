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

// NewVariant is Variant of a new Finder.
func NewVariant(family Family, legacy bool) (*Tables, error) {
	return new(Finder).Variant(family, legacy)
}

// Variant finds the commands of one variant by their own names, whichever the
// host's iptables is. The error is ErrNotFound when there are none.
func (f *Finder) Variant(family Family, legacy bool) (*Tables, error) {
	c := family.command() + "-nft"
	if legacy {
		c = legacyCommand(family)
	}
	t, err := f.find(c, c+"-save", c+"-restore", patience)
	if err == nil && t.legacy != legacy {
		return nil, fmt.Errorf("%w: %s is of the other variant", ErrNotFound, c)
	}
	return t, err
}

func legacyCommand(f Family) string { return f.command() + "-legacy" }

// LegacyTables returns the names of the tables of the legacy variant that the kernel has.
// The commands must not be asked: they make the tables that they look at.
func LegacyTables(family Family) (names []string, err error) {
	file := map[Family]string{IPv4: "ip_tables_names", IPv6: "ip6_tables_names"}[family]
	text, err := os.ReadFile("/proc/thread-self/net/" + file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel has none at all, or not yet
	}
	if err != nil {
		return nil, fmt.Errorf("look for tables of the legacy iptables: %w", err)
	}
	return strings.Fields(string(text)), nil
}

// Beside is Sync where the overlay's rules are kept elsewhere: of what is wanted our chains
// hold only accepts, and only where a policy or rules of others may drop what the overlay
// forwards.
func (t *Tables) Beside(ctx context.Context, owner firewall.Owner, want []firewall.Chain) (changes []string, err error) {
	return t.keep(ctx, owner, func(text string, l listing) (needed []firewall.Chain) {
		for _, c := range firewall.Accepts(want) {
			if c.Hook == firewall.PreRouting || c.Hook == firewall.Forward && mayDrop(l, policies(text)) {
				needed = append(needed, c)
			}
		}
		return needed
	})
}

// mayDrop reports whether chain FORWARD has more than accepts, beside what is ours.
func mayDrop(l listing, policies map[string]string) bool {
	const name = "FORWARD"
	filter := l["filter"]
	return policies["filter "+name] == "DROP" || slices.ContainsFunc(filter[name], func(rule string) bool {
		s, _ := parseRule(rule)
		do, _, ends := actionOf("-j", s.target, filter)
		return ends && do != firewall.Pass && do != firewall.Back && s.target != firewall.Forward.SharedChain()
	})
}
