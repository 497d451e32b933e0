package cleanup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flanneld/pkg/firewalld"
	"flanneld/pkg/nftables"
)

// firewalldTimeout limits the wait for firewalld, which may be loading its configuration.
const firewalldTimeout = 15 * time.Second

// firewalld removes the network from firewalld's trusted zone. It contacts firewalld only if its
// table is in this network namespace: the system bus may be that of another one.
func (c *cleanup) firewalld(ctx context.Context, nft *nftables.Tables) error {
	owned, err := nft.OwnedTables()
	if err != nil || !slices.Contains(owned, firewalld.Table) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, firewalldTimeout)
	defer cancel()
	client, err := firewalld.Dial(ctx)
	if errors.Is(err, firewalld.ErrNoBus) {
		fmt.Fprintf(c.remarks, "cannot connect to firewalld (%v); if it trusts the network: %s\n", err, firewalld.UntrustCommand(c.owner.Network))
		return nil
	}
	if err != nil {
		return err
	}
	defer client.Close()
	trusted, err := client.Trusted(ctx, c.owner.Network)
	if firewalld.NotRunning(err) {
		return nil
	}
	if err != nil || !trusted {
		return err
	}
	return c.step(firewalld.UntrustCommand(c.owner.Network), func() error { return client.Untrust(ctx, c.owner.Network) })
}
