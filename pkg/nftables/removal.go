package nftables

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// Removal returns, as commands, what a Sync with nothing wanted would change. It changes nothing
// itself.
func (t *Tables) Removal(_ context.Context, family Family, owner firewall.Owner) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, err := t.conn.list(family)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var commands []string
	for _, m := range newPlan(family, owner, wanted{}, w).messages {
		commands = append(commands, m.command())
	}
	return commands, nil
}

// command returns a deletion in the syntax of nft(8).
func (m message) command() string {
	text := map[uint16]string{}
	var handle uint64
	for kind, v := range m.body.All() {
		if m.kind == unix.NFT_MSG_DELRULE && kind == unix.NFTA_RULE_HANDLE {
			handle = v.Uint64BE()
		} else {
			text[kind] = string(bytes.TrimRight(v, "\x00"))
		}
	}
	chain := fmt.Sprintf("%s %s %s", m.family, text[unix.NFTA_RULE_TABLE], text[unix.NFTA_RULE_CHAIN])
	switch {
	case m.kind == unix.NFT_MSG_DELTABLE:
		return fmt.Sprintf("nft delete table %s %s", m.family, text[unix.NFTA_TABLE_NAME])
	case m.kind == unix.NFT_MSG_DELCHAIN:
		table, name := text[unix.NFTA_CHAIN_TABLE], text[unix.NFTA_CHAIN_NAME]
		return fmt.Sprintf("nft delete chain %s %s %s", m.family, table, name)
	case handle != 0:
		return fmt.Sprintf("nft delete rule %s handle %d", chain, handle)
	}
	return "nft flush chain " + chain
}
