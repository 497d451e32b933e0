package nftables

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// removal returns, as commands, what a Sync with nothing wanted would change. It changes nothing
// itself.
func (t *Tables) removal(ctx context.Context, r firewall.Ruleset) (commands []string, err error) {
	r.Chains = nil
	err = t.retry(ctx, func() error {
		w, err := t.conn.list(familyOf(r.Family))
		if err == nil {
			for _, m := range newPlan(r, w).messages {
				commands = append(commands, m.command())
			}
		}
		return err
	})
	return commands, err
}

// command returns a deletion in the syntax of nft(8).
func (m message) command() string {
	a := m.body.Map()
	switch m.kind {
	case unix.NFT_MSG_DELTABLE:
		return fmt.Sprintf("nft delete table %s %s", m.family, a[unix.NFTA_TABLE_NAME].Text())
	case unix.NFT_MSG_DELCHAIN:
		c := chainName{m.family, a[unix.NFTA_CHAIN_TABLE].Text(), a[unix.NFTA_CHAIN_NAME].Text()}
		return fmt.Sprint("nft delete chain ", c)
	}
	c := chainName{m.family, a[unix.NFTA_RULE_TABLE].Text(), a[unix.NFTA_RULE_CHAIN].Text()}
	if handle := a[unix.NFTA_RULE_HANDLE].Uint64BE(); handle != 0 {
		return fmt.Sprintf("nft delete rule %s handle %d", c, handle)
	}
	return fmt.Sprint("nft flush chain ", c)
}
