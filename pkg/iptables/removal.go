package iptables

import (
	"context"
	"strings"

	"flanneld/pkg/firewall"
)

// Removal returns, as commands, what a Sync with nothing wanted would change. It changes nothing
// itself.
func (t *Tables) Removal(ctx context.Context, owner firewall.Owner) ([]string, error) {
	p, err := t.plan(ctx, owner, func(listing, policies) []firewall.Chain { return nil }, true)
	if err != nil {
		return nil, err
	}
	var commands []string
	table := ""
	for line := range strings.Lines(p.input) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		} else if strings.HasPrefix(line, "-") {
			commands = append(commands, t.command+" -t "+table+" "+line)
		}
	}
	return commands, nil
}
