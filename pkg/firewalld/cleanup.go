package firewalld

import (
	"context"
	"errors"
	"net/netip"
)

// Forget undoes what Trust has done for a network, or, with dry, says only what it
// would. Where there is no D-Bus or no firewalld, there is nothing to undo. It returns
// the commands that do the same.
func Forget(ctx context.Context, network netip.Prefix, dry bool) (commands []string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := Dial(ctx)
	if errors.Is(err, ErrNoBus) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	trusted, err := c.Trusted(ctx, network)
	if NotRunning(err) {
		return nil, nil
	}
	if err != nil || !trusted {
		return nil, err
	}
	if !dry {
		err = c.Untrust(ctx, network)
	}
	return []string{UntrustCommand(network)}, err
}
