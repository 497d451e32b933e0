package nftables

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoCommandForOtherNames: the kernel permits any name of a table or a chain, nft does not, and would
// execute what follows a semicolon.
func TestNoCommandForOtherNames(t *testing.T) {
	at := place{"filter", unix.NF_INET_FORWARD, 0}
	for _, c := range []struct {
		name chainName
		want string
	}{
		{chainName{IPv4, "my-table", "in_put.0"}, "nft add chain ip my-table in_put.0 '{ type filter hook forward priority 0; policy accept; }'"},
		{chainName{IPv4, "t", "c; flush ruleset"}, ""},
		{chainName{IPv4, "$(id)", "c"}, ""},
		{chainName{IPv4, "", "c"}, ""},
		{chainName{IPv4, "t", "1"}, ""},
	} {
		change := c.name.create(at).change()
		if change.Command != c.want || change.Object != "chain ip "+c.name.table+" "+c.name.name {
			t.Errorf("%q: %+v, want %s", c.name, change, c.want)
		}
	}
}
